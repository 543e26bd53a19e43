from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.postprocess import apply_postprocessing, choose_postprocessing
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry

LABELS = LabelTable({1: "organ", 2: "lesion"})
GEOMETRY = Geometry.from_spacing((20, 20, 20), (1.0, 1.0, 2.0))  # 0.002 ml a voxel


def masks() -> tuple[Array, Array]:
    """An organ of 216 voxels and two true lesions of 27 and 8; the prediction adds an organ of 8 voxels and a lesion of 1."""
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[2:8, 2:8, 2:8] = 1
    truth[12:15, 12:15, 12:15] = 2
    truth[16:18, 2:4, 2:4] = 2
    predicted = truth.copy()
    predicted[2:4, 16:18, 16:18] = 1
    predicted[19, 19, 19] = 2
    return predicted, truth


def test_the_largest_component_stays_and_others_become_background() -> None:
    predicted, truth = masks()
    out = apply_postprocessing(predicted, GEOMETRY, LABELS, {"organ": {"largest": True}})
    assert ((out == 1) == (truth == 1)).all()
    assert ((out == 2) == (predicted == 2)).all()
    assert (predicted[2:4, 16:18, 16:18] == 1).all()  # the input is left alone


def test_components_below_the_smallest_volume_go() -> None:
    predicted, truth = masks()
    out = apply_postprocessing(predicted, GEOMETRY, LABELS, {"lesion": {"smallest": 0.016, "unit": "ml"}})
    assert ((out == 2) == (truth == 2)).all()  # 8 voxels are 0.016 ml and stay
    out = apply_postprocessing(predicted, GEOMETRY, LABELS, {"lesion": {"smallest": 0.0161, "unit": "ml"}})
    assert (out == 2).sum() == 27


def test_no_rule_returns_the_mask_itself() -> None:
    predicted, _ = masks()
    assert apply_postprocessing(predicted, GEOMETRY, LABELS, {}) is predicted


def test_applying_twice_is_applying_once() -> None:
    predicted, _ = masks()
    options = {"organ": {"largest": True, "smallest": 0.1}, "lesion": {"smallest": 0.01}}
    once = apply_postprocessing(predicted, GEOMETRY, LABELS, options)
    assert (apply_postprocessing(once, GEOMETRY, LABELS, options) == once).all()


def test_a_volume_in_another_unit_is_not_applied() -> None:
    predicted, _ = masks()
    pixels = Geometry.from_spacing((20, 20, 20), (1, 1, 1), "px")
    out = apply_postprocessing(predicted, pixels, LABELS, {"lesion": {"smallest": 100.0, "unit": "ml"}})
    assert (out == predicted).all()


def test_a_removed_core_becomes_the_region_around_it() -> None:
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[2:10, 2:10, 2:10] = 1
    mask[3:6, 3:6, 3:6] = 2
    mask[8, 8, 8] = 2
    out = apply_postprocessing(mask, GEOMETRY, labels, {"core": {"largest": True}})
    assert out[8, 8, 8] == 1 and (out[3:6, 3:6, 3:6] == 2).all() and (out > 0).sum() == (mask > 0).sum()


def test_rules_are_chosen_label_by_label_where_they_help() -> None:
    predicted, truth = masks()
    chosen = choose_postprocessing([(predicted, truth, GEOMETRY)] * 3, LABELS)
    out = apply_postprocessing(predicted, GEOMETRY, LABELS, chosen)
    assert (out == truth).all()
    assert not chosen["lesion"]["largest"]  # it would cost a true lesion
    assert chosen["lesion"]["unit"] == "ml"


def test_nothing_is_chosen_where_nothing_is_gained() -> None:
    _, truth = masks()
    assert choose_postprocessing([(truth, truth, GEOMETRY)] * 3, LABELS) == {}
    shifted = np.roll(truth, 1, axis=0)
    assert choose_postprocessing([(shifted, truth, GEOMETRY)] * 3, LABELS) == {}
    assert choose_postprocessing([], LABELS) == {}


def test_a_gain_of_noise_is_not_enough() -> None:
    predicted, truth = masks()
    predicted[2:4, 16:18, 16:18] = 0
    predicted[19, 19, 19] = 0
    predicted[0, 0, 19] = 1  # one voxel of 217 beyond the organ: Dice 0.9977
    assert "organ" in choose_postprocessing([(predicted, truth, GEOMETRY)], LABELS)
    easy = (truth, truth, GEOMETRY)
    assert choose_postprocessing([(predicted, truth, GEOMETRY), easy, easy], LABELS) == {}


def test_a_rule_that_makes_the_mean_worse_is_not_chosen() -> None:
    predicted, truth = masks()
    two = np.zeros_like(truth)
    two[2:8, 2:8, 2:8] = two[12:18, 12:18, 12:18] = 1
    chosen = choose_postprocessing([(predicted, truth, GEOMETRY), (two, two, GEOMETRY)], LABELS)
    assert not chosen["organ"]["largest"] and chosen["organ"]["smallest"] > 8 * 0.002


def test_the_figure_that_was_promised_is_the_figure_that_comes() -> None:
    """The choice works on component sizes alone; applied to the masks it must give the mean Dice it was chosen for."""
    random = np.random.default_rng(0)
    cases = []
    for _ in range(6):
        truth = np.zeros((20, 20, 20), np.uint8)
        i, j, k = random.integers(2, 12, 3)
        truth[i : i + 6, j : j + 6, k : k + 6] = 1
        noise = (random.random(truth.shape) < 0.004).astype(np.uint8)
        cases.append((np.roll(truth, 1, axis=int(random.integers(3))) | noise, truth, GEOMETRY))
    labels = LabelTable({1: "organ"})

    def mean_dice(options: dict[str, dict[str, object]]) -> float:
        cleaned = [(apply_postprocessing(p, g, labels, options), t) for p, t, g in cases]
        return float(np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in cleaned]))

    chosen = choose_postprocessing(cases, labels)
    candidates = [{"organ": {"largest": True}}, *({"organ": {"smallest": n * 0.002}} for n in range(1, 220, 3))]
    assert mean_dice(chosen) >= max(mean_dice(c) for c in candidates) - 1e-9  # type: ignore[arg-type]


def test_ignored_voxels_do_not_choose() -> None:
    labels = LabelTable({1: "organ", 2: "lesion"}, ignore=9)
    predicted, truth = masks()
    truth[2:4, 16:18, 16:18] = 9
    truth[19, 19, 19] = 9
    assert choose_postprocessing([(predicted, truth, GEOMETRY)], labels) == {}


def test_unknown_labels_and_rules_are_named() -> None:
    predicted, _ = masks()
    with pytest.raises(MedsegError, match="no label.*spleen"):
        apply_postprocessing(predicted, GEOMETRY, LABELS, {"spleen": {"largest": True}})
    with pytest.raises(MedsegError, match="no rule.*biggest"):
        apply_postprocessing(predicted, GEOMETRY, LABELS, {"organ": {"biggest": True}})


def test_a_chosen_volume_leaves_room_for_organs_smaller_than_any_of_tune() -> None:
    predicted, truth = masks()
    chosen = choose_postprocessing([(predicted, truth, GEOMETRY)] * 3, LABELS)
    # The lesion of 1 voxel must go; the smallest true one has 8 (0.016 ml), of which half is the most that may be asked for.
    assert 0.002 < chosen["lesion"]["smallest"] <= 0.008
    assert chosen["organ"]["smallest"] <= 0.216
