from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from medseg.scans.dicomdir import is_dicomdir, referenced_files


def index(path: Path, *named: object, in_use: int = 0xFFFF) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        MediaStorageDirectoryStorage,
        "1.2.3",
    )
    ds.FileSetID, ds.DirectoryRecordSequence = "DISC", []
    for name in named:
        record = Dataset()
        record.RecordInUseFlag, record.ReferencedFileID = in_use, name
        ds.DirectoryRecordSequence.append(record)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


def test_an_index_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "DICOMDIR").write_bytes(b"not an index")
    assert not is_dicomdir(tmp_path / "DICOMDIR")
    assert is_dicomdir(index(tmp_path / "other name", "A"))
    assert not is_dicomdir(tmp_path / "gone")


def test_names_are_found_whatever_their_case_and_version(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("im1", "IM2", "im3"):
        (tmp_path / "images" / name).touch()
    there, missing = referenced_files(
        index(tmp_path / "DICOMDIR", *(["IMAGES", name] for name in ("IM1", "IM2", "IM3;1")))
    )
    assert [path.name for path in there] == ["im1", "IM2", "im3"]
    assert not missing


def test_a_name_never_leads_out_of_the_disc(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (tmp_path / "disc").mkdir()
    named = [["..", "SECRET"], "/ETC/PASSWD", "../secret", ["..", "disc", "DICOMDIR"]]
    there, missing = referenced_files(index(tmp_path / "disc" / "DICOMDIR", *named))
    assert not there
    assert len(missing) == 4


def test_records_that_are_not_in_use_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "A").touch()
    assert referenced_files(index(tmp_path / "DICOMDIR", "A", in_use=0)) == ([], [])
