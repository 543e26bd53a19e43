"""Segmentation: a label for every voxel, or regions that overlap. Knows losses and label tables, no files and no Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medseg.data.preprocess import Restoration, restore_mask
from medseg.data.store import StoredCase
from medseg.errors import MedsegError
from medseg.planning.conventions import Conventions
from medseg.structures import LabelTable, Prediction
from medseg.tasks.base import Batch, Metrics, Output, View, first_level, spatial_mean
from medseg.tiling.blending import GaussianBlender
from medseg.volume import Array

if TYPE_CHECKING:
    from medseg.losses import Loss


class SegmentationTask:
    """Softmax over exclusive labels, or one sigmoid a region where the label table has regions.

    Args:
        labels: what the mask values mean.
        loss: how outputs are compared with labels; Dice and cross-entropy unless given.
        components: whether training also chooses how components of the mask become boxes (``boxes=components``); means
            nothing here.
        conventions: of the plan: what is averaged over mirrorings, folds and windows, and how windows weigh.
    """

    name = "segmentation"

    def __init__(
        self,
        labels: LabelTable,
        loss: Loss | None = None,
        conventions: Conventions | None = None,
        *,
        components: bool = False,
    ) -> None:
        del components
        self.labels = labels
        own = conventions or Conventions()
        self._averaged, self._peak = own.averaged, own.peak
        self._loss = loss
        highest = max([*labels.names, labels.ignore or 0])
        self._channel_of = torch.zeros(highest + 1, dtype=torch.int64)
        for channel, value in enumerate(labels.names, start=1):
            self._channel_of[value] = channel

    @property
    def out_channels(self) -> int:
        return len(self.labels.outputs)

    def wants(self, case: StoredCase, rng: np.random.Generator) -> bool:
        return True

    def crop(
        self, case: StoredCase, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Uniform over the case, or centred on a random voxel of a random label that the case has; never leaves the case
        along an axis where it fits, centred where it does not."""
        room = [n - p for n, p in zip(case.shape, patch_size, strict=True)]
        uniform = rng.random(len(room))
        present = [places for places in case.locations.values() if len(places)]
        if foreground and present:
            places = present[int(rng.integers(len(present)))]
            center = places[int(rng.integers(len(places)))]
            lower = [int(c) - p // 2 for c, p in zip(center, patch_size, strict=True)]
        else:
            lower = [int(u * (free + 1)) for u, free in zip(uniform, room, strict=True)]
        return tuple(min(max(low, 0), free) if free > 0 else free // 2 for low, free in zip(lower, room, strict=True))

    def target(
        self, case: StoredCase, label: Array | None, patch_size: Sequence[int], placed: Callable[[Array], Array]
    ) -> dict[str, Any]:
        """The mask ``label`` (1, *patch). Raises MedsegError for a case without one."""
        if label is None:
            raise MedsegError(
                f"case {case.id!r}: has no label; name one in the data set, or leave the case out with data.skip"
            )
        return {"label": torch.from_numpy(label)}

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Each level against the label sampled down to it, weighted ½ per level (Isensee et al. 2021, Methods)."""
        if isinstance(output, dict):
            raise MedsegError(f"segmentation expects a tensor or a list of levels; the network returned {list(output)}")
        if self._loss is None:
            from medseg.losses import dice_ce  # MONAI, which predicting does not need

            self._loss = dice_ce(exclusive=self.labels.exclusive)
        levels = output if isinstance(output, list) else [output]
        weights = [0.5**level for level in range(len(levels))]
        total: dict[str, Tensor] = {}
        for weight, logits in zip(weights, levels, strict=True):
            target, valid = self._target(batch["label"], logits.shape[2:])
            for name, value in self._loss(logits, target, valid).items():
                total[name] = total.get(name, 0.0) + value * (weight / sum(weights))
        return total

    def _target(self, label: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Labels ``(B, 1, *S)`` as the loss wants them at ``shape``, and where they count."""
        if tuple(label.shape[2:]) != tuple(shape):
            label = functional.interpolate(label.float(), size=tuple(shape), mode="nearest-exact").to(label.dtype)
        valid = None if self.labels.ignore is None else label != self.labels.ignore
        if self.labels.exclusive:
            return self._channel_of.to(label.device)[label.long()], valid
        values = self.labels.regions.values()
        return torch.cat([torch.isin(label, label.new_tensor(v)) for v in values], dim=1).float(), valid

    def activate(self, output: Output) -> Tensor:
        """Logits in evaluation mode ``(B, C, *S)`` → probabilities."""
        logits = _tensor(output)
        return torch.softmax(logits, 1) if self.labels.exclusive else torch.sigmoid(logits)

    def combine(self, views: Iterable[View]) -> Array:
        """The mean of their probabilities (or logits) ``(B, K, *S)``, mirrored back."""
        total, count = None, 0
        for output, axes in views:
            scores = self.activate(output) if self._averaged == "probabilities" else _tensor(output)
            scores = scores.flip(axes) if axes else scores
            total = scores.clone() if total is None else total.add_(scores.to(total.device))
            count += 1
        if total is None:
            raise MedsegError("predict: expected at least one model, found none")
        return (total / count).cpu().numpy()

    def merger(
        self, shape: Sequence[int], patch_size: Sequence[int], *, box: Sequence[slice] | None = None
    ) -> GaussianBlender:
        return GaussianBlender(shape, self.out_channels, patch_size, peak=self._peak, box=box)

    def shown(self, merged: Array, case: StoredCase) -> tuple[Array, Array]:
        return case.label((0,) * len(case.shape), case.shape)[0], self.values(merged)

    def metrics(self) -> Metrics:
        return _DiceOnGrid(self)

    def probabilities(self, merged: Array) -> Array:
        """What windows and members were merged to ``(K, *S)`` → probabilities, in float32."""
        if self._averaged == "probabilities":
            return merged
        return self.activate(torch.from_numpy(merged)[None])[0].numpy()

    def values(self, scores: Array) -> Array:
        """Merged scores ``(K, *S)`` → mask values ``(*S)``: the likeliest label, or the regions painted in order."""
        kind = np.uint8 if max(self.labels.names) < 256 else np.uint16
        mask = np.zeros(scores.shape[1:], kind)
        if self.labels.exclusive:
            # A running maximum, as numpy's argmax over the first axis is slower; the first of equal ones stays.
            best = scores[0].copy()
            for value, score in zip(self.labels.names, scores[1:], strict=True):
                np.copyto(mask, value, where=score > best)
                np.maximum(best, score, out=best)
            return mask
        least = 0.5 if self._averaged == "probabilities" else 0.0
        for value, score in zip(self.labels.paint, scores, strict=True):
            mask[score > least] = value
        return mask

    def decode(self, case: str, merged: Array, restoration: Restoration, thresholds: Mapping[str, float]) -> Prediction:
        del thresholds  # the likeliest label needs none
        mask = restore_mask(merged, restoration, self.values)
        return Prediction(case, restoration.scan, self.labels, mask=mask)

    def score(self, output: Output, target: str, region: Tensor | None = None) -> Tensor:
        """The mean logit of ``target`` inside ``region``. Raises MedsegError for a target that the model does not have."""
        if target not in self.labels.outputs:
            raise MedsegError(f"the model has no target {target!r}; it has {', '.join(self.labels.outputs)}")
        level = first_level(output)
        if not isinstance(level, Tensor):
            raise MedsegError(f"segmentation expects a tensor from the network, found {type(level).__name__}")
        return spatial_mean(level[:, self.labels.outputs.index(target)], region)


def _tensor(output: Output) -> Tensor:
    if not isinstance(output, Tensor):
        raise MedsegError(f"segmentation expects a tensor from the network, found {type(output).__name__}")
    return output


class _DiceOnGrid:
    """Dice of each target on the plan's grid, a mean over the cases that hold it or were given it."""

    def __init__(self, task: SegmentationTask) -> None:
        self._task = task
        self._dice: dict[str, list[float]] = {name: [] for name in task.labels.targets}

    def update(self, merged: Array, case: StoredCase) -> None:
        truth, predicted = self._task.shown(merged, case)
        valid = (
            truth != self._task.labels.ignore if self._task.labels.ignore is not None else np.ones(truth.shape, bool)
        )
        for name, values in self._task.labels.targets.items():
            p, t = np.isin(predicted, values) & valid, np.isin(truth, values) & valid
            both = int(p.sum()) + int(t.sum())
            if both:
                self._dice[name].append(2 * int((p & t).sum()) / both)

    def compute(self) -> dict[str, float]:
        figures = {f"dice/{name}": float(np.mean(values)) for name, values in self._dice.items() if values}
        return {**figures, "score": float(np.mean(list(figures.values()))) if figures else 0.0}
