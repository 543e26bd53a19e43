"""Turns the probabilities of any segmentation model into boxes: one a component, its score from the probabilities in it.

A component of p ≥ 0.5 is a candidate. So is a component at a lower level (0.3, 0.15, 0.05) that holds no candidate yet: a lesion
of which the model is not sure, which a threshold of 0.5 alone would never show. What comes together only at a lower level stays
apart. Components have 26 neighbours (8 in a picture), and each label is looked at by itself. How they are scored, how small they
may be and from which score they count is chosen on `tune`. Knows no model and no file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, get_args

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.evaluation.detection import FROC_RATES, MOST_BOXES, DetectedCase, score_labels
from medseg.evaluation.lesions import bounding_box, component_sizes
from medseg.evaluation.lesions import components as labelled_components
from medseg.evaluation.working_point import thresholds_at_rates
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
Aggregate = Literal["max", "mean", "p95"]
LEVELS = (0.5, 0.3, 0.15, 0.05)
EDGES = (0, 2, 4, 8)
"""Components smaller than a square or cube of so many voxels an edge are left out, if that serves on `tune`."""


def components(
    probabilities: Array,
    geometry: Geometry,
    labels: LabelTable,
    *,
    aggregate: Aggregate = "max",
    smallest_mm3: float = 0.0,
) -> Boxes:
    """The candidates of every label by falling score, at most 100 of each.

    Args:
        probabilities: ``(K, *S)`` float; channel 0 is background, channel c the c-th label.
        geometry: the grid of the probabilities, on which the boxes lie.
        labels: exclusive labels.
        aggregate: a score is the highest probability, the mean or the 95th percentile of those in the component.
        smallest_mm3: smaller components are no candidates (a picture: mm², or px where spacing is unknown); a larger one at a
            lower level, around them, may then be one.

    Raises:
        MedsegError: the labels are regions, the arrays do not fit each other, or ``aggregate`` is unknown.
    """
    if aggregate not in get_args(Aggregate):
        raise MedsegError(f"components: aggregate={aggregate!r}; expected one of {', '.join(get_args(Aggregate))}")
    trees = _trees(probabilities, geometry, labels, (aggregate,))
    return _candidates(trees, geometry, aggregate, smallest_mm3)


def choose_components(
    examples: Iterable[tuple[Array, Boxes, Geometry]], labels: LabelTable, *, fp_per_scan: float = 1.0
) -> dict[str, object]:
    """How components are best made into boxes on the cases of `tune`, and from which score they count.

    The options with the highest average precision, at the overlap of FROC and as a mean over the labels, are taken; of equal ones
    those with the higher CPM, then the first. Examples are taken one by one, and only their candidates are kept.

    Args:
        examples: of each case the probabilities ``(K, *S)``, the true boxes, and the grid of both.
        fp_per_scan: stored as the model's own choice.

    Returns:
        ``{"aggregate", "smallest_mm3", "fp_per_scan", "thresholds"}``, as `medseg.evaluation.working_point` describes it.

    Raises:
        MedsegError: there is no example, or as `components`.
    """
    options: list[tuple[Aggregate, float]] = []
    found: list[list[DetectedCase]] = []
    for number, (probabilities, truth, geometry) in enumerate(examples):
        if not options:  # the grid of the plan: the voxels of all cases have one size
            sizes = [float(edge**geometry.dimensions) * geometry.voxel_volume for edge in EDGES]
            options = [(aggregate, size) for aggregate in get_args(Aggregate) for size in sizes]
            found = [[] for _ in options]
        trees = _trees(probabilities, geometry, labels, get_args(Aggregate))
        for cases, option in zip(found, options, strict=True):
            cases.append(DetectedCase(str(number), _candidates(trees, geometry, *option), truth, geometry))
    if not options:
        raise MedsegError("components: expected at least one case of tune to choose by, found none")
    merits = [_merit(cases, labels) for cases in found]
    best = max(range(len(options)), key=lambda at: (*merits[at], -at))
    if merits[best][0] < 0:
        logger.warning("components: the cases of tune hold no lesion, so nothing was chosen but the working point")
    aggregate, smallest = options[best]
    thresholds = thresholds_at_rates(found[best], labels)
    return {"aggregate": aggregate, "smallest_mm3": smallest, "fp_per_scan": fp_per_scan, "thresholds": thresholds}


@dataclass(frozen=True, eq=False)
class _Level:
    """The components of ``p ≥ level`` of one label.

    Args:
        boxes: ``(N, 2·D)`` in voxels of the grid.
        voxels: ``(N,)`` how many each has.
        scores: of each aggregate ``(N,)``.
        parents: ``(N,)`` the component of the next lower level that holds each; empty at the lowest level.
    """

    boxes: Array
    voxels: Array
    scores: dict[Aggregate, Array]
    parents: Array


def _trees(
    probabilities: Array, geometry: Geometry, labels: LabelTable, aggregates: Sequence[Aggregate]
) -> dict[int, list[_Level]]:
    """Mask value → its components at every level, the highest first."""
    if not labels.exclusive:
        names = ", ".join(labels.regions)
        raise MedsegError(f"boxes of components: expected labels that exclude each other, found the regions {names}")
    expected = (len(labels.outputs), *geometry.shape)
    if probabilities.shape != expected:
        raise MedsegError(f"components: expected probabilities {expected}, found {probabilities.shape}")
    return {value: _tree(probabilities[channel], aggregates) for channel, value in enumerate(labels.names, 1)}


def _tree(probability: Array, aggregates: Sequence[Aggregate]) -> list[_Level]:
    window = bounding_box(probability >= LEVELS[-1])
    if window is None:
        return []
    inside = probability[window]
    corner = np.tile([part.start for part in window], 2)
    tree: list[_Level] = []
    lower: Array | None = None
    for level in reversed(LEVELS):
        mask = inside >= level
        labelled, count = labelled_components(mask)
        places = np.flatnonzero(mask)
        ids = labelled.ravel()[places] - 1
        some = np.zeros(count, np.int64)  # any voxel of each component
        some[ids] = places
        parents = np.zeros(0, np.int64) if lower is None else lower.ravel()[some] - 1
        scores = {name: _aggregated(inside.ravel()[places], ids, count, name) for name in aggregates}
        slices = ndimage.find_objects(labelled)
        edges = [[getattr(side, end) for end in ("start", "stop") for side in part] for part in slices]
        boxes = np.array(edges, np.float64).reshape(-1, len(corner)) + corner
        tree.append(_Level(boxes, component_sizes(labelled, count), scores, parents))
        lower = labelled
    return tree[::-1]


def _aggregated(values: Array, ids: Array, count: int, aggregate: Aggregate) -> Array:
    """``(count,)`` one number of the ``values`` (V,) of each component ``ids`` (V,), none of which is empty."""
    values = values.astype(np.float64)
    if aggregate == "mean":
        return np.bincount(ids, values, count) / np.bincount(ids, minlength=count)
    if aggregate == "max":
        highest = np.zeros(count)
        np.maximum.at(highest, ids, values)
        return highest
    ranked = values[np.lexsort((values, ids))]
    many = np.bincount(ids, minlength=count)
    place = 0.95 * (many - 1)  # between two values, as numpy's percentile
    first = np.cumsum(many) - many + np.floor(place).astype(np.int64)
    following = np.minimum(first + 1, np.cumsum(many) - 1)
    return ranked[first] + (place % 1) * (ranked[following] - ranked[first])


def _candidates(trees: dict[int, list[_Level]], geometry: Geometry, aggregate: Aggregate, smallest_mm3: float) -> Boxes:
    boxes, scores, values = [np.zeros((0, 2 * geometry.dimensions))], [np.zeros(0)], [np.zeros(0, np.int64)]
    for value, tree in trees.items():
        holds = np.zeros(len(tree[0].voxels) if tree else 0, bool)  # a candidate
        of_label, their_scores = [boxes[0]], [scores[0]]
        for level, below in zip_longest(tree, tree[1:]):
            new = ~holds & (level.voxels * geometry.voxel_volume >= smallest_mm3)
            of_label.append(level.boxes[new])
            their_scores.append(level.scores[aggregate][new])
            if below is not None:
                within = np.zeros(len(below.voxels), bool)
                within[level.parents[holds | new]] = True
                holds = within
        score = np.concatenate(their_scores)
        surest = np.argsort(-score, kind="stable")[:MOST_BOXES]
        boxes.append(np.concatenate(of_label)[surest])
        scores.append(score[surest])
        values.append(np.full(len(surest), value))
    score = np.concatenate(scores)
    order = np.argsort(-score, kind="stable")
    return Boxes(np.concatenate(boxes)[order], np.concatenate(values)[order], score[order])


def _merit(cases: Sequence[DetectedCase], labels: LabelTable) -> tuple[float, float]:
    """Average precision at the overlap of FROC, and CPM, as means over the labels that have a lesion; -1 where none has."""
    rankings = [score.ranking for score in score_labels(cases, labels) if score.lesions.any()]
    if not rankings:
        return -1.0, -1.0
    once = rankings[0].every_case_once
    precisions = [ranking.average_precisions(once)[-1] for ranking in rankings]
    found = [ranking.sensitivities(-1, FROC_RATES, once).mean() for ranking in rankings]
    return float(np.mean(precisions)), float(np.mean(found))
