"""A model or a folder of masks becomes an evaluation folder: the right cases, named failures, and no figure by mistake."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.commands.evaluate import evaluate
from medseg.commands.score_masks import VOXELS, MaskScoring
from medseg.commands.scoring import Data
from medseg.data.preprocess import preprocess
from medseg.data.splits import Split, Splits
from medseg.errors import MedsegError, SomeFailed
from medseg.evaluation.mask_calibration import MaskForecast
from medseg.inference.predictor import Outcome, Predictor
from medseg.model import save_model
from medseg.scans import read_case
from medseg.scans.names import stem
from medseg.structures import Case, Cohort, LabelTable, Prediction, Source
from medseg.volume import Array
from tests.tiny import LABELS, POINTWISE, threshold_model, tiny_plan, write_nifti

CPU = {"device": "cpu", "precision": "float32"}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (16, 14, 12)


def truth_of(number: int) -> Array:
    """A liver (1) whose place depends on the number, and a lesion (3) in every second case."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2 + number % 3 : 9 + number % 3, 3:9, 2:8] = 1
    if number % 2:
        mask[12:14, 10:12, 9:11] = 3
    return mask


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Ten cases of nine patients; the liver is bright, the lesion is not."""
    cases = []
    for number in range(10):
        name, truth = f"case_{number}", truth_of(number)
        noise = np.random.default_rng(number).normal(0, 5, SHAPE)
        image = write_nifti(
            tmp_path / "images" / f"{name}.nii.gz", ((truth == 1) * 100 + noise).astype(np.float32), AFFINE
        )
        label = write_nifti(tmp_path / "labels" / f"{name}.nii.gz", truth, AFFINE)
        patient = f"patient_{min(number, 8)}"
        site = {"site": "north" if number < 5 else "south"}
        cases.append(
            Case(name, (Source("nifti", (image,)),), Source("nifti", (label,)), patient=patient, metadata=site)
        )
    return Cohort(tuple(cases), ("MRI",), LABELS)


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two folds: the first tests on cases 0 and 1, the second on cases 2 and 3."""
    names = [f"case_{n}" for n in range(10)]

    def fold(test: list[str]) -> Split:
        rest = [name for name in names if name not in test]
        return Split(tuple(rest[2:]), tuple(rest[:2]), tuple(test))

    Splits((fold(names[:2]), fold(names[2:4])), {}).save(tmp_path / "splits.json")
    return tmp_path / "splits.json"


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """What another system says of all cases: the truth, moved by one voxel."""
    for number in range(10):
        moved = np.roll(truth_of(number), 1, axis=0)
        write_nifti(tmp_path / "masks" / f"case_{number}.nii.gz", moved, AFFINE)
    return tmp_path / "masks"


def run_folder(folder: Path, splits: Path, fold: int = 0, at: float = 0.5) -> Path:
    """A run whose model calls every voxel above ``at`` (normalised) liver."""
    save_model(replace(threshold_model(tiny_plan(), at=at), training={"fold": fold}), folder / "model")
    shutil.copy(splits, folder / "splits.json")
    return folder


def run(cohort: Cohort, out: Path, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"progress": False, "bootstrap": 50}
    if "model" in options:
        defaults |= {"runtime": CPU, "trust": [POINTWISE], "mirror": False}
    return evaluate(cohort=cohort, out=out, **(defaults | options))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ids(out: Path) -> list[str]:
    return sorted({row["id"] for row in rows(out)})


# ---- a folder of masks


def test_masks_of_any_system_are_scored(cohort: Cohort, predictions: Path, tmp_path: Path) -> None:
    summary = run(cohort, tmp_path / "out", predictions=predictions, split="all")
    assert summary["dice"]["liver"]["value"] == pytest.approx(6 / 7)  # seven voxels long, moved by one
    assert summary["dice"]["lesion"]["value"] == pytest.approx(1 / 2)
    assert summary["dice"]["lesion"]["n"] == 5 and summary["dice"]["lesion"]["n_cases"] == 10
    assert summary["hd95_mm"]["liver"]["value"] == pytest.approx(1.0)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    first = rows(tmp_path / "out")[0]
    assert {name: first[name] for name in ("id", "patient", "split", "label", "metric", "site")} == {
        "id": "case_0", "patient": "patient_0", "split": "all", "label": "liver", "metric": "dice", "site": "north",
    }  # fmt: skip
    assert len(rows(tmp_path / "out")) == 10 * 2 * 10
    assert sorted(p.name for p in (tmp_path / "out" / "figures").iterdir()) == ["dice.png", "worst.png"]


