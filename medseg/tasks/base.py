"""The contract of a task: the only place where segmentation, detection and classification differ.

Everything else (reading, planning, preprocessing, augmentation, the training loop, windows, the result folder) is shared and
written against these protocols. A task is composed into the training module, not inherited from it; it holds no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocess import Restoration
from medseg.data.store import StoredCase
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.tiling.blending import GaussianBlender
from medseg.volume import Array

Output = Tensor | list[Tensor] | dict[str, Any]
"""What a network returns: ``(B, C, *S)``; levels, finest first (deep supervision, in training mode only); or named tensors."""

Batch = dict[str, Any]
"""``image`` (B, C, *S) float32, ``case``: a list of ids, and what `Task.target` gives of each sample: tensors are stacked
(``label`` (B, 1, *S) int16), anything else is listed."""

View = tuple[Output, tuple[int, ...]]
"""What a network says of a batch, and the axes of the batch along which its input was mirrored."""


@runtime_checkable
class Merger(Protocol):
    """Puts the outputs of windows, mirrorings and ensemble members together into one result on the plan's grid."""

    def add(self, answer: Any, lower: Sequence[int]) -> None:
        """Take what `Task.combine` gave for the window whose first voxel is ``lower``."""

    def result(self) -> Any:
        """The merged result, which `Task.decode` understands."""


class Metrics(Protocol):
    """Collects cases on the plan's grid during training; a fresh one is made for each validation."""

    def update(self, merged: Any, case: StoredCase) -> None:
        """Compare a merged result with what is stored of the same case."""

    def compute(self) -> dict[str, float]:
        """Figures by name; ``score`` is the one by which the best checkpoint is chosen, larger is better."""


class Task(Protocol):
    """What a task must answer. ``check_task`` in `medseg.testing` tests an implementation against this contract."""

    name: str
    labels: LabelTable

    @property
    def out_channels(self) -> int:
        """Channels that the network must have."""

    def wants(self, case: StoredCase, rng: np.random.Generator) -> bool:
        """Whether a case that was drawn at random is taken for a training crop, or another is drawn; mostly: yes."""

    def crop(
        self, case: StoredCase, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """The first voxel of a training crop; may be negative, and a crop may reach beyond the case (it is padded there).

        ``foreground`` asks for a crop that holds something to find, if the case has any.
        """

    def target(
        self, case: StoredCase, label: Array | None, patch_size: Sequence[int], placed: Callable[[Array], Array]
    ) -> dict[str, Any]:
        """What the loss compares one crop with, by the names of `Batch`.

        Args:
            label: ``(1, *patch)`` int16 after augmentation; None where the case has none.
            placed: boxes ``(N, 2·D)`` of the plan's grid → where augmentation has put them in the patch.
        """

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; training minimises their sum and logs each once."""

    def combine(self, views: Iterable[View]) -> Iterable[Any]:
        """What members and mirrorings together say of each window of a batch: one answer a window, for `Merger.add`.

        Args:
            views: outputs in evaluation mode, one after another; each may be forgotten before the next is asked for.
        """

    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> Merger:
        """A fresh merger for a case of ``shape`` on the plan's grid."""

    def shown(self, merged: Any, case: StoredCase) -> tuple[Array | Boxes, Array | Boxes]:
        """The truth and what was found on the plan's grid, as pictures show them: masks ``(*S)`` or boxes."""

    def metrics(self) -> Metrics:
        """A fresh collector for one validation."""

    def decode(self, case: str, merged: Any, restoration: Restoration, thresholds: Mapping[str, float]) -> Prediction:
        """A merged result → what is said of the case, on the scan's own grid.

        Args:
            thresholds: label → score from which a finding counts; empty for tasks that need none.
        """

    def score(self, output: Output, target: str, region: Tensor | None = None) -> Tensor:
        """``(B,)`` differentiable evidence for ``target`` in ``region`` (B, 1, *S): what every explanation method uses."""


@runtime_checkable
class DenseTask(Protocol):
    """A task that says of each voxel what its scores alone say: such a case is decoded part by part, and its scores are never
    in memory as a whole."""

    labels: LabelTable

    @property
    def out_channels(self) -> int:
        """Scores of a voxel."""

    def values(self, scores: Array) -> Array:
        """Merged scores ``(K, *block)`` → mask values ``(*block)``."""

    def merger(
        self, shape: Sequence[int], patch_size: Sequence[int], *, box: Sequence[slice] | None = None
    ) -> GaussianBlender:
        """As `Task.merger`; with ``box``, of that part of the grid."""

    def probabilities(self, merged: Array) -> Array:
        """Merged scores ``(K, *S)`` → probabilities."""


def first_level(output: Output) -> Output:
    """The finest level of a deeply supervised output."""
    return output[0] if isinstance(output, list) else output


def spatial_mean(values: Tensor, region: Tensor | None) -> Tensor:
    """Mean of ``(B, *S)`` values inside ``region`` (B, 1, *S), everywhere where it is None; ``(B,)``."""
    axes = tuple(range(1, values.ndim))
    if region is None:
        return values.mean(axes)
    inside = region[:, 0].to(values.dtype)
    return (values * inside).sum(axes) / torch.clamp(inside.sum(axes), min=1.0)
