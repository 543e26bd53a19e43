from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medseg.errors import MedsegError
from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, DicomSource, dicom_source
from medseg.export.seg import write_segmentation
from medseg.export.sr import write_report
from medseg.structures import Boxes, LabelTable, Prediction, as_source
from medseg.volume import Array
from tests.dicom_factory import affine_of, write_series
from tests.validators import dciodvfy_errors, report_measurements

SHAPE = (20, 16, 6)
SPACING = (0.7, 0.9, 2.5)
LABELS = LabelTable({1: "liver", 2: "liver tumour", 3: "left kidney", 4: "spleen"})
ANATOMY = AnatomyTable.load()
MODEL = Algorithm("organs", "abc123")
BOXES = Boxes(np.array([[1, 1, 0, 4, 5, 2], [9.5, 9, 2.5, 14, 12.2, 4]]), np.array([2, 2]), np.array([0.123456, 0.9]))
NUMBERS = {"Volume", "Area", "Diameter", "Certainty of Finding", "Certainty of Impression", "Number of lesions"}

UNKNOWN_TO_DCIODVFY = ("not segmentation - attribute <ReferencedSegmentNumber>",)
"""It reads labelmaps (2024), and does not know yet that references to their segments are references to segments."""

Reading = dict[str, dict[str, Any]]
"""Tracking identifier → measurement → value and unit."""


def labelled() -> Array:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:8, 3:9, 1:4] = 1
    mask[3, 4, 2] = 2  # one voxel
    mask[10:14, 10:12, 3:5] = 2  # 2.8 × 1.8 mm in each of two slices
    mask[16, 2, 4] = 3
    return mask


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DicomSource:
    files = write_series(
        tmp_path_factory.mktemp("scan"), np.zeros(SHAPE, np.int16), affine_of(SHAPE, "oblique", spacing=SPACING)
    )
    return dicom_source(as_source("dicom", *files), {})


def pictured(folder: Path, seed: str = "1", **how: Any) -> DicomSource:
    files = write_series(
        folder / f"picture{seed}", np.zeros((12, 9, 1), np.uint8), np.diag([0.2, 0.3, 1, 1]),
        modality="US", layout="picture", bits=8, signed=False, seed=seed, **how,
    )  # fmt: skip
    return dicom_source(as_source("dicom", *files), {})


def predicted(source: DicomSource, **found: Any) -> Prediction:
    return Prediction("case", source.geometry, found.pop("labels", LABELS), **found)


def written(
    folder: Path, source: DicomSource, prediction: Prediction, seg: str = "binary"
) -> tuple[Dataset, Dataset | None]:
    """The report as it is read from its file, and the SEG beside it; dciodvfy finds no error in the report."""
    segmentation = None
    if prediction.mask is not None and seg != "none":
        kind: Any = seg
        segmentation = write_segmentation(
            prediction, source, folder / "seg.dcm", kind=kind, anatomy=ANATOMY, algorithm=MODEL
        )
    path = folder / "sr.dcm"
    write_report(prediction, source, path, segmentation=segmentation, anatomy=ANATOMY, algorithm=MODEL)
    assert dciodvfy_errors(path, UNKNOWN_TO_DCIODVFY if seg == "labelmap" else ()) == []
    return pydicom.dcmread(path), segmentation


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def groups(report: Dataset) -> dict[str, list[Dataset]]:
    """Tracking identifier → content items of the measurement groups."""
    (measurements,) = (item for item in report.ContentSequence if meaning(item) == "Imaging Measurements")
    named = [
        (item.ContentSequence, {meaning(one): one for one in item.ContentSequence})
        for item in measurements.ContentSequence
    ]
    return {str(by_name["Tracking Identifier"].TextValue): list(items) for items, by_name in named}


def read_by_dcmqi(path: Path) -> Reading:
    return {
        group["TrackingIdentifier"]: {
            item["quantity"]["CodeMeaning"]: (float(item["value"]), item["units"]["CodeValue"])
            for item in group["measurementItems"]
        }
        for group in report_measurements(path)["Measurements"]
    }


