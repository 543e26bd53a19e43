"""One case through one or several models: windows and mirrorings here, meaning in the task, files elsewhere.

`predict_grid` works on the plan's grid and serves training and prediction alike; `Predictor` goes the whole way from a
case to a `Prediction` on the scan's own grid.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medseg.data.lesions import restore_boxes
from medseg.data.preprocess import Restoration, preprocess
from medseg.data.regions import read_planned
from medseg.errors import MachineError, MedsegError
from medseg.evaluation.box_calibration import calibrated_boxes
from medseg.evaluation.mask_calibration import calibrated_mask
from medseg.evaluation.postprocess import apply_postprocessing
from medseg.evaluation.working_point import mean_point
from medseg.inference.auto_runtime import settle
from medseg.inference.boxes import BoxFinder, BoxOptions
from medseg.inference.classes import ClassReader
from medseg.inference.components import components
from medseg.inference.runtime import Runtime
from medseg.inference.runtimes import RuntimeOptions, build_runtime
from medseg.model import Model
from medseg.planning.plan import Plan
from medseg.structures import Case, Prediction
from medseg.tasks import build_task
from medseg.tiling.windows import cut_window, window_starts
from medseg.volume import Array, Volume, reorientation_to

if TYPE_CHECKING:
    from medseg.tasks.base import Task, View


def predict_grid(
    runtimes: Sequence[Runtime],
    array: Array,
    plan: Plan,
    task: Task,
    *,
    overlap: float = 0.5,
    mirror: bool = True,
    batch_size: int = 1,
    on_window: Callable[[int, int], None] | None = None,
) -> Any:
    """What the networks say of one preprocessed case, merged by the task, on the plan's grid.

    Each window is answered by every runtime in every mirroring over ``plan.mirror_axes``; what `Task.combine` makes of the
    answers goes into the task's merger. Where the case is smaller than the patch, it lies
    in the middle of a window of zeros, as in training.

    Args:
        runtimes: the members of an ensemble (one network: a list of one).
        array: ``(C, *S)`` float32, as `preprocess` gives it.
        overlap: what neighbouring windows share at least, 0 to below 1; nothing to do with cases that fit one window.
        mirror: whether mirrored copies are predicted too (2 to the number of ``mirror_axes`` times the work).
        batch_size: windows that go through a network at once.
        on_window: called with (windows done, all windows) after each batch, for a progress bar.

    Returns:
        Whatever ``task.merger(...).result()`` returns; segmentation: probabilities ``(K, *S)`` float32; detection: boxes.
    """
    if not runtimes:
        raise MedsegError("predict: expected at least one model, found none")
    shape, patch = array.shape[1:], plan.patch_size
    starts = window_starts(shape, patch, overlap)
    merger = task.merger(shape, patch)
    flips = list(_mirrorings(plan.mirror_axes if mirror else ()))
    for first in range(0, len(starts), batch_size):
        lowers = starts[first : first + batch_size]
        batch = torch.from_numpy(np.stack([cut_window(array, lower, patch) for lower in lowers]).astype(np.float32))
        with torch.inference_mode():
            answers = task.combine(_views(runtimes, batch, flips))
        for answer, lower in zip(answers, lowers, strict=True):
            merger.add(answer, lower)
        if on_window is not None:
            on_window(first + len(lowers), len(starts))
    return merger.result()


def _mirrorings(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every subset of the spatial ``axes``, as axes of a batch ``(B, C, *S)``; the first is none of them."""
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield tuple(axis + 2 for axis in chosen)


def _views(runtimes: Sequence[Runtime], batch: Tensor, flips: Sequence[tuple[int, ...]]) -> Iterator[View]:
    for runtime in runtimes:
        for axes in flips:
            yield runtime(batch.flip(axes) if axes else batch), axes


