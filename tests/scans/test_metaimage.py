from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from medseg.scans import read_geometry, read_volume
from medseg.scans.find import find_one
from medseg.scans.reading import ScanError

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = {big}
CompressedData = {zipped}
TransformMatrix = 0 1 0 -1 0 0 0 0 1
Offset = 10 20 30
ElementSpacing = 0.5 2 3
DimSize = {size}
ElementType = MET_SHORT
ElementDataFile = {where}
"""


def header(where: str = "LOCAL", size: str = "2 3 4", big: bool = False, zipped: bool = False) -> bytes:
    return HEADER.format(where=where, size=size, big=big, zipped=zipped).encode()


def channels(number: str) -> bytes:
    return header().replace(b"BinaryData", b"ElementNumberOfChannels = " + number.encode() + b"\nBinaryData", 1)


def pixels(big: bool = False) -> bytes:
    return ARRAY.astype(">i2" if big else "<i2").tobytes(order="F")


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_mha_is_read_in_ras(tmp_path: Path, zipped: bool, big: bool) -> None:
    body = zlib.compress(pixels(big)) if zipped else pixels(big)
    (tmp_path / "a.mha").write_bytes(header(big=big, zipped=zipped) + body)
    volume = read_volume(find_one(tmp_path / "a.mha").source)
    np.testing.assert_array_equal(volume.data[0], ARRAY)
    # The first axis runs along LPS y by 0.5 mm, the second against LPS x by 2 mm: the rows of TransformMatrix.
    np.testing.assert_allclose(volume.geometry.to_world((1, 2, 3)), [-(10 - 4), -(20 + 0.5), 30 + 9])


def test_mhd_names_its_pixel_file(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_bytes(header("a.raw"))
    (tmp_path / "a.raw").write_bytes(pixels())
    np.testing.assert_array_equal(read_volume(find_one(tmp_path / "a.mhd").source).data[0], ARRAY)


def test_vectors_of_three_are_colours(tmp_path: Path) -> None:
    colours = np.stack([ARRAY, ARRAY + 1, ARRAY + 2])
    (tmp_path / "a.mha").write_bytes(channels("3") + colours.tobytes(order="F"))
    np.testing.assert_array_equal(read_volume(find_one(tmp_path / "a.mha").source).data, colours)


def test_pixels_may_stand_at_the_end_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_bytes(header("a.raw").replace(b"ElementDataFile", b"HeaderSize = -1\nElementDataFile"))
    (tmp_path / "a.raw").write_bytes(b"whatever" + pixels())
    np.testing.assert_array_equal(read_volume(find_one(tmp_path / "a.mhd").source).data[0], ARRAY)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    for content, words in (
        (header() + pixels()[:20], "claims|truncated"),
        (header("LIST") + pixels(), "several files"),
        (header("gone.raw"), "no such file"),
        (header(size="2 3 4 5").replace(b"NDims = 3", b"NDims = 4") + pixels(), "4D 2×3×4×5"),
        (header(size="99999 99999 99999") + pixels(), "claims"),
        (header().replace(b"ElementDataFile", b"Something"), "no ElementDataFile"),
        (header().replace(b"0.5 2 3", b"half") + pixels(), "cannot be read"),
        (header().replace(b"0.5 2 3", b"0.5 0 3") + pixels(), "singular"),
        (header().replace(b"0.5 2 3", b"1e200 1e200 3") + pixels(), "no scan has voxels of"),
        (header().replace(b"BinaryData = True", b"BinaryData = False") + pixels(), "written as text"),
        (channels("two") + pixels(), "damaged"),
        (channels("2") + pixels() + pixels(), "2 × MET_SHORT a voxel"),
        (header(zipped=True) + zlib.compress(pixels())[:-5], "truncated"),
        (header(zipped=True) + zlib.compress(pixels()[:-1]), "truncated.*expected 48 bytes"),
        (header("/dev/zero") + pixels(), "no file"),
    ):
        path = tmp_path / "a.mha"
        path.write_bytes(content)
        with pytest.raises(ScanError, match=words):
            read_volume(find_one(path).source)


def test_the_grid_needs_no_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_bytes(header("gone.raw"))
    assert read_geometry(find_one(tmp_path / "a.mhd").source).spacing == (0.5, 2, 3)
