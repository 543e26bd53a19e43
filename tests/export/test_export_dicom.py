"""``export=dicom`` writes its objects for every series, of the real data too, and says what had to be completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medseg.data.preprocess import Restoration
from medseg.errors import MedsegError
from medseg.export.dicom import DicomExport, ValueMap, export_dicom, probability_maps
from medseg.export.dicom_source import Algorithm
from medseg.export.parametric_map import attribution_by
from medseg.scans import read_geometry
from medseg.scans.find import FoundSource, find
from medseg.structures import Boxes, Case, LabelTable, Prediction, Source
from medseg.volume import Geometry, reorientation_to
from tests.dicom_factory import affine_of, write_series
from tests.validators import dciodvfy_errors, placed, report_measurements, segmentation_labels

ALGORITHM = Algorithm("test model", "5eed")
LABELS = LabelTable({1: "liver", 2: "tumour"})
SHAPE = (17, 13, 6)


def a_scan(folder: Path, **made: Any) -> Source:
    shape = made.pop("shape", SHAPE)
    write_series(folder, np.arange(np.prod(shape)).reshape(shape), affine_of(shape), **made)
    return find(folder).sources[0].source


def predicted(source: Source, options: dict[str, Any] | None = None) -> Prediction:
    """A label along each axis and two lesions, on the grid of any scan that is not tiny."""
    geometry = read_geometry(source) if not options else read_geometry(source, options)
    mask = np.zeros(geometry.shape, np.uint8)
    i, j = (n // 2 for n in geometry.shape[:2])
    mask[2:i, 1 : j + 1] = 1
    mask[i + 2 : -2, j : j + 3] = mask[3, 2] = 2
    return Prediction("case", geometry, LABELS, mask)


def write(source: Source, folder: Path, options: DicomExport, prediction: Prediction | None = None, **more: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    case = Case("case", (source,))
    given = {"options": options, "plan_options": {}, "algorithm": ALGORITHM, **more}
    return export_dicom(prediction or predicted(source), case, folder, **given)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_every_object_that_was_asked_for_is_written(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan")
    assert write(source, tmp_path / "all", DicomExport()) == []
    assert names(tmp_path / "all") == {"seg.dcm", "rtstruct.dcm", "sr.dcm"}
    for path in (tmp_path / "all").iterdir():
        assert dciodvfy_errors(path) == []
    write(source, tmp_path / "one", DicomExport(seg="labelmap", rtstruct=False, sr=False))
    assert names(tmp_path / "one") == {"seg.dcm"}
    assert pydicom.dcmread(tmp_path / "one" / "seg.dcm").SegmentationType == "LABELMAP"
    write(source, tmp_path / "none", DicomExport(seg="none", rtstruct=False, sr=False))
    assert names(tmp_path / "none") == set()


def test_all_objects_are_of_one_study_and_each_of_its_own_series(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan")
    maps = [ValueMap("heatmap_1", attribution_by("Grad-CAM", "liver"), np.ones(SHAPE, np.float32))]
    write(source, tmp_path / "out", DicomExport(), maps=maps)
    objects = [pydicom.dcmread(path) for path in (tmp_path / "out").iterdir()]
    first = pydicom.dcmread(source.files[0])
    assert len(objects) == 4
    assert {made.StudyInstanceUID for made in objects} == {first.StudyInstanceUID}
    assert {made.PatientID for made in objects} == {first.PatientID}
    assert len({made.SeriesInstanceUID for made in objects} | {first.SeriesInstanceUID}) == 5
    assert len({int(made.SeriesNumber) for made in objects}) == 4


def test_a_second_run_writes_the_same_files(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan", modality="MR", layout="enhanced")
    for run in ("one", "two"):
        write(source, tmp_path / run, DicomExport())
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_what_the_source_lacks_and_what_was_mended_is_said(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan", tilt_degrees=12.0, strip=["PatientID", "FrameOfReferenceUID"])
    said = write(source, tmp_path / "out", DicomExport())
    assert len(said) == 3
    assert "PatientID" in said[0] and "FrameOfReferenceUID" in said[1] and "as they were scanned" in said[2]


def test_a_picture_gets_what_dicom_has_for_pictures(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan", modality="DX", layout="picture", shape=(17, 13, 1), signed=False)
    prediction = predicted(source)
    maps = [ValueMap("heatmap_1", attribution_by("Grad-CAM", "liver"), np.ones((17, 13), np.float32))]
    said = write(source, tmp_path / "out", DicomExport(), prediction, maps=maps)
    assert names(tmp_path / "out") == {"seg.dcm", "sr.dcm"}
    assert said == ["no RTSTRUCT or parametric map was written: a picture has no place in the patient"]
    for path in (tmp_path / "out").iterdir():
        assert dciodvfy_errors(path) == []


def test_boxes_without_a_mask_get_a_report(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan")
    boxes = Boxes(np.array([[2.0, 3, 1, 8, 9, 4]]), np.array([2]), np.array([0.9]))
    prediction = Prediction("case", read_geometry(source), LABELS, boxes=boxes)
    write(source, tmp_path / "out", DicomExport(), prediction)
    assert names(tmp_path / "out") == {"sr.dcm"}


def test_probabilities_lie_on_the_scan_however_the_plan_turned_it(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan", modality="MR")
    scan = read_geometry(source)
    turn = reorientation_to(scan, "RAS")
    truth = np.random.default_rng(1).random((3, *scan.shape)).astype(np.float32)
    scores = turn.apply(truth)
    grid = turn.apply_to_geometry(scan)
    restoration = Restoration(scan, turn, (0, 0, 0), grid.shape, grid.shape)
    maps = probability_maps(scores, restoration, LABELS)
    write(source, tmp_path / "out", DicomExport(seg="none", rtstruct=False, sr=False), maps=maps)
    assert names(tmp_path / "out") == {"probability_1-liver.dcm", "probability_2-tumour.dcm"}
    for channel, name in ((1, "liver"), (2, "tumour")):
        read = pydicom.dcmread(tmp_path / "out" / f"probability_{channel}-{name}.dcm").pixel_array
        np.testing.assert_allclose(read.transpose(2, 1, 0), truth[channel], atol=1e-6)


def test_a_scan_that_changed_since_it_was_read_is_refused(tmp_path: Path) -> None:
    source = a_scan(tmp_path / "scan")
    moved = Geometry(SHAPE, np.diag([1.0, 1, 1, 1]))
    prediction = Prediction("case", moved, LABELS, np.zeros(SHAPE, np.uint8))
    with pytest.raises(MedsegError, match="predict the case again"):
        write(source, tmp_path / "out", DicomExport(), prediction)


def test_wrong_options_are_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="expected binary, labelmap or none, found 'fractional'"):
        DicomExport(seg="fractional")  # type: ignore[arg-type]
    with pytest.raises(MedsegError, match=r"mine\.yaml"):
        DicomExport(anatomy=tmp_path / "mine.yaml")


def _real_volumes(folder: Path) -> list[FoundSource]:
    """One volume of every folder of the shared series."""
    return list({str(found.relative): found for found in find(folder).sources if found.source.kind == "dicom"}.values())


@pytest.mark.shared_data
def test_every_real_series_gets_its_objects(shared_data: Path, tmp_path: Path) -> None:
    volumes = _real_volumes(shared_data / "dicom")
    assert len(volumes) > 10
    for number, found in enumerate(volumes):
        folder = tmp_path / str(number)
        prediction = predicted(found.source)
        said = write(found.source, folder, DicomExport(), prediction)
        assert names(folder) == {"seg.dcm", "rtstruct.dcm", "sr.dcm"}
        problems = {path.name: dciodvfy_errors(path) for path in folder.iterdir()}
        assert problems == {"seg.dcm": [], "rtstruct.dcm": [], "sr.dcm": []}, found.relative
        values, affine, _ = segmentation_labels(folder / "seg.dcm")
        np.testing.assert_array_equal(placed(values, affine, prediction.geometry), prediction.mask)
        assert report_measurements(folder / "sr.dcm")["Measurements"]
        first = pydicom.dcmread(found.source.files[0], stop_before_pixels=True)
        secrets = [str(first.get(keyword) or "-") for keyword in ("PatientName", "PatientID", "StudyInstanceUID")]
        assert not any(secret in sentence for secret in secrets for sentence in said if len(secret) > 2)
