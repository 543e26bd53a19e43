from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.classification import (
    Answers,
    ClassifiedCase,
    auroc,
    average_precision,
    called_classes,
    precision_recall_curve,
    roc_curve,
)
from medseg.volume import Array

TRUTH = np.array([True, True, False, True, False])
SCORES = np.array([0.9, 0.8, 0.8, 0.3, 0.1])
"""Pairs: 0.9 beats both; 0.8 ties with one and beats the other; 0.3 loses one and beats one: 2 + 1.5 + 1 of 6."""


def case(truth: str, *probabilities: float, called: str = "", patient: str = "") -> ClassifiedCase:
    names = "abc"[: len(probabilities)]
    said = dict(zip(names, probabilities, strict=True))
    found = tuple(called) if called else called_classes(said, {}, exclusive=True)
    return ClassifiedCase(f"{truth}{probabilities}", tuple(truth), said, found, patient)


def measured(cases: list[ClassifiedCase], exclusive: bool = True) -> dict[str, list[float]]:
    answers = Answers.of(cases, "abc"[: len(cases[0].probabilities)], exclusive=exclusive)
    return {name: values[0].tolist() for name, values in answers.measure(np.ones((1, len(cases)))).items()}


def brute_auroc(scores: Array, truth: Array) -> float:
    pairs = list(itertools.product(scores[truth], scores[~truth]))
    return sum(float(a > b) + 0.5 * float(a == b) for a, b in pairs) / len(pairs)


