"""The grid of a DICOM volume, the native planes that it was read from, and the way from these to that and back.

Headers and arrays come in; no file is opened. Where the planes do not stand one behind the other along their normal, evenly,
the volume is mended if that is sound: a tilted gantry shifts each slice within its plane, and is sheared back; gaps are filled
between slices if the user says so. Whether slices are a volume at all is judged in `medseg.scans.placement`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.scans.headers import Slice
from medseg.scans.placement import UNEVEN, directions, is_length, listed, named, pixel_spacing, slice_row, thickness_of
from medseg.scans.reading import ScanError
from medseg.volume import Array, Geometry

LARGEST_TILT_DEGREES = 0.5
"""Up to here the axis of the slices may lean: an affine can say that, and no value needs to be interpolated."""
OFF_AXIS = 0.25
"""By how much of a pixel a slice may lie beside the axis of the others before it is moved."""

_MOST_GROWTH, _SMALL = 4, 1 << 20
_EXACT = 0.01  # of a voxel: nearer than that to a voxel is on it, and copied
_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """What a volume lies on, and the native planes that it was read from.

    Args:
        geometry: of the volume; 2D for a picture.
        planes: ``(K, 4, 4)``, the affine of each native plane, ``(i, j, 0)`` → RAS+ mm; the third column is the normal, as
            long as the slices lie apart. Empty for a picture, which lies nowhere in the patient.
        shape: ``(I, J, K)`` of the native planes.
        mended: what had to be done to the series or assumed, a sentence each.
        resampled: whether voxels were moved; otherwise the volume is the native planes as they are.
    """

    geometry: Geometry
    planes: Array
    shape: tuple[int, int, int]
    mended: tuple[str, ...] = ()
    resampled: bool = False

    def apply(self, stack: Array, fill: float) -> Array:
        """Native planes ``(C, I, J, K)`` → ``(C, *geometry.shape)`` float32; the same array where nothing is resampled.

        Within a plane cubic convolution (Keys 1981, a = −½), whose weights are the same for a whole plane as all its pixels
        move alike: a wave of 35 pixels comes back within a thousandth of its height. Between planes linear. ``fill`` is the
        value where no plane reaches.
        """
        if self.geometry.dimensions == 2:
            return stack[..., 0]
        if not self.resampled:
            return stack
        size, (shifts, depths) = self.geometry.shape, self._places()
        out = np.empty((len(stack), *size[::-1]), np.float32).transpose(0, 3, 2, 1)

        def placed(k: int) -> Array:
            along_i = _shifted(stack[..., k], shifts[k, 0], size[0], 1, fill)
            return _shifted(along_i, shifts[k, 1], size[1], 2, fill)

        below = np.clip(np.searchsorted(depths, np.arange(size[2]), "right") - 1, 0, len(depths) - 2)
        for n, k in enumerate(below):
            weight = _snapped(np.clip((n - depths[k]) / (depths[k + 1] - depths[k]), 0, 1))
            if weight in (0, 1):
                out[..., n] = placed(k + int(weight))
            else:
                out[..., n] = (1 - weight) * placed(k) + weight * placed(k + 1)
        return out

    def sample_back(self, mask: Array) -> Array:
        """A mask ``geometry.shape`` on the native planes, ``(I, J, K)``: each voxel takes the nearest one's value.

        The same array where nothing is resampled.
        """
        if self.geometry.dimensions == 2:
            return mask[..., None]
        if not self.resampled:
            return mask
        shifts, depths = self._places()
        columns, rows, _ = self.shape
        first = np.stack([_first(shifts[:, axis], self.shape[axis], self.geometry.shape[axis]) for axis in (0, 1)], -1)
        slices = _first(depths, 1, self.geometry.shape[2])
        planes = np.empty(self.shape[::-1], mask.dtype).transpose(2, 1, 0)
        for k, ((i, j), n) in enumerate(zip(first, slices, strict=True)):
            planes[..., k] = mask[i : i + columns, j : j + rows, n]
        return planes

    def _places(self) -> tuple[Array, Array]:
        """Where pixel (0, 0) of each native plane lies on the grid: ``(K, 2)`` columns and rows, ``(K,)`` slices."""
        index = self.geometry.to_index(self.planes[:, :3, 3])
        count, depths = self.shape[2], index[:, 2]
        even = self.geometry.shape[2] == count and np.abs(depths - np.arange(count)).max() <= 1.1 * UNEVEN
        return _snapped(index[:, :2]), np.arange(count, dtype=np.float64) if even else depths


def grid_of(slices: Sequence[Slice], name: str, options: Mapping[str, Any]) -> Grid:
    """The grid of slices in ascending position, or of one picture.

    Args:
        name: of the series; it opens every message.
        options: ``uneven="resample"`` fills gaps and evens out spacing instead of refusing.

    Raises:
        ScanError: of kind ``mixed_matrix``, ``mixed_orientation``, ``mixed_spacing``, ``no_position``, ``no_spacing``,
            ``duplicate_slices``, ``missing_slices``, ``uneven_slices``, ``tilted``, ``not_2d`` or ``bad_affine``.
    """
    first = slices[0]
    rows, columns, _ = first.matrix
    odd = next((entry for entry in slices if entry.matrix != first.matrix), None)
    if odd is not None:
        raise ScanError(
            f"{name}: its slices have several matrix sizes: {columns}×{rows} in {named(first)}, "
            f"{odd.matrix[1]}×{odd.matrix[0]} in {named(odd)}; read them as volumes of their own",
            "mixed_matrix",
        )
    if first.is_picture:
        return _picture(slices, name)
    cosines = directions(slices, name)
    steps = cosines * np.array(pixel_spacing(slices, name))[::-1, None]
    along = np.cross(*cosines)
    along /= np.linalg.norm(along)
    positions = np.array([entry.position for entry in slices], np.float64)
    depths = positions @ along
    count, through, gaps = slice_row(slices, depths, name, options)
    axis, beside, tilt = _axis(positions, depths, steps, along)
    moved = bool(np.abs(beside).max() > OFF_AXIS)
    low, high = (_nearest(beside.min(axis=0)), _nearest(beside.max(axis=0))) if moved else np.zeros((2, 2), int)
    shape = (columns + int(high[0] - low[0]), rows + int(high[1] - low[1]), count)
    shift_mm = float(np.linalg.norm(beside @ steps, axis=1).max())
    if math.prod(shape) > max(_MOST_GROWTH * rows * columns * len(slices), _SMALL):
        raise ScanError(
            f"{name}: its slices lie {shift_mm:.4g} mm beside each other and {depths[-1] - depths[0]:.4g} mm one behind the "
            f"other: a grid that holds them has {'×'.join(map(str, shape))} voxels, for {len(slices)} slices of "
            f"{columns}×{rows}; they are no volume, or their positions are wrong: export the series again",
            "tilted" if moved else "uneven_slices",
        )
    sentences = (_moved(tilt, shift_mm, shape) if moved else "", gaps, _assumed(slices))
    planes = np.stack([_affine(steps, along * through, place) for place in positions])
    with _located(name):
        return Grid(
            geometry=Geometry(shape, _affine(steps, axis * through, positions[0] + low @ steps)),
            planes=planes,
            shape=(columns, rows, len(slices)),
            mended=tuple(filter(None, sentences)),
            resampled=moved or bool(gaps),
        )


def _picture(slices: Sequence[Slice], name: str) -> Grid:
    first = slices[0]
    rows, columns, _ = first.matrix
    if len(slices) > 1:
        raise ScanError(
            f"{name}: expected one picture, found {len(slices)} without a place in the patient: {named(first)}, "
            f"{named(slices[1])} …; read each as a case of its own",
            "not_2d",
        )
    spacing = first.pixel_spacing
    known = spacing is not None and all(map(is_length, spacing))
    down, right = spacing if known and spacing is not None else (1.0, 1.0)
    odd = "" if known or spacing is None else f"PixelSpacing {listed(spacing)} makes no sense: lengths are in pixels"
    with _located(name):
        geometry = Geometry.from_spacing((columns, rows), (right, down), "mm" if known else "px")
        return Grid(geometry, np.empty((0, 4, 4)), (columns, rows, 1), tuple(filter(None, (odd,))))


def _axis(positions: Array, depths: Array, steps: Array, along: Array) -> tuple[Array, Array, float]:
    """The axis of the grid (LPS, 1 mm along the normal), how far each plane lies beside it (``(K, 2)`` pixels), and the tilt.

    It is the normal, or leans a little where all planes stand on such a line.
    """
    if len(positions) == 1:
        return along, np.zeros((1, 2)), 0.0
    leaning = (positions[-1] - positions[0]) / (depths[-1] - depths[0])
    tilt = math.degrees(math.acos(min(1.0, 1 / float(np.linalg.norm(leaning)))))
    for axis in (leaning, along) if tilt <= LARGEST_TILT_DEGREES else (along,):
        beside = (positions - positions[0] - np.outer(depths - depths[0], axis)) @ np.linalg.pinv(steps)
        if np.abs(beside).max() <= OFF_AXIS:
            break
    return axis, beside, tilt


def _moved(tilt: float, shift_mm: float, shape: Sequence[int]) -> str:
    grown = f"onto an orthogonal grid of {'×'.join(map(str, shape))} voxels"
    if tilt > LARGEST_TILT_DEGREES:
        return f"the gantry was tilted by {tilt:.1f}°: the slices were sheared back {grown}, by cubic interpolation"
    return f"slices lie up to {shift_mm:.4g} mm beside each other: they were moved {grown}, by cubic interpolation"


def _assumed(slices: Sequence[Slice]) -> str:
    if len(slices) == 1 and not thickness_of(slices[0]):
        return f"{named(slices[0])} is a single slice that does not say how thick it is: taken as 1 mm"
    return ""


def _shifted(plane: Array, shift: float, length: int, axis: int, fill: float) -> Array:
    """A plane moved by ``shift`` pixels along an axis, onto ``length`` pixels; half a pixel beyond its ends it still holds."""
    size = plane.shape[axis]
    first = int(_first(shift, size, length))
    if first == shift and size == length:
        return plane
    out_shape = list(plane.shape)
    out_shape[axis] = length
    out = np.full(out_shape, fill, np.float32)
    window = [slice(None)] * plane.ndim
    window[axis] = slice(first, first + size)
    if first == shift:
        out[tuple(window)] = plane
        return out
    low = math.floor(first - shift)
    t = first - shift - low
    weights = (
        -0.5 * t**3 + t**2 - 0.5 * t,
        1.5 * t**3 - 2.5 * t**2 + 1,
        -1.5 * t**3 + 2 * t**2 + 0.5 * t,
        0.5 * t**3 - 0.5 * t**2,
    )
    padded = np.pad(plane, [(2, 2) if a == axis else (0, 0) for a in range(plane.ndim)], mode="edge")
    taps = (np.take(padded, np.arange(size) + low + 1 + n, axis) for n in range(4))
    out[tuple(window)] = sum(np.float32(weight) * tap for weight, tap in zip(weights, taps, strict=True))
    return out


def _affine(steps: Array, through: Array, origin: Array) -> Array:
    """``(4, 4)`` RAS+ from LPS steps and origin."""
    affine = np.eye(4)
    affine[:3] = np.stack([*steps, through, origin], axis=1) * _TO_RAS[:, None]
    return affine


def _nearest(place: Any) -> Array:
    """The voxel in which a place lies: halves go up, the same way for every slice."""
    return np.floor(np.asarray(place) + 0.5).astype(int)


def _first(place: Any, size: int, length: int) -> Array:
    """Where ``size`` voxels begin among ``length``, whatever the last digit of their place says."""
    return np.clip(_nearest(place), 0, length - size)


def _snapped(place: Array) -> Array:
    whole = np.rint(place)
    return np.where(np.abs(place - whole) < _EXACT, whole, place)


@contextmanager
def _located(name: str) -> Iterator[None]:
    """Put the name of the series before what a Geometry says."""
    try:
        yield
    except MedsegError as error:
        raise ScanError(f"{name}: {error}", "bad_affine") from None
