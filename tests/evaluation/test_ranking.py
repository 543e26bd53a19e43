from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation.ranking import Matched, Ranking


def matched(scores: list[float], hits: list[bool], true: int) -> Matched:
    partners = np.where(hits, np.cumsum(hits) - 1, -1)[None] if hits else np.zeros((1, 0), int)
    return Matched(np.array(scores), partners, true)


def ranking() -> Ranking:
    """By falling score: a lesion, a false positive, then a lesion and a false positive of one score; a lesion is missed."""
    return Ranking.of(
        [matched([0.9, 0.5], [True, False], 1), matched([0.8, 0.5], [False, True], 2), matched([], [], 0)]
    )


ONCE = np.ones(3, int)


def test_average_precision_is_the_mean_of_the_highest_precisions_to_the_right() -> None:
    # Recall 1/3 with precision 1, 2/3 with 2/4 (the false positive of the same score is of the earlier case), then nothing.
    assert ranking().average_precisions(ONCE)[0] == pytest.approx((34 * 1 + 33 * 0.5) / 101)


def test_froc_falls_over_boxes_of_equal_score_together() -> None:
    false, sensitivity = ranking().froc(0, ONCE)
    assert false.tolist() == [0, 0, 1 / 3, 2 / 3]
    assert sensitivity.tolist() == [0, 1 / 3, 1 / 3, 2 / 3]
    assert ranking().sensitivities(0, (0.0, 0.5, 0.7), ONCE).tolist() == [1 / 3, 1 / 3, 2 / 3]


def test_recall_and_precision_stand_at_each_distinct_score() -> None:
    recall, precision = ranking().precision_recall(0)
    assert recall.tolist() == [1 / 3, 1 / 3, 2 / 3] and precision.tolist() == [1, 1 / 2, 2 / 4]


def test_a_case_of_weight_zero_is_not_there() -> None:
    weights = np.array([1, 0, 1])
    alone = Ranking.of([matched([0.9, 0.5], [True, False], 1), matched([], [], 0)])
    assert ranking().average_precisions(weights) == alone.average_precisions(np.ones(2, int)) == 1
    rates = (0.0, 0.5, 1.0)
    assert (ranking().sensitivities(0, rates, weights) == alone.sensitivities(0, rates, np.ones(2, int))).all()


def test_the_threshold_lets_in_every_box_that_the_rate_allows() -> None:
    rates = {0.0: 0.9, 1 / 3: 0.8, 0.5: 0.8, 2 / 3: 0.5, 9.0: 0.5}
    assert {rate: ranking().threshold(0, rate) for rate in rates} == rates


def test_no_box_and_no_lesion_have_their_own_answers() -> None:
    blind, nothing = Ranking.of([matched([], [], 2)]), Ranking.of([matched([0.4], [False], 0)])
    once = np.ones(1, int)
    assert blind.average_precisions(once)[0] == 0 and blind.sensitivities(0, [1.0], once)[0] == 0
    assert blind.threshold(0, 1.0) == 0.0
    assert np.isnan(nothing.average_precisions(once)[0]) and np.isnan(nothing.sensitivities(0, [1.0], once)[0])
    assert nothing.threshold(0, 0.0) > 0.4
