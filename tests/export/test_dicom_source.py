"""A series as objects derived from it see it: its instances, its frames, its planes, and what it lacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from medseg.errors import MedsegError
from medseg.export.dicom_source import Algorithm, DicomSource, derived_object, dicom_source, save
from medseg.export.uids import identify
from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.structures import Source
from tests.dicom_factory import affine_of, write_series

SHAPE = (6, 5, 4)
SECRETS = ("Secret", "SECRET-ID")


def a_source(folder: Path, options: dict[str, Any] | None = None, **made: Any) -> DicomSource:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    write_series(folder, volume, affine_of(SHAPE, "oblique"), **made)
    return dicom_source(find(folder).sources[0].source, options or {})


def an_object(source: DicomSource, version: str = "1") -> pydicom.Dataset:
    return derived_object(
        source, CTImageStorage, modality="SEG", number=2, description="x", algorithm=Algorithm("name", version)
    )


def test_files_and_planes_run_in_ascending_position(tmp_path: Path) -> None:
    source = a_source(tmp_path, order="shuffled")
    assert source.frames == ((0, None), (1, None), (2, None), (3, None))
    for dataset, plane in zip(source.datasets, source.grid.planes, strict=True):
        lps = np.array(dataset.ImagePositionPatient, float)
        np.testing.assert_allclose(plane[:3, 3], lps * [-1, -1, 1], atol=1e-6)
    assert source.geometry.matches(read_volume(find(tmp_path).sources[0].source).geometry, 1e-9)


def test_frames_of_one_file_are_counted_from_one(tmp_path: Path) -> None:
    source = a_source(tmp_path, modality="MR", layout="enhanced", order="reversed")
    assert len(source.datasets) == 1
    assert source.frames == ((0, 4), (0, 3), (0, 2), (0, 1))
    assert [reference.ReferencedFrameNumber for reference in source.references()] == [4, 3, 2, 1]
    assert len(source.referenced_series()[0].ReferencedInstanceSequence) == 1


def test_tiles_of_a_mosaic_are_parts_of_one_image(tmp_path: Path) -> None:
    source = a_source(tmp_path, modality="MR", layout="mosaic")
    assert source.frames == ((0, None),) * SHAPE[2]
    assert all(source.is_tile(plane) for plane in range(SHAPE[2]))
    assert not any("ReferencedFrameNumber" in reference for reference in source.references())


def test_a_mask_gets_onto_the_planes_without_a_copy(tmp_path: Path) -> None:
    source = a_source(tmp_path)
    mask = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    planes = source.mask_planes(mask)
    assert np.shares_memory(planes, mask)
    assert planes.shape == SHAPE[::-1]
    assert planes[3, 2, 1] == mask[1, 2, 3]


def test_an_object_is_of_the_patient_and_study_in_a_series_of_its_own(tmp_path: Path) -> None:
    source = a_source(tmp_path, marks={"SeriesNumber": 3})
    made = an_object(source)
    first = source.datasets[0]
    assert (made.PatientID, made.StudyInstanceUID) == (first.PatientID, first.StudyInstanceUID)
    assert made.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert "SeriesInstanceUID" not in made and "SOPInstanceUID" not in made
    assert made.SeriesNumber == 302
    identify(made)
    assert made.SeriesInstanceUID != first.SeriesInstanceUID


def test_nothing_of_an_object_depends_on_the_day_or_the_folder(tmp_path: Path) -> None:
    one, two = a_source(tmp_path / "a"), a_source(tmp_path / "b" / "c")
    for number, source in enumerate((one, two)):
        made = an_object(source)
        made.ContentDate, made.ContentTime = source.moment
        identify(made)
        save(made, tmp_path / f"{number}.dcm")
    assert (tmp_path / "0.dcm").read_bytes() == (tmp_path / "1.dcm").read_bytes()
    assert pydicom.dcmread(tmp_path / "0.dcm").ContentDate == "20200102"
    other = an_object(one, version="2")
    identify(other)
    assert other.SOPInstanceUID != pydicom.dcmread(tmp_path / "0.dcm").SOPInstanceUID


def test_a_series_stripped_bare_is_completed(tmp_path: Path) -> None:
    bare = ["PatientName", "PatientID", "StudyID", "StudyInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID"]
    source = a_source(tmp_path, strip=bare)
    first = source.datasets[0]
    assert first.PatientName == first.PatientID == first.StudyID == ""
    assert first.StudyInstanceUID.startswith("2.25.") and first.FrameOfReferenceUID.startswith("2.25.")
    instances = {dataset.SOPInstanceUID for dataset in source.datasets}
    files = {pydicom.dcmread(path).file_meta.MediaStorageSOPInstanceUID for path in tmp_path.iterdir()}
    assert instances == files
    text = " ".join(source.completions)
    assert all(keyword in text for keyword in bare[:-1])


def test_derived_uids_are_the_same_again_and_those_of_no_other_series(tmp_path: Path) -> None:
    bare = ["StudyInstanceUID", "FrameOfReferenceUID"]
    one, again = (a_source(tmp_path / name, strip=bare) for name in "ab")
    other = a_source(tmp_path / "c", strip=bare, seed="2")
    for keyword in bare:
        assert one.datasets[0][keyword].value == again.datasets[3][keyword].value
        assert one.datasets[0][keyword].value != other.datasets[0][keyword].value


def test_no_completion_says_who_the_patient_is(tmp_path: Path) -> None:
    source = a_source(
        tmp_path, marks={"PatientID": "SECRET-ID" * 9, "AccessionNumber": "SECRET-ID" * 3, "PatientAge": "SECRET-ID"}
    )
    assert len(source.completions) == 2
    assert not any(secret in sentence for secret in SECRETS for sentence in source.completions)
    assert not any(secret in source.series for secret in SECRETS)


def test_only_dicom_has_derived_objects(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"scan\.nii: expected a DICOM series to derive objects from, found nifti"):
        dicom_source(Source("nifti", (tmp_path / "scan.nii",)), {})


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    paths = write_series(tmp_path, volume, affine_of(SHAPE))
    source = find(tmp_path).sources[0].source
    paths[1].unlink()
    with pytest.raises(MedsegError, match="no such file"):
        dicom_source(source, {})
