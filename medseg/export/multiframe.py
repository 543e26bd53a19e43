"""What segmentations and parametric maps share: a frame for planes of the source, each with its place and its source slice.

Headers of many frames are encoded once a plane and put together as bytes, and pixels are written as they come, so that
neither thousands of frames nor a large volume has to be in memory. What the pixels mean is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import format_number_as_ds

from medseg.export.codes import SEGMENTATION, SOURCE_IMAGE
from medseg.export.completion import cleaned
from medseg.export.dicom_source import TO_LPS, DicomSource
from medseg.export.uids import encoded, uid
from medseg.files import whole_file
from medseg.volume import Array

LARGEST = 2**32 - 2
"""Bytes that the length of one element can say."""

_SLAB = 64  # planes: a cache line of bytes where the planes run along the last axis of the array
_FRAMES = Tag("PerFrameFunctionalGroupsSequence")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def describe_frames(dataset: Dataset, source: DicomSource, matrix: Sequence[int], *, segmented: bool) -> None:
    """Put into ``dataset`` what holds for all frames: size, place, dimensions, and every instance of the source.

    Args:
        matrix: rows and columns.
        segmented: whether frames belong to segments, which are then a dimension of their own.
    """
    dataset.ContentDate, dataset.ContentTime = source.moment
    dataset.Rows, dataset.Columns = matrix
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    if source.is_picture:
        dataset.PatientOrientation = cleaned(source.datasets[0], "PatientOrientation")[0] or ""
    dataset.ReferencedSeriesSequence = source.referenced_series()
    dataset.LossyImageCompression = "00"
    lossy = {keyword: cleaned(source.datasets[0], keyword)[0] for keyword in _LOSSY}
    if lossy["LossyImageCompression"] == "01":  # what is derived from a lossy image is lossy too
        for keyword, value in lossy.items():
            if value is not None:
                setattr(dataset, keyword, value)
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(source)]
    organisation = uid("dimensions", str(source.datasets[0].SeriesInstanceUID))
    item = Dataset()
    item.DimensionOrganizationUID = organisation
    dataset.DimensionOrganizationSequence = [item]
    place = ("InStackPositionNumber", "FrameContentSequence", "In-Stack Position Number")
    if not source.is_picture:
        place = ("ImagePositionPatient", "PlanePositionSequence", "Image Position Patient")
    segment = ("ReferencedSegmentNumber", "SegmentIdentificationSequence", "Referenced Segment Number")
    dataset.DimensionIndexSequence = [
        _dimension(organisation, *names) for names in ((place, segment) if segmented else (place,))
    ]


def frame_groups(source: DicomSource, frames: Sequence[tuple[int, int | None]]) -> Iterator[bytes]:
    """The encoded functional groups of each frame.

    Args:
        frames: for each frame the native plane and, where frames belong to segments, the segment's number.
    """
    present = sorted({plane for plane, _ in frames})
    order = {plane: number for number, plane in enumerate(present, 1)}
    references, places = source.references(), _plane_positions(source)
    before = {plane: encoded(_derivation(references[plane], source.is_tile(plane))) for plane in present}
    behind = {plane: encoded(places[plane]) for plane in present}
    segments = {number: _segment_group(number) for number in {number for _, number in frames}}
    for plane, number in frames:
        content = Dataset()
        content.DimensionIndexValues = [order[plane]] if number is None else [order[plane], number]
        if source.is_picture:
            content.StackID, content.InStackPositionNumber = "1", order[plane]
        group = Dataset()
        group.FrameContentSequence = [content]
        yield before[plane] + encoded(group) + behind[plane] + segments[number]


def write_frames(
    dataset: Dataset,
    path: Path,
    groups: Iterable[bytes],
    pixels: Iterable[bytes],
    *,
    length: int | None,
    keyword: str = "PixelData",
) -> None:
    """Write an object whole or not at all: its header, the functional groups of its frames, and its pixels as they come.

    Args:
        groups: of `frame_groups`; there are no elements of the header between these and the pixels.
        pixels: the value in parts; where ``length`` is None, one compressed frame each.
        length: of all pixels in bytes, at most `LARGEST`.
    """
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(group)) + group for group in groups)
    with whole_file(path) as aside, aside.open("w+b") as file:
        dataset.save_as(file, enforce_file_format=True)
        file.write(_opened(_FRAMES, "SQ", len(items)))
        file.write(items)
        if length is None:
            file.write(_opened(Tag(keyword), "OB", 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0))
            for frame in pixels:
                even = frame + b"\0" * (len(frame) % 2)
                file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(even)))
                file.write(even)
            file.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
            return
        file.write(_opened(Tag(keyword), "OF" if keyword == "FloatPixelData" else "OB", length + length % 2))
        for part in pixels:
            file.write(part)
        file.write(b"\0" * (length % 2))


def slabs(planes: Array) -> Iterator[Array]:
    """``(K, rows, columns)`` in contiguous copies of some planes at a time."""
    for start in range(0, len(planes), _SLAB):
        yield np.ascontiguousarray(planes[start : start + _SLAB])


def decimal(value: float) -> str:
    """A number as the at most 16 characters of a decimal string; noise beyond the tenth decimal is none of the scan's."""
    return format_number_as_ds(round(float(value), 10) + 0.0)


