"""An evaluation folder is shown part by part: what is there, in the order in which it should be looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.report.evaluation import MOST_WORST, holds_evaluation, read_evaluation, worst_cases


def rows(*lines: str) -> list[dict[str, str]]:
    names = ("id", "fold", "label", "metric", "value", "n_gt", "n_pred")
    return [dict(zip(names, line.split(","), strict=True)) for line in lines]


def test_every_part_of_a_folder_is_read(evaluation: Path) -> None:
    found = read_evaluation(evaluation)
    assert {(entry["metric"], entry["label"]) for entry in found["metrics"]} == {("dice", "organ"), ("dice", "mean")}
    assert found["metrics"][0]["value"] == 0.5
    assert found["baselines"]["global_threshold"][0]["value"] == 0.1
    assert [one["name"] for one in found["figures"]] == ["audit", "dice"]
    assert found["state"]["complete"] is False
    (calibration,) = found["calibration"]
    assert calibration["figures"] == {
        "temperature": {"value": 1.5, "low": None, "high": None},
        "ece_before": {"value": 0.2, "low": 0.1, "high": 0.3},
    }


def test_parts_that_are_not_there_are_not_shown(tmp_path: Path) -> None:
    assert not holds_evaluation(tmp_path)
    (tmp_path / "trust.json").write_text("{}")
    assert holds_evaluation(tmp_path)
    found = read_evaluation(tmp_path)
    assert found["trust"] is None and found["audit"] is None and found["worst"] is None and found["metrics"] == []


def test_groups_that_differ_and_those_too_small_are_marked(evaluation: Path) -> None:
    audit = read_evaluation(evaluation)["audit"]
    assert audit["words"] == ["Dice differs by site."]
    marks = {row["group"]: (row["figure"]["value"], row["judged"], row["differs"]) for row in audit["groups"]}
    assert marks == {"all": (0.7, True, False), "A": (0.9, True, True), "B": (0.3, False, False)}


def test_maps_that_know_no_network_come_last_and_flags_stay_with_their_method(evaluation: Path) -> None:
    trust = read_evaluation(evaluation)["trust"]
    assert [(method["name"], method["blind"]) for method in trust["methods"]] == [
        ("grad_cam", False),
        ("guided_backprop", False),
        ("centre", True),
    ]
    assert [method["flags"] for method in trust["methods"]] == [[], ["does not depend on the weights"], []]
    assert trust["verdict"]["method"] == "grad_cam" and "flags" not in trust["methods"][0]["measures"]


def test_the_worst_masks_have_the_lowest_mean_dice() -> None:
    found = worst_cases(
        rows(
            "a,0,x,dice,0.5,1,1",
            "a,0,y,dice,,1,1",
            "b,0,x,dice,0.9,1,1",
            "b,0,y,dice,0.3,1,1",
            "c,0,x,dice,0.1,1,1",
            "d,0,x,dice,,0,0",
        )
    )
    assert found is not None and found["of"] == 4 and found["columns"] == ["Dice", "x", "y"]
    assert [(row["id"], row["values"]) for row in found["rows"]] == [
        ("c", ["0.100", "0.100", "–"]),
        ("a", ["0.500", "0.500", "–"]),
        ("b", ["0.600", "0.900", "0.300"]),
    ]


def test_the_worst_detections_miss_or_make_up_most() -> None:
    lines = ["a,0,x,tp,3,3,3", "a,0,x,fp,0,3,3", "a,0,x,fn,0,3,3", "b,0,x,tp,1,2,4", "b,0,x,fp,3,2,4", "b,0,x,fn,1,2,4"]
    found = worst_cases(rows(*lines))
    assert found is not None and [(row["id"], row["values"]) for row in found["rows"]] == [
        ("b", [1, 3, 1]),
        ("a", [3, 0, 0]),
    ]


def test_the_worst_classifications_are_surest_of_what_is_wrong() -> None:
    lines = [
        *("a,0,benign,probability,0.4,1,0", "a,0,malignant,probability,0.6,0,1"),
        *("b,0,benign,probability,0.95,0,1", "b,0,malignant,probability,0.05,1,0", "b,0,mean,correct,0,1,1"),
        "c,0,benign,probability,0.3,0,0",
    ]
    found = worst_cases(rows(*lines))
    assert found is not None and [(row["id"], row["values"]) for row in found["rows"]] == [
        ("b", ["malignant", "benign", "benign 0.950"]),
        ("a", ["benign", "malignant", "benign 0.400"]),
        ("c", ["none", "none", "benign 0.300"]),
    ]


def test_cases_of_several_folds_are_told_apart_and_only_the_worst_are_listed() -> None:
    found = worst_cases(rows(*(f"a,{fold},x,dice,{fold / 100},1,1" for fold in range(40))))
    assert found is not None and found["of"] == 40 and len(found["rows"]) == MOST_WORST
    assert [row["fold"] for row in found["rows"]][:3] == ["0", "1", "2"]
    assert worst_cases(rows("a,0,x,volume,3,1,1")) is None and worst_cases([]) is None


def test_all_damaged_files_are_named_at_once(evaluation: Path) -> None:
    (evaluation / "summary.json").write_text("{")
    (evaluation / "trust.json").write_text("[]")
    (evaluation / "cases.csv").write_text("id,label\na,x\n")
    (evaluation / "audit.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MedsegError) as caught:
        read_evaluation(evaluation)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip(" -") for line in lines] == [
        "summary.json",
        "cases.csv",
        "audit.csv",
        "trust.json",
    ]
    assert "it has no fold, metric, value, n_gt, n_pred" in lines[1]
