"""Sets of classes that hold the true one in a promised share of cases: split conformal prediction. Knows probabilities only.

Each class of a case gets a non-conformity from 0 to 1, here 1 − p, which gives the smallest sets on average (``lac``; Sadinle et
al. 2019, "Least Ambiguous Set-Valued Classifiers"); the set holds the classes up to a *level*, and the level is the
⌈(n + 1)(1 − α)⌉-th smallest of what the true classes of n `tune` cases had (Angelopoulos & Bates 2021, "A Gentle Introduction to
Conformal Prediction", §1). Where new cases are like those of `tune`, the set then holds the true class in 1 − α of them or more.
Where n < 1/α − 1 no level promises so much: it is 1, every class is in every set, and that is logged.

Exclusive classes: an empty set is given the likeliest class, which can only add coverage. Several classes a case: each class has
a level of its own, from the cases that show it, and the promise is made for each class; an empty set means none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.volume import Array

logger = logging.getLogger(__name__)
ALPHA = 0.1
"""The share of cases whose set may miss the truth."""
KIND = "lac"
"""How non-conformity is measured, as models state it."""


def choose_conformal(
    probabilities: Array, truth: Array, *, multilabel: bool = False, alpha: float = ALPHA
) -> dict[str, Any]:
    """The level of a set that misses the truth in ``alpha`` of the cases at most, as plain data for a model.

    Args:
        probabilities: ``(N, K)`` of the cases of `tune`.
        truth: ``(N,)`` index of the class, or ``(N, K)`` 0 or 1 (``multilabel``).

    Returns:
        ``{"alpha": α, "kind": "lac", "level": level}``, the level a list with one a class where ``multilabel``.

    Raises:
        MedsegError: options or shapes make no sense.
    """
    _check(probabilities, truth, multilabel, alpha)
    scores = _of_truth(1 - np.asarray(probabilities, np.float64), truth, multilabel)
    fewest = math.ceil(round(1 / alpha - 1, 9))
    few = [len(of_class) for of_class in scores if len(of_class) < fewest]
    if few and multilabel:
        logger.warning(
            "conformal sets: %d of %d classes are shown by fewer than the %d tune cases that alpha=%g needs (%d at least); they "
            "are in every set",
            *(len(few), len(scores), fewest, alpha, min(few)),
        )
    elif few:
        logger.warning(
            "conformal sets: alpha=%g needs %d tune cases, found %d: every set holds all classes. Take a larger alpha or more "
            "cases",
            *(alpha, fewest, few[0]),
        )
    levels = [smallest_level(of_class, alpha) for of_class in scores]
    return {"alpha": float(alpha), "kind": KIND, "level": levels if multilabel else levels[0]}


def smallest_level(scores: Array, alpha: float) -> float:
    """The ⌈(n + 1)(1 − α)⌉-th smallest of n scores (n,) from 0 to 1; 1 where n is too small for that."""
    rank = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))  # rounded: 10 · (1 − 0.1) must not become 10
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else 1.0


def in_sets(probabilities: Array, conformal: Mapping[str, Any], *, multilabel: bool = False) -> Array:
    """Which classes cannot be excluded.

    Args:
        probabilities: ``(N, K)``.
        conformal: as `choose_conformal` returns it.

    Returns:
        ``(N, K)`` bool.

    Raises:
        MedsegError: the stored level does not fit the classes, or its kind is not known.
    """
    probabilities = np.asarray(probabilities, np.float64)
    levels = np.atleast_1d(np.asarray(conformal.get("level", np.nan), np.float64))
    shape = (probabilities.shape[1],) if multilabel else (1,)
    if conformal.get("kind") != KIND or levels.shape != shape or not np.isfinite(levels).all():
        wanted = f"{probabilities.shape[1]} levels, one a class" if multilabel else "one level"
        raise MedsegError(
            f"conformal sets: expected the kind {KIND} and {wanted}, found {dict(conformal)}; train the model again"
        )
    inside = 1 - probabilities <= levels
    if not multilabel:
        inside[np.arange(len(inside)), probabilities.argmax(1)] |= ~inside.any(1)
    return inside


@dataclass(frozen=True)
class Coverage:
    """How often sets hold the truth. Several classes a case: the share of the true classes that their sets hold.

    Args:
        alpha: the promise is 1 − alpha.
        value: mean coverage over the splits.
        spread: standard deviation from split to split.
        expected, expected_spread: both, if the cases could be exchanged for one another (Vovk 2012; Angelopoulos & Bates 2021,
            §3.2: the covered cases of m are beta-binomial in n + 1 − l and l = ⌊(n + 1) α⌋, n those of the tune side).
        set_size: mean number of classes in a set.
        splits: how many; ``cases`` are in each, on both sides together.
    """

    alpha: float
    value: float
    spread: float
    expected: float
    expected_spread: float
    set_size: float
    splits: int
    cases: int


def coverage_over_splits(
    probabilities: Array,
    truth: Array,
    patients: Sequence[str],
    alpha: float = ALPHA,
    *,
    splits: int = 200,
    seed: int = 0,
    multilabel: bool = False,
) -> Coverage:
    """Coverage averaged over many random halvings of the cases by patient: one half chooses the level, the other is covered.

    A single `tune` and `test` of few cases says little: of 50 and 50 cases at α = 0.1 the coverage lies anywhere from 0.76 to 1.
    The halves are alike by construction, so that this checks the sets, not whether `tune` resembles the clinic; that is
    the coverage of the stored level on `test` (`coverage_of`). Several cases a patient spread more than is expected.

    Args:
        probabilities: ``(N, K)`` of all cases together.
        truth: ``(N,)`` index of the class, or ``(N, K)`` 0 or 1 (``multilabel``).
        patients: ``N`` keys; the cases of one stay on one side.

    Raises:
        MedsegError: options or shapes make no sense, or there are fewer than two patients.
    """
    _check(probabilities, truth, multilabel, alpha)
    probabilities, truth = np.asarray(probabilities, np.float64), np.asarray(truth)
    names, owner = np.unique(np.asarray(patients, str), return_inverse=True)
    if len(names) < 2 or len(owner) != len(truth) or splits < 1:
        found = f"{len(names)} patients of {len(owner)} cases, {len(truth)} truths, {splits} splits"
        raise MedsegError(f"coverage: expected at least two patients, a patient a case and splits ≥ 1; found {found}")
    random = np.random.default_rng(seed)
    scores = 1 - probabilities
    rows = []
    for _ in range(splits):
        tune = np.isin(owner, random.permutation(len(names))[: len(names) // 2])
        known, asked = (_of_truth(scores[side], truth[side], multilabel) for side in (tune, ~tune))
        level = [smallest_level(of_class, alpha) for of_class in known]
        stated = {"kind": KIND, "level": level if multilabel else level[0]}
        inside = in_sets(probabilities[~tune], stated, multilabel=multilabel)
        rows.append([*coverage_of(inside, truth[~tune], multilabel=multilabel), *_expected(known, asked, alpha)])
    value, size, expected, variance = np.nanmean(rows, axis=0)
    spread = np.nanstd([row[0] for row in rows])
    return Coverage(
        alpha, float(value), float(spread), float(expected), float(variance**0.5), float(size), splits, len(truth)
    )


def coverage_of(inside: Array, truth: Array, *, multilabel: bool = False) -> tuple[float, float]:
    """The share of the truth that sets hold, and their mean size; the share is NaN where nothing is true.

    Args:
        inside: ``(N, K)`` bool, of `in_sets`.
        truth: ``(N,)`` index of the class, or ``(N, K)`` 0 or 1 (``multilabel``).
    """
    held = inside[np.asarray(truth, bool)] if multilabel else inside[np.arange(len(truth)), truth]
    return float(held.mean()) if held.size else float("nan"), float(inside.sum(1).mean())


def _of_truth(scores: Array, truth: Array, multilabel: bool) -> list[Array]:
    """The non-conformity of what is true: of all cases, or class by class of those that show it."""
    truth = np.asarray(truth)
    if not multilabel:
        return [scores[np.arange(len(truth)), truth]]
    return [scores[truth[:, k].astype(bool), k] for k in range(scores.shape[1])]


def _expected(known: Sequence[Array], asked: Sequence[Array], alpha: float) -> tuple[float, float]:
    """Mean and variance of the coverage of one split if scores could be exchanged, by the numbers on both sides."""
    total, mean, variance = sum(map(len, asked)), 0.0, 0.0
    for n, m in ((len(of_class), len(others)) for of_class, others in zip(known, asked, strict=True)):
        missed = math.floor(round((n + 1) * alpha, 9))
        mean += m * (n + 1 - missed) / (n + 1)
        variance += m * (n + 1 - missed) * missed * (n + 1 + m) / ((n + 1) ** 2 * (n + 2))
    return (mean / total, variance / total**2) if total else (float("nan"), float("nan"))


def _check(probabilities: Array, truth: Array, multilabel: bool, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise MedsegError(
            f"conformal sets: expected an alpha between 0 and 1, the share that may be missed, found {alpha}"
        )
    shape, found = np.shape(probabilities), np.shape(truth)
    if len(shape) != 2 or found != (shape if multilabel else shape[:1]):
        wanted = "(N, K)" if multilabel else "(N,)"
        raise MedsegError(f"conformal sets: expected probabilities (N, K) and a truth {wanted}, found {shape}, {found}")
