"""The planes of multi-frame DICOM objects: where each frame lies and what tells it from the others. Reads no pixels.

Enhanced objects say it in functional groups, shared by all frames or each frame's own (PS3.3 C.7.6.16); nuclear medicine says
it in vectors that FrameIncrementPointer names (C.8.4.8). Frames of all others are pictures of a cine, or unplaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medseg.scans.headers import Slice, normal
from medseg.scans.reading import COMPRESSION_LIMIT, ScanError

_FRAME_MARKS = {
    "StackID": ("FrameContentSequence", "StackID"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "AcquisitionTime": ("FrameContentSequence", "FrameAcquisitionDateTime"),
    "FrameReferenceTime": ("FrameContentSequence", "FrameReferenceDateTime"),
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"),
    "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "InversionTime": ("MRModifierSequence", "InversionTimes"),
    "TriggerTime": ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    "NominalPercentageOfCardiacPhase": ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence", "ComplexImageComponent"),
}
"""Keyword of a single-frame object → macro and attribute that say the same of a frame."""

_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
_PLACES = (0x00200032, 0x00209057, 0x00209301)  # ImagePositionPatient, InStackPositionNumber, ImagePositionVolume
_VECTORS = ("EnergyWindow", "Detector", "Phase", "Rotation", "RRInterval", "TimeSlot", "AngularView", "TimeSlice")
_TIMES = (0x00181063, 0x00181065)  # FrameTime, FrameTimeVector
_VIDEO = "1.2.840.10008.1.2.4.10"  # MPEG-2, MPEG-4 and HEVC are ….100 to ….108


class FunctionalGroups:
    """The macros of the frames of an enhanced object: a frame's own, else the one that all frames share."""

    def __init__(self, dataset: Dataset) -> None:
        self._shared = first_item(dataset, "SharedFunctionalGroupsSequence")
        frames = dataset.get("PerFrameFunctionalGroupsSequence")
        self._frames = frames if isinstance(frames, Sequence) else Sequence()

    def __len__(self) -> int:
        return len(self._frames)

    def item(self, frame: int, macro: str) -> Dataset | None:
        """The macro of a frame (from 0), such as ``"PixelMeasuresSequence"``; None where it has none."""
        own = first_item(self._frames[frame], macro) if frame < len(self._frames) else None
        return own if own is not None or self._shared is None else first_item(self._shared, macro)


def slices_of_frames(dataset: Dataset, path: Path, base: Slice) -> tuple[Slice, ...]:
    """One `Slice` a frame, in the order of the file; ``base`` holds what the header says of all of them.

    Raises:
        ScanError: ``"truncated"`` where more frames are claimed than the file can hold, ``"unsupported"`` for video,
            ``"no_position"`` and ``"no_spacing"`` where a nuclear medicine volume does not say where its slices lie.
    """
    count = _frame_count(dataset, path, base)
    groups = FunctionalGroups(dataset)
    if len(groups):
        if len(groups) < count:
            raise ScanError(
                f"{path.name}: a multi-frame object of {count} frames describes {len(groups)} of them; export it again"
            )
        slices = _enhanced(dataset, groups, base, count)
    elif base.modality == "NM":
        slices = _nuclear(dataset, base, count)
    else:
        slices = _cine(dataset, base, count)
    return tuple(replace(entry, frame=n) for n, entry in enumerate(slices)) if count > 1 else tuple(slices)


def first_item(dataset: Dataset, keyword: str) -> Dataset | None:
    """The first item of a sequence, None where it is absent or empty."""
    items = dataset.get(keyword)
    return items[0] if isinstance(items, Sequence) and len(items) else None