def test_another_hand_reads_volumes_diameters_and_certainties(source: DicomSource, tmp_path: Path) -> None:
    found = {"mask": labelled(), "boxes": BOXES, "thresholds": {"liver tumour": 0.1}}
    prediction = predicted(source, **found, classes={"benign": 0.25, "malignant tumour": 0.75})
    written(tmp_path, source, prediction)
    read = read_by_dcmqi(tmp_path / "sr.dcm")
    voxel = float(np.prod(SPACING))
    for value, name in LABELS.names.items():
        count = int((labelled() == value).sum())
        assert read[name] == {"Volume": (pytest.approx(count * voxel), "mm3")}
        assert read[name]["Volume"][0] == pytest.approx(1000 * prediction.sizes()[name])
    assert read["lesions"] == {"Number of lesions": (2, "1")}  # the voxel that no box holds is none
    assert read["lesion 1: liver tumour"] == {
        "Diameter": (pytest.approx(np.hypot(4 * 0.7, 2 * 0.9)), "mm"),
        "Volume": (pytest.approx(8 * voxel), "mm3"),  # the slice k = 3, whose centres lie in the box
        "Certainty of Finding": (pytest.approx(90.0), "%"),
    }
    assert read["lesion 2: liver tumour"] == {
        "Diameter": (pytest.approx(4 * 0.9), "mm"),
        "Certainty of Finding": (pytest.approx(12.3456), "%"),
    }
    assert read["benign"] == {"Certainty of Impression": (25.0, "%")}
    assert read["malignant tumour"] == {"Certainty of Impression": (75.0, "%")}
    assert {name for group in read.values() for name in group} <= NUMBERS


