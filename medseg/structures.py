"""The values that rooms hand each other: cases, labels, boxes, predictions. Nothing here reads a file or runs a network."""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from medseg.errors import MedsegError
from medseg.volume import Array, Geometry

SourceKind = Literal["nifti", "nrrd", "metaimage", "dicom", "picture", "npz", "seg", "rtstruct"]
"""What a file holds; ``seg`` and ``rtstruct`` are DICOM objects that hold labels only."""
_EMPTY: Mapping[Any, Any] = MappingProxyType({})


def _read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


# Read-only mappings cannot be pickled by themselves, and cases, labels and plans go to worker processes.
copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


@dataclass(frozen=True)
class Source:
    """Where the pixels of one volume lie, known from headers alone.

    ``files`` are in the order in which they are read (DICOM: ascending position). ``frames`` is parallel to them where DICOM
    files hold several planes each (such a file then stands once for each of them): which plane is meant, from 0. ``key`` says
    which volume is meant where a file or series holds several; ``description`` is the series description, for matching
    channels, never for names.
    """

    kind: SourceKind
    files: tuple[Path, ...]
    key: str = ""
    modality: str = ""
    description: str = ""
    frames: tuple[int, ...] = ()

    @property
    def distinct_files(self) -> tuple[Path, ...]:
        """Each file once, in the order of reading."""
        return tuple(dict.fromkeys(self.files))


@dataclass(frozen=True)
class Case:
    """One examination: a source for each channel, and what is known about it.

    ``patient`` keeps a patient's cases on one side of a split; it is the user's own key or a salted hash, and by default the
    id. ``class_name`` may hold several, with ``;`` between them. ``metadata`` holds the other columns of a table. A case of
    ``predict`` has no label.
    """

    id: str
    images: tuple[Source, ...]
    label: Source | None = None
    boxes: Path | str | None = None
    class_name: str | None = None
    patient: str = ""
    metadata: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    def __post_init__(self) -> None:
        if not self.id or not self.images:
            raise MedsegError(f"case {self.id!r}: expected an id and at least one image")
        if not self.patient:
            object.__setattr__(self, "patient", self.id)


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a data set or an input: ``kind`` is a short stable word, ``message`` says how to mend it."""

    case: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"case {self.case!r}: {self.message}" if self.case else self.message


@dataclass(frozen=True)
class LabelTable:
    """What the values of a mask mean.

    Args:
        names: mask value → name, without background (0) and without the ignore value; ascending.
        ignore: mask value that is left out of loss and metrics.
        regions: name → mask values, for regions that overlap (whole tumour = 1, 2, 3). Where given, the network has one
            sigmoid output a region, and decoding paints the regions in this order with ``paint``'s values.
        paint: the mask value that each region is painted with, in the order of ``regions``.
    """

    names: Mapping[int, str]
    ignore: int | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: _EMPTY)
    paint: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = {int(value): str(name) for value, name in sorted(self.names.items())}
        regions = {str(name): tuple(int(v) for v in values) for name, values in self.regions.items()}
        object.__setattr__(self, "names", MappingProxyType(names))
        object.__setattr__(self, "regions", MappingProxyType(regions))
        object.__setattr__(self, "paint", tuple(int(v) for v in self.paint))
        if not names:
            raise MedsegError("labels: expected at least one label beside background (0), found none")
        if min(names) < 1:
            raise MedsegError(
                f"labels: values must be whole numbers from 1 up (0 is background), found {sorted(names)}"
            )
        if len(set(names.values())) != len(names):
            raise MedsegError(f"labels: two values share a name: {dict(names)}")
        if self.ignore is not None and self.ignore in names:
            raise MedsegError(f"labels: the ignore value {self.ignore} is also the label {names[self.ignore]!r}")
        unknown = sorted({v for values in regions.values() for v in values} - set(names))
        if unknown:
            raise MedsegError(f"regions: values {unknown} are not among the labels {dict(names)}")
        if len(self.paint) != len(regions) or not set(self.paint) <= set(names):
            raise MedsegError(
                f"regions: expected one label value to paint for each of {list(regions)}, found {list(self.paint)}"
            )

    @property
    def exclusive(self) -> bool:
        """Whether a voxel has one label (softmax) rather than several regions (sigmoid)."""
        return not self.regions

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's output channels: background and labels, or the regions."""
        return tuple(self.regions) if self.regions else ("background", *self.names.values())

    @property
    def targets(self) -> Mapping[str, tuple[int, ...]]:
        """What is scored and reported: name → the mask values that count as it."""
        return self.regions or {name: (value,) for value, name in self.names.items()}