def brute_average_precision(scores: Array, truth: Array) -> float:
    """Each threshold in turn, as the definition says: the sum of (recall gained) × precision."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = scores >= threshold
        recall = (called & truth).sum() / truth.sum()
        total += (recall - before) * (called & truth).sum() / called.sum()
        before = recall
    return total


# ---- ranking


def test_auroc_and_average_precision_are_those_computed_by_hand() -> None:
    assert auroc(SCORES, TRUTH) == pytest.approx(4.5 / 6)
    # 0.9: 1 of 1; 0.8 (two at once): 2 of 3; 0.3: 3 of 4
    assert average_precision(SCORES, TRUTH) == pytest.approx(1 / 3 * (1 + 2 / 3 + 3 / 4))
    assert auroc(np.ones(5), TRUTH) == 0.5 and average_precision(np.ones(5), TRUTH) == pytest.approx(3 / 5)


@pytest.mark.parametrize("digits", [1, 2, 6])
def test_both_follow_their_definition_with_many_ties_and_with_none(digits: int) -> None:
    random = np.random.default_rng(digits)
    truth = random.random(80) < 0.3
    scores = np.round(random.random(80) + 0.3 * truth, digits)
    assert auroc(scores, truth) == pytest.approx(brute_auroc(scores, truth))
    assert average_precision(scores, truth) == pytest.approx(brute_average_precision(scores, truth))


def test_a_weight_is_a_case_that_stands_there_so_often() -> None:
    random = np.random.default_rng(0)
    weights = random.integers(0, 4, (6, 30))
    cases = [case("abc"[at % 3], *np.round(random.dirichlet(np.ones(3)), 1).tolist()) for at in range(30)]
    drawn = Answers.of(cases, "abc", exclusive=True).measure(weights)
    for row, counts in enumerate(weights):
        repeated = measured([cases[at] for at in np.repeat(np.arange(30), counts)])
        for metric, values in repeated.items():
            assert drawn[metric][row] == pytest.approx(values, nan_ok=True)
    assert np.array_equal(Answers.of(cases, "abc", exclusive=True).aurocs(weights), drawn["auroc"])


def test_where_one_kind_of_case_is_missing_there_is_nothing_to_rank() -> None:
    for truth in (np.zeros(5, bool), np.ones(5, bool), np.zeros(0, bool)):
        assert math.isnan(auroc(SCORES[: len(truth)], truth))
    assert math.isnan(average_precision(SCORES, np.zeros(5, bool))) and average_precision(SCORES, np.ones(5, bool)) == 1


def test_curves_pass_through_their_points_and_enclose_their_area() -> None:
    false, sensitivity = roc_curve(SCORES, TRUTH)
    assert false.tolist() == [0, 0, 0.5, 0.5, 1] and sensitivity == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert np.trapezoid(sensitivity, false) == pytest.approx(auroc(SCORES, TRUTH))
    recall, precision = precision_recall_curve(SCORES, TRUTH)
    assert recall == pytest.approx([1 / 3, 2 / 3, 1, 1]) and precision == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])
    assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(average_precision(SCORES, TRUTH))


# ---- what is called


@pytest.mark.parametrize(
    ("probabilities", "thresholds", "exclusive", "expected"),
    [
        ({"a": 0.2, "b": 0.5, "c": 0.3}, {}, True, ("b",)),
        ({"a": 0.4, "b": 0.4, "c": 0.2}, {}, True, ("a",)),
        ({"a": 0.2, "b": 0.5, "c": 0.3}, {"a": 0.1}, True, ("b",)),
        ({"a": 0.7, "b": 0.3}, {}, True, ("a",)),
        ({"a": 0.7, "b": 0.3}, {"b": 0.3}, True, ("b",)),
        ({"a": 0.7, "b": 0.3}, {"a": 0.8}, True, ("b",)),
        ({"a": 0.7, "b": 0.5}, {}, False, ("a", "b")),
        ({"a": 0.7, "b": 0.5}, {"a": 0.8, "b": 0.1}, False, ("b",)),
        ({"a": 0.1}, {}, False, ()),
    ],
)
def test_what_is_called_follows_the_thresholds(
    probabilities: dict[str, float], thresholds: dict[str, float], exclusive: bool, expected: tuple[str, ...]
) -> None:
    assert called_classes(probabilities, thresholds, exclusive=exclusive) == expected


def test_a_threshold_for_an_unknown_class_is_refused() -> None:
    with pytest.raises(MedsegError, match="thresholds: d is not among the classes a, b"):
        called_classes({"a": 0.5, "b": 0.5}, {"d": 0.5}, exclusive=True)


# ---- figures at a point


def test_figures_of_exclusive_classes_are_those_counted_by_hand() -> None:
    cases = [
        case("a", 0.8, 0.1, 0.1),
        case("a", 0.3, 0.6, 0.1),
        case("b", 0.1, 0.7, 0.2),
        case("c", 0.5, 0.1, 0.4),
        case("c", 0.1, 0.1, 0.8),
    ]
    found = measured(cases)
    assert found["sensitivity"] == pytest.approx([1 / 2, 1, 1 / 2, 2 / 3])
    assert found["specificity"] == pytest.approx([2 / 3, 3 / 4, 1, (2 / 3 + 3 / 4 + 1) / 3])
    assert found["ppv"] == pytest.approx([1 / 2, 1 / 2, 1, 2 / 3])
    assert found["npv"] == pytest.approx([2 / 3, 1, 3 / 4, (2 / 3 + 1 + 3 / 4) / 3])
    assert found["f1"] == pytest.approx([1 / 2, 2 / 3, 2 / 3, 11 / 18])
    assert found["accuracy"] == pytest.approx([3 / 5, 4 / 5, 4 / 5, 3 / 5])  # the last: cases called rightly
    assert found["balanced_accuracy"][-1] == pytest.approx(2 / 3)  # mean sensitivity
    assert found["brier"][0] == pytest.approx((0.04 + 0.49 + 0.01 + 0.25 + 0.01) / 5)
    assert found["nll"][-1] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.4, 0.8]).mean())
    answers = Answers.of(cases, "abc", exclusive=True)
    rows, columns, counts = answers.confusion()
    assert rows == columns == ("a", "b", "c") and counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert answers.right.tolist() == [True, False, True, False, True]


def test_figures_of_several_classes_a_case_are_those_counted_by_hand() -> None:
    cases = [case("ab", 0.9, 0.6, called="ab"), case("", 0.2, 0.7, called="b"), case("b", 0.5, 0.4, called="a")]
    found = measured(cases, exclusive=False)
    assert found["auroc"] == pytest.approx([1, 0, 0.5])
    assert found["sensitivity"] == pytest.approx([1, 1 / 2, 3 / 4])
    assert found["accuracy"] == pytest.approx([2 / 3, 1 / 3, 1 / 3])  # the last: all classes of a case
    assert found["nll"][0] == pytest.approx(-np.log([0.9, 0.8, 0.5]).mean())
    assert found["nll"][-1] == pytest.approx(np.mean(found["nll"][:-1]))
    rows, columns, counts = Answers.of(cases, "ab", exclusive=False).confusion()
    assert rows == ("a", "b") and columns[:2] == ("found", "missed")
    assert counts.tolist() == [[1, 0, 1, 1], [1, 1, 1, 0]]


def test_a_class_that_no_case_shows_is_blank_and_not_in_the_mean() -> None:
    found = measured([case("a", 0.8, 0.1, 0.1), case("b", 0.1, 0.8, 0.1), case("a", 0.5, 0.3, 0.2)])
    for metric in ("auroc", "auprc", "sensitivity", "ppv", "f1"):
        assert math.isnan(found[metric][2]) and found[metric][-1] == 1
    assert found["specificity"][2] == 1


def test_a_sure_mistake_costs_much_but_not_infinitely_much() -> None:
    assert measured([case("a", 0.0, 1.0)])["nll"][-1] == pytest.approx(-np.log(1e-7))


def test_two_exclusive_classes_mirror_each_other() -> None:
    random = np.random.default_rng(3)
    cases = [case("ab"[i % 2], p, 1 - p) for i, p in enumerate(np.round(random.random(40), 2).tolist())]
    found = measured(cases)
    for metric in ("auroc", "accuracy", "balanced_accuracy", "brier", "nll"):
        assert found[metric][0] == pytest.approx(found[metric][1]) == pytest.approx(found[metric][2])
    assert found["sensitivity"][0] == pytest.approx(found["specificity"][1])
