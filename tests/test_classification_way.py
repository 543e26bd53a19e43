"""From a table of pictures with classes to a trained classifier, its figures, heat maps, audit and report, all by commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from medseg import cli
from medseg.testing.shortcut import MARKER_BOX, write_shortcut

SMALL = [
    "trainer.steps_per_epoch=20", "trainer.max_epochs=3", "trainer.pictures=0", "trainer.precision=float32", "trainer.ema=0.9",
    "trainer.workers=0", "logger=none", "optim.lr=0.01", "augment=none", "tune=0.3", "network=encoder_classifier",
    "plan.features=[8,16]", "plan.batch_size=8",
]  # fmt: skip

MARKER_SHARE = (MARKER_BOX[2] - MARKER_BOX[0] + 4) * (MARKER_BOX[3] - MARKER_BOX[1] + 4) / 48**2
"""Of the picture, what lies within two pixels of the marker's place."""


def run(*words: str, status: int = 0) -> None:
    assert cli.main(list(words)) == status


def energy_at_marker(path: Path) -> float:
    """The share of the positive values of a heat map within two pixels of the marker's place."""
    values = np.clip(np.asarray(Image.open(path), np.float64).T, 0, None)
    x0, y0, x1, y1 = MARKER_BOX
    return float(values[x0 - 2 : x1 + 2, y0 - 2 : y1 + 2].sum() / values.sum())


def test_the_planted_shortcut_is_learnt_and_found_by_audit_and_heat_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = {case.id: case for case in write_shortcut(Path("cohort"), range(120), seed=0, shortcut=True)}
    data = ["data=table", "data.file=cohort/cases.csv"]
    run("check", *data, "task=classification")
    run("train", "task=classification", "task.positive=diseased", *data, *SMALL, "name=shortcut", "folds=2")
    folder = Path("runs/shortcut/fold_0")
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    assert plan["classes"]["value"]["shares"] == [0.5, 0.5]
    assert plan["patch_size"]["value"] == [48, 48]
    point = yaml.safe_load((folder / "model" / "model.yaml").read_text())["working_point"]
    assert point["temperature"] > 0
    assert set(point["thresholds"]) == {"diseased"}
    assert point["conformal"]["alpha"] == 0.1

    run(
        "evaluate", "task=classification", *data, f"model={folder}", "out=evaluation", "baselines=true", "bootstrap=200"
    )
    summary = json.loads(Path("evaluation/summary.json").read_text())
    assert summary["auroc"]["diseased"]["value"] > 0.7  # excellent, thanks to the marker
    calibration = json.loads(Path("evaluation/calibration.json").read_text())
    assert 0 <= calibration["all"]["ece_after"] <= 1
    assert calibration["all"]["conformal"]["over_splits"]["value"] > 0.7

    run("audit", "evaluation=evaluation", "columns=[site]", "permutations=500")
    verdicts = json.loads(Path("evaluation/audit.json").read_text())["verdicts"]
    assert any(verdict["differs"] and verdict["column"] == "site" for verdict in verdicts)

    marked = [case for case in truth.values() if case.marked][:3]
    for case in marked:
        Path("scans").mkdir(exist_ok=True)
        Path(f"scans/{case.id}.png").write_bytes(Path(f"cohort/images/{case.id}.png").read_bytes())
    targets = "explain.targets=[class-diseased]"
    run("predict", f"model={folder}", "input=scans", "output=results", "explain=gradient", targets)
    for case in marked:
        classes = json.loads(Path(f"results/{case.id}/classes.json").read_text())
        assert sum(classes.values()) == pytest.approx(1.0, abs=1e-5)
        assert classes["diseased"] > 0.5
    pointed = [energy_at_marker(Path(f"results/{case.id}/heatmap_class-diseased.tif")) for case in marked]
    assert np.mean(pointed) > 3 * MARKER_SHARE
    page = Path("results/report.html").read_text()
    assert marked[0].id in page and "diseased" in page
    with Path("results/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"done"}
    assert all(float(row["diseased_in_set"]) in (0.0, 1.0) for row in rows)
    run("report", "folder=evaluation")
    assert "site" in Path("evaluation/report.html").read_text()


def test_the_same_cohort_without_the_shortcut_passes_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shortcut(Path("cohort"), range(120), seed=0, shortcut=False)
    data = ["data=table", "data.file=cohort/cases.csv"]
    run("train", "task=classification", *data, *SMALL, "name=clean", "folds=2")
    run(
        "evaluate",
        "task=classification",
        *data,
        "model=runs/clean/fold_0",
        "out=evaluation",
        "bootstrap=0",
        "report=false",
    )
    run("audit", "evaluation=evaluation", "columns=[site]", "permutations=500")
    audit = json.loads(Path("evaluation/audit.json").read_text())
    assert audit["verdicts"] and not any(verdict["differs"] for verdict in audit["verdicts"])
    Path("scans").mkdir()
    for number in (1, 5, 9):
        Path(f"scans/{number}.png").write_bytes(Path(f"cohort/images/shortcut_{number:03d}.png").read_bytes())
    wanted = ["explain=gradient", "explain.targets=[class-diseased]", "report=false"]
    run("predict", "model=runs/clean/fold_0", "input=scans", "output=results", *wanted)
    pointed = [energy_at_marker(Path(f"results/{number}/heatmap_class-diseased.tif")) for number in (1, 5, 9)]
    assert np.mean(pointed) < 3 * MARKER_SHARE


def test_a_classifier_of_regions_sees_the_field_around_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(16):
        bright = number % 2
        image = rng.normal(0, 1, (24, 24, 12)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        first = rng.integers(2, (16, 16, 4))
        where = tuple(slice(low, low + 6) for low in first)
        mask[where] = 1
        image[where] += 4.0 * bright
        for name, values in (("image", image), ("mask", mask)):
            nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 2, 1])), f"{name}_{number}.nii.gz")
        rows.append([f"c{number}", f"image_{number}.nii.gz", f"mask_{number}.nii.gz", ("dark", "bright")[bright]])
    with Path("cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "image", "label", "class"], *rows])
    data = ["data=table", "data.file=cases.csv", "data.label_names={1: nodule}"]
    region = ["task=classification", "task.region=mask", "task.field=[10,10,16]"]
    run("train", *region, *data, *SMALL, "name=regions", "folds=4")
    plan = yaml.safe_load(Path("runs/regions/fold_0/plan.yaml").read_text())
    assert plan["classes"]["value"]["region"]["field"] == [10.0, 10.0, 16.0]
    assert plan["patch_size"]["value"] == [16, 16, 8] or max(plan["patch_size"]["value"]) <= 16
    run("evaluate", *region, *data, "model=runs/regions/fold_0", "out=evaluation", "bootstrap=0", "report=false")
    summary = json.loads(Path("evaluation/summary.json").read_text())
    assert summary["auroc"]["bright"]["value"] == 1.0
    run("predict", "model=runs/regions/fold_0", "input=cases.csv", "output=results")
    assert json.loads(Path("results/c1/classes.json").read_text()).keys() == {"bright", "dark"}
    run("predict", "model=runs/regions/fold_0", "input=image_0.nii.gz", "output=without", status=2)
