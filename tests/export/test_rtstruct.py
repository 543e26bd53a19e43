from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medseg.errors import MedsegError
from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, DicomSource, dicom_source
from medseg.export.rtstruct import write_rtstruct
from medseg.scans import rtstruct
from medseg.scans.contours import inside
from medseg.structures import LabelTable, Prediction, Source, as_source
from medseg.volume import Array
from tests.dicom_factory import affine_of, write_series
from tests.validators import dciodvfy_errors

SHAPE = (18, 14, 7)
LABELS = LabelTable({1: "liver", 2: "left kidney", 3: "lung tumour", 4: "spleen"})
ANATOMY = AnatomyTable.load()
MODEL = Algorithm("organs", "abc123")

SERIES: dict[str, dict[str, Any]] = {
    "axial": {},
    "coronal": {"plane": "coronal", "modality": "MR"},
    "sagittal": {"plane": "sagittal"},
    "oblique": {"plane": "oblique", "modality": "MR"},
    "feet first": {"patient_position": "FFS"},
    "prone, numbered from the top": {"patient_position": "HFP", "order": "reversed"},
    "oblique, feet first on the left side, files in disorder": {
        "plane": "oblique",
        "patient_position": "FFDL",
        "order": "shuffled",
    },
    "many frames in one file": {"plane": "sagittal", "layout": "enhanced"},
    "tilted gantry": {"tilt_degrees": 12.0},
    "tilted gantry, head first on the right side": {"tilt_degrees": -7.5, "patient_position": "HFDR"},
    "uneven slices": {"depths_mm": (0.0, 2.5, 5.0, 9.0, 11.5, 14.0, 20.0)},
}


def scanned(
    folder: Path, plane: str = "axial", spacing: tuple[float, ...] = (0.7, 0.9, 2.5), **how: Any
) -> DicomSource:
    affine = affine_of(
        SHAPE, plane, how.get("patient_position", "HFS"), spacing, how.pop("centre", (12.0, -30.0, 41.0))
    )
    files = write_series(folder, np.zeros(SHAPE, np.int16), affine, **how)
    along = [float(np.dot(affine[:3, 2], _position(path))) for path in files]
    ordered = [path for _, path in sorted(zip(along, files, strict=True))]
    frames = tuple(range(SHAPE[2])) if how.get("layout") == "enhanced" else ()
    source = Source("dicom", tuple(ordered * SHAPE[2] if frames else ordered), frames=frames)
    return dicom_source(source, {"uneven": "resample"})


def _position(path: Path) -> Array:
    place = pydicom.dcmread(path).get("ImagePositionPatient") or (0, 0, 0)
    return np.array(place, float) * (-1, -1, 1)


