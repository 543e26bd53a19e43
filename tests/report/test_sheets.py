"""Sheets keep what is looked at: labels exactly, grey and heat closely."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from medseg.report.sheets import grey_sheet, heat_sheet, label_sheet, picture, thumbnail


def decoded(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def ramp(frames: int = 3, height: int = 16, width: int = 24) -> np.ndarray:
    return np.linspace(0, 1, frames * height * width, dtype=np.float32).reshape(frames, height, width)


def test_labels_come_back_as_they_were_frame_below_frame() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7))
    np.testing.assert_array_equal(decoded(label_sheet(frames)), frames.reshape(15, 7))


def test_grey_is_close_and_smaller_than_a_lossless_picture() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (4, 64, 64)).clip(0, 255).astype(np.uint8)
    uri = grey_sheet(noise)
    assert uri.startswith("data:image/jpeg") and len(uri) < 0.7 * len(label_sheet(noise))
    assert np.abs(decoded(uri).astype(int) - noise.reshape(-1, 64)).mean() < 8
    assert grey_sheet(np.zeros((1, 8, 8), np.uint8)).startswith("data:image/png")


def test_a_map_of_one_sign_runs_from_zero_to_its_limit() -> None:
    sheet = heat_sheet(7 * ramp())
    assert not sheet["signed"] and sheet["limit"] == pytest.approx(7, rel=0.01) and sheet["largest"] == 7
    np.testing.assert_allclose(decoded(sheet["sheet"]), 255 * ramp().reshape(-1, 24), atol=6)


def test_a_map_of_both_signs_is_symmetric_about_128() -> None:
    sheet = heat_sheet(ramp() - 0.5)
    values = decoded(sheet["sheet"])
    assert sheet["signed"] and sheet["limit"] == pytest.approx(0.5, rel=0.01)
    assert values.min() <= 6 and values.max() >= 249 and values[len(values) // 2].mean() == pytest.approx(128, abs=6)


def test_single_voxels_far_beyond_all_others_do_not_set_the_colours() -> None:
    frames = np.ones((8, 32, 32), np.float32)
    frames[0, 0, 0] = 1000
    sheet = heat_sheet(frames)
    assert sheet["limit"] == 1 and sheet["largest"] == 1000


def test_a_map_that_is_zero_everywhere_is_shown_as_such() -> None:
    sheet = heat_sheet(np.zeros((2, 8, 8), np.float32))
    assert not decoded(sheet["sheet"]).any() and sheet["limit"] == 0


def test_fine_maps_are_made_coarser_and_small_ones_are_not() -> None:
    large = heat_sheet(np.ones((64, 256, 192), np.float32))
    assert large["width"] * large["height"] * 64 <= 1.02 * 2**20 and large["width"] / large["height"] == pytest.approx(
        0.75, rel=0.02
    )
    assert (heat_sheet(ramp())["width"], heat_sheet(ramp())["height"]) == (24, 16)


def test_a_thumbnail_is_small_and_tinted_where_there_is_a_label() -> None:
    labelled = np.zeros((300, 200), np.uint8)
    labelled[:150] = 2
    uri = thumbnail(np.full((300, 200), 100, np.uint8), labelled, np.array([[0, 0, 255], [255, 0, 0]], np.float32))
    found = decoded(uri)
    assert found.shape == (96, 64, 3)
    red, green, blue = found[:40].reshape(-1, 3).mean(axis=0)
    assert red > 150 and green < 80 and blue < 80
    assert np.ptp(found[60:].reshape(-1, 3).mean(axis=0)) < 10


def test_a_thumbnail_frames_what_was_found() -> None:
    box = ((0.25, 0.25, 0.75, 0.75), (255, 0, 0))
    found = decoded(thumbnail(np.zeros((96, 96), np.uint8), None, np.zeros((0, 3)), [box])).astype(int)
    assert found[24:26, 30:66, 0].min() > 120 and found[30:66, 71:73, 0].min() > 120
    assert found[35:60, 35:60].max() < 60 and found[:15].max() < 60


def test_a_picture_is_taken_as_it_is() -> None:
    png = io.BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(png, format="PNG")
    assert decoded(picture(png.getvalue())).tolist() == [[[1, 2, 3]] * 3] * 2
