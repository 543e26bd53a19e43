"""Where windows of one size lie so that they cover a grid. Pure geometry: no pixels, no network, no loop over cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from medseg.data.resampling import Sliced
from medseg.errors import MedsegError
from medseg.volume import Array


def window_starts(
    shape: Sequence[int], patch: Sequence[int], overlap: float = 0.5, odd: Literal["before", "after"] = "before"
) -> list[tuple[int, ...]]:
    """The first voxel of each window, in the order of memory (last axis fastest).

    Windows are spread evenly, the first and the last flush with the border, neighbours sharing at least ``overlap`` of
    their length (less a voxel of rounding). Where the grid is smaller than the window, the only window is centred on
    it: its start is negative and it reaches beyond the grid on both sides, one voxel more on the side ``odd`` where the
    difference is odd (before it, as training crops do).

    Args:
        shape: voxels of the grid along each axis.
        patch: voxels of a window along each axis.
        overlap: share of a window, 0 up to but without 1.
        odd: on which side of a grid that is smaller than the window the odd voxel lies.

    Raises:
        MedsegError: ``overlap`` is out of range, or shape and patch have different numbers of axes.
    """
    if not 0 <= overlap < 1:
        raise MedsegError(
            f"overlap {overlap}: expected the share of a window that neighbours have in common, from 0 to below 1"
        )
    if len(shape) != len(patch) or min(*shape, *patch) < 1:
        raise MedsegError(
            f"windows {tuple(patch)} do not fit a grid {tuple(shape)}: expected one length ≥ 1 an axis in both"
        )
    return list(itertools.product(*(axis_starts(n, p, overlap, odd) for n, p in zip(shape, patch, strict=True))))


def axis_starts(length: int, window: int, overlap: float, odd: Literal["before", "after"] = "before") -> list[int]:
    """The first voxel of each window along one axis, as `window_starts` says."""
    if length <= window:
        return [(length - window) // 2 if odd == "before" else -((window - length) // 2)]
    steps = math.ceil((length - window) / max(window * (1 - overlap), 1.0) - 1e-9)
    return [round(i * (length - window) / steps) for i in range(steps + 1)]


def overlap_slices(
    lower: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a window that lies on the grid: as slices of the grid, and as slices of the window."""
    on_grid = tuple(slice(max(low, 0), min(low + n, s)) for low, n, s in zip(lower, size, shape, strict=True))
    in_window = tuple(slice(part.start - low, part.stop - low) for part, low in zip(on_grid, lower, strict=True))
    return on_grid, in_window


def cut_window(array: Sliced, lower: Sequence[int], size: Sequence[int], value: float = 0.0) -> Array:
    """The window ``(C, *size)`` of ``array`` ``(C, *S)`` from ``lower``; what lies beyond the array is ``value``.

    A view where the window lies inside, a copy otherwise.
    """
    on_grid, in_window = overlap_slices(lower, size, array.shape[1:])
    inside = array[(slice(None), *on_grid)]
    if inside.shape[1:] == tuple(size):
        return inside
    window = np.full((array.shape[0], *size), value, dtype=inside.dtype)
    window[(slice(None), *in_window)] = inside
    return window
