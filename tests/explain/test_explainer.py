"""From a scan to its heat maps: on the scan's own grid, for every task, and with a word for what cannot be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.explain.explainer import METHODS, Explainer
from medseg.explain.layers import default_layer
from medseg.explain.targets import Target
from medseg.inference.predictor import Predictor
from medseg.model import Model
from medseg.networks import build_network
from medseg.planning.classes import ClassPlan
from medseg.planning.plan import Channel, Plan
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry, Reorientation, Volume
from tests.explain.nets import CONVOLUTIONS, ONE, POOLED, model_of, plan_2d, random_array
from tests.tiny import POINTWISE, RETINA, noise, threshold_model, tiny_boxes, tiny_model, tiny_plan


def explainer(models: Any, **options: Any) -> Explainer:
    models = [models] if isinstance(models, Model) else models
    options = {"device": "cpu", "precision": "float32", "trust": [POINTWISE, CONVOLUTIONS, POOLED], **options}
    return Explainer(models, **options)


def linear_model(plan: Plan, weight: float = 2.0) -> Model:
    """Background 0, the first label ``weight`` times the value."""
    model = tiny_model(0, plan, POINTWISE)
    weights = {name: torch.zeros_like(value) for name, value in model.weights.items()}
    weights["weight"][1] = weight
    return replace(model, weights=weights)


SHARED = "tests.explain.test_explainer.Shared"
RAW = (Channel("MRI", "none"),)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_maps_a_volume_of_several_windows_to_its_own_grid(method: str) -> None:
    plan = tiny_plan(patch_size=(4, 4, 4), labels=ONE, channels=RAW)
    volume = Volume(random_array((1, 6, 4, 3)), Geometry.from_spacing((6, 4, 3), (1.0, 1.0, 1.0)))
    mask = np.zeros((6, 4, 3), np.uint8)
    mask[1:3, 1:3, 1] = 1
    prediction = Prediction("p", volume.geometry, ONE, mask=mask)
    options = {"integrated_gradients": {"steps": 2}, "smooth_grad": {"samples": 2}, "occlusion": {"size": 2}}
    made = explainer(model_of(CONVOLUTIONS, plan), method=method, options=options.get(method, {}))
    (found,) = made.explain(volume, prediction, [Target("lesion", "1")])
    assert (found.case, found.target, found.method) == ("p", "lesion-1", method)
    assert found.values.shape == (6, 4, 3) and found.values.dtype == np.float32
    assert np.isfinite(found.values).all()
    if method not in ("hires_cam", "depth_cam"):  # of random weights, everything may speak against the lesion
        assert np.ptp(found.values) > 0


@pytest.mark.parametrize(
    "turn", [Reorientation((0, 1, 2), (False,) * 3), Reorientation((2, 0, 1), (True, False, True))]
)
def test_a_map_lies_where_the_scan_is_stored_and_is_zero_where_it_was_cropped(turn: Reorientation) -> None:
    plan = tiny_plan(crop="nonzero", labels=ONE, channels=RAW)
    values = np.zeros((14, 9, 10), np.float32)
    values[3:12, 2:8, 1:9] = 1 + np.abs(noise((9, 6, 8))) / 100
    mask = (values > 0).astype(np.uint8)
    mask[:6] = 0
    geometry = turn.apply_to_geometry(Geometry.from_spacing(values.shape, (1.0, 1.0, 1.0)))
    volume = Volume(turn.apply(values)[None], geometry)
    prediction = Prediction("p", geometry, ONE, mask=turn.apply(mask))
    made = explainer(linear_model(plan), method="integrated_gradients", options={"steps": 2})
    (found,) = made.explain(volume, prediction, [Target("label", "lesion")])
    expected = 2 * values * mask / mask.sum()
    np.testing.assert_allclose(found.values, turn.apply(expected), rtol=1e-2, atol=1e-6)


def test_negative_values_survive_the_way_back() -> None:
    plan = plan_2d(labels=ONE)
    picture = Volume(random_array((1, 6, 5)), Geometry.from_spacing((6, 5), (1.0, 1.0), "px"))
    prediction = Prediction("p", picture.geometry, ONE, mask=np.ones((6, 5), np.uint8))
    made = explainer(linear_model(plan, -3.0), method="gradient")
    (found,) = made.explain(picture, prediction, [Target("label", "lesion")])
    np.testing.assert_allclose(found.values, -3 / 30, rtol=1e-3)


def test_the_map_of_folds_is_the_mean_of_theirs_and_so_is_the_score() -> None:
    plan, array = plan_2d(labels=ONE), random_array((1, 7, 5))
    models = [model_of(CONVOLUTIONS, plan, seed=seed) for seed in range(2)]
    for method in ("layer_cam", "gradient"):
        alone = [explainer(model, method=method).on_grid(array, "lesion") for model in models]
        np.testing.assert_allclose(
            explainer(models, method=method).on_grid(array, "lesion"), np.mean(alone, 0), atol=1e-7
        )
    scores = [explainer(model).score(array, "lesion") for model in models]
    assert explainer(models).score(array, "lesion") == pytest.approx(np.mean(scores))


def class_plan(size: int = 4, **changes: Any) -> Plan:
    labels = LabelTable({1: "benign", 2: "malignant"})
    return plan_2d(size, task="classification", labels=labels, classes=ClassPlan((0.5, 0.5)), **changes)


def class_model(plan: Plan, pool: str = "mean") -> Model:
    """Features |x| apart by sign; malignant = 3 · mean of the positive part."""
    weights = {
        "features.0.weight": [1, -1],
        "features.0.bias": [0, 0],
        "last.weight": [0, 1, 3, 0],
        "last.bias": [0, 0],
    }
    model = model_of(POOLED, plan, "classification", weights=weights)
    return replace(model, task={"name": "classification", "pool": pool})


def test_a_class_is_explained_by_hand() -> None:
    array = random_array((1, 4, 4))
    made = explainer(class_model(class_plan()), layer="features")
    assert made.score(array, "malignant") == pytest.approx(3 * np.maximum(array, 0).mean(), rel=1e-5)
    np.testing.assert_allclose(made.on_grid(array, "malignant"), 3 / 16 * np.maximum(array[0], 0), atol=1e-6)
    np.testing.assert_allclose(made.on_grid(array, "benign"), 1 / 16 * np.maximum(-array[0], 0), atol=1e-6)


def test_a_class_of_windows_is_their_mean_or_the_surest_of_them() -> None:
    array = np.zeros((1, 8, 4), np.float32)
    array[:, :4], array[:, 4:] = 1.0, 2.0
    plan = class_plan()
    mean = explainer(class_model(plan), method="gradient", overlap=0.0)
    assert mean.score(array, "malignant") == pytest.approx((3 + 6) / 2)
    np.testing.assert_allclose(mean.on_grid(array, "malignant"), 3 / 16 / 2, rtol=1e-5)
    surest = explainer(class_model(plan, "max"), method="gradient", overlap=0.0)
    assert surest.score(array, "malignant") == pytest.approx(6)
    expected = np.repeat([[0.0], [3 / 16]], 4, 0).repeat(4, 1)
    np.testing.assert_allclose(surest.on_grid(array, "malignant"), expected, rtol=1e-5)


def test_a_class_of_a_picture_goes_the_whole_way() -> None:
    model = class_model(class_plan(8, spacing=(1.0, 1.0)))
    picture = Volume(random_array((1, 6, 8)), Geometry.from_spacing((6, 8), (1.0, 1.0), "px"))
    prediction = Predictor([model], trust=[POOLED]).predict_volume(picture, "p")
    (found,) = explainer(model, layer="features").explain(picture, prediction, [Target("class", "malignant")])
    np.testing.assert_allclose(found.values, 3 / 64 * np.maximum(picture.data[0], 0), atol=1e-5)


def detector() -> Model:
    plan = tiny_plan(2, task="detection", boxes=tiny_boxes(2), channels=RAW)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_network({"_target_": RETINA}, plan, 2).state_dict()
    return Model(plan=plan, task={"name": "detection"}, network={"_target_": RETINA}, weights=weights)


def test_a_box_has_a_map_of_its_own() -> None:
    picture = Volume(random_array((1, 14, 9)), Geometry.from_spacing((14, 9), (1.0, 1.0), "px"))
    boxes = Boxes(np.array([[1.0, 2, 4, 5], [9, 3, 13, 8]]), np.array([3, 1]), np.array([0.9, 0.8]))
    model = detector()
    prediction = Prediction("p", picture.geometry, model.plan.labels, boxes=boxes)
    for method in ("layer_cam", "gradient"):
        made = explainer(model, method=method)
        found = made.explain(picture, prediction, [Target("box", "1"), Target("box", "2")])
        assert [one.target for one in found] == ["box-1", "box-2"]
        assert np.abs(found[0].values - found[1].values).max() > 0
    assert explainer(model).layer == "head.lateral"
    masked = replace(prediction, mask=np.ones((14, 9), np.uint8))
    with pytest.raises(MedsegError, match="cannot explain label-liver: a detector is asked about its boxes"):
        explainer(model).explain(picture, masked, [Target("label", "liver")])


def test_the_score_of_a_box_is_its_logit_where_one_window_sees_it() -> None:
    model, array = detector(), random_array((1, 8, 8))
    region = np.zeros((8, 8), bool)
    region[2:6, 2:6] = True
    made = explainer(model)
    network = model.network_module()
    with torch.no_grad():
        expected = made.task.score(
            network(torch.from_numpy(array)[None]), "lesion", torch.from_numpy(region)[None, None]
        )
    assert made.score(array, "lesion", region) == pytest.approx(float(expected), abs=1e-4)


def test_all_weights_are_shuffled_and_are_the_same_by_seed() -> None:
    model, array = tiny_model(0, tiny_plan(2, channels=RAW)), random_array((1, 8, 8))
    made = explainer(model, method="gradient")
    shuffled = made.with_shuffled_weights(0)
    for name, value in shuffled.models[0].weights.items():
        assert torch.equal(value.flatten().sort().values, model.weights[name].flatten().sort().values)
        assert value.unique().numel() == 1 or not torch.equal(value, model.weights[name]), name
    maps = [one.on_grid(array, "liver") for one in (made, shuffled, *(made.with_shuffled_weights(s) for s in (0, 1)))]
    np.testing.assert_array_equal(maps[1], maps[2])
    assert np.abs(maps[0] - maps[1]).max() > 0 and np.abs(maps[1] - maps[3]).max() > 0
    assert explainer(model, layer="decoder.0").with_shuffled_weights(1).layer == "decoder.0"


class Shared(nn.Module):
    """One convolution under two names: its weights are stored twice, and the second are loaded last."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = self.second = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x)  # type: ignore[no-any-return]


