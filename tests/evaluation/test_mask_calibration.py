from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax

from medseg.errors import MedsegError
from medseg.evaluation.mask_calibration import (
    MaskForecast,
    calibrated_mask,
    choose_mask_temperature,
    mask_calibration,
)
from medseg.structures import LabelTable
from medseg.volume import Array

LABELS = LabelTable({1: "organ", 4: "tumour"}, ignore=255)
REGIONS = LabelTable({1: "oedema", 2: "core"}, regions={"whole": (1, 2), "inner": (2,)}, paint=(1, 2))
SHAPE = (24, 24, 16)


def exclusive(temperature: float, seed: int) -> tuple[Array, Array]:
    """Noise whose labels are drawn from its own probabilities; far from the middle background is certain."""
    random = np.random.default_rng(seed)
    right = random.normal(0, 1.5, (3, *SHAPE))
    right[0] += np.where(np.indices(SHAPE)[0] > 8, 15.0, 0.0)
    index = (random.random(SHAPE) > np.cumsum(softmax(right, axis=0), axis=0)).sum(0).clip(max=2)
    return softmax(right * temperature, axis=0).astype(np.float32), np.array([0, 1, 4])[index]


def regions(temperature: float, seed: int) -> tuple[Array, Array]:
    """Two regions: the inner one has a third of the chances of the whole, voxel by voxel."""
    random = np.random.default_rng(seed)
    right = random.normal(-1, 1.5, (2, *SHAPE))
    right[1] = np.minimum(right[1], right[0] - 0.3)
    drawn = random.random(SHAPE)
    truth = (drawn < expit(right[0])).astype(int) + (drawn < expit(right[1]))
    return expit(right * temperature).astype(np.float32), truth


def test_the_true_temperature_of_exclusive_labels_is_recovered() -> None:
    cases = [exclusive(2.0, seed) for seed in range(4)]
    assert choose_mask_temperature(cases, LABELS, voxels=1500) == pytest.approx(2.0, rel=0.05)


def test_the_true_temperature_of_regions_is_recovered() -> None:
    cases = [regions(0.6, seed) for seed in range(4)]
    assert choose_mask_temperature(iter(cases), REGIONS, voxels=1500) == pytest.approx(0.6, rel=0.05)


@pytest.mark.parametrize(("labels", "make"), [(LABELS, exclusive), (REGIONS, regions)])
def test_other_cases_are_calibrated_by_it(labels: LabelTable, make: object) -> None:
    cases = [make(2.5, seed) for seed in range(6)]  # type: ignore[operator]
    forecasts = (MaskForecast.draw(p, t, labels, f"p{at}", 2.5, voxels=400, seed=at) for at, (p, t) in enumerate(cases))
    found = mask_calibration(forecasts, labels, samples=30)
    assert list(found) == ["all", "around", *labels.targets]
    for row in found.values():
        assert row.after.ece.value < 0.6 * row.before.ece.value
        assert row.after.nll < row.before.nll
        assert row.temperature == 2.5 and row.after.patients == 6
    assert found["organ" if labels is LABELS else "whole"].note == found["around"].note != found["all"].note


def test_the_background_that_nobody_doubts_hides_the_error_of_the_whole_scan() -> None:
    probabilities, truth = exclusive(3.0, 7)
    far = np.zeros((3, 60, *SHAPE[1:]), np.float32)
    far[0] = 1.0
    wide = np.concatenate([probabilities, far], axis=1)
    found = mask_calibration(
        [MaskForecast.draw(wide, np.concatenate([truth, np.zeros(far.shape[1:], int)]), LABELS, "a")], LABELS, samples=0
    )
    assert found["around"].after.ece.value > 2 * found["all"].after.ece.value


def test_the_surroundings_are_drawn_uniformly() -> None:
    """A true voxel in the middle of a line: five beside it on both sides, background certain at 0.9 but for the voxel itself."""
    truth = np.zeros((41, 1), int)
    truth[20] = 1
    probabilities = np.stack([np.full((41, 1), 0.9), np.full((41, 1), 0.1)])
    dot = LabelTable({1: "dot"})
    found = mask_calibration([MaskForecast.draw(probabilities, truth, dot, "a")], dot, samples=0)
    assert (found["around"].after.ece.n, found["all"].after.ece.n) == (11, 41)
    assert found["dot"].after.ece.value == pytest.approx(abs(0.1 - 1 / 11), abs=1e-6)
    assert found["around"].after.ece.value == pytest.approx(abs(0.9 - 10 / 11), abs=1e-6)


