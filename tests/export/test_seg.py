"""What medseg writes as DICOM SEG is valid, and other people's software reads the same labels at the same place.

That every frame lies on its slice in every state of a source is tested in `test_round_trip`.
"""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest

from medseg.errors import MedsegError
from medseg.export import seg
from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, DicomSource, dicom_source
from medseg.export.overlay import COLOURS
from medseg.export.seg import SegmentationKind, cielab, segments_of, write_segmentation
from medseg.scans.find import find
from medseg.scans.grid import Grid
from medseg.structures import LabelTable, Prediction
from medseg.volume import Array, Geometry
from tests.dicom_factory import affine_of, write_series
from tests.validators import dciodvfy_errors, placed, segmentation_labels, segmentation_masks

ANATOMY = AnatomyTable.load()
ALGORITHM = Algorithm("test model", "5eed")
LABELS = LabelTable({1: "liver", 2: "Läsion\\Leber", 7: "left kidney tumor"})
KINDS: list[SegmentationKind] = ["binary", "labelmap"]
SHAPE = (17, 13, 6)  # 221 pixels: frames begin inside of bytes
STATES: dict[str, dict[str, Any]] = {
    "axial": {},
    "coronal, feet first": {"plane": "coronal", "patient_position": "FFP", "modality": "MR"},
    "sagittal, decubitus": {"plane": "sagittal", "patient_position": "HFDL", "modality": "PT"},
    "oblique, reversed": {"plane": "oblique", "patient_position": "FFDR", "order": "reversed"},
    "enhanced, shuffled": {"plane": "oblique", "modality": "MR", "layout": "enhanced", "order": "shuffled"},
    "mosaic": {"modality": "MR", "layout": "mosaic"},
    "SPECT": {"modality": "NM", "layout": "enhanced"},
    "one slice": {"shape": (17, 13, 1)},
}


def a_source(folder: Path, *, plane: str = "axial", shape: tuple[int, ...] = SHAPE, **made: Any) -> DicomSource:
    """A series as the factory writes it; its ``(I, J, K)`` are those of the grid."""
    options = made.pop("options", {})
    volume = np.arange(np.prod(shape)).reshape(shape) % 200
    affine = affine_of(shape, plane, made.get("patient_position", "HFS"))
    write_series(folder, volume, affine, **made)
    return dicom_source(find(folder).sources[0].source, options)


def a_mask(shape: tuple[int, ...]) -> Array:
    """Labels 1 and 7 and none of 2; nothing is symmetric, and the last slice is empty."""
    mask = np.zeros(shape, np.uint8)
    mask[2:9, 3:8] = 1
    mask[10:15, 2:-2] = 7
    mask[:, :, :1] *= np.random.default_rng(5).random(mask[:, :, :1].shape) < 0.5
    mask[-1, -1, 0] = 7
    if shape[2] > 1:
        mask[..., -1] = 0
    return mask


def predicted(source: DicomSource, mask: Array | None = None, labels: LabelTable = LABELS) -> Prediction:
    mask = a_mask((*source.geometry.shape, 1)[:3]).reshape(source.geometry.shape) if mask is None else mask
    return Prediction("case", source.geometry, labels, mask)


def write(prediction: Prediction, source: DicomSource, path: Path, kind: str = "binary", **changes: Any) -> Any:
    given = {"kind": kind, "anatomy": ANATOMY, "algorithm": ALGORITHM, **changes}
    write_segmentation(prediction, source, path, **given)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", STATES)
def test_others_read_the_same_labels_at_the_same_place(state: str, kind: SegmentationKind, tmp_path: Path) -> None:
    source, path = a_source(tmp_path / "scan", **STATES[state]), tmp_path / "seg.dcm"
    prediction = predicted(source)
    write(prediction, source, path, kind)
    assert dciodvfy_errors(path) == []
    values, affine, names = segmentation_labels(path)
    assert list(names.values()) == ["liver", "Läsion Leber", "left kidney tumor"]
    assert list(names) == ([1, 2, 3] if kind == "binary" else [1, 2, 7])
    if kind == "binary":
        values = np.array([0, 1, 2, 7])[values]
    np.testing.assert_array_equal(placed(values, affine, source.geometry), prediction.mask)


