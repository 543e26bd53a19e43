"""What `check_task` asks of every task, whatever it answers: names, finite losses, gradients, predictions on the scan's grid.

Owns how a breach is told. Which outputs are right, and what must follow from them, is said where each kind of task is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocess import Restoration
from medseg.data.store import StoredCase
from medseg.errors import MedsegError
from medseg.structures import LabelTable, Prediction
from medseg.tasks.base import Batch, Task
from medseg.volume import Geometry, Reorientation, reorientation_to


class TaskCheck:
    """One task in one dimension. ``batch`` is what its loss is given."""

    batch: Batch

    def __init__(self, task: Task, dimensions: int) -> None:
        self.task, self.dimensions = task, dimensions
        self.shape = (16, 12, 8)[:dimensions]

    def expect(self, kept: bool, expected: str, found: object) -> None:
        """Raises MedsegError with what was expected and what was found, unless it is kept."""
        if not kept:
            raise MedsegError(f"task {self.task.name} in {self.dimensions}D: expected that {expected}; found {found}")

    def check_names(self) -> None:
        name, labels, channels = self.task.name, self.task.labels, self.task.out_channels
        self.expect(isinstance(name, str) and bool(name), "task.name is a word", repr(name))
        self.expect(isinstance(labels, LabelTable), "task.labels is a LabelTable", type(labels).__name__)
        self.expect(isinstance(channels, int) and channels > 0, "task.out_channels counts channels", repr(channels))

    def loss(self, output: Any) -> dict[str, Tensor]:
        """The terms of the loss: scalars, finite, by name."""
        terms = self.task.loss(output, dict(self.batch))
        named = isinstance(terms, dict) and bool(terms) and all(isinstance(name, str) for name in terms)
        self.expect(named, "loss returns scalars by name", repr(terms))
        scalars = all(isinstance(v, Tensor) and v.ndim == 0 and bool(v.isfinite()) for v in terms.values())
        self.expect(scalars, "every term of the loss is a finite scalar tensor", repr(terms))
        return terms

    def total(self, output: Any) -> float:
        with torch.no_grad():
            return float(torch.stack(list(self.loss(output).values())).sum())

    def check_total(self, perfect: Tensor) -> None:
        """What is right loses less than what is drawn."""
        found = self.total(perfect), self.total(torch.randn(perfect.shape))
        self.expect(found[0] < found[1], "a perfect output loses less than a random one", f"{found[0]} and {found[1]}")

    def score(self, perfect: Tensor, target: str, region: Tensor | None = None) -> Tensor:
        """The evidence for a target, ``(B,)``, which the output decides."""
        output = perfect.clone().requires_grad_()
        evidence = self.task.score(output, target, region)
        shape = (len(perfect),)
        self.expect(tuple(evidence.shape) == shape, "score has shape (B,)", tuple(evidence.shape))
        (gradient,) = torch.autograd.grad(evidence.sum(), output)
        self.expect(bool(gradient.abs().sum() > 0), f"score of {target!r} has a gradient", "none")
        return evidence.detach()

    def target(self, case: StoredCase, label: Any) -> Mapping[str, Any]:
        """What a crop is compared with: named values, tensors or anything that may be listed."""
        target = self.task.target(case, label, self.shape, lambda boxes: boxes)
        named = isinstance(target, dict) and bool(target) and all(isinstance(name, str) for name in target)
        self.expect(named and not set(target) & {"image", "case"}, "target returns values by name", repr(target))
        return target

    def merged(self, answer: Any) -> Any:
        """What becomes of a case that is one window."""
        merger = self.task.merger(self.shape, self.shape)
        merger.add(answer, (0,) * self.dimensions)
        return merger.result()

    def decode(self, merged: Any, codes: str = "RAS") -> Prediction:
        """Decode onto a scan stored along ``codes``, whose voxels are those of the plan's grid."""
        plan_grid = Geometry.from_spacing(self.shape, (1.0,) * self.dimensions)
        turn = reorientation_to(plan_grid, codes) if self.dimensions == 3 else None
        scan = plan_grid if turn is None else turn.apply_to_geometry(plan_grid)
        back = reorientation_to(scan, "RAS") if self.dimensions == 3 else Reorientation((0, 1), (False, False))
        restoration = Restoration(scan, back, (0,) * self.dimensions, self.shape, self.shape)
        found = self.task.decode("a", merged, restoration, {})
        self.expect(isinstance(found, Prediction), "decode returns a Prediction", type(found).__name__)
        self.expect(found.case == "a", "the prediction names its case 'a'", found.case)
        on_grid = found.geometry.matches(scan)
        self.expect(on_grid, f"the prediction lies on the scan's grid {scan.describe()}", found.geometry.describe())
        return found

    def crop(self, case: StoredCase, size: int, seed: int) -> tuple[int, ...]:
        """The start of a foreground crop of ``size`` voxels an axis, which follows from the generator and touches the case."""
        patch = (size,) * self.dimensions
        lower, again = (self.task.crop(case, patch, True, np.random.default_rng(seed)) for _ in range(2))
        self.expect(len(lower) == self.dimensions, "a crop has one start an axis", lower)
        self.expect(lower == again, "a crop follows from the generator", f"{lower} and {again}")
        touches = all(low < n and low + size > 0 for low, n in zip(lower, self.shape, strict=True))
        self.expect(touches, "a crop touches the case", f"{lower} of {self.shape}")
        return lower

    def check_score_of_metrics(self, right: float | None, wrong: float | None) -> None:
        """The ``score`` of a right and of a wrong output."""
        for score in (right, wrong):
            self.expect(score is not None and bool(np.isfinite(score)), "metrics have a finite 'score'", score)
        better = right is not None and wrong is not None and right > wrong
        self.expect(better, "the score of a perfect output is larger than of a wrong one", [right, wrong])
