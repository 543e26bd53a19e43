from __future__ import annotations

import math
from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.evaluation.bands import check_columns, number_in
from medseg.structures import Case, as_source


def cases_with(**columns: list[str]) -> list[Case]:
    count = len(next(iter(columns.values())))
    source = as_source("picture", Path("a.png"))
    return [Case(f"case_{n}", (source,), metadata={k: v[n] for k, v in columns.items()}) for n in range(count)]


def test_a_cell_is_a_number_or_unknown_and_never_a_word() -> None:
    assert number_in(" 3.5 ") == 3.5 and math.isnan(number_in(" "))
    with pytest.raises(MedsegError, match="expected a number, found 'large'"):
        number_in("large")


def test_columns_of_numbers_may_have_gaps() -> None:
    check_columns(["size"], cases_with(size=["1", "", "3e2"]), "bands")


def test_every_column_that_is_not_there_or_no_number_is_named_at_once() -> None:
    cases = cases_with(size=["1", "x", "y"], empty=["", "", ""], site=["n", "s", "n"])
    with pytest.raises(MedsegError) as error:
        check_columns(["diameter", "size", "empty"], cases, "bands")
    text = str(error.value)
    assert text.startswith("bands: expected columns of numbers")
    assert "diameter: the data have no such column; they have empty, site, size" in text
    assert "size: expected numbers, found case_1: 'x', case_2: 'y'" in text
    assert "empty: it is empty for every case" in text
