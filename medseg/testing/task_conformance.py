"""`check_task`: whether a task of dense output or of classes keeps the contract of `medseg.tasks.base`, told in words.

It draws small masks of blocks, or a case of each class, lets the task score, merge and decode outputs that are right, wrong and
random, and compares. It runs no network and reads no file. What output is right for a mask, the caller may say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from medseg.data.store import StoredCase
from medseg.planning.classification import CLASSIFICATION
from medseg.structures import LabelTable, Prediction
from medseg.tasks.base import Task
from medseg.testing.class_conformance import ClassCheck
from medseg.testing.task_check import TaskCheck
from medseg.tiling.windows import cut_window, window_starts
from medseg.volume import Array, Geometry, reorientation_to

Ideal = Callable[[Tensor], Tensor]
"""Masks ``(B, 1, *S)`` int16 → the network output ``(B, C, *S)`` that says it; or classes ``(B, K)`` of 0 and 1 → logits."""


def check_task(task: Task, *, dimensions: Sequence[int] = (2, 3), ideal: Ideal | None = None, seed: int = 0) -> None:
    """Prove that a task can be trained, validated and used for prediction.

    Args:
        task: the task, with its labels and loss. One that is called ``classification`` answers once a case, any other densely.
        dimensions: those that the task has.
        ideal: the output that a perfect network gives; by default logits of ±10 for each of ``task.labels.outputs``, or classes.
        seed: of the masks that are drawn.

    Raises:
        MedsegError: what the contract expects, what was found, and in which dimension.
    """
    with torch.random.fork_rng(devices=[]):
        for dimension in dimensions:
            torch.manual_seed(seed)
            if task.name == CLASSIFICATION:
                ClassCheck(task, dimension, ideal or (lambda shown: 20 * shown - 10)).run()
            else:
                _DenseCheck(task, dimension, ideal or (lambda label: _dense_ideal(task.labels, label)), seed).run()


class _DenseCheck(TaskCheck):
    """One dense task in one dimension, on masks in which every label occurs."""

    def __init__(self, task: Task, dimensions: int, ideal: Ideal, seed: int) -> None:
        super().__init__(task, dimensions)
        self.ideal = ideal
        self.label = torch.stack([_mask(task.labels, self.shape, seed + i) for i in range(2)])[:, None]
        self.batch = {"image": torch.randn(2, 1, *self.shape), "label": self.label, "case": ["a", "b"]}

    def run(self) -> None:
        self.check_names()
        perfect = self.ideal(self.label)
        shape = (2, self.task.out_channels, *self.shape)
        self.expect(tuple(perfect.shape) == shape, f"the ideal output has shape {shape}", tuple(perfect.shape))
        self._check_loss(perfect)
        self._check_score(perfect)
        answers = np.asarray(self.task.combine([(perfect, ())]))
        same = answers.shape[0] == 2 and tuple(answers.shape[2:]) == self.shape and bool(np.isfinite(answers).all())
        self.expect(same, "combine gives a finite answer a window, of its size", answers.shape)
        mirrored = np.asarray(self.task.combine([(perfect, ()), (perfect.flip(2), (2,))]))
        self.expect(np.allclose(mirrored, answers, atol=1e-5), "combine mirrors back what it merges", "another answer")
        self.target(self._case(0), self.label[0].numpy())
        self._check_merging(answers[0])
        self._check_decoding(answers[0])
        self.check_score_of_metrics(self._score_of(answers), self._score_of(answers[::-1]))
        self._check_crops()

    def _check_loss(self, perfect: Tensor) -> None:
        """Finite, with gradient, smaller for what is right, the same whatever stands in ignored voxels."""
        output = torch.randn(perfect.shape, requires_grad=True)
        coarse = torch.randn(*perfect.shape[:2], *(n // 2 for n in self.shape), requires_grad=True)
        torch.stack(list(self.loss([output, coarse]).values())).sum().backward()
        levels = [level.grad is not None and bool(level.grad.isfinite().all()) for level in (output, coarse)]
        reached = all(levels) and output.grad is not None and bool(output.grad.abs().sum() > 0)
        self.expect(reached, "a finite gradient reaches the levels of the output", f"{levels}, or zero")
        self.check_total(perfect)
        ignored = self.label == (self.task.labels.ignore if self.task.labels.ignore is not None else -1)
        random = torch.randn(perfect.shape)
        found = self.total(random), self.total(torch.where(ignored, 5 * torch.randn(perfect.shape), random))
        same = abs(found[0] - found[1]) <= 1e-5 * max(1.0, abs(found[0]))
        self.expect(same, "ignored voxels do not change the loss", f"{found[0]} and {found[1]}")

    def _check_score(self, perfect: Tensor) -> None:
        region = torch.zeros(2, 1, *self.shape)
        region[:, :, :4] = 1
        for target in self.task.labels.targets:
            for part in (None, region):
                self.score(perfect, target, part)

    def _check_merging(self, activated: Array) -> None:
        """Windows cut from a whole merge back into it, in whatever order they come."""
        expected = self.merged(activated)
        patch = tuple(n // 2 for n in self.shape)
        for order in (1, -1):
            merger = self.task.merger(self.shape, patch)
            for lower in window_starts(self.shape, patch)[::order]:
                merger.add(cut_window(activated, lower, patch), lower)
            found = merger.result()
            if isinstance(expected, np.ndarray):
                same = found.shape == expected.shape and np.allclose(found, expected, atol=1e-3)
            else:
                same = _equal(self.decode(found), self.decode(expected))
            self.expect(same, "windows merge into the same result as the whole", "another")

    def _check_decoding(self, activated: Array) -> None:
        truth = self.label[0, 0].numpy()
        for codes in ("RAS", "PIL") if self.dimensions == 3 else ("",):
            found = self.decode(self.merged(activated), codes)
            something = found.mask is not None or found.boxes is not None
            self.expect(something, "a prediction holds a mask or boxes", "none")
            if found.mask is None:
                continue
            grid = Geometry.from_spacing(self.shape, (1.0,) * self.dimensions)
            stored = reorientation_to(grid, codes).apply(truth) if codes else truth
            apart = _differing(self.task.labels, found.mask, stored)
            self.expect(not apart, f"a perfect output decodes to the mask it says (stored {codes})", f"{apart} others")

    def _score_of(self, outputs: Array) -> float | None:
        metrics = self.task.metrics()
        for number, output in enumerate(outputs):
            metrics.update(self.merged(output.copy()), self._case(number))
        return metrics.compute().get("score")

    def _check_crops(self) -> None:
        """Crops follow from the generator, touch the case, and hold something to find where that is asked for."""
        case, label, targets = self._case(0), self.label[0, 0].numpy(), self.task.labels.targets
        for seed in range(16):
            lower = self.crop(case, 4, seed)
            upper = [low + 4 for low in lower]
            inside = np.isin(_window(label, lower, upper), [v for values in targets.values() for v in values])
            self.expect(bool(inside.any()), "a foreground crop holds a labelled voxel", f"none from {lower}")
            anywhere = self.task.crop(case, (64,) * self.dimensions, False, np.random.default_rng(seed))
            self.expect(len(anywhere) == self.dimensions, "a crop larger than the case has one start an axis", anywhere)

    def _case(self, number: int) -> StoredCase:
        """One of the masks with the face of a stored case."""
        label, targets = self.label[number, 0].numpy(), self.task.labels.targets
        places = {name: np.argwhere(np.isin(label, values)).astype(np.int32) for name, values in targets.items()}
        known = SimpleNamespace(
            id="a", shape=self.shape, channels=1, locations=places, has_label=True, lesions=None,
            label=lambda lower, upper: _window(label, lower, upper),
        )  # fmt: skip
        return cast(StoredCase, known)


def _mask(labels: LabelTable, shape: tuple[int, ...], seed: int) -> Tensor:
    """``shape`` int16: 2-voxel blocks of background and every label; ignored voxels where the table has them."""
    values = np.array([0, 0, *labels.names, *([] if labels.ignore is None else [labels.ignore])], np.int16)
    coarse = tuple(n // 2 for n in shape)
    mask = np.random.default_rng(seed).permutation(np.resize(values, int(np.prod(coarse)))).reshape(coarse)
    for axis in range(len(shape)):
        mask = mask.repeat(2, axis)
    return torch.from_numpy(mask)


def _dense_ideal(labels: LabelTable, label: Tensor) -> Tensor:
    groups = list(labels.regions.values()) if labels.regions else [(0,), *((value,) for value in labels.names)]
    return torch.cat([torch.isin(label, label.new_tensor(values)) for values in groups], 1).float() * 20 - 10


def _differing(labels: LabelTable, found: Array, truth: Array) -> int:
    """Voxels that differ in some target, ignored ones left out."""
    valid = truth != labels.ignore if labels.ignore is not None else np.ones(truth.shape, bool)
    if found.shape != truth.shape:
        return int(truth.size)
    wrong = [np.isin(found, values) != np.isin(truth, values) for values in labels.targets.values()]
    return int((np.any(wrong, axis=0) & valid).sum())


def _equal(a: Prediction, b: Prediction) -> bool:
    """The same mask, boxes and classes, to rounding."""
    pairs = [(a.mask, b.mask)]
    if a.boxes is not None and b.boxes is not None:
        pairs += [(a.boxes.boxes, b.boxes.boxes), (a.boxes.labels, b.boxes.labels)]
    elif a.boxes is not b.boxes:
        return False
    arrays = all(
        x is y or (x is not None and y is not None and x.shape == y.shape and np.allclose(x, y, atol=1e-3))
        for x, y in pairs
    )
    return (
        arrays
        and a.classes.keys() == b.classes.keys()
        and all(abs(a.classes[k] - b.classes[k]) < 1e-3 for k in a.classes)
    )


def _window(label: Array, lower: Sequence[int], upper: Sequence[int]) -> Array:
    size = [high - low for low, high in zip(lower, upper, strict=True)]
    return cut_window(label[None], lower, size)
