from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from medseg.errors import MedsegError
from medseg.evaluation.conformal import choose_conformal, coverage_of, coverage_over_splits, in_sets, smallest_level
from medseg.volume import Array

PROBABILITIES = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25]])


def exclusive(count: int, seed: int = 0, classes: int = 4) -> tuple[Array, Array]:
    """Probabilities that are twice too sure, and classes."""
    random = np.random.default_rng(seed)
    right = random.normal(0, 1.5, (count, classes))
    truth = (random.random((count, 1)) > np.cumsum(softmax(right, axis=1), axis=1)).sum(1).clip(max=classes - 1)
    return softmax(2 * right, axis=1), truth


def several(count: int, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    right = random.normal([-1, 0, 1], 2, (count, 3))
    return expit(2 * right), (random.random(right.shape) < expit(right)).astype(int)


def people(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("count", "alpha", "level"), [(9, 0.1, 0.9), (19, 0.1, 0.9), (10, 0.1, 1.0), (9, 0.5, 0.5), (8, 0.1, 1.0)]
)
def test_the_level_is_the_right_one_of_the_sorted_scores(count: int, alpha: float, level: float) -> None:
    """Ranks ⌈10 · 0.9⌉ = 9 of 9, ⌈20 · 0.9⌉ = 18 of 19, ⌈11 · 0.9⌉ = 10 of 10, 5 of 9; 9 of 8 there is none."""
    scores = np.linspace(0, 1, count + 1)[1:] if count != 9 else np.arange(1, 10) / 10
    expected = {(19, 0.1): 18 / 19}.get((count, alpha), level)
    assert smallest_level(np.random.default_rng(0).permutation(scores), alpha) == pytest.approx(expected)


def test_rounding_does_not_move_the_rank() -> None:
    for alpha in (0.01, 0.05, 0.1, 0.2, 0.3):
        count = round(1 / alpha) * 7 - 1  # (n + 1) · (1 − alpha) is whole
        rank = round((count + 1) * (1 - alpha))
        assert smallest_level(np.arange(1, count + 1) / count, alpha) == pytest.approx(rank / count)


def test_sets_of_least_ambiguity_are_worked_by_hand() -> None:
    inside = in_sets(PROBABILITIES, {"kind": "lac", "level": 0.68})
    assert inside.tolist() == [[True, False, False], [False, True, False], [True, True, False]]


def test_an_empty_set_is_given_the_likeliest_class() -> None:
    assert in_sets(PROBABILITIES, {"kind": "lac", "level": 0.0}).argmax(1).tolist() == [0, 1, 0]
    assert not in_sets(PROBABILITIES, {"kind": "lac", "level": [0.0] * 3}, multilabel=True).any()


def test_each_of_several_classes_has_its_own_level() -> None:
    """Of the cases that show a class, 1 − p: class 0 0.1 and 0.3, class 1 0.6 and 0.8. Half may be missed: the second of two."""
    p = np.array([[0.9, 0.4], [0.7, 0.9], [0.1, 0.2]])
    chosen = choose_conformal(p, np.array([[1, 1], [1, 0], [0, 1]]), multilabel=True, alpha=0.5)
    assert chosen["level"] == pytest.approx([0.3, 0.8])
    assert in_sets(p, chosen, multilabel=True).tolist() == [[True, True], [True, True], [False, True]]


def test_coverage_is_what_was_promised_however_wrong_the_probabilities() -> None:
    tune, test = exclusive(4000, 1), exclusive(4000, 2)
    chosen = choose_conformal(*tune, alpha=0.1)
    inside = in_sets(test[0], chosen)
    covered, size = coverage_of(inside, test[1])
    assert 0.88 < covered < 0.92
    assert size == pytest.approx(inside.sum() / 4000) and 1 < size < 4


def test_every_class_of_several_is_covered() -> None:
    tune, test = several(4000, 1), several(4000, 2)
    inside = in_sets(test[0], choose_conformal(*tune, multilabel=True, alpha=0.2), multilabel=True)
    for at in range(3):
        assert inside[test[1][:, at] == 1, at].mean() == pytest.approx(0.8, abs=0.03)


def test_too_few_cases_put_every_class_into_every_set(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = choose_conformal(*exclusive(8), alpha=0.1)
        assert "needs 9 tune cases, found 8" in caplog.text
        assert in_sets(exclusive(50, 3)[0], chosen).all()
        several_chosen = choose_conformal(np.full((20, 2), 0.3), np.array([[1, 0]] * 20), multilabel=True)
    assert "1 of 2 classes" in caplog.text
    assert several_chosen["level"] == pytest.approx([0.7, 1.0])
    caplog.clear()
    choose_conformal(*exclusive(9), alpha=0.1)
    assert not caplog.records


def test_coverage_over_splits_is_that_of_exchangeable_cases() -> None:
    found = coverage_over_splits(*exclusive(120, 4), people(120), 0.1)
    assert found.expected == pytest.approx(55 / 61)  # 60 on the tune side: ⌈61 · 0.9⌉ = 55 of 61
    error = found.expected_spread / np.sqrt(200)
    assert found.value == pytest.approx(found.expected, abs=4 * error)
    assert found.spread == pytest.approx(found.expected_spread, rel=0.25)
    assert (found.splits, found.cases) == (200, 120)


def test_coverage_over_splits_of_several_classes() -> None:
    probabilities, truth = several(150, 5)
    found = coverage_over_splits(probabilities, truth, people(150), 0.2, multilabel=True, splits=100)
    assert found.value == pytest.approx(found.expected, abs=5 * found.expected_spread / 10)
    assert 0.8 <= found.expected < 0.83


def test_the_cases_of_a_patient_stay_on_one_side() -> None:
    """Ten copies of each case: with copies on both sides coverage would be nearly the same in every split."""
    probabilities, truth = exclusive(40, 6)
    single = coverage_over_splits(probabilities, truth, people(40), 0.2)
    copies = coverage_over_splits(
        np.repeat(probabilities, 10, 0), np.repeat(truth, 10), np.repeat(people(40), 10).tolist(), 0.2
    )
    assert copies.spread > 0.7 * single.spread
    assert copies.spread > 2 * copies.expected_spread


def test_the_same_seed_gives_the_same_splits() -> None:
    cases = (*exclusive(60, 7), people(60))
    one, two, other = (coverage_over_splits(*cases, 0.1, splits=20, seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_a_share_of_nothing_is_blank() -> None:
    share, size = coverage_of(np.ones((2, 3), bool), np.zeros((2, 3), int), multilabel=True)
    assert np.isnan(share) and size == 3


def test_what_makes_no_sense_is_refused() -> None:
    cases: Any = exclusive(20)
    with pytest.raises(MedsegError, match="alpha between 0 and 1"):
        choose_conformal(*cases, alpha=1.0)
    with pytest.raises(MedsegError, match=r"truth \(N,\)"):
        choose_conformal(*several(20))
    for level in ({"kind": "lac", "level": [0.5] * 3}, {"kind": "lac"}, {"kind": "aps", "level": 0.5}, {"level": 0.5}):
        with pytest.raises(MedsegError, match="one level"):
            in_sets(cases[0], level)
    with pytest.raises(MedsegError, match="at least two patients"):
        coverage_over_splits(*cases, ["a"] * 20)
