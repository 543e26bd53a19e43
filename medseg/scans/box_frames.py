"""Boxes from one frame to another: voxel edges of a grid, world-aligned boxes in mm, voxel edges of another grid.

A box is two opposite corners, so that it stays a box where axes are only permuted and reversed; on a grid that lies askew
the smallest box around its corners is taken. Nothing here knows labels or files.
"""

from __future__ import annotations

import numpy as np

from medseg.volume import Array, Geometry

_DECIMALS = 6
"""Millionths of a voxel are kept: there and back again, whole edges are whole."""


def world_boxes(boxes: Array, geometry: Geometry) -> Array:
    """The smallest world-aligned boxes ``(N, 2·D)`` (RAS+, mm or px) around boxes ``(N, 2·D)`` in voxel edges of ``geometry``."""
    return _around(geometry.to_world(_corners(boxes) - 0.5))


def grid_boxes(world: Array, geometry: Geometry) -> Array:
    """The smallest boxes ``(N, 2·D)`` in voxel edges of ``geometry`` around world-aligned boxes ``(N, 2·D)`` (RAS+, mm or px)."""
    return np.round(_around(geometry.to_index(_corners(world)) + 0.5), _DECIMALS)


def moved(boxes: Array, source: Geometry, target: Geometry) -> Array:
    """Boxes ``(N, 2·D)`` in voxel edges of ``source`` as the smallest boxes around them in voxel edges of ``target``."""
    corners = target.to_index(source.to_world(_corners(boxes) - 0.5)) + 0.5
    return np.round(_around(corners), _DECIMALS)


def world_extent(geometry: Geometry) -> Array:
    """``(2·D,)``: the smallest world-aligned box around a whole grid."""
    whole = np.array([[*[0.0] * geometry.dimensions, *geometry.shape]])
    return world_boxes(whole, geometry)[0]


def _corners(boxes: Array) -> Array:
    """``(N, 2·D)`` → ``(N, 2^D, D)``."""
    dimensions = boxes.shape[1] // 2
    ends = np.asarray(boxes, np.float64).reshape(-1, 2, dimensions)
    which = np.stack(np.meshgrid(*[(0, 1)] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    return ends[:, which, np.arange(dimensions)]


def _around(points: Array) -> Array:
    """``(N, P, D)`` → the smallest boxes ``(N, 2·D)`` that hold each P points."""
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)
