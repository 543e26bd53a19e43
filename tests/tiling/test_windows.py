"""Windows cover every voxel, end flush with the border, and are centred on what is smaller than them."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.tiling.windows import cut_window, overlap_slices, window_starts

GRIDS = [
    ((40, 33), (16, 16)),
    ((16, 16), (16, 16)),
    ((17, 50, 23), (16, 16, 8)),
    ((5, 40, 16), (16, 16, 16)),
    ((100,), (7,)),
    ((1, 1, 1), (4, 4, 4)),
]


@pytest.mark.parametrize(("shape", "patch"), GRIDS)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_every_voxel_is_covered_and_the_last_window_ends_at_the_border(shape, patch, overlap):
    covered = np.zeros(shape, int)
    starts = window_starts(shape, patch, overlap)
    for start in starts:
        covered[overlap_slices(start, patch, shape)[0]] += 1
    assert covered.min() >= 1
    for axis, (n, p) in enumerate(zip(shape, patch, strict=True)):
        if n >= p:
            assert min(s[axis] for s in starts) == 0
            assert max(s[axis] for s in starts) == n - p


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_neighbours_share_what_was_asked_for_within_a_voxel_and_no_window_comes_twice(overlap):
    starts = [s[0] for s in window_starts((131,), (32,), overlap)]
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert steps.max() <= 32 * (1 - overlap) + 1


def test_a_window_larger_than_the_grid_is_centred_on_it():
    assert window_starts((10, 16), (16, 16)) == [(-3, 0)]
    assert window_starts((11,), (16,)) == [(-3,)]


def test_a_window_beyond_the_array_is_filled_and_one_inside_is_a_view():
    array = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    window = cut_window(array, (-1, 2), (5, 4), value=-9)
    assert window.shape == (1, 5, 4)
    assert (window[0, 1:4, :2] == array[0, :, 2:]).all()
    assert (window[0, 0] == -9).all()
    assert (window[0, :, 2:] == -9).all()
    assert np.shares_memory(cut_window(array, (1, 1), (2, 2)), array)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_an_impossible_overlap_is_named(overlap):
    with pytest.raises(MedsegError, match="overlap"):
        window_starts((10,), (4,), overlap)


def test_a_window_with_other_axes_than_the_grid_is_refused():
    with pytest.raises(MedsegError, match="do not fit"):
        window_starts((10, 10), (4,))


def test_the_odd_voxel_of_padding_lies_where_it_is_wanted():
    assert window_starts((5, 6), (8, 8)) == [(-2, -1)]
    assert window_starts((5, 6), (8, 8), odd="after") == [(-1, -1)]
