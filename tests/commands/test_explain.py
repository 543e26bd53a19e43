"""Every prediction gets its heat maps, whatever was there before; what cannot be explained is named and harms nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

import medseg.commands.explain as command
from medseg.commands import heat_maps
from medseg.commands.explain import explain
from medseg.commands.predict import predict
from medseg.config import conf_dir
from medseg.errors import MachineError, MedsegError, SomeFailed
from medseg.explain.explainer import METHODS, Explainer
from medseg.model import Model, save_model
from tests.dicom_factory import affine_of, write_series
from tests.tiny import LABELS, POINTWISE, noise, threshold_model, tiny_model, tiny_plan, write_nifti

CPU = {"device": "cpu", "precision": "float32"}
GRADIENT = {"method": "gradient"}
SHAPE = (12, 10, 9)


def run(model: Path, scans: Path, output: Path, **options: Any) -> Path:
    given = {"saliency": GRADIENT, "trust": [POINTWISE], "report": False, **options}
    return explain(
        model=model, input=scans, output=output, progress=False, workers=0, runtime=CPU, mirror=False, **given
    )


def predicted(model: Path, scans: Path, output: Path, **options: Any) -> Path:
    given = {"mirror": False, "trust": [POINTWISE], "overlays": False, "report": False, **options}
    return predict(model=model, input=scans, output=output, progress=False, workers=0, runtime=CPU, **given)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def values(folder: Path, target: str) -> np.ndarray:
    return np.asanyarray(nib.load(folder / f"heatmap_{target}.nii.gz").dataobj)


def index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "heatmaps.json").read_text())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Calls what is well above the mean the first label, by looking at each voxel alone."""
    save_model(threshold_model(at=0.1), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b")):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise(SHAPE, seed), np.eye(4))
    return tmp_path / "scans"


def test_every_case_is_predicted_and_each_target_has_raw_values_on_its_grid_and_a_picture(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out")
    maps = {"heatmap_label-liver.nii.gz", "heatmap_label-liver.png", "heatmaps.json"}
    assert files(output / "a") == {"mask.nii.gz", "overlay.png"} | maps
    mask = np.asanyarray(nib.load(output / "a" / "mask.nii.gz").dataobj) == 1
    found = values(output / "a", "label-liver")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found > 0, mask)  # a voxel speaks for itself alone
    np.testing.assert_allclose(found[mask], 50 / mask.sum(), rtol=0.05)  # by its weight in the mean logit
    np.testing.assert_allclose(nib.load(output / "a" / "heatmap_label-liver.nii.gz").affine, np.eye(4))
    assert index(output / "a")["made"]["method"] == "gradient"


def test_one_lesion_has_a_map_of_its_own(model, tmp_path):
    cubes = np.zeros(SHAPE, np.float32)
    cubes[1:4, 1:4, 1:4], cubes[8:10, 7:9, 6:8] = 1, 1
    write_nifti(tmp_path / "scans" / "a.nii.gz", cubes, np.eye(4))
    given = {**GRADIENT, "targets": ["lesion=2", "label=liver"]}
    output = run(model, tmp_path / "scans", tmp_path / "out", saliency=given)
    assert list(index(output / "a")["targets"]) == ["lesion-2", "label-liver"]
    np.testing.assert_array_equal(values(output / "a", "label-liver") > 0, cubes > 0)
    cubes[1:4, 1:4, 1:4] = 0
    np.testing.assert_array_equal(values(output / "a", "lesion-2") > 0, cubes > 0)


def test_predictions_that_are_there_are_explained_as_they_are(model, scans, tmp_path):
    output = predicted(model, scans, tmp_path / "out", save_probabilities=True, overlap=0.25)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("mask.nii.gz")}
    run(model, scans, output)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "probability_1-liver.nii.gz" in files(output / "a")
    assert (output / "b" / "heatmap_label-liver.nii.gz").is_file()


