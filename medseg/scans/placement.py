"""Whether the slices of a series can be one volume: each has a place, all lie the same way, one behind the other, evenly.

What is wrong is said here, with what was expected, what was found, where, and what to do. Knows headers alone; what is mended
nevertheless, and how, is the business of `medseg.scans.grid`. Distances come from positions: SliceThickness says how thick a
slice is, not where the next one lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.scans.headers import Slice
from medseg.scans.reading import ScanError
from medseg.volume import Array

UNEVEN = 0.05
"""By how much of the spacing a slice may lie off an even row: positions are often written with one or two decimals."""

_SAME_DIRECTION, _SAME_SPACING = 0.02, 0.02
_FARTHEST_MM = 1e6


def directions(slices: Sequence[Slice], name: str) -> Array:
    """``(2, 3)`` unit vectors along a row and along a column, LPS; every slice has a place and lies as the first one does."""
    first = slices[0]
    for entry in slices:
        if entry.position is None or entry.orientation is None:
            what = "ImagePositionPatient" if entry.position is None else "ImageOrientationPatient"
            raise ScanError(
                f"{name}: {named(entry)} has no {what}, so nobody can say where it lies in the patient; export the series again",
                "no_position",
            )
        if max(map(abs, entry.position)) > _FARTHEST_MM:
            raise ScanError(
                f"{name}: {named(entry)} lies at {max(map(abs, entry.position)):.3g} mm, which is no place in a patient; "
                "export the series again",
                "no_position",
            )
        if max(abs(a - b) for a, b in zip(entry.orientation, first.orientation or (), strict=True)) > _SAME_DIRECTION:
            raise ScanError(
                f"{name}: {named(entry)} has another orientation than {named(first)}; read them as volumes of their own",
                "mixed_orientation",
            )
    cosines = np.asarray(first.orientation, np.float64).reshape(2, 3)
    lengths = np.linalg.norm(cosines, axis=1, keepdims=True)
    if np.abs(lengths - 1).max() > 0.1 or np.linalg.norm(np.cross(*cosines)) < 0.5:
        raise ScanError(
            f"{name}: ImageOrientationPatient of {named(first)} is {listed(first.orientation or ())}, expected two "
            "directions at a right angle; export the series again",
            "no_position",
        )
    return np.asarray(cosines / lengths)


def pixel_spacing(slices: Sequence[Slice], name: str) -> tuple[float, float]:
    """mm between rows and between columns."""
    first = slices[0]
    if first.pixel_spacing is None:
        raise ScanError(f"{name}: {named(first)} has no PixelSpacing; export the series again", "no_spacing")
    if not all(map(is_length, first.pixel_spacing)):
        found = listed(first.pixel_spacing)
        raise ScanError(f"{name}: PixelSpacing of {named(first)} is {found} mm; export the series again", "no_spacing")
    for entry in slices:
        pairs = zip(entry.pixel_spacing or (0.0, 0.0), first.pixel_spacing, strict=True)
        if any(abs(found - expected) > _SAME_SPACING * expected for found, expected in pairs):
            raise ScanError(
                f"{name}: its pixels have several sizes: {listed(first.pixel_spacing)} mm in {named(first)}, "
                f"{listed(entry.pixel_spacing or ())} mm in {named(entry)}; read them as volumes of their own",
                "mixed_spacing",
            )
    return first.pixel_spacing


def slice_row(slices: Sequence[Slice], depths: Array, name: str, options: Mapping[str, Any]) -> tuple[int, float, str]:
    """How many slices the grid has, how far they lie apart in mm, and what was wrong with the native ones."""
    if len(slices) == 1:
        return 1, thickness_of(slices[0]) or 1.0, ""
    gaps = np.diff(depths)
    usual = float(np.quantile(gaps, 0.5, method="lower"))  # one that occurs: the median of 2.5, 5, 5 and 2.5 does not
    if (gaps <= 1e-3 * max(usual, 1e-3)).any():
        at = int(np.argmin(gaps))
        raise ScanError(
            f"{name}: {named(slices[at])} and {named(slices[at + 1])} lie {gaps[at]:.4g} mm apart, expected slices in ascending "
            "position; one of them is doubled, remove it",
            "duplicate_slices",
        )
    extent = float(depths[-1] - depths[0])
    mean = extent / (len(slices) - 1)
    off = np.abs(depths - depths[0] - mean * np.arange(len(slices)))
    if off.max() <= UNEVEN * usual:
        return len(slices), mean, ""
    found, kind = _gaps(slices, gaps, usual)
    if options.get("uneven", "refuse") != "resample":
        raise ScanError(
            f"{name}: {found}; export the series again, whole, or let the slices between be interpolated with "
            "dicom.uneven=resample",
            kind,
        )
    count = max(round(extent / usual), 1) + 1
    through = extent / (count - 1)
    return count, through, f"{found}; resampled to {count} slices {through:.4g} mm apart, by linear interpolation"


def _gaps(slices: Sequence[Slice], gaps: Array, usual: float) -> tuple[str, str]:
    """What is wrong with a row of slices, and its kind: holes and unevenness are two different things to mend."""
    off = np.flatnonzero(np.abs(gaps - usual) > UNEVEN * usual)
    where = ", ".join(f"{gaps[k]:.4g} mm between {named(slices[k])} and {named(slices[k + 1])}" for k in off[:3])
    where += f" and {len(off) - 3} more" if len(off) > 3 else ""
    multiples = gaps / usual
    if len(off) and np.abs(multiples - np.round(multiples)).max() < 2 * UNEVEN:
        missing = round(float(np.round(multiples[off]).sum())) - len(off)
        return f"{missing} slice(s) missing: slices lie {usual:.4g} mm apart, but {where}", "missing_slices"
    between = f"{float(gaps.min()):.4g} to {float(gaps.max()):.4g} mm apart, mostly {usual:.4g} mm"
    return f"uneven spacing: slices lie {between}{': ' + where if where else ''}", "uneven_slices"


def thickness_of(entry: Slice) -> float | None:
    """How thick a slice says it is in mm; None where that makes no sense."""
    return entry.thickness if entry.thickness and is_length(entry.thickness) else None


def is_length(mm: float) -> bool:
    """Whether a pixel can be as large."""
    return 1e-6 <= mm <= 1e4


def named(entry: Slice) -> str:
    """How a message calls a slice: by its file, and the frame (from 1) that it is there."""
    return entry.path.name if entry.frame is None else f"frame {entry.frame + 1} of {entry.path.name}"


def listed(values: Sequence[float]) -> str:
    """Numbers as DICOM separates them."""
    return "\\".join(f"{value:.6g}" for value in values) or "unknown"
