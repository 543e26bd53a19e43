"""How the score of a whole case is made of windows, so that maps of windows add up to its map without seams.

Prediction blends windows with Gaussian weights m, whose sum is M: done with logits ℓ, that of the case at voxel v is
Σ_w m_w(v)/M(v) · ℓ_w(v). Its mean over a region R is a sum over windows too,

    Σ_w  share_w · [mean of ℓ_w weighted with m_w/M inside R],      share_w = Σ_{v∈R} m_w(v)/M(v) / |R|,

and so is its gradient: parts of windows are added as they are, none is normalised by itself. Of a box, whose score is not dense,
the windows that hold its centre have shares by their weight there. Of a class, every window has the same. Pure geometry: knows
tasks by name only, and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.lesions import bounding_box
from medseg.explain.targets import voxels_of
from medseg.networks.anchor_grid import AnchorGrid
from medseg.planning.plan import Plan
from medseg.tiling.blending import gaussian_weight
from medseg.tiling.windows import cut_window, overlap_slices, window_starts
from medseg.volume import Array

NEGLIGIBLE = 1e-4
"""A window with less than this part of the largest share is left out: one whose far corner touches the region."""


@dataclass(frozen=True, eq=False)
class Share:
    """What one window contributes to the score of a case.

    Args:
        lower: the first voxel of the window.
        weight: of the window's score in the sum.
        region: makes what `Task.score` is to look at, ``(1, *patch)`` float32 of 0…1, or None; made anew each time, as all of
            them would fill the memory.
    """

    lower: tuple[int, ...]
    weight: float
    region: Callable[[], Array | None]


class Stitching:
    """The windows of a case on the plan's grid, those of prediction.

    Args:
        plan: gives the window's size.
        shape: of the case on the plan's grid.
        overlap: what neighbouring windows share at least.
    """

    def __init__(self, plan: Plan, shape: tuple[int, ...], overlap: float) -> None:
        self.plan, self.shape, self.patch = plan, shape, plan.patch_size
        self.starts = window_starts(shape, plan.patch_size, overlap, plan.odd_padding)
        self._gaussian = gaussian_weight(self.patch, plan.peak)

    def shares(self, task: str, region: Array | None) -> list[Share]:
        """The windows that a score is made of.

        Args:
            task: the task's name.
            region: ``shape``, above 0 where the score is taken (its value is a weight in a mean); None for everywhere.

        Raises:
            MedsegError: the region is empty or lies on another grid, or a detector is asked about no box in particular.
        """
        if task == "classification":
            return [Share(lower, 1 / len(self.starts), lambda: None) for lower in self.starts]
        if region is not None and region.shape != self.shape:
            raise MedsegError(f"explain: expected a region on the plan's grid {self.shape}, found {region.shape}")
        if region is not None and not (region > 0).any():
            raise MedsegError("explain: the region is empty; expected at least one voxel above 0")
        if task != "detection":
            return self._of_region(np.ones(self.shape, np.float32) if region is None else region)
        if region is None:
            raise MedsegError("explain: a detector is asked about a box; expected its voxels as a region, found none")
        return self._of_box(region)

    def blend(self, lower: tuple[int, ...]) -> Array:
        """``patch`` float32: which part of the case's value at each voxel comes from this window; 0 beyond the grid."""
        on_grid, in_window = overlap_slices(lower, self.patch, self.shape)
        part = np.zeros(self.patch, np.float32)
        part[in_window] = 1.0 if self._weight is None else self._gaussian[in_window] / self._weight[on_grid]
        return part

    def add(self, total: Array, part: Array, lower: tuple[int, ...]) -> None:
        """Add what was found in a window, ``patch``, to ``total`` ``shape``; what lies beyond the grid is left out."""
        on_grid, in_window = overlap_slices(lower, self.patch, self.shape)
        total[on_grid] += part[in_window]

    @cached_property
    def _weight(self) -> Array | None:
        """The sum of all windows' weights; None for a single window, whose voxels all count the same."""
        if len(self.starts) == 1:
            return None
        total = np.zeros(self.shape, np.float32)
        for lower in self.starts:
            self.add(total, self._gaussian, lower)
        return total

    def _of_region(self, region: Array) -> list[Share]:
        whole = float(region.sum(dtype=np.float64))
        shares = []
        for lower in self.starts:
            on_grid, _ = overlap_slices(lower, self.patch, self.shape)
            if (region[on_grid] > 0).any():
                weight = float((self.blend(lower) * self._cut(region, lower)).sum(dtype=np.float64)) / whole
                shares.append(Share(lower, weight, partial(self._weighted, region, lower)))
        return _telling(shares)

    def _weighted(self, region: Array, lower: tuple[int, ...]) -> Array:
        """The largest weight is 1, so that a mean over little weight stays a mean (`tasks.base.spatial_mean`)."""
        values = self.blend(lower) * self._cut(region, lower)
        return np.asarray(values / values.max(), np.float32)[None]

    def _of_box(self, region: Array) -> list[Share]:
        box = self._box_of(region)
        low, high = np.split(box, 2)
        centre = ((low + high) / 2).astype(int)
        weights = {}
        for lower in self.starts:
            place = tuple(int(c - first) for c, first in zip(centre, lower, strict=True))
            if all(0 <= at < size for at, size in zip(place, self.patch, strict=True)):
                weights[lower] = float(self._gaussian[place])
        whole = sum(weights.values())
        return _telling(
            Share(lower, weight / whole, partial(self._boxed, box, lower)) for lower, weight in weights.items()
        )

    def _box_of(self, region: Array) -> Array:
        """The box around the region, at least a cell of the detector's finest level about its centre: that cell's is inside."""
        window = bounding_box(region > 0)
        if window is None or self.plan.boxes is None:
            raise MedsegError("explain: expected the region of a box and a plan of a detector")
        low, high = (np.array([getattr(side, end) for side in window], np.float64) for end in ("start", "stop"))
        cell = np.array(AnchorGrid.of(self.plan.strides, self.plan.boxes.levels).strides[0]) / 2
        centre = (low + high) / 2
        return np.concatenate([np.minimum(low, centre - cell), np.maximum(high, centre + cell)])

    def _boxed(self, box: Array, lower: tuple[int, ...]) -> Array:
        return voxels_of(box - np.tile(lower, 2), self.patch)[None].astype(np.float32)

    def _cut(self, region: Array, lower: tuple[int, ...]) -> Array:
        return cut_window(np.asarray(region, np.float32)[None], lower, self.patch)[0]


def _telling(shares: Iterable[Share]) -> list[Share]:
    """Without those that are `NEGLIGIBLE`."""
    shares = list(shares)
    least = NEGLIGIBLE * max(share.weight for share in shares)
    return [share for share in shares if share.weight > least]
