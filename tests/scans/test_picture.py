from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.scans import read_geometry, read_mask, read_volume
from medseg.scans.find import find_one
from medseg.scans.picture import is_colour
from medseg.scans.reading import ScanError

Write = Callable[..., Path]


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_i_is_the_column_and_j_the_row(tmp_path: Path, write_picture: Write, ending: str, dtype: type) -> None:
    rows = (np.arange(6).reshape(2, 3) * (9000 if dtype is np.uint16 else 40)).astype(dtype)
    source = find_one(write_picture(tmp_path / f"a.{ending}", rows)).source
    volume = read_volume(source)
    assert volume.geometry.shape == read_geometry(source).shape == (3, 2)
    assert volume.geometry.unit == "px"
    np.testing.assert_array_equal(volume.data, rows.T[None])


def test_colour_has_three_channels_and_turns_grey_on_request(tmp_path: Path, write_picture: Write) -> None:
    rows = np.zeros((4, 5, 3), np.uint8)
    rows[1, 2] = (10, 20, 30)
    path = write_picture(tmp_path / "a.png", rows)
    assert is_colour(path)
    volume = read_volume(find_one(path).source)
    np.testing.assert_array_equal(volume.data[:, 2, 1], [10, 20, 30])
    grey = read_volume(find_one(path).source, {"grey": True})
    assert grey.data[:, 2, 1] == pytest.approx([0.299 * 10 + 0.587 * 20 + 0.114 * 30])
    with pytest.raises(ScanError, match="no gray; a reader has grey"):
        read_volume(find_one(path).source, {"gray": True})


def test_transparency_is_dropped(tmp_path: Path) -> None:
    Image.new("LA", (3, 2), (7, 0)).save(tmp_path / "la.png")
    Image.new("RGBA", (3, 2), (1, 2, 3, 0)).save(tmp_path / "rgba.png")
    assert read_volume(find_one(tmp_path / "la.png").source).data.shape == (1, 3, 2)
    assert read_volume(find_one(tmp_path / "rgba.png").source).data[:, 0, 0].tolist() == [1, 2, 3]


def test_masks_may_be_bits_palettes_or_grey_colours(tmp_path: Path) -> None:
    rows = np.array([[0, 1, 0], [0, 0, 1]], np.uint8)
    Image.fromarray(rows.astype(bool)).save(tmp_path / "bits.png")
    palette = Image.fromarray(rows, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.repeat(rows[..., None], 3, 2)).save(tmp_path / "rgb.png")
    for name in ("bits", "palette", "rgb"):
        mask, _ = read_mask(find_one(tmp_path / f"{name}.png").source)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, rows.T)


def test_a_coloured_mask_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), (255, 0, 0)).save(tmp_path / "a.png")
    with pytest.raises(ScanError, match="found colours"):
        read_mask(find_one(tmp_path / "a.png").source)


def test_several_pages_and_broken_files_are_refused(tmp_path: Path, write_picture: Write) -> None:
    pages = [Image.new("L", (3, 2), n) for n in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ScanError, match="3 pages"):
        read_volume(find_one(tmp_path / "pages.tif").source)
    path = write_picture(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ScanError, match="cut short"):
        read_volume(find_one(path).source)


def test_a_camera_picture_with_a_preview_is_one_picture(tmp_path: Path) -> None:
    picture, preview = Image.new("RGB", (32, 16), (200, 10, 10)), Image.new("RGB", (8, 4))
    picture.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_volume(find_one(tmp_path / "a.jpg").source).data.shape == (3, 32, 16)


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path, write_picture: Write) -> None:
    path = write_picture(tmp_path / "a.png", np.zeros((16, 16), np.uint8))
    raw = bytearray(path.read_bytes())
    raw[16:24] = (8000).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(raw))
    with pytest.raises(ScanError, match="claims 64,000,000 pixels") as caught:
        read_volume(find_one(path).source)
    assert caught.value.kind == "truncated"
