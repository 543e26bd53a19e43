"""Lesions on their way to the plan's grid, into a training patch and back to the scan: boxes, and masks that number them.

Owns what becomes of a lesion that a crop cuts. Knows no network and no augmentation: whoever moves boxes hands them over moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from medseg.data.preprocess import Restoration
from medseg.data.resampling import resample_labels
from medseg.planning.plan import Plan
from medseg.scans.box_frames import moved
from medseg.structures import Boxes
from medseg.volume import Array

VISIBLE = 0.5
"""A lesion of whose box a crop shows this share or more is to be found there; of one that shows less, nothing is asked."""
_SAME = 1.0
"""Voxels by which a moved box and the box of the moved mask differ where both say the same."""


def preprocess_lesions(
    boxes: Boxes, numbered: Array | None, restoration: Restoration, plan: Plan
) -> tuple[Boxes, Array | None]:
    """Bring the lesions of the scan's own grid onto the plan's grid.

    Args:
        boxes: in voxel edges of the scan's own grid.
        numbered: ``restoration.scan.shape`` integers, n + 1 in the n-th lesion; None where there is no mask.

    Returns:
        The boxes in voxel edges of the plan's grid, to fractions of a voxel, and ``(1, *S)`` int16 numbered alike. What a crop
        to non-zero voxels cuts away of a box is lost; a box of which nothing is left keeps a sliver, so that numbers stay.
    """
    edges = moved(boxes.boxes, restoration.scan, restoration.geometry)
    placed = Boxes(_within(edges, restoration.shape), boxes.labels)
    if numbered is None:
        return placed, None
    kept = tuple(slice(low, u) for low, u in zip(restoration.lower, restoration.upper, strict=True))
    labels = np.ascontiguousarray(restoration.turn.apply(numbered)[kept], dtype=np.int16)
    if restoration.shape != labels.shape:
        labels = resample_labels(labels, ndimage.find_objects(labels), restoration.shape, plan.label_order)
    return placed, labels[None]


def restore_boxes(boxes: Boxes, restoration: Restoration) -> Boxes:
    """Boxes in voxel edges of the plan's grid → of the scan's own grid, cut off at its border; the inverse of the above."""
    edges = moved(boxes.boxes, restoration.geometry, restoration.scan)
    return replace(boxes, boxes=_within(edges, restoration.scan.shape))


def _within(edges: Array, shape: Sequence[int], sliver: float = 1e-3) -> Array:
    """Edges ``(N, 2·D)`` cut off at the border of a grid; every box keeps some extent."""
    size = np.asarray(shape, np.float64)
    low, high = np.split(edges, 2, axis=1)
    low = np.clip(low, 0, size - sliver)
    return np.concatenate([low, np.clip(high, low + sliver, size)], axis=1)


class Seen(NamedTuple):
    """The lesions of a patch, in its voxel edges: ``boxes`` (N, 2·D) to be found, their ``numbers`` (N,) from 0 among the case's
    lesions, and the visible parts ``cut`` (M, 2·D) of those that are cut too much to be judged."""

    boxes: Array
    numbers: Array
    cut: Array


def seen_in_patch(boxes: Array, numbered: Array | None, patch_size: Sequence[int]) -> Seen:
    """What a training patch shows of the lesions of a case.

    A lesion counts by what is seen of it: the visible part of its box, if that is `VISIBLE` of the box or more. Where there is
    a mask, each face lies where the mask ends, unless the moved box says the same to within a voxel: it knows fractions of one.

    Args:
        boxes: ``(N, 2·D)`` of all lesions of the case, moved into the patch, beyond which they may reach.
        numbered: ``(*patch)`` integers, n + 1 in the n-th lesion; None where there is no mask.
    """
    dimensions = len(patch_size)
    limits = np.tile(np.asarray(patch_size, np.float64), 2)
    inside = np.clip(boxes, 0, limits)
    lengths, shown = boxes[:, dimensions:] - boxes[:, :dimensions], inside[:, dimensions:] - inside[:, :dimensions]
    share = (np.clip(shown, 0, None) / lengths).prod(axis=1)
    found, cut = np.flatnonzero(share >= VISIBLE), (share > 0) & (share < VISIBLE)
    edges = inside[found]
    if numbered is not None:
        parts = ndimage.find_objects(numbered, max_label=len(boxes))
        for row, lesion in enumerate(found):
            if parts[lesion] is not None:
                of_mask = np.array(
                    [getattr(side, end) for end in ("start", "stop") for side in parts[lesion]], np.float64
                )
                edges[row] = np.where(np.abs(edges[row] - of_mask) <= _SAME, edges[row], of_mask)
    return Seen(edges, found, inside[cut])
