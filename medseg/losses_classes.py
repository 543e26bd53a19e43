"""Losses of classification over PyTorch's cross-entropies, with what these lack: weights that mean the same in any batch.

A builder such as `cross_entropy` is told whether a case may have several classes and returns a `ClassLoss`. PyTorch divides a
weighted cross-entropy by the weights that a batch happens to hold, so that in a batch of one class the weights cancel; here
the sum is divided by the number of cases. How rare a class is comes from whoever has the training cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import MedsegError

Weights = Sequence[float] | Literal["balanced"] | None
BALANCED = "balanced"


class ClassLoss(Protocol):
    """Scores logits against the true classes; training minimises the sum of what it returns."""

    def __call__(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            logits: ``(B, K)``, any floating type.
            target: the one class ``(B,)`` int64 in 0…K−1; where several may be true ``(B, K)``, 0 or 1.
        """


def cross_entropy(
    multilabel: bool,
    *,
    shares: Sequence[float] | None = None,
    class_weights: Weights = None,
    label_smoothing: float = 0.0,
) -> ClassLoss:
    """Cross-entropy of the one true class (softmax), or the mean over the classes of their own (sigmoid): ``{"ce"}``.

    Args:
        multilabel: whether a case may have several classes, or none.
        shares: part of the training cases that shows each class, which ``balanced`` weights need.
        class_weights: how much a case of each class counts (several classes: against a case without it). ``balanced``
            gives all classes the same sum: 1 / (K · share), and (1 − share) / share where several may be true.
        label_smoothing: ε, by which the truth is 1 − ε + ε/K and ε/K elsewhere (Szegedy et al. 2016, section 7), and
            1 − ε/2 and ε/2 for each class where several may be true.

    Raises:
        MedsegError: smoothing outside 0…1, negative weights, or balanced ones without the shares.
    """
    return _Entropy(multilabel, "ce", _weights(class_weights, shares, multilabel), smoothing=label_smoothing)


def focal(
    multilabel: bool,
    *,
    shares: Sequence[float] | None = None,
    gamma: float = 2.0,
    class_weights: Weights = None,
) -> ClassLoss:
    """Focal loss (Lin et al. 2017, equation 5), ``(1 − p)^gamma`` times the entropy, p that of what is true: ``{"focal"}``.

    Other arguments and errors are those of `cross_entropy`.
    """
    return _Entropy(multilabel, "focal", _weights(class_weights, shares, multilabel), gamma=gamma)


class _Entropy:
    """Mean over cases (and classes, where several may be true) of weight · (1 − p)^gamma · entropy."""

    def __init__(
        self,
        multilabel: bool,
        name: str,
        weights: Sequence[float] | None,
        *,
        smoothing: float = 0.0,
        gamma: float = 0.0,
    ) -> None:
        if not 0 <= smoothing < 1 or gamma < 0:
            raise MedsegError(
                f"loss: expected label_smoothing from 0 to below 1 and gamma of 0 or more, found {smoothing} and {gamma}"
            )
        self.multilabel, self.name, self.weights = multilabel, name, weights
        self.smoothing, self.gamma = smoothing, gamma

    def __call__(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            weight = self._weight(logits)
            return {self.name: (self._several if self.multilabel else self._one)(logits, target, weight).mean()}

    def _one(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        loss = F.cross_entropy(logits, target, weight, reduction="none", label_smoothing=self.smoothing)
        if self.gamma:
            loss = loss * self._doubt(F.cross_entropy(logits, target, reduction="none"))
        return loss

    def _several(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        truth = target.to(logits.dtype)
        smooth = truth * (1 - self.smoothing) + self.smoothing / 2
        loss = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight, reduction="none")
        if self.gamma:
            loss = loss * self._doubt(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"))
        return loss

    def _doubt(self, entropy: Tensor) -> Tensor:
        """``(1 − p)^gamma`` of ``−log p``; the clamp keeps gradients finite at p = 1 for any gamma."""
        return (1 - (-entropy).exp()).clamp(min=1e-6) ** self.gamma

    def _weight(self, logits: Tensor) -> Tensor | None:
        if self.weights is None:
            return None
        if len(self.weights) != logits.shape[1]:
            raise MedsegError(
                f"loss: expected class_weights for {logits.shape[1]} classes, found {len(self.weights)}: {self.weights}"
            )
        return torch.tensor(list(self.weights), dtype=logits.dtype, device=logits.device)


def _weights(given: Weights, shares: Sequence[float] | None, multilabel: bool) -> Sequence[float] | None:
    """One positive number a class, or None where all count the same."""
    if given is None:
        return None
    if isinstance(given, str):
        if given != BALANCED:
            raise MedsegError(f"loss: class_weights={given!r}; expected a number for each class, balanced, or null")
        if shares is None or not all(0 < share <= 1 for share in shares):
            raise MedsegError(
                "loss: class_weights=balanced needs training cases of every class; found the shares "
                f"{None if shares is None else list(shares)}. Leave out a class without cases, or give the weights as numbers"
            )
        return [(1 - share) / share if multilabel else 1 / (len(shares) * share) for share in shares]
    if not given or min(given) < 0 or max(given) == 0:
        raise MedsegError(f"loss: class_weights must not be negative nor all zero, found {list(given)}")
    return given
