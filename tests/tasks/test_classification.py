"""Classification: what is asked of a crop, how logits of windows become those of a case, and what is said of it."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medseg.data.preprocess import Restoration
from medseg.errors import MedsegError
from medseg.losses import dice_ce
from medseg.losses_classes import cross_entropy
from medseg.planning.classes import ClassPlan
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.tasks.classification import ClassificationTask
from medseg.volume import Geometry, Reorientation
from tests.tiny import tiny_plan

NAMES = LabelTable({1: "benign", 2: "malignant", 3: "normal"})


def task_of(
    *, multilabel: bool = False, shares: tuple[float, ...] = (0.5, 0.3, 0.2), **options: Any
) -> ClassificationTask:
    plan = tiny_plan(2, task="classification", labels=NAMES, classes=ClassPlan(shares, multilabel))
    task = build_task({"name": "classification", "multilabel": multilabel, **options}, plan)
    assert isinstance(task, ClassificationTask)
    return task


def case(*classes: int, shape: tuple[int, ...] = (8, 8)) -> Any:
    return SimpleNamespace(id="c", classes=classes, shape=shape)


def test_the_network_has_an_output_a_class_and_no_background() -> None:
    assert task_of().out_channels == 3


def test_the_target_is_the_position_of_the_class_or_a_row_of_several() -> None:
    one = task_of().target(case(2), None, (8, 8), lambda boxes: boxes)["class"]
    assert one.dtype == torch.int64
    assert int(one) == 2
    several = task_of(multilabel=True).target(case(0, 2), None, (8, 8), lambda boxes: boxes)["class"]
    assert several.tolist() == [1.0, 0.0, 1.0]


def test_a_case_without_class_is_refused() -> None:
    with pytest.raises(MedsegError, match="'c': has no class"):
        task_of().target(SimpleNamespace(id="c", classes=None, shape=(8, 8)), None, (8, 8), lambda boxes: boxes)


def test_the_loss_is_that_of_the_true_class_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(2.0), 0.0]])
    (value,) = task_of().loss(logits, {"class": torch.tensor([1])}).values()
    assert float(value) == pytest.approx(np.log(2.0))  # 2 of 1 + 2 + 1


def test_perfect_logits_lose_less_than_wrong_ones_in_both_modes() -> None:
    for several, truth in ((False, torch.tensor([0])), (True, torch.tensor([[1.0, 0.0, 0.0]]))):
        task = task_of(multilabel=several)
        right, wrong = torch.tensor([[9.0, -9.0, -9.0]]), torch.tensor([[-9.0, 9.0, -9.0]])
        batch = {"class": truth}
        assert sum(task.loss(right, batch).values()) < 0.01 < 5 < sum(task.loss(wrong, batch).values())


def test_a_map_instead_of_logits_names_the_networks_for_it() -> None:
    with pytest.raises(MedsegError, match=r"logits \(B, 3\).*densenet"):
        task_of().loss(torch.zeros(1, 3, 8, 8), {"class": torch.tensor([0])})


@pytest.mark.parametrize(("pool", "expected"), [("mean", [1.0, 0.0, 1.0]), ("max", [2.0, 1.0, 2.0])])
def test_logits_of_windows_are_pooled(pool: str, expected: list[float]) -> None:
    merger = task_of(pool=pool).merger((16, 8), (8, 8))
    merger.add(np.array([2.0, -1.0, 0.0]), (0, 0))
    merger.add(np.array([0.0, 1.0, 2.0]), (8, 0))
    assert merger.result().tolist() == expected


def test_mirrorings_and_members_are_averaged_as_logits() -> None:
    views = [(torch.tensor([[2.0, 0.0, 0.0]]), ()), (torch.tensor([[0.0, 0.0, 4.0]]), (2,))]
    np.testing.assert_allclose(task_of().combine(views), [[1.0, 0.0, 2.0]])


def test_probabilities_of_classes_that_exclude_each_other_sum_to_one() -> None:
    restoration = _identity((8, 8))
    found = task_of().decode("a", np.array([0.0, 0.0, np.log(2.0)], np.float32), restoration, {})
    assert found.classes == pytest.approx({"benign": 0.25, "malignant": 0.25, "normal": 0.5})
    several = task_of(multilabel=True).decode("a", np.zeros(3, np.float32), restoration, {})
    assert several.classes == pytest.approx({"benign": 0.5, "malignant": 0.5, "normal": 0.5})
    assert several.mask is None and several.boxes is None


def test_balanced_sampling_shows_each_class_equally_often() -> None:
    task = task_of(sampling="balanced", shares=(0.7, 0.2, 0.1))
    rng = np.random.default_rng(0)
    taken = np.zeros(3)
    for drawn in rng.choice(3, p=[0.7, 0.2, 0.1], size=6000):
        taken[drawn] += task.wants(case(int(drawn)), rng)
    assert np.abs(taken / taken.sum() - 1 / 3).max() < 0.04
    assert all(task_of().wants(case(0), rng) for _ in range(20))


def test_a_whole_case_is_centred_but_for_a_small_shift_and_a_large_one_is_seen_anywhere() -> None:
    task, rng = task_of(), np.random.default_rng(0)
    whole = np.array([task.crop(case(0, shape=(64, 60)), (64, 64), False, rng) for _ in range(200)])
    assert np.abs(whole[:, 0]).max() <= 4
    assert np.abs(whole[:, 1] + 2).max() <= 4
    assert len(set(whole[:, 0])) > 4
    large = np.array([task.crop(case(0, shape=(100, 64)), (64, 64), False, rng) for _ in range(500)])
    assert large[:, 0].min() == 0 and large[:, 0].max() == 36


def test_the_score_of_a_class_is_its_logit_whatever_the_region() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    evidence = task_of().score(logits, "malignant", torch.ones(1, 1, 8, 8))
    assert evidence.tolist() == [2.0]
    (gradient,) = torch.autograd.grad(evidence.sum(), logits)
    assert gradient.tolist() == [[0.0, 1.0, 0.0]]
    with pytest.raises(MedsegError, match="no target 'cyst'; it has benign, malignant, normal"):
        task_of().score(logits, "cyst")


def test_validation_scores_the_mean_auroc() -> None:
    task = task_of()
    metrics = task.metrics()
    for truth, logits in ((0, [3, 0, 0]), (1, [0, 3, 0]), (2, [0, 0, 3]), (0, [0, 1, 0])):
        metrics.update(np.array(logits, np.float32), case(truth))
    figures = metrics.compute()
    assert figures["accuracy"] == 0.75
    assert figures["auroc/normal"] == 1.0
    # benign: 0.90 and 0.21 against 0.05, 0.05; malignant: 0.90 against 0.05, 0.05, 0.58
    assert figures["score"] == 1.0
    metrics.update(np.array([4, 0, 0], np.float32), case(1))  # the surest benign is malignant
    assert metrics.compute()["auroc/benign"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, r"task\.pool='median': expected one of mean, max"),
        ({"sampling": "odd"}, r"task\.sampling='odd'"),
        (
            {"smooth": 1},
            "has no option smooth; it has multilabel, region, field, mask_channel, positive, pool, sampling",
        ),
    ],
)
def test_options_that_do_not_exist_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        task_of(**options)


def test_a_plan_for_one_class_a_case_does_not_serve_several() -> None:
    plan = tiny_plan(2, task="classification", labels=NAMES, classes=ClassPlan((0.5, 0.3, 0.2)))
    with pytest.raises(MedsegError, match=r"task\.multilabel=true: the plan was made for another"):
        build_task({"name": "classification", "multilabel": True}, plan)


def test_losses_of_other_tasks_are_refused_both_ways() -> None:
    plan = tiny_plan(2, task="classification", labels=NAMES, classes=ClassPlan((0.5, 0.3, 0.2)))
    with pytest.raises(MedsegError, match=r"dice_ce\(\) compares masks, task=classification compares classes"):
        build_task({"name": "classification"}, plan, functools.partial(dice_ce))
    with pytest.raises(MedsegError, match=r"cross_entropy\(\) compares classes, task=segmentation compares masks"):
        build_task({"name": "segmentation"}, tiny_plan(), functools.partial(cross_entropy))
    weighted = build_task({"name": "classification"}, plan, functools.partial(cross_entropy, class_weights="balanced"))
    even = weighted.loss(torch.zeros(1, 3), {"class": torch.tensor([2])})
    assert float(sum(even.values())) == pytest.approx(np.log(3) / (3 * 0.2))


def _identity(shape: tuple[int, ...]) -> Restoration:
    axes = tuple(range(len(shape)))
    grid = Geometry.from_spacing(shape, (1.0,) * len(shape), "px")
    return Restoration(grid, Reorientation(axes, (False,) * len(shape)), (0,) * len(shape), shape, shape)
