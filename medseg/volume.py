"""Pixels and where they lie in the patient: ``Geometry`` and ``Volume``, in numpy, knowing nothing of files or networks.

Axes are said once, here. Arrays are ``(C, I, J, K)``; pictures drop ``K``. The affine maps voxel **centres** to RAS+
millimetres: ``world = affine · index``, so that an edge lies at ``affine · (edge − 0.5)``. Pictures have i = column (x) and
j = row (y); where their spacing is unknown, the unit is ``"px"``. Directions are orthogonal: shear is mended while reading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medseg.errors import MedsegError

Array = npt.NDArray[Any]
Unit = Literal["mm", "px"]
_ROWS = 64
"""Rows of a resampling matrix that are multiplied together: few, so that few columns matter; many enough for a fast product."""
_NOTHING = 1e-9
"""Smaller weights of a spline are left out: its prefilter decays by 0.27 a voxel, and without them the matrix is a band."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid of voxels in the patient.

    Args:
        shape: voxels along each axis, ``(I, J, K)`` or ``(I, J)``.
        affine: ``(D+1, D+1)`` float64, voxel centre index → RAS+ mm (or px).
        unit: ``"px"`` where the file gives no spacing.

    Raises:
        MedsegError: the affine does not fit the shape, is not finite, singular, or sheared.
    """

    shape: tuple[int, ...]
    affine: Array
    unit: Unit = "mm"

    def __post_init__(self) -> None:
        dimensions = len(self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if dimensions not in (2, 3) or min(self.shape) < 1:
            raise MedsegError(f"a grid has two or three axes of at least one voxel; found shape {self.shape}")
        if affine.shape != (dimensions + 1, dimensions + 1) or not np.isfinite(affine).all():
            size, found = f"{dimensions + 1}×{dimensions + 1}", affine.tolist()
            raise MedsegError(f"expected a finite {size} affine, found {found}; mend the header of the file")
        with np.errstate(over="ignore"):
            spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
        if (spacing <= 0).any():
            raise MedsegError(f"the affine is singular: spacing {spacing.tolist()}; mend the header of the file")
        if (spacing < 1e-6).any() or (spacing > 1e5).any():
            sizes = "×".join(f"{length:.3g}" for length in spacing)
            raise MedsegError(f"no scan has voxels of {sizes} {self.unit}; mend the header of the file")
        if np.abs(affine[:-1, -1]).max() > 1e9:
            raise MedsegError(f"no scan lies at {affine[:-1, -1].tolist()} {self.unit}; mend the header of the file")
        cosines = (affine[:-1, :-1] / spacing).T @ (affine[:-1, :-1] / spacing)
        if np.abs(cosines - np.eye(dimensions)).max() > 1e-2:
            raise MedsegError("the axes of the grid are not orthogonal (a sheared or tilted scan); resample it first")

    @classmethod
    def from_spacing(cls, shape: Sequence[int], spacing: Sequence[float], unit: Unit = "mm") -> Geometry:
        """A grid along the world's axes whose first voxel centre is the origin."""
        return cls(tuple(shape), np.diag([*spacing, 1.0]), unit)

    @property
    def dimensions(self) -> int:
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring voxel centres along each axis, in ``unit``."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    @property
    def voxel_volume(self) -> float:
        """Volume (3D) or area (2D) of a voxel in ``unit``³ or ``unit``²."""
        return float(np.prod(self.spacing))

    @property
    def axis_codes(self) -> str:
        """The direction in which each axis grows, such as ``"RAS"`` or ``"LPI"`` (the closest world axis)."""
        letters = ("LR", "PA", "IS")
        return "".join(letters[axis][int(sign > 0)] for axis, sign in _closest_axes(self.affine))

    def to_world(self, index: npt.ArrayLike) -> Array:
        """``(..., D)`` continuous voxel indices → ``(..., D)`` world coordinates."""
        return np.asarray(index, np.float64) @ self.affine[:-1, :-1].T + self.affine[:-1, -1]

    def to_index(self, world: npt.ArrayLike) -> Array:
        """``(..., D)`` world coordinates → ``(..., D)`` continuous voxel indices (centres are whole numbers)."""
        return np.linalg.solve(
            self.affine[:-1, :-1], (np.asarray(world, np.float64) - self.affine[:-1, -1])[..., None]
        )[..., 0]

    def matches(self, other: Geometry, tolerance: float = 1e-2) -> bool:
        """Whether both grids lie on each other: the same shape, and corners within ``tolerance`` of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(
            -1, self.dimensions
        )
        return bool(np.abs(self.to_index(other.to_world(corners)) - corners).max() <= tolerance)

    def cropped(self, lower: Sequence[int], upper: Sequence[int]) -> Geometry:
        """The part ``[lower, upper)`` of the grid; bounds beyond the grid make it larger."""
        affine = self.affine.copy()
        affine[:-1, -1] = self.to_world(lower)
        return replace(self, shape=tuple(int(u - low) for low, u in zip(lower, upper, strict=True)), affine=affine)

    def reshaped(self, shape: Sequence[int]) -> Geometry:
        """The same field of view (outer edges of the outer voxels) cut into ``shape`` voxels."""
        zoom = np.asarray(self.shape, np.float64) / np.asarray(shape, np.float64)
        affine = self.affine.copy()
        affine[:-1, :-1] = self.affine[:-1, :-1] * zoom
        affine[:-1, -1] = self.to_world(0.5 * zoom - 0.5)
        return replace(self, shape=tuple(int(n) for n in shape), affine=affine)

    def describe(self) -> str:
        """Shape and spacing as a message shows them: ``512×512×120 at 0.7×0.7×2.5 mm``."""
        return f"{'×'.join(map(str, self.shape))} at {'×'.join(f'{s:.4g}' for s in self.spacing)} {self.unit}"


@dataclass(frozen=True, eq=False)
class Volume:
    """Pixels ``(C, *shape)`` on a grid. Operations return new volumes and may share memory with the old one.

    ``modality`` is the DICOM term (``CT``, ``MR``, ``PT``, ``US`` …), empty where it is unknown.
    """

    data: Array
    geometry: Geometry
    modality: str = ""

    def __post_init__(self) -> None:
        if self.data.shape[1:] != self.geometry.shape:
            raise MedsegError(f"pixels {self.data.shape} do not fit the grid (C, {self.geometry.shape})")


@dataclass(frozen=True)
class Reorientation:
    """Axis ``a`` of the new array is axis ``order[a]`` of the old one, reversed where ``flip[a]``."""

    order: tuple[int, ...]
    flip: tuple[bool, ...]

    def apply(self, array: Array) -> Array:
        """Reorient the trailing axes of ``array`` (a view)."""
        leading = array.ndim - len(self.order)
        moved = array.transpose(*range(leading), *(leading + axis for axis in self.order))
        return moved[(..., *(slice(None, None, -1) if flipped else slice(None) for flipped in self.flip))]

    def inverse(self) -> Reorientation:
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return Reorientation(order, tuple(self.flip[axis] for axis in order))

    def apply_to_geometry(self, geometry: Geometry) -> Geometry:
        """The grid of the reoriented array: every voxel stays where it was in the world."""
        dimensions = len(self.order)
        step = np.zeros((dimensions + 1, dimensions + 1))
        step[-1, -1] = 1
        shape = tuple(geometry.shape[axis] for axis in self.order)
        for new, old in enumerate(self.order):
            step[old, new] = -1 if self.flip[new] else 1
            step[old, -1] = shape[new] - 1 if self.flip[new] else 0
        return replace(geometry, shape=shape, affine=geometry.affine @ step)


def reorientation_to(geometry: Geometry, codes: str) -> Reorientation:
    """How an array on ``geometry`` is turned so that its axes grow along ``codes`` (``"RAS"``, ``"LPS"`` …)."""
    if geometry.dimensions != len(codes):
        raise MedsegError(f"orientation {codes!r} needs {len(codes)} axes, the grid has {geometry.dimensions}")
    world = {letter: axis for axis, pair in enumerate(("LR", "PA", "IS")) for letter in pair}
    closest = _closest_axes(geometry.affine)
    order, flip = [], []
    for code in codes:
        old = next(i for i, (axis, _) in enumerate(closest) if axis == world[code])
        order.append(old)
        flip.append((closest[old][1] > 0) != (code in "RAS"))
    return Reorientation(tuple(order), tuple(flip))


def are_axis_codes(codes: str) -> bool:
    """Whether ``codes`` say for each axis of the patient, in any order, in which direction it grows, such as ``"LAS"``."""
    return sorted(sum(code in pair for code in codes) for pair in ("LR", "PA", "IS")) == [1, 1, 1] and len(codes) == 3


def reorient(volume: Volume, codes: str) -> Volume:
    """The same voxels with axes that grow along ``codes``; no value changes."""
    turn = reorientation_to(volume.geometry, codes)
    return replace(volume, data=turn.apply(volume.data), geometry=turn.apply_to_geometry(volume.geometry))


def crop(volume: Volume, lower: Sequence[int], upper: Sequence[int]) -> Volume:
    """The voxels ``[lower, upper)``; bounds must lie inside the volume."""
    if min(lower) < 0 or any(u > n for u, n in zip(upper, volume.geometry.shape, strict=True)):
        raise MedsegError(f"crop {tuple(lower)}…{tuple(upper)} leaves the grid {volume.geometry.shape}")
    window = tuple(slice(low, u) for low, u in zip(lower, upper, strict=True))
    return replace(volume, data=volume.data[(slice(None), *window)], geometry=volume.geometry.cropped(lower, upper))


def pad(volume: Volume, before: Sequence[int], after: Sequence[int], value: float = 0) -> Volume:
    """Add voxels of ``value`` around; the old voxels stay where they were in the world."""
    widths = list(zip(before, after, strict=True))
    upper = [n + a for n, a in zip(volume.geometry.shape, after, strict=True)]
    data = np.pad(volume.data, [(0, 0), *widths], constant_values=value)
    return replace(volume, data=data, geometry=volume.geometry.cropped([-b for b in before], upper))


def resample(volume: Volume, shape: Sequence[int], order: int | Sequence[int] = 3) -> Volume:
    """Cut the same field of view into ``shape`` voxels; ``order`` (one for all axes or one an axis) as in `resample_array`."""
    data = resample_array(volume.data, shape, order)
    return replace(volume, data=data, geometry=volume.geometry.reshaped(shape))


def resample_array(array: Array, shape: Sequence[int], order: int | Sequence[int] = 3) -> Array:
    """Resample the trailing axes of ``array`` to ``shape``, outer edges on outer edges, one matrix product an axis.

    Args:
        array: ``(..., *S)``; computed in float32 unless every order is 0.
        shape: the new length of each trailing axis.
        order: 0 nearest (keeps the dtype), 1 linear, 3 cubic B-spline; one an axis or one for all.
    """
    orders = [order] * len(shape) if isinstance(order, int) else list(order)
    first = array.ndim - len(shape)
    out = array if not any(orders) else array.astype(np.float32, copy=False)
    # The axes that shrink most go first, so that the rest have less to do.
    for axis in sorted(range(len(shape)), key=lambda a: shape[a] / array.shape[first + a]):
        old, new = array.shape[first + axis], int(shape[axis])
        if old == new:
            continue
        if orders[axis] == 0:
            out = np.take(out, nearest_index(old, new), axis=first + axis)
        else:
            out = product_along(out, resampling_matrix(old, new, orders[axis]), first + axis)
    return np.ascontiguousarray(out)


def product_along(array: Array, matrix: Array, axis: int) -> Array:
    """``matrix`` (new, old) applied to the lines of ``array`` along ``axis``; a contiguous array is not copied for it.

    Resampling is a band: what lies more than some voxels away counts nothing. So the rows of the matrix are taken `_ROWS` at a
    time, each time with the columns alone that they touch.
    """
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    new, old = matrix.shape
    lines = array.reshape(math.prod(before), old, -1) if after else array.reshape(-1, old)
    out = np.empty((len(lines), new, *lines.shape[2:]), np.result_type(array, matrix))
    for first in range(0, new, _ROWS):
        last = min(first + _ROWS, new)
        touched = np.flatnonzero(matrix[first:last].any(axis=0))
        low, high = (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 1)
        rows = matrix[first:last, low:high]
        if after:
            np.matmul(rows, lines[:, low:high], out=out[:, first:last])
        else:
            np.matmul(lines[:, low:high], rows.T, out=out[:, first:last])
    return out.reshape(*before, new, *after)


def nearest_index(old: int, new: int) -> Array:
    """For each of ``new`` voxels, which of ``old`` voxels its centre lies in."""
    return np.clip(np.floor((np.arange(new) + 0.5) * old / new), 0, old - 1).astype(np.intp)


@lru_cache(maxsize=256)
def resampling_matrix(old: int, new: int, order: int) -> Array:
    """``(new, old)`` float32 weights that resample a line of ``old`` voxels into ``new``, edges on edges.

    Order 3 is the interpolating cubic B-spline with mirrored ends (Unser 1999, "Splines: a perfect fit"), its
    prefilter folded in; order 1 is linear with the end values held. Rows sum to one.
    """
    if order not in (1, 3):
        raise MedsegError(f"resampling order {order}: expected 0 (nearest), 1 (linear) or 3 (cubic)")
    at = (np.arange(new) + 0.5) * old / new - 0.5
    rows = np.arange(new)
    weights: Array = np.zeros((new, old))
    if order == 1 or old < 3:
        at = np.clip(at, 0, old - 1)
        low = np.minimum(np.floor(at).astype(int), max(old - 2, 0))
        np.add.at(weights, (rows, low), 1 - (at - low))
        np.add.at(weights, (rows, np.minimum(low + 1, old - 1)), at - low)
    else:
        at = np.clip(at, -0.5, old - 0.5)
        low = np.floor(at).astype(int)
        t = at - low
        kernel = ((1 - t) ** 3 / 6, (4 - 6 * t**2 + 3 * t**3) / 6, (1 + 3 * t + 3 * t**2 - 3 * t**3) / 6, t**3 / 6)
        for offset, value in zip((-1, 0, 1, 2), kernel, strict=True):
            np.add.at(weights, (rows, _mirrored(low + offset, old)), value)
        sampled = np.zeros((old, old))
        for offset, part in ((-1, 1 / 6), (0, 2 / 3), (1, 1 / 6)):
            np.add.at(sampled, (np.arange(old), _mirrored(np.arange(old) + offset, old)), part)
        weights = np.linalg.solve(sampled.T, weights.T).T
        weights[np.abs(weights) < _NOTHING] = 0
    weights = weights.astype(np.float32)
    weights.setflags(write=False)
    return weights


def _mirrored(index: Array, length: int) -> Array:
    """Whole-sample symmetric continuation: −1 → 1, length → length − 2."""
    period = 2 * (length - 1)
    index = np.abs(index) % period
    return np.where(index >= length, period - index, index)


def _closest_axes(affine: Array) -> list[tuple[int, float]]:
    """For each array axis, the world axis it runs along most and the sign; every world axis is taken once."""
    direction = affine[:-1, :-1] / np.linalg.norm(affine[:-1, :-1], axis=0)
    left = np.abs(direction)
    taken: dict[int, int] = {}
    for _ in range(len(direction)):
        world, axis = np.unravel_index(np.argmax(left), left.shape)
        taken[int(axis)] = int(world)
        left[world, :], left[:, axis] = -1, -1
    return [(taken[axis], float(np.sign(direction[taken[axis], axis]))) for axis in range(len(direction))]
