"""The evaluation folder of a classifier: probabilities of every case in the long table, pooled figures with intervals beside.

    cases.csv      a row ``probability`` for every class of every case (``n_gt`` 1 where the case shows the class, ``n_pred`` 1
                   where it is called so), and a row ``correct`` a case, 1 where everything is said rightly (label ``mean``)
    summary.json   {metric: {label: {value, low, high, n, n_cases, n_missing}}}, with a ``note`` where a figure is blank

The metrics are those of `medseg.evaluation.classification`; ``auroc_in_<band>`` is of the cases in a band alone. Where
another predictor was scored on the same cases, ``auroc_minus_<its name>`` (and ``auroc_in_<band>_minus_<its name>``) is the
difference of the two AUROC, measured in pairs, and ``above`` the share of the draws in which it lies above 0.

``n`` counts the cases that a figure is a share of (of AUROC, AUPRC and F1 those with the class), ``n_missing`` the cases with
the class that are not called so. Intervals are percentile bootstrap intervals over patients. They are blank where fewer than
five patients have what the figure is a share of; that of the mean needs those of all classes that have a value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.bands import Band
from medseg.evaluation.bootstrap import FEWEST_PATIENTS
from medseg.evaluation.classification import NEEDS, Answers, ClassifiedCase
from medseg.evaluation.draws import case_weights, owners
from medseg.evaluation.segmentation import Row
from medseg.evaluation.summary import MEAN, ScoredCase, Summary, cases_csv, check_label_names
from medseg.files import write_text
from medseg.volume import Array

_LEVEL = 0.95
_WORDS = {"shown": "shows it", "absent": "is without it", "called": "is called so", "denied": "is called otherwise"}


@dataclass(frozen=True)
class _Support:
    """What a figure of a class rests on: ``n`` cases that it is a share of; ``note`` says why its interval is blank, if it is."""

    n: int
    missing: int
    note: str


def classification_metrics(
    cases: Sequence[ClassifiedCase],
    classes: Sequence[str],
    *,
    exclusive: bool,
    bands: Sequence[Band] = (),
    samples: int = 1000,
    seed: int = 0,
) -> Summary:
    """Every figure of the cases, and the AUROC in every band, with 95 % intervals.

    Args:
        exclusive: whether a case shows one class and no other.
        samples: bootstrap draws; 0 for no intervals.

    Raises:
        MedsegError: there is no case, or a class is called ``mean``.
    """
    check_label_names(list(classes))
    if not cases:
        raise MedsegError("classification: expected at least one case to score")
    answers, owner = _lined_up(cases, classes, exclusive)
    summary = _summary(answers, owner, answers.measure, NEEDS, samples, seed)
    for band in bands:
        inside, owner = _lined_up([case for case in cases if band.holds(case.metadata)], classes, exclusive)
        metric = f"auroc_in_{band}"
        measure = _called(metric, inside.aurocs)
        summary |= _summary(inside, owner, measure, {metric: NEEDS["auroc"]}, samples, seed)
    return summary


def auroc_differences(
    cases: Sequence[ClassifiedCase],
    others: Mapping[str, Sequence[ClassifiedCase]],
    classes: Sequence[str],
    *,
    exclusive: bool,
    bands: Sequence[Band] = (),
    samples: int = 1000,
    seed: int = 0,
) -> Summary:
    """By how much the AUROC exceeds that of each other predictor on the same cases, in all of them and in every band.

    Both are measured on the same draws of patients (a paired bootstrap), so that what is hard for both does not widen the
    interval. A draw in which they are equal is not ``above``. Arguments as of `classification_metrics`.

    Raises:
        MedsegError: another predictor was not scored on the same cases, or with other truths.
    """
    summary: Summary = {}
    for name, theirs in others.items():
        beside = {(case.fold, case.id): case for case in theirs}
        if {(c.fold, c.id): c.truth for c in cases} != {key: c.truth for key, c in beside.items()}:
            raise MedsegError(f"{name}: expected the same cases with the same classes, to be compared in pairs")
        for band in (None, *bands):
            inside = [case for case in cases if band is None or band.holds(case.metadata)]
            first, owner = _lined_up(inside, classes, exclusive)
            second, _ = _lined_up([beside[case.fold, case.id] for case in inside], classes, exclusive)
            metric = f"auroc_minus_{name}" if band is None else f"auroc_in_{band}_minus_{name}"
            measure = _called(metric, partial(_ahead, first, second))
            summary |= _summary(first, owner, measure, {metric: NEEDS["auroc"]}, samples, seed, above=True)
    return summary


def write_classification(folder: Path, cases: Sequence[ClassifiedCase], summary: Summary) -> None:
    """Write ``cases.csv`` and ``summary.json`` into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [ScoredCase(c.id, c.patient, c.split, _rows(c), c.fold, c.metadata) for c in cases]
    write_text(folder / "cases.csv", cases_csv(rows))
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _rows(case: ClassifiedCase) -> tuple[Row, ...]:
    truth, called = set(case.truth), set(case.called)
    values = case.probabilities.items()
    rows = [Row(name, "probability", value, int(name in truth), int(name in called)) for name, value in values]
    return (*rows, Row(MEAN, "correct", float(truth == called), len(truth), len(called)))


