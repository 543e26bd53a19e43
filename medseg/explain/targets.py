"""What a heat map is asked about: a class, a label of the mask, one lesion, or one box; and where that lies in the scan.

Owns the names (``lesion-1``) and their voxels. Ids are those of ``boxes.json`` and of the report: where a model answers with
boxes, they are its findings by falling score, and a lesion is what its box marks; else lesions are the components of the mask by
falling size. Knows no network: which number of an output speaks for a target, `Task.score` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from medseg.data.lesions import preprocess_lesions
from medseg.data.preprocess import Restoration
from medseg.errors import MedsegError, all_at_once
from medseg.evaluation.classification import called_classes
from medseg.evaluation.lesions import bounding_box, component_sizes, components
from medseg.planning.plan import Plan
from medseg.structures import Boxes, Prediction
from medseg.volume import Array

Kind = Literal["class", "label", "lesion", "box"]
MOST_BOXES = 10
"""Boxes that are explained where nobody says which."""


@dataclass(frozen=True)
class Target:
    """What is asked: ``class`` or ``label`` and a name, ``lesion`` or ``box`` and an id from 1.

    Raises:
        MedsegError: the kind does not exist, or the id is no whole number from 1.
    """

    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise MedsegError(
                f"target {self}: expected class, label, lesion or box and a name or id, such as label=tumour or lesion=1"
            )
        if self.kind in ("lesion", "box") and (not self.name.isdecimal() or int(self.name) < 1):
            raise MedsegError(f"target {self}: expected an id from 1, such as {self.kind}=1")

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``lesion=1`` or ``lesion-1``. Raises MedsegError as above."""
        kind, _, name = re.sub("[=-]", "=", text.strip(), count=1).partition("=")
        return cls(kind.strip(), name.strip())

    def __str__(self) -> str:
        return f"{self.kind}-{self.name}"


@dataclass(frozen=True, eq=False)
class Aim:
    """A target as it was found in a prediction.

    Args:
        output: what `Task.score` calls it: the name of a class or label.
        region: its voxels, ``geometry.shape`` bool on the scan's own grid; None for a class, which lies nowhere.
    """

    target: Target
    output: str
    region: Array | None = None


def targets_of(prediction: Prediction) -> list[Target]:
    """What is explained where nobody says: the classes that are called (else the likeliest), the surest boxes, or each label
    that the mask holds. Empty where nothing was found."""
    if prediction.classes:
        return [Target("class", name) for name in _called(prediction)]
    if prediction.findings is not None:
        return [Target("box", str(number)) for number in range(1, min(len(prediction.findings), MOST_BOXES) + 1)]
    sizes = prediction.sizes()
    return [Target("label", name) for name in sizes if sizes[name] > 0]


def aims_of(prediction: Prediction, targets: Iterable[Target]) -> list[Aim]:
    """Each target with what the task calls it and where it lies.

    Raises:
        MedsegError: the model does not have a target, an id is out of range, or the mask is empty there (all are named).
    """
    targets = list(targets)
    parts: list[_Part] = []
    if prediction.findings is None and any(target.kind == "lesion" for target in targets):
        parts = _parts(prediction)
    aims, problems = [], []
    for target in targets:
        try:
            aims.append(_aim(prediction, target, parts))
        except MedsegError as error:
            problems.append(f"{target}: {error}")
    if problems:
        raise all_at_once(f"case {prediction.case!r}: cannot explain", problems)
    return aims


def region_on_plan(region: Array, restoration: Restoration, plan: Plan) -> Array:
    """Voxels of the scan's own grid → the plan's grid, ``restoration.shape`` bool; what is too small for it keeps a voxel.

    Args:
        region: ``restoration.scan.shape``, above 0 in at least one voxel.
    """
    marked = region > 0
    window = bounding_box(marked)
    if window is None:
        raise MedsegError("the region to explain is empty; expected at least one voxel above 0")
    edges = np.array([[*(side.start for side in window), *(side.stop for side in window)]], np.float64)
    boxes, numbered = preprocess_lesions(Boxes(edges, np.ones(1, np.int64)), marked, restoration, plan)
    if numbered is not None and numbered.any():
        return np.asarray(numbered[0] > 0)
    return voxels_of(boxes.boxes[0], restoration.shape)


