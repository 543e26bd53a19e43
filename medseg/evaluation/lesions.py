"""Lesions of a mask: connected components with 26 neighbours (8 in a picture), and how two sets of them are matched.

Nothing here knows what a lesion is made of or in which unit it is measured: components are counted in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.volume import Array

SMALLEST_IOU = 0.1
"""Overlap from which a predicted lesion counts as the true one: low, because finding is asked for here, not outlining."""


def components(mask: Array) -> tuple[Array, int]:
    """The lesions of a binary mask.

    Args:
        mask: ``(*S)`` boolean.

    Returns:
        ``(*S)`` int32 with 1…n in scan order and 0 elsewhere, and n.
    """
    labelled, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim, bool))
    return labelled, int(count)


def component_sizes(labelled: Array, count: int) -> Array:
    """``(count,)`` voxels of each component of `components`, the first being component 1."""
    return np.bincount(labelled.ravel(), minlength=count + 1)[1:]


def bounding_box(mask: Array) -> tuple[slice, ...] | None:
    """The smallest window that holds every True of ``mask``; None if there is none."""
    window = []
    for axis in range(mask.ndim):
        at = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(at):
            return None
        window.append(slice(int(at[0]), int(at[-1]) + 1))
    return tuple(window)


def match_lesions(
    predicted: Array, truth: Array, counts: Sequence[int], smallest_iou: float = SMALLEST_IOU
) -> list[tuple[int, int]]:
    """Pairs of predicted and true lesions that count as the same, each lesion in one pair at most.

    Pairs are taken by falling intersection over union, down to ``smallest_iou`` (ties: lower ids first). One prediction
    that covers two lesions therefore finds one of them, and two predictions of one lesion leave a false one.

    Args:
        predicted, truth: ``(*S)`` component ids, 0 is background.
        counts: number of components of ``predicted`` and of ``truth``.

    Returns:
        ``(predicted id, true id)`` by falling intersection over union.
    """
    n_pred, n_gt = counts
    if not n_pred or not n_gt:
        return []
    both = (predicted > 0) & (truth > 0)
    keys, shared = np.unique(predicted[both].astype(np.int64) * (n_gt + 1) + truth[both], return_counts=True)
    first, second = keys // (n_gt + 1), keys % (n_gt + 1)
    union = component_sizes(predicted, n_pred)[first - 1] + component_sizes(truth, n_gt)[second - 1] - shared
    iou = shared / union
    pairs: list[tuple[int, int]] = []
    taken_pred, taken_gt = set(), set()
    for i in np.argsort(-iou, kind="stable"):
        p, t = int(first[i]), int(second[i])
        if iou[i] >= smallest_iou and p not in taken_pred and t not in taken_gt:
            pairs.append((p, t))
            taken_pred.add(p)
            taken_gt.add(t)
    return pairs
