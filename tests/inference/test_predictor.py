"""Prediction: windows agree with the whole, members and mirrorings are averaged, and orientation does not matter."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor, predict_grid
from medseg.inference.runtime import TorchRuntime
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Channel
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.volume import Geometry, Reorientation, Volume
from tests.tiny import LABELS, POINTWISE, noise, threshold_model, tiny_model, tiny_plan

REGIONS = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
TURNS = [
    Reorientation(order, flip)
    for order in itertools.permutations(range(3))
    for flip in itertools.product((False, True), repeat=3)
]
OBLIQUE = np.array([[0.98, -0.17, 0.0, 5], [0.17, 0.98, 0.0, -7], [0, 0, 1.0, 3], [0, 0, 0, 1]]) @ np.diag(
    [0.9, 0.8, 2.0, 1]
)


def runtimes(*models):
    return [TorchRuntime(m.network_module([POINTWISE]), device="cpu", precision="float32") for m in models]


def on_grid(models, array, **options):
    plan = models[0].plan
    return predict_grid(runtimes(*models), array, plan, build_task(models[0].task, plan), **options)


@pytest.mark.parametrize("shape", [(8, 8, 8), (20, 11, 9), (5, 20, 3)])
def test_windows_of_a_pointwise_network_equal_the_whole(shape):
    model = tiny_model(0, target=POINTWISE)
    array = noise(shape)[None] / 100
    with torch.no_grad():
        whole = torch.softmax(model.network_module([POINTWISE])(torch.from_numpy(array)[None]), 1)[0].numpy()
    for overlap, batch_size in ((0.0, 1), (0.5, 3)):
        merged = on_grid([model], array, overlap=overlap, batch_size=batch_size)
        np.testing.assert_allclose(merged, whole, atol=1e-5)


def test_a_case_of_one_window_is_what_the_network_says_of_it():
    model = tiny_model(0)
    array = noise((8, 8, 8))[None] / 100
    merged = on_grid([model], array, mirror=False)
    expected = torch.softmax(runtimes(model)[0](torch.from_numpy(array)[None]), 1)[0].numpy()
    np.testing.assert_allclose(merged, expected, atol=1e-6)


def test_a_smaller_case_lies_in_the_middle_of_zeros():
    model = tiny_model(0)
    array = noise((5, 8, 8))[None] / 100
    padded = np.pad(array, [(0, 0), (2, 1), (0, 0), (0, 0)])
    merged = on_grid([model], array, mirror=False)
    np.testing.assert_allclose(merged, on_grid([model], padded, mirror=False)[:, 2:7], atol=1e-6)


def test_an_ensemble_is_the_mean_of_its_members():
    models = [tiny_model(seed) for seed in range(3)]
    array = noise((12, 9, 8))[None] / 100
    alone = [on_grid([m], array, mirror=False) for m in models]
    np.testing.assert_allclose(on_grid(models, array, mirror=False), np.mean(alone, 0), atol=1e-5)


def test_mirroring_averages_over_every_combination_of_the_plans_axes():
    model = tiny_model(0, tiny_plan(mirror_axes=(0, 2)))
    array = noise((8, 8, 8))[None] / 100
    alone = [
        np.flip(on_grid([model], np.flip(array, axes).copy() if axes else array, mirror=False), axes)
        for axes in ((), (1,), (3,), (1, 3))
    ]
    np.testing.assert_allclose(on_grid([model], array), np.mean(alone, 0), atol=1e-5)
    mirrored = on_grid([model], array[:, ::-1].copy())
    np.testing.assert_allclose(mirrored[:, ::-1], on_grid([model], array), atol=1e-5)


def test_batches_change_nothing_and_progress_reaches_the_end():
    model = tiny_model(0)
    array = noise((20, 14, 9))[None] / 100
    told = []
    one = on_grid([model], array, batch_size=1)
    many = on_grid([model], array, batch_size=5, on_window=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("crop", ["none", "nonzero"])
def test_the_mask_is_the_same_whatever_orientation_the_scan_is_stored_in(crop):
    model = tiny_model(3, tiny_plan(crop=crop, mirror_axes=()))
    predictor = Predictor([model], mirror=False)
    values = noise((14, 12, 6))
    values[:2], values[:, -3:] = 0, 0
    scan = Volume(values[None], Geometry(values.shape, OBLIQUE))
    expected = predictor.predict_volume(scan, "a").mask
    assert len(np.unique(expected)) > 1
    for turn in TURNS:
        stored = Volume(turn.apply(scan.data), turn.apply_to_geometry(scan.geometry))
        prediction = predictor.predict_volume(stored, "a")
        assert prediction.geometry is stored.geometry
        np.testing.assert_array_equal(prediction.mask, turn.apply(expected))


def test_the_prediction_lies_on_the_scans_own_grid_and_finds_what_is_there():
    values = np.zeros((20, 18, 10), np.float32)
    values[6:14, 5:12, 3:7] = 10
    scan = Volume(values[None], Geometry.from_spacing(values.shape, (0.5, 0.7, 1.0)))
    prediction = Predictor([threshold_model(at=1.0)], trust=[POINTWISE]).predict_volume(scan, "box")
    found = prediction.mask == 1
    truth = values > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    assert set(np.unique(prediction.mask)) == {0, 1}


def test_regions_that_overlap_are_painted_in_order():
    model = threshold_model(tiny_plan(labels=REGIONS, channels=(Channel("MRI", "none"),)))
    weights = {"weight": torch.full_like(model.weights["weight"], 50.0), "bias": torch.tensor([0.0, -75.0])}
    values = np.repeat([-1.0, 1.0, 2.0, -2.0], 4)[:, None, None] * np.ones((16, 8, 8))
    scan = Volume(values[None].astype(np.float32), Geometry.from_spacing(values.shape, (1, 1, 1)))
    prediction = Predictor([replace(model, weights=weights)], trust=[POINTWISE]).predict_volume(scan, "a")
    assert [int(prediction.mask[i, 4, 4]) for i in (1, 6, 10, 14)] == [0, 1, 2, 0]


def test_pictures_are_predicted_as_they_are_stored():
    plan = tiny_plan(2, channels=tiny_plan().channels * 3)
    picture = Volume(np.stack([noise((19, 13), s) for s in range(3)]), Geometry.from_spacing((19, 13), (1, 1), "px"))
    prediction = Predictor([tiny_model(1, plan)]).predict_volume(picture, "a")
    assert prediction.mask.shape == (19, 13)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["exclusive", "regions"])
def test_where_logits_are_averaged_an_outcome_still_tells_probabilities(labels):
    """Of one window and one model, the mean of logits says what the mean of probabilities says."""
    scan = Volume(noise((7, 8, 6))[None], Geometry.from_spacing((7, 8, 6), (1.0, 1.0, 1.0)))
    found = []
    for averaged in ("probabilities", "logits"):
        plan = tiny_plan(labels=labels, mirror_axes=(), conventions=Conventions(averaged=averaged))
        model = tiny_model(0, plan)
        found.append(Predictor([model], runtime={"precision": "float32"}).outcome(scan, "a"))
    stated, from_logits = (outcome.probabilities() for outcome in found)
    assert from_logits.min() >= 0 and from_logits.max() <= 1
    np.testing.assert_allclose(from_logits, stated, atol=1e-5)
    np.testing.assert_array_equal(found[0].prediction.mask, found[1].prediction.mask)


def test_components_of_a_model_that_averages_logits_are_those_of_its_probabilities():
    values = np.full((16, 16, 16), -1.0, np.float32)
    values[4:9, 5:9, 6:9] = 3.0
    scan = Volume(values[None], Geometry.from_spacing(values.shape, (1.0, 1.0, 1.0)))
    boxes = []
    for averaged in ("probabilities", "logits"):
        model = threshold_model(tiny_plan(conventions=Conventions(averaged=averaged)), at=1.0)
        predictor = Predictor([model], boxes={"from": "components"}, mirror=False, trust=[POINTWISE])
        boxes.append(predictor.outcome(scan, "a").prediction.boxes)
    np.testing.assert_allclose(boxes[1].boxes, boxes[0].boxes)
    np.testing.assert_allclose(boxes[1].scores, boxes[0].scores, atol=1e-4)
    assert len(boxes[1].boxes) == 1 and 0.5 < boxes[1].scores[0] <= 1


def test_postprocessing_of_an_ensemble_is_what_all_members_chose():
    both = {"liver": {"largest": True, "smallest": 0.5, "unit": "ml"}, "lesion": {"smallest": 0.1, "unit": "ml"}}
    one = {"liver": {"largest": False, "smallest": 0.2, "unit": "ml"}}
    predictor = Predictor([replace(tiny_model(0), postprocessing=both), replace(tiny_model(1), postprocessing=one)])
    assert predictor.postprocessing == {"liver": {"largest": False, "smallest": 0.2, "unit": "ml"}}


def test_postprocessing_keeps_the_same_component_in_every_orientation():
    model = replace(threshold_model(at=1.0), postprocessing={"liver": {"largest": True}})
    predictor = Predictor([model], mirror=False, trust=[POINTWISE])
    values = np.zeros((16, 8, 8), np.float32)
    values[2:5, 2:6, 2:6] = values[11:14, 2:6, 2:6] = 10
    scan = Volume(values[None], Geometry.from_spacing(values.shape, (1, 1, 1)))
    expected = predictor.predict_volume(scan, "a").mask
    assert expected.any(axis=(1, 2)).sum() == 3
    for turn in TURNS[::5]:
        stored = Volume(turn.apply(scan.data), turn.apply_to_geometry(scan.geometry))
        np.testing.assert_array_equal(predictor.predict_volume(stored, "a").mask, turn.apply(expected))


def test_models_that_share_no_plan_are_no_ensemble():
    with pytest.raises(MedsegError, match="no ensemble, as their preprocessing differs"):
        Predictor([tiny_model(0), tiny_model(1, tiny_plan(spacing=(1.0, 1.0, 2.0)))])
    with pytest.raises(MedsegError, match="at least one model"):
        Predictor([])


def test_a_mistyped_runtime_option_and_an_impossible_overlap_are_named():
    with pytest.raises(MedsegError, match="'devise'.*it accepts name, device, precision, cache"):
        Predictor([tiny_model(0)], runtime={"devise": "cpu"})
    with pytest.raises(MedsegError, match=r"overlap 1\.5"):
        Predictor([tiny_model(0)], overlap=1.5)


def test_a_scan_that_does_not_fit_the_plan_is_refused():
    picture = Volume(np.zeros((1, 9, 9), np.float32), Geometry.from_spacing((9, 9), (1, 1)))
    with pytest.raises(MedsegError, match="3D"):
        Predictor([tiny_model(0)]).predict_volume(picture, "a")
