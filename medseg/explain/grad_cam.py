"""Class activation maps by gradients: which features of a layer speak for the target, and where they are.

All weigh the maps A of a layer with gradients of the score; there is one weight a channel (Grad-CAM, Grad-CAM++) or one a cell
(LayerCAM, HiResCAM, and their agreement over depths). Over a whole case

- the weights of channels are those of the case, summed over all windows before any map is made, and then the same for every
  window: a window that has no part in the score has a map too (a forward pass), so that it ends nowhere at the region;
- windows are enlarged to voxels (linearly) and blended as prediction blends logits. Gradients of cells carry the share of each
  window already, so that windows are added, and those without a part in the score add nothing;
- what is negative is cut off last, when all windows are together.

Captum has Grad-CAM of one window, which cannot share weights among several: here it is for all. A layer may be a group of maps,
whose results are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import MedsegError
from medseg.explain.evidence import CaseScore
from medseg.explain.layers import watching
from medseg.explain.stitching import Share
from medseg.tiling.blending import GaussianBlender
from medseg.volume import Array, resample_array

KEPT = 2**30
"""Bytes of feature maps that are kept for the second pass; the maps of further windows are computed again."""
_POOL: dict[int, Any] = {2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def grad_cam(score: CaseScore, array: Array, *, layers: Sequence[str]) -> Array:
    """Maps weighted by their mean gradient (Selvaraju et al. 2017, eq. 1–2; of a region: Vinogradova et al. 2020).

    The mean is over the cells that the layer would have on the whole case at once.
    """
    maps = _Maps(score, array, layers)
    weights = [torch.zeros(1) for _ in layers]
    for share in score.shares:
        for at, (features, slope) in enumerate(maps.with_gradients(share)):
            weights[at] = weights[at] + slope.flatten(1).sum(1) / maps.cells(features)
    return maps.blended(weights)


def grad_cam_plus_plus(score: CaseScore, array: Array, *, layers: Sequence[str]) -> Array:
    """Maps weighted by positive gradients, each with α = 1 / (2 + ΣA · gradient) (Chattopadhay et al. 2018, eq. 14 and 19).

    Equation 19 with numerator and denominator divided by the squared gradient. ΣA is the sum of a channel over the case; of a
    layer whose maps can be negative, unlike the paper's, over what is positive, which keeps α within 0…½. The factor exp(score)
    of all weights is left out. Where windows overlap, each has a part of a cell's gradient; α is taken of the whole.
    """
    maps = _Maps(score, array, layers)
    total = [torch.zeros(1) for _ in layers]
    for lower in score.stitching.starts:
        for at, features in enumerate(maps.of(lower)):
            total[at] = total[at] + (features.relu() * maps.blend(lower, features)).flatten(1).sum(1)
    weights = [torch.zeros(1) for _ in layers]
    for share in score.shares:
        for at, (features, slope) in enumerate(maps.with_gradients(share)):
            slope = slope.relu()
            whole = slope / maps.blend(share.lower, features).clamp(min=1e-6)
            alpha = 1 / (2 + total[at].view(-1, *[1] * (slope.ndim - 1)) * whole)
            weights[at] = weights[at] + (alpha * slope).flatten(1).sum(1)
    return maps.blended(weights)


def layer_cam(score: CaseScore, array: Array, *, layers: Sequence[str]) -> Array:
    """Each cell weighted by its own positive gradient (Jiang et al. 2021, eq. 6–8), for layers fine enough to outline."""
    return np.maximum(sum(_of_cells(score, array, layers, positive=True)), 0)


def hires_cam(score: CaseScore, array: Array, *, layers: Sequence[str]) -> Array:
    """Each cell weighted by its own gradient, whatever its sign (HiResCAM, Draelos & Carin 2020, eq. 4).

    What a channel says against the target at a place counts against what another says for it there, so that a map is narrower
    than LayerCAM's; where only linear layers follow, it is what the place adds to the score.
    """
    return np.maximum(sum(_of_cells(score, array, layers, positive=False)), 0)


def depth_cam(score: CaseScore, array: Array, *, depths: Sequence[str]) -> Array:
    """Where HiResCAM agrees at every depth of the network: the geometric mean of its maps of ``depths``.

    A deep map knows what it sees and not exactly where, a shallow one where and not quite what; a place that any of them finds
    irrelevant is so. Maps need no common scale for this, as a factor of one changes nothing but the scale of the result. Depths
    that the score does not depend on (the levels of a detector where a box was not found) are left out.
    """
    maps = [np.maximum(one, 0) for one in _of_cells(score, array, depths, positive=False) if one.any()]
    if not maps:
        return np.zeros(score.stitching.shape, np.float32)
    with np.errstate(divide="ignore"):  # the logarithm of 0, whose mean with others is the 0 that is wanted
        return np.exp(np.mean(np.log(maps), axis=0, dtype=np.float64)).astype(np.float32)


def _of_cells(score: CaseScore, array: Array, layers: Sequence[str], *, positive: bool) -> list[Array]:
    """Of each layer, its maps times their gradients (or what of these is positive), summed over channels and windows."""
    maps = _Maps(score, array, layers, keep=False)  # each window is looked at once
    totals = [np.zeros(score.stitching.shape, np.float32) for _ in layers]
    for share in score.shares:
        for total, (features, slope) in zip(totals, maps.with_gradients(share), strict=True):
            weight = slope.relu() if positive else slope
            score.stitching.add(total, maps.enlarged((weight * features).sum(0)), share.lower)
    return totals


class _Maps:
    """The feature maps of some layers in every window of a case, ``(K, *cells)`` on the CPU, and their gradients."""

    def __init__(self, score: CaseScore, array: Array, layers: Sequence[str], keep: bool = True) -> None:
        self._score, self._array, self._layers = score, array, list(layers)
        self._stitching = score.stitching
        self._kept: dict[tuple[int, ...], list[Tensor]] = {}
        self._room = KEPT if keep else 0

    def of(self, lower: tuple[int, ...]) -> list[Tensor]:
        """The maps of a window, float32."""
        if lower not in self._kept:
            with watching(self._score.evidence.network, self._layers, only=True) as seen, torch.no_grad():
                self._score.evidence.output(self._score.cut(self._array, lower))
            return [features.float() for features in self._noted(lower, seen)]
        return [features.float() for features in self._kept[lower]]

    def with_gradients(self, share: Share) -> list[tuple[Tensor, Tensor]]:
        """The maps of a window and the gradient of the case's score by them, float32.

        Raises:
            MedsegError: the score depends on none of the layers.
        """
        with watching(self._score.evidence.network, self._layers) as seen, torch.enable_grad():
            score = self._score.of_window(self._score.cut(self._array, share.lower), share)
        ends = [seen[layer] for layer in self._layers]
        slopes = (
            torch.autograd.grad(score.sum(), ends, allow_unused=True) if score.requires_grad else [None] * len(ends)
        )
        if all(slope is None for slope in slopes):
            raise MedsegError(
                f"layer {', '.join(self._layers)}: the score of {self._score.name!r} does not depend on it; choose a layer that "
                "comes before the output which is explained"
            )
        features = self._noted(share.lower, seen)
        return [
            (one.float(), torch.zeros_like(one, dtype=torch.float32) if slope is None else slope[0].float().cpu())
            for one, slope in zip(features, slopes, strict=True)
        ]

    def blended(self, weights: Sequence[Tensor]) -> Array:
        """The maps of every window, weighted by channel, enlarged and blended; what is negative is 0."""
        blender = GaussianBlender(self._stitching.shape, 1, self._stitching.patch, peak=self._stitching.plan.peak)
        for lower in self._stitching.starts:
            pairs = zip(weights, self.of(lower), strict=True)
            parts = [self.enlarged(torch.tensordot(weight, features, 1)) for weight, features in pairs]
            blender.add(np.sum(parts, axis=0)[None], lower)
            self._kept.pop(lower, None)
        return np.maximum(blender.result()[0], 0)

    def enlarged(self, values: Tensor) -> Array:
        """``(*cells)`` → ``patch``, linearly, edges on edges."""
        return resample_array(values.numpy(), self._stitching.patch, 1)

    def blend(self, lower: tuple[int, ...], features: Tensor) -> Tensor:
        """``(*cells)``: which part of the case's value at each cell comes from this window."""
        cells = features.shape[1:]
        blend: Tensor = _POOL[len(cells)](torch.from_numpy(self._stitching.blend(lower))[None], tuple(cells))
        return blend[0]

    def cells(self, features: Tensor) -> float:
        """How many cells the layer would have on the whole case."""
        grown = [max(n, p) / p for n, p in zip(self._stitching.shape, self._stitching.patch, strict=True)]
        return float(features[0].numel() * np.prod(grown))

    def _noted(self, lower: tuple[int, ...], seen: dict[str, Tensor]) -> list[Tensor]:
        """The maps as the network made them, kept where there is room."""
        maps = [seen[layer].detach()[0].cpu() for layer in self._layers]
        size = sum(one.nbytes for one in maps)
        if lower not in self._kept and size <= self._room:
            self._kept[lower] = maps
            self._room -= size
        return maps
