"""A band of numbers in a column of the cohort: which cases an evaluation looks at apart. Reads no file and measures nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from medseg.errors import MedsegError, all_at_once
from medseg.structures import Case

_SHOWN = 10


@dataclass(frozen=True)
class Band:
    """The cases whose number in ``column`` is at least ``low`` and below ``high``; one without a number is in no band."""

    column: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise MedsegError(
                f"bands: {self.column}: expected low below high, found {self.low:g} and {self.high:g}; name both, or one"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Band:
        """``{"column": …, "low": …, "high": …}``; an end that is missing or None is open.

        Raises:
            MedsegError: there is no column, an end is no number, or something else is said.
        """
        known = [f.name for f in fields(cls)]
        odd = sorted(set(values) - set(known))
        if odd or not values.get("column"):
            raise MedsegError(f"bands: expected column, low and high, found {', '.join(values) or 'nothing'}")
        ends = {name: values[name] for name in known[1:] if values.get(name) is not None}
        try:
            return cls(str(values["column"]), **{name: float(end) for name, end in ends.items()})
        except (TypeError, ValueError):
            raise MedsegError(f"bands: {values['column']}: expected numbers as ends, found {ends}") from None

    def __str__(self) -> str:
        if math.isinf(self.low) or math.isinf(self.high):
            return f"{self.column}_from_{self.low:g}" if math.isinf(self.high) else f"{self.column}_below_{self.high:g}"
        return f"{self.column}_{self.low:g}_to_{self.high:g}"

    def holds(self, metadata: Mapping[str, str]) -> bool:
        """Whether a case lies in it. Raises MedsegError where its cell is a word."""
        return self.low <= number_in(metadata.get(self.column, "")) < self.high


def number_in(cell: str) -> float:
    """The number that a cell holds; NaN for an empty one. Raises MedsegError for a word."""
    if not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise MedsegError(f"expected a number, found {cell!r}") from None


def check_columns(columns: Iterable[str], cases: Sequence[Case], asked_by: str) -> None:
    """See that each column is there and holds numbers only.

    Raises:
        MedsegError: says every column that is not, with the columns that there are or the first cells that are words.
    """
    there = sorted({name for case in cases for name in case.metadata})
    problems = []
    for column in dict.fromkeys(columns):
        cells = {case.id: case.metadata.get(column, "") for case in cases}
        words = [f"{case}: {cell!r}" for case, cell in cells.items() if not _is_number(cell)]
        if column not in there:
            problems.append(f"{column}: the data have no such column; they have {', '.join(there) or 'none'}")
        elif words:
            more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
            problems.append(f"{column}: expected numbers, found {', '.join(words[:_SHOWN])}{more}")
        elif not any(cell.strip() for cell in cells.values()):
            problems.append(f"{column}: it is empty for every case")
    if problems:
        raise all_at_once(f"{asked_by}: expected columns of numbers in the table of the data:", problems)


def _is_number(cell: str) -> bool:
    try:
        number_in(cell)
    except MedsegError:
        return False
    return True
