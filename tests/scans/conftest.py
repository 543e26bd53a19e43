"""Writers of small scans with known pixels: NIfTI files, pictures, and DICOM series in any orientation and state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def _write_nifti(path: Path, array: Any, affine: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else np.asarray(affine)), path)
    return path


@pytest.fixture
def write_nifti() -> Callable[..., Path]:
    """``(path, array, affine=identity)`` → path."""
    return _write_nifti


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """``(path, array of rows)`` → path."""

    def write(path: Path, rows: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(rows)).save(path)
        return path

    return write


@pytest.fixture
def write_series() -> Callable[..., list[Path]]:
    """Writes ``(rows, columns, slices)`` integers as a series; ``change(dataset, k)`` may spoil each slice."""

    def write(
        folder: Path,
        pixels: Any,
        *,
        orientation: Sequence[float] = AXIAL,
        origin: Sequence[float] = (0.0, 0.0, 0.0),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        step: Sequence[float] | None = None,
        series: str = "1",
        study: str = "1",
        modality: str = "MR",
        description: str = "",
        change: Callable[[Dataset, int], None] | None = None,
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(pixels)
        along = np.cross(orientation[:3], orientation[3:]) * spacing[2] if step is None else np.asarray(step)
        paths = []
        for k in range(pixels.shape[2]):
            ds = Dataset()
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = MRImageStorage
            uid = generate_uid(entropy_srcs=["test", study, series, str(k), str(folder)])
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
            ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.{study}", f"1.2.{study}.{series}"
            ds.PatientName, ds.PatientID = "Secret^Name", "SECRET-ID"
            ds.Modality, ds.SeriesDescription, ds.InstanceNumber = modality, description, k + 1
            ds.ImageOrientationPatient = list(orientation)
            ds.ImagePositionPatient = [float(v) for v in np.asarray(origin) + k * along]
            ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
            ds.Rows, ds.Columns = pixels.shape[:2]
            ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
            signed = int(pixels.dtype.kind == "i")
            bits = 8 * pixels.dtype.itemsize
            ds.BitsAllocated = ds.BitsStored = bits
            ds.HighBit, ds.PixelRepresentation = bits - 1, signed
            ds.PixelData = np.ascontiguousarray(pixels[:, :, k]).tobytes()
            if change is not None:
                change(ds, k)
            path = folder / f"IM{k:04d}"
            pydicom.dcmwrite(path, ds, enforce_file_format=True)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def ramp() -> np.ndarray:
    """``(rows 5, columns 4, slices 3)`` int16, every voxel different."""
    return np.arange(60, dtype=np.int16).reshape(5, 4, 3) - 20
