"""How good found boxes are, label by label, beside the true ones: AP, FROC, and counts at the working point. Knows no files.

A true lesion is found by a box that overlaps it enough, one to one, the surest box first (`match_boxes`: the rule of COCO, so
that a second box on the same lesion is a false positive). At most the 100 surest boxes of a label in a case are looked at.

=============================  ========================================================================================
``ap_10`` … ``ap_50``          average precision at IoU 0.1, 0.2 … 0.5, ``ap_coco`` its mean over IoU 0.5, 0.55 … 0.95
``sensitivity_at_1_fp``        FROC: share of the lesions found at 1/8, 1/4, 1/2, 1, 2, 4, 8 false positives a scan; ``cpm``
                               is the mean of the seven (competition performance metric; Setio et al. 2017, LUNA16)
``sensitivity`` ``precision``  at the working point: lesions found, boxes that are true,
``f1`` ``fp_per_scan``         2 · found / (lesions + boxes), false positives a scan
``clean_scans``                share of the scans without lesion in which nothing is found, at the working point
``sensitivity_small`` …        sensitivity at the working point by the longest edge of the true box, in thirds of the
                               lesions of the label or in bands that the caller gives (``sensitivity_10_to_20_mm``)
=============================  ========================================================================================

FROC and the working point count a lesion as found from an IoU of 0.1 up in volumes, where boxes of few slices overlap badly, and
of 0.5 in pictures. A rate at which all scans together would have less than one false positive is not measured: it is blank
with a note, and so is the CPM. A scan without lesion adds false positives and no lesion.

**Pooled figures.** None of these is a mean over cases: boxes of all cases are ranked together, and an interval comes from
patients drawn with all their scans, the figure being computed anew from each draw. ``n`` counts what the figure is a share of
(lesions, boxes, scans). What is known of a single case are its counts at the working point: ``tp``, ``fp``, ``fn``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from medseg.errors import MedsegError, all_at_once
from medseg.evaluation.boxes import iou_matrix, longest_edges, match_boxes
from medseg.evaluation.ranking import Matched, Ranking
from medseg.evaluation.shares import share
from medseg.structures import Boxes, Fault, LabelTable
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FROC_IOU = {2: 0.5, 3: 0.1}
"""Overlap from which a lesion counts as found in FROC and at the working point, in pictures and in volumes."""
COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
MOST_BOXES = 100
"""The surest boxes of a label in a case that are looked at, as COCO does."""
THIRDS = ("small", "medium", "large")
_AP = (0.1, 0.2, 0.3, 0.4, 0.5)
AT_WORKING_POINT = ("sensitivity", "precision", "f1", "fp_per_scan", "clean_scans")
POOLED = (
    *(f"ap_{round(100 * iou)}" for iou in _AP),
    "ap_coco",
    *(f"sensitivity_at_{rate:g}_fp" for rate in FROC_RATES),
    "cpm",
)


@dataclass(frozen=True, eq=False)
class DetectedCase:
    """What was found in a case and what is there, on one grid.

    ``thresholds`` (label → score) is the working point of the model that found the boxes; ``metadata`` is what the cohort knows.
    """

    id: str
    predicted: Boxes
    truth: Boxes
    geometry: Geometry
    patient: str = ""
    split: str = ""
    fold: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.id)


def faults_of(case: DetectedCase, labels: LabelTable) -> list[Fault]:
    """Why a case cannot be scored: ``other_dimensions``, ``unknown_class``, ``no_scores``, ``nan_score``."""
    faults = []
    for name, boxes in (("predicted", case.predicted), ("true", case.truth)):
        if boxes.boxes.shape[1] != 2 * case.geometry.dimensions:
            found = f"{name} boxes of {boxes.boxes.shape[1]} numbers on a grid of {case.geometry.describe()}"
            faults.append(
                Fault(case.id, "other_dimensions", f"{found}; expected {2 * case.geometry.dimensions} numbers")
            )
        unknown = sorted({int(value) for value in boxes.labels} - set(labels.names))
        if unknown:
            faults.append(
                Fault(case.id, "unknown_class", f"{name} boxes of class {unknown}; expected {dict(labels.names)}")
            )
    scores = case.predicted.scores
    if scores is None and len(case.predicted.boxes):
        faults.append(Fault(case.id, "no_scores", "predicted boxes without scores cannot be ranked; give each a score"))
    elif scores is not None and len(scores) != len(case.predicted.boxes):
        found = f"{len(scores)} scores for {len(case.predicted.boxes)} predicted boxes"
        faults.append(Fault(case.id, "no_scores", f"{found}; give each box one"))
    elif scores is not None and np.isnan(scores).any():
        count = int(np.isnan(scores).sum())
        faults.append(Fault(case.id, "nan_score", f"{count} of {len(scores)} predicted boxes have NaN as their score"))
    return faults


def threshold_for(
    cases: Sequence[DetectedCase], labels: LabelTable, fp_per_scan: float = 1.0, *, iou: float | None = None
) -> dict[str, float]:
    """The working point: for each label the lowest score that keeps to ``fp_per_scan`` false positives a scan.

    Args:
        cases: the cases of `tune`; those without lesion count as scans.
        iou: overlap from which a lesion is found, by default `FROC_IOU`.

    Returns:
        Label → score; a box counts from that score up. A label of which nothing was found on ``cases`` gets 0.

    Raises:
        MedsegError: there is no case, a case cannot be scored, or the rate is negative or NaN.
    """
    if not fp_per_scan >= 0:
        raise MedsegError(f"working point: expected a number of false positives a scan, 0 or more, found {fp_per_scan}")
    if not is_measurable(fp_per_scan, len(cases)) and fp_per_scan:
        logger.warning("working point: %s", _too_few(fp_per_scan, len(cases)))
    return {
        score.name: score.ranking.threshold(LabelScore.FROC, fp_per_scan)
        for score in score_labels(cases, labels, iou=iou)
    }


def is_measurable(fp_per_scan: float, scans: int) -> bool:
    """Whether so many scans can show this rate: at least one false positive in all of them together."""
    return fp_per_scan * scans >= 1


def note_of_rates(scans: int) -> dict[str, str]:
    """Metric → why so few scans cannot measure it."""
    notes = {
        f"sensitivity_at_{rate:g}_fp": _too_few(rate, scans) for rate in FROC_RATES if not is_measurable(rate, scans)
    }
    return {**notes, "cpm": next(iter(notes.values()))} if notes else {}


def _too_few(rate: float, scans: int) -> str:
    return (
        f"{rate:g} false positives a scan cannot be measured with {scans} scans ({int(np.ceil(1 / rate))} are needed)"
    )


def score_labels(
    cases: Sequence[DetectedCase],
    labels: LabelTable,
    *,
    iou: float | None = None,
    size_edges: Sequence[float] | None = None,
) -> list[LabelScore]:
    """Match the boxes of every case once, label by label.

    Raises:
        MedsegError: there is no case, cases cannot be scored (all are named), or options make no sense.
    """
    if not cases:
        raise MedsegError("detection: expected at least one case to score, found none")
    problems = [str(fault) for case in cases for fault in faults_of(case, labels)]
    kinds = {(case.geometry.dimensions, case.geometry.unit) for case in cases}
    if len(kinds) > 1:
        found = ", ".join(f"{dimensions}D in {unit}" for dimensions, unit in sorted(kinds))
        problems.append(f"cases of one kind are scored together, found {found}; score them apart")
    if problems:
        raise all_at_once("these boxes cannot be scored:", problems)
    iou = FROC_IOU[cases[0].geometry.dimensions] if iou is None else iou
    if not 0 < iou <= 1:
        raise MedsegError(f"detection: iou: expected an overlap above 0 and up to 1, found {iou}")
    edges = None if size_edges is None else tuple(float(edge) for edge in size_edges)
    if edges is not None and (not edges or edges[0] <= 0 or any(b <= a for a, b in pairwise(edges))):
        raise MedsegError(f"detection: size_edges: expected rising lengths above 0, found {list(edges)}")
    return [LabelScore(name, value, cases, iou, edges) for value, name in labels.names.items()]


class LabelScore:
    """One label in all cases: its boxes matched and ranked, and every figure as a function of how often each case counts.

    Attributes:
        ranking: the boxes by falling score; the overlaps are those of AP, of COCO, and last the one of FROC.
        thresholds: ``(N,)`` working point of each case: its own, else 1 false positive a scan of these very cases.
        own_point: whether every case brought its working point.
        tp, fp, boxes: ``(N,)`` counts of each case at the working point.
        confidence: ``(N,)`` the sum of the scores of these boxes.
        bands: metric of each band of sizes → the longest edges in it, in words.
    """

    FROC = -1
    """Index of the overlap that FROC uses."""

    def __init__(
        self, name: str, value: int, cases: Sequence[DetectedCase], iou: float, edges: tuple[float, ...] | None
    ) -> None:
        self.name = name
        overlaps = (*_AP, *COCO_IOUS, iou)
        matched, lengths = [], []
        for case in cases:
            found, true = case.predicted.labels == value, case.truth.boxes[case.truth.labels == value]
            matched.append(_match(case.predicted, found, true, overlaps))
            lengths.append(longest_edges(true, case.geometry.spacing))
        self.ranking = Ranking.of(matched)
        given = [case.thresholds.get(name) for case in cases]
        self.own_point = None not in given
        fallback = 0.0 if self.own_point else self.ranking.threshold(self.FROC, 1.0)
        self.thresholds = np.array([fallback if threshold is None else threshold for threshold in given])
        counted = [m.scores >= at for m, at in zip(matched, self.thresholds, strict=True)]
        kept = [m.partners[self.FROC][which] for m, which in zip(matched, counted, strict=True)]
        self.confidence = np.array([float(m.scores[which].sum()) for m, which in zip(matched, counted, strict=True)])
        self.boxes = np.array([len(partners) for partners in kept])
        self.tp = np.array([int((partners >= 0).sum()) for partners in kept])
        self.fp = self.boxes - self.tp
        edges, self.bands = _size_bands(np.concatenate(lengths), edges, cases[0].geometry.unit)
        size = [np.digitize(of_case, edges) for of_case in lengths]
        found_sizes = [s[partners[partners >= 0]] for s, partners in zip(size, kept, strict=True)]
        self._found_in_band, self._true_in_band = (_count(sizes, len(self.bands)) for sizes in (found_sizes, size))

    @property
    def lesions(self) -> Array:
        """``(N,)`` true lesions of each case."""
        return self.ranking.lesions

    @cached_property
    def shares(self) -> dict[str, tuple[Array, Array]]:
        """The figures at the working point: name → ``(N,)`` counts whose sums are divided."""
        clean = self.lesions == 0
        shares = {
            "sensitivity": (self.tp, self.lesions),
            "precision": (self.tp, self.boxes),
            "f1": (2 * self.tp, self.lesions + self.boxes),
            "fp_per_scan": (self.fp, np.ones_like(self.fp)),
            "clean_scans": ((clean & (self.fp == 0)).astype(int), clean.astype(int)),
        }
        return shares | dict(zip(self.bands, zip(self._found_in_band, self._true_in_band, strict=True), strict=True))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what `measure` returns."""
        return (*POOLED, *self.shares)

    def measure(self, weights: Array) -> Array:
        """Every figure in the order of `metrics`, NaN where there is nothing to measure.

        Args:
            weights: ``(N,)`` how often each case counts.
        """
        precisions = self.ranking.average_precisions(weights)
        sensitivities = self.ranking.sensitivities(self.FROC, FROC_RATES, weights)
        for at, rate in enumerate(FROC_RATES):
            if not is_measurable(rate, len(self.lesions)):
                sensitivities[at] = np.nan
        part, whole = (np.array(counts) @ weights for counts in zip(*self.shares.values(), strict=True))
        shares = share(part, whole)
        coco = precisions[len(_AP) : self.FROC].mean()
        return np.concatenate([precisions[: len(_AP)], [coco], sensitivities, [sensitivities.mean()], shares])

    def support(self, metric: str) -> Array:
        """``(N,)`` how many lesions, boxes or scans of each case a figure is a share of."""
        return self.shares[metric][1] if metric in self.shares else self.lesions