def labelled(shape: tuple[int, ...], seed: int = 0) -> Array:
    """A solid with a hole and an island in it, thin lines, and single pixels that touch by corners."""
    random = np.random.default_rng(seed)
    mask = np.where(random.random(shape) < 0.25, random.integers(1, 4, shape), 0)
    mask[2:12, 2:11] = 1
    mask[4:10, 4:9] = 0
    mask[6:8, 6] = 1
    mask[14, :, : shape[2] // 2] = 2
    return mask.astype(np.uint8)


def predicted(source: DicomSource, mask: Array | None = None, labels: LabelTable = LABELS) -> Prediction:
    return Prediction("case", source.geometry, labels, mask=labelled(source.geometry.shape) if mask is None else mask)


def written(path: Path, source: DicomSource, prediction: Prediction) -> Dataset:
    write_rtstruct(prediction, source, path, anatomy=ANATOMY, algorithm=MODEL)
    return pydicom.dcmread(path)


def native(prediction: Prediction, source: DicomSource) -> Array:
    """The mask on the native planes, ``(K, rows, columns)``."""
    assert prediction.mask is not None
    return source.mask_planes(prediction.mask)


def drawn(dataset: Dataset, source: DicomSource) -> dict[int, Array]:
    """Each ROI on the native planes ``(K, rows, columns)`` by the pixel-centre rule; a contour lies on the slice it names."""
    slices = {
        (item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")): k
        for k, item in enumerate(source.references())
    }
    columns, rows, count = source.grid.shape
    found: dict[int, Array] = {}
    for roi in dataset.ROIContourSequence:
        polygons: dict[int, list[Array]] = defaultdict(list)
        for contour in roi.get("ContourSequence", ()):
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            assert len(contour.ContourData) == 3 * contour.NumberOfContourPoints
            (image,) = contour.ContourImageSequence
            k = slices[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
            points = np.array(contour.ContourData, float).reshape(-1, 3) * (-1, -1, 1)
            plane = source.grid.planes[k]
            index = np.linalg.solve(plane[:3, :3], (points - plane[:3, 3]).T).T
            assert np.abs(index[:, 2]).max() < 1e-3, "off its slice"
            polygons[k].append(index[:, :2])
        masks = [inside(polygons[k], (columns, rows)).T for k in range(count)]
        found[int(roi.ReferencedROINumber)] = np.stack(masks)
    return found


@pytest.mark.parametrize("how", SERIES.values(), ids=SERIES)
def test_contours_give_back_the_mask_on_the_native_planes(how: dict[str, Any], tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan", **how)
    prediction = predicted(source)
    dataset = written(tmp_path / "rtstruct.dcm", source, prediction)
    planes = native(prediction, source)
    for number, mask in drawn(dataset, source).items():
        np.testing.assert_array_equal(mask, planes == number)
    assert dciodvfy_errors(tmp_path / "rtstruct.dcm") == []


@pytest.mark.parametrize("name", [name for name, how in SERIES.items() if not {"tilt_degrees", "depths_mm"} & set(how)])
def test_the_reader_of_structure_sets_gives_back_the_mask(name: str, tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan", **SERIES[name])
    prediction = predicted(source)
    written(tmp_path / "rtstruct.dcm", source, prediction)
    mask, geometry = rtstruct.read(as_source("rtstruct", tmp_path / "rtstruct.dcm"), source.geometry, LABELS)
    assert geometry.matches(source.geometry)
    np.testing.assert_array_equal(mask, prediction.mask)


def test_a_label_on_every_other_slice_is_not_filled_in_between(tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan")
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:8, 3:8, ::2] = 1
    written(tmp_path / "rtstruct.dcm", source, predicted(source, mask))
    back, _ = rtstruct.read(as_source("rtstruct", tmp_path / "rtstruct.dcm"), source.geometry, LABELS)
    np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize(
    ("spacing", "centre"),
    [
        ((0.004, 0.005, 0.01), (3.0, -2.0, 9.0)),
        ((0.7, 0.9, 2.5), (123456.0, -98765.0, 54321.0)),
        ((0.0002, 0.0003, 0.001), (-98765.0, 6.0, 54321.0)),
    ],
    ids=["of a micro CT", "far from the origin", "both"],
)
def test_coordinates_fit_into_sixteen_characters_and_stay_exact(
    spacing: tuple[float, ...], centre: tuple[float, ...], tmp_path: Path
) -> None:
    source = scanned(tmp_path / "scan", plane="oblique", spacing=spacing, centre=centre)
    prediction = predicted(source)
    dataset = written(tmp_path / "rtstruct.dcm", source, prediction)
    texts = [str(v) for roi in dataset.ROIContourSequence[:1] for c in roi.ContourSequence for v in c.ContourData]
    assert max(map(len, texts)) <= 16
    planes = native(prediction, source)
    for number, mask in drawn(dataset, source).items():
        np.testing.assert_array_equal(mask, planes == number)


def test_a_contour_may_be_longer_than_an_explicit_type_can_say(tmp_path: Path) -> None:
    shape = (400, 30, 1)
    files = write_series(tmp_path / "scan", np.zeros(shape, np.int16), affine_of(shape, "oblique"))
    source = dicom_source(as_source("dicom", *files), {})
    comb = np.zeros(shape, np.uint8)
    comb[::2], comb[:, 0] = 1, 1
    for row in range(4, 30, 4):
        comb[1::2, row : row + 2] = 1
    dataset = written(tmp_path / "rtstruct.dcm", source, predicted(source, comb))
    (contour,) = dataset.ROIContourSequence[0].ContourSequence
    assert sum(len(str(v)) + 1 for v in contour.ContourData) > 1 << 16
    np.testing.assert_array_equal(drawn(dataset, source)[1][0], comb[..., 0].T)
    assert dciodvfy_errors(tmp_path / "rtstruct.dcm") == []


def test_each_region_says_what_it_is_and_what_made_it(tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan")
    dataset = written(tmp_path / "rtstruct.dcm", source, predicted(source))
    assert [roi.ROIName for roi in dataset.StructureSetROISequence] == list(LABELS.names.values())
    assert {roi.ROIGenerationAlgorithm for roi in dataset.StructureSetROISequence} == {"AUTOMATIC"}
    assert all("abc123" in roi.ROIGenerationDescription for roi in dataset.StructureSetROISequence)
    assert dataset.ApprovalStatus == "UNAPPROVED"
    colours = [tuple(roi.ROIDisplayColor) for roi in dataset.ROIContourSequence]
    assert len(set(colours)) == len(colours)
    liver, kidney, tumour, _ = dataset.RTROIObservationsSequence
    assert (liver.RTROIInterpretedType, tumour.RTROIInterpretedType) == ("ORGAN", "")
    assert liver.RTROIIdentificationCodeSequence[0].CodeValue == "10200004"
    side = kidney.RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeMeaning == "Left"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert tumour.AnatomicRegionSequence[0].CodeMeaning == "Lung"


def test_it_belongs_to_the_source_and_refers_to_every_slice(tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan")
    dataset = written(tmp_path / "rtstruct.dcm", source, predicted(source))
    scan = pydicom.dcmread(next((tmp_path / "scan").iterdir()))
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == scan[keyword].value
    assert dataset.SeriesInstanceUID != scan.SeriesInstanceUID
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for item in series.ContourImageSequence}
    assert named == {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "scan").iterdir()}


def test_a_label_that_does_not_occur_is_a_region_without_contours(tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan")
    dataset = written(tmp_path / "rtstruct.dcm", source, predicted(source, np.zeros(SHAPE, np.uint8)))
    assert [roi.ReferencedROINumber for roi in dataset.ROIContourSequence] == [1, 2, 3, 4]
    assert not any("ContourSequence" in roi for roi in dataset.ROIContourSequence)
    assert dciodvfy_errors(tmp_path / "rtstruct.dcm") == []


def test_regions_may_overlap(tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan")
    regions = {"whole tumour": (1, 2, 3), "tumour core": (2, 3)}
    labels = LabelTable({1: "edema", 2: "core", 3: "enhancing tumour"}, regions=regions, paint=(1, 2))
    prediction = predicted(source, labels=labels)
    masks = drawn(written(tmp_path / "rtstruct.dcm", source, prediction), source)
    planes = native(prediction, source)
    np.testing.assert_array_equal(masks[1], planes > 0)
    np.testing.assert_array_equal(masks[2], planes > 1)


def test_the_same_mask_gives_the_same_file_and_another_mask_another_instance(tmp_path: Path) -> None:
    source = scanned(tmp_path / "scan")
    prediction = predicted(source)
    first = written(tmp_path / "a.dcm", source, prediction)
    written(tmp_path / "b.dcm", source, prediction)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    moved = predicted(source, np.roll(labelled(SHAPE), 1, axis=2))
    assert written(tmp_path / "c.dcm", source, moved).SOPInstanceUID != first.SOPInstanceUID


def test_pictures_and_predictions_without_mask_are_refused(tmp_path: Path) -> None:
    files = write_series(tmp_path / "us", np.zeros((8, 9, 1), np.uint8), np.eye(4), modality="US", layout="picture")
    picture = dicom_source(as_source("dicom", *files), {})
    mask = np.ones(picture.geometry.shape, np.uint8)
    with pytest.raises(MedsegError, match="no place in the patient"):
        written(tmp_path / "rtstruct.dcm", picture, predicted(picture, mask))
    source = scanned(tmp_path / "scan")
    with pytest.raises(MedsegError, match="no mask"):
        written(tmp_path / "rtstruct.dcm", source, Prediction("case", source.geometry, LABELS))
    assert not (tmp_path / "rtstruct.dcm").exists()
