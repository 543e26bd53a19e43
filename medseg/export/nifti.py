"""Masks, probabilities and other values as files on the scan's own grid: NIfTI for volumes, PNG or TIFF for pictures. Decides
nothing.

The file of a mask holds the label values themselves in the smallest unsigned type that holds them.
"""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from medseg.data.preprocess import Restoration, restore_mask
from medseg.errors import MedsegError
from medseg.files import whole_file
from medseg.scans.names import slug
from medseg.structures import LabelTable, Prediction
from medseg.volume import Array, Geometry

PROBABILITY_STEPS = 65535
"""Probabilities are stored as whole 65535ths: NIfTI has no 16-bit float, and this is finer near 1 than one would be."""


def write_mask(prediction: Prediction, folder: Path) -> Path:
    """``mask.nii.gz``, or ``mask.png`` (value = label, 8 or 16 bit grey) for a picture; returns the path.

    Raises:
        MedsegError: the prediction holds no mask, or a picture's label goes beyond 65535.
    """
    if prediction.mask is None:
        raise MedsegError(f"case {prediction.case!r}: the prediction holds no mask to write")
    return write_labels(prediction.mask, prediction.geometry, folder / "mask")


def write_labels(mask: Array, geometry: Geometry, stem: Path) -> Path:
    """Write integer labels ``geometry.shape`` as ``<stem>.nii.gz`` or ``<stem>.png``; returns the path."""
    kind = np.min_scalar_type(int(mask.max(initial=0)))
    if geometry.dimensions == 3:
        return _write_volume(_nifti(np.asarray(mask, dtype=kind), geometry), stem)
    if kind.itemsize > 2:
        raise MedsegError(f"a PNG holds labels up to 65535, found {int(mask.max())}")
    values = np.asarray(mask, dtype=np.uint8 if kind.itemsize == 1 else np.uint16)
    return _write_picture(values, stem.parent / f"{stem.name}.png")


def write_probabilities(
    scores: Array, restoration: Restoration, labels: LabelTable, folder: Path, block: int = 128
) -> list[Path]:
    """``probability_<n>-<name>.nii.gz`` (or ``.png`` for pictures) for each label or region, on the scan's own grid.

    Volumes hold 16-bit whole numbers with a scale of 1/65535 in the header, which every reader applies; PNG has no
    scale, there 65535 is 1. Background is what the labels leave. One label is in memory at a time, and it is filled
    block by block.

    Args:
        scores: ``(K, *S)`` float on the plan's grid, as `predict_grid` merges them.
        restoration: the way to the scan's own grid.
        labels: ``labels.outputs`` names the K channels.
    """
    paths = []
    for channel, name in enumerate(labels.outputs):
        if labels.exclusive and channel == 0:
            continue
        values = restore_mask(scores[channel : channel + 1], restoration, _steps, block).astype(np.uint16, copy=False)
        stem = folder / f"probability_{channel if labels.exclusive else channel + 1}-{slug(name)}"
        if restoration.scan.dimensions == 2:
            paths.append(_write_picture(values, stem.with_name(f"{stem.name}.png")))
        else:
            image = _nifti(values, restoration.scan)
            image.header.set_slope_inter(1 / PROBABILITY_STEPS, 0)
            paths.append(_write_volume(image, stem))
    return paths


def write_values(values: Array, geometry: Geometry, stem: Path) -> Path:
    """Write numbers ``geometry.shape`` as float32, ``<stem>.nii.gz`` or, of a picture, ``<stem>.tif``; returns the path."""
    raw = np.asarray(values, dtype=np.float32)
    if geometry.dimensions == 3:
        return _write_volume(_nifti(raw, geometry), stem)
    return _write_picture(raw, stem.parent / f"{stem.name}.tif")


def _steps(scores: Array) -> Array:
    return np.rint(np.clip(scores[0], 0, 1) * PROBABILITY_STEPS).astype(np.uint16)


def _nifti(values: Array, geometry: Geometry) -> nib.Nifti1Image:
    """An image whose two affines are both the scan's (code 1, scanner), in mm."""
    image = nib.Nifti1Image(values, geometry.affine)
    image.header.set_xyzt_units("mm" if geometry.unit == "mm" else "unknown")
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)
    return image


def _write_volume(image: nib.Nifti1Image, stem: Path) -> Path:
    path = stem.with_name(f"{stem.name}.nii.gz")
    with whole_file(path) as aside:
        nib.save(image, aside)
    return path


def _write_picture(values: Array, path: Path) -> Path:
    """Write ``(I, J)`` values as a picture whose columns are i and rows j: a PNG of 8 or 16 bits, or a TIFF."""
    picture = io.BytesIO()  # Pillow says "encoder error" of a full disk; bytes make it an OSError that says so
    image = Image.fromarray(np.ascontiguousarray(values.T))
    image.save(picture, format="TIFF" if path.suffix == ".tif" else "PNG")
    with whole_file(path) as aside:
        aside.write_bytes(picture.getvalue())
    return path
