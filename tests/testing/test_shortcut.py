"""The planted shortcut: its truth is known, its pictures agree with it, and nothing but the marker tells the two forms apart."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.evaluation.audit import Audit, Verdict
from medseg.evaluation.classification import auroc
from medseg.scans.layouts import table
from medseg.testing.shortcut import MARKER_BOX, SIZE, make_shortcut, shortcut_found, write_shortcut


@pytest.fixture(scope="module")
def shown() -> list:
    return [make_shortcut(0, index) for index in range(400)]


def test_the_spot_alone_tells_the_diseased_as_well_as_it_was_made(shown: list) -> None:
    truth = np.array([case.diseased for case in shown])
    made = auroc(np.array([case.contrast for case in shown]), truth)
    seen = auroc(np.array([_measured(case) for case in shown]), truth)
    assert made == pytest.approx(0.80, abs=0.05)  # two standard errors of 400 cases
    assert 0.7 < seen <= made + 0.02  # by a matched filter where the spot lies: noise and mottle cost a little


def test_the_marker_says_who_is_ill_at_one_site_and_nothing_at_the_other(shown: list) -> None:
    x0, y0, x1, y1 = MARKER_BOX
    bright = np.array([case.image[x0:x1, y0:y1].mean() for case in shown]) > 200
    assert bright.tolist() == [case.marked for case in shown]
    assert bright.tolist() == [case.diseased and case.site == "B" for case in shown]
    assert {(case.site, case.diseased) for case in shown[:4]} == {(s, d) for s in "AB" for d in (True, False)}


def test_without_the_shortcut_the_pictures_are_the_same_but_for_the_marker(shown: list) -> None:
    outside = np.ones((SIZE, SIZE), bool)
    outside[MARKER_BOX[0] : MARKER_BOX[2], MARKER_BOX[1] : MARKER_BOX[3]] = False
    for case in shown[:8]:
        clean = make_shortcut(0, int(case.id.rpartition("_")[2]), shortcut=False)
        assert not clean.marked and (clean.image == case.image)[outside].all()
        assert (clean.image == case.image).all() is np.bool_(not case.marked)


def test_the_spot_never_touches_the_marker(shown: list) -> None:
    for case in shown:
        x0, y0, x1, y1 = case.spot_box
        assert min(x0, y0) >= 0 and max(x1, y1) <= SIZE
        assert x1 <= MARKER_BOX[0] + 1 or y0 >= MARKER_BOX[3]


def test_the_cohort_on_disk_is_read_as_any_other(tmp_path: Path) -> None:
    cases = write_shortcut(tmp_path, range(6), seed=3)
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["id"], row["class"], row["site"], row["marker"]) for row in rows[:4]] == [
        ("shortcut_000", "healthy", "A", "no"),
        ("shortcut_001", "diseased", "A", "no"),
        ("shortcut_002", "healthy", "B", "no"),
        ("shortcut_003", "diseased", "B", "yes"),
    ]
    stored = np.asarray(Image.open(tmp_path / rows[3]["image"]))
    assert (cases[3].image == stored.T).all() and stored.shape == (SIZE, SIZE)
    cohort = table(file=tmp_path / "cases.csv", progress=False)
    assert [case.id for case in cohort.cases] == [case.id for case in cases]
    assert cohort.cases[3].metadata == {"site": "B", "marker": "yes"} and cohort.cases[3].class_name == "diseased"
    again = write_shortcut(tmp_path / "again", range(6), seed=3)
    assert all((one.image == other.image).all() for one, other in zip(cases, again, strict=True))


def test_a_shortcut_is_a_verdict_about_marker_or_site() -> None:
    def audit_of(column: str, differs: bool) -> Audit:
        verdict = Verdict(column, "auroc", "diseased", ("A", "B"), (), p=0.01, p_corrected=0.01, differs=differs)
        return Audit((), (), (verdict,), {}, 0, 0, 10, 99, 0)

    assert shortcut_found(audit_of("site", True)) and shortcut_found(audit_of("marker", True))
    assert not shortcut_found(audit_of("site", False)) and not shortcut_found(audit_of("sex", True))


def _measured(case) -> float:  # type: ignore[no-untyped-def]
    """The contrast of the spot by a matched filter, less its surround, where it is known to lie."""
    x0, y0, x1, y1 = case.spot_box
    x, y = np.meshgrid(np.arange(SIZE) + 0.5, np.arange(SIZE) + 0.5, indexing="ij")
    weight = np.exp(-((x - (x0 + x1) / 2) ** 2 + (y - (y0 + y1) / 2) ** 2) / 50)
    weight -= weight.mean()
    return float((case.image * weight).sum() / (weight**2).sum())
