from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from medseg.errors import MedsegError
from medseg.scans.find import find, find_one
from medseg.scans.reading import ScanError
from medseg.scans.sniff import content_of

Write = Callable[..., Path]


def write_dicomdir(path: Path, named: list[tuple[str, ...]]) -> Path:
    """An index that names these files, and no more than medseg asks of one."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        MediaStorageDirectoryStorage,
        "1.2.3",
    )
    ds.FileSetID, ds.DirectoryRecordSequence = "DISC", [Dataset()]  # the first is a patient and names no file
    for parts in named:
        record = Dataset()
        record.RecordInUseFlag, record.DirectoryRecordType = 0xFFFF, "IMAGE"
        record.ReferencedFileID = parts[0] if len(parts) == 1 else list(parts)
        ds.DirectoryRecordSequence.append(record)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    return path


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


def test_files_at_any_depth_and_of_any_kind_are_found_together(
    tmp_path: Path, write_nifti: Write, write_picture: Write, write_series: Callable, ramp: np.ndarray
) -> None:
    write_series(tmp_path / "a" / "b" / "c" / "d" / "e", ramp, modality="CT")
    write_nifti(tmp_path / "a" / "b" / "image.nii.gz", np.zeros((2, 2, 2)))
    write_picture(tmp_path / "a" / "picture.png", np.zeros((3, 2), np.uint8))
    assert sorted(entry.source.kind for entry in find(tmp_path).sources) == ["dicom", "nifti", "picture"]


def test_what_a_series_is_stands_beside_its_files(tmp_path: Path, write_series: Callable, ramp: np.ndarray) -> None:
    def place(ds: Dataset, k: int) -> None:
        ds.FrameOfReferenceUID = "1.2.3.4"

    write_series(tmp_path, ramp, orientation=(0, 1, 0, 0, 0, -1), description="t1 mpr", change=place)
    (entry,) = find(tmp_path).sources
    assert (entry.plane, entry.slices, entry.source.modality) == ("sagittal", 3, "MR")
    assert entry.source.description == "t1 mpr"
    assert entry.series.startswith("series_") and entry.frame_of_reference.startswith("frame_")


def test_files_that_one_waits_for_are_read_in_threads_and_found_alike(
    tmp_path: Path, write_series: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path, np.zeros((2, 2, 40), np.int16))
    before = find(tmp_path)
    threads: set[int] = set()

    def slowly(path: Path) -> object:
        threads.add(threading.get_ident())
        time.sleep(0.005)
        return content_of(path)

    monkeypatch.setattr("medseg.scans.find.content_of", slowly)
    monkeypatch.setattr("medseg.scans.find._CHUNK", 2)
    monkeypatch.setattr("medseg.scans.find._PATIENCE_S", 0.01)
    assert find(tmp_path) == before
    assert len(threads) > 2


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_labels_are_listed_with_the_series_that_they_lie_on(
    tmp_path: Path, write_series: Callable, ramp: np.ndarray, kind: str
) -> None:
    write_series(tmp_path / "image", ramp, series="7")
    write_series(tmp_path / "other", ramp, series="8")

    def refer(ds: Dataset, k: int) -> None:
        item, frame, study = Dataset(), Dataset(), Dataset()
        item.SeriesInstanceUID, frame.FrameOfReferenceUID = "1.2.1.7", "1.2.3.4"
        study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [item], [study]
        ds.ReferencedSeriesSequence, ds.ReferencedFrameOfReferenceSequence = [item], [frame]

    write_series(tmp_path / "labels", ramp[:, :, :1], series="9", modality=kind, change=refer)
    found = find(tmp_path)
    (label,) = found.annotations
    image = next(entry for entry in found.sources if entry.relative.name == "image")
    assert (label.source.kind, label.source.files[0].parent.name) == (kind.lower(), "labels")
    assert label.series == (image.series,)
    assert len(found.sources) == 2 and not found.unread


def test_labels_that_name_images_alone_belong_to_the_series_of_these(
    tmp_path: Path, write_series: Callable, ramp: np.ndarray
) -> None:
    first = pydicom.dcmread(write_series(tmp_path / "image", ramp)[0])

    def refer(ds: Dataset, k: int) -> None:
        image, derivation, frame = Dataset(), Dataset(), Dataset()
        image.ReferencedSOPInstanceUID = first.SOPInstanceUID
        derivation.SourceImageSequence, frame.DerivationImageSequence = [image], [derivation]
        ds.PerFrameFunctionalGroupsSequence = [frame]

    write_series(tmp_path / "labels", ramp[:, :, :1], series="9", modality="SEG", change=refer)
    found = find(tmp_path)
    assert found.annotations[0].series == (found.sources[0].series,)


def test_a_dicomdir_leads_to_its_files_and_is_an_index_where_a_folder_is_walked(
    tmp_path: Path, write_series: Callable, ramp: np.ndarray
) -> None:
    write_series(tmp_path / "DISC" / "A", ramp, series="1")
    write_series(tmp_path / "DISC" / "B", ramp, series="2")
    index = write_dicomdir(tmp_path / "DICOMDIR", [("DISC", "A", f"IM000{k}") for k in range(3)])
    through = find(index)
    assert [entry.slices for entry in through.sources] == [3] and not through.unread
    assert through.sources[0].relative.as_posix() == "DISC/A"
    assert find_one(index) == through.sources[0]
    walked = find(tmp_path)
    assert len(walked.sources) == 2 and not walked.faults
    assert [fault.message for fault in walked.unread] == ["DICOMDIR: a DICOMDIR, an index of other files"]


def test_what_a_dicomdir_names_in_vain_is_one_fault(tmp_path: Path, write_series: Callable, ramp: np.ndarray) -> None:
    write_series(tmp_path / "A", ramp)
    named = [("A", f"IM000{k}") for k in range(5)]
    found = find(write_dicomdir(tmp_path / "DICOMDIR", named))
    assert found.sources[0].slices == 3
    assert [fault.kind for fault in found.faults] == ["missing_file"]
    assert "2 file(s) that are not there (first: A/IM0003)" in found.faults[0].message


def test_a_damaged_dicomdir_is_a_fault(tmp_path: Path) -> None:
    index = write_dicomdir(tmp_path / "DICOMDIR", [("A",)])
    index.write_bytes(index.read_bytes()[:-7] + b"\xff" * 7)
    found = find(index)
    assert not found.sources
    assert [fault.case for fault in found.faults] == ["DICOMDIR"]


def test_a_link_to_nothing_and_a_closed_folder_are_said(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2)))
    (tmp_path / "slice").symlink_to(tmp_path / "gone")
    found = find(tmp_path)
    assert [entry.id for entry in found.sources] == ["a"]
    assert [(fault.kind, fault.case) for fault in found.faults] == [("missing_file", "slice")]
    if os.geteuid():  # the administrator may open every folder
        (tmp_path / "closed").mkdir(mode=0)
        assert "closed" in {fault.case for fault in find(tmp_path).faults}


@pytest.mark.shared_data
def test_every_real_series_is_found_once_and_every_label_at_its_series(shared_data: Path) -> None:
    found = find(shared_data / "dicom")
    dicom = [entry for entry in found.sources if entry.source.kind == "dicom"]
    assert len({entry.id for entry in dicom}) == len(dicom)
    assert {entry.relative.as_posix(): entry.slices for entry in dicom if entry.source.modality in ("CT", "PT")} == {
        "sarcoma_rtstruct/STS_003/PET/image": 51,
        "sarcoma_rtstruct/STS_004/PET/image": 85,
        "seg_ct3/ct": 3,
    }
    images = {entry.series: entry.relative.parts[:3] for entry in dicom}
    assert [label.source.kind for label in found.annotations] == ["rtstruct"] * 4 + ["seg"]
    structures = [label for label in found.annotations if label.source.kind == "rtstruct"]
    assert all(images[label.series[0]] == label.relative.parts[:3] for label in structures)
    assert not found.faults


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "count"),
    [("ge/fmri/001", 2), ("ge/fmri/001_implicit", 2), ("ge/dti/001", 2), ("ge/dti/002", 4), ("ge/anatomical/001", 1)],
)
def test_a_real_series_holds_as_many_volumes_as_its_reference(shared_data: Path, folder: str, count: int) -> None:
    reference = nib.load(shared_data / "dicom" / f"{folder}_ground_truth.nii.gz")
    found = find(shared_data / "dicom" / folder)
    assert len(found.sources) == count == (reference.shape[3] if len(reference.shape) == 4 else 1)
    assert {entry.slices for entry in found.sources} == {min(reference.shape[:3])}


def test_importing_the_room_loads_no_decoder() -> None:
    heavy = "{'pydicom', 'nibabel', 'nrrd', 'torch', 'PIL'}"
    code = f"import sys, medseg.scans, medseg.scans.layouts; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
