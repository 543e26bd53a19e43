"""A mask as a DICOM segmentation on the slices that it was made from, with what each label means in codes.

A binary object holds the frames in which a label occurs, a bit a pixel and uncompressed: that is what every viewer and every
library opens. A labelmap holds all planes with the label values themselves, RLE-compressed to a few hundredths; it is newer
(2024) and opens in fewer programs, but its size does not grow with the number of labels. Decides nothing about the mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.uid import UID, RLELossless, SegmentationStorage

from medseg.errors import MedsegError
from medseg.export.anatomy import AnatomyTable
from medseg.export.codes import BACKGROUND
from medseg.export.completion import line
from medseg.export.dicom_source import Algorithm, DicomSource, derived_object
from medseg.export.multiframe import LARGEST, describe_frames, frame_groups, slabs, write_frames
from medseg.export.overlay import COLOURS
from medseg.export.uids import identify
from medseg.scans.labels import present
from medseg.structures import LabelTable, Prediction
from medseg.volume import Array

SegmentationKind = Literal["binary", "labelmap"]
LABELMAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
MOST_SEGMENTS = 65535


@dataclass(frozen=True)
class Segment:
    """One segment: its number, the name of its label or region, and the mask values that belong to it."""

    number: int
    name: str
    values: tuple[int, ...]


def segments_of(labels: LabelTable, kind: SegmentationKind) -> list[Segment]:
    """The segments that a mask with these labels has.

    A binary object has one a label, or a region where the model predicts regions (they may overlap), numbered from 1. In a
    labelmap the number is the mask value, so that regions cannot be told: it has one a label.
    """
    if kind == "labelmap":
        return [Segment(value, name, (value,)) for value, name in labels.names.items()]
    return [Segment(number, name, values) for number, (name, values) in enumerate(labels.targets.items(), 1)]


def write_segmentation(
    prediction: Prediction,
    source: DicomSource,
    path: Path,
    *,
    kind: SegmentationKind = "binary",
    anatomy: AnatomyTable,
    algorithm: Algorithm,
) -> Dataset:
    """Write the mask of a prediction as a DICOM SEG.

    A label that does not occur is described and has no frame, so that a reader sees that it was looked for; where none
    occurs, the first has empty frames.

    Args:
        prediction: on the grid of ``source``.
        kind: ``binary`` (Segmentation Storage) or ``labelmap`` (Label Map Segmentation Storage).

    Returns:
        The object as it was written, without its frames and pixels.

    Raises:
        MedsegError: there is no mask, it lies on another grid, or it does not fit into the object.
    """
    if prediction.mask is None:
        raise MedsegError(f"case {prediction.case!r}: the prediction holds no mask for a DICOM SEG")
    planes = source.mask_planes(prediction.mask)
    segments = segments_of(prediction.labels, kind)
    most = max(prediction.labels.names)
    if max(most, len(segments)) > MOST_SEGMENTS:
        raise MedsegError(f"case {prediction.case!r}: a DICOM SEG has segments up to {MOST_SEGMENTS}, found {most}")
    dataset = derived_object(
        source,
        LABELMAP_STORAGE if kind == "labelmap" else SegmentationStorage,
        modality="SEG",
        number=1,
        description=f"{algorithm.name} segmentation",
        algorithm=algorithm,
    )
    describe_frames(dataset, source, planes.shape[1:], segmented=kind == "binary")
    _describe_image(dataset, segments, anatomy, algorithm)
    found, digest = _scanned(planes)
    if kind == "labelmap":
        width = np.dtype(np.uint8 if most < 256 else np.uint16)
        _describe_labelmap(dataset, width)
        dataset.NumberOfFrames = len(planes)
        identify(dataset, digest)
        groups = frame_groups(source, [(plane, None) for plane in range(len(planes))])
        write_frames(dataset, path, groups, _compressed(planes, found, segments, width), length=None)
        return dataset
    pairs = _frames(segments, found)
    length = -(-len(pairs) * planes[0].size // 8)
    if length > LARGEST:
        raise MedsegError(
            f"case {prediction.case!r}: {len(pairs):,} frames of segments are {length:,} bytes, and a DICOM object holds "
            f"{LARGEST:,}; write them as a labelmap: export.seg=labelmap"
        )
    dataset.NumberOfFrames = len(pairs)
    identify(dataset, digest)
    groups = frame_groups(source, [(plane, segment.number) for plane, segment in pairs])
    write_frames(dataset, path, groups, _packed(_cut(planes, pairs)), length=length)
    return dataset


def _describe_image(dataset: Dataset, segments: Sequence[Segment], anatomy: AnatomyTable, algorithm: Algorithm) -> None:
    """What the object is and what its segments mean; the pixels are those of a binary object."""
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel, dataset.ContentCreatorName = "SEGMENTATION", ""
    dataset.ContentDescription = line(", ".join(segment.name for segment in segments))
    dataset.SegmentationType = "BINARY"
    values = [value for segment in segments for value in segment.values]
    dataset.SegmentsOverlap = "YES" if len(set(values)) < len(values) else "NO"
    dataset.SegmentSequence = [
        _description(segment, anatomy, COLOURS[index % len(COLOURS)], algorithm)
        for index, segment in enumerate(segments)
    ]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 1, 1, 0, 0


def _describe_labelmap(dataset: Dataset, width: np.dtype) -> None:
    """Turn the description of a binary object into that of a labelmap, whose background is a segment too."""
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.SegmentationType = "LABELMAP"
    bits = 8 * width.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelPaddingValue = 0
    background = Dataset()
    background.SegmentNumber, background.SegmentLabel = 0, "Background"
    background.SegmentAlgorithmType = "AUTOMATIC"
    background.SegmentAlgorithmName = dataset.SegmentSequence[0].SegmentAlgorithmName
    background.SegmentedPropertyCategoryCodeSequence = BACKGROUND.sequence()
    background.SegmentedPropertyTypeCodeSequence = BACKGROUND.sequence()
    dataset.SegmentSequence.insert(0, background)


def _description(
    segment: Segment, anatomy: AnatomyTable, colour: tuple[int, int, int], algorithm: Algorithm
) -> Dataset:
    """The item of the segment sequence (PS3.3 C.8.20.4)."""
    meant = anatomy.code(segment.name)
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = segment.number, line(segment.name)
    item.SegmentAlgorithmType, item.SegmentAlgorithmName = "AUTOMATIC", line(algorithm.name)
    item.SegmentationAlgorithmIdentificationSequence = [algorithm.item()]
    item.SegmentedPropertyCategoryCodeSequence = meant.category.sequence()
    item.SegmentedPropertyTypeCodeSequence = meant.type.sequence(
        SegmentedPropertyTypeModifierCodeSequence=meant.modifier
    )
    if meant.region is not None:
        item.AnatomicRegionSequence = meant.region.sequence(AnatomicRegionModifierSequence=meant.region_modifier)
    item.RecommendedDisplayCIELabValue = cielab(colour)
    return item


def cielab(colour: tuple[int, int, int]) -> list[int]:
    """An sRGB colour (0–255) as DICOM's 16-bit CIELab (PS3.3 C.10.7.1.1), white point D50.

    Matrix: sRGB to XYZ, adapted to D50 by Bradford (ICC specification, annex E).
    """
    value = np.asarray(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
    x, y, z = (
        f ** (1 / 3) if f > (6 / 29) ** 3 else f / (3 * (6 / 29) ** 2) + 4 / 29
        for f in to_xyz @ linear / (0.9642, 1.0, 0.8249)
    )
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    return [round(65535 * share) for share in (lightness / 100, (a + 128) / 255, (b + 128) / 255)]


def _scanned(planes: Array) -> tuple[list[set[int]], bytes]:
    """Which values occur in each plane, and a hash of all of them that does not depend on the type they are held in."""
    digest = hashlib.sha256(str(planes.shape).encode())
    found: list[set[int]] = []
    for slab in slabs(planes):
        for plane in slab:
            found.append(set(present(plane)))
            digest.update(plane.astype(np.uint8 if max(found[-1]) < 256 else np.uint32, copy=False).data)
    return found, digest.digest()


def _frames(segments: Sequence[Segment], found: Sequence[set[int]]) -> list[tuple[int, Segment]]:
    """Plane and segment of each frame of a binary object, plane by plane, so that the mask is read from end to end once."""
    frames = [
        (plane, segment)
        for plane, values in enumerate(found)
        for segment in segments
        if not values.isdisjoint(segment.values)
    ]
    return frames or [(plane, segments[0]) for plane in range(len(found))]


def _cut(planes: Array, frames: Sequence[tuple[int, Segment]]) -> Iterator[Array]:
    """The pixels of each frame, ``(rows, columns)`` bool; frames are in the order of their planes."""
    number, whole = 0, (plane for slab in slabs(planes) for plane in slab)
    for index, plane in enumerate(whole):
        while number < len(frames) and frames[number][0] == index:
            values = frames[number][1].values
            yield plane == values[0] if len(values) == 1 else np.isin(plane, values)
            number += 1


def _packed(frames: Iterator[Array]) -> Iterator[bytes]:
    """Frames as bits, the first pixel in the lowest (PS3.5 8.1.1); a frame begins at the very next bit, inside a byte too."""
    rest = np.zeros(0, bool)
    for frame in frames:
        bits = np.concatenate([rest, frame.ravel()]) if len(rest) else frame.ravel()
        whole = len(bits) // 8 * 8
        rest = bits[whole:]
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
    yield np.packbits(rest, bitorder="little").tobytes()


def _compressed(
    planes: Array, found: Sequence[set[int]], segments: Sequence[Segment], width: np.dtype
) -> Iterator[bytes]:
    """The planes of a labelmap, RLE-compressed; what is no segment (an ignore value) is background."""
    known = {0, *(segment.number for segment in segments)}
    rows, columns = planes.shape[1:]
    values = iter(found)
    for slab in slabs(planes):
        for plane in slab:
            strange = next(values) - known
            plane = np.where(np.isin(plane, list(strange)), 0, plane) if strange else plane
            yield RLELosslessEncoder.encode(
                np.ascontiguousarray(plane, width),
                rows=rows,
                columns=columns,
                samples_per_pixel=1,
                photometric_interpretation="MONOCHROME2",
                bits_allocated=8 * width.itemsize,
                bits_stored=8 * width.itemsize,
                pixel_representation=0,
                number_of_frames=1,
                encoding_plugin="pylibjpeg",  # GDCM's ends the process where rows and columns are odd
            )