def test_a_result_folder_is_scored_like_a_plain_one(cohort: Cohort, predictions: Path, tmp_path: Path) -> None:
    for path in sorted(predictions.iterdir()):
        place = tmp_path / "results" / stem(path.name)
        place.mkdir(parents=True)
        shutil.copy(path, place / "mask.nii.gz")
    one = run(cohort, tmp_path / "one", predictions=predictions, split="all")
    assert run(cohort, tmp_path / "two", predictions=tmp_path / "results", split="all") == one


def test_the_figures_are_the_same_whatever_orientation_the_masks_have(
    cohort: Cohort, predictions: Path, tmp_path: Path
) -> None:
    one = run(cohort, tmp_path / "one", predictions=predictions, split="all")
    turned = tmp_path / "turned"
    cases = []
    for case in cohort.cases:
        number = int(case.id[-1])
        flipped = np.diag([-1.0, 1.0, 2.0, 1.0])
        flipped[0, 3] = SHAPE[0] - 1
        image = write_nifti(turned / "images" / f"{case.id}.nii.gz", np.zeros(SHAPE, np.float32), flipped)
        label = write_nifti(turned / "labels" / f"{case.id}.nii.gz", truth_of(number)[::-1], flipped)
        write_nifti(turned / "masks" / f"{case.id}.nii.gz", np.roll(truth_of(number), 1, axis=0)[::-1], flipped)
        cases.append(replace(case, images=(Source("nifti", (image,)),), label=Source("nifti", (label,))))
    two = run(replace(cohort, cases=tuple(cases)), tmp_path / "two", predictions=turned / "masks", split="all")
    assert two["dice"] == one["dice"] and two["hd95_mm"] == one["hd95_mm"]


def test_a_missing_prediction_is_named_and_the_others_are_scored(
    cohort: Cohort, predictions: Path, tmp_path: Path
) -> None:
    (predictions / "case_3.nii.gz").unlink()
    (predictions / "case_4.nii.gz").write_bytes((predictions / "case_4.nii.gz").read_bytes()[:60])
    with pytest.raises(SomeFailed, match=r"(?s)2 of 10 cases.*case_3.*no mask of it.*case_4") as failure:
        run(cohort, tmp_path / "out", predictions=predictions, split="all")
    assert failure.value.exit_status == 3
    assert len(ids(tmp_path / "out")) == 8
    state = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert state["failed"] == ["case_3", "case_4"] and state["complete"]


def test_a_prediction_on_another_grid_is_named(cohort: Cohort, predictions: Path, tmp_path: Path) -> None:
    write_nifti(predictions / "case_0.nii.gz", truth_of(0)[:-1], AFFINE)
    shifted = AFFINE.copy()
    shifted[0, 3] = 5
    write_nifti(predictions / "case_1.nii.gz", truth_of(1), shifted)
    with pytest.raises(SomeFailed, match=r"(?s)case_0.*15×14×12.*16×14×12.*case_1.*5 mm apart"):
        run(cohort, tmp_path / "out", predictions=predictions, split="all")


def test_values_that_are_no_label_are_named(cohort: Cohort, predictions: Path, tmp_path: Path) -> None:
    write_nifti(predictions / "case_0.nii.gz", truth_of(0) * 255, AFFINE)
    with pytest.raises(SomeFailed, match=r"case_0.*prediction holds the values \[255\]"):
        run(cohort, tmp_path / "out", predictions=predictions, split="all")


def test_nothing_to_score_ends_with_status_two(cohort: Cohort, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedsegError, match="none of the 10 cases") as failure:
        run(cohort, tmp_path / "out", predictions=tmp_path / "empty", split="all")
    assert failure.value.exit_status == 2
    with pytest.raises(MedsegError, match="expected a folder"):
        run(cohort, tmp_path / "out", predictions=tmp_path / "nowhere", split="all")


