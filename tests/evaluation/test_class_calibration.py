from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from medseg.errors import MedsegError
from medseg.evaluation.class_calibration import (
    calibrated,
    choose_calibration,
    class_calibration,
    class_set,
    uncalibrated,
)
from medseg.volume import Array

CLASSES = ("benign", "malignant", "normal")


def drawn(count: int, temperature: float, seed: int, *, multilabel: bool = False) -> tuple[Array, Array]:
    """Logits that are ``temperature`` times too large, and what is true."""
    random = np.random.default_rng(seed)
    right = random.normal(0, 1.5, (count, 3))
    if multilabel:
        return right * temperature, (random.random(right.shape) < expit(right)).astype(int)
    truth = (random.random((count, 1)) > np.cumsum(softmax(right, axis=1), axis=1)).sum(1).clip(max=2)
    return right * temperature, truth


def people(count: int) -> list[str]:
    return [f"p{i}" for i in range(count)]


@pytest.mark.parametrize("multilabel", [False, True])
def test_what_is_chosen_on_tune_calibrates_test(multilabel: bool) -> None:
    point = choose_calibration(*drawn(2000, 3.0, 0, multilabel=multilabel), multilabel)
    assert point["temperature"] == pytest.approx(3.0, rel=0.08)
    assert json.loads(json.dumps(point)) == point
    logits, truth = drawn(600, 3.0, 1, multilabel=multilabel)
    probabilities = calibrated(logits, point, multilabel)
    found = class_calibration(
        probabilities, truth, people(600), CLASSES, [point] * 600, multilabel=multilabel, samples=100
    )
    assert list(found) == ["all", *CLASSES]
    for row in found.values():
        assert row.after.ece.value < 0.5 * row.before.ece.value
        assert row.after.ece.value < 1.5 * row.if_perfect.high
        assert row.after.nll < row.before.nll and row.after.brier < row.before.brier
        assert row.temperature == point["temperature"]
    assert found["all"].after.ece.n == (1800 if multilabel else 600)


@pytest.mark.parametrize("multilabel", [False, True])
def test_logits_return_from_calibrated_probabilities(multilabel: bool) -> None:
    logits, point = np.random.default_rng(2).normal(0, 2, (5, 3)), {"temperature": 1.7}
    back = uncalibrated(calibrated(logits, point, multilabel), point, multilabel)
    offset = 0 if multilabel else (back - logits)[:, :1]
    assert back == pytest.approx(logits + offset, abs=1e-5)


def test_a_model_without_a_temperature_states_what_its_network_states() -> None:
    assert calibrated(np.log([0.2, 0.3, 0.5]), {}) == pytest.approx([0.2, 0.3, 0.5])
    with pytest.raises(MedsegError, match="temperature above 0, found 0"):
        calibrated(np.zeros(3), {"temperature": 0})


def test_the_set_names_the_classes_that_cannot_be_excluded() -> None:
    point = {"conformal": {"alpha": 0.1, "kind": "lac", "level": 0.7}}
    assert class_set(np.array([0.05, 0.6, 0.35]), point, CLASSES) == ("malignant", "normal")
    each = {"conformal": {"alpha": 0.1, "kind": "lac", "level": [0.1, 0.1, 0.1]}}
    assert class_set(np.array([0.05, 0.6, 0.35]), each, CLASSES, multilabel=True) == ()
    assert class_set(np.array([0.05, 0.6, 0.35]), {"temperature": 2.0}, CLASSES) is None
    with pytest.raises(MedsegError, match="3 levels"):
        class_set(np.array([0.05, 0.6, 0.35]), point, CLASSES, multilabel=True)


def test_each_case_is_taken_back_by_the_temperature_of_its_own_fold() -> None:
    logits, truth = drawn(300, 1.0, 3)
    points = [{"temperature": 1.0 + (at % 2)} for at in range(300)]
    probabilities = np.stack([calibrated(row, point) for row, point in zip(logits, points, strict=True)])
    found = class_calibration(probabilities, truth, people(300), CLASSES, points, samples=0)["all"]
    expected = softmax(logits, axis=1).max(1)
    assert np.nansum(found.before.bins.confidence * found.before.bins.counts) == pytest.approx(expected.sum(), rel=1e-5)
    assert found.scalings == ((1.0, 0.0), (2.0, 0.0))


def test_what_does_not_fit_is_refused() -> None:
    probabilities, truth = np.full((2, 3), 1 / 3), np.array([0, 1])
    with pytest.raises(MedsegError, match="'all'"):
        class_calibration(probabilities, truth, people(2), ("all", "b", "c"), [{}] * 2)
    with pytest.raises(MedsegError, match="1, 3 classes"):
        class_calibration(probabilities, truth, people(2), CLASSES, [{}])
    with pytest.raises(MedsegError, match="2 classes"):
        class_calibration(probabilities, truth, people(2), CLASSES[:2], [{}] * 2)
