from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from medseg.scans.box_files import box_files, case_names, paired_files
from medseg.structures import Fault

WHERE = (Path("images"), Path("boxes"))


def pair(cases: dict[str, tuple[str, ...]], *files: str, known: tuple[str, ...] = ()) -> tuple[dict[str, str], set]:
    pairs, faults = paired_files(cases, [PurePath(file) for file in files], WHERE, known)
    return {case: str(file) for case, file in pairs.items()}, kinds(faults)


def kinds(faults: list[Fault]) -> set[tuple[str, str]]:
    return {(fault.case, fault.kind) for fault in faults}


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("p1.json", ("p1", "p1")),
        ("sub/p1.v2.xml", ("sub__p1.v2", "p1.v2")),
        ("p1/boxes.json", ("p1", "p1")),
        ("fold/p1/boxes.json", ("fold__p1", "p1")),
        ("boxes.json", ("boxes", "boxes")),
    ],
)
def test_a_file_says_what_its_case_is_called(file: str, names: tuple[str, str]) -> None:
    assert case_names(PurePath(file)) == names


def test_other_files_of_a_result_folder_are_no_boxes(tmp_path: Path) -> None:
    names = ["p1.json", "p2.XML", "._p2.xml", "notes.txt", "sub/p3.xml"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(file) for file in box_files(tmp_path)] == ["p1.json", "p2.XML", "sub/p3.xml"]
    assert [str(file) for file in box_files(tmp_path, (".json",))] == ["p1.json"]
    (tmp_path / "sub" / "boxes.json").touch()
    assert [str(file) for file in box_files(tmp_path)] == ["p2.XML", "sub/boxes.json", "sub/p3.xml"]


def test_the_file_of_a_cases_own_path_goes_before_one_that_is_only_called_like_it() -> None:
    cases = {"x": ("x", "x"), "a__x": ("a__x", "x", "a__x"), "b__x": ("b__x", "x", "b__x")}
    assert pair(cases, "x.json", "a/x.json", "b/x.json") == (
        {"x": "x.json", "a__x": "a/x.json", "b__x": "b/x.json"},
        set(),
    )
    assert pair(cases, "x.json", "a/x.json") == (
        {"x": "x.json", "a__x": "a/x.json"},
        {("b__x", "image_without_annotation")},
    )


def test_a_series_has_the_file_that_is_called_like_its_id_or_one_of_its_folders() -> None:
    cases = {"CT_1": ("CT_1", "scan", "anna", "anna__scan"), "CT_2": ("CT_2", "scan", "bert", "bert__scan")}
    assert pair(cases, "CT_1/boxes.json", "bert.json") == ({"CT_1": "CT_1/boxes.json", "CT_2": "bert.json"}, set())
    assert pair(cases, "anna/scan.json", "bert/scan.json") == (
        {"CT_1": "anna/scan.json", "CT_2": "bert/scan.json"},
        set(),
    )


def test_a_file_that_two_cases_want_and_two_files_that_one_case_could_have_are_faults() -> None:
    cases = {"a__x": ("a__x", "x"), "b__x": ("b__x", "x")}
    assert pair(cases, "x.json") == ({}, {("a__x", "ambiguous_annotation"), ("b__x", "ambiguous_annotation")})
    assert pair({"y": ("q__y", "y", "y_0000")}, "c/y.json", "d/y.xml") == ({}, {("y", "ambiguous_annotation")})
    assert pair({"y": ("y", "y")}, "y.json", "y.xml") == ({}, {("y", "ambiguous_annotation")})


def test_what_stays_alone_is_a_fault_unless_the_reason_is_told_elsewhere() -> None:
    found = pair({"a": ("a", "a")}, "b.json", "c.json", known=("c",))
    assert found == ({}, {("a", "image_without_annotation"), ("b", "annotation_without_image")})
