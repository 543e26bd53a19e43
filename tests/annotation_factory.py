"""Synthetic DICOM SEG and RTSTRUCT, written with plain pydicom from masks and contours: the truth that a reader must find."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

Array = np.ndarray[Any, Any]
TO_LPS = np.array([-1.0, -1.0, 1.0])
SEG = {
    "binary": "1.2.840.10008.5.1.4.1.1.66.4",
    "fractional": "1.2.840.10008.5.1.4.1.1.66.4",
    "labelmap": "1.2.840.10008.5.1.4.1.1.66.7",
}
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


def write_seg(
    path: Path,
    segments: Mapping[str, Array],
    affine: Array,
    *,
    images: Sequence[Path] = (),
    kind: Literal["binary", "fractional", "labelmap"] = "binary",
    origins: Array | None = None,
    empty_frames: bool = False,
    numbers: Sequence[int] = (),
    step: bool = True,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write masks ``(I, J, K)`` (fractions for a fractional one) by name; frames are shuffled, those without a label left out.

    Args:
        affine: RAS+ mm; i = column, j = row, as in DICOM.
        images: the files of the series that is referred to; its frame of reference is taken.
        origins: ``(K, 3)`` RAS mm of the first pixel of each plane, where they do not stand straight above each other.
        empty_frames: whether planes without a label get a frame too.
        numbers: of the segments; 1, 2 … by default.
        step: whether the file says SpacingBetweenSlices.
    """
    first = next(iter(segments.values()))
    count = first.shape[2]
    numbers = list(numbers) or list(range(1, len(segments) + 1))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    places = affine[:3, 3] + np.arange(count)[:, None] * affine[:3, 2] if origins is None else origins
    ds = _object(SEG[kind], "SEG", images)
    ds.SegmentationType = kind.upper()
    ds.SegmentSequence = [_segment(n, name) for n, name in zip(numbers, segments, strict=True)]
    if images:
        ds.ReferencedSeriesSequence = [_series(images, "ReferencedInstanceSequence")]
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    if step:
        measures.SpacingBetweenSlices = spacing[2]
    turn = Dataset()
    turn.ImageOrientationPatient = [*(affine[:3, 0] / spacing[0] * TO_LPS), *(affine[:3, 1] / spacing[1] * TO_LPS)]
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    ds.SharedFunctionalGroupsSequence = [shared]
    if kind == "labelmap":
        held = np.zeros(first.shape, np.uint8)
        for number, mask in zip(numbers, segments.values(), strict=True):
            held[mask > 0] = number
        planes = [(0, k, held[..., k]) for k in range(count)]
    else:
        scale = 255 if kind == "fractional" else 1
        planes = [
            (number, k, np.round(np.asarray(mask[..., k], float) * scale).astype(np.uint8))
            for number, mask in zip(numbers, segments.values(), strict=True)
            for k in range(count)
        ]
    planes = [plane for plane in planes if empty_frames or plane[2].any()]
    np.random.default_rng(3).shuffle(planes)  # type: ignore[arg-type]
    frames = []
    for number, k, _ in planes:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [float(f"{v:.6f}") for v in places[k] * TO_LPS]
        frame.PlanePositionSequence = [place]
        if number:
            identification = Dataset()
            identification.ReferencedSegmentNumber = number
            frame.SegmentIdentificationSequence = [identification]
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = frames
    ds.NumberOfFrames, (ds.Columns, ds.Rows) = len(frames), first.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated = ds.BitsStored = 1 if kind == "binary" else 8
    ds.HighBit = ds.BitsStored - 1
    if kind == "fractional":
        ds.MaximumFractionalValue, ds.SegmentationFractionalType = 255, "PROBABILITY"
    pixels = np.stack([pixels.T for _, _, pixels in planes])
    stored = pack_bits(pixels) if kind == "binary" else pixels.tobytes()
    ds.PixelData = stored + b"\0" * (len(stored) % 2)
    return _save(ds, path, change)


def write_rtstruct(
    path: Path,
    regions: Mapping[str, Sequence[Any]],
    *,
    images: Sequence[Path] = (),
    refer: bool = True,
    change: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write contours by region name: ``(N, 3)`` RAS+ mm points, or pairs of a ContourGeometricType and points.

    Args:
        images: the files of the series whose frame of reference is taken; it is referred to unless ``refer=False``.
    """
    ds = _object(RTSTRUCT, "RTSTRUCT", images)
    frame = Dataset()
    frame.FrameOfReferenceUID = ds.FrameOfReferenceUID
    if images and refer:
        study = Dataset()
        study.RTReferencedSeriesSequence = [_series(images, "ContourImageSequence")]
        frame.RTReferencedStudySequence = [study]
    ds.ReferencedFrameOfReferenceSequence = [frame]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), 1):
        described, drawn = Dataset(), Dataset()
        described.ROINumber, described.ROIName = number, name
        described.ReferencedFrameOfReferenceUID = ds.FrameOfReferenceUID
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = []
        for contour in contours:
            kind, points = contour if isinstance(contour, tuple) else ("CLOSED_PLANAR", contour)
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            item.ContourData = [f"{v:.4f}" for v in (np.asarray(points) * TO_LPS).ravel()]
            drawn.ContourSequence.append(item)
        ds.StructureSetROISequence.append(described)
        ds.ROIContourSequence.append(drawn)
    return _save(ds, path, change)


def _object(storage: str, modality: str, images: Sequence[Path]) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality = storage, modality
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientName, ds.PatientID = "Secret^Name", "SECRET-ID"
    ds.FrameOfReferenceUID = _head(images[0]).get("FrameOfReferenceUID", "1.2.3") if images else "1.2.3"
    return ds


def _segment(number: int, name: str) -> Dataset:
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel, item.SegmentAlgorithmType = number, name, "MANUAL"
    return item


def _series(images: Sequence[Path], keyword: str) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = _head(images[0]).SeriesInstanceUID
    instances = []
    for path in images:
        head, instance = _head(path), Dataset()
        instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = head.SOPClassUID, head.SOPInstanceUID
        instances.append(instance)
    setattr(item, keyword, instances)
    return item


def _head(path: Path) -> Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)


def _save(ds: Dataset, path: Path, change: Callable[[Dataset], None] | None) -> Path:
    ds.SOPInstanceUID = generate_uid()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    if change is not None:
        change(ds)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path
