"""A sheet holds every tile that fits, each in its own range, and volumes as a radiologist looks at them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.export.feature_sheets import (
    MOST_TILES,
    Tile,
    activation_tiles,
    central_slice,
    draw_sheet,
    filter_tiles,
    input_tiles,
)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_a_tile_stands_for_each_filter_and_input_channel():
    tiles = filter_tiles(np.arange(2 * 3 * 9, dtype=np.float32).reshape(2, 3, 3, 3))
    assert [tile.title for tile in tiles] == [f"{k}, input {c}" for k in range(2) for c in range(3)]
    np.testing.assert_array_equal(tiles[4].values, 36 + np.arange(9).reshape(3, 3))


@pytest.mark.parametrize(("filters", "channels", "shown"), [(200, 1, MOST_TILES), (200, 3, 63), (4, 100, 100)])
def test_a_sheet_holds_only_whole_filters(filters, channels, shown):
    assert len(filter_tiles(np.zeros((filters, channels, 3, 3), np.float32))) == shown


def test_the_central_slice_of_a_volume_has_the_patients_right_on_the_left():
    volume = np.zeros((4, 4, 5))
    volume[3, 0, 2] = 1  # right and posterior: on the left and below, where rows run down
    assert np.argwhere(central_slice(volume)).tolist() == [[0, 3]]


def test_the_image_comes_before_the_channels_that_were_asked_for():
    tiles = activation_tiles(np.ones((1, 4, 4)), np.arange(3 * 4.0).reshape(3, 2, 2), [0, 2])
    assert [tile.title for tile in tiles] == ["input", "channel 0", "channel 2"]
    assert tiles[2].values[0, 0] == 8


def test_three_channels_of_a_picture_are_colours():
    (tile,) = input_tiles({7: np.random.default_rng(0).random((3, 4, 5))})
    assert tile.values.shape == (4, 5, 3)
    assert tile.title == "channel 7"


def test_what_is_positive_is_red_and_what_is_negative_is_blue(tmp_path):
    values = np.zeros((6, 6))
    values[:3], values[3:] = -1, 1  # i is drawn to the right
    shown = pixels(draw_sheet([Tile("f", values, signed=True)], tmp_path / "sheets" / "s.png", title="filters"))
    redness = shown[..., 0] - shown[..., 2]
    red, blue = np.nonzero(redness > 60), np.nonzero(redness < -60)
    assert red[1].mean() > blue[1].mean() + 20
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["s.png"]


def test_constant_and_empty_tiles_are_drawn_and_titles_are_no_formulas(tmp_path):
    tiles = [Tile("$x^{", np.zeros((3, 3)), signed=True), Tile("c", np.ones((3, 3)))]
    assert draw_sheet(tiles, tmp_path / "s.png", title="$").is_file()


def test_a_sheet_of_nothing_is_refused(tmp_path):
    with pytest.raises(MedsegError, match="at least one tile"):
        draw_sheet([], tmp_path / "s.png", title="")