def test_a_half_written_result_folder_is_finished_as_it_was_begun(model, scans, tmp_path):
    hidden = (scans / "b.nii.gz").rename(tmp_path / "b.nii.gz")
    output = predicted(model, scans, tmp_path / "out", overlap=0.25)
    hidden.rename(scans / "b.nii.gz")
    run(model, scans, output)
    (output / "a" / "heatmaps.json").unlink()
    (output / "a" / "heatmap_label-liver.nii.gz").write_bytes(b"half")
    (output / "b" / "mask.nii.gz").unlink()
    (output / "b" / ".part-7-heatmap_label-liver.nii.gz").write_bytes(b"killed")
    run(model, scans, output)
    assert not list(output.rglob(".part-*"))
    for name in ("a", "b"):
        assert (values(output / name, "label-liver") > 0).any()
        assert (output / name / "mask.nii.gz").is_file()
    assert json.loads((output / "manifest.json").read_text())["options"]["overlap"] == 0.25


def test_running_again_skips_what_is_explained_and_other_targets_are_added(model, scans, tmp_path, monkeypatch):
    output = run(model, scans, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("heatmap*")}
    with monkeypatch.context() as patch:
        patch.setattr(command, "read_planned", lambda *_: pytest.fail("a case was read again"))
        run(model, scans, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("heatmap*")} == before
    run(model, scans, output, saliency={**GRADIENT, "targets": ["lesion-1"]})
    assert list(index(output / "a")["targets"]) == ["label-liver", "lesion-1"]
    label = output / "a" / "heatmap_label-liver.nii.gz"
    assert label.stat().st_mtime_ns == before[label]


