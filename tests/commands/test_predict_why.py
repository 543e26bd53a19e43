"""What predict writes beside masks on request: how unsure they are, why the model says so, and a page over all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.commands.predict import predict
from medseg.errors import MedsegError
from medseg.model import save_model
from tests.tiny import noise, threshold_model, tiny_model, write_nifti


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        write_nifti(folder / f"{name}.nii.gz", noise((12, 10, 8)))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def run(model: Path, scans: Path, output: Path, **options: Any) -> Path:
    return predict(model=model, input=scans, output=output, mirror=False, progress=False, **options)


def test_uncertainty_lies_on_the_scan_and_its_mean_over_each_label_in_the_table(
    model: Path, scans: Path, tmp_path: Path
) -> None:
    output = run(model, scans, tmp_path / "out", uncertainty=True)
    image, mask = (nib.load(output / "a" / f"{name}.nii.gz") for name in ("uncertainty", "mask"))
    values, labels = image.get_fdata(), np.asarray(mask.dataobj)
    assert values.shape == labels.shape and image.get_data_dtype() == np.float32
    assert 0 <= values.min() < values.max() <= 1
    with (output / "predictions.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["case"] == "a")
    assert float(row["liver_uncertainty"]) == pytest.approx(values[labels == 1].mean(), abs=1e-5)


def test_without_report_neither_slices_nor_a_page_are_written(model: Path, scans: Path, tmp_path: Path) -> None:
    output = run(model, scans, tmp_path / "out", report=False)
    assert not (output / "report.html").exists() and not (output / "a" / "slices.png").exists()


def test_heat_maps_come_with_the_prediction_and_are_made_once(model: Path, scans: Path, tmp_path: Path) -> None:
    how = {"saliency": {"method": "gradient", "targets": ["label-liver"]}}
    output = run(model, scans, tmp_path / "out", **how)
    heat = nib.load(output / "a" / "heatmap_label-liver.nii.gz")
    assert heat.shape == (12, 10, 8) and np.abs(heat.get_fdata()).max() > 0
    before = (output / "a" / "heatmap_label-liver.nii.gz").stat().st_mtime_ns
    run(model, scans, output, **how)
    assert (output / "a" / "heatmap_label-liver.nii.gz").stat().st_mtime_ns == before


def test_what_cannot_be_explained_is_a_remark_and_the_prediction_stands(scans: Path, tmp_path: Path) -> None:
    save_model(threshold_model(at=1e6), tmp_path / "silent")  # nothing is as bright
    how = {"saliency": {"method": "gradient", "targets": ["label-liver"]}, "trust": ["tests.tiny.pointwise"]}
    output = run(tmp_path / "silent", scans, tmp_path / "out", **how)
    record = json.loads((output / "manifest.json").read_text())["cases"]["a"]
    assert record["status"] == "done" and (output / "a" / "mask.nii.gz").is_file()
    assert any(remark.startswith("no heat map: ") for remark in record["mended"])


def test_several_models_are_not_explained_together(model: Path, scans: Path, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="one model is explained at a time"):
        predict(
            model={"a": model, "b": model},
            input=scans,
            output=tmp_path / "out",
            saliency={"method": "gradient"},
            progress=False,
        )


def test_an_unknown_method_is_named_before_any_work(scans: Path, tmp_path: Path, model: Path) -> None:
    with pytest.raises(MedsegError, match="gard"):
        run(model, scans, tmp_path / "out", saliency={"method": "gard"})
    assert not (tmp_path / "out").exists()
