"""Blending gives back what the windows agree on, weighs the middle more, and leaves out what lies beyond the grid."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.tiling.blending import GaussianBlender, gaussian_weight
from medseg.tiling.windows import cut_window, window_starts

GRIDS = [((40, 33), (16, 16)), ((17, 30, 23), (16, 16, 8)), ((5, 40, 12), (16, 16, 16)), ((9, 7), (16, 16))]


def test_the_weight_is_a_separable_gaussian_whose_sigma_is_an_eighth_of_the_window():
    weight = gaussian_weight((17, 9))
    assert weight.dtype == np.float32
    assert weight.shape == (17, 9)
    assert weight[8, 4] == 1 == weight.max()
    assert (weight > 0).all()
    np.testing.assert_allclose(weight, weight[:, 4:5] * weight[8:9, :], rtol=1e-6)
    np.testing.assert_allclose(weight[8 + 4, 4], np.exp(-0.5 * (4 / (17 / 8)) ** 2), rtol=1e-6)
    np.testing.assert_array_equal(weight, weight[::-1, ::-1])


def test_the_weight_of_a_large_3d_corner_is_no_zero():
    assert gaussian_weight((128, 128, 128))[0, 0, 0] > 1e-12


@pytest.mark.parametrize(("shape", "patch"), GRIDS)
def test_windows_of_one_array_blend_into_that_array(shape, patch):
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    blender = GaussianBlender(shape, 2, patch)
    for start in window_starts(shape, patch, 0.5):
        blender.add(cut_window(array, start, patch), start)
    np.testing.assert_allclose(blender.result(), array, rtol=1e-4, atol=1e-5)


def test_a_voxel_belongs_most_to_the_window_in_whose_middle_it_lies():
    blender = GaussianBlender((24,), 1, (16,))
    blender.add(np.zeros((1, 16), np.float32), (0,))
    blender.add(np.ones((1, 16), np.float32), (8,))
    line = blender.result()[0]
    assert (np.diff(line) >= 0).all()
    assert line[0] == 0
    assert line[-1] == 1
    assert line[8] < 0.1
    assert line[15] > 0.9


def test_outputs_of_a_window_that_covers_the_grid_are_averaged_evenly():
    blender = GaussianBlender((4, 5), 1, (8, 8))
    for value in (1.0, 2.0, 6.0):
        blender.add(np.full((1, 8, 8), value, np.float32), (-2, -2))
    np.testing.assert_array_equal(blender.result(), np.full((1, 4, 5), 3.0))


def test_where_no_window_came_the_result_is_zero_and_asking_twice_changes_nothing():
    blender = GaussianBlender((20,), 1, (8,))
    blender.add(np.ones((1, 8), np.float32), (0,))
    first = blender.result().copy()
    assert first[0, :8] == pytest.approx(1.0)
    assert (first[0, 8:] == 0).all()
    np.testing.assert_array_equal(blender.result(), first)
    with pytest.raises(RuntimeError, match="after result"):
        blender.add(np.ones((1, 8), np.float32), (0,))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_that_roll_along_hold_what_the_whole_holds(axis):
    shape, patch = (30, 22, 26), (8, 8, 8)
    rng = np.random.default_rng(0)
    box = [slice(2, 20), slice(0, 22), slice(5, 26)]
    box[axis] = slice(0, 10)
    rolling, whole = GaussianBlender(shape, 2, patch, box=box), GaussianBlender(shape, 2, patch)
    assert rolling.shape == (2, *shape)
    starts = sorted(window_starts(shape, patch, 0.5), key=lambda lower: (lower[axis], lower))
    outputs = {lower: rng.normal(size=(2, *patch)).astype(np.float32) for lower in starts}
    for lower in starts:
        whole.add(outputs[lower], lower)
    expected = whole.result()
    seen = 0
    for lower in starts:
        if lower[axis] > seen:
            window = [slice(part.start, part.stop) for part in box]
            window[axis] = slice(seen, lower[axis])
            place = (slice(None), *window)
            np.testing.assert_array_equal(rolling[place], expected[place])
            seen = lower[axis]
            rolling.roll(axis, seen)
        rolling.add(outputs[lower], lower)


def test_the_peak_may_lie_half_a_voxel_after_the_middle():
    """nnU-Net's Gaussian has its top on voxel n // 2; for odd lengths both are the same."""
    assert gaussian_weight((8,), "after").argmax() == 4
    np.testing.assert_allclose(gaussian_weight((8,), "after")[1:], gaussian_weight((8,), "after")[:0:-1])
    np.testing.assert_array_equal(gaussian_weight((7,), "after"), gaussian_weight((7,)))