def test_a_message_and_the_tables_hold_no_path_of_the_scans(cohort: Cohort, predictions: Path, tmp_path: Path) -> None:
    broken = Source("nifti", (tmp_path / "labels" / "gone.nii.gz",))
    cases = (replace(cohort.cases[0], label=broken), *cohort.cases[1:])
    with pytest.raises(SomeFailed) as failure:
        run(replace(cohort, cases=cases), tmp_path / "out", predictions=predictions, split="all")
    assert str(tmp_path / "labels") not in str(failure.value)
    texts = [p.read_text() for p in (tmp_path / "out").iterdir() if p.is_file()]
    assert not any(str(tmp_path) in text for text in texts)


def test_predictions_of_a_split_need_to_know_it(
    cohort: Cohort, predictions: Path, splits: Path, tmp_path: Path
) -> None:
    with pytest.raises(MedsegError, match="needs splits="):
        run(cohort, tmp_path / "out", predictions=predictions)
    run(cohort, tmp_path / "pooled", predictions=predictions, splits=splits)
    assert ids(tmp_path / "pooled") == ["case_0", "case_1", "case_2", "case_3"]
    assert {row["id"]: row["fold"] for row in rows(tmp_path / "pooled")}["case_3"] == "1"
    run(cohort, tmp_path / "one", predictions=predictions, splits=splits, fold=1)
    assert ids(tmp_path / "one") == ["case_2", "case_3"]
    with pytest.raises(MedsegError, match="several folds"):
        run(cohort, tmp_path / "tune", predictions=predictions, splits=splits, split="tune")


def test_pictures_are_scored_in_pixels(tmp_path: Path) -> None:
    truth, found = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[4:8, 4:8], found[4:8, 5:9] = 1, 1
    for folder, values in (("images", truth * 90), ("labels", truth), ("masks/a", found)):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / folder / ("mask.png" if "/" in folder else "a.png"))
    sources = [Source("picture", (tmp_path / folder / "a.png",)) for folder in ("images", "labels")]
    cohort = Cohort((Case("a", (sources[0],), sources[1], class_name="benign"),), ("US",), LabelTable({1: "lesion"}))
    summary = run(cohort, tmp_path / "out", predictions=tmp_path / "masks", split="all")
    assert summary["dice"]["lesion"]["value"] == pytest.approx(0.75)
    assert summary["hd95_px"]["lesion"]["value"] == 1
    assert rows(tmp_path / "out")[0]["class"] == "benign"


# ---- a model


