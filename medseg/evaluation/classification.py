"""How good class probabilities are, each class against the rest: figures of arrays. Knows no files, no patients, no model.

=======================  ==============================================================================================
``auroc``                probability that a case with the class gets a higher probability than one without, ties as half
                         (Mann & Whitney 1947; Hanley & McNeil 1982); blank where all cases have it, or none
``auprc``                average precision: the sum over falling thresholds of precision times gain in recall, nothing
                         interpolated, equal probabilities called together
``sensitivity``          of the cases with the class, the share that is called so; ``specificity``: of those without, the
``ppv`` ``npv``          share that is not; ``ppv`` and ``npv``: of those called so and not, the share that is right
``f1``                   2 · right / (with the class + called so)
``balanced_accuracy``    mean of sensitivity and specificity
``accuracy``             share of the cases of which this class is said or denied rightly
``brier``                mean of (probability − truth)² (Brier 1950, of one class)
``nll``                  mean of −log of the probability of what is true
=======================  ==============================================================================================

**The column mean** is the mean over the classes that have a value (macro), with three exceptions. ``accuracy`` is the share of
the cases of which everything is said rightly. Where classes exclude each other, ``balanced_accuracy`` is the mean sensitivity
and ``nll`` that of the true class alone, which is what these words usually mean.

**Called.** Of classes that exclude each other the most probable one is called; of two, the one with a threshold from there up.
Of classes that do not, each from its threshold up (0.5 where none is given).

Every figure takes weights, how often each case counts, so that the draws of a bootstrap are rows of whole numbers and nothing
is sorted again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.shares import share, with_mean
from medseg.volume import Array

HALF = 0.5
"""From which probability a class is called where nobody chose another one."""
_SMALLEST = 1e-7  # what float32 tells from 1; a sure mistake costs 16 nats and not infinitely many
NEEDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "auroc": ("shown", "absent"),
        "auprc": ("shown",),
        "f1": ("shown",),
        "sensitivity": ("shown",),
        "specificity": ("absent",),
        "ppv": ("called",),
        "npv": ("denied",),
        "balanced_accuracy": ("shown", "absent"),
        "accuracy": (),
        "brier": (),
        "nll": (),
    }
)
"""Metric → the cases without which it cannot be measured (names of `Answers.cases_that`); it is a share of the first."""


@dataclass(frozen=True)
class ClassifiedCase:
    """What is true and what is said of one case.

    Args:
        truth: the classes that it shows.
        probabilities: class → probability, every class, in their order.
        called: the classes that it is said to show.
        fold: blank where there are no folds.
        metadata: what the cohort knows beside.
    """

    id: str
    truth: tuple[str, ...]
    probabilities: Mapping[str, float]
    called: tuple[str, ...]
    patient: str
    split: str = ""
    fold: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def called_classes(
    probabilities: Mapping[str, float], thresholds: Mapping[str, float], *, exclusive: bool
) -> tuple[str, ...]:
    """The classes that a case is said to show; the module says by which rule.

    Args:
        thresholds: class → probability from which it is called; of two classes that exclude each other, of one of them.
            Three and more that do need none.

    Raises:
        MedsegError: a threshold is for a class that is not there.
    """
    unknown = sorted(set(thresholds) - set(probabilities))
    if unknown:
        raise MedsegError(f"thresholds: {', '.join(unknown)} is not among the classes {', '.join(probabilities)}")
    if not exclusive:
        return tuple(name for name, value in probabilities.items() if value >= thresholds.get(name, HALF))
    if len(probabilities) == 2 and thresholds:
        positive = next(name for name in probabilities if name in thresholds)
        negative = next(name for name in probabilities if name != positive)
        return (positive if probabilities[positive] >= thresholds[positive] else negative,)
    return (max(probabilities, key=lambda name: probabilities[name]),)


@dataclass(frozen=True, eq=False)
class Answers:
    """Cases as arrays, a row a case and a column a class.

    Args:
        classes: their names, K of them.
        exclusive: whether a case shows one class and no other.
        truth: ``(N, K)`` bool.
        probabilities: ``(N, K)`` between 0 and 1.
        called: ``(N, K)`` bool.
    """

    classes: tuple[str, ...]
    exclusive: bool
    truth: Array
    probabilities: Array
    called: Array

    @classmethod
    def of(cls, cases: Sequence[ClassifiedCase], classes: Sequence[str], *, exclusive: bool) -> Answers:
        """Line up cases that are scored for the same classes."""

        def table(rows: list[list[float]]) -> Array:
            return np.array(rows, np.float64).reshape(len(cases), len(classes))

        return cls(
            tuple(classes),
            exclusive,
            table([[name in case.truth for name in classes] for case in cases]) > 0,
            table([[case.probabilities[name] for name in classes] for case in cases]),
            table([[name in case.called for name in classes] for case in cases]) > 0,
        )

    @property
    def right(self) -> Array:
        """``(N,)`` of which cases everything is said rightly."""
        return np.asarray((self.truth == self.called).all(axis=1))

    @cached_property
    def cases_that(self) -> Mapping[str, Array]:
        """Word of `NEEDS` → ``(N, K)`` bool."""
        return {"shown": self.truth, "absent": ~self.truth, "called": self.called, "denied": ~self.called}

    def aurocs(self, weights: Array) -> Array:
        """``(S, K + 1)`` AUROC of every class and their mean; see `measure`."""
        return with_mean(np.stack([_area(*ladder) for ladder in self._ladders(weights)], axis=1), axis=1)

    def measure(self, weights: Array) -> dict[str, Array]:
        """Every metric: ``(S, K + 1)``, the classes and then their mean; NaN where there is nothing to measure.

        Args:
            weights: ``(S, N)`` how often each case counts, in each of S draws.
        """
        weights = np.asarray(weights, np.float64)
        areas, precisions = zip(
            *((_area(*ladder), _precision(*ladder)) for ladder in self._ladders(weights)), strict=True
        )
        tp, fn, fp, tn = (
            weights @ (true & said)
            for true in (self.truth, ~self.truth)
            for said in (self.called, ~self.called)
        )  # fmt: skip
        total = weights.sum(axis=1, keepdims=True)
        sensitivity, specificity = share(tp, tp + fn), share(tn, tn + fp)
        likelihood = np.where(self.truth, self.probabilities, 1 - self.probabilities)
        surprise = -np.log(np.maximum(likelihood, _SMALLEST))
        figures = {
            "auroc": np.stack(areas, axis=1),
            "auprc": np.stack(precisions, axis=1),
            "f1": share(2 * tp, 2 * tp + fp + fn),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "ppv": share(tp, tp + fp),
            "npv": share(tn, tn + fn),
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "accuracy": share(tp + tn, total),
            "brier": share(weights @ (self.probabilities - self.truth) ** 2, total),
            "nll": share(weights @ surprise, total),
        }
        found = {metric: with_mean(values, axis=1) for metric, values in figures.items()}
        found["accuracy"][:, -1] = share(weights @ self.right, total[:, 0])
        if self.exclusive:
            found["balanced_accuracy"][:, -1] = found["sensitivity"][:, -1]
            found["nll"][:, -1] = share(weights @ (surprise * self.truth).sum(axis=1), total[:, 0])
        return found

    def confusion(self) -> tuple[tuple[str, ...], tuple[str, ...], Array]:
        """Names of rows, names of columns, and counts.

        Of classes that exclude each other a row is a true class and a column a called one, ``(K, K)``; of others a row is a
        class, with the cases that show it and are called so or not, then those that do not, ``(K, 4)``.
        """
        if self.exclusive:
            return self.classes, self.classes, self.truth.T.astype(np.int64) @ self.called
        cells = [(t & c).sum(axis=0) for t in (self.truth, ~self.truth) for c in (self.called, ~self.called)]
        return self.classes, ("found", "missed", "false alarm", "rightly denied"), np.stack(cells, axis=1)

    def _ladders(self, weights: Array) -> Iterator[tuple[Array, Array]]:
        """`_by_score` of each class."""
        for scores, truth in zip(self.probabilities.T, self.truth.T, strict=True):
            yield _by_score(scores, truth, weights)


def auroc(scores: Array, truth: Array) -> float:
    """Area under the ROC curve of ``scores`` (N,) and ``truth`` (N,) bool; NaN where one kind of case is missing."""
    return float(_area(*_by_score(scores, truth, _once(scores)))[0])


def average_precision(scores: Array, truth: Array) -> float:
    """Average precision of ``scores`` (N,) and ``truth`` (N,) bool; NaN where no case is positive."""
    return float(_precision(*_by_score(scores, truth, _once(scores)))[0])


def roc_curve(scores: Array, truth: Array) -> tuple[Array, Array]:
    """False-positive rate and sensitivity at each distinct score, from (0, 0) to (1, 1); NaN where a kind is missing."""
    positive, negative = (np.append(0.0, counts[0, ::-1]) for counts in _by_score(scores, truth, _once(scores)))
    return share(np.cumsum(negative), negative.sum()), share(np.cumsum(positive), positive.sum())


def precision_recall_curve(scores: Array, truth: Array) -> tuple[Array, Array]:
    """Recall and precision at each distinct score, falling; recall is NaN where no case is positive."""
    positive, negative = (counts[0, ::-1] for counts in _by_score(scores, truth, _once(scores)))
    true = np.cumsum(positive)
    return share(true, positive.sum()), share(true, true + np.cumsum(negative))


def _area(positive: Array, negative: Array) -> Array:
    """``(S,)`` AUROC."""
    lower = np.cumsum(negative, axis=1) - negative
    wins = (positive * (lower + negative / 2)).sum(axis=1)
    return share(wins, positive.sum(axis=1) * negative.sum(axis=1))


def _precision(positive: Array, negative: Array) -> Array:
    """``(S,)`` average precision."""
    positive, negative = positive[:, ::-1], negative[:, ::-1]
    true = np.cumsum(positive, axis=1)
    gained = positive * true / np.maximum(true + np.cumsum(negative, axis=1), 1)  # whole numbers: 1 is for none at all
    return share(gained.sum(axis=1), positive.sum(axis=1))


def _once(scores: Array) -> Array:
    return np.ones((1, len(scores)))


def _by_score(scores: Array, truth: Array, weights: Array) -> tuple[Array, Array]:
    """``(S, G)`` weight of the positive and of the negative cases at each of the G distinct scores, rising."""
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    ordered = np.asarray(weights, np.float64)[:, order]
    positive = np.add.reduceat(ordered * np.asarray(truth, bool)[order], first, axis=1)
    return positive, np.add.reduceat(ordered, first, axis=1) - positive
