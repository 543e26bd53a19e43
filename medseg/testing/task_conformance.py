"""`check_task`: whether a task with dense output keeps the contract of `medseg.tasks.base`, told to its author in words.

It draws small masks of blocks, lets the task score, merge and decode outputs that are right, wrong and random, and compares.
It runs no network and reads no file. What output is right for a mask, the caller says where the task is not a dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocess import Restoration
from medseg.data.store import StoredCase
from medseg.errors import MedsegError
from medseg.structures import LabelTable, Prediction
from medseg.tasks.base import Batch, Task
from medseg.tiling.windows import cut_window, window_starts
from medseg.volume import Array, Geometry, Reorientation, reorientation_to

Ideal = Callable[[Tensor], Tensor]
"""Masks ``(B, 1, *S)`` int16 → the network output ``(B, C, *S)`` that says exactly this."""


def check_task(task: Task, *, dimensions: Sequence[int] = (2, 3), ideal: Ideal | None = None, seed: int = 0) -> None:
    """Prove that a task can be trained, validated and used for prediction.

    Args:
        task: the task, with its labels and loss.
        dimensions: those that the task has.
        ideal: the output that a perfect network gives; by default logits of ±10 for each of ``task.labels.outputs``.
        seed: of the masks that are drawn.

    Raises:
        MedsegError: what the contract expects, what was found, and in which dimension.
    """
    with torch.random.fork_rng(devices=[]):
        for dimension in dimensions:
            torch.manual_seed(seed)
            _Check(task, dimension, ideal or (lambda label: _dense_ideal(task.labels, label)), seed).run()


class _Check:
    """One task in one dimension, on masks in which every label occurs."""

    def __init__(self, task: Task, dimensions: int, ideal: Ideal, seed: int) -> None:
        self.task, self.dimensions, self.ideal = task, dimensions, ideal
        self.shape = (16, 12, 8)[:dimensions]
        self.label = torch.stack([_mask(task.labels, self.shape, seed + i) for i in range(2)])[:, None]
        self.batch: Batch = {"image": torch.randn(2, 1, *self.shape), "label": self.label, "case": ["a", "b"]}

    def run(self) -> None:
        name, labels, channels = self.task.name, self.task.labels, self.task.out_channels
        self._expect(isinstance(name, str) and bool(name), "task.name is a word", repr(name))
        self._expect(isinstance(labels, LabelTable), "task.labels is a LabelTable", type(labels).__name__)
        self._expect(isinstance(channels, int) and channels > 0, "task.out_channels counts channels", repr(channels))
        perfect = self.ideal(self.label)
        shape = (2, channels, *self.shape)
        self._expect(tuple(perfect.shape) == shape, f"the ideal output has shape {shape}", tuple(perfect.shape))
        self._check_loss(perfect)
        self._check_score(perfect)
        answers = np.asarray(self.task.combine([(perfect, ())]))
        same = answers.shape[0] == 2 and tuple(answers.shape[2:]) == self.shape and bool(np.isfinite(answers).all())
        self._expect(same, "combine gives a finite answer a window, of its size", answers.shape)
        mirrored = np.asarray(self.task.combine([(perfect, ()), (perfect.flip(2), (2,))]))
        self._expect(np.allclose(mirrored, answers, atol=1e-5), "combine mirrors back what it merges", "another answer")
        self._check_target()
        self._check_merging(answers[0])
        self._check_decoding(answers[0])
        self._check_metrics(answers)
        self._check_crops()

    def _expect(self, kept: bool, expected: str, found: object) -> None:
        if not kept:
            raise MedsegError(f"task {self.task.name} in {self.dimensions}D: expected that {expected}; found {found}")

    def _loss(self, output: Any) -> dict[str, Tensor]:
        terms = self.task.loss(output, dict(self.batch))
        named = isinstance(terms, dict) and bool(terms) and all(isinstance(name, str) for name in terms)
        self._expect(named, "loss returns scalars by name", repr(terms))
        scalars = all(isinstance(v, Tensor) and v.ndim == 0 and bool(v.isfinite()) for v in terms.values())
        self._expect(scalars, "every term of the loss is a finite scalar tensor", repr(terms))
        return terms

    def _total(self, output: Any) -> float:
        with torch.no_grad():
            return float(torch.stack(list(self._loss(output).values())).sum())

    def _check_loss(self, perfect: Tensor) -> None:
        """Finite, with gradient, smaller for what is right, the same whatever stands in ignored voxels."""
        output = torch.randn(perfect.shape, requires_grad=True)
        coarse = torch.randn(*perfect.shape[:2], *(n // 2 for n in self.shape), requires_grad=True)
        torch.stack(list(self._loss([output, coarse]).values())).sum().backward()
        levels = [level.grad is not None and bool(level.grad.isfinite().all()) for level in (output, coarse)]
        reached = all(levels) and output.grad is not None and bool(output.grad.abs().sum() > 0)
        self._expect(reached, "a finite gradient reaches the levels of the output", f"{levels}, or zero")
        found = self._total(perfect), self._total(torch.randn(perfect.shape))
        self._expect(found[0] < found[1], "a perfect output loses less than a random one", f"{found[0]} and {found[1]}")
        ignored = self.label == (self.task.labels.ignore if self.task.labels.ignore is not None else -1)
        random = torch.randn(perfect.shape)
        found = self._total(random), self._total(torch.where(ignored, 5 * torch.randn(perfect.shape), random))
        same = abs(found[0] - found[1]) <= 1e-5 * max(1.0, abs(found[0]))
        self._expect(same, "ignored voxels do not change the loss", f"{found[0]} and {found[1]}")

    def _check_target(self) -> None:
        """What a crop is compared with are named values, tensors or anything that may be listed."""
        label = self.label[0].numpy()
        target = self.task.target(self._case(0), label, self.shape, lambda boxes: boxes)
        named = isinstance(target, dict) and bool(target) and all(isinstance(name, str) for name in target)
        self._expect(named and not set(target) & {"image", "case"}, "target returns values by name", repr(target))

    def _check_score(self, perfect: Tensor) -> None:
        region = torch.zeros(2, 1, *self.shape)
        region[:, :, :4] = 1
        for target in self.task.labels.targets:
            for part in (None, region):
                output = perfect.clone().requires_grad_()
                evidence = self.task.score(output, target, part)
                self._expect(tuple(evidence.shape) == (2,), "score has shape (B,)", tuple(evidence.shape))
                (gradient,) = torch.autograd.grad(evidence.sum(), output)
                self._expect(bool(gradient.abs().sum() > 0), f"score of {target!r} has a gradient", "none")

    def _check_merging(self, activated: Array) -> None:
        """Windows cut from a whole merge back into it, in whatever order they come."""
        whole = self.task.merger(self.shape, self.shape)
        whole.add(activated, (0,) * self.dimensions)
        expected = whole.result()
        patch = tuple(n // 2 for n in self.shape)
        for order in (1, -1):
            merger = self.task.merger(self.shape, patch)
            for lower in window_starts(self.shape, patch)[::order]:
                merger.add(cut_window(activated, lower, patch), lower)
            found = merger.result()
            if isinstance(expected, np.ndarray):
                same = found.shape == expected.shape and np.allclose(found, expected, atol=1e-3)
            else:
                same = _equal(self._decode(found), self._decode(expected))
            self._expect(same, "windows merge into the same result as the whole", "another")

    def _decode(self, merged: Any, codes: str = "RAS") -> Prediction:
        """Decode onto a scan stored along ``codes``, whose voxels are those of the plan's grid."""
        plan_grid = Geometry.from_spacing(self.shape, (1.0,) * self.dimensions)
        turn = reorientation_to(plan_grid, codes) if self.dimensions == 3 else None
        scan = plan_grid if turn is None else turn.apply_to_geometry(plan_grid)
        back = reorientation_to(scan, "RAS") if self.dimensions == 3 else Reorientation((0, 1), (False, False))
        restoration = Restoration(scan, back, (0,) * self.dimensions, self.shape, self.shape)
        found = self.task.decode("a", merged, restoration, {})
        self._expect(isinstance(found, Prediction), "decode returns a Prediction", type(found).__name__)
        self._expect(found.case == "a", "the prediction names its case 'a'", found.case)
        on_grid = found.geometry.matches(scan)
        self._expect(on_grid, f"the prediction lies on the scan's grid {scan.describe()}", found.geometry.describe())
        return found

    def _merged(self, activated: Array) -> Any:
        merger = self.task.merger(self.shape, self.shape)
        merger.add(activated, (0,) * self.dimensions)
        return merger.result()

    def _check_decoding(self, activated: Array) -> None:
        truth = self.label[0, 0].numpy()
        for codes in ("RAS", "PIL") if self.dimensions == 3 else ("",):
            found = self._decode(self._merged(activated), codes)
            something = found.mask is not None or found.boxes is not None or bool(found.classes)
            self._expect(something, "a prediction holds a mask, boxes or classes", "none")
            if found.mask is None:
                continue
            grid = Geometry.from_spacing(self.shape, (1.0,) * self.dimensions)
            stored = reorientation_to(grid, codes).apply(truth) if codes else truth
            apart = _differing(self.task.labels, found.mask, stored)
            self._expect(not apart, f"a perfect output decodes to the mask it says (stored {codes})", f"{apart} others")

    def _check_metrics(self, activated: Array) -> None:
        """The score of what is right is finite and larger than that of the other case's output."""
        scores = []
        for outputs in (activated, activated[::-1].copy()):
            metrics = self.task.metrics()
            for number, output in enumerate(outputs):
                metrics.update(self._merged(output), self._case(number))
            figures = metrics.compute()
            score = figures.get("score")
            self._expect(score is not None and bool(np.isfinite(score)), "metrics have a finite 'score'", figures)
            scores.append(float(figures["score"]))
        self._expect(scores[0] > scores[1], "the score of a perfect output is larger than of a wrong one", scores)

    def _check_crops(self) -> None:
        """Crops follow from the generator, touch the case, and hold something to find where that is asked for."""
        case, label, targets = self._case(0), self.label[0, 0].numpy(), self.task.labels.targets
        patch = (4,) * self.dimensions
        for seed in range(16):
            lower, again = (self.task.crop(case, patch, True, np.random.default_rng(seed)) for _ in range(2))
            self._expect(len(lower) == self.dimensions, "a crop has one start an axis", lower)
            self._expect(lower == again, "a crop follows from the generator", f"{lower} and {again}")
            touches = all(low < n and low + p > 0 for low, p, n in zip(lower, patch, self.shape, strict=True))
            self._expect(touches, "a crop touches the case", f"{lower} of {self.shape}")
            upper = [low + p for low, p in zip(lower, patch, strict=True)]
            inside = np.isin(_window(label, lower, upper), [v for values in targets.values() for v in values])
            self._expect(bool(inside.any()), "a foreground crop holds a labelled voxel", f"none from {lower}")
            anywhere = self.task.crop(case, (64,) * self.dimensions, False, np.random.default_rng(seed))
            self._expect(
                len(anywhere) == self.dimensions, "a crop larger than the case has one start an axis", anywhere
            )

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