def test_weights_that_have_two_names_are_shuffled_under_both() -> None:
    made = explainer(model_of(SHARED, plan_2d()), method="gradient", trust=[SHARED])
    shuffled = made.with_shuffled_weights(0).models[0].network_module([SHARED]).first.weight
    assert not torch.equal(shuffled, made.models[0].weights["first.weight"])


def test_the_default_layer_is_taken_and_told() -> None:
    made = explainer(tiny_model(0))
    assert (
        made.method == "hires_cam" and made.layer == default_layer(made._ran, (8, 8, 8), "segmentation") == "encoder.1"
    )
    assert explainer(tiny_model(0), method="gradient").layer is None
    assert explainer(class_model(class_plan())).method == "depth_cam"


def test_what_cannot_be_asked_is_said_before_any_work() -> None:
    model = tiny_model(0)
    with pytest.raises(MedsegError, match="at least one model"):
        explainer([])
    with pytest.raises(
        MedsegError, match="method 'gradcam'; expected one of depth_cam, hires_cam, layer_cam, grad_cam"
    ):
        explainer(model, method="gradcam")
    with pytest.raises(MedsegError, match="has no option step; it has steps"):
        explainer(model, method="integrated_gradients", options={"step": 3})
    with pytest.raises(MedsegError, match="hires_cam has no option layers; it has none"):
        explainer(model, options={"layers": ["decoder.0"]})
    with pytest.raises(MedsegError, match="gradient takes no layer; hires_cam, layer_cam, grad_cam"):
        explainer(model, method="gradient", layer="decoder.0")
    with pytest.raises(MedsegError, match=r"Did you mean decoder\.0\?.*Layers of this network: .*encoder\.0"):
        explainer(model, layer="decoder.3")
    with pytest.raises(MedsegError, match=r"overlap 1\.5"):
        explainer(model, overlap=1.5)
    with pytest.raises(MedsegError, match="no layer of the network has a feature map"):
        explainer(threshold_model())


