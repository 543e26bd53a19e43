"""Parts of a resampled array from parts of the old one: what a block, a slab or the box of a label needs, and no more.

One axis is a `Line`; a part of an array is resampled along one axis after the other, as in `medseg.volume.resample_array`. Knows
no plan and no scan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medseg.volume import Array, nearest_index, product_along, resample_array, resampling_matrix

Slices = tuple[slice, ...]


class Sliced(Protocol):
    """An array ``(C, *S)``, or what makes or holds its parts and is sliced like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, window: Slices, /) -> Array:
        """The part within ``window``: a slice of the channels and one an axis."""


@dataclass(frozen=True)
class Line:
    """Resampling along one axis, ``old`` voxels → ``new``, of which any part can be asked for."""

    old: int
    new: int
    order: int

    def touched(self, first: int, last: int) -> tuple[int, int]:
        """The old voxels that the new voxels ``[first, last)`` are made of."""
        if self.old == self.new:
            return first, last
        if self.order == 0:
            index = nearest_index(self.old, self.new)[first:last]
            return int(index[0]), int(index[-1]) + 1
        columns = np.flatnonzero(resampling_matrix(self.old, self.new, self.order)[first:last].any(axis=0))
        return int(columns[0]), int(columns[-1]) + 1

    def reached(self, first: int, last: int) -> tuple[int, int]:
        """The new voxels in which the old voxels ``[first, last)`` have a part; empty where they fall between."""
        if self.old == self.new:
            return first, last
        if self.order == 0:
            index = nearest_index(self.old, self.new)
            return int(np.searchsorted(index, first)), int(np.searchsorted(index, last))
        rows = np.flatnonzero(resampling_matrix(self.old, self.new, self.order)[:, first:last].any(axis=1))
        return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)

    def apply(self, array: Array, axis: int, first: int, last: int) -> Array:
        """``array`` holds the `touched` voxels along ``axis``; make the new voxels ``[first, last)`` of them."""
        if self.old == self.new:
            return array
        low, high = self.touched(first, last)
        if self.order == 0:
            return array.take(nearest_index(self.old, self.new)[first:last] - low, axis=axis)
        return product_along(array, resampling_matrix(self.old, self.new, self.order)[first:last, low:high], axis)


def resample_window(
    read: Callable[[Slices], Any], axes: Sequence[Line], first: Sequence[int], last: Sequence[int]
) -> Array:
    """The part ``[first, last)`` of a resampled array, float32, from the part that ``read`` gives of the old one."""
    touched = [line.touched(low, u) for line, low, u in zip(axes, first, last, strict=True)]
    part = np.asarray(read(tuple(slice(low, u) for low, u in touched)), np.float32)
    leading = part.ndim - len(axes)
    # The axes that grow least go first, so that the rest have less to do.
    for axis in sorted(range(len(axes)), key=lambda a: (last[a] - first[a]) / part.shape[leading + a]):
        part = axes[axis].apply(part, leading + axis, first[axis], last[axis])
    return part


def resample_labels(
    labels: Array, boxes: Sequence[Slices | None], shape: tuple[int, ...], order: Sequence[int]
) -> Array:
    """``(*S)`` int16 labels → ``shape``: the label with the largest share of each new voxel.

    Each label is looked at only where it reaches, so that a hundred organs cost little more than one. ``boxes`` are those of
    ``scipy.ndimage.find_objects``.
    """
    if not any(order):
        return resample_array(labels, shape, 0)
    axes = [Line(old, new, o) for old, new, o in zip(labels.shape, shape, order, strict=True)]
    reached = {}
    for value, box in enumerate(boxes, 1):
        if box is not None:
            spans = [line.reached(s.start, s.stop) for line, s in zip(axes, box, strict=True)]
            if all(low < u for low, u in spans):
                reached[value] = spans
    result = np.zeros(shape, np.int16)
    if not reached:
        return result
    # Beyond the box of all labels is background, and nothing is compared there.
    start = [min(spans[axis][0] for spans in reached.values()) for axis in range(len(axes))]
    end = [max(spans[axis][1] for spans in reached.values()) for axis in range(len(axes))]
    chosen = result[tuple(map(slice, start, end))]
    best = np.zeros(chosen.shape, np.float32)
    taken = np.zeros(chosen.shape, np.float32)
    for value, spans in reached.items():
        first, last = [low for low, _ in spans], [u for _, u in spans]
        share = resample_window(lambda part, v=value: labels[part] == v, axes, first, last)  # type: ignore[misc]
        window = tuple(slice(low - s, u - s) for (low, u), s in zip(spans, start, strict=True))
        better = share > best[window] + 1e-6
        chosen[window][better] = value
        np.maximum(best[window], share, out=best[window])
        taken[window] += share
    # Shares sum to one, so what the labels leave is background's.
    chosen[best < 1 - taken - 1e-6] = 0
    return result
