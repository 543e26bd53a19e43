"""Boxes of a detector or of a mask's components, on the scan's own grid, at the working point that was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError
from medseg.inference.boxes import BoxOptions
from medseg.inference.predictor import Predictor
from medseg.model import Model
from medseg.networks import build_network
from medseg.volume import Geometry, Volume
from tests.tiny import POINTWISE, RETINA, noise, threshold_model, tiny_boxes, tiny_plan

POINT = {
    "fp_per_scan": 1.0,
    "thresholds": {name: {"0.5": 0.8, "1": 0.5, "2": 0.25} for name in ("liver", "lesion")},
}


def detector(masks: bool = True, **changes: Any) -> Model:
    plan = tiny_plan(task="detection", boxes=tiny_boxes(masks=masks))
    network = {"_target_": RETINA}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_network(network, plan, 2).state_dict()
    weights = {
        name: w + 4 if name.startswith("head.scores") and name.endswith("bias") else w for name, w in weights.items()
    }
    return Model(plan=plan, task={"name": "detection"}, network=network, weights=weights, **changes)


def scan(shape: tuple[int, ...] = (12, 10, 8)) -> Volume:
    return Volume(noise(shape)[None], Geometry.from_spacing(shape, (1.0,) * len(shape)))


def test_a_detector_says_boxes_and_the_mask_it_has_learnt() -> None:
    found = Predictor([detector()]).predict_volume(scan(), "a")
    assert found.boxes is not None and len(found.boxes) and found.mask is not None
    assert (found.boxes.boxes >= 0).all() and (found.boxes.boxes <= np.tile((12, 10, 8), 2)).all()
    assert Predictor([detector(masks=False)]).predict_volume(scan(), "a").mask is None


@pytest.mark.parametrize(("rate", "threshold"), [(None, 0.5), (0.5, 0.8), (0.9, 0.8), (2, 0.25)])
def test_the_working_point_is_the_models_or_a_number_of_false_positives(rate: float | None, threshold: float) -> None:
    found = Predictor([detector(working_point=POINT)], boxes=BoxOptions(fp_per_scan=rate)).predict_volume(scan(), "a")
    assert found.thresholds == {"liver": threshold, "lesion": threshold}
    assert found.boxes is not None and found.boxes.scores is not None and found.findings is not None
    assert len(found.findings) == (found.boxes.scores >= threshold).sum()


def test_folds_meet_in_the_middle() -> None:
    higher = {**POINT, "thresholds": {name: {"0.5": 1.0, "1": 0.7, "2": 0.5} for name in ("liver", "lesion")}}
    predictor = Predictor([detector(working_point=POINT), detector(working_point=higher)])
    assert predictor.finder.thresholds == {"liver": pytest.approx(0.6), "lesion": pytest.approx(0.6)}


def test_components_of_a_mask_are_boxes_where_its_voxels_are() -> None:
    values = np.full((1, 20, 16, 12), -10.0, np.float32)
    values[0, 3:7, 4:9, 2:5] = values[0, 12:15, 2:6, 6:10] = 10.0
    volume = Volume(values, Geometry.from_spacing(values.shape[1:], (1.0,) * 3))
    found = Predictor([threshold_model()], trust=[POINTWISE], boxes=BoxOptions("components")).predict_volume(
        volume, "a"
    )
    assert found.boxes is not None and found.mask is not None and found.thresholds == {}
    assert sorted(map(tuple, found.boxes.boxes)) == [(3, 4, 2, 7, 9, 5), (12, 2, 6, 15, 6, 10)]
    assert set(found.boxes.labels) == {1}


def test_components_obey_the_working_point_that_was_chosen_for_them() -> None:
    point = {"components": {"aggregate": "mean", "smallest_mm3": 0.0, **POINT}}
    model = replace(threshold_model(), working_point=point)
    assert Predictor([model], trust=[POINTWISE], boxes=BoxOptions("components")).finder.thresholds == {
        "liver": 0.5,
        "lesion": 0.5,
    }
    assert Predictor([model], trust=[POINTWISE], boxes=BoxOptions("components")).finder.components == {
        "aggregate": "mean",
        "smallest_mm3": 0.0,
    }
    assert Predictor([model], trust=[POINTWISE]).finder.components is None


@pytest.mark.parametrize(
    ("model", "boxes", "message"),
    [
        (detector, {"from": "components"}, "is for segmentation models"),
        (threshold_model, {"fp_per_scan": 1}, "this model does segmentation and finds no boxes; boxes=components"),
        (detector, {"fp_per_scan": 1}, "the model has no working point to choose by"),
        (detector, {"form": "network"}, "boxes has no form; it has from, all, cluster, fp_per_scan, fusion, iou"),
        (detector, {"from": "mask"}, "boxes.from 'mask'; expected one of network, components"),
        (detector, {"fusion": "mean"}, "fusion 'mean'; expected one of wbc, nms, soft_nms"),
    ],
)
def test_what_a_model_cannot_give_is_said(model: Any, boxes: dict[str, Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        Predictor([model()], trust=[POINTWISE], boxes=BoxOptions.from_mapping(boxes))


def test_options_come_as_the_configuration_names_them() -> None:
    assert BoxOptions.from_mapping({"from": "components", "all": True}) == BoxOptions("components", all=True)


def test_beside_models_of_other_tasks_each_takes_what_concerns_it() -> None:
    asked = BoxOptions("components", fp_per_scan=0.5)
    assert asked.for_one_of_several("detection") == BoxOptions("network", fp_per_scan=0.5)
    assert asked.for_one_of_several("segmentation") == asked
    assert BoxOptions(fp_per_scan=0.5, iou=0.2).for_one_of_several("segmentation") == BoxOptions()
