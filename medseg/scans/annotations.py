"""Which series a DICOM SEG or RTSTRUCT belongs to, by its references. Segments and contours are read elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg.scans.reading import ScanError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ANNOTATIONS: dict[str, Literal["seg", "rtstruct"]] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # labelmap
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
    "SEG": "seg",
    "RTSTRUCT": "rtstruct",
}
"""SOP class or modality → what it is."""


@dataclass(frozen=True)
class Annotation:
    """A DICOM object of labels, and what it refers to.

    Args:
        series, instances: SeriesInstanceUIDs and SOPInstanceUIDs of the images it lies on; both may be empty.
        frame_of_reference: the FrameOfReferenceUID of its coordinates.
    """

    kind: Literal["seg", "rtstruct"]
    path: Path
    series: tuple[str, ...]
    frame_of_reference: str
    instances: frozenset[str]


def annotation_of(dataset: Dataset, path: Path) -> Annotation:
    """What a SEG or RTSTRUCT refers to. Raises ScanError ``"no_scan"`` where the dataset is neither."""
    modality = str(dataset.get("Modality", "") or "")
    kind = ANNOTATIONS.get(str(dataset.get("SOPClassUID", ""))) or ANNOTATIONS.get(modality)
    if kind is None:
        raise ScanError(f"{path.name}: expected a DICOM SEG or RTSTRUCT, found modality {modality[:16]!r}", "no_scan")
    found = _of_segmentation(dataset) if kind == "seg" else _of_structures(dataset)
    pairs = list(found)
    series = dict.fromkeys(uid for uid, _ in pairs if uid)
    return Annotation(kind, path, tuple(series), _frame(dataset), frozenset(uid for _, uid in pairs if uid))


def _of_segmentation(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """(series, instance) of each image that is named; a frame names its images without their series."""
    others = _items(dataset, "StudiesContainingOtherReferencedInstancesSequence")
    listed = [item for holder in (dataset, *others) for item in _items(holder, "ReferencedSeriesSequence")]
    for item in listed:
        series = _uid(item, "SeriesInstanceUID")
        yield series, ""
        for instance in _items(item, "ReferencedInstanceSequence"):
            yield series, _uid(instance, "ReferencedSOPInstanceUID")
    if listed:
        return
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    for frame in (item for keyword in groups for item in _items(dataset, keyword)):
        for derivation in _items(frame, "DerivationImageSequence"):
            for instance in _items(derivation, "SourceImageSequence"):
                yield "", _uid(instance, "ReferencedSOPInstanceUID")


def _of_structures(dataset: Dataset) -> Iterator[tuple[str, str]]:
    listed = [
        series
        for frame in _items(dataset, "ReferencedFrameOfReferenceSequence")
        for study in _items(frame, "RTReferencedStudySequence")
        for series in _items(study, "RTReferencedSeriesSequence")
    ]
    for item in listed:
        series = _uid(item, "SeriesInstanceUID")
        yield series, ""
        for instance in _items(item, "ContourImageSequence"):
            yield series, _uid(instance, "ReferencedSOPInstanceUID")
    if listed:
        return
    for region in _items(dataset, "ROIContourSequence"):
        for contour in _items(region, "ContourSequence"):
            for instance in _items(contour, "ContourImageSequence"):
                yield "", _uid(instance, "ReferencedSOPInstanceUID")


def _frame(dataset: Dataset) -> str:
    holders = (*_items(dataset, "ReferencedFrameOfReferenceSequence"), dataset)
    found = [_uid(holder, "FrameOfReferenceUID") for holder in holders]
    found += [_uid(region, "ReferencedFrameOfReferenceUID") for region in _items(dataset, "StructureSetROISequence")]
    return next(filter(None, found), "")


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or no sequence."""
    from pydicom.sequence import Sequence

    value = dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def _uid(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return str(value).strip(" \0") if isinstance(value, str) else ""
