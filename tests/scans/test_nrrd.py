from __future__ import annotations

import bz2
import gzip
import logging
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

from medseg.scans import read_geometry, read_volume
from medseg.scans.find import find_one
from medseg.scans.reading import ScanError
from medseg.structures import Source

ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
DIRECTIONS = np.array([[0, 2.0, 0], [0.5, 0, 0], [0, 0, -3.0]])


def write(path: Path, array: np.ndarray = ARRAY, **header: Any) -> Source:
    nrrd.write(str(path), array, header, index_order="F")
    return find_one(path).source


@pytest.mark.parametrize(
    ("space", "signs"),
    [("left-posterior-superior", (-1, -1, 1)), ("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1))],
)
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_every_space_becomes_ras(tmp_path: Path, space: str, signs: tuple[int, ...], encoding: str) -> None:
    given = {"space": space, "space directions": DIRECTIONS, "space origin": [10.0, 20, 30], "encoding": encoding}
    volume = read_volume(write(tmp_path / "a.nrrd", **given))
    np.testing.assert_array_equal(volume.data[0], ARRAY)
    at = np.array([1, 2, 3])
    np.testing.assert_allclose(volume.geometry.to_world(at), (np.array([10, 20, 30]) + at @ DIRECTIONS) * signs)


def test_without_directions_the_spacings_count(tmp_path: Path) -> None:
    assert read_geometry(write(tmp_path / "a.nrrd", spacings=[1.0, 2.0, 3.0])).spacing == (1, 2, 3)


def test_a_colour_axis_becomes_channels(tmp_path: Path) -> None:
    rgb = np.stack([ARRAY, ARRAY + 1, ARRAY + 2])
    directions = np.vstack([[np.nan] * 3, np.eye(3)])
    given = {"space": "LPS", "space directions": directions, "kinds": ["RGB-color", "domain", "domain", "domain"]}
    np.testing.assert_array_equal(read_volume(write(tmp_path / "a.nrrd", rgb, **given)).data, rgb)


def test_4d_and_2d_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="expected a 3D volume") as caught:
        read_geometry(write(tmp_path / "a.nrrd", np.zeros((2, 3, 4, 5), np.int16)))
    assert caught.value.kind == "not_3d"
    with pytest.raises(ScanError, match="expected a 3D volume"):
        read_geometry(write(tmp_path / "b.nrrd", np.zeros((2, 3), np.int16)))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_a_truncated_file_is_said(tmp_path: Path, encoding: str) -> None:
    source = write(
        tmp_path / "a.nrrd", np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype(np.int16), encoding=encoding
    )
    raw = source.files[0].read_bytes()
    source.files[0].write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ScanError, match="cut short|truncated"):
        read_volume(source)


def test_a_damaged_header_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: nonsense\nsizes: 3\n\n")
    with pytest.raises(ScanError, match=r"a\.nrrd"):
        read_geometry(Source("nrrd", (tmp_path / "a.nrrd",)))


HEADER = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 2 3 4
space directions: (1,0,0) (0,1,0) (0,0,1)
space origin: (0,0,0)
endian: {endian}
encoding: {encoding}
{more}
"""


def detached(folder: Path, stored: bytes, encoding: str = "raw", more: str = "", endian: str = "little") -> Source:
    (folder / "a.bin").write_bytes(stored)
    more = f"data file: a.bin\n{more}".strip()
    (folder / "a.nhdr").write_text(HEADER.format(endian=endian, encoding=encoding, more=more))
    return Source("nrrd", (folder / "a.nhdr",))


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_detached_pixels_in_any_encoding_and_byte_order(tmp_path: Path, encoding: str, endian: str) -> None:
    stored = ARRAY.astype(">i2" if endian == "big" else "<i2").tobytes(order="F")
    pack = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding]
    np.testing.assert_array_equal(read_volume(detached(tmp_path, pack(stored), encoding, "", endian)).data[0], ARRAY)


def test_pixels_may_stand_behind_lines_and_bytes_that_are_skipped(tmp_path: Path) -> None:
    stored = ARRAY.tobytes(order="F")
    for behind, more in (
        (b"one\ntwo\n???" + stored, "line skip: 2\nbyte skip: 3"),
        (b"whatever" + stored, "byte skip: -1"),
    ):
        np.testing.assert_array_equal(read_volume(detached(tmp_path, behind, "raw", more)).data[0], ARRAY)
    zipped = gzip.compress(b"???" + stored)
    np.testing.assert_array_equal(read_volume(detached(tmp_path, zipped, "gzip", "byte skip: 3")).data[0], ARRAY)


def test_what_is_wrong_with_detached_pixels_is_said(tmp_path: Path) -> None:
    stored = ARRAY.tobytes(order="F")
    for kept, encoding, more, words in (
        (stored[:-1], "raw", "", "claims 48 bytes"),
        (gzip.compress(stored)[:-9], "gzip", "", "truncated"),
        (bz2.compress(stored[:-1]), "bzip2", "", "truncated.*expected 48 bytes"),
        (stored, "raw", f"line skip: {2**40}", "claims 48 bytes"),
        (stored, "hex", "", "not understood"),
        (gzip.compress(stored), "gzip", "byte skip: -1", "makes no sense"),
    ):
        with pytest.raises(ScanError, match=words):
            read_volume(detached(tmp_path, kept, encoding, more))
    text = HEADER.format(endian="little", encoding="raw", more="data file: LIST\na.raw\nb.raw")
    (tmp_path / "list.nhdr").write_text(text)
    with pytest.raises(ScanError, match="several files") as caught:
        read_geometry(Source("nrrd", (tmp_path / "list.nhdr",)))
    assert caught.value.kind == "unsupported"
    (tmp_path / "gone.nhdr").write_text(HEADER.format(endian="little", encoding="raw", more="data file: gone.raw"))
    with pytest.raises(ScanError, match=r"gone\.raw: no such file"):
        read_volume(Source("nrrd", (tmp_path / "gone.nhdr",)))


def test_a_space_without_names_is_lps_as_in_itk_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"space directions": DIRECTIONS, "space origin": [10.0, 20, 30]}
    named = read_volume(write(tmp_path / "a.nrrd", space="LPS", **given))
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "medseg"):
        other = read_volume(write(tmp_path / "b.nrrd", space="3D-right-handed", **given))
    assert other.geometry.matches(named.geometry, 1e-9)
    assert "does not say where left is" in caplog.text
    with pytest.raises(ScanError, match="which side is left"):
        read_geometry(write(tmp_path / "c.nrrd", space="3D-left-handed", **given))


def test_vectors_of_other_lengths_than_colours_are_refused(tmp_path: Path) -> None:
    pair = np.stack([ARRAY, ARRAY])
    directions = np.vstack([[np.nan] * 3, np.eye(3)])
    given = {"space": "LPS", "space directions": directions, "kinds": ["vector", "domain", "domain", "domain"]}
    with pytest.raises(ScanError, match="2×2×3×4, 3 of them in space"):
        read_volume(write(tmp_path / "a.nrrd", pair, **given))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
def test_a_header_that_claims_200_gb_takes_no_memory(tmp_path: Path, encoding: str) -> None:
    source = write(tmp_path / "a.nrrd", encoding=encoding)
    raw = source.files[0].read_bytes().replace(b"sizes: 2 3 4", b"sizes: 5000 5000 4000")
    source.files[0].write_bytes(raw)
    with pytest.raises(ScanError, match=r"claims|truncated"):
        read_volume(source)
