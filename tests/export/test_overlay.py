"""Pictures show the slice where something is, outlined in the colour of its label, in a radiologist's view."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.export.overlay import COLOURS, TILE_PX, case_overlay, grid_overlay
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry, Reorientation, Volume

LABELS = LabelTable({1: "liver", 2: "../tümor"})


def scan():
    data = np.zeros((1, 32, 32, 32), np.float32)
    data[0, 8:24, 8:24, 8:24] = 1
    mask = np.zeros((32, 32, 32), np.uint8)
    mask[2:6, 26:30, 14:18] = 2  # left, anterior
    return Volume(data, Geometry.from_spacing(mask.shape, (1, 1, 1))), mask


def coloured(path, number):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return (pixels == COLOURS[number]).all(-1)[:TILE_PX]


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
    assert Image.open(path).width == TILE_PX
    rows, columns = np.nonzero(coloured(path, 0))
    assert columns.min() == 0
    assert rows.min() == TILE_PX // 4  # 64×32 fills the width and half of the height
    assert columns.max() == pytest.approx(TILE_PX / 8, abs=2)


def test_an_empty_mask_and_a_constant_scan_are_drawn(tmp_path):
    geometry = Geometry.from_spacing((6, 5, 4), (1, 1, 1))
    case_overlay(Volume(np.ones((1, 6, 5, 4)), geometry), Prediction("a", geometry, LABELS), tmp_path / "o.png")
    assert (tmp_path / "o.png").is_file()


def test_cases_stand_below_each_other_beside_their_truth(tmp_path):
    volume, mask = scan()
    path = grid_overlay([(volume.data, mask, mask)] * 2, LABELS, tmp_path / "samples.png")
    assert Image.open(path).height > 2 * TILE_PX
    assert coloured(path, 1).any()