def test_the_error_of_a_case_is_that_of_each_label_around_its_lesions_as_the_model_states_it() -> None:
    """One voxel of eleven is true, and all are stated at 0.1; with T = 2 the odds of one to nine become one to three."""
    truth = np.zeros((41, 1), int)
    truth[20] = 1
    probabilities, dot = np.stack([np.full((41, 1), 0.9), np.full((41, 1), 0.1)]), LabelTable({1: "dot"})
    for temperature, stated in ((1.0, 0.1), (2.0, 0.25)):
        forecast = MaskForecast.draw(probabilities, truth, dot, "a", temperature)
        assert forecast.errors(dot) == {"dot": pytest.approx(abs(stated - 1 / 11), abs=1e-6)}
    inner = np.zeros((2, 41, 1))
    inner[0] = 0.1  # nothing is stated of the region inside
    found = MaskForecast.draw(inner, truth, REGIONS, "a").errors(REGIONS)
    assert found == {"whole": pytest.approx(abs(0.1 - 1 / 11), abs=1e-6), "inner": pytest.approx(0, abs=1e-6)}
    empty = MaskForecast.draw(probabilities, np.zeros_like(truth), dot, "a").errors(dot)
    assert np.isnan(empty["dot"])


def test_a_patient_is_one_however_many_scans_it_has() -> None:
    cases = [MaskForecast.draw(*exclusive(1.0, seed), LABELS, name, voxels=50) for seed, name in enumerate("abcab")]
    found = mask_calibration(cases, LABELS, samples=0)["all"].after
    assert (found.patients, found.ece.n) == (3, 250)


def test_voxels_that_are_ignored_are_not_drawn() -> None:
    probabilities, truth = exclusive(1.0, 8)
    truth[:4] = 255
    found = mask_calibration([MaskForecast.draw(probabilities, truth, LABELS, "a", voxels=10**6)], LABELS, samples=0)
    assert found["all"].after.ece.n == int((truth != 255).sum())


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
def test_a_temperature_divides_logits_and_keeps_the_mask(labels: LabelTable) -> None:
    logits = np.random.default_rng(9).normal(0, 2, (len(labels.outputs), 50))
    apply = (lambda z: softmax(z, axis=0)) if labels.exclusive else expit
    changed = calibrated_mask(apply(logits), labels, 2.0)
    assert changed == pytest.approx(apply(logits / 2), abs=1e-5)
    if labels.exclusive:
        assert (changed.argmax(0) == logits.argmax(0)).all()
    else:
        assert ((changed > 0.5) == (logits > 0)).all()
    assert changed.dtype == np.float32


def test_scans_without_foreground_leave_the_temperature_at_one(caplog: pytest.LogCaptureFixture) -> None:
    empty = np.zeros((3, 5, 5))
    empty[0] = 1
    with caplog.at_level(logging.WARNING):
        assert choose_mask_temperature([(empty, np.zeros((5, 5), int))], LABELS) == 1.0
    assert "no case of tune has any foreground" in caplog.text
    found = mask_calibration([MaskForecast.draw(empty, np.zeros((5, 5), int), LABELS, "a")], LABELS)
    assert np.isnan(found["around"].after.ece.value)
    assert found["all"].after.ece.value == pytest.approx(0, abs=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    probabilities, truth = exclusive(1.0, 10)
    with pytest.raises(MedsegError, match="background, organ, tumour"):
        choose_mask_temperature([(probabilities[:2], truth)], LABELS)
    with pytest.raises(MedsegError, match=r"values \[7\]"):
        choose_mask_temperature([(probabilities, np.where(truth == 4, 7, truth))], LABELS)
    with pytest.raises(MedsegError, match="at least one case"):
        mask_calibration([], LABELS)
    with pytest.raises(MedsegError, match="'around'"):
        mask_calibration([], LabelTable({1: "around"}))


def test_drawn_voxels_survive_their_file(tmp_path: Path) -> None:
    for labels, make in ((LABELS, exclusive), (REGIONS, regions)):
        forecast = MaskForecast.draw(*make(2.0, 1), labels, "a", 2.0, voxels=300)
        forecast.save(tmp_path / "voxels.npz")
        again = MaskForecast.load(tmp_path / "voxels.npz", "a", 2.0)
        one, two = (mask_calibration([each], labels, samples=0)["around"] for each in (forecast, again))
        assert one.after.ece.value == two.after.ece.value > 0
    (tmp_path / "voxels.npz").write_bytes(b"half")
    with pytest.raises(MedsegError, match="delete it and evaluate again"):
        MaskForecast.load(tmp_path / "voxels.npz", "a")
