"""Writes a DICOM dataset and its pixels in a transfer syntax; part of `tests.dicom_factory`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

Array = np.ndarray[Any, Any]

SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG lossless": JPEGLosslessSV1,
    "JPEG lossless P14": JPEGLossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG baseline": JPEGBaseline8Bit,
    "JPEG extended": JPEGExtended12Bit,
}
"""What `write_series` can encode. The last two lose something and take 8 bits; JPEG 2000 takes planes from 32 × 32 up."""


# gdcm's encoders of RLE and of small JPEG 2000 images corrupt memory
_PLUGINS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg"}


def save(
    path: Path,
    dataset: Dataset,
    pixels: Array,
    syntax: UID,
    spoil: Callable[[Dataset], None] | None = None,
) -> None:
    """Write ``pixels`` ``(frames, rows, columns[, 3])`` with their header; ``spoil`` changes it just before."""
    dataset.Rows, dataset.Columns = pixels.shape[1:3]
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    narrow = dataset.BitsAllocated == 8 and syntax != ImplicitVRLittleEndian
    dataset["PixelData"].VR = "OB" if narrow else "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    if syntax in _PLUGINS:
        dataset.compress(syntax, generate_instance_uid=False, encoding_plugin=_PLUGINS[syntax])
    elif syntax.is_encapsulated:
        dataset.PixelData = _with_gdcm(path, dataset, pixels, syntax)
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
    if spoil is not None:
        spoil(dataset)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def _with_gdcm(path: Path, dataset: Dataset, pixels: Array, syntax: UID) -> bytes:
    """Encapsulated frames in a syntax that pydicom does not encode; ``path`` is written over.

    gdcm gets a bare object (of a class that may hold signed pixels): it would put a geometry of its own into the header.
    """
    plain = Dataset()
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain.file_meta.MediaStorageSOPClassUID = plain.SOPClassUID = EnhancedCTImageStorage
    plain.file_meta.MediaStorageSOPInstanceUID = plain.SOPInstanceUID = dataset.SOPInstanceUID
    plain.NumberOfFrames = len(pixels)
    for element in dataset.group_dataset(0x0028):
        plain.add(element)
    plain.PixelData = dataset.PixelData
    plain["PixelData"].VR = dataset["PixelData"].VR
    pydicom.dcmwrite(path, plain, enforce_file_format=True)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError(f"gdcm cannot read {path.name}")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise ValueError(f"gdcm cannot encode {pixels.dtype} {pixels.shape} as {syntax.name}")
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetFileName(str(path))
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise ValueError(f"gdcm cannot write {path.name}")
    return bytes(pydicom.dcmread(path).PixelData)
