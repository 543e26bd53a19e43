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
        return math.prod(sum(len(span.starts) for span in spans) for spans in self.spans)

    @cached_property
    def bytes(self) -> int:
        """What is in memory at most: the sums and weights of the held rows, and the rows of the scan that windows see, once as
        they are and once while they grow."""
        across = [spans for axis, spans in enumerate(self.spans) if axis != self.axis]
        sums = (self.outputs + 1) * self.rows * math.prod(max(map(_held, spans)) for spans in across)
        seen = 3 * self.channels * self.rows * math.prod(max(map(_read, spans)) for spans in across)
        return _BYTES * (sums + seen)


def find_route(
    lines: Sequence[Line], patch: Sequence[int], overlap: float, *, channels: int, outputs: int, budget: float
) -> Route:
    """The route with the fewest windows that holds at most ``budget`` bytes; where none does, the one that holds least.

    Args:
        lines: the way from the plan's grid to what was kept of the scan, an axis each.
        patch: the size of a window.
        overlap: what neighbouring windows share at least.
        channels: of the scan.
        outputs: of the network.
    """
    starts = [axis_starts(line.old, size, overlap) for line, size in zip(lines, patch, strict=True)]
    axis = max(range(len(lines)), key=lambda a: lines[a].old / patch[a])
    rows = min(lines[axis].old, patch[axis] + _HALO)
    distinct = math.prod(map(len, starts))
    choices = [
        [_spans(line, size, first, count) for count in range(1, 1 if a == axis else len(first) + 1)]
        or [_spans(line, size, first, 1)]
        for a, (line, size, first) in enumerate(zip(lines, patch, starts, strict=True))
    ]
    routes = (Route(axis, rows, spans, distinct, channels, outputs) for spans in itertools.product(*choices))
    return min(routes, key=lambda r: (r.bytes > budget, r.windows if r.bytes <= budget else r.bytes, len(r.tiles)))


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


def _held(span: Span) -> int:
    return span.held.stop - span.held.start


def _read(span: Span) -> int:
    return span.read.stop - span.read.start


def box(spans: Sequence[Span], part: str) -> Slices:
    """The ``out``, ``held`` or ``read`` of a tile, a slice an axis."""
    return tuple(getattr(span, part) for span in spans)
