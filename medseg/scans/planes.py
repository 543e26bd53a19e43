"""Labels that lie on parallel planes are brought onto the grid of an image whose axes run along them. Plain geometry, RAS+ mm.

A voxel takes the pixel that its centre lies in. Where both grids lie on each other that is a copy, whatever the order of the
axes; where the image was mended (tilt sheared back, slices made even) or has other voxels, it is the nearest pixel.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from medseg.scans.reading import ScanError
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)

MOST_VOXELS = 2**30
"""The largest grid that planes may span where no image says what the grid is."""

ALIGNED = 0.1
"""Of a voxel: by how much pixel and voxel may lie apart to be called the same; positions are rounded."""


@dataclass(frozen=True, eq=False)
class Planes:
    """Parallel planes of one size, ascending along their normal.

    Args:
        origins: ``(P, 3)`` centres of the first pixels.
        axes: ``(3, 3)`` unit vectors in its rows: along i, along j, and the normal.
        spacing: mm between neighbouring pixels along i and along j.
        shape: pixels along i and j.
        step: mm from plane to plane if the file says it.
        thickness: mm that a plane stands for where nothing else says it.
    """

    origins: Array
    axes: Array
    spacing: tuple[float, float]
    shape: tuple[int, int]
    step: float | None
    thickness: float

    @property
    def depths(self) -> Array:
        """``(P,)`` mm along the normal."""
        return np.asarray(self.origins @ self.axes[2])

    @property
    def least_gap(self) -> float:
        """The smallest distance of two planes in mm; infinite for a single one."""
        return float(np.diff(self.depths).min()) if len(self.origins) > 1 else np.inf


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the voxels of a grid lie on planes.

    Args:
        axes: which axis of the grid runs along i, along j and along the normal.
        plane: ``(slices,)`` the plane of each slice of the grid, −1 where there is none.
        columns, rows: ``(slices, voxels)`` continuous pixel index of each voxel of a slice along i and along j.
        off: how far the grids are from lying on each other: by what part of a pixel or slice centres or steps differ.
    """

    axes: tuple[int, int, int]
    plane: Array
    columns: Array
    rows: Array
    off: float


def place(planes: Planes, grid: Geometry, name: str) -> Placement:
    """Find the voxels of ``grid`` on ``planes``.

    Raises:
        ScanError: ``grids_differ`` where an axis of the grid runs oblique to the planes; ``name`` opens the message.
    """
    cosines = planes.axes @ (grid.affine[:3, :3] / np.array(grid.spacing))
    along = np.abs(cosines).argmax(1)
    extent = np.array(grid.spacing) * (np.array(grid.shape) - 1)
    slab = _slab(planes, grid.spacing[along[2]])
    drift = np.abs(cosines) * extent / np.array([*planes.spacing, slab])[:, None]
    drift[np.arange(3), along] = 0
    drift[:2, along[2]] = 0  # slices may stand on a leaning axis: where each begins is looked up
    if len(set(along.tolist())) < 3 or drift.max() > 0.5:
        raise ScanError(
            f"{name}: its planes lie oblique to the grid of the image ({grid.describe()}); resample it onto the image",
            "grids_differ",
        )
    i, j, k = (int(axis) for axis in along)
    middle = (np.array(grid.shape) - 1) / 2
    world = {}
    for axis in (i, j, k):
        index = np.tile(middle, (grid.shape[axis], 1))
        index[:, axis] = np.arange(grid.shape[axis])
        world[axis] = grid.to_world(index)
    depths = world[k] @ planes.axes[2]
    gaps = np.abs(depths[:, None] - planes.depths)  # (slices, P)
    within = (planes.depths >= depths.min() - slab / 2) & (planes.depths <= depths.max() + slab / 2)
    aligned = bool((gaps.min(0)[within] <= ALIGNED * grid.spacing[k]).all())
    nearest = gaps.argmin(1)
    distance = depths - planes.depths[nearest]
    slab = _slab(planes, grid.spacing[k] if aligned else planes.thickness)
    covered = (distance >= -slab / 2 - 1e-6) & (distance < slab / 2 - 1e-6)
    shift = world[k] - grid.to_world(middle) - planes.origins[nearest]  # (slices, 3), added to the voxels of a slice
    columns = (world[i] @ planes.axes[0] + (shift @ planes.axes[0])[:, None]) / planes.spacing[0]
    rows = (world[j] @ planes.axes[1] + (shift @ planes.axes[1])[:, None]) / planes.spacing[1]
    used = np.flatnonzero(covered)
    off = [0.0 if aligned else 1.0, float(np.abs(distance[used]).max(initial=0)) / grid.spacing[k]]
    for found in (columns[used], rows[used]):
        off.append(float(np.abs(found - np.rint(found)).max(initial=0)))
        off.append(float(np.abs(np.abs(np.diff(found, axis=1)) - 1).max(initial=0)))
    return Placement((i, j, k), np.where(covered, nearest, -1), columns, rows, max(off))