def voxels_of(box: Array, shape: Sequence[int]) -> Array:
    """``shape`` bool: the voxels that a box ``(2·D,)`` of edges touches, at least one."""
    low, high = np.split(np.asarray(box, np.float64), 2)
    low = np.clip(np.floor(low), 0, np.asarray(shape) - 1).astype(int)
    high = np.clip(np.ceil(high), low + 1, shape).astype(int)
    inside = np.zeros(tuple(shape), bool)
    inside[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return inside


def _aim(prediction: Prediction, target: Target, parts: Sequence[_Part]) -> Aim:
    kind, name = target.kind, target.name
    if kind == "class":
        return Aim(target, _known(name, list(prediction.classes), "class", prediction))
    if kind == "label":
        masks = {} if prediction.mask is None else prediction.labels.targets
        values = masks[_known(name, list(masks), "label", prediction)]
        inside = np.isin(np.asarray(prediction.mask), values)
        if not inside.any():
            raise MedsegError(f"the mask holds no {name!r}, so there is nothing to point at; {_said(prediction)}")
        return Aim(target, name, inside)
    if prediction.findings is not None:
        boxes = prediction.findings.ranked()
        at = _numbered(target, len(boxes), prediction)
        return _of_box(prediction, target, boxes.boxes[at], int(boxes.labels[at]))
    if kind == "box" or prediction.mask is None:
        raise MedsegError(f"the model finds no {'boxes' if kind == 'box' else 'lesions'}; {_said(prediction)}")
    if not parts:
        raise MedsegError(f"the mask is empty, so there is no lesion to point at; {_said(prediction)}")
    part = parts[_numbered(target, len(parts), prediction)]
    inside = np.zeros(prediction.geometry.shape, bool)
    inside[part.window] = part.labelled == part.number
    return Aim(target, part.label, inside)


def _of_box(prediction: Prediction, target: Target, edges: Array, value: int) -> Aim:
    """A finding: its box or, of a lesion whose voxels are known, those in the box."""
    inside = voxels_of(edges, prediction.geometry.shape)
    if target.kind == "lesion" and prediction.mask is not None:
        voxels = inside & (prediction.mask == value)
        inside = voxels if voxels.any() else inside
    return Aim(target, prediction.labels.names[value], inside)


@dataclass(frozen=True, eq=False)
class _Part:
    """A component of a label: number ``number`` of ``labelled``, which lies at ``window`` of the scan's own grid."""

    label: str
    window: tuple[slice, ...]
    labelled: Array
    number: int
    size: int


def _parts(prediction: Prediction) -> list[_Part]:
    """The components of every label by falling size."""
    found: list[_Part] = []
    if prediction.mask is None:
        return found
    for label, values in prediction.labels.targets.items():
        inside = np.isin(prediction.mask, values)
        window = bounding_box(inside)
        if window is not None:
            labelled, count = components(inside[window])
            sizes = component_sizes(labelled, count)
            found += [_Part(label, window, labelled, n, int(size)) for n, size in enumerate(sizes, 1)]
    return sorted(found, key=lambda part: -part.size)


def _called(prediction: Prediction) -> Sequence[str]:
    """The classes that are called, else the likeliest. Of classes that exclude each other not all have a threshold."""
    classes, thresholds = prediction.classes, prediction.thresholds
    called = called_classes(classes, thresholds, exclusive=len(thresholds) < len(classes))
    return called or [max(classes, key=classes.__getitem__)]


def _known(name: str, names: Sequence[str], kind: str, prediction: Prediction) -> str:
    if name not in names:
        has = f"it has {', '.join(names)}" if names else f"it gives no {'masks' if kind == 'label' else 'classes'}"
        raise MedsegError(f"the model has no {kind} {name!r}; {has}" + ("" if names else f"; {_said(prediction)}"))
    return name


def _numbered(target: Target, count: int, prediction: Prediction) -> int:
    """The position of an id. Raises MedsegError where there is none such."""
    if int(target.name) > count:
        known = f"{target.kind}-1 to {target.kind}-{count}" if count else f"no {target.kind} was found"
        raise MedsegError(f"expected one of {known}" if count else f"{known}; {_said(prediction)}")
    return int(target.name) - 1


def _said(prediction: Prediction) -> str:
    """What could be asked instead."""
    able = targets_of(prediction)
    return f"ask for {', '.join(map(str, able))}" if able else "this case has nothing to explain"
