"""Boxes as numbers: how large they are, how much they overlap, and which found box is which true one.

Boxes are ``(N, 2·D)`` half-open edges of one grid, as in `medseg.structures`. An overlap does not depend on the spacing, so
nothing here needs to know it except lengths. No scores, labels or cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.volume import Array


def box_volumes(boxes: Array) -> Array:
    """``(N,)`` voxels (pixels) that each box holds."""
    lower, upper = np.split(np.asarray(boxes, np.float64), 2, axis=1)
    return np.prod(upper - lower, axis=1)


def longest_edges(boxes: Array, spacing: Sequence[float]) -> Array:
    """``(N,)`` length of each box's longest edge in the unit of ``spacing``: the nearest a box has to a diameter."""
    lower, upper = np.split(np.asarray(boxes, np.float64), 2, axis=1)
    return ((upper - lower) * spacing).max(axis=1)


def iou_matrix(first: Array, second: Array) -> Array:
    """``(N, M)`` intersection over union of every box of ``first`` (N, 2·D) with every box of ``second`` (M, 2·D)."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    axes = first.shape[1] // 2
    shared = np.ones((len(first), len(second)))
    for axis in range(axes):  # one axis at a time: no (N, M, D) array
        lower = np.maximum(first[:, None, axis], second[None, :, axis])
        upper = np.minimum(first[:, None, axis + axes], second[None, :, axis + axes])
        shared *= np.maximum(upper - lower, 0.0)
    union = box_volumes(first)[:, None] + box_volumes(second)[None, :] - shared
    return shared / union


def match_boxes(iou: Array, smallest: Sequence[float]) -> Array:
    """Which true box each found box is, at several overlaps at once: the rule of COCO (`pycocotools.cocoeval`).

    Found boxes choose in their order (falling score): each takes, of the true boxes that are still free, the one that it
    overlaps most, if by ``smallest`` or more (of equal ones the last). So a second box on a found lesion is a false one, and
    the surest boxes alone are matched as they are among all.

    Args:
        iou: ``(P, G)`` of found and true boxes.
        smallest: ``T`` overlaps above 0.

    Returns:
        ``(T, P)`` index of the true box, -1 for a false one.
    """
    needed = np.minimum(np.asarray(smallest, np.float64), 1 - 1e-10)[:, None]
    found, true = iou.shape
    partners = np.full((len(needed), found), -1)
    if not true:
        return partners
    free = np.ones((len(needed), true), bool)
    rows = np.arange(len(needed))
    for p in np.flatnonzero(iou.max(axis=1) >= needed.min()):
        open_to_it = free & (iou[p] >= needed)
        best = true - 1 - np.where(open_to_it, iou[p], -1.0)[:, ::-1].argmax(axis=1)
        taken = open_to_it[rows, best]
        partners[taken, p] = best[taken]
        free[rows[taken], best[taken]] = False
    return partners
