"""How the score changes with the input: gradient, SmoothGrad, integrated gradients, guided backpropagation.

Each gives a signed value a voxel, summed over the channels: positive where more signal speaks for the target. As the score of a
case is a sum over windows, the maps of its windows are added and are those of the case, but for guided backpropagation, which is
no gradient of anything. What the plan's normalisation makes 0, the mean, stands for the absence of signal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from medseg.errors import MedsegError
from medseg.explain.evidence import CaseScore
from medseg.explain.guided import GuidedEvidence
from medseg.volume import Array

Function = Callable[[Tensor], Tensor]
"""Windows ``(B, C, *patch)`` → what each contributes to the score of the case, ``(B,)``."""


def gradient(score: CaseScore, array: Array) -> Array:
    """The gradient of the score by the input (Simonyan et al. 2013, section 3), with its sign."""
    return _added(score, array, _derivative)


def smooth_grad(score: CaseScore, array: Array, *, samples: int = 16, noise: float = 0.15, seed: int = 0) -> Array:
    """The mean gradient of noisy copies (Smilkov et al. 2017). The whole case is made noisy, so that windows agree.

    Args:
        samples: noisy copies.
        noise: standard deviation of the noise, as a share of that of the case.
        seed: of the noise.

    Raises:
        MedsegError: fewer than one sample, or a negative noise.
    """
    if samples < 1 or noise < 0:
        raise MedsegError(f"smooth_grad: expected samples ≥ 1 and noise ≥ 0, found {samples} and {noise}")
    rng, deviation = np.random.default_rng(seed), noise * float(array.std())
    total = np.zeros(array.shape[1:], np.float32)
    for _ in range(samples):
        disturbed = array + deviation * rng.standard_normal(array.shape, np.float32)
        total += gradient(score, disturbed.astype(np.float32)) / samples
    return total


def integrated_gradients(score: CaseScore, array: Array, *, steps: int = 32) -> Array:
    """Input times the mean gradient on the straight way from zero (Sundararajan et al. 2017, eq. 1), by Captum.

    The values add up to the score of the case less that of an empty one, but for the error of the quadrature.

    Args:
        steps: points of the Gauss-Legendre quadrature.

    Raises:
        MedsegError: fewer than one step.
    """
    if steps < 1:
        raise MedsegError(f"integrated_gradients: expected steps ≥ 1, found {steps}")
    # One step at a time: the memory then holds one window's graph.
    return _added(
        score,
        array,
        lambda function, x: IntegratedGradients(function).attribute(x, n_steps=steps, internal_batch_size=1),
    )


def guided_backprop(score: CaseScore, array: Array) -> Array:
    """The gradient, of which every rectifier lets only what is positive through (Springenberg et al. 2015, section 3.4).

    Raises:
        MedsegError: the network has no rectifier, or holds what the rule cannot be applied to (it is named).
    """
    return gradient(replace(score, evidence=GuidedEvidence(score.evidence)), array)


def _derivative(function: Function, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


def _added(score: CaseScore, array: Array, attribute: Callable[[Function, Tensor], Tensor]) -> Array:
    """Attributions of all windows, summed over the channels and added where windows overlap: ``shape`` float32."""
    total = np.zeros(array.shape[1:], np.float32)
    for share in score.shares:
        part = attribute(partial(score.of_window, share=share), score.cut(array, share.lower))
        score.stitching.add(total, part.detach().sum(1)[0].float().cpu().numpy(), share.lower)
    return total