def onto(stack: Array, planes: Planes, grid: Geometry, name: str) -> Array:
    """Labels ``(P, j, i)`` of ``planes`` at the voxel centres of ``grid``, ``(I, J, K)``; 0 where no plane lies.

    Raises:
        ScanError: as `place`; ``outside_image`` where the planes hold labels and the grid none of them.
    """
    placed = place(planes, grid, name)
    i, j, k = placed.axes
    found = np.zeros((grid.shape[k], grid.shape[j], grid.shape[i]), stack.dtype)
    for at, plane in enumerate(placed.plane):
        if plane >= 0:
            columns, into_columns = _pixels(placed.columns[at], planes.shape[0])
            rows, into_rows = _pixels(placed.rows[at], planes.shape[1])
            found[at, into_rows[:, None], into_columns] = stack[plane][rows[:, None], columns]
    labelled, kept = np.count_nonzero(stack), np.count_nonzero(found)
    if labelled and not kept:
        raise ScanError(
            f"{name}: none of its {labelled} labelled voxels lies in the image; it belongs to another", "outside_image"
        )
    if placed.off > ALIGNED:
        logger.warning("%s: lies on other voxels than the image; each voxel takes the nearest of its labels", name)
    elif kept < labelled:
        logger.warning("%s: %d of %d labelled voxels lie beyond the image", name, labelled - kept, labelled)
    return np.moveaxis(found, (0, 1, 2), (k, j, i))


def fits(planes: Planes, grid: Geometry) -> bool:
    """Whether every plane lies on a slice of ``grid`` and every pixel on a voxel."""
    try:
        placed = place(planes, grid, "")
    except ScanError:
        return False
    size = (grid.shape[placed.axes[0]], grid.shape[placed.axes[1]])
    every = set(placed.plane[placed.plane >= 0].tolist()) == set(range(len(planes.origins)))
    return placed.off <= ALIGNED and every and size == planes.shape


def own_grid(planes: Planes, name: str) -> Geometry:
    """The grid that planes span by themselves; those that are missing between the first and the last are slices too.

    Raises:
        ScanError: ``uneven_slices`` where they lie on no even grid; ``unreadable`` where it would be absurdly large.
    """
    step = _slab(planes, planes.thickness)
    places = (planes.depths - planes.depths[0]) / step
    count = round(float(places[-1])) + 1
    if count * planes.shape[0] * planes.shape[1] > MOST_VOXELS:
        raise ScanError(f"{name}: its planes span {float(np.ptp(planes.depths)):.4g} mm, {count} slices; it is damaged")
    straight = planes.origins[0] + places[:, None] * step * planes.axes[2]
    if max(np.abs(places - np.rint(places)).max(), np.abs(straight - planes.origins).max() / min(planes.spacing)) > 0.1:
        raise ScanError(f"{name}: its planes lie on no even grid; read it with its image", "uneven_slices")
    affine = np.eye(4)
    affine[:3, :3] = planes.axes.T * [*planes.spacing, step]
    affine[:3, 3] = planes.origins[0]
    return Geometry((*planes.shape, count), affine)


def _slab(planes: Planes, otherwise: float) -> float:
    """mm along the normal that one plane stands for: what the file says, else ``otherwise``; planes do not overlap."""
    return min(planes.step or otherwise, planes.least_gap)


def _pixels(found: Array, length: int) -> tuple[Array, Array]:
    """The pixel that each voxel centre lies in, and which voxels these are: those in the field of view."""
    pixel = np.floor(found + 0.5).astype(np.intp)
    voxels = np.flatnonzero((pixel >= 0) & (pixel < length))
    return pixel[voxels], voxels
