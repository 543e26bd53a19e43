"""A case from the plan's grid to its mask on the scan's own grid, holding no more than a `Route` says.

Windows are cut from rows of the scan that are made when they are needed, their answers are added up, and rows that are finished
are decoded block by block: neither the scores on the plan's grid nor those on the scan's are ever whole. Knows no file.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from medseg.data.preprocess import MaskOnScan, Restoration
from medseg.data.resampling import Sliced, Slices
from medseg.inference.answers import Answers
from medseg.tasks.base import DenseTask
from medseg.tiling.route import Route, Span, box
from medseg.tiling.windows import cut_window
from medseg.volume import Array


def sweep(
    scan: Sliced,
    restoration: Restoration,
    task: DenseTask,
    answers: Answers,
    route: Route,
    *,
    patch: Sequence[int],
    batch_size: int = 1,
    on_window: Callable[[int, int], None] | None = None,
) -> Array:
    """The mask of a case.

    Args:
        scan: ``(C, *S)`` float32 on the plan's grid, or what makes its parts (`medseg.data.preprocess.PlannedScan`).
        restoration: the way to the scan's own grid.
        answers: scores ``(K, *patch)`` of windows.
        route: made for this grid and this ``patch``.
        batch_size: windows that go through a network at once.
        on_window: called with (windows done, all windows) after each batch, for a progress bar.

    Returns:
        ``restoration.scan.shape`` labels.
    """
    canvas = MaskOnScan(restoration, task.values)
    done = 0
    for tile in route.tiles:
        strip = _Strip(scan, restoration, task, patch, route, tile)
        for start, windows in itertools.groupby(strip.windows, key=lambda lower: lower[route.axis]):
            strip.paint(canvas, start)
            strip.advance(start)
            row = list(windows)
            for lowers in (row[first : first + batch_size] for first in range(0, len(row), batch_size)):
                for answer, lower in zip(answers([strip.cut(lower) for lower in lowers]), lowers, strict=True):
                    strip.add(answer, lower)
                done += len(lowers)
                if on_window is not None:
                    on_window(done, route.windows)
        strip.paint(canvas, restoration.shape[route.axis])
    return canvas.mask


class _Strip:
    """One tile, gone through from its first row to its last: the rows of the scan and of the sums that are in memory."""

    def __init__(
        self,
        scan: Sliced,
        restoration: Restoration,
        task: DenseTask,
        patch: Sequence[int],
        route: Route,
        tile: Sequence[Span],
    ) -> None:
        self._axis, self._patch, self._tile = route.axis, tuple(patch), tile
        self._line = restoration.lines[route.axis]
        self._painted = 0
        self._scan = _HeldRows(scan, route.axis, box(tile, "read"))
        held = list(box(tile, "held"))
        held[route.axis] = slice(0, route.rows)
        self._sums = task.merger(restoration.shape, patch, box=held)

    @property
    def windows(self) -> list[tuple[int, ...]]:
        """The first voxel of each window, those that begin on the same row together."""
        return sorted(
            itertools.product(*(span.starts for span in self._tile)), key=lambda lower: (lower[self._axis], lower)
        )

    def paint(self, canvas: MaskOnScan, upto: int) -> None:
        """Decode what is made of the rows before ``upto``, to which no window will come."""
        end = bisect.bisect_right(range(self._line.new), upto, key=lambda row: self._line.touched(row, row + 1)[1])
        if end > self._painted:
            out = list(box(self._tile, "out"))
            out[self._axis] = slice(self._painted, end)
            canvas.paint(self._sums, [part.start for part in out], [part.stop for part in out])
            self._painted = end

    def advance(self, start: int) -> None:
        """Hold the rows that windows from ``start`` on need, and those that are not decoded yet; forget the others."""
        if self._painted < self._line.new:
            self._sums.roll(self._axis, min(max(start, 0), self._line.touched(self._painted, self._painted + 1)[0]))
        self._scan.hold(max(start, 0), min(start + self._patch[self._axis], self._line.old))

    def cut(self, lower: Sequence[int]) -> Array:
        return cut_window(self._scan, lower, self._patch)

    def add(self, answer: Array, lower: Sequence[int]) -> None:
        self._sums.add(answer, lower)


class _HeldRows:
    """Rows of a scan within a box, each made once and held while windows see it; sliced like the scan itself."""

    def __init__(self, scan: Sliced, axis: int, within: Slices) -> None:
        self._scan, self._axis, self._within = scan, axis, within
        self._rows = slice(0, 0)
        self._held: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._scan.shape

    def hold(self, first: int, last: int) -> None:
        """Hold the rows ``[first, last)``, which never go back; all of them at once where the scan is made already."""
        if isinstance(self._scan, np.ndarray):
            first, last = 0, self._scan.shape[1 + self._axis]
        if last <= self._rows.stop:
            return
        new = self._made(slice(max(first, self._rows.stop), last))
        if self._held is not None and first < self._rows.stop:
            old = self._held[(slice(None),) * (1 + self._axis) + (slice(first - self._rows.start, None),)]
            new = np.concatenate([old, new], axis=1 + self._axis)
        self._held, self._rows = new, slice(first, last)

    def _made(self, rows: slice) -> Array:
        window = list(self._within)
        window[self._axis] = rows
        return self._scan[(slice(None), *window)]

    def __getitem__(self, window: Slices) -> Array:
        held = list(self._within)
        held[self._axis] = self._rows
        inside = (slice(w.start - h.start, w.stop - h.start) for w, h in zip(window[1:], held, strict=True))
        if self._held is None:
            raise RuntimeError("rows are held before they are cut")
        return self._held[(window[0], *inside)]
