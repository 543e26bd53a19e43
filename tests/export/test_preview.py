"""A preview shows slices as a radiologist looks at them, whatever way they are stored, and is read back as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medseg.export.preview import MOST_SLICES, NAME, Display, chosen_slices, read_preview, write_preview
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry, Reorientation, Volume

LABELS = LabelTable({1: "organ", 2: "lesion"})
GRID = Geometry((20, 16, 12), np.array([[1.0, 0, 0, -10], [0, 1, 0, -8], [0, 0, 1, 100], [0, 0, 0, 1]]))  # RAS+


def spot(geometry: Geometry = GRID) -> Volume:
    """One bright block: right (high i), anterior (high j), inferior (low k)."""
    data = np.zeros((1, *geometry.shape), np.float32)
    data[0, 16:19, 12:15, 1:4] = 100
    return Volume(data, geometry)


def test_the_patients_left_is_on_the_right_of_the_screen_and_anterior_is_up(tmp_path: Path) -> None:
    write_preview(spot(), Prediction("a", GRID, LABELS), tmp_path)
    preview = read_preview(tmp_path)
    assert preview is not None
    assert preview.display.edges == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    slices, rows, columns = np.nonzero(preview.frames > 128)
    assert set(slices) == {1, 2, 3}
    assert (columns.min(), columns.max()) == (1, 3)  # i = 18 … 16, mirrored
    assert (rows.min(), rows.max()) == (1, 3)  # j = 14 … 12, mirrored


def test_frames_are_the_same_however_the_scan_is_stored(tmp_path: Path) -> None:
    turn = Reorientation((2, 0, 1), (True, False, True))
    turned = Volume(turn.apply(spot().data), turn.apply_to_geometry(GRID))
    found = []
    for name, volume in (("one", spot()), ("two", turned)):
        (tmp_path / name).mkdir()
        write_preview(volume, Prediction("a", volume.geometry, LABELS), tmp_path / name)
        found.append(read_preview(tmp_path / name))
    one, two = found
    assert one is not None and two is not None
    np.testing.assert_array_equal(one.frames, two.frames)
    places = [[where for _, where in preview.display.captions()] for preview in (one, two)]
    assert places[0] == places[1] and places[0][1] == "S 101.0 mm"


def test_captions_tell_the_voxel_of_the_scans_own_grid() -> None:
    upside_down = Geometry((4, 4, 6), np.diag([1.0, 1, -2, 1]))  # k runs from the head down
    captions = Display.of(upside_down).captions()
    assert captions[0] == (5, "I 10.0 mm") and captions[-1] == (0, "S 0.0 mm")


@pytest.mark.parametrize(
    ("spacing", "view"), [((1, 1, 5), "LPS"), ((1, 1.2, 1), "LPS"), ((5, 1, 1), "PIL"), ((1, 4, 1), "LIP")]
)
def test_thick_slices_are_shown_in_the_plane_in_which_they_were_taken(spacing: tuple[float, ...], view: str) -> None:
    assert Display.of(Geometry.from_spacing((10, 11, 12), spacing)).view == view


def test_pixels_are_square_and_frames_at_most_256_wide() -> None:
    assert Display.of(Geometry.from_spacing((512, 256, 3), (0.5, 2, 2))).size == (128, 256)
    assert Display.of(Geometry.from_spacing((30, 40, 3), (1, 1, 1))).size == (30, 40)
    assert Display.of(Geometry.from_spacing((3000, 1500), (1, 1), "px")).size == (768, 384)


def test_few_slices_are_all_kept_and_many_are_spread_evenly() -> None:
    assert chosen_slices(MOST_SLICES, [3]) == tuple(range(MOST_SLICES))
    spread = chosen_slices(300)
    assert len(spread) == MOST_SLICES and spread[0] == 0 and spread[-1] == 299
    assert set(np.diff(spread)) == {4, 5}


@pytest.mark.parametrize("marked", [[7], [7, 8, 9, 290], range(100, 160), [-3, 400]])
def test_every_marked_slice_is_among_those_that_are_kept(marked: list[int]) -> None:
    kept = chosen_slices(300, marked)
    assert {min(max(at, 0), 299) for at in marked} <= set(kept) and len(kept) <= MOST_SLICES
    assert list(kept) == sorted(set(kept))


def test_more_marked_slices_than_fit_are_thinned_out() -> None:
    kept = chosen_slices(300, range(200))
    assert len(kept) == MOST_SLICES and kept[0] == 0 and kept[-1] == 199


def test_slices_go_through_the_middle_of_every_finding_and_of_every_part_of_the_mask() -> None:
    grid = Geometry.from_spacing((140, 12, 400), (1, 1, 1))
    mask = np.zeros(grid.shape, np.uint8)
    mask[3:5, 3:5, 100:103] = 1
    mask[130, 11, 317] = 2  # one voxel
    boxes = Boxes(np.array([[0, 0, 50.0, 4, 4, 53], [0, 0, 220, 4, 4, 223]]), np.array([1, 1]), np.array([0.9, 0.1]))
    display = Display.of(grid, Prediction("a", grid, LABELS, mask, boxes, {"organ": 0.5}))
    assert {51, 101, 317} <= set(display.slices)
    assert list(display.marked(Prediction("a", grid, LABELS, mask))) == [101, 317]
    assert list(display.marked(Prediction("a", grid, LABELS, None, boxes, {"organ": 0.5}))) == [51]


def test_masks_and_boxes_come_to_the_same_place_as_pixels() -> None:
    display = Display.of(GRID)
    mask = (spot().data[0] > 0).astype(np.uint8)
    frames = display.frames(mask, smooth=False)
    assert frames.dtype == np.uint8 and frames.sum() == 27 and frames[1:4, 1:4, 1:4].all()
    (place,) = display.boxes(np.array([[16.0, 12, 1, 19, 15, 4]]))
    np.testing.assert_allclose(place, [1 / 20, 1 / 16, 4 / 20, 4 / 16, 1, 4])
    assert display.nearest_frame(place[4], place[5]) == 2


def test_a_picture_is_one_frame_as_it_is_stored(tmp_path: Path) -> None:
    data = np.zeros((3, 8, 6), np.float32)
    data[:, 5, 1] = 30, 60, 90  # x = 5, y = 1
    volume = Volume(data, Geometry.from_spacing((8, 6), (1, 1), "px"))
    write_preview(volume, Prediction("a", volume.geometry, LABELS), tmp_path)
    preview = read_preview(tmp_path)
    assert preview is not None and preview.frames.shape == (1, 6, 8)
    assert np.argwhere(preview.frames[0] == 255).tolist() == [[1, 5]]
    assert preview.display.edges == {} and preview.display.captions() == [(0, "")]
    (place,) = preview.display.boxes(np.array([[4.0, 0, 8, 3]]))
    assert place.tolist() == [0.5, 0, 1, 0.5, 0, 1]
    assert preview.window[1] <= 60


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read_preview(tmp_path) is None
    path = write_preview(spot(), Prediction("a", GRID, LABELS), tmp_path)
    assert path.name == NAME and [p.name for p in tmp_path.iterdir()] == [NAME]
    preview = read_preview(tmp_path)
    assert preview is not None and preview.display.geometry.matches(GRID, 1e-9)
    assert preview.display.slices == tuple(range(12)) and preview.display.size == (20, 16)
    assert preview.window == (0.0, 100.0)


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_a_constant_scan_and_one_without_numbers_have_a_preview(tmp_path: Path, value: float) -> None:
    volume = Volume(np.full((1, 4, 5, 6), value, np.float32), Geometry.from_spacing((4, 5, 6), (1, 1, 1)))
    write_preview(volume, Prediction("a", volume.geometry, LABELS), tmp_path)
    preview = read_preview(tmp_path)
    assert preview is not None and preview.frames.shape == (6, 5, 4)


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"slices": [0, 99]}, {"slices": []}, {"view": "RAS"}, {"frame": [9, 9]}, {"grid": {}}]
)
def test_a_preview_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_preview(spot(), Prediction("a", GRID, LABELS), tmp_path)
    image = Image.open(path)
    known = PngInfo()
    known.add_text("medseg", json.dumps(json.loads(image.info["medseg"]) | change))
    image.save(path, pnginfo=known)
    with pytest.raises(ScanError, match=r"slices\.png: expected frames as medseg writes them .* predict it again"):
        read_preview(tmp_path)


def test_a_damaged_preview_and_a_foreign_picture_are_said(tmp_path: Path) -> None:
    path = write_preview(spot(), Prediction("a", GRID, LABELS), tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ScanError, match=r"slices\.png"):
        read_preview(tmp_path)
    Image.new("L", (20, 192)).save(path)
    with pytest.raises(ScanError, match="expected frames as medseg writes them"):
        read_preview(tmp_path)
