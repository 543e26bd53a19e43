from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from medseg.errors import MedsegError
from medseg.evaluation.calibration import Forecast, check_row_names, compare, ece_if_perfect, measure, reliability
from medseg.volume import Array

CONFIDENCE = np.array([0.1, 0.15, 0.2, 0.6, 0.7, 0.9, 0.95, 1.0])
CORRECT = np.array([0, 0, 1, 1, 0, 1, 1, 1], bool)


def people(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


def events(count: int, temperature: float, seed: int = 0) -> Forecast:
    """Logits N(0, 3), ``temperature`` times too large."""
    random = np.random.default_rng(seed)
    stated = random.normal(0, 3, count)
    return Forecast.of_events(expit(stated), random.random(count) < expit(stated / temperature), people(count))


def test_bins_are_worked_by_hand() -> None:
    """Two bins of equal width, a half belongs to the lower one: 0.1, 0.15, 0.2 with one of three; five above with four.

    ECE = 3/8 · |0.15 − 1/3| + 5/8 · |0.83 − 0.8| = 0.06875 + 0.01875
    """
    found = reliability(CONFIDENCE, CORRECT, 2)
    assert found.edges.tolist() == [0, 0.5, 1]
    assert found.counts.tolist() == [3, 5]
    assert found.confidence == pytest.approx([0.15, 0.83])
    assert found.accuracy == pytest.approx([1 / 3, 0.8])
    assert found.ece == pytest.approx(0.0875)
    assert reliability(np.array([0.0, 0.5, 1.0]), np.ones(3), 2).counts.tolist() == [2, 1]


def test_bins_of_equal_mass_are_worked_by_hand() -> None:
    """Four each: |0.2625 − 0.5| / 2 + |0.8875 − 0.75| / 2."""
    found = reliability(CONFIDENCE, CORRECT, 2, equal_mass=True)
    assert found.counts.tolist() == [4, 4]
    assert found.ece == pytest.approx(0.11875 + 0.06875)


def test_equal_confidences_stay_in_one_bin() -> None:
    found = reliability(np.repeat([0.0, 0.3, 1.0], [50, 20, 30]), np.ones(100), 10, equal_mass=True)
    assert sorted(found.counts[found.counts > 0].tolist()) in ([20, 30, 50], [30, 70])
    assert len(found.counts) == len(set(found.edges.tolist())) - 1


def test_an_empty_bin_has_no_accuracy_and_no_weight() -> None:
    found = reliability(np.array([0.9, 0.9]), np.array([True, False]), 4)
    assert found.counts.tolist() == [0, 0, 0, 2]
    assert np.isnan(found.accuracy[:3]).all() and np.isnan(found.confidence[:3]).all()
    assert found.ece == pytest.approx(0.4)
    assert np.isnan(reliability(np.zeros(0), np.zeros(0)).ece)


def test_the_likeliest_of_three_classes_is_scored_by_hand() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    found = Forecast.of_likeliest(probabilities, np.array([0, 1]), ["a", "b"])
    assert found.confidence.tolist() == [0.5, 0.7]
    assert found.correct.tolist() == [True, False]
    assert found.brier == pytest.approx(((0.25 + 0.09 + 0.04) + (0.01 + 0.64 + 0.49)) / 2)
    assert found.nll == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 2, abs=1e-6)


def test_yes_and_no_of_several_classes_are_pooled() -> None:
    found = Forecast.of_events(np.array([[0.5, 0.9], [0.2, 0.1]]), np.array([[1, 1], [0, 1]]), ["a", "b"])
    assert found.confidence.tolist() == [0.5, 0.9, 0.2, 0.1]
    assert found.correct.tolist() == [True, True, False, True]
    assert found.patients.tolist() == ["a", "a", "b", "b"]
    assert found.brier == pytest.approx((0.25 + 0.01 + 0.04 + 0.81) / 4)
    assert found.nll == pytest.approx(-np.log([0.5, 0.9, 0.8, 0.1]).mean())


