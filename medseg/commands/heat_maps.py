"""Heat maps of a case, made and written beside its prediction: what ``explain=`` means to ``medseg explain`` and ``predict``.

``heatmaps.json`` lies in a case's folder when its maps are whole, and says how they were made: what it lists is not made again.
How a map comes about is in `medseg.explain`, how it is written in `medseg.export.heat_maps`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError, all_at_once
from medseg.explain.targets import Target, targets_of
from medseg.export.dicom import DicomExport, export_maps
from medseg.export.dicom_source import Algorithm
from medseg.export.heat_maps import heat_overlay, stems, value_map, write_heat_map
from medseg.files import write_text
from medseg.model import Model
from medseg.structures import Case, Prediction
from medseg.volume import Volume

if TYPE_CHECKING:
    from medseg.explain.explainer import Explainer

NAME = "heatmaps.json"
_ENDINGS = (".nii.gz", ".tif", ".png", ".dcm")
_KINDS = {
    "classification": ("class",),
    "segmentation": ("label", "lesion", "box"),
    "detection": ("box", "lesion"),
}


@dataclass(frozen=True)
class Saliency:
    """What ``conf/explain`` says.

    Args:
        method: one of `medseg.explain.explainer.METHODS`, or ``auto``; None for no heat maps.
        layer: where a CAM method looks; None for its default.
        targets: what is explained; empty for what `targets_of` finds in a prediction.
        options: of the method.
    """

    method: str | None
    layer: str | None = None
    targets: tuple[Target, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Saliency:
        """Read a configuration; what is null is left to the method.

        Raises:
            MedsegError: targets that are none; all are named.
        """
        given = dict(values)
        method, layer, texts = given.pop("method", None), given.pop("layer", None), given.pop("targets", None) or ()
        targets, problems = [], []
        for text in [texts] if isinstance(texts, str) else texts:
            try:
                targets.append(Target.parse(str(text)))
            except MedsegError as error:
                problems.append(str(error))
        if problems:
            raise all_at_once("explain.targets:", problems)
        options = {name: value for name, value in given.items() if value is not None}
        return cls(method, layer, tuple(dict.fromkeys(targets)), options)


def explainer_of(
    models: Sequence[Model],
    saliency: Saliency,
    *,
    overlap: float = 0.5,
    runtime: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> Explainer:
    """Models ready to be explained; of ``runtime`` device and precision count, as only PyTorch can be looked into.

    Raises:
        MedsegError: there is no method, or it, an option, a layer or a target does not exist (all such targets are named).
    """
    from medseg.explain.explainer import Explainer  # Captum and MONAI, which predicting alone does not need

    if saliency.method is None:
        raise MedsegError("explain=none: expected a method to explain with, such as explain=auto")
    check_targets(saliency.targets, models[0])
    how = {name: value for name, value in (runtime or {}).items() if name in ("device", "precision")}
    return Explainer(
        models,
        method=saliency.method,
        layer=saliency.layer,
        options=saliency.options,
        overlap=overlap,
        trust=trust,
        **how,
    )


def heat_maps_of(
    models: Sequence[Model], saliency: Saliency, *, export: Mapping[str, Any] | None = None, **how: Any
) -> HeatMaps:
    """What writes the heat maps of a model, or of the members of an ensemble.

    Args:
        export: as ``medseg predict`` takes it; where it asks for DICOM, parametric maps are written too.
        how: as `explainer_of`.

    Raises:
        MedsegError: as `explainer_of`, or an option of the export does not exist.
    """
    objects = dict(export or {})
    dicom = DicomExport.from_mapping(objects) if objects.pop("dicom", False) else None
    return HeatMaps(explainer_of(models, saliency, **how), saliency.targets, saliency.options, dicom)


def check_targets(targets: Sequence[Target], model: Model) -> None:
    """Raises MedsegError for what no case of this model has, whatever is found in it: all are named, before any work."""
    task, labels = str(model.task["name"]), model.plan.labels
    names = list(labels.names.values()) if task == "classification" else list(labels.targets)
    kinds, problems = _KINDS[task], []
    for target in targets:
        if target.kind not in kinds:
            problems.append(f"{target}: a model of {task} has no {target.kind}; ask for {' or '.join(kinds)}")
        elif target.kind in ("class", "label") and target.name not in names:
            problems.append(f"{target}: the model has no {target.kind} {target.name!r}; it has {', '.join(names)}")
    if problems:
        raise all_at_once("explain.targets:", problems)


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """Explains predictions of one model and writes the maps into the folders of their cases.

    Args:
        explainer: of the model, or of the members of an ensemble.
        targets: as in `Saliency`.
        options: of the method, as they were asked for.
        dicom: which objects are wanted; None for plain files alone.
    """

    explainer: Explainer
    targets: Sequence[Target] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    dicom: DicomExport | None = None

    @property
    def made(self) -> dict[str, Any]:
        """What the maps depend on, beside the scan and the prediction: plain values."""
        return {
            "models": [model.sha256 for model in self.explainer.models],
            "method": self.explainer.method,
            "layer": self.explainer.layer,
            "options": dict(self.options),
            "dicom": self.dicom is not None,
        }

    def is_done(self, folder: Path) -> bool:
        """Whether a case's folder holds every map that is asked for, made in this way."""
        body = read_index(folder)
        if body is None or body["made"] != self.made:
            return False
        known = body["targets"]
        asked = [str(target) for target in self.targets]
        listed = all(target in known for target in asked) if asked else body["default"]
        return listed and all((folder / name).is_file() for target in asked or known for name in known[target])

    def other_way(self, folder: Path) -> str:
        """How the maps of a case's folder were made, where it differs, as ``method grad_cam``; empty where it does not."""
        body = read_index(folder)
        theirs = self.made if body is None else body["made"]
        return ", ".join(f"{name} {theirs.get(name)}" for name, value in self.made.items() if theirs.get(name) != value)

    def write(self, volume: Volume, prediction: Prediction, case: Case, folder: Path) -> None:
        """Explain a case and write each map beside its prediction; ``heatmaps.json`` comes last.

        Maps that were made in another way are removed; of the same way, those of other targets stay.

        Raises:
            MedsegError: a target that the prediction does not have, an empty mask, a map that is not finite.
            MachineError: the memory does not hold what the method needs.
        """
        targets = list(self.targets) or targets_of(prediction)
        body = read_index(folder)
        found = {heat_map.target: heat_map for heat_map in self.explainer.explain(volume, prediction, targets)}
        if body is None or body["made"] != self.made:
            remove_maps(folder)
            body = {"made": self.made, "default": False, "targets": {}}
        names = stems(dict.fromkeys([*body["targets"], *found]))
        for target, heat_map in found.items():
            write_heat_map(heat_map, folder / names[target])
            heat_overlay(volume, heat_map, folder / f"{names[target]}.png")
        if self.dicom is not None:
            maps = (value_map(heat_map, names[target]) for target, heat_map in found.items())
            plan = self.explainer.plan
            algorithm = Algorithm(f"medseg {plan.task}", "+".join(sha[:12] for sha in self.made["models"]))
            export_maps(maps, case, folder, options=self.dicom, plan_options=plan.options, algorithm=algorithm)
        for target in found:
            files = [f"{names[target]}{ending}" for ending in _ENDINGS]
            body["targets"][target] = [name for name in files if (folder / name).is_file()]
        body["default"] = body["default"] or not self.targets
        write_text(folder / NAME, json.dumps(body, indent=1, ensure_ascii=False) + "\n")


def read_index(folder: Path) -> dict[str, Any] | None:
    """What a case's ``heatmaps.json`` says; None where there is none that is understood, and maps may be half written."""
    try:
        body = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kinds = {"made": dict, "default": bool, "targets": dict}
    is_index = isinstance(body, dict) and all(isinstance(body.get(name), kind) for name, kind in kinds.items())
    return body if is_index else None


def remove_maps(folder: Path) -> None:
    """Remove the heat maps of a case, and first what says that they are whole."""
    for path in [folder / NAME, *sorted(folder.glob("heatmap_*"))]:
        path.unlink(missing_ok=True)
