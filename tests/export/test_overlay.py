"""Pictures show the slice where something is, outlined or framed in the colour of its label, in a radiologist's view."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.export.overlay import COLOURS, case_overlay, grid_overlay
from medseg.export.slices import TILE_PX
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry, Reorientation, Volume

LABELS = LabelTable({1: "liver", 2: "../tümor"})


def scan():
    data = np.zeros((1, 32, 32, 32), np.float32)
    data[0, 8:24, 8:24, 8:24] = 1
    mask = np.zeros((32, 32, 32), np.uint8)
    mask[2:6, 26:30, 14:18] = 2  # left, anterior
    return Volume(data, Geometry.from_spacing(mask.shape, (1, 1, 1))), mask


def coloured(path, number, rows=TILE_PX):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return (pixels == COLOURS[number]).all(-1)[:rows]


def boxed(geometry, edges, scores=None, labels=None, **thresholds):
    labels = np.full(len(edges), 2) if labels is None else np.array(labels)
    boxes = Boxes(np.array(edges, float), labels, None if scores is None else np.array(scores, np.float32))
    return Prediction("a", geometry, LABELS, boxes=boxes, thresholds=thresholds)


def is_frame(found, rows, columns):
    """Whether the coloured pixels reach along all four sides of a rectangle (first and last row and column)."""
    (top, bottom), (left, right) = rows, columns
    sides = found[top, left : right + 1], found[bottom, left : right + 1]
    sides += found[top : bottom + 1, left], found[top : bottom + 1, right]
    return all(side.all() for side in sides)


def test_a_volume_has_three_slices_and_the_patients_left_is_on_the_right(tmp_path):
    volume, mask = scan()
    path = case_overlay(volume, Prediction("a", volume.geometry, LABELS, mask=mask), tmp_path / "overlay.png")
    assert Image.open(path).width == 3 * TILE_PX
    found = coloured(path, 1)
    axial = np.argwhere(found[:, :TILE_PX])
    assert axial[:, 1].min() > TILE_PX * 0.75  # the patient's left
    assert axial[:, 0].max() < TILE_PX * 0.25  # anterior is up
    assert not coloured(path, 0).any()
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.png"]


def test_the_picture_is_the_same_however_the_scan_is_stored(tmp_path):
    volume, mask = scan()
    turn = Reorientation((2, 0, 1), (True, False, True))
    turned = Volume(turn.apply(volume.data), turn.apply_to_geometry(volume.geometry))
    one = case_overlay(volume, Prediction("a", volume.geometry, LABELS, mask=mask), tmp_path / "1.png")
    two = case_overlay(turned, Prediction("a", turned.geometry, LABELS, mask=turn.apply(mask)), tmp_path / "2.png")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_one_tile_with_true_proportions(tmp_path, channels):
    data = np.random.default_rng(0).random((channels, 64, 32)).astype(np.float32)
    mask = np.zeros((64, 32), np.uint8)
    mask[:8, :8] = 1
    geometry = Geometry.from_spacing(mask.shape, (1, 1), "px")
    path = case_overlay(Volume(data, geometry), Prediction("a", geometry, LABELS, mask=mask), tmp_path / "o.png")
    assert Image.open(path).width == 2 * TILE_PX
    rows, columns = np.nonzero(coloured(path, 0, 2 * TILE_PX))
    assert columns.min() == 0
    assert rows.min() == TILE_PX // 2  # 64×32 fills the width and half of the height
    assert columns.max() == pytest.approx(TILE_PX / 4, abs=2)


def test_an_empty_mask_and_a_constant_scan_are_drawn(tmp_path):
    geometry = Geometry.from_spacing((6, 5, 4), (1, 1, 1))
    case_overlay(Volume(np.ones((1, 6, 5, 4)), geometry), Prediction("a", geometry, LABELS), tmp_path / "o.png")
    assert (tmp_path / "o.png").is_file()


def test_cases_stand_below_each_other_beside_their_truth(tmp_path):
    volume, mask = scan()
    path = grid_overlay([(volume.data, mask, mask)] * 2, LABELS, tmp_path / "samples.png")
    assert Image.open(path).height > 2 * TILE_PX
    assert coloured(path, 1).any()


def test_without_a_mask_slices_go_through_the_surest_finding_and_frame_it(tmp_path):
    volume, _ = scan()
    edges = [[4, 4, 4, 28, 28, 28.0], [20, 2, 10, 26, 8, 14], [0, 0, 0, 2, 2, 2]]
    prediction = boxed(volume.geometry, edges, [0.6, 0.9, 0.95], [1, 2, 1], liver=0.99)
    found = coloured(case_overlay(volume, prediction, tmp_path / "o.png"), 1)
    # 8 pixels a voxel, both axes run backwards: voxels 20…26 along i are columns 48…95, 2…8 along j rows 192…239.
    assert is_frame(found[:, :TILE_PX], (192, 239), (48, 95))
    assert is_frame(found[:, TILE_PX : 2 * TILE_PX], (256 - 8 * 14, 255 - 8 * 10), (48, 95))
    assert is_frame(found[:, 2 * TILE_PX :], (256 - 8 * 14, 255 - 8 * 10), (256 - 8 * 8, 255 - 8 * 2))
    assert not coloured(tmp_path / "o.png", 0).any()  # below the working point


def test_a_finding_is_framed_where_the_slice_of_the_mask_meets_it_and_nowhere_else(tmp_path):
    volume, mask = scan()
    prediction = boxed(volume.geometry, [[20, 2, 10, 26, 8, 14], [2, 26, 3, 6, 30, 28]], [0.9, 0.5], [1, 1])
    path = case_overlay(volume, Prediction("a", volume.geometry, LABELS, mask, prediction.boxes), tmp_path / "o.png")
    assert coloured(path, 1).any()  # the mask
    found = coloured(path, 0)
    assert is_frame(found[:, :TILE_PX], (16, 47), (208, 239))
    assert not found[:TILE_PX, : 13 * 8].any()  # the other one's slices are not shown


def test_boxes_are_drawn_the_same_however_the_scan_is_stored(tmp_path):
    volume, _ = scan()
    turn = Reorientation((2, 0, 1), (True, False, True))
    turned = Volume(turn.apply(volume.data), turn.apply_to_geometry(volume.geometry))
    # New axes run along old k backwards, i, and j backwards.
    edges, other = [20, 2.5, 10, 26, 8, 14.25], [32 - 14.25, 20, 32 - 8, 32 - 10, 26, 32 - 2.5]
    one = case_overlay(volume, boxed(volume.geometry, [edges], [0.5]), tmp_path / "1.png")
    two = case_overlay(turned, boxed(turned.geometry, [other], [0.5]), tmp_path / "2.png")
    assert one.read_bytes() == two.read_bytes()
    assert coloured(one, 1).any()


def test_a_box_thinner_than_a_slice_and_one_at_the_border_are_framed(tmp_path):
    volume, _ = scan()
    path = case_overlay(volume, boxed(volume.geometry, [[0, 0, 9.7, 32, 32, 9.8]], [0.5]), tmp_path / "o.png")
    assert is_frame(coloured(path, 1)[:, :TILE_PX], (0, 255), (0, 255))


def test_a_picture_tells_id_and_score_at_each_finding(tmp_path):
    geometry = Geometry.from_spacing((64, 64), (1, 1), "px")
    edges, volume = [[8, 16, 24, 40.0], [40, 16, 56, 40]], Volume(np.zeros((1, 64, 64), np.float32), geometry)
    scored = case_overlay(volume, boxed(geometry, edges, [0.5, 0.75]), tmp_path / "scored.png")
    silent = case_overlay(volume, boxed(geometry, edges), tmp_path / "silent.png")
    for columns in ((64, 191), (320, 447)):
        assert is_frame(coloured(scored, 1, 512), (128, 319), columns)
    above = [np.asarray(Image.open(path))[:128].any() for path in (scored, silent)]
    assert above == [True, False]
    other = case_overlay(volume, boxed(geometry, edges, [0.5, 0.76]), tmp_path / "other.png")
    assert other.read_bytes() != scored.read_bytes()


def test_true_boxes_are_dashed_beside_those_that_were_found(tmp_path):
    image = np.zeros((1, 64, 64), np.float32)
    truth = boxed(Geometry.from_spacing((64, 64), (1, 1)), [[8, 16, 24, 40]]).boxes
    none = truth.chosen(np.zeros(0, int))
    missed = coloured(grid_overlay([(image, truth, none)], LABELS, tmp_path / "1.png"), 1, 512)
    found = coloured(grid_overlay([(image, truth, truth)], LABELS, tmp_path / "2.png"), 1, 512)
    side = missed[128, 64:192]
    assert 0.3 < side.mean() < 0.7 and not missed[129:319, 65:191].any()
    assert is_frame(found, (128, 319), (64, 191))


def test_samples_of_volumes_go_through_the_largest_true_box_else_the_surest_found_one(tmp_path):
    image, grid = np.zeros((1, 32, 32, 32), np.float32), Geometry.from_spacing((32, 32, 32), (1, 1, 1))
    truth = boxed(grid, [[1, 1, 1, 3, 3, 3], [20, 2, 10, 26, 8, 14]]).boxes
    found = boxed(grid, [[8, 16, 16, 12, 20, 20]], [0.5], [1]).boxes
    path = grid_overlay([(image, truth, found)], LABELS, tmp_path / "1.png")
    assert coloured(path, 1).any() and not coloured(path, 0).any()
    nothing = truth.chosen(np.zeros(0, int))
    path = grid_overlay([(image, nothing, found)], LABELS, tmp_path / "2.png", (1, 1, 2))
    assert coloured(path, 0).any() and not coloured(path, 1).any()
    assert grid_overlay([(image, nothing, nothing)], LABELS, tmp_path / "3.png").is_file()
