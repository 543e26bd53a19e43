"""The part of `check_task` for tasks that answer once a case: each class must come back from logits that say it, and no other.

The cases show a class each. Where there is one class alone, which only a multi-label task has, a further case shows none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from medseg.data.dataset import collate
from medseg.data.store import StoredCase
from medseg.tasks.base import Task
from medseg.testing.task_check import TaskCheck
from medseg.volume import Array


class ClassCheck(TaskCheck):
    """One task of classes in one dimension, on a case of each class."""

    def __init__(self, task: Task, dimensions: int, ideal: Callable[[Tensor], Tensor]) -> None:
        super().__init__(task, dimensions)
        self.names = tuple(task.labels.names.values())
        count = len(self.names)
        self.truth = torch.eye(count) if count > 1 else torch.tensor([[1.0], [0.0]])
        self.ideal = ideal

    def run(self) -> None:
        self.check_names()
        count = self.task.out_channels
        self.expect(count == len(self.names), f"task.out_channels is {len(self.names)}, one a class", count)
        perfect = self.ideal(self.truth)
        shape = tuple(self.truth.shape)
        self.expect(tuple(perfect.shape) == shape, f"the ideal output has shape {shape}", tuple(perfect.shape))
        targets = [self.target(self._case(number), None) for number in range(len(self.truth))]
        self.batch = {
            "image": torch.randn(len(shape), 1, *self.shape),
            "case": ["a"] * len(targets),
            **collate(targets),
        }
        self._check_loss(perfect)
        self._check_score(perfect)
        answers = np.asarray(self.task.combine([(perfect, ())]))
        same = answers.shape == shape and bool(np.isfinite(answers).all())
        self.expect(same, "combine gives a finite row of classes a window", answers.shape)
        mirrored = np.asarray(self.task.combine([(perfect, ()), (perfect, (2,))]))
        self.expect(np.allclose(mirrored, answers, atol=1e-5), "classes do not change when mirrored", "another answer")
        self._check_merging(answers)
        for number, answer in enumerate(answers):
            self._check_decoding(number, answer)
        wrong = np.asarray(self.task.combine([(self.ideal(1 - self.truth), ())]))
        self.check_score_of_metrics(self._score_of(answers), self._score_of(wrong))
        self._check_crops()

    def _check_loss(self, perfect: Tensor) -> None:
        output = torch.randn(perfect.shape, requires_grad=True)
        torch.stack(list(self.loss(output).values())).sum().backward()
        reached = output.grad is not None and bool(output.grad.isfinite().all() and output.grad.abs().sum() > 0)
        self.expect(reached, "a finite gradient reaches the output", "none, or zero")
        self.check_total(perfect)

    def _check_score(self, perfect: Tensor) -> None:
        """Evidence for a class is largest in the case that shows it, and a region may be named."""
        for number, name in enumerate(self.names):
            for region in (None, torch.ones(len(perfect), 1, *self.shape)):
                found = self.score(perfect, name, region)
                best = int(found.argmax())
                self.expect(best == number, f"the case of class {name!r} has the highest score for it", found.tolist())

    def _check_merging(self, answers: Array) -> None:
        """What all windows say stays, and their order does not matter."""
        patch = tuple(n // 2 for n in self.shape)

        def merged(rows: Iterable[Array]) -> Array:
            merger = self.task.merger(self.shape, patch)
            for number, row in enumerate(rows):
                merger.add(row, (number * patch[0], *(0,) * (self.dimensions - 1)))
            return np.asarray(merger.result())

        alike = np.allclose(merged([answers[0], answers[0]]), self.merged(answers[0]), atol=1e-3)
        self.expect(alike, "windows that all say the same merge into just this", "another")
        turned = np.allclose(merged(answers[:2]), merged(answers[1::-1]), atol=1e-3)
        self.expect(turned, "the order of windows does not matter", "another result")

    def _check_decoding(self, number: int, answer: Array) -> None:
        found = self.decode(self.merged(answer)).classes
        self.expect(tuple(found) == self.names, f"a prediction has classes {self.names}", tuple(found))
        self.expect(all(0 <= p <= 1 for p in found.values()), "classes have probabilities from 0 to 1", dict(found))
        likely = [p > 0.5 for p in found.values()]
        self.expect(
            likely == [v > 0 for v in self.truth[number]], "a perfect output decodes to what it says", dict(found)
        )

    def _score_of(self, answers: Array) -> float | None:
        metrics = self.task.metrics()
        for number, answer in enumerate(answers):
            metrics.update(self.merged(answer), self._case(number))
        return metrics.compute().get("score")

    def _check_crops(self) -> None:
        """A crop is drawn from every case, and each case is wanted some time."""
        for number in range(len(self.truth)):
            case = self._case(number)
            for size in (4, 64):
                for seed in range(16):
                    self.crop(case, size, seed)
            rng = np.random.default_rng(number)
            self.expect(
                any(self.task.wants(case, rng) for _ in range(1000)), "each class is wanted now and then", "never"
            )

    def _case(self, number: int) -> StoredCase:
        """A case with the face of a stored one."""
        classes = tuple(int(at) for at in torch.nonzero(self.truth[number])[:, 0])
        known: Any = SimpleNamespace(
            id="a", shape=self.shape, channels=1, locations={}, has_label=False, lesions=None, classes=classes
        )
        return cast(StoredCase, known)