def test_another_hand_reads_what_was_found_and_by_whom(source: DicomSource, tmp_path: Path) -> None:
    written(tmp_path, source, predicted(source, mask=labelled()))
    read = report_measurements(tmp_path / "sr.dcm")
    assert read["observerContext"]["ObserverType"] == "DEVICE"
    assert read["observerContext"]["DeviceObserverName"] == "organs"
    assert read["observerContext"]["DeviceObserverSerialNumber"] == "abc123"
    assert read["procedureReported"]["CodeMeaning"] == "CT unspecified body region"
    liver, tumour, kidney, *_ = read["Measurements"]
    assert liver["Finding"]["CodeValue"] == "10200004"
    assert (tumour["Finding"]["CodeMeaning"], tumour["FindingSite"]["CodeMeaning"]) == ("Neoplasm", "Liver")
    assert (kidney["FindingSite"]["CodeMeaning"], kidney["Laterality"]["CodeMeaning"]) == ("Kidney", "Left")
    assert liver["measurementAlgorithmIdentification"] == {"AlgorithmName": "organs", "AlgorithmVersion": "abc123"}


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_what_was_segmented_refers_to_its_segment(source: DicomSource, kind: str, tmp_path: Path) -> None:
    report, segmentation = written(tmp_path, source, predicted(source, mask=labelled()), kind)
    assert segmentation is not None
    numbers = {item.SegmentLabel: item.SegmentNumber for item in segmentation.SegmentSequence}
    found = groups(report)
    for name, label in {**{n: n for n in LABELS.names.values()}, "lesion 1: liver tumour": "liver tumour"}.items():
        (segment,) = (item for item in found[name] if meaning(item) == "Referenced Segment")
        reference = segment.ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == numbers[label]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    listed = {
        instance.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    assert listed == {segmentation.SOPInstanceUID, *(dataset.SOPInstanceUID for dataset in source.datasets)}


def test_a_box_is_a_closed_surface_of_six_faces_in_the_patient(source: DicomSource, tmp_path: Path) -> None:
    report, _ = written(tmp_path, source, predicted(source, boxes=BOXES))
    found = groups(report)["lesion 1: liver tumour"]
    faces = [item for item in found if meaning(item) == "Volume Surface"]
    assert {(item.ValueType, item.GraphicType) for item in faces} == {("SCOORD3D", "POLYGON")}
    assert {item.ReferencedFrameOfReferenceUID for item in faces} == {source.datasets[0].FrameOfReferenceUID}
    low, high = BOXES.boxes[1].reshape(2, 3)
    expected = source.geometry.to_world([np.where(n, high, low) - 0.5 for n in np.ndindex(2, 2, 2)]) * (-1, -1, 1)
    outlines = [np.array(item.GraphicData).reshape(-1, 3) for item in faces]
    seen = []
    for outline in outlines:
        np.testing.assert_array_equal(outline[0], outline[-1])
        distances = np.linalg.norm(outline[:-1, None] - expected[None], axis=2)
        assert distances.min(axis=1).max() < 0.01
        seen.append(tuple(distances.argmin(axis=1).tolist()))
    edges = [frozenset((a, b)) for corners in seen for a, b in zip(corners, (*corners[1:], corners[0]), strict=True)]
    assert len(seen) == 6 and len(set(edges)) == 12
    assert all(edges.count(edge) == 2 for edge in edges)  # closed: two faces meet at every edge
    assert all(bin(a ^ b).count("1") == 1 for a, b in map(tuple, edges))  # and no edge cuts across a face


def test_a_finding_with_voxels_has_its_own_box_and_not_the_segment_of_all(source: DicomSource, tmp_path: Path) -> None:
    report, _ = written(tmp_path, source, predicted(source, mask=labelled(), boxes=BOXES))
    finding = groups(report)["lesion 1: liver tumour"]
    faces = [item for item in finding if meaning(item) == "Volume Surface"]
    assert len(faces) == 6 and not any(meaning(item) == "Referenced Segment" for item in finding)
    assert "Volume" in read_by_dcmqi(tmp_path / "sr.dcm")["lesion 1: liver tumour"]


def test_what_lies_below_the_working_point_is_not_reported(source: DicomSource, tmp_path: Path) -> None:
    written(tmp_path, source, predicted(source, boxes=BOXES, thresholds={"liver tumour": 0.5}))
    read = read_by_dcmqi(tmp_path / "sr.dcm")
    assert read["lesions"] == {"Number of lesions": (1, "1")}
    assert read["lesion 1: liver tumour"]["Certainty of Finding"] == (90.0, "%") and len(read) == 2


def test_a_label_that_is_answered_with_boxes_alone_has_no_volume(source: DicomSource, tmp_path: Path) -> None:
    organs = np.where(labelled() == 2, 0, labelled())
    written(tmp_path, source, predicted(source, mask=organs, boxes=BOXES, thresholds={"liver tumour": 0.5}))
    assert list(read_by_dcmqi(tmp_path / "sr.dcm")) == [
        *("liver", "left kidney", "spleen"),
        *("lesions", "lesion 1: liver tumour"),
    ]


def test_without_a_segmentation_a_component_is_its_box(source: DicomSource, tmp_path: Path) -> None:
    report, _ = written(tmp_path, source, predicted(source, mask=labelled()), "none")
    found = groups(report)["lesion 2: liver tumour"]
    points = np.concatenate([np.array(i.GraphicData).reshape(-1, 3) for i in found if meaning(i) == "Volume Surface"])
    index = source.geometry.to_index(points * (-1, -1, 1))
    np.testing.assert_allclose([index.min(axis=0), index.max(axis=0)], [(2.5, 3.5, 1.5), (3.5, 4.5, 2.5)], atol=1e-3)
    assert "Volume" in read_by_dcmqi(tmp_path / "sr.dcm")["liver"]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"layout": "picture", "marks": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6"}},
    ],
    ids=["a picture", "of a retired class"],
)
def test_a_box_on_a_picture_is_a_rectangle(how: dict[str, Any], tmp_path: Path) -> None:
    picture = pictured(tmp_path, **{k: v for k, v in how.items() if k != "layout"})
    boxes = Boxes(np.array([[2.0, 3.0, 7.5, 6.0]]), np.array([2]), np.array([0.5]))
    report, _ = written(tmp_path, picture, predicted(picture, boxes=boxes))
    (region,) = (item for item in groups(report)["lesion 1: liver tumour"] if item.ValueType == "SCOORD")
    assert region.GraphicType == "POLYLINE"
    assert np.array(region.GraphicData).reshape(-1, 2).tolist() == [[2, 3], [7.5, 3], [7.5, 6], [2, 6], [2, 3]]
    image = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPInstanceUID == picture.datasets[0].SOPInstanceUID
    assert image.ReferencedSOPClassUID == picture.datasets[0].SOPClassUID
    assert read_by_dcmqi(tmp_path / "sr.dcm")["lesion 1: liver tumour"]["Diameter"] == (pytest.approx(5.5 * 0.2), "mm")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_what_was_segmented_on_a_picture_has_an_area_and_refers_to_its_segment(kind: str, tmp_path: Path) -> None:
    picture = pictured(tmp_path)
    mask = np.zeros(picture.geometry.shape, np.uint8)
    mask[2:5, 2:4], mask[7, 7] = 2, 3
    report, segmentation = written(tmp_path, picture, predicted(picture, mask=mask), kind)
    assert segmentation is not None
    for name, number in (("liver tumour", 2), ("left kidney", 3), ("lesion 1: liver tumour", 2)):
        items = {
            meaning(item): item.ReferencedSOPSequence[0] for item in groups(report)[name] if item.ValueType == "IMAGE"
        }
        assert items["Referenced Segment"].ReferencedSOPInstanceUID == segmentation.SOPInstanceUID
        assert items["Referenced Segment"].ReferencedSegmentNumber == number
        image = items["Source Image for Segmentation"]
        assert image.ReferencedSOPInstanceUID == picture.datasets[0].SOPInstanceUID
    read = read_by_dcmqi(tmp_path / "sr.dcm")
    assert read["liver tumour"] == {"Area": (pytest.approx(6 * 0.06), "mm2")}
    assert read["liver"] == {"Area": (0, "mm2")}


