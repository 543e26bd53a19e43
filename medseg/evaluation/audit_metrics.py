"""Figures that can be computed again, for any choice of cases, from the rows of ``cases.csv``.

=============================================  =========================================================================
every metric with a value a case               its mean over the cases that have one (``dice``, ``nsd``; ``ece`` of masks …)
``sensitivity`` ``precision`` ``f1``           detection: pooled over the counts ``tp``, ``fp``, ``fn`` of the cases
``fp_per_scan``
``calibration_gap``                            detection, from the rows ``confidence``: what the scores of the counted boxes
                                               promise less what is true of them, (Σ confidence − Σ tp) / Σ (tp + fp);
                                               above 0 they promise too much
``sensitivity`` ``specificity``                classification, from the rows ``probability`` of a class: pooled over the cases
``auroc`` ``auprc`` ``brier`` ``ece``          that are called and that are true
``accuracy``                                   classification: the mean of the rows ``correct``
=============================================  =========================================================================

A figure takes weights of the cases, many choices at once: 0 and 1 choose a group, counts are a bootstrap draw. ``auprc``,
``precision``, ``accuracy`` and ``f1`` also depend on how frequent a class is; ``ece`` of probabilities (each class apart, in the
bins of `medseg.evaluation.calibration`) is the higher the fewer cases there are. Knows no group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar, Protocol

import numpy as np

from medseg.errors import all_at_once
from medseg.evaluation.audit_cases import AuditCases
from medseg.evaluation.calibration import BINS, bin_of
from medseg.evaluation.classification import Answers
from medseg.evaluation.shares import share
from medseg.volume import Array

DEFAULT = ("dice", "nsd", "auroc", "sensitivity", "specificity", "precision", "fp_per_scan", "ece", "calibration_gap")
"""What is audited unless metrics are named, as far as the rows give it: the fewer questions, the surer the answers."""

_COUNTS = ("tp", "fp", "fn")
_PROBABILITY, _CORRECT, _CONFIDENCE = "probability", "correct", "confidence"


class Figure(Protocol):
    """One metric of one label.

    ``evidence`` ``(N, K)`` bool says which cases hold each of the ``K`` things that it cannot do without (AUROC: the diseased,
    and the others). ``biased``: it is never below 0 and the higher the fewer cases there are, also in the draws of a bootstrap.
    """

    biased: ClassVar[bool]

    @property
    def metric(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def evidence(self) -> Array: ...

    def only(self, cases: Array) -> Figure:
        """The same figure of some of the cases, ``(N,)`` bool, alone."""
        ...

    def measure(self, weights: Array) -> tuple[Array, Array]:
        """The figure for each row of ``weights`` ``(R, N)``.

        Returns:
            ``(R,)`` values, NaN where there is nothing to measure, and ``(R,)`` how much they rest on: their variance falls as
            one over it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Share:
    """A ratio of two sums over the cases: ``part`` and ``whole`` ``(N,)``."""

    metric: str
    label: str
    part: Array
    whole: Array
    biased: ClassVar[bool] = False

    @property
    def evidence(self) -> Array:
        return self.whole[:, None] > 0

    def only(self, cases: Array) -> Share:
        return replace(self, part=self.part[cases], whole=self.whole[cases])

    def measure(self, weights: Array) -> tuple[Array, Array]:
        sums = weights @ np.stack([self.part, self.whole], axis=1)
        return share(sums[:, 0], sums[:, 1]), sums[:, 1]


@dataclass(frozen=True, eq=False)
class Ranked:
    """How well ``probability`` ``(N,)`` (NaN: unknown) ranks ``truth`` ``(N,)`` bool: the metric of `Answers` of that name."""

    metric: str
    label: str
    probability: Array
    truth: Array
    biased: ClassVar[bool] = False

    @property
    def evidence(self) -> Array:
        known = ~np.isnan(self.probability)
        return np.stack([known & self.truth, known & ~self.truth], axis=1)

    def only(self, cases: Array) -> Ranked:
        return replace(self, probability=self.probability[cases], truth=self.truth[cases])

    def measure(self, weights: Array) -> tuple[Array, Array]:
        true, other = (weights @ self.evidence).T
        known = self.evidence.any(axis=1)
        rests_on = share(true * other, true + other, empty=0.0)
        if not known.any():
            return np.full(len(weights), np.nan), rests_on
        probability, truth, weights = self.probability[known, None], self.truth[known, None], weights[:, known]
        answers = Answers((self.label,), False, truth, probability, called=truth)
        auroc = self.metric == "auroc"
        return (answers.aurocs(weights) if auroc else answers.measure(weights)[self.metric])[:, 0], rests_on


