"""Where the boxes of a prediction come from and which of them count: the options of ``boxes=``, fitted to the models at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from medseg.errors import MedsegError
from medseg.evaluation.working_point import CALIBRATION, averaged, chosen_thresholds, mean_point
from medseg.model import Model

Origin = Literal["network", "components"]


@dataclass(frozen=True)
class BoxOptions:
    """What may be asked of boxes.

    Args:
        origin: ``network``: a detector's; ``components``: of the mask that a segmentation model gives (called ``from``).
        fp_per_scan: false positives a scan that the working point allows on ``tune``; None for the model's own.
        all: whether candidates below the working point are written too.
        fusion, iou, cluster: other than those the model was trained with.
    """

    origin: Origin = "network"
    fp_per_scan: float | None = None
    all: bool = False
    fusion: str | None = None
    iou: float | None = None
    cluster: float | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> BoxOptions:
        """Read what ``conf/boxes`` holds. Raises MedsegError for an option or value that does not exist."""
        given = {("origin" if name == "from" else name): value for name, value in values.items()}
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise MedsegError(
                f"boxes has no {', '.join(unknown)}; it has from, {', '.join(sorted(known - {'origin'}))}"
            )
        options = cls(**given)
        if options.origin not in get_args(Origin):
            raise MedsegError(f"boxes.from {options.origin!r}; expected one of {', '.join(get_args(Origin))}")
        return options

    def for_one_of_several(self, task: str) -> BoxOptions:
        """What of the options concerns a model that predicts beside models of other tasks."""
        if task == "detection":
            return replace(self, origin="network")
        return self if self.origin == "components" else BoxOptions()


@dataclass(frozen=True)
class BoxFinder:
    """How models find boxes.

    Args:
        task: their task's spec, with the fusion that was asked for.
        thresholds: label → score from which a box counts; empty where nothing was chosen.
        components: options of `medseg.inference.components.components`; None unless boxes come from masks.
        calibration: label → what makes a detector's scores probabilities; empty where nothing was chosen.
    """

    task: Mapping[str, Any]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    components: Mapping[str, Any] | None = None
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, models: Sequence[Model], options: BoxOptions) -> BoxFinder:
        """What the members of an ensemble agree on.

        Raises:
            MedsegError: components of a model that gives no mask to take them from, a fusion for a model that finds no boxes,
                or a rate that the models do not know.
        """
        task = dict(models[0].task)
        detects = task["name"] == "detection"
        if options.origin == "network":
            chosen = {name: getattr(options, name) for name in ("fusion", "iou", "cluster")}
            asked = {name: value for name, value in chosen.items() if value is not None}
            if not detects:
                wanted = [*asked, *(["fp_per_scan"] if options.fp_per_scan is not None else [])]
                if wanted:
                    raise MedsegError(
                        f"boxes: {', '.join(wanted)}: this model does {task['name']} and finds no boxes; boxes=components takes "
                        "them from its mask"
                    )
                return cls(task)
            point = averaged([model.working_point for model in models])
            thresholds = chosen_thresholds(point, options.fp_per_scan)
            lines = mean_point([model.working_point for model in models]).get(CALIBRATION, {})
            return cls(task | asked, thresholds, calibration=lines)
        if detects:
            raise MedsegError("boxes=components: is for segmentation models, this one finds boxes itself; leave it out")
        point = averaged([model.working_point.get("components", {}) for model in models])
        made: dict[str, Any] = {name: point[name] for name in ("aggregate", "smallest_mm3") if name in point}
        return cls(task, chosen_thresholds(point, options.fp_per_scan), made)
