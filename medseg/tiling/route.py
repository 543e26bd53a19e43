"""In which order the windows of a case are gone through, so that the sums they add to stay within a budget. Pure geometry.

Windows come in order along one axis, the one along which a window is smallest beside the grid. Behind the last of them rows are
finished, and can be forgotten once they are decoded:

    rows      0 ─────────────── decoded ──┤ held: sums still change ├── not begun ───── n
                                          └ a window's length + 2 ──┘

Where even these rows are too many numbers (a hundred labels on 1024×1024), the other axes are cut into tiles that are gone
through one after another. A window that reaches over the edge of a tile is then asked in both: that is the price, and `windows`
beside `distinct` says how high it is. Every voxel still gets the same windows in the same order, hence the same sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from medseg.data.resampling import Line, Slices
from medseg.tiling.windows import axis_starts

_HALO = 2
"""Rows beyond a window that are held too: what linear interpolation still looks at."""
_BYTES = 4


@dataclass(frozen=True)
class Span:
    """A tile along one axis.

    Args:
        out: the voxels of the scan that it decodes, among those kept.
        held: the voxels of the plan's grid that these are made of.
        read: the voxels of the plan's grid that its windows see.
        starts: the first voxel of each of its windows.
    """

    out: slice
    held: slice
    read: slice
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Route:
    """Tiles, one after the other, each from its first window along ``axis`` to its last.

    Args:
        axis: along which rows are finished.
        rows: how many of them are held at once.
        spans: for each axis its tiles; a single one along ``axis``.
        distinct: windows of the case.
        channels: of the scan.
        outputs: of the network.
    """

    axis: int
    rows: int
    spans: tuple[tuple[Span, ...], ...]
    distinct: int
    channels: int
    outputs: int

    @property
    def tiles(self) -> list[tuple[Span, ...]]:
        return list(itertools.product(*self.spans))

    @cached_property
    def windows(self) -> int:
        """Windows that are gone through, those of two tiles counted twice."""
        return math.prod(_windows(spans) for spans in self.spans)

    @cached_property
    def bytes(self) -> int:
        """What is in memory at most."""
        across = [_widest(spans) for axis, spans in enumerate(self.spans) if axis != self.axis]
        return _bytes(self.rows, across, self.channels, self.outputs)


def find_route(
    lines: Sequence[Line],
    patch: Sequence[int],
    overlap: float,
    *,
    channels: int,
    outputs: int,
    budget: float,
    odd: Literal["before", "after"] = "before",
) -> Route:
    """The route with the fewest windows that holds at most ``budget`` bytes; where none does, the one that holds least.

    Args:
        lines: the way from the plan's grid to what was kept of the scan, an axis each.
        patch: the size of a window.
        overlap: what neighbouring windows share at least.
        channels: of the scan.
        outputs: of the network.
        odd: as for `medseg.tiling.windows.window_starts`.
    """
    starts = [axis_starts(line.old, size, overlap, odd) for line, size in zip(lines, patch, strict=True)]
    axis = max(range(len(lines)), key=lambda a: lines[a].old / patch[a])
    rows = min(lines[axis].old, patch[axis] + _HALO)
    distinct = math.prod(map(len, starts))
    counts = [1 if a == axis else len(first) for a, first in enumerate(starts)]
    ways = [
        [_spans(line, size, first, count) for count in range(1, most + 1)]
        for line, size, first, most in zip(lines, patch, starts, counts, strict=True)
    ]
    costs = [[(_windows(spans), *_widest(spans)) for spans in way] for way in ways]

    def rank(choice: Sequence[int]) -> tuple[bool, int, int]:
        chosen = [cost[number] for cost, number in zip(costs, choice, strict=True)]
        across = [(held, read) for a, (_, held, read) in enumerate(chosen) if a != axis]
        needed, windows = _bytes(rows, across, channels, outputs), math.prod(cost[0] for cost in chosen)
        return needed > budget, windows if needed <= budget else needed, sum(choice)

    best = min(itertools.product(*(range(len(way)) for way in ways)), key=rank)
    spans = tuple(way[number] for way, number in zip(ways, best, strict=True))
    return Route(axis, rows, spans, distinct, channels, outputs)


def _spans(line: Line, size: int, starts: Sequence[int], count: int) -> tuple[Span, ...]:
    """The axis cut into ``count`` tiles, where windows begin, as few of them then reach into two."""
    cuts = [starts[n * len(starts) // count] for n in range(1, count)]
    edges = [0, *(math.ceil(cut * line.new / line.old) for cut in cuts), line.new]
    return tuple(_span(line, size, starts, *pair) for pair in itertools.pairwise(edges) if pair[0] < pair[1])


def _span(line: Line, size: int, starts: Sequence[int], first: int, last: int) -> Span:
    low, high = line.touched(first, last)
    mine = tuple(start for start in starts if start < high and start + size > low)
    read = slice(max(mine[0], 0), min(mine[-1] + size, line.old))
    return Span(slice(first, last), slice(low, high), read, mine)


def _windows(spans: Sequence[Span]) -> int:
    return sum(len(span.starts) for span in spans)


def _widest(spans: Sequence[Span]) -> tuple[int, int]:
    """The most voxels that a tile holds, and that its windows see."""
    return max(s.held.stop - s.held.start for s in spans), max(s.read.stop - s.read.start for s in spans)


def _bytes(rows: int, across: Sequence[tuple[int, int]], channels: int, outputs: int) -> int:
    """The sums and weights of the held rows, and the rows of the scan that windows see: once as they are, and twice while they
    grow and are resampled."""
    sums = (outputs + 1) * rows * math.prod(held for held, _ in across)
    return _BYTES * (sums + 3 * channels * rows * math.prod(read for _, read in across))


def box(spans: Sequence[Span], part: str) -> Slices:
    """The ``out``, ``held`` or ``read`` of a tile, a slice an axis."""
    return tuple(getattr(span, part) for span in spans)
