from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.detection import DetectedCase
from medseg.evaluation.detection_summary import Detection, detection_metrics, write_detection
from medseg.structures import Boxes, LabelTable
from medseg.volume import Geometry

LABELS = LabelTable({1: "mass", 2: "cyst"})
GRID = Geometry.from_spacing((64, 64, 32), (1.0, 1.0, 2.0))


def scan(name: str, patient: str, seed: int, lesions: int = 2, **more: Any) -> DetectedCase:
    """Masses that are found more often than not, with false positives of lower score; no cyst."""
    random = np.random.default_rng(seed)
    lower = random.integers(0, 20, (lesions, 3))
    true = np.concatenate([lower, lower + random.integers(3, 9, (lesions, 3))], 1).astype(float)
    found = true[random.random(lesions) < 0.7]
    false = random.integers(22, 28, (2, 3)).astype(float)
    boxes = np.concatenate([found, np.concatenate([false, false + 4], 1)])
    scores = np.concatenate([random.uniform(0.3, 1, len(found)), random.uniform(0, 0.6, 2)])
    predicted = Boxes(boxes, np.ones(len(boxes), int), scores)
    return DetectedCase(name, predicted, Boxes(true, np.ones(lesions, int)), GRID, patient, **more)


def scans(count: int, patients: int, **more: Any) -> list[DetectedCase]:
    return [scan(f"s{i}", f"p{i % patients}", i, lesions=2 * (i % 3 > 0), **more) for i in range(count)]


@pytest.fixture(scope="module")
def measured() -> Detection:
    return detection_metrics(scans(24, 12), LABELS, samples=200)


def test_every_figure_has_its_interval(measured: Detection) -> None:
    for metric in ("ap_10", "ap_coco", "sensitivity_at_1_fp", "cpm", "sensitivity", "precision", "sensitivity_small"):
        entry = measured.summary[metric]["mass"]
        assert 0 < entry["low"] <= entry["value"] <= entry["high"] <= 1
        assert entry["n_cases"] == 24
    assert measured.summary["cpm"]["mass"]["n"] == 32
    assert measured.summary["clean_scans"]["mass"]["n"] == 8


def test_a_label_without_lesion_is_blank_and_not_in_the_mean(measured: Detection) -> None:
    entry = measured.summary["ap_50"]["cyst"]
    assert (entry["value"], entry["low"], entry["n"]) == (None, None, 0)
    assert measured.summary["ap_50"]["mean"]["value"] == measured.summary["ap_50"]["mass"]["value"]
    assert measured.summary["fp_per_scan"]["cyst"]["value"] == 0


def test_scores_that_are_probabilities_are_summed_beside_the_counts() -> None:
    cases = scans(6, 6, thresholds={"mass": 0.4, "cyst": 0.4})
    plain = detection_metrics(cases, LABELS, samples=0).cases
    assert "confidence" not in {row.metric for case in plain for row in case.rows}
    for scored, case in zip(detection_metrics(cases, LABELS, samples=0, calibrated=True).cases, cases, strict=True):
        rows = {row.metric: row for row in scored.rows if row.label == "mass"}
        counted = case.predicted.scores[case.predicted.scores >= 0.4]
        assert rows["confidence"].value == pytest.approx(counted.sum())
        assert rows["confidence"].n_pred == len(counted) == rows["tp"].value + rows["fp"].value


def test_intervals_need_five_patients_and_widen_with_fewer() -> None:
    few = detection_metrics(scans(24, 4), LABELS, samples=50).summary["cpm"]["mass"]
    assert few["value"] is not None and few["low"] is None
    twice = [scan(f"{i}{k}", f"p{i}", i) for i in range(12) for k in "ab"]
    alone = [scan(f"{i}{k}", f"p{i}{k}", i) for i in range(12) for k in "ab"]
    wide, narrow = (detection_metrics(c, LABELS, samples=300).summary["ap_10"]["mass"] for c in (twice, alone))
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"]


def test_a_rate_that_so_few_scans_cannot_measure_is_blank_and_says_so() -> None:
    summary = detection_metrics(scans(6, 6), LABELS, samples=20).summary
    for metric in ("sensitivity_at_0.125_fp", "cpm"):
        entry = summary[metric]["mass"]
        assert entry["value"] is None and entry["low"] is None
        assert "cannot be measured with 6 scans (8 are needed)" in entry["note"]
    assert summary["sensitivity_at_0.25_fp"]["mass"]["value"] is not None
    assert "note" not in summary["sensitivity_at_0.25_fp"]["mass"]


def test_the_summary_says_which_working_point_was_taken_and_what_a_band_holds(measured: Detection) -> None:
    assert "no working point was given" in measured.summary["precision"]["mass"]["note"]
    assert measured.summary["sensitivity_large"]["mass"]["note"].startswith("longest edge from ")
    given = detection_metrics(scans(6, 6, thresholds={"mass": 0.5, "cyst": 0.5}), LABELS, samples=0).summary
    assert "note" not in given["precision"]["mass"]


def test_cases_have_their_counts_at_the_working_point(measured: Detection) -> None:
    for case in measured.cases:
        counts = {row.metric: row for row in case.rows if row.label == "mass"}
        row = counts["tp"]
        assert row.value + counts["fn"].value == row.n_gt and row.value + counts["fp"].value == row.n_pred
    total = sum(row.value for case in measured.cases for row in case.rows if (row.label, row.metric) == ("mass", "tp"))
    assert total / 32 == measured.summary["sensitivity"]["mass"]["value"]


def test_the_folder_holds_what_was_measured(measured: Detection, tmp_path: Path) -> None:
    write_detection(tmp_path / "out", measured)
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8")) == measured.summary
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 * 2 * 3 and {row["metric"] for row in rows} == {"tp", "fp", "fn"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cases.csv", "summary.json"]


def test_the_same_seed_gives_the_same_intervals_in_any_order() -> None:
    cases = scans(20, 10)
    one = detection_metrics(cases, LABELS, samples=30).summary
    two = detection_metrics(cases[::-1], LABELS, samples=30).summary
    assert one["cpm"]["mass"]["low"] == pytest.approx(two["cpm"]["mass"]["low"], abs=1e-12)
    assert detection_metrics(cases, LABELS, samples=30, seed=1).summary != one


def test_a_label_called_mean_is_refused() -> None:
    with pytest.raises(MedsegError, match="mean over labels"):
        detection_metrics(scans(6, 6), LabelTable({1: "mean"}))
