"""Polygons on a plane of voxels become masks, by one rule: a voxel belongs if its centre lies inside. Plain geometry.

Inside is even-odd over all polygons of a plane together: a contour within a contour is a hole, and a hole may as well be
reached by a keyhole, whose two banks cancel. A centre on the boundary is inside on the side of smaller indices and outside
on the other (half-open), so that polygons which share an edge share no voxel and leave none out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.volume import Array


def inside(polygons: Sequence[Array], shape: tuple[int, int]) -> Array:
    """Which voxel centres of a plane lie inside closed polygons, ``shape`` bool.

    A line of voxels along the first axis starts outside and changes sides wherever an edge crosses it. An edge from y₀ to
    y₁ crosses the lines y₀ ≤ j < y₁.

    Args:
        polygons: ``(N, 2)`` vertices each, in voxel indices (centres are whole numbers); the last is joined to the first.
    """
    found = np.zeros(shape[::-1], bool)
    if not polygons:
        return found.T
    edges = [np.concatenate([vertices, np.roll(vertices, -1, axis=0)], axis=1) for vertices in polygons]
    lines, columns = _crossings(np.concatenate(edges), shape)
    if len(lines):
        top, left, right = lines.min(), columns.min(), columns.max()
        changes = np.zeros((lines.max() - top + 1, right - left + 1), np.uint8)  # only odd or even matters
        np.add.at(changes, (lines - top, columns - left), 1)
        sides = np.add.accumulate(changes, axis=1, dtype=np.uint8) & 1
        found[top : lines.max() + 1, left:right] = sides[:, :-1]
    return found.T


def _crossings(edges: Array, shape: tuple[int, int]) -> tuple[Array, Array]:
    """Line and first voxel behind the crossing, for each crossing of ``edges`` (N, 4: x₀ y₀ x₁ y₁) and a line of voxels."""
    downward = edges[:, 1] > edges[:, 3]  # an edge is met at the same place whichever way it runs
    edges = np.where(downward[:, None], edges[:, [2, 3, 0, 1]], edges)
    x0, y0, x1, y1 = edges.T
    first = np.ceil(np.clip(y0, 0, shape[1])).astype(np.intp)
    last = np.ceil(np.clip(y1, 0, shape[1])).astype(np.intp)
    count = last - first
    edge = np.repeat(np.arange(len(edges)), count)
    line = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    x = x0[edge] + (line - y0[edge]) / (y1[edge] - y0[edge]) * (x1[edge] - x0[edge])
    return line, np.ceil(np.clip(x, 0, shape[0])).astype(np.intp)


def between(lower: Array, upper: Array, weight: float, spacing: Sequence[float]) -> Array:
    """The shape between two shapes, by signed distances (Raya & Udupa 1990, "Shape-based interpolation").

    Args:
        lower, upper: bool masks of two planes.
        weight: 0 at ``lower``, 1 at ``upper``.
        spacing: of the voxels of a plane, in mm.
    """
    if not (lower.any() and upper.any()):
        return np.zeros_like(lower)
    window = tuple(
        slice(max(s.start - 1, 0), s.stop + 1) for s in ndimage.find_objects((lower | upper).view(np.uint8))[0]
    )
    found = np.zeros_like(lower)
    one, two = _signed_distance(lower[window], spacing), _signed_distance(upper[window], spacing)
    found[window] = (1 - weight) * one + weight * two > 0
    return found


def _signed_distance(mask: Array, spacing: Sequence[float]) -> Array:
    """mm to the boundary halfway between the voxels on its two sides; positive inside."""
    within = np.pad(mask, 1)
    distance = ndimage.distance_transform_edt(within, spacing) - ndimage.distance_transform_edt(~within, spacing)
    return np.asarray(distance[1:-1, 1:-1] - np.sign(distance[1:-1, 1:-1]) * min(spacing) / 2)
