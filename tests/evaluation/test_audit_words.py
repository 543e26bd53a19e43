from __future__ import annotations

import re
from dataclasses import replace

import pytest

from medseg.evaluation.audit import Audit, Cell, Verdict
from medseg.evaluation.audit_words import markdown, sentences

NAN = float("nan")
OVERALL = Cell("all", "all", "sensitivity", "tumour", 0.8, 0.7, 0.9, 80, 80, True)
CELLS = (
    Cell("site", "CS", "sensitivity", "tumour", 0.61, 0.5, 0.72, 20, 20, True),
    Cell("site", "DU", "sensitivity", "tumour", 0.88, 0.8, 0.94, 59, 58, True),
    Cell("site", "EZ", "sensitivity", "tumour", 0.0, NAN, NAN, 1, 1, False),
)
DIFFERS = Verdict(
    *(
        "site",
        "sensitivity",
        "tumour",
        ("CS", "DU"),
        ("EZ",),
        "DU",
        "CS",
        0.27,
        "CS",
        0.61,
        0.88,
        1 / 2001,
        0.0041,
        True,
    ),
    {"CS": 0.2, "DU": 0.2},
)
SAME = replace(DIFFERS, differs=False, p=0.2, p_corrected=0.41)


def audit_of(*verdicts: Verdict, cells: tuple[Cell, ...] = CELLS, mixed: int = 0) -> Audit:
    return Audit((OVERALL,), cells, verdicts, {"site": mixed}, 80, 79, 10, 2000, 0)


def test_a_difference_is_one_sentence_with_both_values_and_both_p() -> None:
    assert sentences(audit_of(DIFFERS))[0] == (
        "Sensitivity of tumour differs by site: 0.61 [0.50–0.72] in CS (20 patients) against 0.88 in DU; "
        "p = 0.0041 corrected, 0.0005 or less alone."
    )


def test_cases_in_no_group_and_a_ranking_across_models_are_said() -> None:
    ranked = replace(OVERALL, metric="auroc")
    found = replace(audit_of(SAME), overall=(ranked,), unknown={"site": 3, "sex": 0}, folds=5)
    said = sentences(found)
    assert "Nobody knows site of 3 of the 80 cases: they are in none of its groups." in said
    assert any(text.startswith("AUROC: the cases of 5 folds are ranked together") for text in said)
    assert not any("folds" in text for text in sentences(replace(found, folds=1)))


def test_where_more_groups_were_judged_the_largest_gap_is_named() -> None:
    three = replace(DIFFERS, judged=("CS", "DU", "FG"), highest="FG", gap=0.3)
    assert (
        "against 0.88 in the other groups; the largest gap is 0.30, from CS to FG; p = "
        in sentences(audit_of(three))[0]
    )


def test_without_a_difference_the_gap_that_would_have_been_seen_is_said() -> None:
    assert sentences(audit_of(SAME))[0] == (
        "With these numbers no difference between the groups of site could be shown in Sensitivity of tumour (largest gap 0.27, "
        "p = 0.41; a gap below 0.20 would stay unseen)."
    )
    three = replace(SAME, judged=("CS", "DU", "FG"), detectable={"CS": 0.3, "DU": 0.1, "FG": 0.2})
    assert "a gap below 0.10 would stay unseen, of CS below 0.30)" in sentences(audit_of(three))[0]


def test_small_groups_are_named_with_their_patients() -> None:
    assert "left out of the comparison: EZ (one patient)." in sentences(audit_of(SAME))[1]
    more = (*CELLS, *(replace(cell, metric="ece", n_patients=4, judged=False) for cell in CELLS[:1]))
    two = replace(audit_of(SAME, cells=more), overall=(OVERALL, replace(OVERALL, metric="ece")))
    assert "CS (4 patients for Calibration error (ECE) of tumour)" in sentences(two)[1]
    nothing = Verdict("site", "sensitivity", "tumour", ("DU",), ("CS", "EZ"))
    assert sentences(audit_of(nothing))[0] == "Nothing could be judged: every group is too small."


def test_two_exclusive_classes_share_what_is_the_same_of_both() -> None:
    verdicts = [replace(DIFFERS, metric="auroc", label=name) for name in "ab"]
    found = audit_of(*verdicts, cells=tuple(replace(cell, metric="auroc", label=n) for n in "ab" for cell in CELLS))
    assert [text for text in sentences(found) if "differs" in text] == [
        text for text in sentences(found) if text.startswith("AUROC of a and b differs by site")
    ]


def test_what_misleads_is_said() -> None:
    mixed = "3 patients had cases in several groups of site: each case counts in its own group."
    assert mixed in sentences(audit_of(SAME, mixed=3)) and mixed not in sentences(audit_of(SAME))
    calibration = replace(audit_of(SAME), overall=(replace(OVERALL, metric="ece"), replace(OVERALL, metric="auprc")))
    higher = "Calibration error (ECE) is higher in smaller groups by itself; the comparison of groups takes that off."
    assert higher in sentences(replace(calibration, biased=("ece",))) and higher not in sentences(calibration)
    assert "How frequent a class is in a group also moves AUPRC." in sentences(calibration)


@pytest.mark.parametrize("verdict", [DIFFERS, SAME])
def test_the_page_has_a_heading_for_what_there_is(verdict: Verdict) -> None:
    page = markdown(audit_of(verdict))
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings == ["All cases", "Differences" if verdict.differs else "No difference shown", "Too small to judge"]
    assert "80 cases of 79 patients; 1 questions" in page and "2000 permutations" in page
    assert "- Sensitivity of tumour: 0.80 [0.70–0.90]" in page
