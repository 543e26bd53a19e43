from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from medseg.errors import MedsegError
from medseg.evaluation.audit_cases import AuditCases
from medseg.evaluation.audit_groups import columns_of

SITES = ["CS", "", "DU", "CS", "DU", "CS", "", "DU"]
AGES = ["30", "40", "59.5", "60", "", "75", "20", "nan"]
SEXES = ["f", "f", "m", "m", "f", "m", "f", "f"]


def cohort(patients: Sequence[str] = (), **columns: Sequence[str]) -> AuditCases:
    count = len(next(iter(columns.values())))
    return AuditCases(
        tuple(patients or map(str, range(count))), {name: tuple(cells) for name, cells in columns.items()}, {}
    )


COHORT = cohort(site=SITES, age=AGES, sex=SEXES, id_of_scan=list("abcdefgh"), scanner=["X"] * 8, note=[""] * 8)


def groups(cases: AuditCases = COHORT, *names: str, **options: Any) -> dict[str, list[str]]:
    """Column → the group of each case, ``-`` where it is in none."""
    return {c.name: [(*c.groups, "-")[at] for at in c.of_case] for c in columns_of(cases, names, **options)}


def test_categories_stand_as_they_are_and_a_case_of_which_nothing_is_known_is_in_none() -> None:
    assert groups(COHORT, "site") == {"site": ["CS", "-", "DU", "CS", "DU", "CS", "-", "DU"]}
    (column,) = columns_of(COHORT, ["site"])
    assert (column.groups, column.unknown) == (("CS", "DU"), 2)


def test_a_number_is_one_group_however_it_is_written() -> None:
    assert groups(cohort(grade=["1", "1.0", "02", "NaN", "2", "unknown"]), "grade") == {
        "grade": ["1", "1", "2", "-", "2", "-"]
    }
    assert columns_of(cohort(ward=["1_0", "10", "1_0", "10"]), ["ward"])[0].groups == ("10", "1_0")


def test_a_number_at_an_edge_is_in_the_band_above() -> None:
    found = groups(COHORT, "age", bands={"age": [40, 60]})["age"]
    assert found == ["< 40", "40–60", "40–60", "≥ 60", "-", "≥ 60", "< 40", "-"]
    assert columns_of(COHORT, ["age"], bands={"age": [40, 60]})[0].groups == ("< 40", "40–60", "≥ 60")


def test_an_empty_band_is_no_group() -> None:
    assert columns_of(COHORT, ["age"], bands={"age": [50, 80, 90]})[0].groups == ("< 50", "50–80")


def test_numbers_are_cut_in_thirds_of_the_cases() -> None:
    column = columns_of(cohort(age=[str(a) for a in range(100, 190)]), ["age"])[0]
    assert column.groups == ("< 130", "130–159", "≥ 159")
    assert [(column.of_case == at).sum() for at in range(3)] == [30, 29, 31]


def test_numbers_of_few_values_are_codes_in_their_order() -> None:
    column = columns_of(cohort(grade=["2", "10", "2", "10", "3", "3"]), ["grade"])[0]
    assert column.groups == ("2", "3", "10")


def test_thirds_that_fall_together_leave_fewer_bands() -> None:
    column = columns_of(cohort(dose=["0"] * 20 + [str(d) for d in range(1, 11)]), ["dose"])[0]
    assert column.groups == ("< 1", "≥ 1") or len(column.groups) == 2
    assert (column.of_case == 0).sum() == 20


def test_two_columns_are_crossed() -> None:
    found = groups(COHORT, "sex", pairs=[["site", "sex"]])
    assert list(found) == ["sex", "site × sex"]
    assert found["site × sex"] == [*("CS × f", "-", "DU × m", "CS × m", "DU × f", "CS × m", "-", "DU × f")]
    assert columns_of(COHORT, [], pairs=[["site", "sex"]])[0].groups == (*("CS × f", "CS × m", "DU × f", "DU × m"),)


def test_every_column_that_makes_no_groups_is_named_at_once() -> None:
    with pytest.raises(MedsegError) as error:
        columns_of(COHORT, ["region", "scanner", "id_of_scan", "note"], pairs=[["site", "ward"]])
    said = str(error.value)
    assert "there are the columns site, age, sex, id_of_scan, scanner, note" in said
    assert "no column 'region'" in said and "no column 'ward'" in said
    assert "'scanner': it is the same for all 8 cases (X)" in said
    assert "'note': it is blank for all 8 cases" in said
    assert "'id_of_scan': it is different for nearly every patient (8 values for 8 patients)" in said


def test_nearly_unique_names_are_refused_and_one_lonely_patient_is_not() -> None:
    with pytest.raises(MedsegError, match="different for nearly every patient"):
        columns_of(cohort(ward=["a", "a", "b", "c", "d", "e"]), ["ward"])
    assert columns_of(cohort(ward=["a", "a", "b", "b", "c"]), ["ward"])[0].groups == ("a", "b", "c")
    several = cohort(patients=["p", "p", "q", "q"], scan=["1a", "1b", "2a", "2b"])
    with pytest.raises(MedsegError, match="4 values for 2 patients"):
        columns_of(several, ["scan"])


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["age"], {"bands": {"age": [60, 40]}}, "ascending edges"),
        (["age"], {"bands": {"age": 40}}, "ascending edges"),
        (["age"], {"bands": {"age": []}}, "ascending edges"),
        (["age"], {"bands": {"age": [90]}}, "same for all 8 cases"),
        (["site"], {"bands": {"site": [3]}}, "bands need numbers, found 'CS', 'DU'"),
        (["site"], {"bands": {"age": [40]}}, "age is not among columns"),
        (["site"], {"pairs": [["site"]]}, "two different columns each"),
        (["site"], {"pairs": ["site"]}, "two different columns each"),
        (["site"], {"pairs": [["site", "site"]]}, "two different columns each"),
        ([], {}, "expected columns or pairs"),
    ],
)
def test_requests_that_make_no_sense_are_refused(names: list[str], options: dict[str, Any], said: str) -> None:
    cases = cohort(site=SITES, age=[age.replace("nan", "50") or "50" for age in AGES])
    with pytest.raises(MedsegError, match=said):
        columns_of(cases, names, **options)