def test_lengths_of_a_picture_of_unknown_spacing_are_in_pixels(tmp_path: Path) -> None:
    picture = pictured(tmp_path, strip=("PixelSpacing",))
    boxes = Boxes(np.array([[2.0, 3.0, 7.5, 6.0]]), np.array([2]), np.array([0.5]))
    mask = np.zeros(picture.geometry.shape, np.uint8)
    mask[9, 7] = 1
    written(tmp_path, picture, predicted(picture, boxes=boxes, mask=mask))
    read = read_by_dcmqi(tmp_path / "sr.dcm")
    assert read["liver"] == {"Area": (1, "{pixels}")}
    assert read["lesion 1: liver tumour"]["Diameter"] == (5.5, "{pixels}")


def test_regions_have_their_own_segments_and_volumes(source: DicomSource, tmp_path: Path) -> None:
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole tumour": (1, 2), "tumour core": (2,)}, paint=(1, 2))
    mask = np.where(labelled() < 3, labelled(), 0).astype(np.uint8)
    report, segmentation = written(tmp_path, source, predicted(source, mask=mask, labels=labels))
    assert segmentation is not None
    (segment,) = (item for item in groups(report)["whole tumour"] if meaning(item) == "Referenced Segment")
    assert segment.ReferencedSOPSequence[0].ReferencedSegmentNumber == 1
    volume = read_by_dcmqi(tmp_path / "sr.dcm")["whole tumour"]["Volume"][0]
    assert volume == pytest.approx(np.count_nonzero(mask) * np.prod(SPACING))


def test_a_method_and_a_class_have_a_code_of_their_own_with_a_meaning(source: DicomSource, tmp_path: Path) -> None:
    prediction = predicted(source, boxes=BOXES, mask=labelled(), classes={"grade 1": 0.5, "grade 2": 0.5})
    report, _ = written(tmp_path, source, prediction)
    found = groups(report)

    def method(name: str) -> Dataset:
        (diameter,) = (item for item in found[name] if meaning(item) == "Diameter")
        (item,) = (item for item in diameter.ContentSequence if meaning(item) == "Measurement Method")
        code: Dataset = item.ConceptCodeSequence[0]
        return code

    voxels, box = method("lesion 1: liver tumour"), method("lesion 2: liver tumour")
    assert (voxels.CodeValue, box.CodeValue) == ("DIAMETER_VOXELS", "DIAMETER_BOX")
    classes = [
        item.ConceptCodeSequence[0] for n in (1, 2) for item in found[f"grade {n}"] if meaning(item) == "Finding"
    ]
    assert [code.CodeMeaning for code in classes] == ["grade 1", "grade 2"]
    assert len({code.CodeValue for code in classes}) == 2
    private = {voxels.CodingSchemeDesignator, *(code.CodingSchemeDesignator for code in classes)}
    assert private == {item.CodingSchemeDesignator for item in report.CodingSchemeIdentificationSequence}


def test_tracking_is_unique_and_the_file_the_same_when_run_again(source: DicomSource, tmp_path: Path) -> None:
    twice = Boxes(np.repeat(BOXES.boxes[:1], 2, axis=0), np.array([2, 2]), np.array([0.5, 0.5]))
    prediction = predicted(
        source, boxes=twice, mask=labelled(), classes={"liver": 0.5}, thresholds={"left kidney": 0.5}
    )
    report, _ = written(tmp_path, source, prediction)
    first = (tmp_path / "sr.dcm").read_bytes()
    tracked = [
        item.UID
        for container in report.ContentSequence
        if container.ValueType == "CONTAINER"
        for group in container.ContentSequence
        for item in group.ContentSequence
        if meaning(item) == "Tracking Unique Identifier"
    ]
    assert len(tracked) == len(set(tracked)) == 4 + 1 + 2 + 1
    again, _ = written(tmp_path, source, prediction)
    assert (tmp_path / "sr.dcm").read_bytes() == first
    other, _ = written(tmp_path, source, predicted(source, mask=labelled()))
    assert again.SOPInstanceUID == report.SOPInstanceUID != other.SOPInstanceUID


def test_a_search_that_finds_nothing_says_so(source: DicomSource, tmp_path: Path) -> None:
    nothing = Boxes(np.zeros((0, 6)), np.zeros(0, int), np.zeros(0))
    written(tmp_path, source, predicted(source, boxes=nothing))
    assert read_by_dcmqi(tmp_path / "sr.dcm") == {"lesions": {"Number of lesions": (0, "1")}}


def test_a_model_that_looks_for_no_lesions_reports_none(source: DicomSource, tmp_path: Path) -> None:
    organs = LabelTable({1: "liver", 3: "left kidney"})
    written(tmp_path, source, predicted(source, mask=np.where(labelled() == 2, 0, labelled()), labels=organs))
    assert list(read_by_dcmqi(tmp_path / "sr.dcm")) == ["liver", "left kidney"]


def test_a_prediction_that_holds_nothing_is_refused(source: DicomSource, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="nothing to report"):
        written(tmp_path, source, predicted(source))
    assert not (tmp_path / "sr.dcm").exists()
