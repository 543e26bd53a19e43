"""Thresholds of classes, chosen where sensitivity and specificity together are best."""

from __future__ import annotations

import numpy as np

from medseg.evaluation.class_point import choose_thresholds


def rows(*positive: float) -> np.ndarray:
    column = np.array(positive)
    return np.stack([1 - column, column], axis=1)


def test_the_threshold_parts_the_classes_halfway_between_two_cases() -> None:
    truth = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    assert choose_thresholds(rows(0.1, 0.2, 0.3, 0.9), truth, ("no", "yes")) == {"yes": 0.25}


def test_of_equally_good_ones_the_nearest_to_a_half_is_taken() -> None:
    truth = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
    found = choose_thresholds(rows(0.1, 0.2, 0.7, 0.9), truth, ("no", "yes"))
    assert found["yes"] in (0.15, 0.8)  # both miss one
    assert abs(found["yes"] - 0.5) == min(abs(0.15 - 0.5), abs(0.8 - 0.5))


def test_the_threshold_is_the_best_of_all_that_part_two_cases() -> None:
    random = np.random.default_rng(0)
    scores, truth = random.random(300).round(2), random.random(300) < 0.4
    best = choose_thresholds(rows(*scores), np.stack([~truth, truth], 1), ("no", "yes"))["yes"]

    def gain(cut: float) -> float:
        return (scores[truth] >= cut).mean() - (scores[~truth] >= cut).mean()

    assert gain(best) == max(gain(cut) for cut in np.arange(0.005, 1, 0.01))


def test_three_classes_that_exclude_each_other_need_none() -> None:
    assert choose_thresholds(np.full((4, 3), 1 / 3), np.eye(4, 3, dtype=bool), ("a", "b", "c")) == {}


def test_each_of_several_classes_has_its_own_and_one_that_nobody_shows_keeps_a_half() -> None:
    truth = np.array([[1, 0], [0, 0]], bool)
    found = choose_thresholds(np.array([[0.9, 0.2], [0.5, 0.3]]), truth, ("a", "b"), exclusive=False)
    assert found == {"a": 0.7, "b": 0.5}