@dataclass(frozen=True, eq=False)
class CalibrationError:
    """The expected calibration error of one class: of ``probability`` ``(N,)`` (NaN: unknown) for ``truth`` ``(N,)`` bool."""

    metric: str
    label: str
    probability: Array
    truth: Array
    biased: ClassVar[bool] = True

    @property
    def evidence(self) -> Array:
        return ~np.isnan(self.probability)[:, None]

    def only(self, cases: Array) -> CalibrationError:
        return replace(self, probability=self.probability[cases], truth=self.truth[cases])

    @cached_property
    def _gaps(self) -> Array:
        """``(N, bins + 1)`` what each case adds to Σ (probability − truth) of its bin, and to the number of cases."""
        known = self.evidence[:, 0]
        at = bin_of(self.probability, np.linspace(0, 1, BINS + 1))
        hit = known[:, None] & (at[:, None] == np.arange(BINS))
        return np.column_stack([np.where(hit, (self.probability - self.truth)[:, None], 0.0), known])

    def measure(self, weights: Array) -> tuple[Array, Array]:
        sums = weights @ self._gaps
        return share(np.abs(sums[:, :-1]).sum(axis=1), sums[:, -1]), sums[:, -1]


def figures_of(cases: AuditCases, metrics: Sequence[str] | None = None) -> list[Figure]:
    """A figure a metric and label, of those that hold a case.

    Args:
        metrics: which; None for `DEFAULT`, or all where none of them is there.

    Raises:
        MedsegError: a metric that the rows do not give; lists those that they do.
    """
    known = _makers(cases)
    if metrics is None:
        metrics = [name for name in DEFAULT if name in known] or list(known)
    unknown = [name for name in dict.fromkeys(metrics) if name not in known]
    if unknown or not metrics:
        problems = [f"no metric {name!r}" for name in unknown] or ["expected at least one metric, found none"]
        raise all_at_once(f"metrics: these cases give {', '.join(known)}; of what was asked for:", problems)
    figures = [figure for name in dict.fromkeys(metrics) for figure in known[name]()]
    return [figure for figure in figures if figure.evidence.any()]


def _makers(cases: AuditCases) -> dict[str, Callable[[], list[Figure]]]:
    """Metric → what makes its figures, for all that the rows give."""
    inputs = (*_COUNTS, _PROBABILITY, _CORRECT, _CONFIDENCE)
    makers: dict[str, Callable[[], list[Figure]]] = {}
    for metric in cases.metrics():
        if metric not in inputs:
            makers[metric] = partial(_means, cases, metric, metric)
    if all(cases.labels(count) for count in _COUNTS):
        for metric in ("sensitivity", "precision", "f1", "fp_per_scan"):
            makers[metric] = partial(_pooled, cases, metric)
    if cases.labels(_CONFIDENCE):
        makers["calibration_gap"] = partial(_promised, cases)
    if cases.labels(_PROBABILITY):
        for metric in ("auroc", "auprc", "sensitivity", "specificity", "brier", "ece"):
            makers[metric] = partial(_of_probabilities, cases, metric)
    if cases.labels(_CORRECT):
        makers["accuracy"] = partial(_means, cases, _CORRECT, "accuracy")
    return makers


def _means(cases: AuditCases, metric: str, name: str) -> list[Figure]:
    return [_mean(name, label, cases.measured[metric, label].value) for label in cases.labels(metric)]


def _mean(metric: str, label: str, values: Array) -> Share:
    present = ~np.isnan(values)
    return Share(metric, label, np.where(present, values, 0.0), present.astype(float))


def _pooled(cases: AuditCases, metric: str) -> list[Figure]:
    figures: list[Figure] = []
    for label in cases.labels("tp"):
        tp, fp, fn = (np.nan_to_num(cases.measured[count, label].value) for count in _COUNTS)
        scans = (~np.isnan(cases.measured["tp", label].value)).astype(float)
        part, whole = {
            "sensitivity": (tp, tp + fn),
            "precision": (tp, tp + fp),
            "f1": (2 * tp, 2 * tp + fp + fn),
            "fp_per_scan": (fp, scans),
        }[metric]
        figures.append(Share(metric, label, part, whole))
    return figures


def _promised(cases: AuditCases) -> list[Figure]:
    figures: list[Figure] = []
    for label in cases.labels(_CONFIDENCE):
        stated, tp, fp = (np.nan_to_num(cases.measured[name, label].value) for name in (_CONFIDENCE, "tp", "fp"))
        figures.append(Share("calibration_gap", label, stated - tp, tp + fp))
    return figures


def _of_probabilities(cases: AuditCases, metric: str) -> list[Figure]:
    figures: list[Figure] = []
    for label in cases.labels(_PROBABILITY):
        rows = cases.measured[_PROBABILITY, label]
        known, truth, called = ~np.isnan(rows.value), rows.n_gt > 0, rows.n_pred > 0
        if metric in ("auroc", "auprc"):
            figures.append(Ranked(metric, label, rows.value, truth))
        elif metric == "ece":
            figures.append(CalibrationError(metric, label, rows.value, truth))
        elif metric == "brier":
            figures.append(_mean(metric, label, (rows.value - truth) ** 2))
        else:
            side, right = (truth, called) if metric == "sensitivity" else (~truth, ~called)
            whole = (known & side).astype(float)
            figures.append(Share(metric, label, whole * right, whole))
    return figures
