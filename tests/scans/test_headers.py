from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    MRSpectroscopyStorage,
    ParametricMapStorage,
    RawDataStorage,
    SegmentationStorage,
)

from medseg.scans.headers import headers_of, normal, read_annotation, read_headers
from medseg.scans.reading import ScanError

Series = Callable[..., list[Path]]


@pytest.fixture
def write(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> Callable[..., Path]:
    """One slice whose header ``change`` may spoil."""

    def one(change: Callable[[Dataset], None], **options: object) -> Path:
        return write_series(tmp_path, ramp[:, :, :1], change=lambda ds, k: change(ds), **options)[0]

    return one


def test_a_header_says_where_a_plane_lies(write: Callable[..., Path]) -> None:
    def change(ds: Dataset) -> None:
        ds.FrameOfReferenceUID, ds.SpacingBetweenSlices, ds.EchoTime = "1.2.3", "2.5", "30"
        ds.ImagePositionPatient, ds.PixelSpacing = [1.5, -2, 3e2], [0.5, 0.75]

    (entry,) = read_headers(write(change, orientation=(0, 1, 0, 0, 0, -1)))
    assert entry.position == (1.5, -2.0, 300.0)
    assert entry.orientation == (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    assert (entry.pixel_spacing, entry.thickness, entry.matrix) == ((0.5, 0.75), 2.5, (5, 4, 1))
    assert (entry.frame_of_reference, entry.marks, entry.frame) == ("1.2.3", {"EchoTime": "30"}, None)
    assert entry.along == pytest.approx(-1.5)
    assert normal(entry.orientation) == pytest.approx([-1, 0, 0])


def test_the_file_and_the_dataset_say_the_same(write: Callable[..., Path]) -> None:
    path = write(lambda ds: None)
    assert headers_of(pydicom.dcmread(path), path) == read_headers(path)


def test_no_name_or_number_of_the_patient_leaves_a_header(write: Callable[..., Path]) -> None:
    (entry,) = read_headers(write(lambda ds: None))
    assert "ecret" not in repr(entry).replace(str(entry.path), "").lower()
    assert entry.patient.startswith("patient_")


@pytest.mark.parametrize(
    ("keyword", "garbage"),
    [
        ("ImagePositionPatient", b"a\\b\\c"),
        ("ImagePositionPatient", b"1\\2"),
        ("ImagePositionPatient", b"nan\\0\\0 "),
        ("ImageOrientationPatient", b"0\\0\\0\\0\\0\\0 "),
        ("PixelSpacing", b"0\\0 "),
        ("SliceThickness", b"1e999 "),
        ("InstanceNumber", b"\xff\xfe"),
        ("Modality", b"\0\0\0\0"),
        ("SeriesInstanceUID", b"\xde\xad\xbe\xef"),
        ("SeriesDescription", b"\x80\x81\x1b$"),
        ("PatientID", b"\xff\xff"),
        ("EchoTime", b"\\\\\\\\"),
        ("SamplesPerPixel", b""),
        ("NumberOfFrames", b"many"),
    ],
)
def test_garbage_in_a_tag_counts_as_absent(write: Callable[..., Path], keyword: str, garbage: bytes) -> None:
    path = write(lambda ds: setattr(ds, keyword, None))
    ds = pydicom.dcmread(path)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag)
    ds[keyword] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(garbage), garbage, 0, False, True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    (entry,) = read_headers(path)
    assert entry.matrix == (5, 4, 1)
    lost = {
        "ImagePositionPatient": "position",
        "ImageOrientationPatient": "orientation",
        "PixelSpacing": "pixel_spacing",
    }
    assert keyword not in lost or getattr(entry, lost[keyword]) is None
    assert entry.thickness == (None if keyword == "SliceThickness" else 1.0)


@pytest.mark.parametrize(
    ("storage", "word"),
    [(ParametricMapStorage, "Parametric Map"), (RawDataStorage, "Raw Data"), (MRSpectroscopyStorage, "Spectroscopy")],
)
def test_objects_that_look_like_images_are_known_by_their_class(
    write: Callable[..., Path], storage: str, word: str
) -> None:
    path = write(lambda ds: setattr(ds, "SOPClassUID", storage))
    with pytest.raises(ScanError, match=word) as raised:
        read_headers(path)
    assert raised.value.kind == "no_scan"


def test_the_projections_of_a_spect_are_no_scan(write: Callable[..., Path]) -> None:
    path = write(lambda ds: setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]), modality="NM")
    with pytest.raises(ScanError, match="projections"):
        read_headers(path)


@pytest.mark.parametrize("modality", ["CT", "DX"])
def test_an_image_header_that_was_cut_short_is_a_fault_and_no_stranger(
    write: Callable[..., Path], modality: str
) -> None:
    def change(ds: Dataset) -> None:
        ds.SOPClassUID = CTImageStorage

    path = write(change, modality=modality)
    body = path.read_bytes()
    path.write_bytes(body[: body.index(b"\x28\x00\x10\x00US")])
    with pytest.raises(ScanError, match="cut short") as raised:
        read_headers(path)
    assert raised.value.kind == "unreadable"


def test_a_segmentation_is_an_annotation_and_no_image(write: Callable[..., Path]) -> None:
    def change(ds: Dataset) -> None:
        ds.SOPClassUID, ds.FrameOfReferenceUID = SegmentationStorage, "1.2.3"
        series, instance = Dataset(), Dataset()
        instance.ReferencedSOPInstanceUID = "1.5"
        series.SeriesInstanceUID, series.ReferencedInstanceSequence = "1.4", [instance]
        ds.ReferencedSeriesSequence = [series]

    path = write(change, modality="SEG")
    found = read_annotation(path)
    assert (found.kind, found.series, found.instances, found.frame_of_reference) == ("seg", ("1.4",), {"1.5"}, "1.2.3")
    with pytest.raises(ScanError, match="labels of another series"):
        read_headers(path)


def test_an_image_is_no_annotation(write: Callable[..., Path]) -> None:
    with pytest.raises(ScanError, match="expected a DICOM SEG or RTSTRUCT, found modality 'MR'"):
        read_annotation(write(lambda ds: None))


def test_references_that_are_no_sequences_are_passed_over(write: Callable[..., Path]) -> None:
    path = write(lambda ds: None, modality="RTSTRUCT")
    ds = pydicom.dcmread(path)
    ds.add_new(0x30060010, "LO", "no sequence")
    pydicom.dcmwrite(path, ds, enforce_file_format=True)
    assert read_annotation(path).series == ()


@pytest.mark.shared_data
def test_structures_of_real_data_name_their_series(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "sarcoma_rtstruct" / "STS_003" / "PET"
    slices = [read_headers(path)[0] for path in sorted((folder / "image").iterdir())]
    (path,) = (folder / "mask").iterdir()
    found = read_annotation(path)
    assert found.series == (slices[0].series,)
    assert found.frame_of_reference == slices[0].frame_of_reference
    assert len(found.instances) > 50