def _lined_up(cases: Sequence[ClassifiedCase], classes: Sequence[str], exclusive: bool) -> tuple[Answers, Array]:
    """Cases as arrays, and `owners` of each."""
    return Answers.of(cases, classes, exclusive=exclusive), owners([case.patient for case in cases])


def _ahead(first: Answers, second: Answers, weights: Array) -> Array:
    return first.aurocs(weights) - second.aurocs(weights)


def _called(metric: str, figure: Callable[[Array], Array]) -> Callable[[Array], dict[str, Array]]:
    """A figure as `Answers.measure` gives it: under its name."""
    return lambda weights: {metric: figure(weights)}


def _summary(
    answers: Answers,
    owner: Array,
    measure: Callable[[Array], Mapping[str, Array]],
    needs: Mapping[str, Sequence[str]],
    samples: int,
    seed: int,
    *,
    above: bool = False,
) -> Summary:
    """Values and intervals of what ``measure`` makes of weights (S, N): ``(S, K + 1)`` by metric."""
    whole = measure(np.ones((1, len(owner))))
    blocks = [measure(weights) for weights in case_weights(owner, samples, seed)]
    summary: Summary = {}
    for metric, (values,) in whole.items():
        supports = [_support(answers, owner, needs[metric], at) for at in range(len(answers.classes))]
        supports.append(_of_all(supports, values[:-1], len(owner), shares=bool(needs[metric])))
        drawn = np.concatenate([np.zeros((0, len(values))), *(block[metric] for block in blocks)])
        columns = zip((*answers.classes, MEAN), values.tolist(), drawn.T, supports, strict=True)
        summary[metric] = {
            name: _entry(value, of_label, support, len(owner), above) for name, value, of_label, support in columns
        }
    return summary


def _support(answers: Answers, owner: Array, needs: Sequence[str], at: int) -> _Support:
    """Of one class."""
    kinds = {f"that {_WORDS[word]}": answers.cases_that[word][:, at] for word in needs}
    kinds = kinds or {"at all": np.ones(len(owner), bool)}
    holders = {word: len(np.unique(owner[of])) for word, of in kinds.items()}
    word, count = min(holders.items(), key=lambda holder: holder[1])
    note = f"fewer than {FEWEST_PATIENTS} patients have a case {word}" if count else f"no case {word}"
    n = int(next(iter(kinds.values())).sum())
    missing = int((answers.truth[:, at] & ~answers.called[:, at]).sum())
    return _Support(n, missing, note if count < FEWEST_PATIENTS else "")


def _of_all(supports: Sequence[_Support], values: Array, n_cases: int, *, shares: bool) -> _Support:
    """Of the mean over classes; ``shares``: the figure is a share of some cases of each class, and not of all cases."""
    known = [support for support, value in zip(supports, values, strict=True) if not math.isnan(value)]
    note = "a class is too rare" if any(support.note for support in known) else "" if known else "no class has a value"
    n = sum(support.n for support in supports) if shares else n_cases
    return _Support(n, sum(support.missing for support in supports), note)


def _entry(value: float, drawn: Array, support: _Support, n_cases: int, above: bool) -> dict[str, Any]:
    """What the summary says of one figure, whose draws are ``drawn`` (S,)."""
    entry: dict[str, Any] = {"value": None if math.isnan(value) else value, "low": None, "high": None}
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) and not support.note:
        tail = 50 * (1 - _LEVEL)
        entry["low"], entry["high"] = (float(end) for end in np.percentile(drawn, [tail, 100 - tail]))
    if above:
        entry["above"] = float((drawn > 0).mean()) if entry["low"] is not None else None
    entry |= {"n": support.n, "n_cases": n_cases, "n_missing": support.missing}
    return {**entry, "note": support.note} if support.note else entry