def test_a_calibrated_model_shows_the_error_that_is_expected_of_it() -> None:
    drawn = [events(300, 1.0, seed) for seed in range(100, 130)]
    errors = [measure(forecast, samples=0).ece.value for forecast in drawn]
    perfect = [ece_if_perfect(forecast.confidence, samples=60) for forecast in drawn]
    assert np.mean(errors) == pytest.approx(np.mean([p.value for p in perfect]), rel=0.12)
    assert sum(p.low <= error <= p.high for error, p in zip(errors, perfect, strict=True)) >= 26
    assert perfect[0].value > 0.03  # what 300 events cannot tell from calibrated


def test_fewer_events_make_a_larger_error_even_if_perfect() -> None:
    few, many = (ece_if_perfect(events(count, 1.0).confidence, samples=60).value for count in (100, 4000))
    assert few > 4 * many


def test_overconfidence_stands_out_and_its_interval_holds_the_truth() -> None:
    """Seen with two million events, this model's error is 0.135."""
    found = [measure(events(400, 2.5, seed), samples=200) for seed in range(12)]
    assert sum(m.ece.low <= 0.135 <= m.ece.high for m in found) >= 10
    assert all(m.ece.value > ece_if_perfect(events(400, 2.5).confidence, samples=200).high for m in found)


def test_copies_of_a_patients_events_do_not_make_the_error_surer() -> None:
    once = events(60, 2.0)
    often = Forecast(*(np.repeat(a, 4) for a in (once.confidence, once.correct, once.patients)), once.brier, once.nll)
    (one, four) = (measure(forecast) for forecast in (once, often))
    assert four.ece.value == pytest.approx(one.ece.value)
    assert (four.ece.low, four.ece.high) == (pytest.approx(one.ece.low), pytest.approx(one.ece.high))
    assert (one.patients, four.patients, four.ece.n) == (60, 60, 240)


def test_few_patients_have_an_error_but_no_interval() -> None:
    found = measure(Forecast.of_events(CONFIDENCE, CORRECT, ["a", "b"] * 4), samples=50)
    assert np.isnan([found.ece.low, found.ece.high]).all()
    assert found.ece.value > 0


def test_no_event_leaves_everything_blank() -> None:
    nothing: Array = np.zeros(0)
    for empty in (Forecast.of_events(nothing, nothing, []), Forecast.of_likeliest(np.zeros((0, 3)), nothing, [])):
        found = measure(empty)
        figures = [found.ece.value, found.ece.low, found.ece_equal_mass, found.brier, found.nll]
        assert np.isnan(figures).all()
        assert (found.ece.n, found.patients) == (0, 0)
        assert np.isnan(ece_if_perfect(empty.confidence).value)


def test_the_same_seed_gives_the_same_figures() -> None:
    one, two, other = (compare(*[events(80, 1.5)] * 2, [], samples=50, seed=seed) for seed in (3, 3, 4))
    assert one.after.ece == two.after.ece and one.if_perfect == two.if_perfect
    assert other.if_perfect != one.if_perfect


def test_models_of_several_folds_are_named_once_each() -> None:
    forecast = events(10, 1.0)
    found = compare(forecast, forecast, [(2.0, 0.5), (1.0, 0.0), (2.0, 0.5)], samples=0)
    assert found.scalings == ((1.0, 0.0), (2.0, 0.5))
    assert (found.temperature, found.bias) == (1.5, 0.25)
    assert compare(forecast, forecast, [], samples=0).temperature == 1.0


def test_what_are_no_probabilities_is_refused() -> None:
    with pytest.raises(MedsegError, match="give probabilities, not logits"):
        reliability(np.array([0.5, 3.2]), np.array([True, False]))
    with pytest.raises(MedsegError, match="from 0 to 1"):
        reliability(np.array([0.5, np.nan]), np.array([True, False]))
    with pytest.raises(MedsegError, match=r"found \(2,\), \(3,\)"):
        reliability(np.zeros(2), np.zeros(3))
    with pytest.raises(MedsegError, match="0 bins"):
        reliability(np.zeros(2), np.zeros(2), 0)


def test_a_label_called_like_a_row_is_refused() -> None:
    check_row_names(["tumour"])
    with pytest.raises(MedsegError, match="'all'"):
        check_row_names(["tumour", "all"])
