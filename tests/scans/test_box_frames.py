from __future__ import annotations

import itertools

import numpy as np
import pytest

from medseg.scans.box_frames import grid_boxes, moved, world_boxes, world_extent
from medseg.volume import Geometry, reorientation_to

SCAN = Geometry((4, 5, 6), np.array([[0, -0.7, 0, 11], [0.9, 0, 0, -7], [0, 0, 3.0, 5], [0, 0, 0, 1]]))
BOXES = np.array([[0, 0, 0, 4, 5, 6], [1, 2.5, 3, 2, 4, 5.25]])
ORIENTATIONS = [
    "".join(code)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for code in itertools.product(*axes)
]  # fmt: skip


def test_edges_lie_half_a_voxel_beside_centres() -> None:
    line = Geometry.from_spacing((10, 10), (2.0, 0.5))
    np.testing.assert_allclose(world_boxes(np.array([[3.0, 4, 5, 6]]), line), [[5, 1.75, 9, 2.75]])
    np.testing.assert_allclose(world_extent(line), [-1, -0.25, 19, 4.75])


def test_the_world_and_back_is_the_same_box_where_axes_are_permuted() -> None:
    np.testing.assert_array_equal(grid_boxes(world_boxes(BOXES, SCAN), SCAN), BOXES)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_box_holds_the_same_voxels_in_every_orientation(codes: str) -> None:
    turn = reorientation_to(SCAN, codes)
    turned = turn.apply_to_geometry(SCAN)
    there = moved(BOXES, SCAN, turned)
    marked = np.zeros(SCAN.shape, bool)
    marked[1:2, 3:4, 3:5] = True
    lower, upper = (
        np.rint(end).astype(int) for end in moved(np.array([[1.0, 3, 3, 2, 4, 5]]), SCAN, turned).reshape(2, 3)
    )
    expected = np.argwhere(turn.apply(marked))
    assert expected.min(0).tolist() == lower.tolist()
    assert (expected.max(0) + 1).tolist() == upper.tolist()
    np.testing.assert_array_equal(moved(there, turned, SCAN), BOXES)


def test_a_box_on_a_finer_grid_keeps_its_place() -> None:
    fine = SCAN.reshaped((8, 5, 24))
    np.testing.assert_allclose(moved(BOXES, SCAN, fine)[1], [2, 2.5, 12, 4, 4, 21])


def test_on_a_grid_askew_the_smallest_box_around_the_corners_is_taken() -> None:
    turn = np.array([[np.cos(0.25 * np.pi), -np.sin(0.25 * np.pi)], [np.sin(0.25 * np.pi), np.cos(0.25 * np.pi)]])
    askew = Geometry((4, 4), np.block([[turn, np.zeros((2, 1))], [np.zeros((1, 2)), np.ones((1, 1))]]))
    half = np.sqrt(2)
    centre = turn @ np.array([0.5, 0.5])
    expected = np.concatenate([centre - half, centre + half])
    np.testing.assert_allclose(world_boxes(np.array([[0.0, 0, 2, 2]]), askew)[0], expected)


def test_no_boxes_stay_none() -> None:
    assert world_boxes(np.zeros((0, 6)), SCAN).shape == (0, 6)
    assert moved(np.zeros((0, 6)), SCAN, SCAN).shape == (0, 6)
