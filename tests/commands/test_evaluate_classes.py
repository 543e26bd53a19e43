"""Class probabilities of any system become an evaluation folder, beside what needs no network."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.commands.evaluate import evaluate
from medseg.commands.evaluation_parts import Part
from medseg.commands.score_classes import class_scoring
from medseg.commands.scoring import Data
from medseg.data.splits import Split, Splits
from medseg.errors import MedsegError, SomeFailed
from medseg.evaluation.class_folder import ClassFolder
from medseg.scans.classes import classes_of
from medseg.structures import Case, Cohort, LabelTable, as_source
from tests.tiny import write_nifti

COUNT = 48
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
LABELS = LabelTable({1: "nodule"})


def size_of(number: int) -> int:
    """4 … 15 mm."""
    return 4 + number % 12


def is_malignant(number: int) -> bool:
    """The large ones, but for every seventh."""
    return (size_of(number) > 9) != (number % 7 == 0)


def probability(number: int) -> float:
    """Knows all but every fifth case."""
    sure = is_malignant(number) != (number % 5 == 0)
    return round(0.5 + (0.3 + number / 500) * (1 if sure else -1), 4)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """Nodules of 24 patients, in crops of one size: the size is in the table, the volume in the mask."""
    cases = []
    for number in range(COUNT):
        name, edge = f"case_{number}", size_of(number)
        mask = np.zeros((18, 18, 9), np.uint8)
        mask[1 : 1 + edge, 1 : 1 + edge, 1 : 1 + edge // 2] = 1
        image = write_nifti(tmp_path / "images" / f"{name}.nii.gz", mask.astype(np.float32), AFFINE)
        label = write_nifti(tmp_path / "labels" / f"{name}.nii.gz", mask, AFFINE)
        cases.append(
            Case(
                name,
                (as_source("nifti", image),),
                as_source("nifti", label),
                class_name="malignant" if is_malignant(number) else "benign",
                patient=f"patient_{number // 2}",
                metadata={"diameter_mm": str(edge), "site": "north"},
            )
        )
    return Cohort(tuple(cases), ("CT",), LABELS, classes=classes_of(cases))


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Two folds, each testing on its half."""
    names = [f"case_{number}" for number in range(COUNT)]
    halves = names[: COUNT // 2], names[COUNT // 2 :]
    Splits(
        tuple(Split(tuple(rest[4:]), tuple(rest[:4]), tuple(test)) for test, rest in (halves, halves[::-1])), {}
    ).save(tmp_path / "splits.json")
    return tmp_path / "splits.json"


def two(number: int) -> dict[str, float]:
    return {"benign": 1 - probability(number), "malignant": probability(number)}


def written(folder: Path, said: Callable[[int], Mapping[str, float]], numbers: Sequence[int] = range(COUNT)) -> Path:
    """A result folder: ``<case>/classes.json``."""
    for number in numbers:
        file = folder / f"case_{number}" / "classes.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said(number)))
    return folder


def run(cohort: Cohort, out: Path, **options: Any) -> dict[str, Any]:
    return evaluate(cohort=cohort, out=out, **({"progress": False, "bootstrap": 30, "split": "all"} | options))


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classes_of_any_system_are_scored(cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "medseg")
    folder = written(tmp_path / "theirs", two)
    summary = run(cohort, tmp_path / "out", predictions=folder)  # masks are not there: what is there are classes
    right = sum(number % 5 != 0 for number in range(COUNT)) / COUNT
    assert summary["accuracy"]["mean"]["value"] == pytest.approx(right)
    pairs = [
        (probability(a) > probability(b)) + 0.5 * (probability(a) == probability(b))
        for a in range(COUNT)
        for b in range(COUNT)
        if is_malignant(a) and not is_malignant(b)
    ]
    assert summary["auroc"]["malignant"]["value"] == pytest.approx(sum(pairs) / len(pairs))
    assert summary["auroc"]["malignant"]["n"] == sum(map(is_malignant, range(COUNT)))
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    correct = [row for row in rows(tmp_path / "out") if row["metric"] == "correct"]
    assert sum(row["value"] == "1" for row in correct) == right * COUNT and correct[0]["class"] == "malignant"
    assert {row["metric"] for row in rows(tmp_path / "out")} == {"probability", "correct"}
    drawn = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert drawn == ["confusion.png", "precision_recall.png", "roc.png"]
    assert "the most probable class is called" in caplog.text and "truth \\ called" in caplog.text


def test_baselines_learn_from_fit_and_are_compared_in_pairs_everywhere_and_in_bands(
    cohort: Cohort, splits: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medseg")
    folder = written(tmp_path / "theirs", two)
    band = {"column": "diameter_mm", "low": 6, "high": 13}
    options = {
        "split": "test",
        "splits": splits,
        "baselines": True,
        "baseline_columns": ["diameter_mm"],
        "bands": [band],
    }
    summary = run(cohort, tmp_path / "out", predictions=folder, **options)
    theirs = summary["baselines"]
    assert sorted(theirs) == ["column_diameter_mm", "mask_volume", "prior"]  # crops of one size; no pictures
    assert "baseline image extent is left out: it is the same in all cases of fit" in caplog.text
    assert "baseline pixels is left out: 44 of 44 cases have none" in caplog.text  # of each fold
    assert theirs["prior"]["auroc"]["mean"]["value"] == pytest.approx(0.5, abs=0.02)  # two folds, two frequencies
    # Size orders the cases as volume does, and six of seven are as their size says.
    assert theirs["column_diameter_mm"]["auroc"]["mean"]["value"] == pytest.approx(
        theirs["mask_volume"]["auroc"]["mean"]["value"], abs=0.03
    )
    assert theirs["column_diameter_mm"]["auroc"]["mean"]["value"] > 0.75
    for name, of in theirs.items():
        for place in ("auroc", "auroc_in_diameter_mm_6_to_13"):
            apart = summary[f"{place}_minus_{name}"]["mean"]
            assert apart["value"] == pytest.approx(summary[place]["mean"]["value"] - of[place]["mean"]["value"])
            assert apart["low"] <= apart["value"] <= apart["high"] and 0 <= apart["above"] <= 1
    inside = sum(6 <= size_of(number) < 13 for number in range(COUNT))
    assert summary["auroc_in_diameter_mm_6_to_13"]["mean"]["n_cases"] == inside
    on_disk = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert on_disk == {name: entries for name, entries in summary.items() if name != "baselines"}
    assert json.loads((tmp_path / "out" / "baselines" / "prior" / "summary.json").read_text()) == theirs["prior"]
    lines = caplog.text[caplog.text.index("beside the baselines, fitted on fit") :].splitlines()
    assert any("diameter mm 6 to 13" in line and "column diameter mm" in line for line in lines)


def test_a_baseline_sees_nothing_of_the_cases_that_it_is_scored_on(
    cohort: Cohort, splits: Path, tmp_path: Path
) -> None:
    """In fold 0 the truth of the tested cases is turned round: what learnt from fit is wrong about them, and stays so."""
    other = {"benign": "malignant", "malignant": "benign"}
    turned = tuple(
        replace(case, class_name=other[str(case.class_name)]) if number < COUNT // 2 else case
        for number, case in enumerate(cohort.cases)
    )
    folder = written(tmp_path / "theirs", two)
    options: dict[str, Any] = {"split": "test", "splits": splits, "fold": 0, "baselines": True}
    honest = run(cohort, tmp_path / "a", predictions=folder, **options)["baselines"]["mask_volume"]["auroc"]["mean"]
    wrong = run(replace(cohort, cases=turned), tmp_path / "b", predictions=folder, **options)
    assert wrong["baselines"]["mask_volume"]["auroc"]["mean"]["value"] == pytest.approx(1 - honest["value"])
    assert honest["value"] > 0.7


def test_pictures_have_a_baseline_of_their_pixels(tmp_path: Path, splits: Path) -> None:
    cases = []
    for number in range(COUNT):
        file = tmp_path / "pictures" / f"case_{number}.png"
        file.parent.mkdir(exist_ok=True)
        shade = np.random.default_rng(number).integers(80, 120, (40, 30)).astype(np.uint8)
        shade[10:20, 5:15] += 60 * is_malignant(number)
        Image.fromarray(shade).save(file)
        name = "malignant" if is_malignant(number) else "benign"
        cases.append(Case(f"case_{number}", (as_source("picture", file),), class_name=name))
    pictures = Cohort(tuple(cases), ("US",), classes=classes_of(cases))
    folder = written(tmp_path / "theirs", two)
    summary = run(pictures, tmp_path / "out", predictions=folder, split="test", splits=splits, baselines=True)
    assert sorted(summary["baselines"]) == ["pixels", "prior"]
    assert summary["baselines"]["pixels"]["auroc"]["malignant"]["value"] > 0.97
    assert summary["auroc_minus_pixels"]["mean"]["value"] < 0


def test_cases_with_several_classes_or_none_are_scored_class_by_class(cohort: Cohort, tmp_path: Path) -> None:
    cells = ["edema;effusion", "none", "effusion"]
    cases = tuple(replace(case, class_name=cells[n % 3], label=None) for n, case in enumerate(cohort.cases))
    several = Cohort(cases, ("XR",), classes=classes_of(cases))

    def said(number: int) -> dict[str, float]:
        return {"edema": 0.9 if number % 3 == 0 else 0.2, "effusion": [0.9, 0.1, 0.4][number % 3]}

    summary = run(several, tmp_path / "out", predictions=written(tmp_path / "theirs", said))
    assert summary["auroc"]["edema"]["value"] == summary["auroc"]["effusion"]["value"] == 1
    assert summary["sensitivity"]["edema"]["value"] == 1 and summary["sensitivity"]["effusion"]["value"] == 0.5
    assert summary["accuracy"]["mean"]["value"] == pytest.approx(2 / 3)
    none = [row for row in rows(tmp_path / "out") if row["id"] == "case_1"]
    assert [row["n_gt"] for row in none] == ["0", "0", "0"] and none[-1]["value"] == "1"


def test_plain_files_are_scored_where_classes_are_asked_for(cohort: Cohort, tmp_path: Path) -> None:
    """A ``<case>.json`` may hold boxes or classes: of data with masks only the request can tell."""
    for number in range(COUNT):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / f"case_{number}.json").write_text(json.dumps(two(number)))
    summary = run(cohort, tmp_path / "out", predictions=tmp_path / "theirs", task="classification")
    assert summary["accuracy"]["mean"]["n_cases"] == COUNT
    bare = replace(cohort, labels=None, cases=tuple(replace(case, label=None) for case in cohort.cases))
    assert run(bare, tmp_path / "bare", predictions=tmp_path / "theirs")["auroc"] == summary["auroc"]


def test_cases_that_cannot_be_scored_are_named_and_the_others_are(cohort: Cohort, tmp_path: Path) -> None:
    folder = written(tmp_path / "theirs", two)
    (folder / "case_0" / "classes.json").unlink()
    (folder / "case_1" / "classes.json").write_text('{"benign": 0.9, "malignant": 0.9}')
    cases = [*cohort.cases]
    cases[2] = replace(cases[2], class_name=None)
    message = r"(?s)3 of 48 cases.*case_0.*no class probabilities of it.*case_1.*found 1\.8.*case_2.*expected a class"
    with pytest.raises(SomeFailed, match=message):
        run(replace(cohort, cases=tuple(cases)), tmp_path / "out", predictions=folder, task="classification")
    assert len({row["id"] for row in rows(tmp_path / "out")}) == COUNT - 3


def test_calibration_is_measured_of_models_alone(cohort: Cohort, tmp_path: Path) -> None:
    folder = ClassFolder(written(tmp_path / "theirs", two))
    scoring = class_scoring(Data(LABELS, ("CT",), "all", {}), [Part("0", cohort.cases)], cohort)
    scored = [scoring.score(case, folder, "0") for case in cohort.cases]
    assert scoring.calibration(scored, {}, {}, 0) is None
    point = {"temperature": 2.0, "conformal": {"alpha": 0.1, "kind": "lac", "level": 0.5}}
    found = scoring.calibration(scored, {}, {"0": point}, 0)
    assert found is not None and list(found.rows) == ["all", "benign", "malignant"]
    right = sum(set(case.truth) == set(case.called) for case in scored) / COUNT
    assert found.held == (pytest.approx(right), 1.0)  # a class is in the set from 0.5 up, and no probability is 0.5
    assert found.coverage is not None and found.coverage.cases == COUNT
    unset = scoring.calibration(scored, {}, {"0": {"temperature": 2.0}}, 0)
    assert unset is not None and unset.held is None and unset.coverage is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline_columns": ["diameter_mm"]}, "are looked at with baselines=true only"),
        (
            {"bands": [{"column": "age", "low": 3}]},
            r"bands: .*(?s:.)*age: the data have no such column; they have diameter_mm, site",
        ),
        ({"bands": [{"column": "site", "low": 3}]}, r"bands: .*(?s:.)*site: expected numbers, found case_0: 'north'"),
        ({"bands": [{"column": "diameter_mm", "low": 3, "high": 1}]}, "expected low below high"),
        ({"baselines": True}, "fitted on fit"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_any_work(
    options: Mapping[str, Any], message: str, cohort: Cohort, tmp_path: Path
) -> None:
    folder = written(tmp_path / "theirs", two, range(1))
    with pytest.raises(MedsegError, match=message):
        run(cohort, tmp_path / "out", predictions=folder, **options)
    assert not (tmp_path / "out").exists()


def test_data_without_classes_or_labels_have_nothing_to_compare_with(cohort: Cohort, tmp_path: Path) -> None:
    folder = written(tmp_path / "theirs", two, range(1))
    with pytest.raises(MedsegError, match="neither labels nor classes"):
        run(replace(cohort, labels=None, classes=()), tmp_path / "out", predictions=folder)
    with pytest.raises(MedsegError, match=r"no classes to compare with.*data\.columns"):
        run(replace(cohort, classes=()), tmp_path / "out", predictions=folder, task="classification")
