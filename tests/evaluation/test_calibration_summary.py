from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.calibration import Calibration, Forecast, compare
from medseg.evaluation.calibration_summary import format_calibration, write_calibration
from medseg.evaluation.conformal import Coverage

COVERAGE = Coverage(
    alpha=0.1, value=0.91, spread=0.04, expected=0.905, expected_spread=0.05, set_size=1.42, splits=200, cases=60
)


def calibration(count: int = 20, note: str = "") -> Calibration:
    """Half come true; stated are 0.9 before and 0.6 after."""
    happened, patients = np.arange(count) % 2 == 0, [f"p{i}" for i in range(count)]
    before, after = (Forecast.of_events(np.full(count, p), happened, patients) for p in (0.9, 0.6))
    return compare(before, after, [(2.0, -0.5)], note=note, samples=50)


def test_the_file_holds_before_and_after_of_every_row(tmp_path: Path) -> None:
    body = write_calibration(tmp_path / "new", {"all": calibration(), "tumour": calibration(note="around it")})
    assert json.loads((tmp_path / "new" / "calibration.json").read_text(encoding="utf-8")) == body
    row = body["tumour"]
    assert (row["ece_before"], row["ece_after"]) == (pytest.approx(0.4), pytest.approx(0.1))
    assert (row["brier_before"], row["brier_after"]) == (pytest.approx(0.41), pytest.approx(0.26))
    assert row["nll_after"] == pytest.approx(-np.log([0.6, 0.4]).mean())
    assert (row["temperature"], row["bias"], row["n"], row["n_patients"]) == (2.0, -0.5, 20, 20)
    assert 0 < row["ece_if_perfect"] < 0.2 and row["ece_if_perfect_range"][1] > row["ece_if_perfect"]
    assert row["ece_before_interval"][0] < 0.4 and row["note"] == "around it"
    assert sum(row["bins"]["after"]["count"]) == 20 and len(row["bins"]["after"]["edges"]) == 16
    assert set(row["bins"]["before"]) == {"edges", "count", "confidence", "accuracy"}
    assert "scalings" not in row and "note" not in body["all"] and "conformal" not in body["all"]


def test_what_cannot_be_measured_is_null(tmp_path: Path) -> None:
    row = write_calibration(tmp_path, {"all": calibration(0)})["all"]
    assert row["ece_after"] is None and row["ece_if_perfect"] is None and row["ece_after_interval"] == [None, None]
    assert "NaN" not in (tmp_path / "calibration.json").read_text(encoding="utf-8")


def test_models_of_several_folds_are_listed(tmp_path: Path) -> None:
    one = calibration()
    row = write_calibration(
        tmp_path, {"all": Calibration(one.before, one.after, one.if_perfect, ((1.0, 0.0), (2.0, 0.0)))}
    )["all"]
    assert row["temperature"] == 1.5 and "bias" not in row
    assert [scaling["temperature"] for scaling in row["scalings"]] == [1.0, 2.0]


def test_conformal_sets_stand_with_all_classes(tmp_path: Path) -> None:
    body = write_calibration(tmp_path, {"all": calibration()}, coverage=COVERAGE, held=(0.88, 1.5))
    assert body["all"]["conformal"]["over_splits"]["set_size"] == 1.42
    assert (body["all"]["conformal"]["coverage"], body["all"]["conformal"]["set_size"]) == (0.88, 1.5)
    text = format_calibration(body)
    assert "0.880 of the cases, 1.50 classes" in text
    assert "200 random halvings by patient: 0.910 ± 0.040" in text and "0.9 promised, 0.905 ± 0.050 expected" in text


def test_the_lines_say_what_the_file_says(tmp_path: Path) -> None:
    body = write_calibration(
        tmp_path, {"all": calibration(), "few": calibration(4, "few of them"), "absent": calibration(0)}
    )
    head, first, few, absent, note = format_calibration(body).splitlines()
    assert head.startswith("calibration  T     ECE before [95 %]")
    assert first.startswith("all          2.00  0.400 [") and "0.410 → 0.260" in first and first.endswith("20      20")
    assert "[" not in few and few.split()[2] == "0.400"  # four patients have no interval
    assert absent.split()[2:5] == ["–", "–", "–"]
    assert note == "few: few of them"


def test_a_file_without_the_row_of_all_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="row 'all'"):
        write_calibration(tmp_path, {"tumour": calibration()})
    assert not list(tmp_path.iterdir())
