"""Detection from crop to boxes: what a crop asks for, and that a planted box comes back from any orientation and spacing."""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.data.preprocess import preprocess
from medseg.errors import MedsegError
from medseg.inference.predictor import predict_grid
from medseg.losses import dice_ce
from medseg.losses_boxes import Truth, focal_giou
from medseg.networks import build_network
from medseg.networks.anchor_grid import AnchorGrid
from medseg.planning.plan import Channel
from medseg.structures import Boxes, LabelTable
from medseg.tasks import build_task
from medseg.tasks.detection import DetectionTask, Found
from medseg.volume import Geometry, Reorientation, Volume
from tests.tiny import LABELS, RETINA, tiny_boxes, tiny_plan

TURNS = [
    Reorientation(order, flip)
    for order in itertools.permutations(range(3))
    for flip in itertools.product((False, True), repeat=3)
]


def plan_of(dimensions: int = 3, **changes: Any) -> Any:
    boxes = changes.pop("boxes", {})
    return tiny_plan(dimensions, task="detection", boxes=tiny_boxes(dimensions, **boxes), **changes)


def case_of(shape: tuple[int, ...], boxes: list[list[float]], labels: list[int] | None = None) -> Any:
    lesions = Boxes(np.array(boxes, float).reshape(-1, 2 * len(shape)), np.array(labels or [3] * len(boxes), int))
    restoration = SimpleNamespace(geometry=Geometry.from_spacing(shape, (1.0,) * len(shape)))
    return SimpleNamespace(id="a", shape=shape, lesions=lesions, locations={}, restoration=restoration)


def crops(case: Any, foreground: bool, count: int = 300, size: int = 8) -> np.ndarray:
    task, rng = DetectionTask(plan_of()), np.random.default_rng(0)
    return np.array([task.crop(case, (size,) * 3, foreground, rng) for _ in range(count)])


def test_a_lesion_crop_holds_the_whole_lesion_and_lies_anywhere_about_it() -> None:
    lower = crops(case_of((40, 30, 20), [[20.3, 10, 4, 23.6, 14, 9]]), True)
    assert (lower <= [20, 10, 4]).all() and (lower + 8 >= [24, 14, 9]).all()
    assert [len(set(column)) for column in lower.T] == [5, 5, 4]


def test_of_a_lesion_longer_than_the_patch_every_part_is_seen() -> None:
    lower = crops(case_of((40, 30, 20), [[5, 10, 4, 33, 14, 9]]), True)
    assert lower[:, 0].min() == 5 and lower[:, 0].max() == 25


def test_crops_stay_inside_and_without_lesion_go_anywhere() -> None:
    for case in (case_of((40, 30, 20), [[38, 28, 18, 40, 30, 20]]), case_of((40, 30, 20), [])):
        for foreground in (True, False):
            lower = crops(case, foreground)
            assert (lower >= 0).all() and (lower <= [32, 22, 12]).all()
    assert len({tuple(row) for row in crops(case, True)}) > 200
    assert {tuple(row) for row in crops(case_of((4, 30, 5), []), False)} <= {(-2, n, -2) for n in range(23)}


def test_small_and_large_lesions_and_rare_labels_are_cropped_alike() -> None:
    large, small = [2.0, 2, 2, 10, 10, 10], [30.0, 20, 12, 32, 22, 14]
    at = crops(case_of((40, 30, 20), [large, small]), True, 400)[:, 0]
    assert 140 < (at > 15).sum() < 260
    rare = crops(case_of((40, 30, 20), [large] * 9 + [small], [1] * 9 + [3]), True, 400)[:, 0]
    assert 140 < (rare > 15).sum() < 260


def test_a_target_names_whole_lesions_and_leaves_cut_ones_open() -> None:
    task = DetectionTask(plan_of(2))
    case = case_of((40, 30), [[2, 2, 6, 6], [7, 0, 11, 4], [6, 6, 9, 8]], [3, 1, 3])
    truth = task.target(case, None, (8, 8), lambda boxes: boxes)["truth"]
    assert truth.boxes.tolist() == [[2, 2, 6, 6], [6, 6, 8, 8]] and truth.classes.tolist() == [1, 1]
    assert truth.ignore.tolist() == [[7, 0, 8, 4]]
    assert "label" not in task.target(case, np.zeros((1, 8, 8), np.int16), (8, 8), lambda boxes: boxes)


def test_the_mask_of_numbered_lesions_becomes_one_of_labels() -> None:
    task = DetectionTask(plan_of(2, boxes={"masks": True}))
    case = case_of((8, 8), [[0, 0, 2, 2], [4, 4, 8, 8]], [3, 1])
    numbered = np.zeros((1, 8, 8), np.int16)
    numbered[0, :2, :2], numbered[0, 4:, 4:] = 1, 2
    label = task.target(case, numbered, (8, 8), lambda boxes: boxes)["label"]
    assert label.dtype == torch.int16 and sorted(label.unique().tolist()) == [0, 1, 3]
    assert (label[0, :2, :2] == 3).all() and (label[0, 4:, 4:] == 1).all()


