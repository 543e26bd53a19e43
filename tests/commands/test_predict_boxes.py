"""Boxes leave the house: boxes.json beside or instead of a mask, drawn, counted and reported, under the same rules as masks."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medseg.commands.predict as command
from medseg.commands import case_work
from medseg.commands.predict import predict
from medseg.errors import MachineError, MedsegError, SomeFailed
from medseg.export.lesions import lesions_of
from medseg.inference.predictor import Outcome, Predictor
from medseg.model import save_model
from medseg.structures import Boxes
from tests.dicom_factory import affine_of, write_series
from tests.tiny import POINTWISE, noise, threshold_model, tiny_model, tiny_plan, write_nifti
from tests.validators import dciodvfy_errors, report_measurements

SCORES = (0.9, 0.3, 0.6)
THRESHOLDS = {"liver": 0.5, "lesion": 0.7}
FINDINGS = [("liver", 0.9)]


class Detector(Predictor):
    """Says of every scan that there are three boxes, two of them below the working point, and nothing of its voxels."""

    keeps_mask = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.task.name = "detection"

    def outcome(self, *args: Any, **options: Any) -> Outcome:
        found = super().outcome(*args, **options)
        dimensions = found.prediction.geometry.dimensions
        low = np.array([[1.0] * dimensions, [0.5] * dimensions, [2.0] * dimensions])
        boxes = Boxes(np.concatenate([low, low + 3], axis=1), np.array([1, 1, 3]), np.array(SCORES))
        ranked = boxes.chosen(np.argsort(-np.array(SCORES)))
        mask = found.prediction.mask if self.keeps_mask else None
        return replace(found, prediction=replace(found.prediction, mask=mask, boxes=ranked, thresholds=THRESHOLDS))


class DetectorWithMasks(Detector):
    keeps_mask = True


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_model(3), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for i, name in enumerate(("a", "b", "c")):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise((12 + i, 10, 6), i))
    return tmp_path / "scans"


@pytest.fixture
def detecting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Predictor", Detector)


def run(model: Any, scans: Path, output: Path, **options: Any) -> Path:
    given = {"runtime": {"device": "cpu", "precision": "float32"}, "mirror": False, "progress": False, **options}
    return predict(model=model, input=scans, output=output, **given)


def names(output: Path, case: str = "a") -> set[str]:
    return {path.name for path in (output / case).iterdir()}


def listed(output: Path, case: str = "a") -> list[tuple[str, float]]:
    return [(box["label"], box["score"]) for box in body(output, case)["boxes"]]


def body(output: Path, case: str = "a") -> dict[str, Any]:
    return json.loads((output / case / "boxes.json").read_text(encoding="utf-8"))


def manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))


def row(output: Path, case: str = "a") -> dict[str, str]:
    rows = csv.DictReader((output / "predictions.csv").open(newline=""))
    return next(row for row in rows if row["case"] == case)


@pytest.mark.usefixtures("detecting")
def test_a_model_without_mask_writes_its_findings_and_a_picture(model: Path, scans: Path, tmp_path: Path) -> None:
    output = run(model, scans, tmp_path / "out")
    assert names(output) == {"boxes.json", "overlay.png", "slices.png"}
    assert listed(output) == FINDINGS
    assert body(output)["working_point"] == THRESHOLDS and body(output)["shape"] == [12, 10, 6]
    found = {name: value for name, value in row(output).items() if "liver" in name or "lesion" in name}
    assert found == {"liver_lesions": "1", "liver_top_score": "0.9", "lesion_lesions": "0", "lesion_top_score": ""}


@pytest.mark.usefixtures("detecting")
def test_boxes_below_the_working_point_are_listed_where_they_are_asked_for(
    model: Path, scans: Path, tmp_path: Path
) -> None:
    output = run(model, scans, tmp_path / "out", boxes={"from": "network", "all": True}, overlays=False)
    assert names(output) == {"boxes.json", "slices.png"}
    assert listed(output) == [*FINDINGS, ("lesion", 0.6), ("liver", 0.3)]
    assert row(output)["lesion_lesions"] == "0"


def test_a_model_with_a_mask_head_writes_both(
    model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "Predictor", DetectorWithMasks)
    output = run(model, scans, tmp_path / "out")
    assert names(output) == {"mask.nii.gz", "boxes.json", "overlay.png", "slices.png"}
    assert {"liver_ml", "liver_components", "liver_lesions"} <= set(row(output))
    for name in ("mask.nii.gz", "boxes.json"):
        (output / "a" / name).unlink()
        run(model, scans, output)
        assert names(output) == {"mask.nii.gz", "boxes.json", "overlay.png", "slices.png"}


@pytest.mark.usefixtures("detecting")
def test_running_again_skips_what_is_done_and_refuses_other_boxes(
    model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = run(model, scans, tmp_path / "out")
    with pytest.raises(MedsegError, match=r"overwrite=true") as caught:
        run(model, scans, output, boxes={"all": True})
    assert caught.value.exit_status == 2
    default = {"from": "network", "fp_per_scan": None, "all": False, "fusion": None, "iou": None}
    with monkeypatch.context() as patch:
        patch.setattr(case_work, "read_planned", lambda *_, **__: pytest.fail("a case was read again"))
        run(model, scans, output, boxes=default)  # what is not given is as it is by default
    (output / "b" / "boxes.json").unlink()
    run(model, scans, output)
    assert listed(output, "b") == FINDINGS
    run(model, scans, output, boxes={"all": True}, overwrite=True)
    assert len(listed(output)) == 3


@pytest.mark.usefixtures("detecting")
def test_failing_cases_leave_the_others_whole(
    model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(prediction: Any, folder: Path, **options: Any) -> Path:
        if prediction.case == "b":
            (folder / "boxes.json").write_text("half")
            raise error
        return real(prediction, folder, **options)

    real = case_work.write_boxes
    monkeypatch.setattr(case_work, "write_boxes", failing)
    error: Exception = MedsegError("a box that cannot be")
    with pytest.raises(SomeFailed, match=r"1 of 3 cases failed[\s\S]*a box that cannot be"):
        run(model, scans, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["a", "c"]
    error = OSError(28, "No space left on device")
    with pytest.raises(MachineError, match="disk is full"):
        run(model, scans, tmp_path / "out")
    monkeypatch.setattr(case_work, "write_boxes", real)
    run(model, scans, tmp_path / "out")
    assert {record["status"] for record in manifest(tmp_path / "out")["cases"].values()} == {"done"}


@pytest.mark.usefixtures("detecting")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_probabilities": True}, "save_probabilities: expected models that label voxels"),
        ({"boxes": {"every": True}}, "boxes has no every"),
    ],
)
def test_what_a_detector_cannot_do_stops_before_any_work(
    model: Path, scans: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedsegError, match=message):
        run(model, scans, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_of_masks_and_of_boxes_give_one_result(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = iter((Predictor, Detector))
    monkeypatch.setattr(command, "Predictor", lambda *args, **options: next(made)(*args, **options))
    for seed, name in enumerate(("organs", "nodules")):
        save_model(tiny_model(seed), tmp_path / name)
    output = run({name: tmp_path / name for name in ("organs", "nodules")}, scans, tmp_path / "out")
    assert names(output) == {"mask.nii.gz", "boxes.json", "overlay.png", "slices.png"}
    assert listed(output) == [("nodules/liver", 0.9)]
    assert body(output)["working_point"] == {"nodules/liver": 0.5, "nodules/lesion": 0.7}
    assert set(np.unique(nib.load(output / "a" / "mask.nii.gz").dataobj)) <= {0, 1, 2}
    assert {"organs/liver_ml", "nodules/liver_lesions"} <= set(row(output))
    assert not {"nodules/liver_ml", "organs/liver_lesions"} & set(row(output))


def test_the_components_of_a_mask_are_boxes_where_they_are_asked_for(scans: Path, tmp_path: Path) -> None:
    save_model(threshold_model(tiny_plan(spacing=(1.0, 1.0, 2.0)), at=0.5), tmp_path / "model")
    output = run(tmp_path / "model", scans, tmp_path / "out", trust=[POINTWISE], boxes={"from": "components"})
    assert names(output) == {"mask.nii.gz", "boxes.json", "overlay.png", "slices.png"}
    found = row(output)
    assert int(found["liver_lesions"]) >= int(found["liver_components"]) > 0
    edges = np.array([box["box_vox"] for box in body(output)["boxes"]])
    mask = np.asanyarray(nib.load(output / "a" / "mask.nii.gz").dataobj)
    held = np.zeros(mask.shape, bool)
    for low, high in np.round(edges).astype(int).reshape(-1, 2, 3):
        held[tuple(map(slice, low, high))] = True
    assert held[mask > 0].all()


@pytest.mark.usefixtures("detecting")
@pytest.mark.parametrize(
    ("dimensions", "series"),
    [
        (3, {"modality": "CT"}),
        (2, {"modality": "DX", "layout": "picture", "signed": False}),
        (2, {"modality": "US", "layout": "picture", "bits": 8, "signed": False}),
    ],
    ids=["CT", "DX", "US"],
)
def test_boxes_without_mask_become_a_structured_report_and_no_segmentation(
    dimensions: int, series: dict[str, Any], tmp_path: Path
) -> None:
    shape = (14, 12, 6) if dimensions == 3 else (14, 12, 1)
    values = np.clip(noise(shape) + 120, 0, 255)
    write_series(tmp_path / "scan", values, affine_of(shape), **series)
    save_model(tiny_model(0, tiny_plan(dimensions, unit="mm")), tmp_path / "model")
    output = run(tmp_path / "model", tmp_path / "scan", tmp_path / "out", export={"dicom": True})
    (case,) = manifest(output)["cases"]
    assert names(output, case) == {"boxes.json", "overlay.png", "slices.png", "sr.dcm"}
    assert dciodvfy_errors(output / case / "sr.dcm") == []
    read = report_measurements(output / case / "sr.dcm")["Measurements"]
    assert [group["TrackingIdentifier"] for group in read] == ["lesions", "lesion 1: liver"]
    certainty = read[1]["measurementItems"][1]
    assert (certainty["quantity"]["CodeMeaning"], float(certainty["value"])) == ("Certainty of Finding", 90.0)


def test_ids_are_the_same_in_the_file_and_in_the_report(
    model: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(command, "Predictor", DetectorWithMasks)
    monkeypatch.setitem(THRESHOLDS, "lesion", 0.1)
    real = case_work.write_boxes
    monkeypatch.setattr(
        case_work, "write_boxes", lambda p, *a, **k: seen.append(lesions_of(p, ["lesion"])) or real(p, *a, **k)
    )
    output = run(model, scans, tmp_path / "out")
    ids = [(box["id"], box["label"], box["box_vox"]) for box in body(output)["boxes"]]
    assert ids == [(lesion.id, lesion.label, lesion.box_vox.tolist()) for lesion in seen[0]] and len(ids) == 2
