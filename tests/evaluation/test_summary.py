from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.evaluation.segmentation import NAN, Row
from medseg.evaluation.summary import ScoredCase, cases_csv, format_table, summarise, write_evaluation


def scored(name: str, patient: str = "", a: float = 0.5, b: float = 0.7, **more: dict[str, str]) -> ScoredCase:
    rows = (
        Row("liver", "dice", a, 1, 1),
        Row("tumour", "dice", b, 2, 0 if b == 0 else 1),
        Row("liver", "hd95_mm", 3.0, 1, 1),
        Row("tumour", "hd95_mm", NAN if b == 0 else 4.0, 2, 0 if b == 0 else 1),
    )
    return ScoredCase(name, patient or name, "test", rows, fold="0", **more)  # type: ignore[arg-type]


def test_cases_csv_is_long_and_carries_the_columns_of_the_cohort() -> None:
    first = scored("a", metadata={"site": "one, two", "split": "x"})
    rows = list(csv.DictReader(cases_csv([first, scored("b", b=0.0)]).splitlines()))
    assert list(rows[0]) == [
        *("id", "patient", "fold", "split", "label", "metric", "value", "n_gt", "n_pred", "site", "cohort_split")
    ]
    assert len(rows) == 8
    assert rows[0] == {
        "id": "a", "patient": "a", "fold": "0", "split": "test", "label": "liver", "metric": "dice", "value": "0.5",
        "n_gt": "1", "n_pred": "1", "site": "one, two", "cohort_split": "x",
    }  # fmt: skip
    assert rows[7]["metric"] == "hd95_mm" and rows[7]["value"] == "" and rows[7]["site"] == ""


def test_the_summary_holds_means_over_cases_and_over_labels() -> None:
    summary = summarise([scored("a", a=0.4, b=0.8), scored("b", a=0.6, b=0.0)], samples=100)
    assert summary["dice"]["liver"]["value"] == pytest.approx(0.5)
    assert summary["dice"]["tumour"]["value"] == pytest.approx(0.4)
    assert summary["dice"]["mean"]["value"] == pytest.approx(0.45)
    assert list(summary["dice"]) == ["liver", "tumour", "mean"]
    assert summary["dice"]["mean"]["low"] is None  # two patients are too few for an interval


def test_a_case_without_distance_is_named_in_the_counts() -> None:
    entry = summarise([scored("a"), scored("b", b=0.0)])["hd95_mm"]["tumour"]
    assert (entry["value"], entry["n"], entry["n_cases"], entry["n_missing"]) == (4.0, 1, 2, 1)


def test_intervals_are_over_patients() -> None:
    cases = [scored(f"c{i}", patient=f"p{i % 3}", a=i / 10) for i in range(9)]
    assert summarise(cases)["dice"]["liver"]["low"] is None
    cases = [scored(f"c{i}", a=i / 10) for i in range(9)]
    entry = summarise(cases)["dice"]["liver"]
    assert entry["low"] < entry["value"] < entry["high"]


def test_the_folder_holds_what_was_returned_and_nothing_half_written(tmp_path: Path) -> None:
    summary = write_evaluation(tmp_path / "out", [scored("a"), scored("b", b=0.0)], samples=10)
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8")) == summary
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cases.csv", "summary.json"]


def test_a_label_called_mean_is_refused() -> None:
    with pytest.raises(MedsegError, match="mean over labels"):
        summarise([ScoredCase("a", "a", "test", (Row("mean", "dice", 1.0, 1, 1),))])


def test_the_table_is_readable() -> None:
    table = format_table(summarise([scored(f"c{i}", a=0.5 + i / 100) for i in range(8)]))
    lines = table.splitlines()
    assert lines[0].split() == ["label", "Dice", "[95", "%", "interval]", "n", "HD95", "mm", "missing"]
    assert lines[1].startswith("liver") and "0.535 [0.5" in lines[1]
    assert lines[3].startswith("mean")
    assert "–" in format_table(summarise([scored("b", b=0.0)])).splitlines()[2]
