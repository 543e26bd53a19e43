from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError
from medseg.planning.conventions import Conventions
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.tasks.segmentation import SegmentationTask
from tests.tiny import tiny_plan

EXCLUSIVE = LabelTable({1: "liver", 4: "lesion"}, ignore=9)
REGIONS = LabelTable({1: "edema", 2: "core", 3: "active"}, regions={"whole": (1, 2, 3), "inner": (2, 3)}, paint=(1, 2))


class _Case:
    """The parts of a stored case that cropping looks at."""

    def __init__(self, shape: tuple[int, ...], locations: dict[str, np.ndarray]) -> None:
        self.shape = shape
        self.locations = locations


def _crops(case: _Case, size: tuple[int, ...], foreground: bool, count: int = 200) -> np.ndarray:
    task = SegmentationTask(EXCLUSIVE)
    rng = np.random.default_rng(0)
    return np.array([task.crop(case, size, foreground, rng) for _ in range(count)])  # type: ignore[arg-type]


def test_crops_stay_inside_and_reach_every_corner():
    lower = _crops(_Case((20, 30, 12), {}), (8, 8, 8), foreground=False, count=2000)
    assert lower.min(0).tolist() == [0, 0, 0]
    assert lower.max(0).tolist() == [12, 22, 4]


def test_a_foreground_crop_holds_the_voxel_it_was_asked_for():
    place = np.array([[17, 3, 11]])
    lower = _crops(_Case((20, 30, 12), {"lesion": place}), (8, 8, 8), foreground=True)
    assert (lower <= place).all() and (place < lower + 8).all()


def test_rare_labels_are_cropped_as_often_as_common_ones():
    many = np.tile([[2, 2, 2]], (1000, 1))
    lower = _crops(_Case((40, 40, 40), {"liver": many, "lesion": np.array([[37, 37, 37]])}), (8, 8, 8), foreground=True)
    share = (lower[:, 0] > 20).mean()
    assert 0.35 < share < 0.65


def test_a_case_smaller_than_the_crop_lies_in_its_middle():
    assert (_crops(_Case((4, 30, 12), {}), (8, 8, 8), foreground=False)[:, 0] == -2).all()


def test_perfect_logits_have_no_dice_loss_and_ignored_voxels_do_not_count():
    task = SegmentationTask(EXCLUSIVE)
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16)
    label[..., 2:5, 2:5, 2:5] = 1
    label[..., 6:, 6:, 6:] = 4
    channel = torch.tensor([0, 1, 0, 0, 2])[label.long()][:, 0]
    logits = 50 * torch.nn.functional.one_hot(channel, 3).movedim(-1, 1).float()
    good = sum(task.loss(logits, {"label": label}).values())
    assert float(good) == pytest.approx(0, abs=1e-3)
    wrong = label.clone()
    wrong[..., 0, 0, 0] = 9
    logits[:, :, 0, 0, 0] = torch.tensor([0.0, 0.0, 50.0])
    assert float(sum(task.loss(logits, {"label": wrong}).values())) == pytest.approx(0, abs=1e-3)
    assert float(sum(task.loss(logits, {"label": label}).values())) > 0.01


def test_deep_supervision_weighs_levels_by_halves_and_normalises():
    task = SegmentationTask(LabelTable({1: "a"}))
    label = torch.randint(0, 2, (2, 1, 8, 8), dtype=torch.int16)
    fine, coarse = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 4, 4)
    small = torch.nn.functional.interpolate(label.float(), size=(4, 4), mode="nearest-exact").to(torch.int16)
    alone = [sum(task.loss(x, {"label": y}).values()) for x, y in ((fine, label), (coarse, small))]
    both = sum(task.loss([fine, coarse], {"label": label}).values())
    assert float(both) == pytest.approx(float(alone[0] * 2 / 3 + alone[1] / 3), rel=1e-5)


def test_labels_with_gaps_come_back_as_stored():
    scores = np.zeros((3, 2, 2), np.float32)
    scores[2, 0, 0] = scores[1, 1, 1] = 1
    scores[0, 0, 1] = scores[0, 1, 0] = 1
    assert SegmentationTask(EXCLUSIVE).values(scores).tolist() == [[4, 0], [0, 1]]


def test_regions_are_painted_in_order():
    scores = np.array([[[0.9, 0.9, 0.1]], [[0.2, 0.8, 0.4]]], np.float32)
    assert SegmentationTask(REGIONS).values(scores).tolist() == [[1, 2, 0]]
    assert SegmentationTask(REGIONS).out_channels == 2


