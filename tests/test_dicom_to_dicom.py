"""A folder of DICOM with SEG or RTSTRUCT trains directly: from files through layout, plan and preprocessing, every label ends
up on the organ that it was drawn on, wherever that lies in the patient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from medseg.cli import main
from medseg.data.preprocess import preprocess, preprocess_mask
from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, dicom_source
from medseg.export.rtstruct import write_rtstruct
from medseg.export.seg import write_segmentation
from medseg.planning.fingerprint import fingerprint
from medseg.planning.planner import make_plan
from medseg.scans import read_case, read_geometry, read_mask
from medseg.scans.find import find
from medseg.scans.layouts import folder
from medseg.structures import Case, Cohort, LabelTable, Prediction, as_source
from medseg.volume import Array
from tests.dicom_factory import affine_of, native_positions, write_series

LABELS = LabelTable({1: "liver", 2: "tumour"})
SHAPE = (30, 28, 16)
SPACING = (2.0, 2.2, 3.5)
ALGORITHM = Algorithm("by hand", "1")


@dataclass(frozen=True)
class Patient:
    """How a patient was scanned, and where the organ's and the tumour's centre lie, RAS+ mm."""

    plane: str
    position: str
    liver: tuple[float, float, float]
    made: dict[str, Any]

    @property
    def tumour(self) -> tuple[float, float, float]:
        return self.liver[0] + 5, self.liver[1] - 4, self.liver[2] + 6

    def labels_at(self, world: Array) -> Array:
        """``(..., 3)`` points → label: an ellipsoid with a ball in it."""
        organ = np.square((world - self.liver) / (17.0, 14.0, 15.0)).sum(-1) < 1
        lesion = np.square((world - self.tumour) / 6.0).sum(-1) < 1
        return np.where(lesion, 2, organ.astype(np.uint8)).astype(np.uint8)


PATIENTS = {
    "one": Patient("axial", "HFS", (15.0, -28.0, 40.0), {}),
    "two": Patient("oblique", "FFS", (9.0, -33.0, 44.0), {"layout": "enhanced"}),
    "three": Patient("sagittal", "HFDL", (12.0, -26.0, 37.0), {"order": "reversed", "transfer_syntax": "RLE"}),
    "four": Patient("axial", "FFP", (10.0, -31.0, 41.0), {"tilt_degrees": 11.0}),
}
VALUES = np.array([20.0, 120.0, 300.0])


def write_scan(root: Path, name: str) -> None:
    patient = PATIENTS[name]
    affine = affine_of(SHAPE, patient.plane, patient.position, SPACING)
    tilt = patient.made.get("tilt_degrees", 0.0)
    first = native_positions(affine, SHAPE[2], tilt)
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    world = first[None, None] + (i[..., None] * affine[:3, 0] + j[..., None] * affine[:3, 1])[:, :, None]
    volume = VALUES[patient.labels_at(world)]
    write_series(
        root / name, volume, affine, patient_position=patient.position, seed=name, study=name,
        change=lambda dataset, n: setattr(dataset, "PatientID", f"SECRET-{name}"), **patient.made,
    )  # fmt: skip


def drawn(root: Path, name: str) -> tuple[Prediction, Any]:
    """The labels of a patient on the grid of the scan, and its source."""
    (entry,) = find(root / name).sources
    geometry = read_geometry(entry.source)
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1)
    mask = PATIENTS[name].labels_at(geometry.to_world(index))
    return Prediction("case", geometry, LABELS, mask=mask), dicom_source(entry.source, {})


def as_seg(root: Path, name: str, path: Path) -> None:
    write_segmentation(*drawn(root, name), path, anatomy=AnatomyTable.load(None), algorithm=ALGORITHM)


def as_rtstruct(root: Path, name: str, path: Path) -> None:
    write_rtstruct(*drawn(root, name), path, anatomy=AnatomyTable.load(None), algorithm=ALGORITHM)


def as_highdicom_seg(root: Path, name: str, path: Path) -> None:
    """The same by another hand."""
    prediction, source = drawn(root, name)
    images = [pydicom.dcmread(file) for file in sorted((root / name).iterdir())]
    planes = {str(d.SOPInstanceUID): n for n, d in enumerate(source.datasets)}
    order = [planes[str(image.SOPInstanceUID)] for image in images] if len(images) > 1 else range(SHAPE[2])
    pixels = source.mask_planes(prediction.mask)
    described = [
        highdicom.seg.SegmentDescription(
            number,
            label,
            codes.SCT.Organ,
            codes.SCT.Liver,
            highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in LABELS.names.items()
    ]
    highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack([pixels[n] for n in order]),
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="another hand",
        manufacturer_model_name="another hand",
        software_versions="1",
        device_serial_number="1",
    ).save_as(path)


Draw = Callable[[Path, str, Path], None]


@pytest.fixture(params=[as_seg, as_rtstruct, as_highdicom_seg], ids=lambda draw: draw.__name__)
def labelled(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    draw: Draw = request.param
    for name in PATIENTS:
        write_scan(tmp_path / "scans", name)
    for name in PATIENTS:
        (tmp_path / "labels").mkdir(exist_ok=True)
        tilted = "tilt_degrees" in PATIENTS[name].made
        (as_seg if tilted and draw is as_highdicom_seg else draw)(tmp_path / "scans", name, tmp_path / "labels" / name)
    return tmp_path


def patient_of(case: Case) -> Patient:
    return PATIENTS[case.images[0].files[0].parent.name]


def cohort_of(root: Path) -> Cohort:
    cohort = folder(root / "scans", root / "labels", progress=False)
    assert not cohort.faults
    assert len(cohort.cases) == len({case.patient for case in cohort.cases}) == len(PATIENTS)
    assert cohort.labels is not None and list(cohort.labels.names.values()) == ["liver", "tumour"]
    assert cohort.channels == ("CT",)
    assert "SECRET" not in repr([(case.id, case.patient, case.metadata) for case in cohort.cases])
    return cohort


def test_labels_reach_the_network_on_the_organs_that_they_were_drawn_on(labelled: Path) -> None:
    cohort = cohort_of(labelled)
    assert cohort.labels is not None
    measured = fingerprint(cohort, workers=1, progress=False)
    plan = make_plan(measured, cohort.channels, cohort.labels, memory_gb=1.0)
    for case in cohort.cases:
        patient = patient_of(case)
        volume = read_case(case)
        assert case.label is not None
        mask, _ = read_mask(case.label, volume.geometry, cohort.labels)
        image, restoration = preprocess(volume, plan)
        labels = preprocess_mask(mask, restoration, plan)[0]
        grid = restoration.geometry
        assert grid.axis_codes == "RAS"  # turned as the plan wants it
        for value, name in cohort.labels.names.items():
            centre = patient.liver if name == "liver" else patient.tumour
            held = np.argwhere((labels > 0) if name == "liver" else (labels == value))  # the tumour lies in the liver
            found = grid.to_world(held).mean(0)
            assert np.abs(found - centre).max() < 0.9, (name, found, centre)
            radii = (17.0, 14.0, 15.0) if name == "liver" else (6.0, 6.0, 6.0)
            assert len(held) * grid.voxel_volume == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.12)
        means = [image[0][labels == value].mean() for value in (0, 1, 2)]
        assert means == sorted(means) and means[0] + 0.3 < means[1] < means[2] - 0.3  # image and labels coincide


def test_labels_beside_the_images_are_found_without_being_named(labelled: Path) -> None:
    for name in PATIENTS:
        (labelled / "labels" / name).rename(labelled / "scans" / name / "annotation")
    cohort = folder(labelled / "scans", progress=False)
    assert not cohort.faults
    assert {case.label.kind for case in cohort.cases if case.label} <= {"seg", "rtstruct"}
    for case in cohort.cases:
        assert case.label is not None
        assert case.label.files[0].parent == case.images[0].files[0].parent


def test_an_annotation_of_an_absent_series_is_a_fault_and_the_rest_goes_on(labelled: Path) -> None:
    for file in (labelled / "scans" / "two").iterdir():
        file.unlink()
    cohort = folder(labelled / "scans", labelled / "labels", progress=False)
    assert len(cohort.cases) == len(PATIENTS) - 1
    assert len(cohort.faults) == 1
    assert "two" in str(cohort.faults[0])


def test_a_folder_of_dicom_trains_and_predicts_into_dicom_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Annotations lie beside the images; what is predicted lands on the slices of the patient that it belongs to."""
    monkeypatch.chdir(tmp_path)
    for name in PATIENTS:
        write_scan(tmp_path / "scans", name)
        (as_rtstruct if name == "two" else as_seg)(tmp_path / "scans", name, tmp_path / "scans" / name / "annotation")
    data = ["data=folder", "data.images=scans", "data.label_names={1: liver, 2: tumour}"]
    assert main(["check", *data]) == 0
    small = ["plan.memory_gb=0.3", "plan.width=8", "loss=dice_ce", "augment=none", "optim.lr=0.01", "optim.warmup=0"]
    short = ["trainer.max_epochs=1", "trainer.steps_per_epoch=40", "trainer.ema=0", "trainer.pictures=0"]
    assert main(["train", *data, "folds=2", "tune=0.5", "name=ct", *small, *short]) == 0
    assert main(["predict", "model=runs/ct", "input=scans", "output=out", "mirror=false", "export=dicom"]) == 0
    for entry in find(tmp_path / "scans").sources:
        patient = PATIENTS[entry.source.files[0].parent.name]
        seg = pydicom.dcmread(tmp_path / "out" / entry.id / "seg.dcm")
        assert seg.PatientID == f"SECRET-{entry.source.files[0].parent.name}"  # the object belongs to the patient
        mask, grid = read_mask(as_source("seg", tmp_path / "out" / entry.id / "seg.dcm"), read_geometry(entry.source))
        held = grid.to_world(np.argwhere(mask > 0))
        assert np.abs(np.median(held, 0) - patient.liver).max() < 6, entry.id  # forty steps leave some voxels elsewhere
    assert "SECRET" not in (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    assert "SECRET" not in (tmp_path / "runs" / "ct" / "fold_0" / "log.txt").read_text(encoding="utf-8")
