"""A route covers the scan once, keeps to its budget where it can, and says what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medseg.data.resampling import Line
from medseg.tiling.route import box, find_route
from medseg.tiling.windows import window_starts


def lines(plan: tuple[int, ...], scan: tuple[int, ...]) -> list[Line]:
    return [Line(old, new, 1) for old, new in zip(plan, scan, strict=True)]


GRIDS = [((60, 40, 50), (60, 40, 50)), ((33, 70, 20), (80, 50, 41)), ((9, 50), (30, 77))]


@pytest.mark.parametrize(("plan", "scan"), GRIDS)
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_tiles_cover_each_voxel_of_the_scan_once_and_hold_what_it_is_made_of(plan, scan, share):
    patch = (16,) * len(plan)
    most = find_route(lines(plan, scan), patch, 0.5, channels=1, outputs=5, budget=1e12)
    route = find_route(lines(plan, scan), patch, 0.5, channels=1, outputs=5, budget=share * most.bytes)
    seen = np.zeros(scan, int)
    for tile in route.tiles:
        seen[box(tile, "out")] += 1
        for line, span in zip(lines(plan, scan), tile, strict=True):
            low, high = line.touched(span.out.start, span.out.stop)
            assert span.held.start <= low and high <= span.held.stop
            assert span.read.start <= max(min(span.starts), 0) and span.read.stop >= span.held.stop
    assert (seen == 1).all()
    starts = window_starts(plan, patch, 0.5)
    assert route.distinct == len(starts)
    assert route.windows == sum(math.prod(len(span.starts) for span in tile) for tile in route.tiles)
    assert route.windows >= route.distinct


def test_every_window_that_reaches_a_voxel_is_among_those_of_its_tile():
    plan, patch = (50, 40, 64), (16, 16, 16)
    route = find_route(lines(plan, plan), patch, 0.5, channels=1, outputs=9, budget=0)
    starts = window_starts(plan, patch, 0.5)
    for tile in route.tiles:
        held = box(tile, "held")
        expected = {
            start for start in starts if all(s < h.stop and s + 16 > h.start for s, h in zip(start, held, strict=True))
        }
        mine = {(a, b, c) for a in tile[0].starts for b in tile[1].starts for c in tile[2].starts}
        assert expected == mine


def test_a_budget_is_kept_and_the_cheapest_route_within_it_is_taken():
    grid, patch = lines((96, 96, 100), (96, 96, 100)), (16, 16, 16)
    bytes_and_windows = []
    for budget in (1e12, 1.5e7, 8e6, 5e6):
        route = find_route(grid, patch, 0.5, channels=1, outputs=20, budget=budget)
        assert route.bytes <= budget
        bytes_and_windows.append((route.bytes, route.windows))
    assert bytes_and_windows == sorted(bytes_and_windows, key=lambda pair: (-pair[0], pair[1]))
    assert len({windows for _, windows in bytes_and_windows}) == 4


def test_rows_run_along_the_axis_that_has_most_windows():
    route = find_route(lines((50, 60, 300), (50, 60, 300)), (16, 16, 16), 0.5, channels=1, outputs=2, budget=1e12)
    assert route.axis == 2 and route.rows == 18
    assert route.bytes == 4 * (3 * 18 * 50 * 60 + 3 * 18 * 50 * 60)


def test_a_scan_of_one_window_is_one_tile_of_it():
    route = find_route(lines((5, 8, 7), (5, 8, 7)), (8, 8, 8), 0.5, channels=1, outputs=2, budget=0)
    assert route.windows == route.distinct == 1
    assert route.tiles[0][0].starts == (-2,) or route.tiles[0][0].starts == (-1,)
