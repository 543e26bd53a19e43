"""Classification: one answer for a case, or for the region that a mask marks. Knows classes, no files and no Lightning.

A case that fits the patch is one window; a larger one is seen in windows, whose logits are pooled. The temperature that makes
probabilities honest is applied later, by `medseg.inference.classes`: it is chosen when training is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from medseg.data.preprocess import Restoration
from medseg.data.store import StoredCase
from medseg.errors import MedsegError
from medseg.evaluation.classification import auroc
from medseg.losses_classes import ClassLoss, cross_entropy
from medseg.planning.plan import Plan
from medseg.structures import Prediction
from medseg.tasks.base import Batch, Metrics, Output, View
from medseg.volume import Array

Pool = Literal["mean", "max"]
Sampling = Literal["uniform", "balanced"]
SHIFT = 1 / 16
"""Of the patch, by which a training crop of a whole case is moved about at most."""


class ClassificationTask:
    """Softmax over classes of which a case has one, or a sigmoid for each of several that it may have.

    Args:
        plan: with its classes.
        loss: how logits are compared with the truth; cross-entropy (binary for several classes) unless given.
        multilabel, region, field, mask_channel, positive: as the plan was made with; they mean nothing here.
        pool: how logits of windows become those of a case that does not fit one: ``mean``, or ``max`` where one window that
            shows a class is enough.
        sampling: whether each case is drawn equally often in training, or (``balanced``) each class.
    """

    name = "classification"

    def __init__(
        self,
        plan: Plan,
        loss: ClassLoss | None = None,
        *,
        multilabel: bool = False,
        region: str | None = None,
        field: Sequence[float] | None = None,
        mask_channel: bool = False,
        positive: str | None = None,
        pool: Pool = "mean",
        sampling: Sampling = "uniform",
    ) -> None:
        del region, field, mask_channel, positive
        if plan.classes is None or plan.classes.multilabel != multilabel:
            raise MedsegError(
                f"task.multilabel={str(multilabel).lower()}: the plan was made for another; make one with medseg plan"
            )
        for option, value, choices in (("pool", pool, get_args(Pool)), ("sampling", sampling, get_args(Sampling))):
            if value not in choices:
                raise MedsegError(f"task.{option}={value!r}: expected one of {', '.join(choices)}")
        self.labels, self.multilabel = plan.labels, multilabel
        self.classes = tuple(plan.labels.names.values())
        shares = np.clip(np.array(plan.classes.shares), 1e-6, 1.0)
        self._pool = pool
        # A case is taken the rarer its rarest class is: then every class comes equally often where a case has one.
        self._taken = shares.min() / shares if sampling == "balanced" else None
        self._loss: ClassLoss = loss or cross_entropy(multilabel)

    @property
    def out_channels(self) -> int:
        return len(self.classes)

    def wants(self, case: StoredCase, rng: np.random.Generator) -> bool:
        """Rare classes always, common ones more seldom, where ``sampling`` is ``balanced``."""
        if self._taken is None:
            return True
        likely = max((self._taken[at] for at in _shown(case)), default=self._taken.min())
        return bool(rng.random() < likely)

    def crop(
        self, case: StoredCase, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Along an axis where the case fits: centred, moved by up to `SHIFT` of the patch; else anywhere inside the case."""
        del foreground
        lower = []
        for size, patch, drawn in zip(case.shape, patch_size, rng.random(len(patch_size)), strict=True):
            free = size - patch
            shift = round((2 * drawn - 1) * SHIFT * patch)
            lower.append(int(drawn * (free + 1)) if free > 0 else free // 2 + shift)
        return tuple(lower)

    def target(
        self, case: StoredCase, label: Array | None, patch_size: Sequence[int], placed: Callable[[Array], Array]
    ) -> dict[str, Any]:
        """``class``: the position of the one class, or (K,) float32 of 0 and 1 where there may be several."""
        del label, patch_size, placed
        truth = self._truth(case)
        return {"class": torch.from_numpy(truth) if self.multilabel else torch.tensor(int(truth.argmax()))}

    def _truth(self, case: StoredCase) -> Array:
        truth = np.zeros(len(self.classes), np.float32)
        truth[list(_shown(case))] = 1.0
        return truth

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        logits = self._logits(output)
        return self._loss(logits, batch["class"].to(logits.device))

    def combine(self, views: Iterable[View]) -> Array:
        """The mean of their logits ``(B, K)``."""
        logits = [self._logits(output).float().cpu() for output, _ in views]
        if not logits:
            raise MedsegError("predict: expected at least one model, found none")
        return torch.stack(logits).mean(0).numpy()

    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> _Pooled:
        del shape, patch_size
        return _Pooled(self._pool)

    def probabilities(self, logits: Array) -> Array:
        """Logits ``(…, K)`` → probabilities, as they are without a temperature."""
        values = torch.from_numpy(np.asarray(logits, np.float64))
        return (torch.sigmoid(values) if self.multilabel else torch.softmax(values, -1)).numpy()

    def shown(self, merged: Array, case: StoredCase) -> tuple[Array, Array]:
        """Empty masks: what is said of a case lies nowhere in it."""
        return np.zeros(case.shape, np.uint8), np.zeros(case.shape, np.uint8)

    def metrics(self) -> Metrics:
        return _OfClasses(self)

    def decode(self, case: str, merged: Array, restoration: Restoration, thresholds: Mapping[str, float]) -> Prediction:
        probabilities = dict(zip(self.classes, map(float, self.probabilities(merged)), strict=True))
        return Prediction(case, restoration.scan, self.labels, classes=probabilities, thresholds=thresholds)

    def score(self, output: Output, target: str, region: Tensor | None = None) -> Tensor:
        """The logit of the class ``target``, wherever it comes from. Raises MedsegError for a class that there is not."""
        del region
        if target not in self.classes:
            raise MedsegError(f"the model has no target {target!r}; it has {', '.join(self.classes)}")
        return self._logits(output)[:, self.classes.index(target)]

    def _logits(self, output: Output) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != len(self.classes):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise MedsegError(
                f"classification expects logits (B, {len(self.classes)}) from the network, found {found}; networks for it are "
                "densenet, resnet, efficientnet and encoder_classifier"
            )
        return output


class _Pooled:
    """Logits of the windows of a case become one row."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._rows: list[Array] = []

    def add(self, answer: Array, lower: Sequence[int]) -> None:
        del lower
        self._rows.append(np.asarray(answer, np.float32))

    def result(self) -> Array:
        """``(K,)`` float32."""
        rows = np.stack(self._rows)
        return rows.max(0) if self._pool == "max" else rows.mean(0)


class _OfClasses:
    """AUROC of each class against the rest, log loss, and the share that is right, over the cases of a validation."""

    def __init__(self, task: ClassificationTask) -> None:
        self._task = task
        self._logits: list[Array] = []
        self._truth: list[Array] = []

    def update(self, merged: Array, case: StoredCase) -> None:
        self._logits.append(merged)
        self._truth.append(self._task._truth(case))

    def compute(self) -> dict[str, float]:
        """``score`` is the mean AUROC; of classes that all or none of the cases show there is none, and then it is accuracy."""
        logits, truth = np.stack(self._logits), np.stack(self._truth)
        p = self._task.probabilities(logits)
        found = {name: float(auroc(p[:, k], truth[:, k] > 0)) for k, name in enumerate(self._task.classes)}
        figures = {f"auroc/{name}": value for name, value in found.items() if np.isfinite(value)}
        if self._task.multilabel:
            right = float(((p >= 0.5) == (truth > 0)).mean())
        else:
            right = float((p.argmax(1) == truth.argmax(1)).mean())
        score = float(np.mean(list(figures.values()))) if figures else right
        return {**figures, "accuracy": right, "score": score}


def _shown(case: StoredCase) -> tuple[int, ...]:
    if case.classes is None:
        raise MedsegError(
            f"case {case.id!r}: has no class; name one in the table, or leave the case out with data.skip"
        )
    return case.classes
