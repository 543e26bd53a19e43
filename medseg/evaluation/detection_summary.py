"""The evaluation folder of a detector: counts of every case in the long table, pooled figures with intervals in the summary.

    cases.csv      rows ``tp``, ``fp``, ``fn`` of every label of every case at the working point, and where scores are
                   probabilities ``confidence``, the sum of the scores of ``tp + fp`` boxes; ``n_gt`` and ``n_pred`` count true
                   lesions and found boxes
    summary.json   {metric: {label: {value, low, high, n, n_cases, n_missing}}}, with a ``note`` where a figure needs a word:
                   why it is blank, what a band of sizes holds, which working point was taken

``n`` counts the lesions, boxes or scans that a figure is a share of, ``n_missing`` the scans with lesions in which nothing was
found at the working point. The metrics are those of `medseg.evaluation.detection`; none is a mean over the rows of ``cases.csv``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.evaluation.bootstrap import FEWEST_PATIENTS
from medseg.evaluation.detection import DetectedCase, LabelScore, note_of_rates, score_labels
from medseg.evaluation.segmentation import Row
from medseg.evaluation.shares import with_mean
from medseg.evaluation.summary import MEAN, ScoredCase, Summary, cases_csv, check_label_names
from medseg.files import write_text
from medseg.structures import LabelTable
from medseg.volume import Array

_NO_POINT = "at 1 false positive a scan of these very cases, as no working point was given"


@dataclass(frozen=True, eq=False)
class Curve:
    """What thresholds trade: sensitivity for false positives a scan, recall for precision; points by falling score."""

    fp_per_scan: Array
    sensitivity: Array
    recall: Array
    precision: Array


@dataclass(frozen=True, eq=False)
class Detection:
    """How good a detector is: counts of each case, the pooled figures, and a curve a label at the overlap of FROC."""

    cases: tuple[ScoredCase, ...]
    summary: Summary
    curves: Mapping[str, Curve]


def detection_metrics(
    cases: Sequence[DetectedCase],
    labels: LabelTable,
    *,
    iou: float | None = None,
    size_edges: Sequence[float] | None = None,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    calibrated: bool = False,
) -> Detection:
    """Every figure of `medseg.evaluation.detection` with percentile bootstrap intervals over patients.

    Intervals are blank where fewer than five patients have what the figure is a share of. Thirds of sizes and working point are
    set once, not anew in every draw.

    Args:
        iou: overlap from which a lesion is found in FROC and at the working point, by default `FROC_IOU`.
        size_edges: lengths in mm (px) between bands of sizes, by default the thirds of the lesions of each label.
        samples: bootstrap draws; 0 for no intervals.
        level: share of the draws that an interval holds.
        calibrated: whether scores are meant as probabilities.

    Raises:
        MedsegError: there is no case, cases cannot be scored (all are named), or options make no sense.
    """
    check_label_names(list(labels.names.values()))
    scores = score_labels(cases, labels, iou=iou, size_edges=size_edges)
    summary = _summarise(scores, [case.patient for case in cases], samples, level, seed)
    scored = tuple(_scored(case, i, scores, calibrated) for i, case in enumerate(cases))
    return Detection(scored, summary, curves_of(scores))


def curves_of(scores: Sequence[LabelScore]) -> dict[str, Curve]:
    """The curve of each label at the overlap of FROC."""
    return {
        score.name: Curve(
            *score.ranking.froc(score.FROC, score.ranking.every_case_once), *score.ranking.precision_recall(score.FROC)
        )
        for score in scores
    }


def write_detection(folder: Path, detection: Detection) -> None:
    """Write ``cases.csv`` and ``summary.json`` into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "cases.csv", cases_csv(detection.cases))
    write_text(folder / "summary.json", json.dumps(detection.summary, indent=1, ensure_ascii=False) + "\n")


def _scored(case: DetectedCase, at: int, scores: Sequence[LabelScore], calibrated: bool) -> ScoredCase:
    rows = []
    for score in scores:
        n_gt, n_pred = int(score.lesions[at]), int(score.boxes[at])
        counts = {"tp": score.tp[at], "fp": score.fp[at], "fn": n_gt - score.tp[at]}
        counts |= {"confidence": score.confidence[at]} if calibrated else {}
        rows += [Row(score.name, metric, float(count), n_gt, n_pred) for metric, count in counts.items()]
    return ScoredCase(case.id, case.patient, case.split, tuple(rows), case.fold, case.metadata)


def _summarise(scores: Sequence[LabelScore], patients: Sequence[str], samples: int, level: float, seed: int) -> Summary:
    keys, owner = np.unique(np.asarray(patients, str), return_inverse=True)
    metrics = scores[0].metrics
    values = with_mean(np.stack([score.measure(np.ones(len(owner), np.int64)) for score in scores]), axis=0)
    low, high = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    supported = _supported(scores, metrics, owner) & ~np.isnan(values)
    if samples and supported.any():
        draws = np.random.default_rng(seed).multinomial(len(keys), np.full(len(keys), 1 / len(keys)), samples)
        drawn = with_mean(np.stack([[score.measure(draw[owner]) for score in scores] for draw in draws]), axis=1)
        tail = 50 * (1 - level)
        low[supported], high[supported] = np.nanpercentile(drawn[:, supported], [tail, 100 - tail], axis=0)
    missing = [int(((score.lesions > 0) & (score.boxes == 0)).sum()) for score in scores]
    blank = note_of_rates(len(owner))
    summary: Summary = {}
    for m, metric in enumerate(metrics):
        counts = [int(score.support(metric).sum()) for score in scores]
        summary[metric] = {}
        for at, label in enumerate([*(score.name for score in scores), MEAN]):
            figures = {"value": values[at, m], "low": low[at, m], "high": high[at, m]}
            entry: dict[str, Any] = {k: None if math.isnan(v) else float(v) for k, v in figures.items()}
            n, n_missing = (sum(counts), sum(missing)) if label == MEAN else (counts[at], missing[at])
            entry |= {"n": n, "n_cases": len(owner), "n_missing": n_missing}
            own = scores if label == MEAN else scores[at : at + 1]
            note = [blank[metric]] if metric in blank else []
            if label != MEAN and counts[at] and metric in own[0].bands:
                note.append(f"longest edge {own[0].bands[metric]}")
            if metric in own[0].shares and not all(score.own_point for score in own):
                note.append(_NO_POINT)
            summary[metric][label] = {**entry, "note": "; ".join(note)} if note else entry
    return summary


def _supported(scores: Sequence[LabelScore], metrics: Sequence[str], owner: Array) -> Array:
    """``(L + 1, M)`` whether enough patients have what a figure is a share of; for the mean, of any label."""
    rows = []
    for score in scores:
        support = np.stack([score.support(metric) for metric in metrics])  # (M, N)
        held = np.zeros((len(metrics), owner.max() + 1), bool)
        for case, patient in enumerate(owner):
            held[:, patient] |= support[:, case] > 0
        rows.append(held)
    held_by = np.stack([*rows, np.any(rows, axis=0)])  # (L + 1, M, patients)
    return held_by.sum(axis=2) >= FEWEST_PATIENTS
