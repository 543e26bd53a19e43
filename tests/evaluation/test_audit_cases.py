from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.audit_cases import read_cases
from medseg.evaluation.segmentation import NAN, Row
from medseg.evaluation.summary import ScoredCase, write_evaluation


def scored(name: str, dice: float = 0.5, fold: str = "0", **metadata: str) -> ScoredCase:
    rows = (Row("tumour", "dice", dice, 2, 1), Row("organ", "dice", 0.9, 1, 1), Row("tumour", "hd95_mm", NAN, 2, 0))
    return ScoredCase(name, f"patient of {name}", "test", rows, fold, metadata)


def written(folder: Path, *cases: ScoredCase) -> Path:
    write_evaluation(folder, cases, samples=0)
    return folder


def test_what_evaluate_writes_is_read_a_row_a_case(tmp_path: Path) -> None:
    cases = read_cases(written(tmp_path, scored("a", 0.25, site="CS, north"), scored("b", age="40")))
    assert cases.patients == ("patient of a", "patient of b")
    assert cases.metadata == {
        "fold": ("0", "0"), "split": ("test", "test"), "site": ("CS, north", ""), "age": ("", "40")
    }  # fmt: skip
    assert cases.metrics() == ["dice", "hd95_mm"] and cases.labels("dice") == ["tumour", "organ"]
    tumour = cases.measured["dice", "tumour"]
    assert tumour.value.tolist() == [0.25, 0.5] and tumour.n_gt.tolist() == [2, 2] and tumour.n_pred.tolist() == [1, 1]
    assert np.isnan(cases.measured["hd95_mm", "tumour"].value).all()
    assert cases.measured["hd95_mm", "tumour"].n_pred.tolist() == [0, 0]


def test_the_same_id_in_two_folds_is_two_cases(tmp_path: Path) -> None:
    cases = read_cases(written(tmp_path, scored("a", 0.25), scored("a", 0.75, fold="1")))
    assert cases.measured["dice", "tumour"].value.tolist() == [0.25, 0.75]


def test_a_table_adds_its_columns_by_id_and_goes_first(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("id,site,class,grade\nb,EZ,benign,2\nz,EZ,benign,3\n", encoding="utf-8")
    folder = written(tmp_path / "out", scored("a", site="CS"), scored("b", site="CS"))
    cases = read_cases(folder, tmp_path / "more.csv")
    assert cases.metadata["site"] == ("", "EZ")
    assert cases.metadata["grade"] == ("", "2") and cases.metadata["class"] == ("", "benign")
    assert "id" not in cases.metadata


def test_a_table_of_other_cases_is_refused(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("id,site\nz,EZ\n", encoding="utf-8")
    with pytest.raises(MedsegError, match=r"ids of the cases, found none .*'z' there, 'a' in cases.csv"):
        read_cases(written(tmp_path / "out", scored("a")), tmp_path / "more.csv")


def test_half_an_evaluation_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, scored("a"))
    (folder / "evaluation.json").write_text('{"complete": true}', encoding="utf-8")
    assert len(read_cases(folder)) == 1
    (folder / "evaluation.json").write_text('{"complete": false}', encoding="utf-8")
    with pytest.raises(MedsegError, match="it did not end"):
        read_cases(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(MedsegError, match=r"found no summary.json.*half of one"):
        read_cases(folder)
    with pytest.raises(MedsegError, match="there is none"):
        read_cases(folder / "elsewhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,patient,label,metric,value\na,a,t,dice,1\n", "found no n_gt, n_pred"),
        ("id,patient,label,metric,value,n_gt,n_pred\n", "found none; there is nothing to audit"),
        (
            "id,patient,label,metric,value,n_gt,n_pred\na,a,t,dice,good,1,1\n",
            r"line 2: expected numbers, found \['good'",
        ),
        (
            "id,patient,label,metric,value,n_gt,n_pred\na,a,t,dice,1,1,1\na,a,t,dice,1,1,1\n",
            "line 3: dice of t stands twice",
        ),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    with pytest.raises(MedsegError, match=said):
        read_cases(tmp_path)


def test_without_a_patient_the_case_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}", encoding="utf-8")
    text = "id,patient,label,metric,value,n_gt,n_pred\na,,t,dice,1,1,1\n"
    (tmp_path / "cases.csv").write_text(text, encoding="utf-8")
    assert read_cases(tmp_path).patients == ("a",)
