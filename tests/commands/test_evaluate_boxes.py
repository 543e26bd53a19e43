"""Boxes of a detector, of a model's components or of any folder become an evaluation folder, and no figure by mistake."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medseg.commands.evaluate import evaluate
from medseg.data.preprocess import preprocess
from medseg.data.splits import Split, Splits
from medseg.errors import MedsegError, SomeFailed
from medseg.export.boxes import write_boxes_json
from medseg.inference.predictor import Outcome, Predictor
from medseg.model import Model, save_model
from medseg.networks import build_network
from medseg.structures import Boxes, Case, Cohort, LabelTable, LesionRule, Prediction, Source
from medseg.volume import Array, Geometry, Volume
from tests.tiny import LABELS, POINTWISE, RETINA, threshold_model, tiny_boxes, tiny_plan, write_nifti

CPU = {"device": "cpu", "precision": "float32"}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (20, 16, 8)
COUNT = 16
BRIGHT = 5.0
"""Deviations from the mean above which only lesions lie."""


def lesions_of(number: int) -> list[list[int]]:
    """No, one or two lesions, whose places depend on the number."""
    first = [1 + number % 4, 2, 1, 5 + number % 4, 6, 4]
    second = [12, 9 + number % 3, 3, 16, 12 + number % 3, 6]
    return [first, second][: number % 3]


def mask_of(number: int) -> Array:
    mask = np.zeros(SHAPE, np.uint8)
    for i0, j0, k0, i1, j1, k1 in lesions_of(number):
        mask[i0:i1, j0:j1, k0:k1] = 1
    return mask


def boxes(rows: Sequence[Sequence[float]], scores: Sequence[float], label: int = 1) -> Boxes:
    return Boxes(np.array(rows, float).reshape(-1, 6), np.full(len(rows), label), np.array(scores, float))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in which the lesions, and nothing else, are bright; and their masks."""
    root = tmp_path_factory.mktemp("data")
    for number in range(COUNT):
        noise = np.random.default_rng(number).normal(0, 5, SHAPE)
        bright = (mask_of(number) * 100 + noise).astype(np.float32)
        write_nifti(root / "images" / f"case_{number}.nii.gz", bright, AFFINE)
        write_nifti(root / "labels" / f"case_{number}.nii.gz", mask_of(number), AFFINE)
    return root


@pytest.fixture
def cohort(files: Path) -> Cohort:
    """Sixteen cases of as many patients with masks."""
    cases = [
        Case(
            f"case_{n}",
            (Source("nifti", (files / "images" / f"case_{n}.nii.gz",)),),
            Source("nifti", (files / "labels" / f"case_{n}.nii.gz",)),
            metadata={"site": "north" if n < 8 else "south"},
        )
        for n in range(COUNT)
    ]
    return Cohort(tuple(cases), ("MRI",), LABELS)


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two folds that test on one half each."""
    names = [f"case_{n}" for n in range(COUNT)]
    halves = names[:8], names[8:]
    folds = [Split(tuple(rest[3:]), tuple(rest[:3]), tuple(test)) for test, rest in (halves, halves[::-1])]
    Splits(tuple(folds), {}).save(tmp_path / "splits.json")
    return tmp_path / "splits.json"


def point(least: float) -> dict[str, Any]:
    thresholds = {name: {"0.5": least + 0.2, "1": least, "2": least - 0.2} for name in LABELS.names.values()}
    return {"fp_per_scan": 1.0, "thresholds": thresholds}


def detector(rule: LesionRule | None = None, **changes: Any) -> Model:
    plan = tiny_plan(task="detection", boxes=tiny_boxes(rule=rule or LesionRule()))
    network = {"_target_": RETINA}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build_network(network, plan, 2).state_dict()
    return Model(plan=plan, task={"name": "detection"}, network=network, weights=weights, **changes)


def run_folder(folder: Path, splits: Path, model: Model, fold: int = 0) -> Path:
    save_model(replace(model, training={"fold": fold}), folder / "model")
    shutil.copy(splits, folder / "splits.json")
    return folder


def says(monkeypatch: pytest.MonkeyPatch, found: Callable[[int], Boxes]) -> list[str]:
    """Detectors say ``found`` of each case; returns the list of cases that they were asked about."""
    asked: list[str] = []

    def outcome(self: Predictor, volume: Volume, case: str) -> Outcome:
        asked.append(case)
        boxes, labels = found(int(case.rpartition("_")[2])), self.plan.labels
        said = Prediction(case, volume.geometry, labels, boxes=boxes, thresholds=self.finder.thresholds)
        return Outcome(said, boxes, preprocess(volume, self.plan)[1], self.plan)

    monkeypatch.setattr(Predictor, "outcome", outcome)
    return asked


def rightly(number: int) -> Boxes:
    """Every lesion with 0.6, and a false box with 0.4."""
    true = lesions_of(number)
    return boxes([*true, [0, 12, 0, 3, 15, 2]], [*[0.6] * len(true), 0.4])


def run(cohort: Cohort, out: Path, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"progress": False, "bootstrap": 20}
    if "model" in options:
        defaults |= {"runtime": CPU, "trust": [POINTWISE], "mirror": False}
    return evaluate(cohort=cohort, out=out, **(defaults | options))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count(out: Path, metric: str, fold: str | None = None) -> float:
    chosen = (row for row in rows(out) if row["metric"] == metric and fold in (None, row["fold"]))
    return sum(float(row["value"]) for row in chosen)


def written(folder: Path, found: Callable[[int], Boxes], numbers: Sequence[int] = range(COUNT)) -> Path:
    """What another system says, a file a case."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        write_boxes_json(found(number), Geometry(SHAPE, AFFINE), LABELS, folder / f"case_{number}.json")
    return folder


