"""Lesions of a mask: connected components with 26 neighbours (8 in a picture), and how two sets of them are matched.

Nothing here knows what a lesion is made of or in which unit it is measured: components are counted in voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage, sparse

from medseg.structures import LabelTable
from medseg.volume import Array

_SLAB = 1 << 25
"""Voxels whose components are numbered at once."""
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


def count_components(mask: Array) -> int:
    """How many components `components` finds in ``(*S)`` boolean, slab by slab: numbering all takes four times the mask."""
    return int(_joined(mask).max(initial=0))


def component_slabs(mask: Array) -> Iterator[tuple[int, Array]]:
    """The components of ``(*S)`` boolean slab by slab along the last axis, each slab no larger than memory should hold.

    Yields:
        the first plane of a slab, and its ``(*slab)`` integers: 1…n over all slabs, 0 elsewhere.
    """
    if mask.size <= _SLAB or mask.ndim < 3:
        yield 0, components(mask)[0]
        return
    numbers, count = np.concatenate([[0], _joined(mask)]), 0
    for first, slab in _slabs(mask):
        labelled, found = components(slab)
        own = np.concatenate([[0], numbers[1 + count : 1 + count + found]]).astype(np.int32)
        yield first, own[labelled]
        count += found


def _joined(mask: Array) -> Array:
    """The component of the whole ``(*S)`` boolean, from 1, to which each component of each slab belongs, slab after slab.

    Two neighbouring slabs are joined where components of their touching planes are.
    """
    count = joints = 0
    links = [np.zeros((0, 2), np.int64)]
    plane: Array | None = None
    for _, slab in _slabs(mask):
        labelled, found = components(slab)
        here = np.where(labelled[..., 0] > 0, labelled[..., 0].astype(np.int64) + count, 0)
        if plane is not None:
            both = np.stack([plane, here])
            joined, parts = components(both > 0)
            pairs = np.stack([joined + joints, both], axis=-1)[joined > 0]
            links.append(np.unique(pairs, axis=0) - 1)
            joints += parts
        plane = np.where(labelled[..., -1] > 0, labelled[..., -1].astype(np.int64) + count, 0)
        count += found
    pairs = np.concatenate(links)
    nodes = count + joints
    graph = sparse.coo_array((np.ones(len(pairs), bool), (pairs[:, 0] + count, pairs[:, 1])), shape=(nodes, nodes))
    return 1 + np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1])[:count]


def _slabs(mask: Array) -> Iterator[tuple[int, Array]]:
    """Parts of ``mask`` along its last axis, and where each begins; a picture is one part."""
    planes = mask.shape[-1]
    thick = max(1, _SLAB * planes // max(mask.size, 1)) if mask.ndim == 3 else planes
    for first in range(0, planes, thick):
        yield first, mask[..., first : first + thick]


def component_sizes(labelled: Array, count: int) -> Array:
    """``(count,)`` voxels of each component of `components`, the first being component 1."""
    return np.bincount(labelled.ravel(), minlength=count + 1)[1:]


def label_windows(mask: Array, labels: LabelTable) -> dict[str, tuple[slice, ...]]:
    """The smallest window of ``(*S)`` integers around each label or region; those of which there is nothing are left out."""
    boxes, found = ndimage.find_objects(mask), {}
    for name, values in labels.targets.items():
        there = [box for value in values if value <= len(boxes) and (box := boxes[value - 1]) is not None]
        if there:
            sides = zip(*there, strict=True)
            found[name] = tuple(slice(min(s.start for s in side), max(s.stop for s in side)) for side in sides)
    return found


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
