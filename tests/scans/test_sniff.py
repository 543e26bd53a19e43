from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.scans.reading import ScanError
from medseg.scans.sniff import content_of

Write = Callable[..., Path]


def test_files_are_known_by_their_content_not_by_their_name(
    tmp_path: Path, write_nifti: Write, write_picture: Write
) -> None:
    zipped = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.int16)).rename(tmp_path / "without_suffix")
    plain = write_nifti(tmp_path / "b.nii", np.zeros((2, 3, 4), np.int16)).rename(tmp_path / "odd.dcm")
    picture = write_picture(tmp_path / "c.png", np.zeros((3, 2), np.uint8)).rename(tmp_path / "c.nii.gz")
    assert [content_of(path) for path in (zipped, plain, picture)] == ["nifti", "nifti", "picture"]


def test_other_formats_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    for name, head, kind in (
        ("a", b"NRRD0004\n", "nrrd"),
        ("b", b"ObjectType = Image\nNDims = 3\n", "metaimage"),
        ("c", b"\xff\xd8\xff\xe0", "picture"),
        ("d", b"II*\0", "picture"),
        ("e", b"hello world", None),
        ("f", b"", None),
        ("g", gzip.compress(b"no scan"), None),
    ):
        (tmp_path / name).write_bytes(head)
        assert content_of(tmp_path / name) == kind, name


def test_text_that_begins_like_a_bare_dicom_dataset_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x08\x00 and then words that are no DICOM elements at all")
    assert content_of(tmp_path / "a") is None


def test_a_file_that_cannot_be_opened_is_an_error_without_its_path(tmp_path: Path) -> None:
    error = content_of(tmp_path / "gone")
    assert isinstance(error, ScanError)
    assert str(tmp_path) not in str(error)


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_to_a_header_is_more_than_a_refusal(
    tmp_path: Path, write_series: Callable, ramp: np.ndarray, seed: int
) -> None:
    """200 files in all: bytes changed at random places, cut off or doubled."""
    rng = random.Random(seed)
    whole = write_series(tmp_path, ramp)[0].read_bytes()
    damaged = tmp_path / "damaged"
    kinds = set()
    for _ in range(50):
        body = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        cut = rng.randrange(len(body))
        damaged.write_bytes(rng.choice((body, body[:cut], body[:cut] + body[cut // 2 :])))
        content = content_of(damaged)
        kinds.add(content.kind if isinstance(content, ScanError) else type(content).__name__)
    assert kinds <= {"tuple", "NoneType", "Annotation", "unreadable", "no_scan", "unsupported", "truncated"}
    assert "unreadable" in kinds
