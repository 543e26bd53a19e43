"""What a detector must beat: a box around everything that stands out, the threshold fitted on `fit` and scored as a model is.

It shows how many lesions are found for free, from brightness alone. Images come in as `medseg.evaluation.baselines.normalised`
gives them, on the scan's own grid; nothing here reads a file or knows a network. Cases are taken from an iterable one by one;
what is kept of each is how its boxes matched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.evaluation.boxes import iou_matrix, match_boxes
from medseg.evaluation.detection import COCO_IOUS, FROC_IOU, MOST_BOXES
from medseg.evaluation.lesions import bounding_box, components
from medseg.evaluation.ranking import Matched, Ranking
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array

Ranked = Literal["peak", "excess"]
_LEVELS = np.concatenate(
    [np.arange(0, 5) / 20, 0.25 + np.arange(17) / 80, 0.5 + np.arange(1, 7) / 20, np.geomspace(1.0, 4.0, 8)]
)
"""Thresholds that are tried: a quarter of a deviation apart (51 HU) from 0 to 4 deviations (820 HU), coarser elsewhere."""
_MOST = 0.3
"""Share of the voxels above which nothing stands out: no box is made."""


@dataclass(frozen=True, eq=False)
class BoxExample:
    """A case as the baseline sees it: ``image`` (C, *S) normalised, and the true boxes on its grid, where they are known."""

    image: Array
    truth: Boxes | None = None


@dataclass(frozen=True)
class Rule:
    """A lesion is a component of what is brighter (``sign`` 1) or darker (-1) than ``level`` in ``channel``.

    Components are ranked by their most extreme value, or by how far their voxels together lie beyond the level.
    ``precision`` is the average precision on `fit`.
    """

    channel: int
    sign: int
    level: float
    ranked_by: Ranked
    precision: float = 0.0


@dataclass(frozen=True)
class BrightestComponents:
    """For each label the one rule, the same in all cases, with the highest average precision on `fit` (then COCO AP).

    A component has 26 neighbours (8 in a picture). Scores lie between 0 and 1 and mean nothing but an order.
    """

    labels: LabelTable
    rules: dict[str, Rule]

    @classmethod
    def fit(cls, cases: Iterable[BoxExample], labels: LabelTable, *, iou: float | None = None) -> BrightestComponents:
        """Search channel, sign, level and order; figures are pooled over the cases, those without lesion included.

        A label that no case shows gets no rule and is never found.

        Args:
            iou: overlap from which a lesion is found, by default that of FROC (0.1 in volumes, 0.5 in pictures).

        Raises:
            MedsegError: no case has a box, or a case comes without truth or with another number of axes or channels.
        """
        matched: dict[tuple[str, Rule], list[Matched]] = {}
        shape: tuple[int, int] | None = None
        for case in cases:
            if case.truth is None:
                raise MedsegError("baseline: a threshold needs the true boxes of every case of fit")
            found_shape = (case.image.ndim - 1, len(case.image))
            shape = shape or found_shape
            if found_shape != shape:
                said = " and ".join(f"{channels} channels in {axes}D" for axes, channels in (shape, found_shape))
                raise MedsegError(f"baseline: expected cases of one kind in fit, found {said}")
            needed = FROC_IOU[shape[0]] if iou is None else iou
            true = {name: case.truth.boxes[case.truth.labels == value] for value, name in labels.names.items()}
            for rule, boxes, scores in _candidates(case.image):
                for name, of_label in true.items():
                    partners = match_boxes(iou_matrix(boxes, of_label), [needed, *COCO_IOUS])
                    matched.setdefault((name, rule), []).append(Matched(scores, partners, len(of_label)))
        best: dict[str, tuple[float, float, int, Rule]] = {}
        for (name, rule), of_cases in matched.items():
            ranking = Ranking.of(of_cases)
            precision, *of_coco = ranking.average_precisions(ranking.every_case_once).tolist()
            # Of equally good rules the one whose boxes fit best, then the one with fewest; NaN (no lesion) is never more.
            merit = precision, sum(of_coco) / len(of_coco), -len(ranking.scores)
            if merit > best.get(name, (-1.0, -1.0, 0))[:3]:
                best[name] = *merit, replace(rule, precision=precision)
        if not best:
            raise MedsegError("baseline: expected at least one true box in fit, found none")
        return cls(labels, {name: rule for name, (*_, rule) in best.items()})

    def predict(self, image: Array) -> Boxes:
        """The boxes of every label by falling score, at most 100 of each.

        Args:
            image: ``(C, *S)`` normalised.
        """
        boxes, scores, values = [np.zeros((0, 2 * (image.ndim - 1)))], [np.zeros(0)], [np.zeros(0, np.int64)]
        for value, name in self.labels.names.items():
            if name in self.rules:
                rule = self.rules[name]
                found = _ranked(rule.sign * image[rule.channel], rule.sign * rule.level)[rule.ranked_by]
                boxes.append(found[0])
                scores.append(found[1])
                values.append(np.full(len(found[1]), value))
        score = np.concatenate(scores)
        order = np.argsort(-score, kind="stable")
        return Boxes(np.concatenate(boxes)[order], np.concatenate(values)[order], score[order])


def _candidates(image: Array) -> Iterator[tuple[Rule, Array, Array]]:
    """What every rule finds in a case: boxes (P, 2·D) and scores (P,), falling."""
    for channel, values in enumerate(image):
        for sign in (1, -1):
            for level in _LEVELS:
                for ranked_by, (boxes, scores) in _ranked(sign * values, sign * float(level)).items():
                    yield Rule(channel, sign, float(level), ranked_by), boxes, scores


def _ranked(values: Array, level: float) -> dict[Ranked, tuple[Array, Array]]:
    """Boxes and falling scores of the components of ``values ≥ level``, in either order; at most 100 each."""
    mask = values >= level
    window = bounding_box(mask) if np.count_nonzero(mask) <= _MOST * mask.size else None
    if window is None:
        nothing = np.zeros((0, 2 * values.ndim)), np.zeros(0)
        return {"peak": nothing, "excess": nothing}
    mask = mask[window]
    labelled, count = components(mask)
    ids, beyond = labelled[mask] - 1, values[window][mask].astype(np.float64) - level
    peaks = np.zeros(count)
    np.maximum.at(peaks, ids, beyond)
    slices = ndimage.find_objects(labelled)
    found: dict[Ranked, tuple[Array, Array]] = {}
    extents: dict[Ranked, Array] = {"peak": peaks + level, "excess": np.bincount(ids, beyond, minlength=count)}
    for ranked_by, extent in extents.items():
        order = np.argsort(-extent, kind="stable")[:MOST_BOXES]
        lower = np.array([[part.start for part in slices[i]] for i in order]) + [part.start for part in window]
        upper = np.array([[part.stop for part in slices[i]] for i in order]) + [part.start for part in window]
        found[ranked_by] = np.concatenate([lower, upper], axis=1).astype(np.float64), _score(extent[order])
    return found


def _score(values: Array) -> Array:
    """Any numbers → between 0 and 1 in the same order."""
    return 0.5 + np.arctan(values) / np.pi