def test_the_loss_has_a_gradient_with_and_without_lesions_and_masks() -> None:
    for masks in (True, False):
        plan = plan_of(2, boxes={"masks": masks})
        task = DetectionTask(plan)
        network = build_network({"_target_": RETINA}, plan, task.out_channels)
        nothing = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        one = Truth(torch.tensor([[1.0, 1, 5, 6]]), torch.tensor([1]))
        batch = {"truth": [nothing, one], "label": torch.ones(2, 1, 8, 8, dtype=torch.int16)}
        terms = task.loss(network(torch.randn(2, 1, 8, 8)), batch)
        assert any(name.startswith("mask_") for name in terms) is masks
        assert {"scores", "giou"} <= set(terms)
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_scores_that_are_no_numbers_are_said() -> None:
    task = DetectionTask(plan_of(2))
    output = {"scores": [torch.full((1, 4, 8, 8), torch.nan)], "deltas": [torch.zeros(1, 8, 8, 8)]}
    with pytest.raises(MedsegError, match=r"scores are NaN or infinite.*precision=float32"):
        task.combine([(output, ())])


def test_a_mirrored_view_says_where_things_are() -> None:
    plan = plan_of(2)
    task = DetectionTask(plan, floor=0.0)
    network = build_network({"_target_": RETINA}, plan, task.out_channels).eval()
    image = torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        (straight,) = task.combine([(network(image), ())])
        (turned,) = task.combine([(network(image.flip(2)), (2,))])
        (both,) = task.combine([(network(image), ()), (network(image.flip(2).flip(2)), ())])
    assert len(straight.views) == 1 and len(both.views) == 2
    expected = network(image.flip(2))
    grid = AnchorGrid.of(plan.strides, plan.boxes.levels, plan.boxes.anchors)
    boxes = grid.decode(grid.rows(expected["deltas"])[0], torch.cat(grid.places([(8, 8)]))).detach().numpy()
    mirrored = boxes.copy()
    mirrored[:, 0], mirrored[:, 2] = 8 - boxes[:, 2], 8 - boxes[:, 0]
    nearest = np.abs(turned.views[0].boxes[:, None] - mirrored[None]).max(-1).min(1)
    assert len(turned.views[0]) > 3 and nearest.max() < 1e-4


class SeesBrightBoxes:
    """Stands for a network without anchors: measures the bright box in a window by its moments, says it in the cell there."""

    device = torch.device("cpu")
    own_threads = False

    def __call__(self, batch: Tensor) -> dict[str, list[Tensor]]:
        shape = batch.shape[2:]
        grid = AnchorGrid.of([(1,) * len(shape)], [0])
        places = torch.cat(grid.places([shape]))
        scores = torch.full((len(batch), 2, *shape), -12.0)
        faces = torch.zeros(len(batch), 2 * len(shape), *shape)
        for n, image in enumerate(batch[:, 0].numpy().clip(0, 1)):
            profiles = [image.max(tuple(a for a in range(image.ndim) if a != axis)) for axis in range(image.ndim)]
            length = np.array([profile.sum() for profile in profiles])
            if length.min() < 0.5:
                continue
            centre = np.array([(np.arange(len(p)) + 0.5) @ p / p.sum() for p in profiles])
            box = torch.tensor(np.concatenate([centre - length / 2, centre + length / 2]), dtype=torch.float32)
            cell = tuple(np.clip(centre.astype(int), 0, np.array(shape) - 1))
            scores[(n, 1, *cell)] = 6.0
            row = int(np.ravel_multi_index(cell, tuple(shape)))
            faces[(n, slice(None), *cell)] = grid.encode(box, places[row])
        return {"scores": [scores], "faces": [faces]}


@pytest.mark.parametrize("turn", TURNS[::7])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.0), (2.0, 0.6, 0.9)])
def test_a_planted_box_comes_back_from_any_orientation_and_spacing(
    turn: Reorientation, spacing: tuple[float, ...]
) -> None:
    planted = np.array([9.0, 14, 6, 15, 24, 14])
    low, high = planted[:3] / spacing, planted[3:] / spacing
    shape = tuple(np.ceil(np.array([30, 36, 22]) / spacing).astype(int))
    edges = np.concatenate([np.round(low), np.round(high)]).astype(int)
    values = np.zeros(shape, np.float32)
    values[tuple(slice(a, b) for a, b in zip(edges[:3], edges[3:], strict=True))] = 1
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-40, 12, 7)
    geometry = turn.apply_to_geometry(Geometry(shape, affine))
    values = turn.apply(values)
    plan = plan_of(
        3,
        channels=(Channel("MRI", "none"),),
        image_order=(1, 1, 1), patch_size=(16, 16, 16), strides=((1, 1, 1), (2, 2, 2)),
    )  # fmt: skip
    task = DetectionTask(plan)
    array, restoration = preprocess(Volume(values[None], geometry), plan)
    merged = predict_grid([SeesBrightBoxes()], array, plan, task, overlap=0.5)
    found = task.decode("a", merged, restoration, {"lesion": 0.5})
    best = found.findings.boxes[0]
    inside = np.argwhere(values > 0)
    expected = np.concatenate([inside.min(0), inside.max(0) + 1])
    assert np.abs(best - expected).max() < 0.5, (best, expected)
    assert found.labels.names[int(found.findings.labels[0])] == "lesion" and found.mask is None