def test_a_run_is_scored_on_its_own_test_cases_only(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    fold = run_folder(tmp_path / "run", splits, fold=1)
    summary = run(cohort, tmp_path / "out", model=fold)
    assert ids(tmp_path / "out") == ["case_2", "case_3"]
    assert summary["dice"]["liver"]["value"] > 0.99
    assert summary["dice"]["lesion"] == {**summary["dice"]["lesion"], "value": 0.0, "n": 1, "n_missing": 1}
    assert summary["hd95_mm"]["lesion"]["value"] is None
    masks = tmp_path / "out" / "predictions"
    assert sorted(p.name for p in masks.iterdir()) == ["case_2", "case_3", "manifest.json"]
    again = run(cohort, tmp_path / "again", predictions=masks, splits=splits, fold=1)
    assert again["dice"] == summary["dice"]
    assert run(cohort, tmp_path / "model_folder", model=fold / "model") == summary


def test_running_again_predicts_nothing_anew(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = run_folder(tmp_path / "run", splits)
    summary = run(cohort, tmp_path / "out", model=fold)
    shutil.rmtree(tmp_path / "out" / "predictions" / "case_1")
    predicted = []
    original = Predictor.outcome

    def outcome(self: Predictor, volume: Any, case: str, *more: Any) -> Any:
        predicted.append(case)
        return original(self, volume, case, *more)

    monkeypatch.setattr(Predictor, "outcome", outcome)
    assert run(cohort, tmp_path / "out", model=fold) == summary
    assert predicted == ["case_1"]
    # Another figure of the same masks needs no prediction either, but must be asked for.
    with pytest.raises(MedsegError, match=r"other tolerance_mm.*overwrite=true"):
        run(cohort, tmp_path / "out", model=fold, tolerance_mm=3.0)
    run(cohort, tmp_path / "out", model=fold, tolerance_mm=3.0, overwrite=True)
    assert predicted == ["case_1"]


def test_calibration_follows_the_labels_as_they_are_mended(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is true of the voxels that are kept is read anew, of a label that could not be read and of one that was wrong."""

    def honesty() -> tuple[int, float]:
        row = json.loads((tmp_path / "out" / "calibration.json").read_text())["all"]
        return row["n_patients"], row["ece_after"]

    fold, label = run_folder(tmp_path / "run", splits), tmp_path / "labels" / "case_1.nii.gz"
    whole = label.read_bytes()
    label.write_bytes(whole[:60])
    with pytest.raises(SomeFailed, match=r"(?s)1 of 2 cases.*case_1"):
        run(cohort, tmp_path / "out", model=fold)
    assert honesty()[0] == 1
    predicted = []
    original = Predictor.outcome
    monkeypatch.setattr(Predictor, "outcome", lambda s, v, case: predicted.append(case) or original(s, v, case))
    write_nifti(label, np.roll(truth_of(1), 5, axis=0), AFFINE)
    run(cohort, tmp_path / "out", model=fold)
    assert predicted == ["case_1"] and honesty()[0] == 2
    wrong = honesty()[1]
    label.write_bytes(whole)
    run(cohort, tmp_path / "out", model=fold)
    assert predicted == ["case_1", "case_1"] and honesty()[1] < wrong


def test_each_case_of_a_model_has_a_calibration_error_a_label(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    summary = run(cohort, tmp_path / "out", model=run_folder(tmp_path / "run", splits))
    errors = {(row["id"], row["label"]): row["value"] for row in rows(tmp_path / "out") if row["metric"] == "ece"}
    assert sorted(errors) == [("case_0", "lesion"), ("case_0", "liver"), ("case_1", "lesion"), ("case_1", "liver")]
    assert errors["case_0", "lesion"] == ""  # neither there nor predicted
    assert float(errors["case_1", "lesion"]) > float(errors["case_1", "liver"])  # sure that there is none
    found = MaskForecast.load(tmp_path / "out" / "predictions" / "case_1" / VOXELS, "").errors(LABELS)
    assert float(errors["case_1", "lesion"]) == pytest.approx(found["lesion"], rel=1e-5)
    assert summary["ece"]["lesion"]["value"] == pytest.approx(found["lesion"])


def test_regions_are_calibrated_in_the_order_of_the_data(tmp_path: Path) -> None:
    """The data list them the other way round than the model."""
    theirs = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "inner": (2,)}, paint=(1, 2))
    mine = replace(theirs, regions=dict(reversed(theirs.regions.items())), paint=(2, 1))
    truth = np.zeros((8, 8, 8), np.uint8)
    truth[2:6, 2:6, 2:6], truth[3:5, 3:5, 3:5] = 1, 2
    image = write_nifti(tmp_path / "a.nii.gz", truth.astype(np.float32), np.eye(4))
    label = write_nifti(tmp_path / "b.nii.gz", truth, np.eye(4))
    case = Case("a", (Source("nifti", (image,)),), Source("nifti", (label,)))
    volume, plan = read_case(case), tiny_plan(labels=theirs)
    stated = np.stack([truth > 0, truth > 1]).astype(np.float32)  # never wrong
    said = Outcome(Prediction("a", volume.geometry, theirs, mask=truth), stated, preprocess(volume, plan)[1], plan)
    (tmp_path / "of_a").mkdir()
    MaskScoring(Data(mine, ("MRI",), "test", {}), 1.0).write_prediction(said, case, tmp_path / "of_a")
    errors = MaskForecast.load(tmp_path / "of_a" / VOXELS, "").errors(mine)
    assert errors == {"inner": pytest.approx(0, abs=1e-5), "whole": pytest.approx(0, abs=1e-5)}


def test_labels_that_are_called_like_rows_of_the_calibration_are_refused_before_any_work(
    cohort: Cohort, tmp_path: Path
) -> None:
    labels = LabelTable({1: "liver", 3: "around"})
    save_model(threshold_model(tiny_plan(labels=labels)), tmp_path / "model")
    with pytest.raises(MedsegError, match="'around' names a row of calibration.json"):
        run(replace(cohort, labels=labels), tmp_path / "out", model=tmp_path / "model", split="all")
    assert not (tmp_path / "out").exists()


def test_a_folder_made_with_another_model_is_refused_and_replaced_on_demand(
    cohort: Cohort, splits: Path, tmp_path: Path
) -> None:
    run(cohort, tmp_path / "out", model=run_folder(tmp_path / "run", splits))
    (tmp_path / "out" / "audit.json").write_text("{}")
    other = run_folder(tmp_path / "other", splits, at=100.0)
    before = (tmp_path / "out" / "cases.csv").read_bytes()
    with pytest.raises(MedsegError, match="other models"):
        run(cohort, tmp_path / "out", model=other)
    assert (tmp_path / "out" / "cases.csv").read_bytes() == before
    assert run(cohort, tmp_path / "out", model=other, overwrite=True)["dice"]["liver"]["value"] == 0
    assert not (tmp_path / "out" / "audit.json").exists()  # it was of the other model
    (tmp_path / "out" / "evaluation.json").unlink()
    with pytest.raises(MedsegError, match="no evaluation.json explains"):
        run(cohort, tmp_path / "out", model=other)


def test_an_experiment_pools_the_tests_of_its_folds(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        run_folder(tmp_path / "experiment" / f"fold_{number}", splits, fold=number)
    run(cohort, tmp_path / "out", model=tmp_path / "experiment")
    assert {row["id"]: row["fold"] for row in rows(tmp_path / "out")} == {
        **{f"case_{n}": "0" for n in (0, 1)},
        **{f"case_{n}": "1" for n in (2, 3)},
    }
    assert (tmp_path / "out" / "predictions" / "case_3" / "mask.nii.gz").exists()
    run(cohort, tmp_path / "one", model=tmp_path / "experiment", fold=1)
    assert ids(tmp_path / "one") == ["case_2", "case_3"]


def test_folds_that_share_cases_keep_their_masks_apart(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    for number in (0, 1):
        run_folder(tmp_path / "experiment" / f"fold_{number}", splits, fold=number, at=0.5 if number else 100.0)
    run(cohort, tmp_path / "out", model=tmp_path / "experiment", split="fit")
    dice = {
        (r["fold"], r["id"]): float(r["value"])
        for r in rows(tmp_path / "out")
        if r["metric"] == "dice" and r["label"] == "liver"
    }
    assert dice["0", "case_9"] == 0 and dice["1", "case_9"] > 0.99
    assert (tmp_path / "out" / "predictions" / "fold_1" / "case_9" / "mask.nii.gz").exists()


def test_figures_that_must_not_be_reported_say_so(
    cohort: Cohort, splits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fold = run_folder(tmp_path / "run", splits)
    caplog.set_level(logging.INFO, "medseg")
    run(cohort, tmp_path / "test", model=fold)
    assert "Dice [95 % interval]" in caplog.text and "NOT TO BE REPORTED" not in caplog.text
    for split, why in (
        ("tune", "were chosen on these"),
        ("fit", "was trained on"),
        ("all", "8 of the cases were in fit"),
    ):
        caplog.clear()
        run(cohort, tmp_path / split, model=fold, split=split)
        assert "NOT TO BE REPORTED" in caplog.text and why in caplog.text


def test_other_splits_than_those_of_the_training_are_found_out(
    cohort: Cohort, splits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fold = run_folder(tmp_path / "run", splits)
    swapped = Splits.load(splits)
    Splits((swapped.folds[1], swapped.folds[0]), {}).save(tmp_path / "swapped.json")
    caplog.set_level(logging.INFO, "medseg")
    run(cohort, tmp_path / "out", model=fold, splits=tmp_path / "swapped.json")
    assert "NOT TO BE REPORTED: 2 of the cases were in fit or tune" in caplog.text


def test_a_model_is_not_scored_on_the_test_of_another_fold(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    fold = run_folder(tmp_path / "run", splits)
    with pytest.raises(MedsegError, match="trained on fold 0"):
        run(cohort, tmp_path / "out", model=fold, fold=1)


def test_a_model_without_splits_is_scored_on_all_or_not_at_all(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    model = tmp_path / "liver_model"
    save_model(threshold_model(tiny_plan(), at=0.5), model)
    with pytest.raises(MedsegError, match="split=all"):
        run(cohort, tmp_path / "out", model=model)
    run(cohort, tmp_path / "out", model=model, split="all")
    assert len(ids(tmp_path / "out")) == 10
    with pytest.raises(MedsegError, match="give fold="):
        run(cohort, tmp_path / "other", model=model, splits=splits)
    run(cohort, tmp_path / "other", model=model, splits=splits, fold=1)
    assert ids(tmp_path / "other") == ["case_2", "case_3"]


def test_a_case_that_cannot_be_predicted_is_named_and_the_others_are_scored(
    cohort: Cohort, splits: Path, tmp_path: Path
) -> None:
    image = tmp_path / "images" / "case_1.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    fold = run_folder(tmp_path / "run", splits)
    with pytest.raises(SomeFailed, match=r"(?s)1 of 2 cases.*case_1"):
        run(cohort, tmp_path / "out", model=fold)
    assert ids(tmp_path / "out") == ["case_0"]


def test_cases_of_the_split_that_the_data_lack_are_named_before_any_work(
    cohort: Cohort, splits: Path, tmp_path: Path
) -> None:
    fold = run_folder(tmp_path / "run", splits)
    with pytest.raises(MedsegError, match=r"(?s)1 of 2 test cases.*case_0"):
        run(replace(cohort, cases=cohort.cases[1:]), tmp_path / "out", model=fold)
    assert not (tmp_path / "out").exists()


def test_other_labels_than_the_models_are_refused(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    fold = run_folder(tmp_path / "run", splits)
    with pytest.raises(MedsegError, match="other labels"):
        run(replace(cohort, labels=LabelTable({1: "spleen"})), tmp_path / "out", model=fold)


def test_baselines_stand_beside_the_model(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    fold = run_folder(tmp_path / "run", splits)
    summary = run(cohort, tmp_path / "out", model=fold, baselines=True)
    threshold, atlas = (summary["baselines"][name]["dice"] for name in ("global_threshold", "mean_shape_atlas"))
    assert threshold["liver"]["value"] > 0.99  # it is bright, and that is all there is to it
    assert threshold["lesion"]["value"] < 0.1  # as bright as the background
    assert atlas["lesion"]["value"] == pytest.approx(0.5, abs=0.05)  # always found there: rightly in one case of two
    assert threshold["liver"]["n"] == summary["dice"]["liver"]["n"] == 2
    folder = tmp_path / "out" / "baselines" / "global_threshold"
    assert json.loads((folder / "summary.json").read_text())["dice"] == threshold
    assert ids(folder) == ids(tmp_path / "out")
    assert "baselines" not in json.loads((tmp_path / "out" / "summary.json").read_text())
    run(cohort, tmp_path / "out", model=fold)
    assert not folder.exists(), "figures that nobody asked for now are those of an earlier call"
    with pytest.raises(MedsegError, match="fitted on fit"):
        run(cohort, tmp_path / "all", model=fold, split="all", baselines=True)


def test_baselines_never_see_the_test_cases(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    fold = run_folder(tmp_path / "run", splits)
    first = run(cohort, tmp_path / "one", model=fold, baselines=True)["baselines"]["mean_shape_atlas"]["dice"]
    for number in (0, 1):  # if the atlas learnt from them, it would now know better
        write_nifti(tmp_path / "labels" / f"case_{number}.nii.gz", np.roll(truth_of(number), 5, axis=1), AFFINE)
    second = run(cohort, tmp_path / "two", model=fold, baselines=True)["baselines"]["mean_shape_atlas"]["dice"]
    assert second["liver"]["value"] < 0.5 < first["liver"]["value"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "validation", "predictions": "."}, "expected one of fit, tune, test or all"),
        ({}, "expected either model"),
        ({"predictions": ".", "model": "."}, "expected either model"),
        ({"predictions": ".", "split": "all", "tolerance_mm": -1.0}, "of 0 or more"),
        ({"predictions": ".", "split": "all", "bootstrap": -1}, "of 0 or more"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_any_work(
    options: Mapping[str, Any], message: str, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(MedsegError, match=message):
        run(cohort, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_labels_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="neither labels nor classes"):
        run(replace(cohort, labels=None), tmp_path / "out", predictions=tmp_path, split="all")
