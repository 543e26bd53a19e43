"""Boxes that several windows, mirrorings and ensemble members found become one set, each lesion once: numpy alone.

Owns the three ways of fusing (suppression, its soft form, weighted clustering) and the merger that counts how many views could
have seen a box. Boxes are ``(N, 2·D)`` as in `medseg.structures.Boxes`, of any D, and boxes of different labels never meet. Knows
nothing of networks, anchors or the scan's own grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from medseg.errors import MedsegError
from medseg.structures import Boxes
from medseg.volume import Array

Fusion = Literal["wbc", "nms", "soft_nms"]
"""Weighted box clustering, non-maximum suppression, and its soft form."""
Fused = tuple[Array, Array, Array]
"""``boxes`` (K, 2·D), ``scores`` (K,) and ``labels`` (K,), by falling score."""

CLUSTER = 0.5
"""Overlap above which boxes are averaged, unless another is asked for."""
SPREAD_OF = 300
"""Boxes of a case, the surest ones, of which is worked out how far the views disagree."""
RIM = 1 / 4
"""A box this share of the window or more away from its rim counts in full …"""
RIM_FLOOR = 0.01
"""… and one that touches the rim, where it is probably cut, counts this much."""


def nms(boxes: Array, scores: Array, labels: Array, iou: float) -> Fused:
    """The best box of every group whose members overlap it with an IoU above ``iou``; the others are dropped.

    Args:
        boxes: ``(N, 2·D)``.
        scores: ``(N,)``, 0 to 1.
        labels: ``(N,)`` int.
        iou: 0 to below 1; 0 groups whatever overlaps at all.

    Raises:
        MedsegError: the arrays do not fit each other, ``iou`` is out of range, or a number is NaN or infinite.
    """
    boxes, scores, labels = _checked(boxes, scores, labels, iou)
    best, _, _ = _grouped(boxes, scores, labels, iou)
    return _by_score(boxes[best], scores[best], labels[best])


def soft_nms(boxes: Array, scores: Array, labels: Array, iou: float, *, floor: float = 1e-3) -> Fused:
    """Every box, its score times ``1 − IoU`` for each better box that overlaps it with an IoU above ``iou``.

    Bodla et al. 2017, "Soft-NMS", equation of section 3 (linear form). Arguments and errors are those of `nms`.

    Args:
        floor: boxes whose score falls below this are dropped.
    """
    boxes, scores, labels = _checked(boxes, scores, labels, iou)
    kept_boxes, kept_scores, kept_labels = [], [], []
    for label in np.unique(labels):
        line = _Line(boxes[labels == label], scores[labels == label], iou)
        value = line.scores.copy()
        while value[best := int(value.argmax())] >= floor:
            kept_boxes.append(line.boxes[best])
            kept_scores.append(value[best])
            kept_labels.append(label)
            value[best] = -np.inf
            near, overlap = line.overlapping(best, value >= floor)
            value[near] *= 1 - overlap
    if not kept_boxes:
        return boxes[:0], scores[:0], labels[:0]
    return _by_score(np.stack(kept_boxes), np.array(kept_scores), np.array(kept_labels, labels.dtype))


def weighted_box_clustering(
    boxes: Array,
    scores: Array,
    labels: Array,
    *,
    iou: float,
    views: Array | int = 1,
    weight: Array | None = None,
    source: Array | None = None,
) -> Fused:
    """One box a cluster, its coordinates and score averaged over what the views say (Jaeger et al. 2018, "Retina U-Net").

    Clusters are those of `nms`: the best box and all that overlap it with an IoU above ``iou``, where the best is the one of the
    highest s·p, so that a box cut by its window never leads one that is whole. A box of score s and coordinates
    c weighs ``w = f · a · p``: f its IoU with the best box, a its volume, p its ``weight``. Then (section 2 of the paper)::

        c = Σ c·s·w / Σ s·w          score = Σ s·w / (Σ w + n_missing · mean(w))

    ``n_missing`` is the number of views that should have found the box, less those that did: a view without a box votes 0. What
    should have found it is the mean of ``views`` over the members. Where a view has several boxes in one cluster (neighbouring
    anchors), all move the coordinates, but only the best of them votes on the score; the paper averages all.

    Args:
        boxes, scores, labels, iou: as for `nms`.
        views: how many views (windows × mirrorings × members) could have seen each box, ``(N,)`` or one number for all.
        weight: ``(N,)`` above 0: how much each box counts for where it lies in its window; by default all the same.
        source: ``(N,)`` int, the view that each box comes from; by default each box is a view's only one.

    Raises:
        MedsegError: as for `nms`.
    """
    boxes, scores, labels = _checked(boxes, scores, labels, iou)
    place = np.ones(len(boxes)) if weight is None else np.asarray(weight, np.float64)
    best, cluster, overlap = _grouped(boxes, scores * place, labels, iou)
    w = overlap * np.prod(_upper(boxes) - _lower(boxes), axis=1) * place
    expected = np.broadcast_to(np.asarray(views, np.float64), scores.shape)

    vote = _best_of_each(cluster, np.arange(len(boxes)) if source is None else np.asarray(source), scores, w)
    voted = cluster[vote]

    def over_votes(values: Array) -> Array:
        return np.bincount(voted, values[vote], minlength=len(best))

    found = over_votes(np.ones(len(boxes)))
    missing = np.maximum(over_votes(expected) / found - found, 0)
    score = over_votes(scores * w) / (over_votes(w) * (1 + missing / found))

    pull = w * np.maximum(scores, 1e-12)  # boxes of score 0 have a mean place too
    total = np.bincount(cluster, pull, minlength=len(best))
    columns = [np.bincount(cluster, pull * column, minlength=len(best)) / total for column in boxes.T]
    return _by_score(np.stack(columns, axis=1), score, labels[best])


def rim_weight(boxes: Array, lower: Sequence[int], patch: Sequence[int], shape: Sequence[int]) -> Array:
    """``(N,)``: 1 for boxes well inside their window, falling linearly to `RIM_FLOOR` for those that touch its rim.

    Only a rim that lies inside the grid counts: beyond the border of the scan there is nothing that the window misses.

    Args:
        boxes: ``(N, 2·D)`` in voxels of the grid.
        lower, patch: first voxel and size of the window.
        shape: of the grid.
    """
    low, size = np.asarray(lower, np.float64), np.asarray(patch, np.float64)
    before = np.where(low > 0, _lower(boxes) - low, np.inf)
    after = np.where(low + size < np.asarray(shape), low + size - _upper(boxes), np.inf)
    share = np.minimum(before, after) / (RIM * size)
    return np.asarray(np.clip(share.min(axis=1), RIM_FLOOR, 1.0))


class BoxMerger:
    """The boxes of all views of one case on one grid; what `medseg.tasks.base.Merger` is for outputs that are boxes.

    Every answer of a network is a view: a window, once for each mirroring and each member. A view that found nothing must be
    added too, since its silence speaks against what the others found there.

    Args:
        shape: the plan's grid.
        fusion: how boxes that overlap become one.
        iou: boxes that overlap by more than this are taken for the same lesion.
        cluster: of clustering, the overlap above which boxes are averaged. Only views that agree make a box more exact; of the
            averages that still overlap by more than ``iou``, as one that a window has cut does with the whole, the surest stays.

    Raises:
        MedsegError: ``fusion`` is unknown, or ``iou`` or ``cluster`` out of range.
    """

    def __init__(
        self, shape: Sequence[int], *, fusion: Fusion = "wbc", iou: float = 0.2, cluster: float = CLUSTER
    ) -> None:
        if fusion not in get_args(Fusion):
            raise MedsegError(f"boxes: fusion {fusion!r}; expected one of {', '.join(get_args(Fusion))}")
        _check_iou(iou)
        _check_iou(cluster)
        self._shape = tuple(int(n) for n in shape)
        self._fusion, self._iou, self._cluster = fusion, iou, cluster
        self._windows: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
        self._views: list[tuple[Array, Array, Array, Array]] = []

    def add(self, candidates: Boxes, lower: Sequence[int], patch: Sequence[int]) -> None:
        """Take what one view found in the window of size ``patch`` whose first voxel is ``lower`` (may be negative).

        Args:
            candidates: with scores, in voxels of the window, already mirrored back. What reaches beyond the grid is cut.

        Raises:
            MedsegError: there are no scores, or a number is NaN or infinite.
        """
        if candidates.scores is None:
            raise MedsegError("boxes: expected a score for each box that is to be fused, found none")
        start = np.asarray(lower, np.float64)
        boxes, scores, labels = _checked(candidates.boxes, candidates.scores, candidates.labels, self._iou)
        if boxes.shape[1] != 2 * len(self._shape):
            raise MedsegError(f"boxes: found {boxes.shape[1]} coordinates a box on a grid of {len(self._shape)} axes")
        boxes = np.clip(boxes + np.tile(start, 2), 0, np.tile(np.asarray(self._shape, np.float64), 2))
        inside = (_upper(boxes) > _lower(boxes)).all(axis=1)
        weight = rim_weight(boxes, lower, patch, self._shape)
        self._windows[tuple(int(v) for v in lower), tuple(int(v) for v in patch)] += 1
        self._views.append((boxes[inside], scores[inside], labels[inside], weight[inside]))

    def result(self) -> Boxes:
        """The fused boxes in voxels of the grid, with scores and how far the views disagree, by falling score."""
        if not self._views:
            return Boxes(np.zeros((0, 2 * len(self._shape))), np.zeros(0, np.int64), np.zeros(0))
        boxes, scores, labels, weight = (np.concatenate(part) for part in zip(*self._views, strict=True))
        source = np.repeat(np.arange(len(self._views)), [len(view[1]) for view in self._views])
        if self._fusion == "wbc":
            fused = weighted_box_clustering(
                boxes, scores, labels, iou=self._cluster, views=self._covering(boxes), weight=weight, source=source
            )
            fused = nms(*fused, self._iou)
        else:
            fused = (nms if self._fusion == "nms" else soft_nms)(boxes, scores, labels, self._iou)
        spread = self._spread(fused, boxes, scores, labels, source)
        return Boxes(fused[0], fused[2], fused[1], spread)

    def _spread(self, fused: Fused, boxes: Array, scores: Array, labels: Array, source: Array) -> Array:
        """``(K,)``: standard deviation over the views that cover a fused box of the best score that each gives it, 0 where none
        of its boxes overlaps it by `CLUSTER`; NaN beyond the surest `SPREAD_OF`, which nobody looks at."""
        spread = np.full(len(fused[1]), np.nan)
        views = self._covering(fused[0][:SPREAD_OF])
        for label in np.unique(fused[2][:SPREAD_OF]):
            own = labels == label
            theirs, said, by = boxes[own], scores[own], source[own]
            for at in np.flatnonzero(fused[2][:SPREAD_OF] == label):
                same = _overlaps(fused[0][at], theirs) >= CLUSTER
                best = np.zeros(len(self._views))
                np.maximum.at(best, by[same], said[same])
                # The views that do not cover the box are among those that gave it nothing.
                mean, square = best.sum() / views[at], (best**2).sum() / views[at]
                spread[at] = max(square - mean**2, 0.0) ** 0.5
        return spread

    def _covering(self, boxes: Array) -> Array:
        """``(N,)``: how many views cover the centre of each box; at least the one that found it."""
        centre = (_lower(boxes) + _upper(boxes)) / 2
        count = np.zeros(len(boxes))
        for (lower, patch), views in self._windows.items():
            start = np.asarray(lower)
            count += views * ((centre >= start) & (centre < start + np.asarray(patch))).all(axis=1)
        return np.maximum(count, 1)


def _overlaps(one: Array, boxes: Array) -> Array:
    """``(N,)``: IoU of one box with others."""
    half = len(one) // 2
    edge = np.minimum(boxes[:, half:], one[half:]) - np.maximum(boxes[:, :half], one[:half])
    shared = np.maximum(edge, 0).prod(axis=1)
    volumes = np.prod(boxes[:, half:] - boxes[:, :half], axis=1) + np.prod(one[half:] - one[:half])
    return np.asarray(shared / (volumes - shared))


class _Line:
    """Boxes of one class, sorted by their centres along the axis on which they are spread most, so that few are compared.

    An IoU above t holds along each axis alone, and there it bounds the distance of the centres by ``l · (1 − t) / 2t`` for a box
    of length l: the candidates of every box are one stretch of the line.
    """

    def __init__(self, boxes: Array, scores: Array, iou: float) -> None:
        length = _upper(boxes) - _lower(boxes)
        centre = (_lower(boxes) + _upper(boxes)) / 2
        axis = int(np.argmax(np.ptp(centre, axis=0) / length.mean(axis=0)))
        ranked = _ranked(boxes, scores)
        along = np.argsort(centre[ranked, axis], kind="stable")
        self.order = ranked[along]
        """Where each box of the line stood in the input."""
        self.best_first = np.argsort(along)
        """Places on the line, by falling score."""
        self.boxes, self.scores = boxes[self.order], scores[self.order]
        self._iou = iou
        # Axes first: every operation then runs along memory.
        self._low, self._high = _lower(self.boxes).T.copy(), _upper(self.boxes).T.copy()
        self._volume = np.prod(self._high - self._low, axis=0)
        middle = centre[self.order, axis]
        reach = length[self.order, axis] * ((1 - iou) / (2 * iou) if iou > 0 else np.inf)
        self._first = np.searchsorted(middle, middle - reach * (1 + 1e-9), "left")
        self._last = np.searchsorted(middle, middle + reach * (1 + 1e-9), "right")

    def overlapping(self, one: int, free: Array) -> tuple[Array, Array]:
        """Those of the ``free`` (N,) boxes whose IoU with box ``one`` is above the threshold, and that IoU."""
        first = self._first[one]
        near = first + np.flatnonzero(free[first : self._last[one]])
        edge = np.minimum(self._high[:, near], self._high[:, one, None])
        edge -= np.maximum(self._low[:, near], self._low[:, one, None])
        shared = np.maximum(edge, 0, out=edge).prod(axis=0)
        overlap = shared / (self._volume[near] + self._volume[one] - shared)
        above = np.flatnonzero(overlap > self._iou)
        return near[above], overlap[above]


def _grouped(boxes: Array, scores: Array, labels: Array, iou: float) -> tuple[Array, Array, Array]:
    """Greedy groups: ``best`` (K,) index of each group's best box; ``group`` (N,) of each box; its IoU (N,) with the best."""
    best: list[int] = []
    group, overlap = np.zeros(len(boxes), np.int64), np.ones(len(boxes))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        line = _Line(boxes[of_class], scores[of_class], iou)
        name = of_class[line.order]
        free = np.ones(len(name), bool)
        for one in line.best_first:
            if free[one]:
                members, ious = line.overlapping(one, free)
                free[members] = False
                group[name[members]], overlap[name[members]] = len(best), ious
                best.append(int(name[one]))
    return np.array(best, np.int64), group, overlap


