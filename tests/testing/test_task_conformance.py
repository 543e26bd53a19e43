"""`check_task` passes segmentation of every kind and names what breaks the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg import losses
from medseg.errors import MedsegError
from medseg.structures import LabelTable, Prediction
from medseg.tasks.segmentation import SegmentationTask
from medseg.testing import check_task
from medseg.volume import Array

LABELS = LabelTable({1: "organ", 3: "lesion"}, ignore=7)
REGIONS = LabelTable({1: "edema", 2: "core", 4: "active"}, regions={"whole": (1, 2, 4), "core": (2, 4)}, paint=(1, 2))


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("loss", [losses.dice_ce, losses.dice_focal, losses.tversky, losses.generalized_dice])
def test_segmentation_keeps_the_contract_with_every_loss(labels: LabelTable, loss: Any) -> None:
    check_task(SegmentationTask(labels, loss(labels.exclusive)))


class ForgetsIgnored(SegmentationTask):
    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return super().loss(output, batch | {"label": batch["label"].clamp(max=3)})


class VectorLoss(SegmentationTask):
    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"dice": torch.ones(2)}


class LossOfTheWrong(SegmentationTask):
    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {name: 10 - value for name, value in super().loss(output, batch).items()}


class FinestOnly(SegmentationTask):
    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return super().loss(output[0] if isinstance(output, list) else output, batch)


class LastWindowWins(SegmentationTask):
    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> Any:
        return _LastWindow(shape, patch_size, self.out_channels)


class _LastWindow:
    def __init__(self, shape: Sequence[int], patch: Sequence[int], channels: int) -> None:
        self.sum, self.patch = np.zeros((channels, *shape), np.float32), patch

    def add(self, output: Array, lower: Sequence[int]) -> None:
        self.sum[(slice(None), *(slice(low, low + p) for low, p in zip(lower, self.patch, strict=True)))] += output

    def result(self) -> Array:
        return self.sum


class OffTheGrid(SegmentationTask):
    def decode(self, *args: Any) -> Prediction:
        found = super().decode(*args)
        shape = tuple(n + 1 for n in found.geometry.shape)
        return replace(found, geometry=replace(found.geometry, shape=shape), mask=np.zeros(shape, np.uint8))


class Confused(SegmentationTask):
    def decode(self, *args: Any) -> Prediction:
        found = super().decode(*args)
        return replace(found, mask=np.where(found.mask == 1, 3, found.mask))


class Indifferent(SegmentationTask):
    def metrics(self) -> Any:
        return _Constant()


class _Constant:
    def update(self, merged: Any, label: Array) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {"score": 0.5}


class Wandering(SegmentationTask):
    def crop(self, case: Any, patch_size: Sequence[int], foreground: bool, rng: Any) -> tuple[int, ...]:
        return super().crop(case, patch_size, foreground, np.random.default_rng())


class BlindCrops(SegmentationTask):
    def crop(self, case: Any, patch_size: Sequence[int], foreground: bool, rng: Any) -> tuple[int, ...]:
        return tuple(-p for p in patch_size)


class SilentScore(SegmentationTask):
    def score(self, output: Tensor, target: str, region: Tensor | None = None) -> Tensor:
        return (output * 0).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ForgetsIgnored, "ignored voxels do not change the loss"),
        (VectorLoss, "every term of the loss is a finite scalar"),
        (LossOfTheWrong, "a perfect output loses less"),
        (FinestOnly, "a finite gradient reaches the levels"),
        (LastWindowWins, "windows merge into the same result"),
        (OffTheGrid, "lies on the scan's grid"),
        (Confused, "decodes to the mask"),
        (Indifferent, "the score of a perfect output is larger"),
        (Wandering, "a crop follows from the generator"),
        (BlindCrops, "a crop touches the case"),
        (SilentScore, "has a gradient"),
    ],
)
def test_each_breach_is_named(task: type[SegmentationTask], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        check_task(task(LABELS), dimensions=(3,))


def test_a_task_that_is_not_dense_says_what_a_perfect_output_is() -> None:
    with pytest.raises(MedsegError, match="the ideal output has shape"):
        check_task(SegmentationTask(LABELS), ideal=lambda label: label.float())