def test_a_scan_that_is_not_the_predictions_and_a_name_that_does_not_exist_are_said() -> None:
    plan = plan_2d(labels=ONE)
    made = explainer(linear_model(plan), method="gradient")
    picture = Volume(random_array((1, 6, 5)), Geometry.from_spacing((6, 5), (1.0, 1.0), "px"))
    other = Prediction("p", Geometry.from_spacing((5, 6), (1.0, 1.0), "px"), ONE, mask=np.ones((5, 6), np.uint8))
    with pytest.raises(MedsegError, match="expected the scan of the prediction, 5×6"):
        made.explain(picture, other, [Target("label", "lesion")])
    with pytest.raises(MedsegError, match="no target 'kidney'; it has background, lesion"):
        made.on_grid(picture.data, "kidney")
    with pytest.raises(MedsegError, match="the region is empty"):
        made.on_grid(picture.data, "lesion", np.zeros((6, 5), bool))


def test_weights_that_are_broken_are_said() -> None:
    model = linear_model(plan_2d(labels=ONE), float("nan"))
    with pytest.raises(MedsegError, match="gradient of 'lesion' is NaN or infinite"):
        explainer(model, method="gradient").on_grid(random_array((1, 4, 4)), "lesion")


@pytest.mark.gpu
def test_a_graphics_card_gives_the_same_maps() -> None:
    model, array = tiny_model(0, tiny_plan(channels=RAW)), random_array((1, 12, 8, 9))
    for method in ("layer_cam", "grad_cam", "gradient", "guided_backprop"):
        expected = explainer(model, method=method).on_grid(array, "liver")
        found = explainer(model, method=method, device="cuda").on_grid(array, "liver")
        assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()
