"""``medseg audit``: an evaluation folder becomes a table, a picture and words."""

from __future__ import annotations

import csv
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from medseg.commands.audit import audit
from medseg.errors import MedsegError
from medseg.evaluation.segmentation import Row
from medseg.evaluation.summary import ScoredCase, write_evaluation


def evaluation(folder: Path, count: int = 60, drop: float = 0.3) -> Path:
    """A segmentation that is worse at site B by ``drop``; one case is of site C, some ages are not known."""
    random = np.random.default_rng(0)
    cases = []
    for index in range(count):
        site = "C" if index == 0 else "AB"[index % 2]
        dice = random.normal(0.8 - drop * (site == "B"), 0.05)
        about = {
            "site": site,
            "sex": "fm"[index // 2 % 2],
            "age": "" if index % 10 == 0 else str(20 + index),
            "scan": f"s{index}",
        }
        rows = (Row("tumour", "dice", dice, 1, 1), Row("tumour", "ece", abs(random.normal(0.1, 0.02)), 1, 1))
        cases.append(ScoredCase(f"case{index}", f"p{index}", "test", rows, "0", about))
    write_evaluation(folder, cases, samples=0)
    return folder


def test_the_files_hold_every_group_and_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = evaluation(tmp_path)
    with caplog.at_level(logging.INFO):
        found = audit(
            evaluation=folder,
            columns=["site", "sex", "age"],
            pairs=[["site", "sex"]],
            bands={"age": [40, 60]},
            permutations=199,
            progress=False,
        )
    rows = list(csv.DictReader((folder / "audit.csv").read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == [
        *("column", "group", "metric", "label", "value", "low", "high", "n_cases", "n_patients", "judged")
    ]
    assert (rows[0]["column"], rows[0]["group"], rows[0]["n_cases"]) == ("all", "all", "60")
    of_site = {row["group"]: row for row in rows if (row["column"], row["metric"]) == ("site", "dice")}
    assert list(of_site) == ["A", "B", "C"]
    assert of_site["C"]["judged"] == "no" and of_site["C"]["low"] == "" and of_site["C"]["n_patients"] == "1"
    assert float(of_site["B"]["low"]) < float(of_site["B"]["value"]) < float(of_site["B"]["high"]) < 0.6
    assert {row["group"] for row in rows if row["column"] == "age"} == {"< 40", "40–60", "≥ 60"}
    assert {row["group"] for row in rows if row["column"] == "site × sex"} >= {"A × f", "B × m", "C × f"}
    body = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert (body["smallest"], body["permutations"], body["seed"], body["n_patients"]) == (10, 199, 0, 60)
    verdicts = {(v["column"], v["metric"]): v for v in body["verdicts"]}
    assert len(verdicts) == 8
    site = verdicts["site", "dice"]
    assert site["differs"] is True and site["outlier"] in "AB" and site["gap"] == pytest.approx(0.3, abs=0.05)
    assert site["p"] <= site["p_corrected"] < 0.05 and site["too_small"] == ["C"]
    assert verdicts["sex", "dice"]["differs"] is False and verdicts["sex", "ece"]["detectable"]["f"] > 0
    assert {(v.column, v.metric) for v in found.differences} == {("site", "dice"), ("site × sex", "dice")}
    said = (folder / "audit.md").read_text(encoding="utf-8")
    assert body["words"][0] in said and body["words"][0].startswith("Dice of tumour differs by site")
    assert body["words"][0] in caplog.text
    assert (folder / "figures" / "audit.png").stat().st_size > 10_000


def test_the_audit_goes_where_it_is_asked_to_and_leaves_the_evaluation_alone(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation", 30)
    before = sorted(path.name for path in folder.iterdir())
    (tmp_path / "more.csv").write_text(
        "id,ward\n" + "".join(f"case{i},{'NS'[i % 2]}\n" for i in range(30)), encoding="utf-8"
    )
    found = audit(
        evaluation=folder,
        columns="ward",
        metrics="dice",
        table=tmp_path / "more.csv",
        out=tmp_path / "out",
        permutations=99,
    )
    assert [(v.column, v.metric) for v in found.verdicts] == [("ward", "dice")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "audit.csv",
        "audit.json",
        "audit.md",
        "figures",
    ]
    assert sorted(path.name for path in folder.iterdir()) == before


def test_nothing_is_written_for_a_request_that_cannot_be_met(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation", 30)
    for request, said in (
        ({"columns": ["region"]}, r"columns fold, split, site, sex, age, scan.*\n  - no column 'region'"),
        ({"columns": ["scan"]}, "different for nearly every patient"),
        ({"columns": ["split"]}, "same for all 30 cases"),
        ({"columns": ["sex"], "metrics": ["auroc"]}, "these cases give dice, ece"),
        ({"columns": ["sex"], "smallest": 1}, "smallest"),
        ({"columns": ["sex"], "evaluation": tmp_path}, "found no cases.csv and no summary.json"),
    ):
        with pytest.raises(MedsegError, match=said):
            audit(**{"evaluation": folder, "out": tmp_path / "out", **request})  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(MedsegError, match="expected a folder, found a file"):
        audit(evaluation=folder, columns=["sex"], out=tmp_path / "file")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_seven_hundred_cases_take_seconds(tmp_path: Path) -> None:
    folder = evaluation(tmp_path, 700)
    start = time.process_time()
    audit(evaluation=folder, columns=["site", "sex", "age"], pairs=[["site", "sex"], ["site", "age"]])
    assert time.process_time() - start < 10


@pytest.mark.shared_data
def test_the_columns_of_real_patients_make_groups(shared_data: Path, tmp_path: Path) -> None:
    table = shared_data / "lgg_flair" / "patients.csv"
    ids = [row["id"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines())]
    random = np.random.default_rng(0)
    cases = [ScoredCase(i, i, "test", (Row("tumour", "dice", random.random(), 1, 1),)) for i in ids]
    write_evaluation(tmp_path, cases, samples=0)
    columns = ["site", "sex", "age", "grade"]
    found = audit(evaluation=tmp_path, columns=columns, table=table, bands={"age": [40, 55]}, permutations=199)
    groups = {name: [c.group for c in found.cells if c.column == name] for name in columns}
    assert groups["site"] == ["CS", "DU", "EZ", "FG", "HT"]
    assert groups["age"] == ["< 40", "40–55", "≥ 55"] and groups["grade"] == ["code1", "code2"]
    assert next(v for v in found.verdicts if v.column == "site").too_small == ("EZ", "FG")
