"""`check_task` passes classification of every kind and names what breaks the contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.losses_classes import cross_entropy, focal
from medseg.planning.classes import ClassPlan
from medseg.structures import LabelTable, Prediction
from medseg.tasks.base import View
from medseg.tasks.classification import ClassificationTask
from medseg.testing import check_task
from medseg.volume import Array
from tests.tiny import tiny_plan

NAMES = LabelTable({1: "benign", 2: "malignant", 3: "normal"})


def task_of(
    kind: type[ClassificationTask] = ClassificationTask, labels: LabelTable = NAMES, **options: Any
) -> ClassificationTask:
    shares = tuple(0.5 / n for n in range(1, len(labels.names) + 1))
    plan = tiny_plan(task="classification", labels=labels, classes=ClassPlan(shares, options.get("multilabel", False)))
    return kind(plan, **options)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("loss", [cross_entropy, focal])
@pytest.mark.parametrize("options", [{}, {"pool": "max", "sampling": "balanced"}], ids=["mean", "max"])
def test_classification_keeps_the_contract_with_every_loss(
    multilabel: bool, loss: Any, options: dict[str, Any]
) -> None:
    check_task(task_of(loss=loss(multilabel=multilabel), multilabel=multilabel, **options))


def test_a_single_class_that_a_case_may_lack_keeps_the_contract() -> None:
    check_task(task_of(labels=LabelTable({1: "edema"}), multilabel=True))


class WithBackground(ClassificationTask):
    @property
    def out_channels(self) -> int:
        return len(self.classes) + 1


class Blind(ClassificationTask):
    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"cross_entropy": (output * 0).sum()}


class LossOfTheWrong(ClassificationTask):
    def loss(self, output: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {name: 10 - value for name, value in super().loss(output, batch).items()}


class EvidenceOfAll(ClassificationTask):
    def score(self, output: Any, target: str, region: Tensor | None = None) -> Tensor:
        return torch.as_tensor(output).sum(1)


class Mirrored(ClassificationTask):
    def combine(self, views: Iterable[View]) -> Array:
        return super().combine([(output.flip(1) if axes else output, axes) for output, axes in views])


class LastWindowWins(ClassificationTask):
    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> Any:
        return _Last()


class Summed(ClassificationTask):
    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> Any:
        return _Sum()


class _Last:
    row: Array

    def add(self, answer: Array, lower: Sequence[int]) -> None:
        self.row = answer

    def result(self) -> Array:
        return self.row


class _Sum(_Last):
    row = np.zeros(3)

    def add(self, answer: Array, lower: Sequence[int]) -> None:
        self.row = self.row + answer


class Confused(ClassificationTask):
    def decode(self, *args: Any) -> Prediction:
        found = super().decode(*args)
        return replace(found, classes=dict(zip(found.classes, [*list(found.classes.values())[1:], 0.0], strict=True)))


class Logits(ClassificationTask):
    def probabilities(self, logits: Array) -> Array:
        return logits


class Indifferent(ClassificationTask):
    def metrics(self) -> Any:
        return _Constant()


class _Constant:
    def update(self, merged: Any, case: Any) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {"score": 0.5}


class Wandering(ClassificationTask):
    def crop(self, case: Any, patch_size: Sequence[int], foreground: bool, rng: Any) -> tuple[int, ...]:
        return super().crop(case, patch_size, foreground, np.random.default_rng())


class Picky(ClassificationTask):
    def wants(self, case: Any, rng: np.random.Generator) -> bool:
        return 2 not in case.classes


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (WithBackground, "out_channels is 3, one a class; found 4"),
        (Blind, "a finite gradient reaches the output"),
        (LossOfTheWrong, "a perfect output loses less"),
        (EvidenceOfAll, "the case of class 'malignant' has the highest score"),
        (Mirrored, "classes do not change when mirrored"),
        (LastWindowWins, "the order of windows does not matter"),
        (Summed, "windows that all say the same merge"),
        (Confused, "decodes to what it says"),
        (Logits, "probabilities from 0 to 1"),
        (Indifferent, "the score of a perfect output is larger"),
        (Wandering, "a crop follows from the generator"),
        (Picky, "each class is wanted now and then"),
    ],
)
def test_each_breach_is_named(kind: type[ClassificationTask], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        check_task(task_of(kind), dimensions=(3,))