def test_the_surest_boxes_of_each_label_are_kept_in_order() -> None:
    task = DetectionTask(plan_of(2, patch_size=(64, 64)))
    rng = np.random.default_rng(0)
    low = np.stack(np.meshgrid(np.arange(0, 60, 4), np.arange(0, 60, 4)), -1).reshape(-1, 2).astype(float)
    boxes = Boxes(np.concatenate([low, low + 3], 1), np.full(len(low), 3), rng.uniform(0.1, 1, len(low)))
    merger = task.merger((64, 64), (64, 64))
    merger.add(SimpleNamespace(views=(boxes,), mask=None), (0, 0))
    found = merger.result()
    assert isinstance(found, Found) and len(found.boxes) == 100
    assert (np.diff(found.boxes.scores) <= 0).all()
    assert found.boxes.scores[-1] == pytest.approx(np.sort(boxes.scores)[-100])


def test_metrics_score_what_is_right_above_what_is_wrong() -> None:
    task = DetectionTask(plan_of(2))
    case = case_of((40, 30), [[2, 2, 6, 6], [10, 10, 16, 18]])
    right = Boxes(case.lesions.boxes, case.lesions.labels, np.array([0.9, 0.8]))
    wrong = Boxes(case.lesions.boxes + 20, case.lesions.labels, np.array([0.9, 0.8]))
    scores = []
    for boxes in (right, wrong):
        metrics = task.metrics()
        metrics.update(Found(boxes, None), case)
        figures = metrics.compute()
        scores.append(figures["score"])
    assert scores[0] == pytest.approx(1) and scores[1] == pytest.approx(0)
    assert task.metrics().compute() == {"score": 0.0}


def test_the_score_of_a_box_is_its_best_logit_and_has_a_gradient() -> None:
    task = DetectionTask(plan_of(2))
    scores = torch.zeros(1, 4, 8, 8, requires_grad=True)
    with torch.no_grad():
        scores[0, 1, 2, 3], scores[0, 3, 6, 6] = 2.0, 5.0
    output = {"scores": [scores], "deltas": [torch.zeros(1, 8, 8, 8)]}
    region = torch.zeros(1, 1, 8, 8)
    region[0, 0, :4, :4] = 1
    assert task.score(output, "lesion").item() == 5
    assert task.score(output, "lesion", region).item() == 2
    (gradient,) = torch.autograd.grad(task.score(output, "lesion", region).sum(), scores)
    assert gradient[0, 1, 2, 3] == 1 and gradient.abs().sum() == 1
    with pytest.raises(MedsegError, match="no target 'bone'; it has liver, lesion"):
        task.score(output, "bone")


def test_what_a_detector_cannot_do_is_said_before_any_work() -> None:
    with pytest.raises(MedsegError, match="the plan has no boxes"):
        DetectionTask(tiny_plan())
    regions = LabelTable({1: "a", 2: "b"}, regions={"whole": (1, 2), "b": (2,)}, paint=(1, 2))
    with pytest.raises(MedsegError, match="found the regions whole, b"):
        DetectionTask(plan_of(labels=regions))
    with pytest.raises(MedsegError, match="fusion 'wbd'"):
        DetectionTask(plan_of(), fusion="wbd")  # type: ignore[arg-type]
    with pytest.raises(MedsegError, match="detection expects named outputs .*; choose network=retina_unet"):
        DetectionTask(plan_of()).loss(torch.zeros(1), {})
    assert DetectionTask(plan_of()).labels is LABELS


def test_a_loss_or_network_of_another_task_is_said() -> None:
    for name, loss, message in (
        ("detection", functools.partial(dice_ce, ce_weight=0.5), r"dice_ce\(\) compares masks, task=detection"),
        ("segmentation", focal_giou, r"focal_giou\(\) compares boxes, task=segmentation.*takes no 'exclusive'"),
    ):
        plan = plan_of() if name == "detection" else tiny_plan()
        with pytest.raises(MedsegError, match=message):
            build_task({"name": name}, plan, loss)
    with pytest.raises(
        MedsegError, match=r"retina_unet\(\) finds boxes and needs a plan with boxes; say task=detection"
    ):
        build_network({"_target_": RETINA}, tiny_plan(), 2)
