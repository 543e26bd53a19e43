"""The slices of a DICOM volume become pixels on a grid. Which files belong together is settled in `medseg.scans.series`.

i = column, j = row, k = slice in ascending position along row × column, so that (i, j, k) is right-handed in the patient.
Orientation and position stay in floating point; LPS becomes RAS+ here and nowhere else. Slope and intercept are each slice's
own. Pictures (CR, DX, MG, US … without a place in the patient) are 2D. A series that is not sound is refused, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from medseg.errors import MedsegError
from medseg.scans.names import series_id
from medseg.scans.reading import ScanError, check_claim, decoding
from medseg.scans.series import Slice, normal, read_header, slice_of
from medseg.structures import Source
from medseg.volume import Array, Geometry

LARGEST_TILT_DEGREES = 0.5
UNEVEN = 0.05
"""By how much of the spacing a slice may lie off an even row: positions are often written with one or two decimals."""

_TO_RAS = np.array([-1.0, -1.0, 1.0])


def read_geometry(source: Source) -> Geometry:
    """The grid from the headers alone, RAS+ mm (pictures: 2D, px where the pixel spacing is unknown).

    Raises:
        ScanError: of kind ``no_position``, ``no_spacing``, ``mixed_matrix``, ``mixed_orientation``, ``duplicate_slices``,
            ``missing_slices``, ``uneven_slices``, ``tilted`` or ``unreadable``; the message says what was found.
    """
    slices = [read_header(path) for path in source.files]
    return geometry_of(slices, _name(slices[0], source))


def read(source: Source, options: Mapping[str, Any]) -> tuple[Array, Geometry, str]:
    """Pixels ``(C, I, J, K)`` float32 after slope and intercept (C = 3 for colour), their grid, and the modality.

    ``(C, I, J)`` for pictures, in which MONOCHROME1 is inverted so that large values are bright.

    Raises:
        ScanError: as `read_geometry`; ``truncated`` where pixel data are missing or short, ``unreadable`` where they
            cannot be decoded.
    """
    slices: list[Slice] = []
    planes: Array | None = None
    for k, path in enumerate(source.files):
        with decoding(path, "DICOM", path.name):
            dataset = pydicom.dcmread(path, force=True)
            entry = slice_of(dataset, path)
        slices.append(entry)
        name = _name(slices[0], source)
        if entry.matrix != slices[0].matrix:
            geometry_of(slices, name)
        rows, columns, _ = entry.matrix
        plane = _plane(dataset, entry, name)
        if planes is None:
            check_claim(path, "DICOM", rows * columns, path.stat().st_size, compressed=True)
            planes = np.empty((plane.shape[0], len(source.files), rows, columns), np.float32)
        if plane.shape != (planes.shape[0], rows, columns):
            raise ScanError(
                f"{name}: {path.name} decodes to {plane.shape}, expected {(planes.shape[0], rows, columns)}"
            )
        planes[:, k] = plane
    geometry = geometry_of(slices, _name(slices[0], source))
    if planes is None:
        raise ScanError("a DICOM source without files")
    pixels = planes.transpose(0, 3, 2, 1)  # (C, K, J, I) in memory, seen as (C, I, J, K)
    return (pixels[..., 0] if geometry.dimensions == 2 else pixels), geometry, slices[0].modality


def geometry_of(slices: Sequence[Slice], name: str) -> Geometry:
    """The grid of slices in ascending position. Raises ScanError as `read_geometry`; ``name`` opens its message."""
    first = slices[0]
    rows, columns, _ = first.matrix
    odd = next((entry for entry in slices if entry.matrix != first.matrix), None)
    if odd is not None:
        raise ScanError(
            f"{name}: its slices have several matrix sizes: {columns}×{rows} in {first.path.name}, "
            f"{odd.matrix[1]}×{odd.matrix[0]} in {odd.path.name}; read them as volumes of their own",
            "mixed_matrix",
        )
    if first.is_picture:
        down, right = first.pixel_spacing or (1.0, 1.0)
        with _located(name):
            return Geometry.from_spacing((columns, rows), (right, down), "mm" if first.pixel_spacing else "px")
    lost = next((entry for entry in slices if entry.position is None or entry.orientation is None), None)
    if lost is not None:
        what = "ImagePositionPatient" if lost.position is None else "ImageOrientationPatient"
        raise ScanError(
            f"{name}: {lost.path.name} has no {what}, so nobody can say where it lies in the patient; export the series again",
            "no_position",
        )
    if first.pixel_spacing is None:
        raise ScanError(f"{name}: {first.path.name} has no PixelSpacing; export the series again", "no_spacing")
    row, column = (np.asarray(v, np.float64) for v in ((first.orientation or ())[:3], (first.orientation or ())[3:]))
    if min(np.linalg.norm(row), np.linalg.norm(column)) < 1e-3:
        raise ScanError(
            f"{name}: ImageOrientationPatient {first.orientation} is no direction; export it again", "no_position"
        )
    turned = next(
        (s for s in slices if np.abs(np.subtract(s.orientation or (), first.orientation or ())).max() > 0.02), None
    )
    if turned is not None:
        raise ScanError(
            f"{name}: {turned.path.name} has another orientation than {first.path.name}; read them as volumes of their own",
            "mixed_orientation",
        )
    step = _step(slices, name)
    affine = np.eye(4)
    affine[:3, 0] = row / np.linalg.norm(row) * first.pixel_spacing[1]
    affine[:3, 1] = column / np.linalg.norm(column) * first.pixel_spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    affine[:3] *= _TO_RAS[:, None]
    with _located(name):
        return Geometry((columns, rows, len(slices)), affine)


def _step(slices: Sequence[Slice], name: str) -> Array:
    """The vector from a slice to the next, LPS mm."""
    first = slices[0]
    along = normal(first.orientation or ())
    if len(slices) == 1:
        return along * (first.thickness or 1.0)
    positions = np.array([entry.position for entry in slices], np.float64)
    depth = positions @ along
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    if (gaps <= 1e-3 * max(abs(usual), 1e-3)).any():
        at = int(np.argmin(gaps))
        raise ScanError(
            f"{name}: {slices[at].path.name} and {slices[at + 1].path.name} lie {gaps[at]:.4g} mm apart, expected slices in "
            "ascending position; one of them is doubled, remove it",
            "duplicate_slices",
        )
    even = depth[0] + np.linspace(0, 1, len(depth)) * (depth[-1] - depth[0])
    if np.abs(depth - even).max() > UNEVEN * usual:
        _refuse_gaps(slices, gaps, usual, name)
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    tilt = math.degrees(math.acos(min(1.0, float(step @ along / np.linalg.norm(step)))))
    if tilt > LARGEST_TILT_DEGREES:
        raise ScanError(
            f"{name}: the gantry was tilted by {tilt:.1f}° (each slice is shifted against the one before); such a series is "
            "not read as it is: resample it onto an orthogonal grid (dcm2niix does)",
            "tilted",
        )
    return step


def _refuse_gaps(slices: Sequence[Slice], gaps: Array, usual: float, name: str) -> None:
    """Raise the error of a row of slices with holes, or of uneven ones: two different things to mend."""
    off = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    where = ", ".join(
        f"{gaps[k]:.4g} mm between {slices[k].path.name} and {slices[k + 1].path.name}" for k in off[:3]
    ) + (f" and {len(off) - 3} more" if len(off) > 3 else "")
    multiples = gaps / usual
    if len(off) and np.abs(multiples - np.round(multiples)).max() < 2 * UNEVEN:
        missing = int(np.round(multiples[off]).sum() - len(off))
        raise ScanError(
            f"{name}: {missing} slice(s) missing: slices lie {usual:.4g} mm apart, but {where}; export the series again, whole",
            "missing_slices",
        )
    raise ScanError(
        f"{name}: uneven spacing: slices lie {float(gaps.min()):.4g} to {float(gaps.max()):.4g} mm apart, mostly {usual:.4g} mm"
        f"{': ' + where if where else ''}; resample the series to even slices",
        "uneven_slices",
    )


def _plane(dataset: Dataset, entry: Slice, name: str) -> Array:
    """The pixels of one slice ``(C, rows, columns)`` after slope and intercept."""
    path = entry.path
    _check_pixels(dataset, entry, name)
    with decoding(path, "DICOM pixel data", path.name):
        stored = dataset.pixel_array
        photometric = str(dataset.get("PhotometricInterpretation", ""))
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
        if stored.ndim == 3:
            return np.ascontiguousarray(np.moveaxis(stored, -1, 0))
        if photometric == "MONOCHROME1" and entry.is_picture:
            bits = int(dataset.get("BitsStored") or 8 * stored.itemsize)
            signed = bool(dataset.get("PixelRepresentation"))
            stored = (-1 if signed else (1 << bits) - 1) - stored.astype(np.int64)
        if "ModalityLUTSequence" in dataset:
            return np.asarray(apply_modality_lut(stored, dataset))[None]
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
        slope, intercept = (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))
        if not (math.isfinite(slope) and math.isfinite(intercept)):
            raise ValueError("slope or intercept is not a number")
        return (
            (stored * np.float64(slope) + np.float64(intercept))[None]
            if (slope, intercept) != (1.0, 0.0)
            else stored[None]
        )


def _check_pixels(dataset: Dataset, entry: Slice, name: str) -> None:
    """Refuse missing or short pixel data with the numbers, before a decoder says it in words of its own."""
    file = entry.path.name
    pixels = next(
        (dataset[tag].value for tag in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if tag in dataset), None
    )
    if not pixels:
        raise ScanError(f"{name}: {file} holds no pixel data; it was cut short, copy it again", "truncated")
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:  # a dataset without file meta information, as old archives keep them
        little = dataset.original_encoding[1] is not False
        implicit = dataset.original_encoding[0] is not False
        syntax = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = syntax if little else pydicom.uid.ExplicitVRBigEndian
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_transfer_syntax:
        raise ScanError(
            f"{name}: {file} has the transfer syntax {syntax}, which DICOM does not know; export it again",
            "unsupported",
        )
    if syntax.is_encapsulated or "PixelData" not in dataset:
        return
    rows, columns, samples = entry.matrix
    if str(dataset.get("PhotometricInterpretation", "")).startswith("YBR_FULL_422"):
        samples = 2
    expected = rows * columns * samples * int(dataset.get("BitsAllocated") or 8) // 8
    if len(pixels) < expected:
        raise ScanError(
            f"{name}: the pixel data of {file} are truncated: expected {expected:,} bytes, found {len(pixels):,}; copy it again",
            "truncated",
        )


def _name(first: Slice, source: Source) -> str:
    return f"series {series_id(first.modality, first.series, source.key)}"


@contextmanager
def _located(name: str) -> Iterator[None]:
    """Put the name of the series before what a Geometry says."""
    try:
        yield
    except MedsegError as error:
        raise ScanError(f"{name}: {error}", "bad_affine") from None
