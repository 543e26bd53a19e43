"""The outlines of a mask on a plane of pixels, as polygons that a pixel-centre rule turns back into exactly the same mask.

Polygons run along the edges of the pixels: every centre is half a pixel away from them, so that rounding moves none to the
other side, and they enclose just the area of the pixels, so that a volume measured on contours is that of the mask. A region
whose pixels touch by an edge is one polygon; its holes are reached by keyholes, channels without width that are walked in
both directions. The polygons of a plane therefore never overlap, and it does not matter whether a reader fills each by
itself or all of them together by the even-odd rule. Plain geometry: knows neither millimetres nor DICOM.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medseg.volume import Array

_EAST, _WEST = 0, 2  # directions count clockwise: east, south, west, north; rows grow to the south
_RIGHT, _STRAIGHT, _LEFT, _BACK = 1, 0, 3, 2


def outlines(mask: Array) -> list[Array]:
    """The polygons around the pixels of a mask.

    Args:
        mask: ``(rows, columns)`` bool.

    Returns:
        ``(N, 2)`` float64 vertices of each polygon as (column, row), where pixel centres are whole numbers, so that all
        vertices end in .5; the last is joined to the first. Nothing for an empty mask.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    window = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    ends = _boundary(window)
    _cut_keyholes(window, ends)
    corner = np.array([left - 1.5, top - 1.5])  # of the first pixel of the window
    width = window.shape[1] + 1
    return [np.stack([at % width, at // width], axis=1) + corner for at in _cycles(ends)]


def _boundary(window: Array) -> Array:
    """The directed edges between the pixels inside and those outside, inside on the right.

    Vertices are the corners of the pixels of ``window``, whose outer pixels are outside, numbered row by row.

    Returns:
        ``(vertices · 4,)``: for each vertex and direction the vertex at which the edge that leaves it ends, −1 without one.
    """
    rows, columns = window.shape
    width = columns + 1
    ends = np.full((rows + 1, width, 4), -1)
    vertex = np.arange((rows + 1) * width).reshape(rows + 1, width)
    above, below, before, behind = window[:-1], window[1:], window[:, :-1], window[:, 1:]
    horizontal, vertical = vertex[1:-1, :], vertex[:, 1:-1]
    edges = (
        (below & ~above, horizontal[:, :-1], horizontal[:, 1:]),
        (before & ~behind, vertical[:-1], vertical[1:]),
        (above & ~below, horizontal[:, 1:], horizontal[:, :-1]),
        (behind & ~before, vertical[1:], vertical[:-1]),
    )
    flat = ends.reshape(-1, 4)
    for direction, (there, starts, stops) in enumerate(edges):
        flat[starts[there], direction] = stops[there]
    return ends.reshape(-1)


def _cut_keyholes(window: Array, ends: Array) -> None:
    """Join each hole to the boundary west of its first pixel, by an edge there and one back, in ``ends``.

    The channel runs along the north side of the hole's northernmost row, from the westernmost pixel there to the first
    vertex of any boundary. That lies on the outside or on a hole whose own first pixel comes earlier, so that all holes
    hang together with the outside in the end.
    """
    outside, count = ndimage.label(~window, structure=np.ones((3, 3), bool))
    if count == 1:
        return
    pixels = np.flatnonzero(outside > 1)
    _, first = np.unique(outside.flat[pixels], return_index=True)
    row, column = np.unravel_index(pixels[first], window.shape)
    hole = row * (window.shape[1] + 1) + column
    vertices = np.flatnonzero((ends.reshape(-1, 4) >= 0).any(axis=1))
    west = vertices[np.searchsorted(vertices, hole) - 1]
    ends[4 * west + _EAST] = hole
    ends[4 * hole + _WEST] = west


def _cycles(ends: Array) -> list[Array]:
    """The vertices at which each closed walk along the edges turns; at every vertex it keeps as far right as it can.

    So it stays on the side of its own pixels where others touch them by a corner, and follows every channel.
    """
    edges = np.flatnonzero(ends >= 0)
    direction, stop = edges % 4, ends[edges]
    following = np.empty_like(edges)
    for turn in (_BACK, _LEFT, _STRAIGHT, _RIGHT):
        leaving = 4 * stop + (direction + turn) % 4
        there = ends[leaving] >= 0
        following[there] = leaving[there]
    turns = following % 4 != direction
    successor = np.searchsorted(edges, following).tolist()
    walked = bytearray(len(edges))
    found = []
    for start in range(len(edges)):
        if walked[start]:
            continue
        walk, at = [], start
        while not walked[at]:
            walked[at] = 1
            walk.append(at)
            at = successor[at]
        path = np.array(walk)
        found.append(stop[path[turns[path]]])
    return found
