"""Classes as cells of a table say them."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.scans.classes import classes_of, named_classes, true_classes
from medseg.scans.reading import ScanError
from medseg.structures import Case, Source


def case(name: str | None) -> Case:
    return Case("p1", (Source("picture", (Path("a.png"),)),), class_name=name)


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (None, None),
        ("", None),
        (" ; ", None),
        ("none", ()),
        ("None", ()),
        ("benign", ("benign",)),
        ("edema; effusion;edema", ("edema", "effusion")),
    ],
)
def test_a_cell_names_classes_in_its_order_each_once(cell: str | None, names: tuple[str, ...] | None) -> None:
    assert named_classes(cell) == names


def test_all_classes_are_those_of_all_cases_sorted() -> None:
    assert classes_of([case("b;a"), case(None), case("c"), case("none")]) == ("a", "b", "c")


def test_true_classes_come_in_the_order_of_the_list() -> None:
    assert true_classes(case("b;a"), ("a", "b", "c")) == ("a", "b")
    assert true_classes(case("none"), ("a",)) == ()


def test_a_class_that_is_not_in_the_list_is_named() -> None:
    with pytest.raises(ScanError, match=r"'p1': class 'x' is not in the list \(a, b\)") as found:
        true_classes(case("a;x"), ("a", "b"))
    assert found.value.kind == "class"


def test_a_case_of_which_nobody_says_the_class_is_refused() -> None:
    with pytest.raises(ScanError, match="expected a class"):
        true_classes(case(None), ("a",))


def test_none_is_a_class_like_any_other_where_a_case_has_one() -> None:
    assert named_classes("None", several=False) == ("None",)
    assert classes_of([case("none"), case("mild")], several=False) == ("mild", "none")
    assert true_classes(case("none"), ("mild", "none")) == ("none",)
