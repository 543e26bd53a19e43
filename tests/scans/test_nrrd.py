from __future__ import annotations

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
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
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


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_a_truncated_file_is_said(tmp_path: Path, encoding: str) -> None:
    source = write(
        tmp_path / "a.nrrd", np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype(np.int16), encoding=encoding
    )
    raw = source.files[0].read_bytes()
    source.files[0].write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ScanError, match="damaged or cut short"):
        read_volume(source)


def test_a_damaged_header_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: nonsense\nsizes: 3\n\n")
    with pytest.raises(ScanError, match=r"a\.nrrd"):
        read_geometry(Source("nrrd", (tmp_path / "a.nrrd",)))