def test_the_validator_sees_what_is_missing(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    read = write(predicted(source), source, tmp_path / "seg.dcm")
    del read.SegmentSequence[0].SegmentLabel, read.StudyID
    read.save_as(tmp_path / "spoilt.dcm")
    errors = "\n".join(dciodvfy_errors(tmp_path / "spoilt.dcm"))
    assert "SegmentLabel" in errors and "StudyID" in errors


@pytest.mark.parametrize("kind", KINDS)
def test_highdicom_reads_the_same_labels(kind: SegmentationKind, tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan", plane="oblique")
    prediction = predicted(source)
    write(prediction, source, tmp_path / "seg.dcm", kind)
    read = highdicom.seg.segread(tmp_path / "seg.dcm")
    instances = [dataset.SOPInstanceUID for dataset in source.datasets]
    planes = read.get_pixels_by_source_instance(instances, combine_segments=True, assert_missing_frames_are_empty=True)
    values = np.array([0, 1, 2, 7])[planes] if kind == "binary" else planes
    np.testing.assert_array_equal(values.transpose(2, 1, 0), prediction.mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("made", [{"tilt_degrees": 14.0}, {"drop": (2,), "options": {"uneven": "resample"}}])
def test_a_mended_series_gets_its_labels_on_the_slices_as_they_were_scanned(
    made: dict[str, Any], kind: SegmentationKind, tmp_path: Path
) -> None:
    source = a_source(tmp_path / "scan", **made)
    assert source.grid.resampled
    prediction = predicted(source)
    assert prediction.mask is not None
    read = write(prediction, source, tmp_path / "seg.dcm", kind)
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []
    native = source.mask_planes(prediction.mask)
    assert native.any()
    seen = np.zeros_like(native)
    positions = [np.array(dataset.ImagePositionPatient, float) for dataset in source.datasets]
    for frame, group in zip(read.pixel_array, read.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        (plane,) = np.flatnonzero(np.abs(np.array(positions) - place).max(axis=1) < 1e-3)
        if kind == "labelmap":
            seen[plane] = frame
        else:
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            seen[plane][frame > 0] = (0, 1, 2, 7)[number]
    np.testing.assert_array_equal(seen, native)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "made",
    [
        {"modality": "CR", "layout": "picture", "shape": (17, 13, 1), "signed": False},
        {"modality": "MG", "layout": "picture", "shape": (17, 13, 1), "signed": False},
        {"modality": "US", "layout": "cine", "bits": 8, "signed": False},
    ],
    ids=["CR", "MG", "cine"],
)
def test_a_picture_gets_its_labels_pixel_by_pixel(made: dict[str, Any], kind: str, tmp_path: Path) -> None:
    source, path = a_source(tmp_path / "scan", **made), tmp_path / "seg.dcm"
    assert source.is_picture
    prediction = predicted(source)
    assert prediction.mask is not None
    read = write(prediction, source, path, kind)
    assert dciodvfy_errors(path) == []
    assert "FrameOfReferenceUID" not in read
    assert not any("FrameOfReferenceUID" in sentence for sentence in source.completions)
    image = read.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert image.ReferencedSOPInstanceUID == source.datasets[0].SOPInstanceUID
    assert image.get("ReferencedFrameNumber") == source.frames[0][1]
    assert (source.frames[0][1] is not None) == (made["layout"] == "cine")
    pixels = read.pixel_array
    seen = pixels if kind == "labelmap" else pixels[0] * 1 + pixels[1] * 7
    np.testing.assert_array_equal(seen.T, prediction.mask)


def test_the_object_belongs_to_the_patient_and_study_and_names_every_slice(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan", marks={"PatientID": "4711", "PatientSex": "F", "PatientAge": "045Y"})
    read = write(predicted(source), source, tmp_path / "seg.dcm")
    first = pydicom.dcmread(sorted((tmp_path / "scan").iterdir())[0])
    for keyword in ("PatientID", "PatientName", "PatientSex", "PatientAge", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert read[keyword].value == first[keyword].value
    assert read.SeriesInstanceUID != first.SeriesInstanceUID
    (series,) = read.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    named = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
    assert sorted(named) == sorted(pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "scan").iterdir())


def test_segments_say_what_they_are_and_what_made_them(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    read = write(predicted(source), source, tmp_path / "seg.dcm")
    liver, _, tumour = read.SegmentSequence
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    (region,) = tumour.AnatomicRegionSequence
    assert (region.CodeMeaning, region.AnatomicRegionModifierSequence[0].CodeMeaning) == ("Kidney", "Left")
    (identification,) = tumour.SegmentationAlgorithmIdentificationSequence
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("test model", "5eed")
    assert identification.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert {str(segment.SegmentAlgorithmType) for segment in read.SegmentSequence} == {"AUTOMATIC"}


def test_colours_are_those_of_the_overlays() -> None:
    # White and black by definition; sRGB red in CIELab under D50 is (54.29, 80.80, 69.89) (Lindbloom's calculator).
    assert cielab((255, 255, 255)) == pytest.approx([65535, 32896, 32896], abs=15)
    assert cielab((0, 0, 0)) == pytest.approx([0, 32896, 32896], abs=15)
    lightness, a, b = cielab((255, 0, 0))
    assert (lightness / 655.35, a / 257 - 128, b / 257 - 128) == pytest.approx((54.29, 80.80, 69.89), abs=0.05)
    assert len({tuple(cielab(colour)) for colour in COLOURS}) == len(COLOURS)


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    again = dicom_source(find(tmp_path / "scan").sources[0].source, {})
    for kind in KINDS:
        one = write(predicted(source), source, tmp_path / "one.dcm", kind)
        write(predicted(again), again, tmp_path / "two.dcm", kind)
        assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()
        mask = a_mask(SHAPE)
        mask[0, 0, 0] = 1
        others = [
            write(predicted(source, mask), source, tmp_path / "other.dcm", kind),
            write(predicted(source), source, tmp_path / "other.dcm", kind, algorithm=replace(ALGORITHM, version="2")),
        ]
        assert len({one.SOPInstanceUID, *(other.SOPInstanceUID for other in others)}) == 3
        assert len({one.SeriesInstanceUID, *(other.SeriesInstanceUID for other in others)}) == 3


def test_the_type_of_the_mask_does_not_change_the_object(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    mask = a_mask(SHAPE)
    files = []
    for held in (mask, mask.astype(np.int64), np.asfortranarray(mask.astype(np.uint16))):
        write(predicted(source, held), source, tmp_path / "seg.dcm")
        files.append((tmp_path / "seg.dcm").read_bytes())
    assert files[0] == files[1] == files[2]


def test_regions_that_overlap_are_segments_of_a_binary_object(tmp_path: Path) -> None:
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole tumor": (1, 2), "tumor core": (2,)}, paint=(1, 2))
    source = a_source(tmp_path / "scan")
    mask = (a_mask(SHAPE) > 0).astype(np.uint8)
    mask[11:13] *= 2
    read = write(predicted(source, mask, labels), source, tmp_path / "seg.dcm")
    assert read.SegmentsOverlap == "YES"
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []
    found = {
        number: placed(*part, source.geometry) for number, part in segmentation_masks(tmp_path / "seg.dcm").items()
    }
    np.testing.assert_array_equal(found[1], mask > 0)
    np.testing.assert_array_equal(found[2], mask == 2)
    assert [segment.name for segment in segments_of(labels, "labelmap")] == ["edema", "core"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_without_labels_says_that_they_were_looked_for(kind: SegmentationKind, tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    read = write(predicted(source, np.zeros(SHAPE, np.uint8)), source, tmp_path / "seg.dcm", kind)
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []
    assert {str(segment.SegmentLabel) for segment in read.SegmentSequence} >= {"liver", "left kidney tumor"}
    assert len(read.pixel_array) == SHAPE[2]
    assert not read.pixel_array.any()


def test_a_binary_object_has_frames_only_where_a_label_is(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    mask = np.zeros(SHAPE, np.uint8)
    mask[3, 3, 2], mask[3, 3, 4] = 1, 7
    read = write(predicted(source, mask), source, tmp_path / "seg.dcm")
    numbers = [
        g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in read.PerFrameFunctionalGroupsSequence
    ]
    assert numbers == [1, 3]
    assert [list(g.FrameContentSequence[0].DimensionIndexValues) for g in read.PerFrameFunctionalGroupsSequence] == [
        [1, 1],
        [2, 3],
    ]


def test_a_value_that_is_no_label_is_background(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    mask = a_mask(SHAPE)
    mask[0, 0, :] = 255
    labels = LabelTable(LABELS.names, ignore=255)
    values = write(predicted(source, mask, labels), source, tmp_path / "seg.dcm", "labelmap").pixel_array
    np.testing.assert_array_equal(values.transpose(2, 1, 0), np.where(mask == 255, 0, mask))


def test_a_labelmap_keeps_values_beyond_a_byte(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    mask = a_mask(SHAPE).astype(np.uint16)
    mask[mask == 7] = 40_000
    labels = LabelTable({1: "liver", 40_000: "spleen"})
    read = write(predicted(source, mask, labels), source, tmp_path / "seg.dcm", "labelmap")
    assert (read.BitsAllocated, int(read.SegmentSequence[-1].SegmentNumber)) == (16, 40_000)
    np.testing.assert_array_equal(read.pixel_array.transpose(2, 1, 0), mask)
    assert dciodvfy_errors(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_some_slices_whatever_the_number_of_labels(kind: SegmentationKind, tmp_path: Path) -> None:
    small = a_source(tmp_path / "scan", shape=(17, 13, 1))
    shape, labels = (192, 192, 320), 10
    planes = np.stack([np.eye(4)] * shape[2])
    planes[:, 2, 3] = np.arange(shape[2])
    source = replace(small, grid=Grid(Geometry(shape, np.eye(4)), planes, shape), frames=((0, None),) * shape[2])
    mask = np.zeros(shape, np.uint8)
    for value in range(1, labels + 1):
        mask[16 * value - 16 : 16 * value, 40:90, 130:180] = value
    prediction = predicted(source, mask, LabelTable({value: f"organ {value}" for value in range(1, labels + 1)}))
    tracemalloc.start()
    write_segmentation(prediction, source, tmp_path / "seg.dcm", kind=kind, anatomy=ANATOMY, algorithm=ALGORITHM)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.6 * mask.nbytes  # 64 of 320 slices, two times, and the headers of 500 frames


def test_too_much_for_one_object_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = a_source(tmp_path / "scan")
    monkeypatch.setattr(seg, "LARGEST", 100)
    with pytest.raises(MedsegError, match="export.seg=labelmap"):
        write(predicted(source), source, tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


def test_a_mask_of_another_grid_is_refused(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    other = Geometry((3, 3, 3), np.eye(4))
    with pytest.raises(MedsegError, match="expected values on"):
        write(Prediction("case", other, LABELS, np.zeros(other.shape, np.uint8)), source, tmp_path / "seg.dcm")
    with pytest.raises(MedsegError, match="no mask"):
        write(Prediction("case", source.geometry, LABELS), source, tmp_path / "seg.dcm")


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = a_source(tmp_path / "scan")
    (tmp_path / "out").mkdir()

    def fail(*_: Any) -> Any:
        yield b"\0"
        raise OSError("disk full")

    monkeypatch.setattr(seg, "_packed", fail)
    with pytest.raises(OSError, match="disk full"):
        write(predicted(source), source, tmp_path / "out" / "seg.dcm")
    assert list((tmp_path / "out").iterdir()) == []