# ---- a detector


def test_every_candidate_is_kept_and_scored_and_scans_without_lesion_count(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, rightly)
    fold = run_folder(tmp_path / "run", splits, detector(working_point=point(0.5)))
    summary = run(cohort, tmp_path / "out", model=fold)
    assert summary["ap_10"]["liver"]["value"] == summary["ap_50"]["liver"]["value"] == 1
    assert summary["sensitivity"]["liver"] == {**summary["sensitivity"]["liver"], "value": 1, "n": 7, "n_cases": 8}
    assert summary["fp_per_scan"]["liver"]["value"] == 0  # those of 0.4 lie below the working point
    assert summary["clean_scans"]["liver"]["n"] == 3
    assert "note" not in summary["precision"]["liver"]
    listed = json.loads((tmp_path / "out" / "predictions" / "case_1" / "boxes.json").read_text())
    assert [box["score"] for box in listed["boxes"]] == [0.6, 0.4] and listed["working_point"]["liver"] == 0.5
    assert {row["metric"] for row in rows(tmp_path / "out")} == {"tp", "fp", "fn"}
    assert {row["site"] for row in rows(tmp_path / "out")} == {"north"}
    figures = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
    assert sorted(figures) == ["froc.png", "precision_recall.png", "worst.png"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_the_folds_of_an_experiment_are_pooled_each_at_its_own_working_point(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, rightly)
    for fold, least in ((0, 0.3), (1, 0.5)):
        run_folder(tmp_path / "all" / f"fold_{fold}", splits, detector(working_point=point(least)), fold)
    summary = run(cohort, tmp_path / "out", model=tmp_path / "all")
    assert count(tmp_path / "out", "fp", "0") == 8 and count(tmp_path / "out", "fp", "1") == 0
    assert summary["fp_per_scan"]["liver"]["value"] == 0.5
    assert summary["sensitivity"]["liver"]["n"] == sum(len(lesions_of(n)) for n in range(COUNT))
    assert {row["id"] for row in rows(tmp_path / "out")} == {case.id for case in cohort.cases}


def test_another_rate_of_false_positives_needs_no_new_prediction(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = says(monkeypatch, rightly)
    fold = run_folder(tmp_path / "run", splits, detector(working_point=point(0.5)))
    run(cohort, tmp_path / "out", model=fold)
    shutil.rmtree(tmp_path / "out" / "predictions" / "case_3")
    asked.clear()
    with pytest.raises(MedsegError, match=r"other fp_per_scan.*overwrite=true"):
        run(cohort, tmp_path / "out", model=fold, boxes={"fp_per_scan": 2.0})
    summary = run(cohort, tmp_path / "out", model=fold, boxes={"fp_per_scan": 2.0}, overwrite=True)
    assert summary["fp_per_scan"]["liver"]["value"] == 1 and asked == ["case_3"]
    with pytest.raises(MedsegError, match=r"2\.5|for 0\.5 to 2"):
        run(cohort, tmp_path / "other", model=fold, boxes={"fp_per_scan": 20})
    assert not (tmp_path / "other").exists()
    run(cohort, tmp_path / "out", model=fold, boxes={"fusion": "nms"}, overwrite=True)
    assert len(asked) == 1 + 8  # other boxes


def test_what_a_model_said_is_scored_alike_as_predictions(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, rightly)
    fold = run_folder(tmp_path / "run", splits, detector(working_point=point(0.5)))
    summary = run(cohort, tmp_path / "out", model=fold)
    folder = tmp_path / "out" / "predictions"
    assert run(cohort, tmp_path / "again", predictions=folder, splits=splits, fold=0) == summary


def test_what_is_a_lesion_is_as_the_model_was_trained(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, rightly)  # the first lesion has 4·4·3 voxels of 2 mm³, the second 4·3·3
    fold = run_folder(tmp_path / "run", splits, detector(LesionRule(smallest_mm3=80.0), working_point=point(0.5)))
    summary = run(cohort, tmp_path / "out", model=fold, lesions={"smallest_mm3": 0.0})
    assert summary["sensitivity"]["liver"]["n"] == 5
    folder = written(tmp_path / "boxes", rightly)
    for lesions, expected in ((None, 7), ({"smallest_mm3": 80.0}, 5)):
        out = tmp_path / f"out_{expected}"
        found = run(cohort, out, predictions=folder, splits=splits, fold=0, lesions=lesions)
        assert found["sensitivity"]["liver"]["n"] == expected


def test_the_baseline_stands_beside_and_learns_from_fit_alone(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medseg")
    says(monkeypatch, lambda number: boxes([], []))
    fold = run_folder(tmp_path / "run", splits, detector(working_point=point(0.5)))
    summary = run(cohort, tmp_path / "out", model=fold, baselines=True)
    beside = summary["baselines"]["brightest_components"]
    assert summary["ap_50"]["liver"]["value"] == 0 and beside["ap_50"]["liver"]["value"] == 1
    assert beside["sensitivity"]["liver"]["value"] == 1 and "note" not in beside["sensitivity"]["liver"]
    assert beside["sensitivity"]["liver"]["n"] == summary["sensitivity"]["liver"]["n"] == 7
    table = caplog.text[caplog.text.index("beside the baseline, fitted on fit") :]
    assert any(line.split()[:3] == ["liver", "brightest", "components"] for line in table.splitlines())
    folder = tmp_path / "out" / "baselines" / "brightest_components"
    assert json.loads((folder / "summary.json").read_text()) == beside
    # Were the test looked at, the same lesions as dark spots would be found by another rule.
    dark = [replace(case, images=case.images) for case in cohort.cases]
    for number in range(8):
        values = (mask_of(number) * -100.0 + np.random.default_rng(number).normal(0, 5, SHAPE)).astype(np.float32)
        image = write_nifti(tmp_path / "dark" / f"case_{number}.nii.gz", values, AFFINE)
        dark[number] = replace(dark[number], images=(Source("nifti", (image,)),))
    turned = run(replace(cohort, cases=tuple(dark)), tmp_path / "dark_out", model=fold, baselines=True)
    assert turned["baselines"]["brightest_components"]["ap_50"]["liver"]["value"] < 0.2


def test_figures_of_tune_must_not_be_reported(
    cohort: Cohort, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medseg")
    says(monkeypatch, rightly)
    fold = run_folder(tmp_path / "run", splits, detector(working_point=point(0.5)))
    run(cohort, tmp_path / "test", model=fold)
    assert "a lesion is found from IoU 0.1 up" in caplog.text and "NOT TO BE REPORTED" not in caplog.text
    run(cohort, tmp_path / "tune", model=fold, split="tune")
    assert "NOT TO BE REPORTED" in caplog.text


def test_folds_of_different_tasks_are_refused(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    run_folder(tmp_path / "all" / "fold_0", splits, detector(), 0)
    run_folder(tmp_path / "all" / "fold_1", splits, threshold_model(), 1)
    with pytest.raises(MedsegError, match="folds of one task, found detection and segmentation"):
        run(cohort, tmp_path / "out", model=tmp_path / "all")


# ---- components of a segmentation model


def test_components_of_a_segmentation_model_are_scored_as_boxes(
    cohort: Cohort, splits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fold = run_folder(tmp_path / "run", splits, threshold_model(at=BRIGHT))
    summary = run(cohort, tmp_path / "out", model=fold, boxes={"from": "components"})
    assert summary["ap_50"]["liver"]["value"] == 1
    assert "no working point was given" in summary["precision"]["liver"]["note"]
    assert caplog.text.count("NOT TO BE REPORTED") == 1
    folder = tmp_path / "out" / "predictions" / "case_2"
    assert sorted(path.name for path in folder.iterdir()) == ["boxes.json", "mask.nii.gz", "slices.png"]
    masks = run(cohort, tmp_path / "masks", model=fold)
    assert masks["dice"]["liver"]["value"] > 0.5 and "ap_50" not in masks


def test_components_obey_the_working_point_that_was_chosen_for_them(
    cohort: Cohort, splits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"components": {"aggregate": "mean", "smallest_mm3": 0.0, **point(0.5)}}
    fold = run_folder(tmp_path / "run", splits, replace(threshold_model(at=BRIGHT), working_point=chosen))
    summary = run(cohort, tmp_path / "out", model=fold, boxes={"from": "components"})
    assert summary["sensitivity"]["liver"]["value"] == 1 and "note" not in summary["sensitivity"]["liver"]
    assert "NOT TO BE REPORTED" not in caplog.text


# ---- a folder of boxes


def test_boxes_of_any_system_are_scored(cohort: Cohort, tmp_path: Path) -> None:
    def moved(number: int) -> Boxes:
        """By one voxel: 3·4·3 of 5·4·3 voxels."""
        return boxes([[a + 1, b, c, d + 1, e, f] for a, b, c, d, e, f in lesions_of(number)][:1], [0.9][: number % 3])

    summary = run(cohort, tmp_path / "out", predictions=written(tmp_path / "boxes", moved), split="all")
    assert summary["sensitivity_at_1_fp"]["liver"]["value"] == 10 / 15  # one of each case that has any
    assert summary["ap_50"]["liver"]["value"] == pytest.approx(67 / 101)  # IoU 0.6; recalls 0, 0.01 … 0.66
    assert "no working point was given" in summary["sensitivity"]["liver"]["note"]
    assert summary["clean_scans"]["liver"]["n"] == 6


@pytest.mark.parametrize(("task", "metric"), [(None, "dice"), ("segmentation", "dice"), ("detection", "ap_50")])
def test_where_masks_and_boxes_are_predicted_the_masks_are_scored_unless_boxes_are_asked_for(
    task: str | None, metric: str, cohort: Cohort, tmp_path: Path
) -> None:
    for number in range(COUNT):
        place = tmp_path / "results" / f"case_{number}"
        write_nifti(place / "mask.nii.gz", mask_of(number), AFFINE)
        write_boxes_json(rightly(number), Geometry(SHAPE, AFFINE), LABELS, place / "boxes.json")
    summary = run(cohort, tmp_path / "out", predictions=tmp_path / "results", split="all", task=task)
    assert summary[metric]["liver"]["value"] == 1


def test_a_data_set_of_boxes_is_scored_by_boxes(cohort: Cohort, tmp_path: Path) -> None:
    """Cells of a table; the empty one says that there is no lesion. An empty folder is one of boxes then, too."""
    cells = [";".join(",".join([*map(str, box), "liver"]) for box in lesions_of(n)) for n in range(COUNT)]
    cases = [replace(case, label=None, boxes=cell) for case, cell in zip(cohort.cases, cells, strict=True)]
    folder = written(tmp_path / "boxes", rightly)
    summary = run(replace(cohort, cases=tuple(cases)), tmp_path / "out", predictions=folder, split="all")
    assert summary["ap_50"]["liver"]["value"] == 1 and summary["sensitivity"]["liver"]["n_cases"] == COUNT
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedsegError, match=r"none of the 16 cases could be scored(?s:.)*hold no boxes of it"):
        run(replace(cohort, cases=tuple(cases)), tmp_path / "none", predictions=tmp_path / "empty", split="all")


def test_a_case_that_nobody_annotated_is_left_out_by_name(cohort: Cohort, tmp_path: Path) -> None:
    cases = (replace(cohort.cases[0], label=None), *cohort.cases[1:])
    folder = written(tmp_path / "boxes", rightly)
    with pytest.raises(SomeFailed, match=r"(?s)1 of 16 cases.*case_0.*nobody marked boxes in it") as failure:
        run(replace(cohort, cases=cases), tmp_path / "out", predictions=folder, split="all")
    assert failure.value.exit_status == 3
    assert "case_0" not in {row["id"] for row in rows(tmp_path / "out")}
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["failed"] == ["case_0"]


def test_boxes_that_cannot_be_ranked_are_named_and_the_other_cases_scored(cohort: Cohort, tmp_path: Path) -> None:
    folder = written(tmp_path / "boxes", rightly)
    for number, value in ((1, "null"), (2, "NaN")):
        file = folder / f"case_{number}.json"
        file.write_text(file.read_text().replace('"score": 0.4', f'"score": {value}'))
    (folder / "case_4.json").write_text('{"boxes": [')
    (folder / "case_5.json").unlink()
    message = r"(?s)4 of 16 cases.*case_1.*1 of its 2 found boxes have no score.*case_2.*NaN.*case_4.*case_5.*hold no boxes of it"
    with pytest.raises(SomeFailed, match=message) as failure:
        run(cohort, tmp_path / "out", predictions=folder, split="all")
    assert str(tmp_path) not in str(failure.value).partition("\nThe figures")[0]
    assert len({row["id"] for row in rows(tmp_path / "out")}) == 12


def test_pictures_are_scored_with_coco_precision(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medseg")
    cases = []
    for number in range(8):
        image = tmp_path / "images" / f"{number}.png"
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30), 9 * number, np.uint8)).save(image)
        place = tmp_path / "boxes" / str(number)
        place.mkdir(parents=True)
        found = Boxes(np.array([[2.0, 3, 10, 12]]), np.array([1]), np.array([0.9 - number / 10]))
        write_boxes_json(found, Geometry.from_spacing((30, 20), (1.0, 1.0), "px"), LABELS, place / "boxes.json")
        cell = "2,3,10,12,liver" if number < 6 else "none"
        cases.append(Case(str(number), (Source("picture", (image,)),), boxes=cell))
    summary = run(Cohort(tuple(cases), ("US",), LABELS), tmp_path / "out", predictions=tmp_path / "boxes", split="all")
    assert summary["ap_coco"]["liver"]["value"] == 1 and summary["fp_per_scan"]["liver"]["value"] == 0.25
    assert "COCO AP" in caplog.text and "a lesion is found from IoU 0.5 up" in caplog.text
    assert (tmp_path / "out" / "figures" / "worst.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "classification"}, "the data set has no classes to compare with"),
        ({"task": "counting"}, "expected one of segmentation, detection, classification"),
        ({"task": "detection", "bands": [{"column": "x", "low": 1}]}, "are for classification, and this is detection"),
        ({"task": "detection", "boxes": {"fp_per_scan": 1.0}}, "can be said of a model"),
        ({"boxes": {"from": "components"}}, "can be said of a model"),
        ({"boxes": {"threshold": 1.0}}, "boxes has no threshold"),
        ({"task": "detection", "lesions": {"smallest_mm3": -1.0}}, "expected 0 or more"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_any_work(
    options: Mapping[str, Any], message: str, cohort: Cohort, tmp_path: Path
) -> None:
    with pytest.raises(MedsegError, match=message):
        run(cohort, tmp_path / "out", predictions=tmp_path, split="all", **options)
    assert not (tmp_path / "out").exists()


def test_regions_have_no_boxes(cohort: Cohort, tmp_path: Path) -> None:
    regions = LabelTable({1: "a", 3: "b"}, regions={"whole": (1, 3)}, paint=(1,))
    with pytest.raises(MedsegError, match="found the regions whole"):
        run(replace(cohort, labels=regions), tmp_path / "out", predictions=tmp_path, split="all", task="detection")
    assert not (tmp_path / "out").exists()


def test_a_segmentation_model_has_no_working_point_to_choose(cohort: Cohort, splits: Path, tmp_path: Path) -> None:
    fold = run_folder(tmp_path / "run", splits, threshold_model())
    with pytest.raises(MedsegError, match="boxes=components"):
        run(cohort, tmp_path / "out", model=fold, boxes={"fp_per_scan": 1.0})
    detecting = run_folder(tmp_path / "detector", splits, detector())
    with pytest.raises(MedsegError, match="leave it out"):
        run(cohort, tmp_path / "out", model=detecting, boxes={"from": "components"})
