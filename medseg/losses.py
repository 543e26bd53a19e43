"""Segmentation losses over MONAI's overlap terms, with what these lack: ignored voxels in every term, and scalars by name.

A builder such as `dice_ce` is told whether labels exclude each other and returns a `Loss`. Probabilities are computed once, in
float32 even inside autocast, and shared by the terms; cross-entropy and its focal form are written out, so that they too
leave voxels out. Deep supervision is no business of this module: it scores one level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss, GeneralizedDiceLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor

from medseg.errors import MedsegError


class Loss(Protocol):
    """Scores logits against a target; training minimises the sum of what it returns."""

    def __call__(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars by name.

        Args:
            logits: ``(B, K, *S)``, any floating type.
            target: exclusive labels ``(B, 1, *S)`` int64 in 0…K−1; regions ``(B, K, *S)`` 0 or 1.
            valid: ``(B, 1, *S)`` bool, False where a voxel is ignored; None where all count.
        """


def dice_ce(
    exclusive: bool,
    *,
    batch: bool = True,
    include_background: bool = False,
    smooth: float = 1e-5,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """Soft Dice plus cross-entropy, nnU-Net's loss (Isensee et al. 2021): ``{"dice", "ce"}``.

    Args:
        exclusive: one label a voxel (softmax) rather than overlapping regions (sigmoid).
        batch: Dice of the whole batch rather than the mean over its samples, which is unstable where labels are missing.
        include_background: whether background has a Dice of its own (regions have no background).
        smooth: added to numerator and denominator of the Dice.
        dice_weight, ce_weight: share of each term in the sum.
        class_weights: weight of each output channel in the cross-entropy.
    """
    dice = DiceLoss(batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    return _Overlap(exclusive, include_background, "dice", dice, dice_weight, _CrossEntropy(class_weights), ce_weight)


def dice_focal(
    exclusive: bool,
    *,
    batch: bool = True,
    include_background: bool = False,
    smooth: float = 1e-5,
    gamma: float = 2.0,
    dice_weight: float = 1.0,
    focal_weight: float = 1.0,
    class_weights: Sequence[float] | None = None,
) -> Loss:
    """Soft Dice plus focal cross-entropy (Lin et al. 2017), ``(1 − p)^gamma`` times the entropy: ``{"dice", "focal"}``.

    Arguments are those of `dice_ce`.
    """
    dice = DiceLoss(batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    focal = _CrossEntropy(class_weights, gamma, "focal")
    return _Overlap(exclusive, include_background, "dice", dice, dice_weight, focal, focal_weight)


def tversky(
    exclusive: bool,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    batch: bool = True,
    include_background: bool = False,
    smooth: float = 1e-5,
    ce_weight: float = 0.0,
) -> Loss:
    """Tversky loss (Salehi et al. 2017): ``{"tversky"}``, and ``"ce"`` where ``ce_weight`` is given.

    ``alpha`` weighs false positives and ``beta`` false negatives; one half each is Dice. Other arguments are those of `dice_ce`.
    """
    term = TverskyLoss(alpha=alpha, beta=beta, batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    return _Overlap(exclusive, include_background, "tversky", term, 1.0, _CrossEntropy(), ce_weight)


def generalized_dice(
    exclusive: bool,
    *,
    weighting: str = "square",
    batch: bool = True,
    include_background: bool = True,
    smooth: float = 1e-5,
    ce_weight: float = 0.0,
) -> Loss:
    """Generalised Dice (Sudre et al. 2017): ``{"generalized_dice"}``, and ``"ce"`` where ``ce_weight`` is given.

    Classes are weighted by their inverse (squared) volume: ``weighting`` is ``"square"``, ``"simple"`` or ``"uniform"``.
    Background belongs to the formula, hence it is included. Other arguments are those of `dice_ce`.
    """
    if weighting not in ("square", "simple", "uniform"):
        raise MedsegError(f"loss: weighting {weighting!r}; expected 'square', 'simple' or 'uniform'")
    term = GeneralizedDiceLoss(w_type=weighting, batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    return _Overlap(exclusive, include_background, "generalized_dice", term, 1.0, _CrossEntropy(), ce_weight)


class _CrossEntropy:
    """Mean over the valid voxels of ``−(1 − p)^gamma log p``, p the probability of what is true there."""

    def __init__(self, weights: Sequence[float] | None = None, gamma: float = 0.0, name: str = "ce") -> None:
        self.weights, self.gamma, self.name = weights, gamma, name

    def exclusive(self, log_p: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """``log_p`` ``(B, K, *S)`` float32, ``target`` ``(B, 1, *S)`` int64."""
        log_true = log_p.gather(1, target)
        loss = self._focused(-log_true)
        scale: Tensor | None = None if valid is None else valid.to(loss.dtype)
        if self.weights is not None:
            share = self._weights(log_p)[target]
            scale = share if scale is None else scale * share
        if scale is None:
            return loss.mean()
        return (loss * scale).sum() / scale.sum().clamp(min=1e-6)

    def regions(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """``logits`` and ``target`` ``(B, K, *S)`` float32."""
        loss = self._focused(F.binary_cross_entropy_with_logits(logits, target, reduction="none"))
        if self.weights is not None:
            loss = loss * self._weights(logits).view(-1, *[1] * (loss.ndim - 2))
        if valid is None:
            return loss.mean()
        return (loss * valid).sum() / (valid.sum() * loss.shape[1]).clamp(min=1)

    def _focused(self, entropy: Tensor) -> Tensor:
        """The entropy is ``−log p``; the clamp keeps gradients finite at p = 1 for any gamma."""
        return entropy * (1 - (-entropy).exp()).clamp(min=1e-6) ** self.gamma if self.gamma else entropy

    def _weights(self, like: Tensor) -> Tensor:
        if self.weights is None or len(self.weights) != like.shape[1]:
            raise MedsegError(f"loss: expected class_weights for {like.shape[1]} output channels, found {self.weights}")
        return torch.tensor(list(self.weights), dtype=like.dtype, device=like.device)


class _Overlap:
    """One of MONAI's overlap terms on shared, masked probabilities, and cross-entropy beside it."""

    def __init__(
        self,
        exclusive: bool,
        include_background: bool,
        name: str,
        overlap: Callable[[Tensor, Tensor], Tensor],
        weight: float,
        entropy: _CrossEntropy,
        entropy_weight: float,
    ) -> None:
        if min(weight, entropy_weight) < 0 or weight + entropy_weight == 0:
            raise MedsegError(f"loss: weights must not be negative nor all zero, found {weight} and {entropy_weight}")
        self.is_exclusive, self.first = exclusive, 0 if include_background or not exclusive else 1
        self.name, self.overlap, self.weight = name, overlap, weight
        self.entropy, self.entropy_weight = entropy, entropy_weight

    def __call__(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
        with torch.autocast(logits.device.type, enabled=False):
            return self._terms(logits.float(), target, valid)

    def _terms(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if self.is_exclusive:
            log_p = F.log_softmax(logits, 1)
            p = log_p[:, self.first :].exp()
            classes = torch.arange(self.first, logits.shape[1], device=target.device)
            truth = (target == classes.view(-1, *[1] * (target.ndim - 2))).to(p.dtype)
            entropy = self.entropy.exclusive(log_p, target, valid) if self.entropy_weight else None
        else:
            p, truth = logits.sigmoid(), target.to(logits.dtype)
            entropy = self.entropy.regions(logits, truth, valid) if self.entropy_weight else None
        if valid is not None:
            p, truth = p * valid, truth * valid
        if self.weight:
            terms[self.name] = self.weight * self.overlap(p, truth)
        if entropy is not None:
            terms[self.entropy.name] = self.entropy_weight * entropy
        return terms
