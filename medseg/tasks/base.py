"""The contract of a task: the only place where segmentation, detection and classification differ.

Everything else (reading, planning, preprocessing, augmentation, the training loop, windows, the result folder) is shared and
written against these protocols. A task is composed into the training module, not inherited from it; it holds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocess import Restoration
from medseg.data.store import StoredCase
from medseg.structures import LabelTable, Prediction
from medseg.volume import Array

Output = Tensor | list[Tensor] | dict[str, Any]
"""What a network returns: ``(B, C, *S)``; levels, finest first (deep supervision, in training mode only); or named tensors."""

Batch = dict[str, Any]
"""``image`` (B, C, *S) float32, ``label`` (B, 1, *S) int16 (mask values as stored), ``case``: a list of ids."""


@runtime_checkable
class Merger(Protocol):
    """Puts the outputs of windows, mirrorings and ensemble members together into one result on the plan's grid."""

    def add(self, output: Array, lower: Sequence[int]) -> None:
        """Take the output ``(C, *patch)`` of one window whose first voxel is ``lower``, already mirrored back."""

    def result(self) -> Any:
        """The merged result, which `Task.decode` understands."""


class Metrics(Protocol):
    """Collects cases on the plan's grid during training; a fresh one is made for each validation."""

    def update(self, merged: Any, label: Array) -> None:
        """Compare a merged result with the stored label ``(1, *S)`` of the same case."""

    def compute(self) -> dict[str, float]:
        """Figures by name; ``score`` is the one by which the best checkpoint is chosen, larger is better."""


class Task(Protocol):
    """What a task must answer. ``check_task`` in `medseg.testing` tests an implementation against this contract."""

    name: str
    labels: LabelTable

    @property
    def out_channels(self) -> int:
        """Channels that the network must have."""

    def crop(
        self, case: StoredCase, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """The first voxel of a training crop; may be negative, and a crop may reach beyond the case (it is padded there).

        ``foreground`` asks for a crop that holds something to find, if the case has any.
        """

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Scalars by name; training minimises their sum and logs each once."""

    def activate(self, output: Tensor) -> Tensor:
        """Network output in evaluation mode ``(B, C, *S)`` → what windows are merged of (probabilities)."""

    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> Merger:
        """A fresh merger for a case of ``shape`` on the plan's grid."""

    def metrics(self) -> Metrics:
        """A fresh collector for one validation."""

    def decode(self, case: str, merged: Any, restoration: Restoration, working_point: Mapping[str, Any]) -> Prediction:
        """A merged result → what is said of the case, on the scan's own grid."""

    def score(self, output: Tensor, target: str, region: Tensor | None = None) -> Tensor:
        """``(B,)`` differentiable evidence for ``target`` in ``region`` (B, 1, *S): what every explanation method uses."""


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
