from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from medseg.errors import MedsegError
from medseg.evaluation.detection import FROC_RATES, DetectedCase, score_labels
from medseg.evaluation.working_point import averaged, chosen_thresholds, thresholds_at_rates
from medseg.structures import Boxes, LabelTable
from medseg.volume import Geometry

LABELS = LabelTable({1: "mass", 2: "cyst"})
GRID = Geometry.from_spacing((64, 64, 32), (1.0, 1.0, 2.0))
RATES = [f"{rate:g}" for rate in FROC_RATES]


def cases(count: int, seed: int = 0) -> list[DetectedCase]:
    """Scans with up to two masses, some found, beside false boxes of both labels; every third scan has no lesion."""
    random, made = np.random.default_rng(seed), []
    for number in range(count):
        lower = random.integers(0, 20, (2 * int(number % 3 > 0), 3))
        true = np.concatenate([lower, lower + 6], axis=1).astype(float)
        stray = random.integers(24, 28, (4, 3))
        found = np.concatenate([true, np.concatenate([stray, stray + 3], axis=1)])
        labels = np.concatenate([np.ones(len(true), int), [1, 1, 2, 2]])
        scores = np.round(np.concatenate([random.uniform(0.2, 1, len(true)), random.uniform(0, 0.9, 4)]), 2)
        made.append(DetectedCase(str(number), Boxes(found, labels, scores), Boxes(true, np.ones(len(true), int)), GRID))
    return made


def point(**thresholds: dict[str, float]) -> dict[str, Any]:
    return {"fp_per_scan": 1.0, "thresholds": thresholds}


@pytest.mark.parametrize("seed", range(4))
def test_at_each_rate_the_cases_keep_to_it_and_a_lower_score_would_not(seed: int) -> None:
    of_tune = cases(24, seed)
    found = thresholds_at_rates(of_tune, LABELS)
    assert list(found) == ["mass", "cyst"] and all(list(of_label) == RATES for of_label in found.values())
    for score in score_labels(of_tune, LABELS):
        scores, false = score.ranking.scores, ~score.ranking.hits[score.FROC]
        for rate, least in found[score.name].items():
            assert false[scores >= least].sum() <= float(rate) * 24
            lower = scores[scores < least]
            assert not len(lower) or false[scores >= lower[0]].sum() > float(rate) * 24


def test_thresholds_fall_as_the_rate_rises() -> None:
    for of_label in thresholds_at_rates(cases(30), LABELS).values():
        assert list(of_label.values()) == sorted(of_label.values(), reverse=True)


def test_what_is_stored_survives_a_model_file() -> None:
    stored = {"fp_per_scan": 1.0, "thresholds": thresholds_at_rates(cases(24), LABELS)}
    again = yaml.safe_load(yaml.safe_dump(stored))
    assert chosen_thresholds(again) == {name: of_label["1"] for name, of_label in stored["thresholds"].items()}


@pytest.mark.parametrize(("rate", "score"), [(None, 0.5), (1.0, 0.5), (1.9, 0.5), (2, 0.3), (8, 0.1), (0.125, 0.9)])
def test_the_highest_stored_rate_that_is_not_above_the_one_asked_for_is_taken(rate: float | None, score: float) -> None:
    stored = point(mass={"0.125": 0.9, "1": 0.5, "2": 0.3, "8": 0.1})
    assert chosen_thresholds(stored, rate) == {"mass": score}


@pytest.mark.parametrize("rate", [0.0, 0.1, 8.5, -1, float("nan")])
def test_a_rate_outside_the_stored_ones_is_refused(rate: float) -> None:
    with pytest.raises(MedsegError, match=r"fp_per_scan: .* knows its thresholds for 0\.125 to 8"):
        chosen_thresholds(point(mass={"0.125": 0.9, "8": 0.1}), rate)


def test_without_a_working_point_nothing_is_chosen_and_no_rate_can_be_asked_for() -> None:
    assert chosen_thresholds({}) == {}
    with pytest.raises(MedsegError, match="no working point"):
        chosen_thresholds({}, 1.0)


@pytest.mark.parametrize(
    "stored",
    [
        {"thresholds": {"mass": {"1": 0.5}}},
        {"fp_per_scan": 1.0, "thresholds": {"mass": 0.5}},
        {"fp_per_scan": 1.0, "thresholds": {"mass": {"one": 0.5}}},
        {"fp_per_scan": 1.0, "thresholds": {"mass": {"1": None}}},
    ],
)
def test_a_working_point_that_is_laid_out_otherwise_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(MedsegError, match="working point"):
        chosen_thresholds(stored)


def test_an_ensemble_has_the_mean_of_the_thresholds_that_all_members_have() -> None:
    one = point(mass={"1": 0.2, "2": 0.1}, cyst={"1": 0.5})
    two = point(mass={"1": 0.6, "4": 0.1})
    assert averaged([one, two]) == point(mass={"1": pytest.approx(0.4)})
    assert averaged([one, one]) == one
    assert averaged([one, {}]) == averaged([]) == {}


def test_members_that_score_components_otherwise_do_not_blur_the_thresholds_of_the_others() -> None:
    by_max = {"aggregate": "max", "smallest_mm3": 0.0, **point(mass={"1": 0.9})}
    by_mean = [{"aggregate": "mean", "smallest_mm3": 8.0, **point(mass={"1": score})} for score in (0.2, 0.4)]
    found = averaged([{"components": member} for member in (by_max, *by_mean)])
    assert found == {"components": {**by_mean[0], "thresholds": {"mass": {"1": pytest.approx(0.3)}}}}