def floats(dataset: Dataset | None, keyword: str, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers of an attribute; None where it is absent, shorter, longer or no numbers."""
    try:
        numbers = tuple(map(float, _values(dataset, keyword)))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _values(dataset: Dataset | None, keyword: str) -> list[Any]:
    """The values of an attribute, however many there are."""
    value = None if dataset is None else dataset.get(keyword)
    return list(value) if isinstance(value, (MultiValue, list, tuple)) else [] if value in (None, "") else [value]


def _frame_count(dataset: Dataset, path: Path, base: Slice) -> int:
    """NumberOfFrames, refused before anything is made for each of them if the file cannot hold that many."""
    syntax = UID(str(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID", "")))
    if syntax.startswith(_VIDEO) and len(syntax) > len(_VIDEO):
        name = syntax.name if syntax.is_transfer_syntax else syntax
        raise ScanError(f"{path.name}: a video ({name}), which is not read; export its frames as images", "unsupported")
    count = max(int(dataset.get("NumberOfFrames") or 1), 1)
    stored = path.stat().st_size * (COMPRESSION_LIMIT if syntax == DeflatedExplicitVRLittleEndian else 1)
    rows, columns, samples = base.matrix
    compressed = syntax.is_transfer_syntax and syntax.is_encapsulated
    # A compressed frame takes a fragment at least, whose tag and length are 8 bytes.
    least = 64 if compressed else rows * columns * samples * int(dataset.get("BitsAllocated") or 8)
    if count > 1 and count * least // 8 > stored:
        raise ScanError(
            f"{path.name}: claims {count:,} frames of {columns}×{rows}, which a file of {stored:,} bytes cannot hold; it is "
            "damaged or cut short: copy it again",
            "truncated",
        )
    return count


def _enhanced(dataset: Dataset, groups: FunctionalGroups, base: Slice, count: int) -> Iterator[Slice]:
    axes = _axes_that_split(dataset)
    for n in range(count):
        measures = groups.item(n, "PixelMeasuresSequence")
        spacing = floats(measures, "PixelSpacing", 2)
        between = floats(measures, "SpacingBetweenSlices", 1) or floats(measures, "SliceThickness", 1) or (0.0,)
        yield replace(
            base,
            orientation=floats(groups.item(n, "PlaneOrientationSequence"), "ImageOrientationPatient", 6),
            position=floats(groups.item(n, "PlanePositionSequence"), "ImagePositionPatient", 3),
            pixel_spacing=(spacing[0], spacing[1]) if spacing and all(spacing) else base.pixel_spacing,
            thickness=abs(between[0]) or base.thickness,
            marks={**base.marks, **dict(_marks(groups, n, axes))},
        )


def _axes_that_split(dataset: Dataset) -> list[int]:
    """Which of DimensionIndexValues tell frames at one place apart: all that do not point to a place."""
    dimensions = dataset.get("DimensionIndexSequence") or ()
    return [axis for axis, item in enumerate(dimensions) if item.get("DimensionIndexPointer") not in _PLACES]


def _marks(groups: FunctionalGroups, frame: int, axes: list[int]) -> Iterator[tuple[str, str]]:
    for mark, (macro, keyword) in _FRAME_MARKS.items():
        item = groups.item(frame, macro)
        if item is not None and item.get(keyword) not in (None, ""):
            yield mark, str(item.get(keyword))
    for macro in _FRAME_TYPES:
        item = groups.item(frame, macro)
        if item is not None and item.get("FrameType"):
            yield "ImageType", str(item.FrameType)
    index = _values(groups.item(frame, "FrameContentSequence"), "DimensionIndexValues")
    if axes and len(index) > max(axes):
        yield "DimensionIndexValues", ".".join(str(index[axis]) for axis in axes)


def _nuclear(dataset: Dataset, base: Slice, count: int) -> Iterator[Slice]:
    """Reconstructed slices lie one behind the other from the first one on; projections and planar images are pictures.

    PS3.3 C.8.4.15: SpacingBetweenSlices is signed, positive along row × column; SliceVector counts slices from 1.
    """
    marks = {name: _vector(dataset, f"{name}Vector", count) for name in _VECTORS}
    slices = _vector(dataset, "SliceVector", count)
    image_type = dataset.get("ImageType") or ()
    is_volume = any("RECON" in str(word).upper() for word in image_type) or slices is not None
    for n in range(count):
        told = {name: str(values[n]) for name, values in marks.items() if values is not None}
        entry = replace(base, marks={**base.marks, **told})
        if is_volume:
            detectors = dataset.get("DetectorInformationSequence") or ()
            which = (marks["Detector"] or [1] * count)[n] - 1
            detector = detectors[which] if 0 <= which < len(detectors) else dataset
            yield _stacked(dataset, detector, entry, (slices[n] - 1) if slices else n)
        else:
            yield replace(entry, position=None, orientation=None)


def _stacked(dataset: Dataset, detector: Dataset, entry: Slice, number: int) -> Slice:
    orientation = floats(detector, "ImageOrientationPatient", 6) or entry.orientation
    origin = floats(detector, "ImagePositionPatient", 3) or entry.position
    step = floats(dataset, "SpacingBetweenSlices", 1) or floats(dataset, "SliceThickness", 1)
    if orientation is None or origin is None:
        what = "ImageOrientationPatient" if orientation is None else "ImagePositionPatient"
        raise ScanError(
            f"{entry.path.name}: a reconstructed NM volume without {what} in its detector information, so nobody can say "
            "where it lies in the patient; export it again",
            "no_position",
        )
    if step is None or not step[0]:
        raise ScanError(
            f"{entry.path.name}: a reconstructed NM volume without SpacingBetweenSlices; export it again", "no_spacing"
        )
    position = np.add(origin, np.multiply(normal(orientation), number * step[0]))
    return replace(entry, orientation=orientation, position=tuple(float(v) for v in position), thickness=abs(step[0]))


def _vector(dataset: Dataset, keyword: str, count: int) -> list[int] | None:
    """A number for each frame; None where the vector is absent or of another length."""
    values = _values(dataset, keyword)
    return [int(v) for v in values] if len(values) == count else None


def _cine(dataset: Dataset, base: Slice, count: int) -> Iterator[Slice]:
    """Frames without functional groups: pictures, or one plane over time. A place that only the first may have is dropped."""
    over_time = any(tag in _TIMES for tag in _values(dataset, "FrameIncrementPointer"))
    for n in range(count):
        if over_time or count == 1:
            marks = {**base.marks, "TemporalPositionIdentifier": str(n + 1)} if count > 1 else base.marks
            yield replace(base, marks=marks)
        else:
            yield replace(base, position=None, orientation=None)