class Predictor:
    """An ensemble of models that share one plan, ready to say what it sees in a case.

    Args:
        models: the members; a single model is a list of one.
        runtime: values of `medseg.inference.runtimes.RuntimeOptions`; ``auto`` is plain PyTorch until `settle_runtime`.
        overlap, mirror, batch_size: see `predict_grid`.
        boxes: where boxes come from, and which of them count; a mapping is read as `BoxOptions.from_mapping` does.
        trust: targets of networks that are not built in.

    Raises:
        MedsegError: no model; members whose plans preprocess differently; an option that does not exist; boxes that a
            model cannot give.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        runtime: Mapping[str, Any] | None = None,
        overlap: float = 0.5,
        mirror: bool = True,
        batch_size: int = 1,
        boxes: BoxOptions | Mapping[str, Any] | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        if not models:
            raise MedsegError("predict: expected at least one model, found none")
        self.model = models[0]
        self.plan = self.model.plan
        for other in models[1:]:
            check_member(self.model, other)
        self._models, self._trust, self._batch_size = tuple(models), tuple(trust), batch_size
        self.runtime = RuntimeOptions.from_mapping(runtime or {})
        self._why = ""
        self._runtimes = self._built("torch" if self.runtime.name == "auto" else self.runtime.name)
        self.finder = BoxFinder.of(
            models, boxes if isinstance(boxes, BoxOptions) else BoxOptions.from_mapping(boxes or {})
        )
        self.task = build_task(self.finder.task, self.plan)
        point = mean_point([model.working_point for model in models])
        self._temperature = float(point.get("temperature", 1.0))
        self._reader = ClassReader.of(models) if self.plan.classes is not None else None
        self.members = tuple(m.sha256 for m in models)
        self.postprocessing = _agreed([m.postprocessing for m in models])
        window_starts((1,), (1,), overlap)  # an impossible overlap is named before any work
        self._options: dict[str, Any] = {"overlap": overlap, "mirror": mirror, "batch_size": batch_size}

    @property
    def sha256(self) -> str:
        """The hash of the model, or of all members together."""
        return self.members[0] if len(self.members) == 1 else hashlib.sha256("".join(self.members).encode()).hexdigest()

    def runtime_description(self) -> dict[str, str]:
        """Runtime, device and number format, and why ``auto`` chose them, for a manifest."""
        return {**self._runtimes[0].describe(), **({"why": self._why} if self._why else {})}

    def settle_runtime(self, windows: int) -> None:
        """Let ``runtime=auto`` choose, with so many windows ahead of each member, mirrorings not counted."""
        flips = 2 ** len(self.plan.mirror_axes) if self._options["mirror"] else 1
        how: dict[str, Any] = {"batch_size": self._batch_size, "trust": self._trust}
        self._runtimes, choice = settle(self._models, self.runtime, windows * flips, plain=self._runtimes, **how)
        self._why = choice.why

    def keep_runtime(self, name: str) -> None:
        """Go on with the runtime that ``auto`` chose before. Raises MedsegError where it cannot be had any more."""
        self._runtimes = self._built(name)

    def windows_of(self, volume: Volume) -> int:
        """About how many windows a scan has (what is cropped away is counted); 0 where it does not fit the plan."""
        plan, geometry = self.plan, volume.geometry
        if geometry.dimensions != plan.dimensions:
            return 0
        if plan.orientation != "stored":
            geometry = reorientation_to(geometry, plan.orientation).apply_to_geometry(geometry)
        finer = [1.0] * plan.dimensions if plan.unit == "px" else np.divide(geometry.spacing, plan.spacing)
        shape = [max(1, round(n * f)) for n, f in zip(geometry.shape, finer, strict=True)]
        return len(window_starts(shape, plan.patch_size, self._options["overlap"]))

    def _built(self, name: str) -> list[Runtime]:
        how: dict[str, Any] = {"batch_size": self._batch_size, "trust": self._trust}
        return [build_runtime(name, model, self.runtime, **how) for model in self._models]

    def predict(self, case: Case) -> Prediction:
        """Read the case's channels and say what is in it.

        Raises:
            MedsegError: a channel cannot be read, or the scan does not fit the plan.
        """
        return self.predict_volume(read_planned(case, self.plan), case.id)

    def predict_volume(self, volume: Volume, case: str) -> Prediction:
        """`predict` of a volume that is read already (`read_planned`); ``case`` is the id that the prediction bears."""
        return self.outcome(volume, case).prediction

    def outcome(self, volume: Volume, case: str, on_window: Callable[[int, int], None] | None = None) -> Outcome:
        """A prediction with what it was decided from, for writing probabilities.

        Raises:
            MedsegError: the volume does not fit the plan.
            MachineError: the memory does not hold the result.
        """
        array, restoration = preprocess(volume, self.plan)
        try:
            merged = predict_grid(self._runtimes, array, self.plan, self.task, on_window=on_window, **self._options)
        except MemoryError as error:
            raise MachineError(
                f"case {case!r}: the memory does not hold its result on the plan's grid {array.shape[1:]}: {error}"
            ) from None
        prediction = self.task.decode(case, merged, restoration, self.finder.thresholds)
        if self._reader is not None:
            prediction = self._reader.read(prediction, merged)
        if prediction.boxes is not None:
            found = calibrated_boxes(prediction.boxes, prediction.labels, self.finder.calibration)
            prediction = replace(prediction, boxes=found)
        if self.finder.components is not None:
            found = components(merged, restoration.geometry, prediction.labels, **self.finder.components)
            boxes, thresholds = restore_boxes(found, restoration), self.finder.thresholds
            prediction = replace(prediction, boxes=boxes, thresholds=thresholds)
        if prediction.mask is not None and self.postprocessing:
            # On the plan's axes, so that of two equally large components the same one stays however the scan is stored.
            turn, scan = restoration.turn, prediction.geometry
            turned, geometry = turn.apply(prediction.mask), turn.apply_to_geometry(scan)
            kept = apply_postprocessing(turned, geometry, prediction.labels, self.postprocessing)
            prediction = replace(prediction, mask=turn.inverse().apply(kept))
        return Outcome(prediction, merged, restoration, self.plan, self._temperature)


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prediction on the scan's own grid, the merged output on the grid of ``plan``, and the way from one to the other.

    ``temperature`` makes the probabilities of masks honest; other tasks have their own calibration and do not look at it.
    """

    prediction: Prediction
    merged: Any
    restoration: Restoration
    plan: Plan
    temperature: float = 1.0

    def probabilities(self) -> Array:
        """``(K, *S)`` float32 calibrated, on the plan's grid, of a segmentation, in the order of ``labels.outputs``."""
        return calibrated_mask(self.merged, self.prediction.labels, self.temperature)


def _agreed(options: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The post-processing that every member of an ensemble would do: a label's gentlest rule, none if one has none."""
    agreed: dict[str, dict[str, Any]] = {}
    for name in set(options[0]).intersection(*options[1:]):
        rules = [member[name] for member in options]
        if len({rule.get("unit") for rule in rules}) == 1:
            largest = all(rule.get("largest", False) for rule in rules)
            smallest = min(rule.get("smallest", 0.0) for rule in rules)
            agreed[name] = {**rules[0], "largest": largest, "smallest": smallest}
    return agreed


def check_member(first: Model, other: Model) -> None:
    """Raises MedsegError unless both may be averaged: one preprocessing, patch, task and set of labels."""
    for name, a, b in (
        ("preprocessing", first.plan.preprocessing_key(), other.plan.preprocessing_key()),
        ("labels", dict(first.plan.labels.names), dict(other.plan.labels.names)),
        ("patch_size", first.plan.patch_size, other.plan.patch_size),
        ("task", dict(first.task), dict(other.task)),
    ):
        if a != b:
            raise MedsegError(
                f"these models are no ensemble, as their {name} differs ({a} and {b}): folds share one plan. "
                "Predict with each, or name them: model={a: …, b: …}"
            )
