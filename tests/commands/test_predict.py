"""A folder of scans becomes a result folder: whole cases, a manifest that says what happened, and an exit status."""

from __future__ import annotations

import csv
import itertools
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import medseg.commands.predict as command
from medseg.commands import case_work
from medseg.commands.predict import predict
from medseg.errors import MachineError, MedsegError, SomeFailed
from medseg.model import Model, save_model
from medseg.structures import LabelTable
from medseg.testing.phantoms import make_phantom, write_scan
from medseg.volume import Reorientation
from tests.tiny import POINTWISE, noise, threshold_model, tiny_model, tiny_plan, write_nifti

CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_model(3), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for i, name in enumerate(("a", "b", "c")):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise((12 + i, 10, 6), i))
    return tmp_path / "scans"


def run(model, scans, output, **options):
    return predict(
        model=model, input=scans, output=output, progress=False, **{"runtime": CPU, "mirror": False, **options}
    )


def manifest(output: Path) -> dict:
    return json.loads((output / "manifest.json").read_text())


def rows(output: Path) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in csv.DictReader((output / "predictions.csv").open(newline=""))}


def mask(output: Path, case: str) -> np.ndarray:
    return np.asanyarray(nib.load(output / case / "mask.nii.gz").dataobj)


def threshold(folder: Path, **plan: object) -> Path:
    save_model(threshold_model(tiny_plan(**plan), at=0.0), folder)
    return folder