def _best_of_each(group: Array, source: Array, scores: Array, weight: Array) -> Array:
    """Indices of the best box of every source in every group; of equal ones, that which weighs most."""
    order = np.lexsort((-weight, -scores, source, group))
    new = (np.diff(group[order], prepend=-1) != 0) | (np.diff(source[order], prepend=-1) != 0)
    return np.asarray(order[new])


def _ranked(boxes: Array, scores: Array) -> Array:
    """The order of falling score; boxes of the same score by their coordinates, so that the order of input does not matter."""
    return np.lexsort((*boxes.T, -scores))


def _by_score(boxes: Array, scores: Array, labels: Array) -> Fused:
    order = _ranked(np.column_stack([labels, boxes]), scores)
    return boxes[order], scores[order], labels[order]


def _lower(boxes: Array) -> Array:
    return boxes[:, : boxes.shape[1] // 2]


def _upper(boxes: Array) -> Array:
    return boxes[:, boxes.shape[1] // 2 :]


def _check_iou(iou: float) -> None:
    if not 0 <= iou < 1:
        raise MedsegError(f"boxes: iou {iou}; expected the overlap above which two boxes are one lesion, 0 to below 1")


def _checked(boxes: Array, scores: Array, labels: Array, iou: float) -> Fused:
    """The arrays as float64, float64 and int64."""
    _check_iou(iou)
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    labels = np.asarray(labels, np.int64)
    if boxes.ndim != 2 or boxes.shape[1] % 2 or {scores.shape, labels.shape} != {(len(boxes),)}:
        raise MedsegError(
            f"boxes: expected (N, 2·D) boxes, N scores and N labels, found {boxes.shape}, {scores.shape}, {labels.shape}"
        )
    broken = ~(np.isfinite(scores) & np.isfinite(boxes).all(axis=1))
    if broken.any():
        raise MedsegError(
            f"boxes: {int(broken.sum())} of {len(boxes)} have a score or an edge that is NaN or infinite: the network's weights "
            "are broken, or its number format is too narrow (try runtime.precision=float32)"
        )
    if not (_upper(boxes) > _lower(boxes)).all():
        raise MedsegError("boxes: a box has no extent along some axis; leave such boxes out before fusing")
    return boxes, scores, labels
