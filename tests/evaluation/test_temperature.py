from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit, softmax

from medseg.errors import MedsegError
from medseg.evaluation.temperature import fit_line, fit_temperature, logits_of, probabilities_of, surprise
from medseg.volume import Array


def drawn_classes(count: int, temperature: float, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Logits that are ``temperature`` times too large, and classes drawn from the probabilities that are right."""
    random = np.random.default_rng(seed)
    right = random.normal(0, 1.5, (count, classes))
    chances = np.cumsum(softmax(right, axis=1), axis=1)
    return right * temperature, (random.random((count, 1)) > chances).sum(1).clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_true_temperature_of_exclusive_classes_is_recovered(temperature: float) -> None:
    assert fit_temperature(*drawn_classes(8000, temperature)) == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_true_temperature_of_several_classes_is_recovered(temperature: float) -> None:
    random = np.random.default_rng(1)
    right = random.normal(-1, 2, (4000, 3))
    shown = random.random(right.shape) < expit(right)
    assert fit_temperature(right * temperature, shown, multilabel=True) == pytest.approx(temperature, rel=0.04)


def test_the_true_line_of_scores_is_recovered() -> None:
    random = np.random.default_rng(2)
    stated = random.normal(0, 3, 20000)
    temperature, bias = fit_line(stated, random.random(20000) < expit(stated / 1.8 - 2))
    assert (temperature, bias) == (pytest.approx(1.8, rel=0.05), pytest.approx(-2, rel=0.05))


def test_a_temperature_is_the_likeliest_one() -> None:
    logits, truth = drawn_classes(500, 2.0, seed=3)
    found = fit_temperature(logits, truth)
    costs = [
        surprise(logits / t, truth, multilabel=False).sum() + np.log(t) ** 2 / 2
        for t in (found * 0.98, found, found * 1.02)
    ]
    assert costs[1] < min(costs[0], costs[2])


def test_cases_without_an_error_do_not_end_in_certainty() -> None:
    """Fifty cases at 90 %, all right: the likelihood alone would take T to 0. Certainty stays near 51 of 52 (Laplace)."""
    logits = np.tile([np.log(9.0), 0.0], (50, 1))
    temperature = fit_temperature(logits, np.zeros(50, int))
    assert 0.3 < temperature < 1
    assert 0.97 < probabilities_of(logits[:1], multilabel=False, temperature=temperature)[0, 0] < 0.999


def test_boxes_without_a_hit_become_rare_and_not_impossible() -> None:
    temperature, bias = fit_line(np.random.default_rng(4).normal(0, 1, 100), np.zeros(100))
    assert 1 / 400 < expit(bias) < 1 / 25
    assert 0.5 < temperature < 2


def test_nothing_to_fit_changes_nothing() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0
    assert fit_line(np.zeros(0), np.zeros(0)) == (1.0, 0.0)


@pytest.mark.parametrize("multilabel", [False, True])
def test_logits_return_from_probabilities(multilabel: bool) -> None:
    logits = np.random.default_rng(5).normal(0, 3, (20, 4))
    back = logits_of(probabilities_of(logits, multilabel=multilabel), multilabel=multilabel)
    offset = np.zeros((20, 1)) if multilabel else (back - logits)[:, :1]
    assert back == pytest.approx(logits + offset, abs=1e-6)


def test_certain_probabilities_have_finite_logits() -> None:
    edges = logits_of(np.array([[0.0, 1.0]]), multilabel=True)
    assert edges == pytest.approx(np.array([[-logit(1 - 1e-7), logit(1 - 1e-7)]]), rel=1e-6)


def test_surprise_is_minus_the_logarithm_of_what_is_true() -> None:
    logits = np.log([[0.2, 0.5, 0.3]])
    assert surprise(logits, np.array([2]), multilabel=False) == pytest.approx(-np.log([0.3]))
    assert surprise(logit([[0.2, 0.6]]), np.array([[1, 0]]), multilabel=True) == pytest.approx(-np.log([[0.2, 0.4]]))


def test_outputs_and_truths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MedsegError, match=r"found \(3, 2\) and \(2,\)"):
        fit_temperature(np.zeros((3, 2)), np.zeros(2, int))
    with pytest.raises(MedsegError, match="from 0 to 1, found 0 to 2"):
        fit_temperature(np.zeros((2, 2)), np.array([0, 2]))
    with pytest.raises(MedsegError, match="one 0 or 1 a class"):
        fit_temperature(np.zeros((2, 2)), np.array([0, 1]), multilabel=True)
    with pytest.raises(MedsegError, match="1 of 4 logits are not finite"):
        fit_temperature(np.array([[0, np.nan], [1, 2]]), np.array([0, 1]))
