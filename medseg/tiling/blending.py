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

    Holds ``(channels + 1) · prod(shape)`` numbers of ``dtype``, for example 4 channels on 512×512×300: 1.6 GB; with ``box``,
    those of a part of the grid alone, which `roll` may move along. Where one window covers the whole grid, every output counts
    the same.

    Args:
        shape: the grid.
        channels: channels of the outputs.
        patch: the size of every window.
        dtype: in which sums are kept; float32 or wider, as the weights span e²⁴.
        peak: see `gaussian_weight`.
        box: the part of the grid that is held, a slice an axis; None for all of it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        patch: Sequence[int],
        dtype: npt.DTypeLike = np.float32,
        *,
        peak: Literal["middle", "after"] = "middle",
        box: Sequence[slice] | None = None,
    ) -> None:
        self._peak: Literal["middle", "after"] = peak
        self.shape = (channels, *shape)
        box = [slice(0, n) for n in shape] if box is None else box
        self._patch = tuple(patch)
        self._origin = [part.start for part in box]
        self._size = tuple(part.stop - part.start for part in box)
        self._finished = False
        self._covers = all(n <= p for n, p in zip(shape, patch, strict=True))
        self._sum: Array = np.zeros((channels, *self._size), dtype)
        self._weight: Array = np.zeros(self._size, dtype)

    def add(self, output: Array, lower: Sequence[int]) -> None:
        """Take the output ``(C, *patch)`` of the window whose first voxel is ``lower``.

        Parts beyond what is held are left out. A window may come several times (mirrorings, members), each time in full.
        """
        if self._finished:
            raise RuntimeError("GaussianBlender.add after result: make a fresh blender for the next case")
        place = [low - origin for low, origin in zip(lower, self._origin, strict=True)]
        here, in_window = overlap_slices(place, self._patch, self._size)
        if any(part.start >= part.stop for part in here):
            return
        weight = np.float32(1) if self._covers else gaussian_weight(self._patch, self._peak)[in_window]
        for total, values in zip(self._sum, output, strict=True):  # what is multiplied then stays in the cache
            total[here] += values[in_window] * weight
        self._weight[here] += weight

    def roll(self, axis: int, first: int) -> None:
        """Hold as many rows of ``axis`` as before, from ``first`` on: earlier ones are forgotten, new ones are empty."""
        step = min(first - self._origin[axis], self._size[axis])
        if step <= 0:
            return
        before = (slice(None),) * axis
        kept, moved = (*before, slice(0, self._size[axis] - step)), (*before, slice(step, None))
        for values in (*self._sum, self._weight):  # one at a time, as the overlap makes numpy copy what it moves
            values[kept] = values[moved]
            values[(*before, slice(self._size[axis] - step, None))] = 0
        self._origin[axis] = first

    def __getitem__(self, window: tuple[slice, ...]) -> Array:
        """The mean ``(channels, *window)`` of what came so far, 0 where no window came; the first slice is of the channels."""
        here = tuple(
            slice(part.start - origin, part.stop - origin)
            for part, origin in zip(window[1:], self._origin, strict=True)
        )
        weight = self._weight[here]
        found = self._sum[(window[0], *here)]
        return np.divide(found, weight, out=np.zeros_like(found), where=weight > 0)

    def result(self) -> Array:
        """The merged ``(C, *shape)``, 0 where no window came. Divided in place: nothing can be added afterwards."""
        if not self._finished:
            self._finished = True
            np.divide(self._sum, self._weight, out=self._sum, where=self._weight > 0)
        return self._sum