def test_every_scan_gets_a_mask_on_its_own_grid_and_a_row(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out")
    for name in ("a", "b", "c"):
        scan, found = nib.load(scans / f"{name}.nii.gz"), nib.load(output / name / "mask.nii.gz")
        assert scan.shape == found.shape
        np.testing.assert_allclose(scan.affine, found.affine, atol=1e-5)
    assert {p.name for p in (output / "a").iterdir()} == {"mask.nii.gz", "overlay.png", "slices.png"}
    assert {p.name for p in output.iterdir()} == {"a", "b", "c", "manifest.json", "predictions.csv", "report.html"}
    body = manifest(output)
    assert body["labels"] == {"1": "liver", "3": "lesion"}
    assert body["options"]["overlap"] == 0.5
    assert body["cases"]["a"]["status"] == "done"
    assert body["cases"]["a"]["sources"] == ["a.nii.gz"]
    assert str(tmp_path) not in (output / "manifest.json").read_text()
    voxels = int((mask(output, "b") == 1).sum())
    assert float(rows(output)["b"]["liver_ml"]) == pytest.approx(voxels * 2 / 1000)


def test_the_mask_of_a_file_is_the_same_whatever_orientation_it_is_stored_in(model, tmp_path):
    affine = np.array([[0.98, -0.17, 0.0, 5], [0.17, 0.98, 0.0, -7], [0, 0, 1, 3], [0, 0, 0, 1]]) @ np.diag(
        [0.9, 1, 2, 1]
    )
    values = noise((14, 12, 6), 1)
    turns = [
        Reorientation(order, flip)
        for order in itertools.permutations(range(3))
        for flip in ((False, False, False), (True, True, False), (False, True, True), (True, True, True))
    ]
    for i, turn in enumerate(turns):
        write_nifti(tmp_path / "in" / f"t{i:02}.nii.gz", values, affine, turn)
    write_nifti(tmp_path / "in" / "plain.nii.gz", values, affine)
    output = run(model, tmp_path / "in", tmp_path / "out", mirror=True, overlays=False)
    expected = mask(output, "plain")
    assert len(np.unique(expected)) > 1
    for i, turn in enumerate(turns):
        np.testing.assert_array_equal(mask(output, f"t{i:02}"), turn.apply(expected), err_msg=str(turn))


def test_one_corrupt_file_leaves_the_others_unharmed_and_is_named(model, scans, tmp_path):
    whole = (scans / "b.nii.gz").read_bytes()
    (scans / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SomeFailed, match=r"1 of 3 cases failed[\s\S]*b") as caught:
        run(model, scans, tmp_path / "out")
    assert caught.value.exit_status == 3
    cases = manifest(tmp_path / "out")["cases"]
    assert sorted(name for name, case in cases.items() if case["status"] == "done") == ["a", "c"]
    failed = next(case for case in cases.values() if case["status"] == "failed")
    assert failed["reason"]
    assert str(tmp_path) not in json.dumps(cases)
    assert not (tmp_path / "out" / "b").exists()
    assert sorted(row["status"] for row in rows(tmp_path / "out").values()) == ["done", "done", "failed"]

    (scans / "b.nii.gz").write_bytes(whole)
    run(model, scans, tmp_path / "out")
    assert {case["status"] for case in manifest(tmp_path / "out")["cases"].values()} == {"done"}
    assert len(rows(tmp_path / "out")) == 3


def test_running_again_skips_what_is_done(model, scans, tmp_path, monkeypatch):
    output = run(model, scans, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in output.rglob("mask.nii.gz")}
    monkeypatch.setattr(case_work, "read_planned", lambda *_, **__: pytest.fail("a case was read again"))
    run(model, scans, output)
    assert {p: p.stat().st_mtime_ns for p in output.rglob("mask.nii.gz")} == before
    assert len(rows(output)) == 3


def test_another_scan_of_the_same_name_and_a_removed_mask_are_predicted_again(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out")
    write_nifti(scans / "a.nii.gz", noise((9, 9, 9), 7))
    (output / "b" / "mask.nii.gz").unlink()
    run(model, scans, output)
    assert mask(output, "a").shape == (9, 9, 9)
    assert mask(output, "b").shape == (13, 10, 6)


def test_output_of_another_model_or_other_options_is_refused_unless_overwritten(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out")
    save_model(tiny_model(9), tmp_path / "other")
    before = mask(output, "a")
    for arguments in ({"model": tmp_path / "other"}, {"model": model, "overlap": 0.25}):
        with pytest.raises(MedsegError, match="overwrite=true") as caught:
            run(scans=scans, output=output, **arguments)
        assert caught.value.exit_status == 2
    np.testing.assert_array_equal(mask(output, "a"), before)
    (scans / "c.nii.gz").unlink()
    run(tmp_path / "other", scans, output, overwrite=True)
    assert (mask(output, "a") != before).any()
    assert sorted(manifest(output)["cases"]) == ["a", "b"]
    assert not (output / "c").exists()


def test_a_full_disk_stops_keeps_what_is_complete_and_is_resumed(model, scans, tmp_path, monkeypatch):
    def full(prediction, folder):
        if prediction.case == "b":
            (folder / "mask.nii.gz").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return real(prediction, folder)

    real = case_work.write_mask
    monkeypatch.setattr(case_work, "write_mask", full)
    with pytest.raises(MachineError, match="disk is full") as caught:
        run(model, scans, tmp_path / "out")
    assert caught.value.exit_status == 4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "manifest.json"]
    monkeypatch.undo()
    run(model, scans, tmp_path / "out")
    assert sorted(manifest(tmp_path / "out")["cases"]) == ["a", "b", "c"]


def test_an_interrupted_run_keeps_what_is_complete(model, scans, tmp_path, monkeypatch):
    def interrupted(prediction, folder):
        if prediction.case == "b":
            raise KeyboardInterrupt
        return real(prediction, folder)

    real = case_work.write_mask
    monkeypatch.setattr(case_work, "write_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, scans, tmp_path / "out")
    assert list(manifest(tmp_path / "out")["cases"]) == ["a"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "manifest.json"]


def test_a_bug_in_one_case_is_logged_and_the_others_go_on(model, scans, tmp_path, monkeypatch, caplog):
    def broken(prediction, folder):
        if prediction.case == "b":
            raise ZeroDivisionError("oops")
        return real(prediction, folder)

    real = case_work.write_mask
    monkeypatch.setattr(case_work, "write_mask", broken)
    with pytest.raises(SomeFailed, match="ZeroDivisionError: oops"):
        run(model, scans, tmp_path / "out")
    assert "bug of medseg" in caplog.text
    assert (tmp_path / "out" / "c" / "mask.nii.gz").is_file()


def test_a_case_that_memory_does_not_hold_leaves_the_others_and_ends_with_status_4(model, scans, tmp_path, monkeypatch):
    def starved(prediction, folder):
        if prediction.case == "b":
            raise MemoryError("Unable to allocate 1 TiB")
        return real(prediction, folder)

    real = case_work.write_mask
    monkeypatch.setattr(case_work, "write_mask", starved)
    with pytest.raises(MachineError, match=r"memory did not hold 1 of 3[\s\S]*1 TiB") as caught:
        run(model, scans, tmp_path / "out")
    assert caught.value.exit_status == 4
    assert (tmp_path / "out" / "c" / "mask.nii.gz").is_file()


def test_what_readers_warn_of_stands_in_the_manifest(model, scans, tmp_path, monkeypatch):
    def warns(case, options, **how):
        logging.getLogger("medseg.scans.nifti").warning("%s: spacing mended", case.images[0].files[0])
        return real(case, options, **how)

    real = case_work.read_planned
    monkeypatch.setattr(case_work, "read_planned", warns)
    output = run(model, scans, tmp_path / "out")
    assert manifest(output)["cases"]["a"]["mended"] == ["a.nii.gz: spacing mended"]


@pytest.mark.parametrize("kind", ["missing", "empty", "all corrupt"])
def test_nothing_readable_is_one_clear_message_and_status_2(model, tmp_path, kind):
    folder = tmp_path / "in"
    if kind != "missing":
        folder.mkdir()
    if kind == "all corrupt":
        for name in ("x", "y"):
            (folder / f"{name}.nii.gz").write_bytes(b"\x1f\x8b garbage")
    with pytest.raises(MedsegError) as caught:
        run(model, folder, tmp_path / "out")
    assert caught.value.exit_status == 2
    if kind == "all corrupt":
        assert "x" in str(caught.value)
        assert "y" in str(caught.value)


def test_a_changed_weight_file_stops_before_any_work(model, scans, tmp_path):
    path = model / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(MedsegError, match=r"weights\.safetensors: changed") as caught:
        run(model, scans, tmp_path / "out")
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_a_foreign_network_needs_trust(scans, tmp_path):
    model = threshold(tmp_path / "model")
    with pytest.raises(MedsegError, match="trust"):
        run(model, scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    output = run(model, scans, tmp_path / "out", trust=[POINTWISE])
    scan = nib.load(scans / "a.nii.gz").get_fdata()
    found = mask(output, "a") == 1
    above = scan > scan.mean()
    assert (found == above).mean() > 0.75  # resampled from 2 mm slices to 1 mm and back


def test_output_must_be_a_place_of_its_own(model, scans, tmp_path):
    with pytest.raises(MedsegError, match="inside the input"):
        run(model, scans, scans / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("x")
    with pytest.raises(MedsegError, match=r"found other files and no manifest\.json"):
        run(model, scans, tmp_path / "used")
    with pytest.raises(MedsegError, match="found a file"):
        run(model, scans, tmp_path / "used" / "thesis.txt")
    run(model, scans, tmp_path / "used", overwrite=True)
    assert (tmp_path / "used" / "thesis.txt").read_text() == "x"


def test_a_folder_of_the_users_is_never_replaced(model, scans, tmp_path):
    mine = tmp_path / "data" / "a"
    mine.mkdir(parents=True)
    for name in ("image.nii.gz", "mask.nii.gz"):
        (mine / name).write_bytes(b"precious")
    with pytest.raises(MedsegError, match="other files, which would be lost"):
        run(model, scans, tmp_path / "data", overwrite=True)
    assert (mine / "image.nii.gz").read_bytes() == b"precious"


def test_two_cases_never_share_a_folder(model, scans, tmp_path, monkeypatch):
    def twins(path, plan, select):
        cases, faults = real(path, plan, select=select)
        return [replace(cases[0], id="p/1"), replace(cases[1], id="p_1")], faults

    real = command.input_cases
    monkeypatch.setattr(command, "input_cases", twins)
    with pytest.raises(MedsegError, match="'p/1' and 'p_1' would both be written to p_1"):
        run(model, scans, tmp_path / "out")


def test_an_experiment_folder_is_an_ensemble(scans, tmp_path):
    for fold in range(2):
        save_model(tiny_model(fold), tmp_path / "exp" / f"fold_{fold}" / "model")
    output = run(tmp_path / "exp", scans, tmp_path / "out")
    assert len(manifest(output)["models"][""]["members"]) == 2


def test_several_models_read_a_scan_once_and_give_one_result(scans, tmp_path, monkeypatch):
    organs = threshold(tmp_path / "organs", labels=LabelTable({2: "liver", 5: "spleen"}))
    lesions = threshold(tmp_path / "lesions", labels=LabelTable({1: "lesion"}), spacing=(1.0, 1.0, 2.0))
    count = []
    real = case_work.read_planned
    monkeypatch.setattr(
        case_work, "read_planned", lambda case, plan, **how: count.append(case.id) or real(case, plan, **how)
    )
    models = {"organs": organs, "lesions": lesions}
    output = run(models, scans, tmp_path / "out", trust=[POINTWISE], save_probabilities=True)
    assert sorted(count) == ["a", "b", "c"]
    body = manifest(output)
    assert body["labels"] == {"1": "organs/liver", "2": "organs/spleen", "3": "lesions/lesion"}
    assert list(body["models"]) == ["organs", "lesions"]
    found = mask(output, "a")
    alone = mask(run(lesions, scans, tmp_path / "alone", trust=[POINTWISE]), "a")
    np.testing.assert_array_equal(found == 3, alone == 1)
    assert set(np.unique(found)) <= {0, 1, 3}
    row = rows(output)["a"]
    assert float(row["lesions/lesion_ml"]) == pytest.approx((alone == 1).sum() * 2 / 1000)
    assert float(row["organs/liver_ml"]) > 0  # of the organ model's own mask, before the lesion was painted over it
    assert (output / "a" / "organs" / "probability_1-liver.nii.gz").is_file()


def test_models_that_read_scans_differently_are_refused(scans, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    save_model(tiny_model(0), one)
    save_model(tiny_model(0, tiny_plan(channels=tiny_plan().channels * 2)), two)
    with pytest.raises(MedsegError, match="'a' and 'b' cannot read the same scans: their number of channels differ"):
        run({"a": one, "b": two}, scans, tmp_path / "out")


def test_probabilities_are_written_only_when_asked_for(model, scans, tmp_path):
    output = run(model, scans, tmp_path / "out", save_probabilities=True, overlays=False)
    assert {p.name for p in (output / "a").iterdir()} == {
        "mask.nii.gz",
        "probability_1-liver.nii.gz",
        "probability_2-lesion.nii.gz",
        "slices.png",
    }
    liver = nib.load(output / "a" / "probability_1-liver.nii.gz").get_fdata()
    assert 0 <= liver.min() <= liver.max() <= 1
    assert (liver[mask(output, "a") == 1] > 1 / 3 - 1e-3).all()


def test_several_channels_are_read_by_their_number_and_a_missing_one_is_a_named_failure(tmp_path):
    channels = tuple(replace(tiny_plan().channels[0], name=name) for name in ("T1", "T2"))
    save_model(tiny_model(0, tiny_plan(channels=channels)), tmp_path / "model")
    for name, numbers in (("p1", (0, 1)), ("p2", (0,))):
        for number in numbers:
            write_nifti(tmp_path / "in" / f"{name}_{number:04}.nii.gz", noise((9, 9, 5), number))
    with pytest.raises(SomeFailed, match=r"p2[\s\S]*T2"):
        run(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    cases = manifest(tmp_path / "out")["cases"]
    assert cases["p1"]["sources"] == ["p1_0000.nii.gz", "p1_0001.nii.gz"]
    assert [case["status"] for _, case in sorted(cases.items())] == ["done", "failed"]


def test_a_folder_may_mix_dicom_nifti_and_a_corrupt_file(tmp_path):
    save_model(tiny_model(0, tiny_plan(spacing=(8.0, 8.0, 8.0))), tmp_path / "model")
    for index, dicom in ((0, True), (1, False)):
        write_scan(make_phantom(0, index, spacing_mm=12.0), tmp_path / "in" / str(index), dicom=dicom)
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"\x1f\x8b garbage")
    with pytest.raises(SomeFailed, match="broken"):
        run(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    done = [case for case in manifest(tmp_path / "out")["cases"].values() if case["status"] == "done"]
    assert len(done) == 2
    assert any("files)" in source for case in done for source in case["sources"])


def test_a_dicom_series_and_the_same_scan_as_nifti_get_the_same_mask(tmp_path):
    save_model(tiny_model(3, tiny_plan(spacing=(8.0, 8.0, 8.0))), tmp_path / "model")
    phantom = make_phantom(0, 0, spacing_mm=12.0)
    ras = []
    for kind in ("dicom", "nifti"):
        write_scan(phantom, tmp_path / kind, dicom=kind == "dicom")
        output = run(tmp_path / "model", tmp_path / kind, tmp_path / "out" / kind)
        (path,) = output.glob("*/mask.nii.gz")
        ras.append(nib.as_closest_canonical(nib.load(path)))
    one, other = (np.asanyarray(image.dataobj) for image in ras)
    assert len(np.unique(one)) > 1
    assert (one == other).mean() > 0.999  # a DICOM header rounds positions to decimals
    np.testing.assert_allclose(ras[0].affine, ras[1].affine, atol=1e-3)


def test_pictures_get_a_png_and_an_area(tmp_path):
    channels = tiny_plan(2).channels
    save_model(tiny_model(0, tiny_plan(2, channels=channels)), tmp_path / "model")
    (tmp_path / "in").mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (9, 14), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "in" / "us.png")
    output = run(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    assert np.asarray(Image.open(output / "us" / "mask.png")).shape == (9, 14)
    assert "liver_px" in rows(output)["us"]


def test_names_from_data_never_leave_the_result_folder(scans, tmp_path):
    labels = LabelTable({1: "../../escaped", 2: "/etc/x"})
    save_model(tiny_model(3, tiny_plan(labels=labels)), tmp_path / "model")
    before = set(tmp_path.rglob("*"))
    output = run(tmp_path / "model", scans, tmp_path / "out", save_probabilities=True)
    made = set(tmp_path.rglob("*")) - before
    assert all(p == output or p.is_relative_to(output) for p in made)
    assert (output / "a" / "probability_1-escaped.nii.gz").is_file()


@pytest.mark.parametrize("workers", [0, 3])
def test_reading_ahead_changes_nothing(model, scans, tmp_path, workers):
    one = run(model, scans, tmp_path / "one")
    other = run(model, scans, tmp_path / "other", workers=workers)
    for name in ("a", "b", "c"):
        np.testing.assert_array_equal(mask(one, name), mask(other, name))


def test_the_stored_postprocessing_is_applied(scans, tmp_path):
    base: Model = threshold_model(at=0.0)
    save_model(base, tmp_path / "plain")
    save_model(replace(base, postprocessing={"liver": {"largest": True}}), tmp_path / "largest")
    plain = run(tmp_path / "plain", scans, tmp_path / "out1", trust=[POINTWISE])
    largest = run(tmp_path / "largest", scans, tmp_path / "out2", trust=[POINTWISE])
    assert int(rows(plain)["a"]["liver_components"]) > 1
    assert int(rows(largest)["a"]["liver_components"]) == 1


def test_predicting_a_mask_does_without_what_only_trains_or_explains():
    heavy = ("captum", "monai", "lightning", "matplotlib", "torch._dynamo")
    code = (
        "import sys, medseg.commands.predict\nfrom medseg.tasks import build_task\nfrom tests.tiny import tiny_plan\n"
        f"build_task({{'name': 'segmentation'}}, tiny_plan())\nsys.stdout.write(' '.join(set({heavy}) & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == ""
