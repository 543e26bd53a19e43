"""A Volume as a DICOM series: classic single-frame objects that any reader understands. The inverse of `medseg.scans.dicom`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from medseg.errors import MedsegError
from medseg.volume import Array, Volume

CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}
STEPS = 65535
TO_LPS = np.array([-1.0, -1.0, 1.0])
REQUIRED: Mapping[str, Mapping[str, Any]] = {
    "CT": {"PatientPosition": "", "KVP": "", "AcquisitionNumber": ""},
    "MR": {
        "PatientPosition": "",
        "ScanningSequence": "GR",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "EchoTime": "",
        "RepetitionTime": "",
        "EchoTrainLength": "",
    },
    "PT": {
        "SeriesDate": "20000101",
        "SeriesTime": "000000",
        "AcquisitionDate": "",
        "AcquisitionTime": "",
        "ActualFrameDuration": "",
        "FrameReferenceTime": "0",
        "Units": "NONE",
        "CountsSource": "EMISSION",
        "SeriesType": ["STATIC", "IMAGE"],
        "CorrectedImage": "",
        "DecayCorrection": "NONE",
        "CollimatorType": "",
        "RadiopharmaceuticalInformationSequence": [],
        "PatientOrientationCodeSequence": [],
        "PatientGantryRelationshipCodeSequence": [],
    },
}
"""What the standard wants in a file of a modality, beside what all have; empty where it may be."""


def write_series(volume: Volume, folder: Path, *, seed: str, description: str = "") -> list[Path]:
    """Write one file a slice (along ``k``) into ``folder``.

    Whole numbers are kept exactly where 16 bits hold their range, other values to 1/65,535 of it.

    Args:
        volume: one channel in 3D, modality CT, MR or PT. An axis system that is left-handed is written with its slices in
            descending position, which DICOM cannot tell apart: the voxels lie where they lay.
        seed: instance UIDs and the anonymous patient's id are derived from it, so that the same call writes the same objects.

    Raises:
        MedsegError: more than one channel, a picture, a modality without a class here, or values that are not finite.
    """
    if volume.data.shape[0] != 1 or volume.geometry.dimensions != 3 or volume.modality not in CLASSES:
        found = f"{volume.data.shape[0]} channels, {volume.geometry.dimensions}D, modality {volume.modality!r}"
        raise MedsegError(f"write_series: expected one channel in 3D of {', '.join(CLASSES)}; found {found}")
    stored, slope, intercept = _stored(volume.data[0], from_zero=volume.modality == "PT")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for k in range(stored.shape[2]):
        dataset = _slice(volume, k, seed, description)
        if volume.modality != "MR" or (slope, intercept) != (1, 0):  # MR has no place for them where nothing is scaled
            dataset.RescaleSlope, dataset.RescaleIntercept = _text(slope), _text(intercept)
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        path = folder / f"IM{k + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def _stored(values: Array, *, from_zero: bool) -> tuple[Array, float, float]:
    """``(I, J, K)`` values → uint16 of the same shape, slope and intercept as the header will hold them.

    ``from_zero`` asks for an intercept of 0 wherever no value is negative, as PET must have it.
    """
    if not np.isfinite(values).all():
        raise MedsegError(
            "write_series: the volume holds NaN or infinite values, which DICOM pixels cannot; replace them first"
        )
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if low >= 0 and (from_zero or (whole and high <= STEPS)):
        low = 0.0
    slope = 1.0 if (whole and high - low <= STEPS) or high == low else (high - low) / STEPS
    slope, low = float(_text(slope)), float(_text(low))
    return np.clip(np.rint((values - low) / slope), 0, STEPS).astype(np.uint16), slope, low


def _slice(volume: Volume, k: int, seed: str, description: str) -> Dataset:
    geometry = volume.geometry
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CLASSES[volume.modality]
    meta.MediaStorageSOPInstanceUID = _uid(seed, f"instance {k}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = (
        "Phantom^Anonymous",
        f"PHANTOM-{hashlib.sha256(seed.encode()).hexdigest()[:8]}",
    )
    dataset.PatientBirthDate = dataset.PatientSex = dataset.Laterality = ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(seed, "study"), _uid(seed, "series")
    dataset.FrameOfReferenceUID = _uid(seed, "frame")
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, k + 1
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.PositionReferenceIndicator = dataset.Manufacturer = ""
    dataset.Modality, dataset.SeriesDescription = volume.modality, description
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if volume.modality == "CT" else "OTHER"]
    columns, rows = geometry.shape[:2]
    spacing = geometry.spacing
    direction = geometry.affine[:3, :3] / spacing
    dataset.Columns, dataset.Rows = columns, rows
    dataset.PixelSpacing = [_text(spacing[1]), _text(spacing[0])]  # between rows, then between columns
    dataset.SliceThickness = _text(spacing[2])
    dataset.ImageOrientationPatient = [_text(v) for axis in (0, 1) for v in direction[:, axis] * TO_LPS]
    dataset.ImagePositionPatient = [_text(v) for v in geometry.to_world((0, 0, k)) * TO_LPS]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    for keyword, value in REQUIRED[volume.modality].items():
        setattr(dataset, keyword, value)
    if volume.modality == "MR":
        dataset.SpacingBetweenSlices = _text(spacing[2])
    if volume.modality == "PT":
        dataset.NumberOfSlices, dataset.ImageIndex = geometry.shape[2], k + 1
    return dataset


def _text(value: float) -> str:
    """A number as the at most 16 characters of a DICOM decimal string, as precise as they allow."""
    return format_number_as_ds(float(value) + 0.0)


def _uid(seed: str, part: str) -> UID:
    return generate_uid(entropy_srcs=["medseg phantom", seed, part])
