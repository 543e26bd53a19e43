"""Lesions keep their place on the way to the plan's grid and back, and a crop says of each what can be seen of it."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data.lesions import preprocess_lesions, restore_boxes, seen_in_patch
from medseg.data.preprocess import preprocess
from medseg.scans.boxes import boxes_of_mask
from medseg.structures import Boxes
from medseg.volume import Geometry, Volume, reorientation_to
from tests.tiny import LABELS, tiny_boxes, tiny_plan


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "AIL"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.3)])
def test_boxes_go_to_the_plans_grid_and_back_unchanged(codes: str, spacing: tuple[float, ...]) -> None:
    grid = Geometry.from_spacing((20, 16, 12), spacing)
    geometry = reorientation_to(grid, codes).apply_to_geometry(grid)
    plan = tiny_plan(task="detection", boxes=tiny_boxes(), image_order=(1, 1, 1))
    data = np.random.default_rng(0).normal(size=(1, *geometry.shape)).astype(np.float32)
    _, restoration = preprocess(Volume(data, geometry), plan)
    edges = np.array([[2.0, 3, 1, 7, 9, 5], [0, 0, 0, *geometry.shape]])
    boxes = Boxes(edges, np.array([1, 3]), np.array([0.5, 0.25]))
    placed, nothing = preprocess_lesions(boxes, None, restoration, plan)
    assert nothing is None and placed.labels.tolist() == [1, 3]
    np.testing.assert_allclose(placed.boxes[1], [0, 0, 0, *restoration.shape], atol=1e-6)
    volume = np.prod((placed.boxes[:, 3:] - placed.boxes[:, :3]) * restoration.geometry.spacing, axis=1)
    np.testing.assert_allclose(volume, np.prod((edges[:, 3:] - edges[:, :3]) * geometry.spacing, axis=1), rtol=1e-5)
    back = restore_boxes(Boxes(placed.boxes, placed.labels, boxes.scores), restoration)
    np.testing.assert_allclose(back.boxes, edges, atol=1e-5)
    assert back.scores is boxes.scores


def test_the_numbers_of_a_mask_are_those_of_its_boxes_on_the_plans_grid() -> None:
    mask = np.zeros((20, 16, 12), np.uint8)
    mask[2:8, 3:9, 1:7], mask[12:18, 8:14, 6:10] = 3, 1
    geometry = Geometry.from_spacing(mask.shape, (0.5, 0.5, 2.0))
    plan = tiny_plan(task="detection", boxes=tiny_boxes(), image_order=(1, 1, 1))
    _, restoration = preprocess(Volume(np.ones((1, *mask.shape), np.float32), geometry), plan)
    boxes, numbered = boxes_of_mask(mask, geometry, LABELS)
    placed, carried = preprocess_lesions(boxes, numbered, restoration, plan)
    assert carried is not None and carried.shape == (1, *restoration.shape) and carried.dtype == np.int16
    for number, (box, value) in enumerate(zip(placed.boxes, placed.labels, strict=True), 1):
        inside = np.argwhere(carried[0] == number)
        assert np.abs(np.concatenate([inside.min(0), inside.max(0) + 1]) - box).max() <= 1
        assert value == {1: 1, 2: 3}[number]


def test_what_a_crop_cuts_away_of_a_lesion_decides_whether_it_is_asked_for() -> None:
    boxes = np.array([[-2.0, 0, 2, 4], [-2.1, 4, 2, 8], [9, 9, 12, 12], [3, 3, 5, 5]])
    seen = seen_in_patch(boxes, None, (8, 8))
    assert seen.numbers.tolist() == [0, 3]
    assert seen.boxes.tolist() == [[0, 0, 2, 4], [3, 3, 5, 5]]
    assert seen.cut.tolist() == [[0, 4, 2, 8]]


def test_a_turned_lesion_has_the_box_of_its_mask_but_keeps_fractions_of_a_voxel() -> None:
    numbered = np.zeros((16, 16), np.int16)
    numbered[4:9, 5:8], numbered[12, 12] = 1, 3
    boxes = np.array([[2.0, 4.7, 9.4, 8.2], [0, 0, 1, 1], [11.8, 11.9, 13.1, 13]])
    seen = seen_in_patch(boxes, numbered, (16, 16))
    assert seen.numbers.tolist() == [0, 1, 2]
    np.testing.assert_allclose(seen.boxes, [[4, 4.7, 9.4, 8.2], [0, 0, 1, 1], [11.8, 11.9, 13.1, 13]])


def test_a_case_without_lesions_shows_none() -> None:
    seen = seen_in_patch(np.zeros((0, 6)), np.zeros((4, 4, 4), np.int16), (4, 4, 4))
    assert seen.boxes.shape == (0, 6) and seen.cut.shape == (0, 6) and len(seen.numbers) == 0
