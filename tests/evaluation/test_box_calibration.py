from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from medseg.errors import MedsegError
from medseg.evaluation.box_calibration import (
    box_calibration,
    calibrated_scores,
    choose_box_calibration,
    uncalibrated_scores,
)
from medseg.evaluation.detection import DetectedCase
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array, Geometry

LABELS = LabelTable({1: "mass", 2: "cyst"})
GRID = Geometry.from_spacing((2000, 20), (1.0, 1.0))
MASS = {"mass": {"temperature": 2.0, "bias": -1.0}}


def squares(places: Array, values: Array, scores: Array | None = None) -> Boxes:
    lower = np.stack([12.0 * places, np.zeros(len(places))], axis=1)
    return Boxes(np.concatenate([lower, lower + 10], axis=1), values, scores)


def scans(count: int, boxes: int, temperature: float, bias: float, seed: int) -> list[DetectedCase]:
    """Boxes side by side, of which sigmoid(logit / T + b) are on a lesion; half of them are of each label."""
    random = np.random.default_rng(seed)
    made = []
    for at in range(count):
        logits = random.normal(0, 3, boxes)
        right = random.random(boxes) < expit(logits / temperature + bias)
        places, values = np.arange(boxes), 1 + np.arange(boxes) % 2
        found, true = squares(places, values, expit(logits)), squares(places[right], values[right])
        made.append(DetectedCase(f"c{at}", found, true, GRID, patient=f"p{at}"))
    return made


def rescored(case: DetectedCase, lines: dict[str, dict[str, float]]) -> DetectedCase:
    assert case.predicted.scores is not None
    scores = case.predicted.scores.copy()
    for value, name in LABELS.names.items():
        of_label = case.predicted.labels == value
        scores[of_label] = calibrated_scores(scores[of_label], **lines[name])
    return replace(case, predicted=replace(case.predicted, scores=scores), thresholds={"mass": 0.5, "cyst": 0.5})


def test_the_true_line_of_each_label_is_recovered_and_calibrates_other_scans() -> None:
    lines = choose_box_calibration(scans(60, 100, 2.0, -1.0, 0), LABELS)
    for line in lines.values():
        assert line["temperature"] == pytest.approx(2.0, rel=0.1)
        assert line["bias"] == pytest.approx(-1.0, abs=0.12)
    predicted = [rescored(case, lines) for case in scans(30, 60, 2.0, -1.0, 1)]
    found = box_calibration(predicted, LABELS, [lines] * 30, samples=50)
    assert list(found) == ["all", "findings", "mass", "cyst"]
    for row in found.values():
        assert row.after.ece.value < 0.5 * row.before.ece.value
        assert row.after.nll < row.before.nll
    assert found["all"].after.ece.n == 1800 and found["mass"].after.ece.n == 900
    assert 0 < found["findings"].after.ece.n < 900
    assert found["findings"].after.bins.counts[:7].sum() == 0  # all at or above 0.5
    assert found["mass"].temperature == lines["mass"]["temperature"] and found["mass"].bias == lines["mass"]["bias"]


def test_scores_return_and_keep_their_order() -> None:
    scores = np.array([0.002, 0.2, 0.5, 0.9, 0.999])
    changed = calibrated_scores(scores, 0.6, -1.5)
    assert (np.diff(changed) > 0).all()
    assert uncalibrated_scores(changed, 0.6, -1.5) == pytest.approx(scores, rel=1e-4)
    assert calibrated_scores(np.array([0.5]), 2.0, 1.0) == pytest.approx(expit(1.0))
    assert calibrated_scores(np.array([0.0, 1.0]), 1.0) == pytest.approx([1e-7, 1 - 1e-7])


def test_a_second_box_on_a_lesion_is_wrong() -> None:
    places, values = np.array([0, 0]), np.array([1, 1])
    case = DetectedCase("c", squares(places, values, np.array([0.9, 0.8])), squares(np.array([0]), np.array([1])), GRID)
    found = box_calibration([case], LABELS, [{}], samples=0)["mass"].after
    assert found.bins.counts[found.bins.counts > 0].tolist() == [1, 1]
    assert found.bins.accuracy[found.bins.counts > 0].tolist() == [0, 1]
    assert found.ece.value == pytest.approx((0.8 + 0.1) / 2)


def test_scores_before_are_those_of_the_network() -> None:
    case = scans(1, 20, 1.0, 0.0, 2)[0]
    assert case.predicted.scores is not None
    line = {"temperature": 2.0, "bias": -1.0}
    changed = rescored(case, {"mass": line, "cyst": line})
    found = box_calibration([changed], LABELS, [{"mass": line, "cyst": line}], samples=0)["all"]
    plain = box_calibration([case], LABELS, [{}], samples=0)
    assert found.before.ece.value == pytest.approx(plain["all"].after.ece.value)
    assert "findings" not in plain  # no case brings thresholds


def test_a_label_of_which_nothing_was_found_keeps_its_scores_and_is_blank() -> None:
    nothing = np.zeros(0)
    empty = DetectedCase(
        "c", squares(nothing, nothing.astype(int), nothing), squares(np.array([0]), np.array([1])), GRID
    )
    assert choose_box_calibration([empty], LABELS)["cyst"] == {"temperature": 1.0, "bias": 0.0}
    assert np.isnan(box_calibration([empty], LABELS, [MASS])["cyst"].after.ece.value)


def test_scores_that_are_no_probabilities_are_named_all_at_once() -> None:
    cases = scans(3, 4, 1.0, 0.0, 3)
    spoilt = [
        replace(case, predicted=replace(case.predicted, scores=np.array([0.1, 5.0, 0.2, 0.3]))) for case in cases[:2]
    ]
    with pytest.raises(MedsegError, match=r"(?s)'c0'.*0\.1 to 5.*'c1'"):
        choose_box_calibration([*spoilt, cases[2]], LABELS)
    with pytest.raises(MedsegError, match="each of 3 cases, found 1"):
        box_calibration(cases, LABELS, [MASS])
    with pytest.raises(MedsegError, match="'findings'"):
        box_calibration(cases, LabelTable({1: "findings", 2: "b"}), [{}] * 3)