def test_region_targets_overlap():
    task = SegmentationTask(REGIONS)
    label = torch.tensor([0, 1, 2, 3], dtype=torch.int16).view(1, 1, 2, 2)
    logits = torch.tensor([[-60.0, 60, 60, 60], [-60, -60, 60, 60]]).view(1, 2, 2, 2)
    assert float(sum(task.loss(logits, {"label": label}).values())) == pytest.approx(0, abs=1e-3)


def test_dice_on_the_grid_is_a_mean_over_cases_that_hold_the_label():
    task = SegmentationTask(LabelTable({1: "a", 2: "b"}))
    metrics = task.metrics()
    truth = np.zeros((1, 4, 4), np.int16)
    truth[0, :2] = 1
    scores = np.zeros((3, 4, 4), np.float32)
    scores[1, 0], scores[0, 1:] = 1, 1
    metrics.update(scores, SimpleNamespace(shape=(4, 4), label=lambda lower, upper: truth))
    figures = metrics.compute()
    assert figures["dice/a"] == pytest.approx(2 * 4 / (4 + 8))
    assert "dice/b" not in figures and figures["score"] == figures["dice/a"]


def test_score_is_the_mean_logit_inside_the_region():
    task = SegmentationTask(LabelTable({1: "a"}))
    output = torch.arange(2 * 2 * 4.0).view(2, 2, 2, 2)
    region = torch.tensor([[1, 0], [0, 1]]).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    assert task.score(output, "a", region).tolist() == [(4 + 7) / 2, (12 + 15) / 2]
    with pytest.raises(MedsegError, match=r"no target 'b'.*background, a"):
        task.score(output, "b")


def test_an_unknown_task_is_named():
    with pytest.raises(MedsegError, match=r"'segmentatoin': expected one of segmentation"):
        build_task({"name": "segmentatoin"}, tiny_plan(labels=EXCLUSIVE))


def test_a_plan_of_another_task_is_refused():
    with pytest.raises(MedsegError, match=r"detection: the plan was made for segmentation; make one"):
        build_task({"name": "detection"}, tiny_plan(labels=EXCLUSIVE))


def test_a_task_names_its_options():
    with pytest.raises(MedsegError, match=r"segmentation has no option iou; it has components"):
        build_task({"name": "segmentation", "iou": 0.1}, tiny_plan(labels=EXCLUSIVE))


def test_a_crop_without_mask_cannot_be_learnt_from():
    with pytest.raises(MedsegError, match=r"case 'a': has no label"):
        SegmentationTask(EXCLUSIVE).target(SimpleNamespace(id="a"), None, (4, 4), lambda boxes: boxes)


def test_logits_are_averaged_where_the_plan_says_so():
    """A very sure view outweighs two others among logits, and does not among probabilities."""
    views = [torch.zeros(1, 3, 1, 1, 1) for _ in range(3)]
    views[0][0, 1], views[1][0, 2], views[2][0, 2] = 10.0, 2.0, 2.0
    conventions = Conventions(averaged="logits")
    by_logits = build_task({"name": "segmentation"}, tiny_plan(conventions=conventions))
    by_probability = build_task({"name": "segmentation"}, tiny_plan())
    first = views[0].clone()
    merged = by_logits.combine((view, ()) for view in views)[0]
    assert torch.equal(views[0], first), "a network's answer belongs to the network"
    assert merged[:, 0, 0, 0].tolist() == pytest.approx([0, 10 / 3, 4 / 3])
    assert by_logits.values(merged).item() == 1
    assert by_probability.values(by_probability.combine((view, ()) for view in views)[0]).item() == 3
    stated = by_logits.probabilities(merged)
    assert stated.sum(0).item() == pytest.approx(1)
    assert stated[:, 0, 0, 0].tolist() == pytest.approx(torch.softmax(torch.tensor([0, 10 / 3, 4 / 3]), 0).tolist())


def test_logits_of_regions_are_painted_above_zero():
    task = SegmentationTask(REGIONS, conventions=Conventions(averaged="logits"))
    scores = np.array([[0.3, 0.3, -0.1], [-0.2, 0.1, 0.4]], np.float32)[:, :, None]
    assert task.values(scores)[:, 0].tolist() == [1, 2, 2]