def _match(predicted: Boxes, found: Array, true: Array, overlaps: Sequence[float]) -> Matched:
    scores = np.zeros(0) if predicted.scores is None else np.asarray(predicted.scores, np.float64)[found]
    order = np.argsort(-scores, kind="stable")[:MOST_BOXES]
    boxes = predicted.boxes[found][order]
    return Matched(scores[order], match_boxes(iou_matrix(boxes, true), overlaps), len(true))


def _size_bands(lengths: Array, edges: tuple[float, ...] | None, unit: str) -> tuple[tuple[float, ...], dict[str, str]]:
    """Where the bands of sizes meet, and the metric of each with what it holds: thirds of ``lengths``, or those given."""
    ends = edges or tuple(float(edge) for edge in np.quantile(lengths if len(lengths) else [0.0], [1 / 3, 2 / 3]))
    between = [f"{low:.4g}_to_{high:.4g}_{unit}" for low, high in pairwise(ends)]
    words = [f"below_{ends[0]:.4g}_{unit}", *between, f"from_{ends[-1]:.4g}_{unit}"]
    names = words if edges else THIRDS
    return ends, {f"sensitivity_{name}": said.replace("_", " ") for name, said in zip(names, words, strict=True)}


def _count(sizes: Sequence[Array], bands: int) -> Array:
    """``(bands, N)`` how many of each case's lesions lie in each band."""
    return np.stack([np.bincount(of_case, minlength=bands) for of_case in sizes], axis=1)