def test_maps_made_in_another_way_are_refused_unless_overwritten(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out", saliency={**GRADIENT, "targets": ["label-liver", "lesion-1"]})
    other = {"method": "smooth_grad", "samples": 2}
    with pytest.raises(MedsegError, match=r"2 case\(s\) have heat maps .*method gradient.*overwrite=true") as caught:
        run(model, scans, output, saliency=other)
    assert caught.value.exit_status == 2
    masks = {path: path.stat().st_mtime_ns for path in output.rglob("mask.nii.gz")}
    with pytest.raises(MedsegError, match="none of the 2 cases"):
        run(model, scans, output, saliency={**other, "targets": ["lesion-999"]}, overwrite=True)
    assert "heatmap_lesion-1.nii.gz" in files(output / "a")  # nothing is lost for a map that cannot be made
    run(model, scans, output, saliency=other, overwrite=True)
    assert index(output / "a")["made"]["method"] == "smooth_grad"
    assert "heatmap_lesion-1.nii.gz" not in files(output / "a")
    assert {path: path.stat().st_mtime_ns for path in masks} == masks


def test_results_of_another_model_are_refused_unless_overwritten(model, scans, tmp_path):
    output = predicted(model, scans, tmp_path / "out")
    save_model(threshold_model(at=0.3), tmp_path / "other")
    with pytest.raises(MedsegError, match="holds results of other models"):
        run(tmp_path / "other", scans, output)
    assert not list(output.rglob("heatmap*"))
    run(tmp_path / "other", scans, output, overwrite=True)
    assert (values(output / "a", "label-liver") > 0).any()


@pytest.mark.parametrize(
    ("saliency", "message"),
    [
        ({"targets": ["label=spleen", "class=sick", "lesion"]}, r"targets:\n.*lesion-: expected"),
        (
            {"targets": ["label=spleen", "class=sick"]},
            r"no label 'spleen'; it has liver, lesion\n.*has no class; ask for",
        ),
        ({"method": "grad_cma"}, r"method 'grad_cma'; expected one of depth_cam, hires_cam, layer_cam"),
        ({"method": "smooth_grad", "sample": 3}, r"smooth_grad has no option sample; it has samples, noise, seed"),
        ({"layer": "encoder"}, r"gradient takes no layer"),
        ({"method": None}, r"explain=none: expected a method"),
    ],
)
def test_what_the_model_or_a_method_does_not_have_is_said_before_any_work(saliency, message, model, scans, tmp_path):
    with pytest.raises(MedsegError, match=message) as caught:
        run(model, scans, tmp_path / "out", saliency={**GRADIENT, **saliency})
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(scans, tmp_path):
    save_model(tiny_model(3), tmp_path / "unet")
    with pytest.raises(MedsegError, match=r"layer 'decodr': .*Layers of this network: .*decoder"):
        run(tmp_path / "unet", scans, tmp_path / "out", saliency={"method": "layer_cam", "layer": "decodr"})
    assert not (tmp_path / "out").exists()


def test_an_empty_mask_and_an_id_out_of_range_are_failures_of_their_case(model, scans, tmp_path):
    flat = np.zeros(SHAPE, np.float32)
    write_nifti(scans / "c.nii.gz", flat, np.eye(4))
    with pytest.raises(SomeFailed, match=r"1 of 3 cases failed[\s\S]*'c': [\s\S]*the mask holds no 'liver'") as caught:
        run(model, scans, tmp_path / "out", saliency={**GRADIENT, "targets": ["label-liver"]})
    assert caught.value.exit_status == 3
    assert "heatmap_label-liver.nii.gz" in files(tmp_path / "out" / "a")
    assert "mask.nii.gz" in files(tmp_path / "out" / "c")
    with pytest.raises(MedsegError, match=r"none of the 3 cases could be explained[\s\S]*lesion-1 to lesion-"):
        run(model, scans, tmp_path / "out", saliency={**GRADIENT, "targets": ["lesion-999"]})


def test_a_case_in_which_nothing_was_found_has_no_maps_and_is_done(model, scans, tmp_path, monkeypatch):
    write_nifti(scans / "c.nii.gz", np.zeros(SHAPE, np.float32), np.eye(4))
    output = run(model, scans, tmp_path / "out")
    assert index(output / "c")["targets"] == {}
    monkeypatch.setattr(command, "read_planned", lambda *_: pytest.fail("a case was read again"))
    run(model, scans, output)


def test_a_scan_that_cannot_be_predicted_is_named_and_the_others_are_explained(model, scans, tmp_path):
    (scans / "broken.nii.gz").write_bytes(b"\x1f\x8b garbage")
    with pytest.raises(SomeFailed, match=r"1 of 3 cases failed[\s\S]*broken"):
        run(model, scans, tmp_path / "out")
    assert "heatmaps.json" in files(tmp_path / "out" / "b")


def test_what_failed_of_an_earlier_input_is_none_of_this_ones_business(model, scans, tmp_path):
    write_nifti(tmp_path / "more" / "c.nii.gz", noise(SHAPE, 2), np.eye(4))
    (scans / "broken.nii.gz").write_bytes(b"\x1f\x8b garbage")
    with pytest.raises(SomeFailed):
        run(model, scans, tmp_path / "out")
    run(model, tmp_path / "more", tmp_path / "out")
    assert "heatmaps.json" in files(tmp_path / "out" / "c")


def test_a_case_that_memory_does_not_hold_leaves_the_others_and_ends_with_status_4(model, scans, tmp_path, monkeypatch):
    def starved(self, volume, prediction, targets):
        if prediction.case == "a":
            raise MachineError("explain: the memory does not hold it")
        return real(self, volume, prediction, targets)

    real = Explainer.explain
    monkeypatch.setattr(Explainer, "explain", starved)
    with pytest.raises(MachineError, match=r"memory did not hold 1 of 2"):
        run(model, scans, tmp_path / "out")
    assert "heatmaps.json" in files(tmp_path / "out" / "b")
    monkeypatch.undo()
    run(model, scans, tmp_path / "out")
    assert "heatmaps.json" in files(tmp_path / "out" / "a")


def test_a_full_disk_stops_and_is_resumed(model, scans, tmp_path, monkeypatch):
    def full(heat_map, stem):
        if heat_map.case == "b":
            raise OSError(28, "No space left on device")
        return real(heat_map, stem)

    real = heat_maps.write_heat_map
    monkeypatch.setattr(heat_maps, "write_heat_map", full)
    with pytest.raises(MachineError, match="disk is full"):
        run(model, scans, tmp_path / "out")
    assert "heatmaps.json" in files(tmp_path / "out" / "a")
    assert "heatmaps.json" not in files(tmp_path / "out" / "b")
    monkeypatch.undo()
    run(model, scans, tmp_path / "out")
    assert "heatmaps.json" in files(tmp_path / "out" / "b")


def test_several_models_by_name_are_refused(model, scans, tmp_path):
    with pytest.raises(MedsegError, match="expected one model, found several"):
        run({"one": model, "two": model}, scans, tmp_path / "out")  # type: ignore[arg-type]


def test_the_map_of_an_ensemble_is_the_mean_of_its_members(scans, tmp_path):
    for fold in range(2):
        member = threshold_model(at=0.1)
        weights = {name: weight * (1 + fold) for name, weight in member.weights.items()}
        save_model(replace(member, weights=weights), tmp_path / "exp" / f"fold_{fold}" / "model")
    output = run(tmp_path / "exp", scans, tmp_path / "out")
    found = values(output / "a", "label-liver")
    np.testing.assert_allclose(found[found > 0], 75 / (found > 0).sum(), rtol=0.05)


def test_a_network_with_layers_is_explained_by_one_of_them(scans, tmp_path):
    save_model(tiny_model(3), tmp_path / "unet")
    output = run(tmp_path / "unet", scans, tmp_path / "out", saliency={"method": "layer_cam"})
    made = index(output / "a")["made"]
    assert made["layer"]
    target = next(iter(index(output / "a")["targets"]))
    assert (values(output / "a", target) >= 0).all()
    assert values(output / "a", target).max() > 0


def test_pictures_get_a_tiff_of_floats(tmp_path):
    save_model(threshold_model(tiny_plan(2)), tmp_path / "model")
    (tmp_path / "in").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (9, 14), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "in" / "us.png")
    output = run(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    mask = np.asarray(Image.open(output / "us" / "mask.png"))
    with Image.open(output / "us" / "heatmap_label-liver.tif") as image:
        np.testing.assert_array_equal(np.asarray(image) > 0, mask == 1)


def test_a_dicom_series_gets_parametric_maps_and_other_scans_are_refused(model, scans, tmp_path):
    write_series(tmp_path / "dicom", noise(SHAPE, 1), affine_of(SHAPE))
    output = run(model, tmp_path / "dicom", tmp_path / "out", export={"dicom": True})
    (folder,) = (path for path in output.iterdir() if path.is_dir())
    assert {"heatmap_label-liver.dcm", "heatmap_label-liver.nii.gz", "seg.dcm"} <= files(folder)
    assert "heatmap_label-liver.dcm" in index(folder)["targets"]["label-liver"]
    predicted(model, scans, tmp_path / "plain")
    with pytest.raises(MedsegError, match="export=dicom: expected DICOM series, found 2"):
        run(model, scans, tmp_path / "plain", export={"dicom": True})


def test_predicting_again_finds_nothing_strange_in_an_explained_folder(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out")
    predicted(model, scans, output)
    assert "heatmaps.json" in files(output / "a")
    predicted(model, scans, output, overwrite=True)
    assert not list(output.rglob("heatmap*"))


def test_the_report_is_written_when_the_maps_are_there(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out", report=True)
    assert "slices.png" in files(output / "a")
    page, maps = output / "report.html", list(output.rglob("heatmaps.json"))
    assert all(page.stat().st_mtime_ns > path.stat().st_mtime_ns for path in maps)


def test_features_are_sheets_of_the_first_case(scans, tmp_path, monkeypatch):
    save_model(tiny_model(3), tmp_path / "unet")
    output = run(tmp_path / "unet", scans, tmp_path / "out", saliency={"method": None}, features=True)
    sheets = files(output / "features")
    assert len(sheets) == 3
    assert "filters.png" in sheets
    assert any(name.startswith("activations_") and name.endswith("_a.png") for name in sheets)
    assert not list(output.rglob("heatmap*"))
    monkeypatch.setattr("medseg.commands.feature_sheets.exciting_input", lambda *_: pytest.fail("searched again"))
    run(tmp_path / "unet", scans, output, saliency={"method": None}, features=True)


def test_every_method_has_a_configuration_with_its_options_and_their_defaults():
    given = {}
    for path in (conf_dir() / "explain").glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {values.pop("method"), values.pop("layer"), str(values.pop("targets"))} <= {path.stem, None, "[]"}
        given[path.stem] = values
    assert given.pop("none") == given.pop("auto") == {}
    assert given == {
        name: {p.name: p.default for p in signature(method).parameters.values() if p.default is not p.empty}
        for name, method in METHODS.items()
    }


def test_names_from_data_never_leave_the_folder_of_their_case(scans, tmp_path):
    plan = tiny_plan(labels=replace(LABELS, names={1: "../../escaped", 3: "lesion"}))
    base = threshold_model(plan)
    save_model(Model(plan=plan, task=base.task, network=base.network, weights=base.weights), tmp_path / "model")
    before = set(tmp_path.rglob("*"))
    output = run(tmp_path / "model", scans, tmp_path / "out")
    assert all(path == output or path.is_relative_to(output) for path in set(tmp_path.rglob("*")) - before)
    assert any("escaped" in name for name in files(output / "a"))
