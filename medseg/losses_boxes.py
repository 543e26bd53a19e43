"""Losses of detection: which places answer for which lesion, how sure they are of it, and how far off their boxes are.

A builder such as `focal_giou` returns a `BoxLoss`, which compares the output of a head with the boxes of each sample. A head
with anchors is matched by ATSS, one without by the cells around each centre; in both, a lesion has a place unless another
lesion took it. All is computed in float32 even inside autocast. A sample without lesions is a sample like any other: all its
places are negative. What a place is, and how numbers become boxes, is the grid's (`medseg.networks.anchor_grid`); masks are
the business of `medseg.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import MedsegError

NEGATIVE, IGNORED = -1, -2
"""What a place is matched with that answers for no box, and one whose score is nobody's business."""


class Truth(NamedTuple):
    """The lesions of one sample, in voxels of the network's input.

    ``boxes`` (N, 2·D) float32 half-open edges, ``classes`` (N,) int64 from 0. A place centred in a box of ``ignore`` (M, 2·D)
    that answers for no lesion is not held to be empty either (lesions that are cut, or too small to be judged).
    """

    boxes: Tensor
    classes: Tensor
    ignore: Tensor | None = None


class Grid(Protocol):
    """What a loss asks of `medseg.networks.anchor_grid.AnchorGrid`."""

    @property
    def anchor_free(self) -> bool: ...
    @property
    def codes(self) -> str: ...
    @property
    def per_cell(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[tuple[int, ...], ...]: ...
    def places(self, shapes: Sequence[Sequence[int]], device: torch.device | None = None) -> list[Tensor]: ...
    def rows(self, levels: Sequence[Tensor]) -> Tensor: ...
    def decode(self, codes: Tensor, places: Tensor) -> Tensor: ...
    def encode(self, boxes: Tensor, places: Tensor) -> Tensor: ...


class BoxLoss(Protocol):
    """Scores a detector's output; training minimises the sum of what it returns."""

    def __call__(self, output: Mapping[str, Any], truth: Sequence[Truth], grid: Grid) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            output: ``scores`` and ``deltas`` (``faces``), lists of levels, any floating type (`medseg.networks.retina`).
            truth: one a sample.
            grid: the places of the head.
        """


def focal_giou(
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    score_weight: float = 1.0,
    giou_weight: float = 1.0,
    smooth_l1_weight: float = 0.0,
    candidates: int = 4,
    radius: float = 1.5,
    cells: float = 4.0,
) -> BoxLoss:
    """Sigmoid focal loss (Lin et al. 2017, equation 5) and GIoU: ``{"scores", "giou"}``, and ``"smooth_l1"`` where weighted.

    Args:
        alpha, gamma: weight of positives against negatives, and how much what is easy is discounted.
        score_weight, giou_weight, smooth_l1_weight: share of each term in the sum.
        candidates: cells a level among whose anchors ATSS chooses.
        radius: without anchors, how far in strides the cells that answer for a box lie from its centre at most.
        cells: without anchors, the mean side in cells of the boxes that a level is best for.

    Raises:
        MedsegError: a number out of its range.
    """
    return _BoxLoss(
        _Focal(alpha, gamma), score_weight=score_weight, giou_weight=giou_weight, smooth_l1_weight=smooth_l1_weight,
        candidates=candidates, radius=radius, cells=cells,
    )  # fmt: skip


def hard_negative_giou(
    *,
    sampled: int = 32,
    positive: float = 0.33,
    pool: float = 20.0,
    score_weight: float = 1.0,
    giou_weight: float = 1.0,
    smooth_l1_weight: float = 0.0,
    candidates: int = 4,
    radius: float = 1.5,
    cells: float = 4.0,
) -> BoxLoss:
    """Binary cross-entropy over positives and hard negatives, and GIoU, as in nnDetection (Baumgartner et al. 2021).

    Args:
        sampled: places a sample, of which the share ``positive`` at most answers for a lesion.
        pool: negatives are drawn from this many times as many with the highest scores.

    Other arguments, terms and errors are those of `focal_giou`.
    """
    return _BoxLoss(
        _HardNegatives(sampled, positive, pool), score_weight=score_weight, giou_weight=giou_weight,
        smooth_l1_weight=smooth_l1_weight, candidates=candidates, radius=radius, cells=cells,
    )  # fmt: skip


def quality_giou(
    *,
    beta: float = 2.0,
    score_weight: float = 1.0,
    giou_weight: float = 1.0,
    smooth_l1_weight: float = 0.0,
    candidates: int = 4,
    radius: float = 1.5,
    cells: float = 4.0,
) -> BoxLoss:
    """Quality focal loss (Li et al. 2020, equation 2) and GIoU: the score to reach at a positive place is the IoU of its box.

    Args:
        beta: how much scores that are nearly right are discounted.

    Other arguments, terms and errors are those of `focal_giou`.
    """
    return _BoxLoss(
        _Focal(None, beta), quality=True, score_weight=score_weight, giou_weight=giou_weight, smooth_l1_weight=smooth_l1_weight,
        candidates=candidates, radius=radius, cells=cells,
    )  # fmt: skip


class _Focal:
    """``weight · |target − p|^gamma · BCE(p, target)``, summed and divided by the number of positive places.

    For targets of 0 and 1 with weights alpha and 1 − alpha this is the focal loss; without weights, the quality focal loss.
    """

    def __init__(self, alpha: float | None, gamma: float) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(self, logits: Sequence[Tensor], target: Sequence[Tensor], positive: Sequence[Tensor]) -> Tensor:
        x, t = torch.cat(list(logits)), torch.cat(list(target))
        # The clamp keeps gradients finite where p is t, for any gamma.
        loss = (t - x.sigmoid()).abs().clamp(min=1e-6) ** self.gamma
        loss = loss * F.binary_cross_entropy_with_logits(x, t, reduction="none")
        if self.alpha is not None:
            loss = loss * (self.alpha * t + (1 - self.alpha) * (1 - t))
        return loss.sum() / torch.cat(list(positive)).sum().clamp(min=1)


class _HardNegatives:
    """Binary cross-entropy summed over classes, a mean over the places that MONAI's sampler takes of each sample."""

    def __init__(self, sampled: int, positive: float, pool: float) -> None:
        if sampled < 1 or not 0 < positive < 1 or pool < 1:
            raise MedsegError(
                f"loss: expected sampled and pool of 1 or more and a share of positives between 0 and 1; found {sampled}, "
                f"{pool}, {positive}"
            )
        # Late, because all of monai.apps comes along.
        from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler

        self.sampler = HardNegativeSampler(sampled, positive, pool_size=pool)

    def __call__(self, logits: Sequence[Tensor], target: Sequence[Tensor], positive: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            hardness = [x.sigmoid().amax(1) for x in logits]
            chosen = self.sampler.select_samples_img_list([p.long() for p in positive], hardness)
        kept = torch.cat([(taken + left) > 0 for taken, left in zip(*chosen, strict=True)])
        loss = F.binary_cross_entropy_with_logits(torch.cat(list(logits)), torch.cat(list(target)), reduction="none")
        return loss[kept].sum() / kept.sum().clamp(min=1)


class _BoxLoss:
    """Matching, a term for the scores, and terms for the boxes of the positive places."""

    def __init__(
        self,
        score: Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor],
        *,
        quality: bool = False,
        score_weight: float,
        giou_weight: float,
        smooth_l1_weight: float,
        candidates: int,
        radius: float,
        cells: float,
    ) -> None:
        self.weights = {"scores": score_weight, "giou": giou_weight, "smooth_l1": smooth_l1_weight}
        if min(self.weights.values()) < 0 or not any(self.weights.values()):
            raise MedsegError(f"loss: weights must not be negative nor all zero, found {self.weights}")
        if candidates < 2 or radius <= 0 or cells <= 0:
            raise MedsegError(
                f"loss: expected 2 or more candidates, and radius and cells above 0; found {candidates}, {radius}, {cells}"
            )
        self.score, self.quality = score, quality
        self.candidates, self.radius, self.cells = candidates, radius, cells

    def __call__(self, output: Mapping[str, Any], truth: Sequence[Truth], grid: Grid) -> dict[str, Tensor]:
        with torch.autocast(output["scores"][0].device.type, enabled=False):
            return self._terms(output, truth, grid)

    def _terms(self, output: Mapping[str, Any], truth: Sequence[Truth], grid: Grid) -> dict[str, Tensor]:
        logits, codes = grid.rows(output["scores"]), grid.rows(output[grid.codes])
        _check(logits, truth)
        levels = grid.places([level.shape[2:] for level in output["scores"]], logits.device)
        matches = [self._match(sample, levels, grid) for sample in truth]
        found, said, sought, classes = [], [], [], []
        places = torch.cat(levels)
        for code, match, sample in zip(codes, matches, truth, strict=True):
            positive = match >= 0
            found.append(grid.decode(code[positive], places[positive]))
            said.append(code[positive])
            sought.append(sample.boxes.float()[match[positive]])
            classes.append(sample.classes[match[positive]])
        terms = {"scores": self._scores(logits, matches, classes, found, sought)}
        boxes, wanted = torch.cat(found), torch.cat(sought)
        count = max(len(boxes), 1)
        if self.weights["giou"]:
            terms["giou"] = (1 - giou(boxes, wanted)).sum() / count
        if self.weights["smooth_l1"]:
            at = torch.cat([places[match >= 0] for match in matches])
            difference = F.smooth_l1_loss(torch.cat(said), grid.encode(wanted, at), beta=0.1, reduction="none")
            terms["smooth_l1"] = difference.mean(1).sum() / count
        return {name: self.weights[name] * value for name, value in terms.items() if self.weights[name]}

    def _scores(
        self,
        logits: Tensor,
        matches: Sequence[Tensor],
        classes: Sequence[Tensor],
        found: Sequence[Tensor],
        sought: Sequence[Tensor],
    ) -> Tensor:
        """The term of the scores; ignored places are left out of it."""
        rows, target, positives = [], [], []
        for x, match, label, box, wanted in zip(logits, matches, classes, found, sought, strict=True):
            t, positive = torch.zeros_like(x), match >= 0
            worth = iou(box.detach(), wanted) if self.quality else torch.ones(len(label), device=x.device)
            t[positive.nonzero()[:, 0], label] = worth
            counted = match != IGNORED
            rows.append(x[counted])
            target.append(t[counted])
            positives.append(positive[counted])
        return self.score(rows, target, positives)

    def _match(self, truth: Truth, levels: Sequence[Tensor], grid: Grid) -> Tensor:
        """For every place the index of its box, `NEGATIVE` or `IGNORED`."""
        places = torch.cat(list(levels))
        if not len(truth.boxes):
            matches = torch.full((len(places),), NEGATIVE, device=places.device)
        elif grid.anchor_free:
            matches = match_centers(truth.boxes.float(), levels, radius=self.radius, cells=self.cells)
        else:
            matches = match_atss(truth.boxes.float(), levels, grid, candidates=self.candidates)
        if truth.ignore is not None and len(truth.ignore):
            inside = _contains(truth.ignore.float(), _centers(places)).any(0)
            matches[inside & (matches < 0)] = IGNORED
        return matches


def match_atss(boxes: Tensor, levels: Sequence[Tensor], grid: Grid, *, candidates: int = 4) -> Tensor:
    """Adaptive training sample selection (Zhang et al. 2020, algorithm 1): for each place the index of a box, or −1.

    Of the places in the cells nearest to a box's centre, the best answers for it, and all whose IoU reaches mean plus deviation;
    a place that several boxes want takes the one it overlaps most. Centres of places need not lie in the box, which may be
    smaller than a cell. Two things differ from MONAI's ``ATSSMatcher``, whose result is the same where they do not matter:
    levels may have different numbers of anchors, and nearness is counted in cells of the finest level, since in voxels
    neighbours in other slices would come first where slices are thick.

    Args:
        boxes: ``(N, 2·D)`` float32, N ≥ 1.
        levels: the places of each level.
        candidates: nearest cells of each level.
    """
    cell, middle, places = boxes.new_tensor(grid.strides[0]), _centers(boxes), torch.cat(list(levels))
    nearest, first = [], 0
    for level, count in zip(levels, grid.per_cell, strict=True):
        away = ((middle[:, None] - _centers(level[::count])) / cell).square().sum(-1)
        near = away.topk(min(candidates, away.shape[1]), largest=False).indices
        nearest.append(first + (near[..., None] * count + torch.arange(count, device=near.device)).flatten(1))
        first += len(level)
    index = torch.cat(nearest, 1)
    overlap = iou(boxes[:, None], places[index])
    enough = overlap.mean(1, keepdim=True) + overlap.std(1, keepdim=True)
    chosen = (overlap >= enough) | (overlap == overlap.amax(1, keepdim=True))
    claims = overlap.new_zeros(len(boxes), len(places)).scatter_(1, index, overlap * chosen)
    most, matches = claims.max(0)
    matches[most <= 0] = NEGATIVE
    return matches


def match_centers(boxes: Tensor, levels: Sequence[Tensor], *, radius: float = 1.5, cells: float = 4.0) -> Tensor:
    """Centre sampling, after FCOS (Tian et al. 2019): for each cell the index of a box, or −1.

    A box belongs to the level on which its (geometric) mean side is nearest to ``cells`` cells. There the cells answer for it
    whose centres lie in the box and within ``radius`` strides of its centre along each axis, and the nearest cell in any case.
    Of several boxes a cell takes the smallest.

    Args:
        boxes: ``(N, 2·D)`` float32, N ≥ 1.
        levels: the cells of each level, as boxes.
    """
    sizes = boxes.chunk(2, -1)[1] - boxes.chunk(2, -1)[0]
    strides = torch.stack([level[0].chunk(2)[1] - level[0].chunk(2)[0] for level in levels])
    spans = (sizes[:, None] / strides).log().mean(-1)
    home = (spans - math.log(cells)).abs().argmin(1)
    claims = []
    for number, level in enumerate(levels):
        at = _centers(level)
        away = ((at - _centers(boxes)[:, None]) / strides[number]).abs()
        mine = _contains(boxes, at) & (away <= radius).all(-1)
        mine.scatter_(1, away.square().sum(-1).argmin(1, keepdim=True), True)
        mine &= (home == number)[:, None]
        claims.append(torch.where(mine, sizes.prod(-1, keepdim=True), math.inf))
    smallest, matches = torch.cat(claims, 1).min(0)
    matches[smallest == math.inf] = NEGATIVE
    return matches


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes ``(…, 2·D)`` of positive size with those of the same row: ``(…)``."""
    (a0, a1), (b0, b1) = first.chunk(2, -1), second.chunk(2, -1)
    both = _volume(torch.maximum(a0, b0), torch.minimum(a1, b1))
    return both / (_volume(a0, a1) + _volume(b0, b1) - both)


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019), −1…1, row by row as `iou`: IoU less the empty share of the smallest hull."""
    (a0, a1), (b0, b1) = first.chunk(2, -1), second.chunk(2, -1)
    both = _volume(torch.maximum(a0, b0), torch.minimum(a1, b1))
    union = _volume(a0, a1) + _volume(b0, b1) - both
    hull = _volume(torch.minimum(a0, b0), torch.maximum(a1, b1))
    return both / union - (hull - union) / hull


def _volume(lower: Tensor, upper: Tensor) -> Tensor:
    return (upper - lower).clamp(min=0).prod(-1)


def _centers(boxes: Tensor) -> Tensor:
    lower, upper = boxes.chunk(2, -1)
    return (lower + upper) / 2


def _contains(boxes: Tensor, points: Tensor) -> Tensor:
    """``(N, M)``: whether each of N boxes holds each of M points ``(M, D)``."""
    lower, upper = boxes[:, None].chunk(2, -1)
    return ((points >= lower) & (points < upper)).all(-1)


def _check(logits: Tensor, truth: Sequence[Truth]) -> None:
    if len(truth) != len(logits):
        raise MedsegError(f"loss: expected the boxes of {len(logits)} samples, found {len(truth)}")
    highest = max((int(sample.classes.max()) for sample in truth if len(sample.classes)), default=-1)
    if highest >= logits.shape[-1]:
        raise MedsegError(f"loss: the head has {logits.shape[-1]} classes, a box is of class {highest} (from 0)")
