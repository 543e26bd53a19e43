"""Calibration of a detector: the score of a box becomes the probability that the box is a lesion. Knows scored boxes, no model.

Platt's line for each label (`medseg.evaluation.temperature`): a detector's scores come from a loss that weighs rare lesions up,
so that they are shifted and not only stretched. A box is right if it is matched to a true box of its label as for FROC
(`medseg.evaluation.detection`), so that a second box on a lesion is wrong. The order of a label's boxes, and with it AP and
FROC, does not change; thresholds move with the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from medseg.errors import MedsegError, all_at_once
from medseg.evaluation.calibration import ALL, Calibration, Forecast, check_row_names, compare
from medseg.evaluation.detection import DetectedCase, LabelScore, score_labels
from medseg.evaluation.temperature import fit_line, logits_of, probabilities_of
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array

FINDINGS = "findings"
"""The row of the boxes that the models stand by: those at or above their thresholds."""
Lines = Mapping[str, Mapping[str, float]]
"""Label → ``{"temperature": T, "bias": b}``; a label that is not named keeps its scores."""


def calibrated_scores(scores: Array, temperature: Array | float, bias: Array | float = 0.0) -> Array:
    """Scores ``(N,)`` from 0 to 1 → sigmoid(logit(score) / T + b), float64: float32 would make ties near 1."""
    logits = logits_of(scores, multilabel=True)
    return probabilities_of(logits, multilabel=True, temperature=temperature, bias=bias)


def uncalibrated_scores(scores: Array, temperature: Array | float, bias: Array | float = 0.0) -> Array:
    """The inverse of `calibrated_scores`: sigmoid(T · (logit(score) − b))."""
    return calibrated_scores(scores, 1 / temperature, -bias * temperature)


def calibrated_boxes(boxes: Boxes, labels: LabelTable, lines: Lines) -> Boxes:
    """The boxes with calibrated scores, by falling score; boxes without scores as they are."""
    if boxes.scores is None or not lines:
        return boxes
    scores = np.array(boxes.scores, np.float64)
    for value, name in labels.names.items():
        of_label = boxes.labels == value
        line = lines.get(name, {})
        scores[of_label] = calibrated_scores(scores[of_label], line.get("temperature", 1.0), line.get("bias", 0.0))
    return replace(boxes, scores=scores).chosen(np.argsort(-scores, kind="stable"))


def choose_box_calibration(
    cases: Sequence[DetectedCase], labels: LabelTable, *, iou: float | None = None
) -> dict[str, dict[str, float]]:
    """T and b of each label; 1 and 0 for a label of which nothing was found.

    Args:
        cases: the cases of `tune`, with the scores that the network gives.
        iou: overlap from which a box is right, by default `medseg.evaluation.detection.FROC_IOU`.

    Raises:
        MedsegError: there is no case, a case cannot be scored, or scores are not between 0 and 1.
    """
    _check_scores(cases)
    lines = {}
    for score in score_labels(cases, labels, iou=iou):
        ranking = score.ranking
        temperature, bias = fit_line(logits_of(ranking.scores, multilabel=True), ranking.hits[score.FROC])
        lines[score.name] = {"temperature": temperature, "bias": bias}
    return lines


def box_calibration(
    cases: Sequence[DetectedCase],
    labels: LabelTable,
    lines: Sequence[Lines],
    *,
    iou: float | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Calibration]:
    """Calibration before and after, of predicted boxes: ``all``, ``findings`` and each label.

    A detector states hundreds of boxes that nobody looks at, and their low scores rule the mean over all of them. The row
    ``findings`` holds those from the thresholds up; it is left out where a case brings none.

    Args:
        cases: with scores and thresholds as predicted, that is calibrated; what they were before is worked out from them.
        lines: as `choose_box_calibration` returns them, those of the model that predicted each case, ``N``.

    Raises:
        MedsegError: there is no case, cases cannot be scored, scores are not between 0 and 1, there is not one of everything a
            case, or a label is called ``all`` or ``findings``.
    """
    check_row_names(labels.names.values(), (ALL, FINDINGS))
    if len(lines) != len(cases):
        raise MedsegError(f"calibration: expected the lines of each of {len(cases)} cases, found {len(lines)}")
    _check_scores(cases)
    patients = np.array([case.patient for case in cases])
    scores = score_labels(cases, labels, iou=iou)
    scalings = {score.name: [_line(of_case, score.name) for of_case in lines] for score in scores}
    boxes = {score.name: _Boxes.of(score, patients, scalings[score.name]) for score in scores}
    everything = _Boxes.pooled(list(boxes.values()))
    rows = {ALL: everything}
    if all(score.own_point for score in scores):
        rows[FINDINGS] = everything.chosen(everything.stands)
    return {
        name: compare(
            *of_row.forecasts(),
            scalings.get(name, [line for of_label in scalings.values() for line in of_label]),
            samples=samples,
            seed=seed,
        )
        for name, of_row in (rows | boxes).items()
    }


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Scores before and after, whether each box is right, whether it reaches its threshold, whose it is; all ``(N,)``."""

    before: Array
    after: Array
    right: Array
    stands: Array
    patients: Array

    @classmethod
    def of(cls, score: LabelScore, patients: Array, lines: Sequence[tuple[float, float]]) -> _Boxes:
        """The boxes of one label; patients and lines are those of the cases."""
        ranking = score.ranking
        temperature, bias = np.array(lines)[ranking.cases].T
        before = uncalibrated_scores(ranking.scores, temperature, bias)
        stands = ranking.scores >= score.thresholds[ranking.cases]
        return cls(before, ranking.scores, ranking.hits[score.FROC], stands, patients[ranking.cases])

    @classmethod
    def pooled(cls, parts: Sequence[_Boxes]) -> _Boxes:
        return cls(*(np.concatenate([getattr(part, part_of.name) for part in parts]) for part_of in fields(cls)))

    def chosen(self, which: Array) -> _Boxes:
        return _Boxes(*(getattr(self, part_of.name)[which] for part_of in fields(self)))

    def forecasts(self) -> tuple[Forecast, Forecast]:
        before, after = (Forecast.of_events(scores, self.right, self.patients) for scores in (self.before, self.after))
        return before, after


def _line(lines: Lines, label: str) -> tuple[float, float]:
    line = lines.get(label, {})
    return float(line.get("temperature", 1.0)), float(line.get("bias", 0.0))


def _check_scores(cases: Sequence[DetectedCase]) -> None:
    """Scores that are missing or NaN are said where boxes are matched."""
    outside = [
        f"case {case.id!r}: scores from {case.predicted.scores.min():g} to {case.predicted.scores.max():g}"
        for case in cases
        if case.predicted.scores is not None and ((case.predicted.scores < 0) | (case.predicted.scores > 1)).any()
    ]
    if outside:
        raise all_at_once(
            "calibration: expected scores from 0 to 1; bring them there, or leave calibration out:", outside
        )
