"""Outputs of overlapping windows become one array, the middle of a window counting more than its rim: numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Literal

import numpy as np
import numpy.typing as npt

from medseg.tiling.windows import overlap_slices
from medseg.volume import Array


@lru_cache(maxsize=8)
def gaussian_weight(patch: tuple[int, ...], peak: Literal["middle", "after"] = "middle") -> Array:
    """``patch`` float32 weights, falling as a Gaussian of σ = an eighth of the window along each axis.

    The top is 1: in the middle, or half a voxel after it where a length is even.
    Isensee et al. 2021 (nnU-Net), "Inference". At the corner of a 3D window it is e⁻²⁴, well inside float32.
    """
    lines = []
    for axis, n in enumerate(patch):
        top = (n - 1) / 2 if peak == "middle" else n // 2
        line = np.exp(-0.5 * ((np.arange(n) - top) / (n / 8)) ** 2)
        lines.append(line.reshape([-1 if a == axis else 1 for a in range(len(patch))]))
    weight = reduce(np.multiply, lines)
    weight = (weight / weight.max()).astype(np.float32)
    weight.setflags(write=False)
    return weight


class GaussianBlender:
    """The weighted mean of window outputs on a grid; implements `medseg.tasks.base.Merger`.

    Holds ``(channels + 1) · prod(shape)`` numbers of ``dtype``, for example 4 channels on 512×512×300: 1.6 GB. Where
    one window covers the whole grid, every output counts the same and no weights are held.

    Args:
        shape: the grid.
        channels: channels of the outputs.
        patch: the size of every window.
        dtype: in which sums are kept; float32 or wider, as the weights span e²⁴.
        peak: see `gaussian_weight`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        patch: Sequence[int],
        dtype: npt.DTypeLike = np.float32,
        peak: Literal["middle", "after"] = "middle",
    ) -> None:
        self._peak: Literal["middle", "after"] = peak
        self._shape = tuple(shape)
        self._patch = tuple(patch)
        self._finished = False
        self._covers = all(n <= p for n, p in zip(shape, patch, strict=True))
        self._sum: Array = np.zeros((channels, *self._shape), dtype)
        self._weight: Array = np.zeros((1,) * len(self._shape) if self._covers else self._shape, dtype)

    def add(self, output: Array, lower: Sequence[int]) -> None:
        """Take the output ``(C, *patch)`` of the window whose first voxel is ``lower``.

        Parts beyond the grid are left out. A window may come several times (mirrorings, members), each time in full.
        """
        if self._finished:
            raise RuntimeError("GaussianBlender.add after result: make a fresh blender for the next case")
        on_grid, in_window = overlap_slices(lower, self._patch, self._shape)
        part = output[(slice(None), *in_window)]
        if self._covers:
            self._sum += part
            self._weight += 1
            return
        weight = gaussian_weight(self._patch, self._peak)[in_window]
        self._sum[(slice(None), *on_grid)] += part * weight
        self._weight[on_grid] += weight

    def result(self) -> Array:
        """The merged ``(C, *shape)``, 0 where no window came. Divided in place: nothing can be added afterwards."""
        if not self._finished:
            self._finished = True
            np.divide(self._sum, self._weight, out=self._sum, where=self._weight > 0)
        return self._sum
