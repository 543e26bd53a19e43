from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.bands import Band
from medseg.evaluation.classification import ClassifiedCase, called_classes
from medseg.evaluation.classification_summary import auroc_differences, classification_metrics, write_classification
from medseg.evaluation.classification_table import format_classification, format_comparison

CLASSES = ("a", "b", "c")
CONFUSION = (CLASSES, CLASSES, np.eye(3, dtype=int))


def cases_of(
    count: int, skill: float = 1.0, *, seed: int = 0, patients: int | None = None, classes: int = 3
) -> list[ClassifiedCase]:
    """Softmax of noise plus ``skill`` for the true class; the noise depends on the seed alone."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, count)
    logits = random.normal(0, 1, (count, classes)) + skill * np.eye(classes)[truth]
    odds = np.exp(logits)
    found = []
    for at, row in enumerate((odds / odds.sum(1, keepdims=True)).tolist()):
        said = dict(zip(CLASSES, row, strict=False))
        known = {"diameter_mm": str(at % 20), "site": "north"}
        called = called_classes(said, {}, exclusive=True)
        key = f"p{at % (patients or count)}"
        found.append(ClassifiedCase(f"s{at}", (CLASSES[truth[at]],), said, called, key, "test", "0", known))
    return found


def test_every_figure_has_its_interval_around_it() -> None:
    summary = classification_metrics(cases_of(120), CLASSES, exclusive=True, samples=200)
    for metric, entries in summary.items():
        for label in (*CLASSES, "mean"):
            entry = entries[label]
            assert entry["low"] < entry["value"] < entry["high"], (metric, label)
            assert entry["n_cases"] == 120 and "note" not in entry
    shown = sum(case.truth == ("a",) for case in cases_of(120))
    assert summary["auroc"]["a"]["n"] == summary["sensitivity"]["a"]["n"] == shown
    assert summary["specificity"]["a"]["n"] == 120 - shown and summary["brier"]["a"]["n"] == 120
    missed = round((1 - summary["sensitivity"]["a"]["value"]) * shown)
    assert summary["auroc"]["a"]["n_missing"] == missed


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    """The true value is that of a sample so large that its own error does not matter."""
    classes, patients = CLASSES[:2], 60
    large = classification_metrics(cases_of(20_000, classes=2), classes, exclusive=True, samples=0)
    value, held = large["auroc"]["a"]["value"], 0
    for seed in range(1, 25):
        sample = cases_of(patients, seed=seed, classes=2)
        entry = classification_metrics(sample, classes, exclusive=True, samples=100)["auroc"]["a"]
        held += entry["low"] <= value <= entry["high"]
    assert 19 <= held <= 24


def test_patients_are_drawn_with_all_their_cases() -> None:
    once = cases_of(40)
    twice = [replace(case, id=f"{case.id}{k}") for case in once for k in "xy"]
    alone = [replace(case, patient=case.id) for case in twice]
    wide, narrow = (
        classification_metrics(cases, CLASSES, exclusive=True, samples=200)["auroc"]["mean"] for cases in (twice, alone)
    )
    assert wide["high"] - wide["low"] > 1.2 * (narrow["high"] - narrow["low"])


def test_what_too_few_patients_hold_has_no_interval_and_says_why() -> None:
    common = [case for case in cases_of(60) if case.truth != ("c",)]
    rare = [case for case in cases_of(60) if case.truth == ("c",)][:2]
    summary = classification_metrics([*common, *rare], CLASSES, exclusive=True, samples=50)
    entry = summary["auroc"]["c"]
    assert entry["value"] is not None and entry["low"] is None and entry["n"] == 2
    assert entry["note"] == "fewer than 5 patients have a case that shows it"
    assert summary["auroc"]["a"]["low"] is not None
    assert summary["auroc"]["mean"]["low"] is None and summary["auroc"]["mean"]["note"] == "a class is too rare"
    none = classification_metrics(common, CLASSES, exclusive=True, samples=50)["auroc"]
    assert none["c"]["value"] is None and none["c"]["note"] == "no case that shows it"
    assert none["mean"]["value"] == pytest.approx((none["a"]["value"] + none["b"]["value"]) / 2)
    few = classification_metrics(cases_of(60, patients=4), CLASSES, exclusive=True, samples=50)
    assert few["accuracy"]["mean"]["low"] is None and few["brier"]["a"]["note"].startswith("fewer than 5 patients")


def test_a_thousand_draws_take_seconds() -> None:
    started = time.process_time()
    classification_metrics(cases_of(1000), CLASSES, exclusive=True)
    assert time.process_time() - started < 10


def test_the_result_depends_on_the_seed_alone() -> None:
    cases = cases_of(60)
    one = classification_metrics(cases, CLASSES, exclusive=True, samples=50)
    two = classification_metrics(cases[::-1], CLASSES, exclusive=True, samples=50)
    assert one["auroc"]["a"]["low"] == pytest.approx(two["auroc"]["a"]["low"])
    assert classification_metrics(cases, CLASSES, exclusive=True, samples=50, seed=1) != one


# ---- bands


def test_a_band_holds_its_lower_end_and_not_its_upper() -> None:
    band = Band.from_mapping({"column": "diameter_mm", "low": 6, "high": None})
    assert str(band) == "diameter_mm_from_6" and str(replace(band, high=15.0)) == "diameter_mm_6_to_15"
    inside = [d for d in ("5.9", "6", "20", "", "nan") if band.holds({"diameter_mm": d})]
    assert inside == ["6", "20"] and not band.holds({})
    assert Band("x", 6, 15).holds({"x": "14.99"}) and not Band("x", 6, 15).holds({"x": "15"})


def test_the_auroc_of_a_band_is_that_of_its_cases_alone() -> None:
    cases, band = cases_of(200), Band("diameter_mm", 6, 15)
    inside = [case for case in cases if 6 <= int(case.metadata["diameter_mm"]) < 15]
    whole = classification_metrics(cases, CLASSES, exclusive=True, bands=[band], samples=50)
    alone = classification_metrics(inside, CLASSES, exclusive=True, samples=50)
    assert whole["auroc_in_diameter_mm_6_to_15"] == alone["auroc"] != whole["auroc"]
    assert whole["auroc_in_diameter_mm_6_to_15"]["mean"]["n_cases"] == 90
    empty = classification_metrics(cases, CLASSES, exclusive=True, bands=[Band("diameter_mm", 90)], samples=50)
    assert empty["auroc_in_diameter_mm_from_90"]["mean"]["value"] is None
    assert empty["auroc_in_diameter_mm_from_90"]["a"]["note"] == "no case that shows it"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"low": 3}, "expected column, low and high, found low"),
        ({"column": "x", "least": 3}, "found column, least"),
        ({"column": "x", "low": 3, "high": 3}, "expected low below high, found 3 and 3"),
        ({"column": "x", "low": "small"}, "expected numbers as ends"),
    ],
)
def test_a_band_that_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        Band.from_mapping(values)


# ---- differences


def test_the_paired_difference_is_that_of_the_two_aurocs_and_surer_than_they_are() -> None:
    cases = cases_of(150, 1.5)
    weaker = cases_of(150, 1.0)  # the same noise
    mine, theirs = (classification_metrics(c, CLASSES, exclusive=True, samples=300)["auroc"] for c in (cases, weaker))
    apart = auroc_differences(cases, {"prior": weaker}, CLASSES, exclusive=True, samples=300)["auroc_minus_prior"]
    for label in (*CLASSES, "mean"):
        assert apart[label]["value"] == pytest.approx(mine[label]["value"] - theirs[label]["value"])
        assert 0 < apart[label]["low"] < apart[label]["value"] < apart[label]["high"]
    assert apart["mean"]["above"] == 1
    spread = [entry["high"] - entry["low"] for entry in (mine["mean"], theirs["mean"], apart["mean"])]
    assert spread[2] < 0.7 * min(spread[:2])


def test_equal_predictors_are_not_ahead_of_each_other_and_equally_good_ones_half_of_the_time() -> None:
    cases = cases_of(80)
    same = auroc_differences(cases, {"it": cases}, CLASSES, exclusive=True, samples=50)["auroc_minus_it"]["mean"]
    assert (same["value"], same["low"], same["high"], same["above"]) == (0, 0, 0, 0)
    shares = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        pair = [
            [replace(c, probabilities={"a": p, "b": 1 - p}, truth=("ab"[i % 2],)) for i, (c, p) in enumerate(rows)]
            for rows in (list(zip(cases, random.random(80).tolist(), strict=True)) for _ in range(2))
        ]
        entry = auroc_differences(pair[0], {"it": pair[1]}, CLASSES[:2], exclusive=True, samples=60)
        shares.append(entry["auroc_minus_it"]["mean"]["above"])
    assert 0.25 < np.mean(shares) < 0.75


def test_differences_in_a_band_are_those_of_its_cases_alone() -> None:
    cases, weaker, band = cases_of(200, 1.5), cases_of(200), Band("diameter_mm", 6, 15)
    apart = auroc_differences(cases, {"x": weaker}, CLASSES, exclusive=True, bands=[band], samples=50)
    inside = [[case for case in group if band.holds(case.metadata)] for group in (cases, weaker)]
    alone = auroc_differences(inside[0], {"x": inside[1]}, CLASSES, exclusive=True, samples=50)
    assert apart["auroc_in_diameter_mm_6_to_15_minus_x"] == alone["auroc_minus_x"]
    assert (
        apart["auroc_minus_x"]
        == auroc_differences(cases, {"x": weaker}, CLASSES, exclusive=True, samples=50)["auroc_minus_x"]
    )


def test_only_the_same_cases_are_compared_in_pairs() -> None:
    cases = cases_of(20)
    other = replace(cases[0], truth=tuple(name for name in CLASSES if name not in cases[0].truth)[:1])
    for theirs in (cases[:-1], [*cases, replace(cases[0], id="x")], [other, *cases[1:]]):
        with pytest.raises(MedsegError, match="expected the same cases with the same classes"):
            auroc_differences(cases, {"it": theirs}, CLASSES, exclusive=True)
    shuffled = auroc_differences(cases, {"it": cases[::-1]}, CLASSES, exclusive=True, samples=0)
    assert shuffled["auroc_minus_it"]["mean"]["value"] == 0 and shuffled["auroc_minus_it"]["mean"]["above"] is None


# ---- the folder, and the table


def test_the_folder_holds_a_row_a_class_and_whether_the_case_is_right(tmp_path: Path) -> None:
    cases = cases_of(6)
    summary = classification_metrics(cases, CLASSES, exclusive=True, samples=20)
    write_classification(tmp_path / "out", cases, summary)
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8")) == summary
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 4 and rows[0]["site"] == "north" and rows[0]["fold"] == "0"
    right = [row["value"] == "1" for row in rows if row["metric"] == "correct" and row["label"] == "mean"]
    assert right == [case.truth == case.called for case in cases]
    for at, case in enumerate(cases):
        of_case = {row["label"]: row for row in rows[4 * at : 4 * at + 3]}
        assert {row["metric"] for row in of_case.values()} == {"probability"}
        assert [label for label, row in of_case.items() if row["n_gt"] == "1"] == list(case.truth)
        assert [label for label, row in of_case.items() if row["n_pred"] == "1"] == list(case.called)
        assert float(of_case["b"]["value"]) == pytest.approx(case.probabilities["b"], rel=1e-5)


def test_the_table_shows_classes_bands_confusion_and_why_a_figure_is_blank() -> None:
    cases = [case for case in cases_of(60) if case.truth != ("c",)]
    band = Band("diameter_mm", 6, 15)
    summary = classification_metrics(cases, CLASSES, exclusive=True, bands=[band], samples=20)
    lines = format_classification(summary, CONFUSION).splitlines()
    assert lines[0].split()[:4] == ["class", "AUROC", "AUPRC", "F1"]
    assert f"{summary['auroc']['a']['value']:.3f} [" in lines[1] and lines[3].split()[:2] == ["c", "–"]
    assert any(line.startswith("diameter mm 6 to 15") for line in lines)
    assert any(line.split() == ["b", "0", "1", "0"] for line in lines)
    assert any(line.startswith("c: no case that shows it: auroc, auprc") for line in lines)


def test_the_comparison_shows_both_figures_the_difference_and_how_sure_it_is() -> None:
    cases, weaker, band = cases_of(100, 2.0), cases_of(100, 0.5), Band("diameter_mm", 6)
    mine, theirs = (
        classification_metrics(c, CLASSES, exclusive=True, bands=[band], samples=20) for c in (cases, weaker)
    )
    apart = auroc_differences(cases, {"mask_volume": weaker}, CLASSES, exclusive=True, bands=[band], samples=20)
    lines = format_comparison({**mine, **apart}, {"mask_volume": theirs}).splitlines()
    assert len(lines) == 3 and lines[1].startswith("all cases") and lines[2].startswith("diameter mm from 6")
    assert "mask volume" in lines[1] and "100.0 % of draws" in lines[1] and "100 of 100" in lines[1]
    for summary in (mine, theirs):
        assert f"{summary['auroc']['mean']['value']:.3f}" in lines[1]


def test_a_class_called_mean_and_no_case_at_all_are_refused() -> None:
    with pytest.raises(MedsegError, match="mean over labels"):
        classification_metrics(cases_of(6), ("a", "mean"), exclusive=True)
    with pytest.raises(MedsegError, match="at least one case"):
        classification_metrics([], CLASSES, exclusive=True)
