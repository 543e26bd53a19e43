from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans.find import find, find_one, sniff
from medseg.scans.reading import ScanError

Write = Callable[..., Path]


def test_files_are_known_by_their_content_not_by_their_name(
    tmp_path: Path, write_nifti: Write, write_picture: Write
) -> None:
    zipped = write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.int16)).rename(tmp_path / "without_suffix")
    plain = write_nifti(tmp_path / "b.nii", np.zeros((2, 3, 4), np.int16)).rename(tmp_path / "odd.dcm")
    picture = write_picture(tmp_path / "c.png", np.zeros((3, 2), np.uint8)).rename(tmp_path / "c.nii.gz")
    assert (sniff(zipped), sniff(plain), sniff(picture)) == ("nifti", "nifti", "picture")
    assert [entry.source.kind for entry in find(tmp_path).sources] == ["picture", "nifti", "nifti"]


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
        assert sniff(tmp_path / name) == kind, name


def test_a_file_that_claims_to_be_a_scan_is_a_fault_and_a_stranger_is_not(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "good.nii.gz", np.zeros((2, 2, 2)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "broken.nii.gz").write_bytes(b"garbage")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".DS_Store").write_text("hidden")
    found = find(tmp_path)
    assert [entry.id for entry in found.sources] == ["good"]
    assert {fault.case for fault in found.faults} == {"broken", "empty"}
    assert "sub/broken.nii.gz" in next(f.message for f in found.faults if f.case == "broken")
    assert [f.message.split(":")[0] for f in found.unread if f.kind == "no_scan"] == ["README.md"]


def test_equal_names_take_their_folders(tmp_path: Path, write_nifti: Write) -> None:
    for folder in ("x", "y"):
        write_nifti(tmp_path / folder / "image.nii.gz", np.zeros((2, 2, 2)))
    assert [entry.id for entry in find(tmp_path).sources] == ["x__image", "y__image"]


def test_a_link_to_the_folder_itself_does_not_hang(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "a" / "p.nii.gz", np.zeros((2, 2, 2)))
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(find(tmp_path).sources) == 1


def test_dicom_is_known_without_suffix_and_without_preamble(
    tmp_path: Path, write_series: Callable, ramp: np.ndarray
) -> None:
    paths = write_series(tmp_path, ramp)
    for path in paths:
        path.write_bytes(path.read_bytes()[132:])
        assert sniff(path) == "dicom"
    found = find(tmp_path)
    assert [(entry.source.kind, len(entry.source.files)) for entry in found.sources] == [("dicom", 3)]


def test_nothing_of_the_patient_is_in_ids_or_messages(tmp_path: Path, write_series: Callable, ramp: np.ndarray) -> None:
    paths = write_series(tmp_path / "Secret^Name", ramp)
    paths[0].write_bytes(paths[0].read_bytes()[:150])
    found = find(tmp_path / "Secret^Name")
    text = " ".join([*(s.id + s.patient + s.study + s.source.key for s in found.sources), *map(str, found.unread)])
    assert found.faults
    assert "ecret" not in text.lower()


def test_one_patient_has_one_hash_in_every_study(tmp_path: Path, write_series: Callable, ramp: np.ndarray) -> None:
    write_series(tmp_path / "a", ramp, study="1")
    write_series(tmp_path / "b", ramp, study="2")
    one, two = find(tmp_path).sources
    assert one.id != two.id
    assert one.patient == two.patient != ""
    assert one.study != two.study


def test_a_missing_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="no such file or folder"):
        find(tmp_path / "nowhere")


def test_one_volume_is_asked_for(tmp_path: Path, write_nifti: Write, write_series: Callable, ramp: np.ndarray) -> None:
    write_nifti(tmp_path / "n" / "a.nii.gz", np.zeros((2, 2, 2)))
    write_nifti(tmp_path / "n" / "b.nii.gz", np.zeros((2, 2, 2)))
    write_series(tmp_path / "d", ramp)
    assert find_one(tmp_path / "d").source.kind == "dicom"
    with pytest.raises(ScanError, match="found 2: a, b"):
        find_one(tmp_path / "n")
    with pytest.raises(ScanError, match="no such file"):
        find_one(tmp_path / "missing")


def test_importing_the_room_loads_no_decoder() -> None:
    heavy = "{'pydicom', 'nibabel', 'nrrd', 'torch', 'PIL'}"
    code = f"import sys, medseg.scans, medseg.scans.layouts; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