@dataclass(frozen=True)
class Cohort:
    """A data set as a layout lists it: its cases, what its channels and labels are called, and what was wrong with it.

    ``channels`` holds a name a channel (``"MRI"``, ``"CT"``, ``"FLAIR"``): the modality decides normalisation. ``labels`` is
    None where the data set has no mask, ``classes`` are the names that `Case.class_name` may have, sorted. A fault here is one
    that listing alone reveals (an image without label).
    """

    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    labels: LabelTable | None = None
    faults: tuple[Fault, ...] = ()
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        twice = sorted({case.id for case in self.cases if case.id in seen or seen.add(case.id)})  # type: ignore[func-returns-value]
        if twice:
            raise MedsegError(f"case ids must be unique; found more than once: {twice[:10]}")


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes on a grid, ``(N, 2·D)`` float as ``(i0, j0, k0, i1, j1, k1)``: half-open voxel edges, ``i0 < i1``.

    ``spread`` (N,) says how far the views of a model (windows, mirrorings, folds) disagree about each box: the standard deviation
    of their scores, a view without the box counting 0.
    """

    boxes: Array
    labels: Array
    scores: Array | None = None
    spread: Array | None = None

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] not in (4, 6) or len(self.labels) != len(self.boxes):
            raise MedsegError(f"expected boxes (N, 4 or 6) and N labels, found {self.boxes.shape}, {self.labels.shape}")
        half = self.boxes.shape[1] // 2
        if not (self.boxes[:, half:] > self.boxes[:, :half]).all():
            raise MedsegError("a box has no extent along some axis: expected (i0, j0, k0, i1, j1, k1) with i0 < i1")

    def __len__(self) -> int:
        return len(self.boxes)

    def ranked(self) -> Boxes:
        """In the order of their ids: by falling score, then by falling size, then as they came."""
        half = self.boxes.shape[1] // 2
        size = np.prod(self.boxes[:, half:] - self.boxes[:, :half], axis=1)
        return self.chosen(np.lexsort((-size,) if self.scores is None else (-size, -self.scores)))

    def chosen(self, which: Array) -> Boxes:
        """The boxes that ``which`` (indices, or a bool each) picks."""
        scores, spread = (None if values is None else values[which] for values in (self.scores, self.spread))
        return Boxes(self.boxes[which], self.labels[which], scores, spread)


@dataclass(frozen=True)
class LesionRule:
    """How a mask becomes lesions, where a data set has no boxes of its own.

    Args:
        instances: every value of the mask is one lesion; else a lesion is a component of one label.
        smallest_mm3: smaller ones are no lesions (a picture: mm², or px where spacing is unknown).
    """

    instances: bool = False
    smallest_mm3: float = 0.0

    def __post_init__(self) -> None:
        if not self.smallest_mm3 >= 0:
            raise MedsegError(f"smallest_mm3: expected 0 or more, found {self.smallest_mm3}")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one case, on the scan's own grid. Only what the task yields is there.

    Args:
        case: the case's id.
        geometry: the scan's own grid.
        mask: ``geometry.shape`` integer labels.
        boxes: all that may be a lesion, by falling score; `findings` are those that the model stands by.
        thresholds: label or class → score from which it counts (the working point); a box without one counts from 0.
        classes: class name → probability.
        class_set: the classes that cannot be excluded at the model's stated error rate (conformal set).
        probabilities: a file of the model's probabilities, where they were asked for.
    """

    case: str
    geometry: Geometry
    labels: LabelTable
    mask: Array | None = None
    boxes: Boxes | None = None
    thresholds: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    classes: Mapping[str, float] = field(default_factory=lambda: _EMPTY)
    class_set: tuple[str, ...] | None = None
    probabilities: Path | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and (self.mask.shape != self.geometry.shape or self.mask.dtype.kind not in "iu"):
            raise MedsegError(f"mask {self.mask.shape} {self.mask.dtype} does not fit the grid {self.geometry.shape}")

    @property
    def findings(self) -> Boxes | None:
        """The boxes at or above the working point, by falling score; None where the task finds none."""
        if self.boxes is None or self.boxes.scores is None:
            return self.boxes
        least = np.array([self.thresholds.get(self.labels.names[int(value)], 0.0) for value in self.boxes.labels])
        return self.boxes.chosen(self.boxes.scores >= least)

    def sizes(self) -> dict[str, float]:
        """Volume in ml of each label or region (area in mm² of a picture, px where its spacing is unknown)."""
        if self.mask is None:
            return {}
        highest = max(self.labels.names)
        counts = np.zeros(highest + 1, np.int64)
        for plane in self.mask:  # one at a time, as counting makes eight bytes of each voxel
            counts += np.bincount(plane.ravel(), minlength=highest + 1)[: highest + 1]
        unit = self.geometry.voxel_volume / (1000.0 if self.geometry.dimensions == 3 else 1.0)
        return {name: float(sum(int(counts[v]) for v in values)) * unit for name, values in self.labels.targets.items()}


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How much each voxel of the scan's own grid speaks for ``target``: raw values, ``geometry.shape`` float32."""

    case: str
    target: str
    method: str
    values: Array
    geometry: Geometry


def marked(mask: Array, values: Sequence[int]) -> Array:
    """Where ``mask`` has one of ``values``, boolean; `numpy.isin` takes eight bytes a voxel for it."""
    found = np.zeros(mask.shape, bool)
    for value in values:
        found |= mask == value
    return found


def as_source(kind: SourceKind, *files: Path, **known: Any) -> Source:
    """A source of one or more files, in the order given."""
    return Source(kind, tuple(files), **known)


def unique_values(table: LabelTable, values: Sequence[int]) -> list[int]:
    """Those of ``values`` that the table does not know (neither background, label nor ignore)."""
    known = {0, *table.names} | ({table.ignore} if table.ignore is not None else set())
    return sorted(set(values) - known)