def _shared_groups(source: DicomSource) -> Dataset:
    """Spacing and orientation of all frames; for a picture, which has no place in the patient, its pixels stand for that."""
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    if source.is_picture:
        return shared
    planes = source.grid.planes
    across, down, through = np.linalg.norm(planes[0, :3, :3], axis=0)
    measures.PixelSpacing = [decimal(down), decimal(across)]
    depth = (planes[:, :3, 3] - planes[0, :3, 3]) @ (planes[0, :3, 2] / through)
    gaps = np.diff(depth)
    if len(gaps) and np.ptp(gaps) < 0.01 * gaps.mean():
        measures.SpacingBetweenSlices = decimal(gaps.mean())
    thickness = float(cleaned(source.datasets[0], "SliceThickness")[0] or 0)
    measures.SliceThickness = decimal(thickness if thickness > 0 else through)
    shared.PixelMeasuresSequence = [measures]
    directions = planes[0, :3, :2] / (across, down)
    orientation.ImageOrientationPatient = [decimal(v) for axis in (0, 1) for v in directions[:, axis] * TO_LPS]
    shared.PlaneOrientationSequence = [orientation]
    return shared


def _plane_positions(source: DicomSource) -> Sequence[Dataset]:
    """The functional group of each native plane's position; an empty one for pictures."""
    if source.is_picture:
        return [Dataset()] * len(source.frames)
    groups = []
    for affine in source.grid.planes:
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [decimal(v) for v in affine[:3, 3] * TO_LPS]
        group.PlanePositionSequence = [place]
        groups.append(group)
    return groups


def _derivation(reference: Dataset, is_tile: bool) -> Dataset:
    """The functional group that refers to the slice on which a plane lies, pixel on pixel unless that is a mosaic of tiles."""
    reference.SpatialLocationsPreserved = "NO" if is_tile else "YES"
    reference.PurposeOfReferenceCodeSequence = SOURCE_IMAGE.sequence()
    derivation, group = Dataset(), Dataset()
    derivation.SourceImageSequence = [reference]
    derivation.DerivationCodeSequence = SEGMENTATION.sequence()
    group.DerivationImageSequence = [derivation]
    return group


def _segment_group(number: int | None) -> bytes:
    if number is None:
        return b""
    segment, group = Dataset(), Dataset()
    segment.ReferencedSegmentNumber = number
    group.SegmentIdentificationSequence = [segment]
    return encoded(group)


def _dimension(organisation: str, pointer: str, group: str, label: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = organisation
    item.DimensionIndexPointer, item.FunctionalGroupPointer = Tag(pointer), Tag(group)
    item.DimensionDescriptionLabel = label
    return item


def _opened(tag: BaseTag, vr: str, length: int) -> bytes:
    """Tag, type and length of an element in explicit VR, little endian."""
    return struct.pack("<HH2sHI", tag.group, tag.element, vr.encode(), 0, length)
