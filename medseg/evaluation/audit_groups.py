"""Cases in groups by what is known about them: categories, numbers in bands, and two columns crossed.

Categories stand as they are; a number is the same however it is written (``1``, ``1.0``). Numbers of more than a few values are
cut at given edges, or in thirds of the cases. A case of which nobody knows a column is in none of its groups. A column that
cannot tell groups apart is refused. Knows no metric.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.errors import all_at_once
from medseg.evaluation.audit_cases import AuditCases
from medseg.volume import Array

UNKNOWN = ("", "nan", "unknown")
"""Cells, in lower case, that say nothing."""
NOWHERE = -1
"""The group of a case that is in none."""
FEW_NUMBERS = 6
"""Numbers of so few different values are codes, and so categories."""


@dataclass(frozen=True, eq=False)
class Column:
    """Groups of cases: ``of_case`` ``(N,)`` says which of ``groups`` a case is in, or `NOWHERE`. Every group has a case."""

    name: str
    groups: tuple[str, ...]
    of_case: Array

    @classmethod
    def everything(cls, count: int) -> Column:
        """All cases in one group."""
        return cls("all", ("all",), np.zeros(count, np.int64))

    @property
    def unknown(self) -> int:
        """Cases that are in no group."""
        return int((self.of_case == NOWHERE).sum())


def columns_of(
    cases: AuditCases,
    names: Sequence[str],
    *,
    pairs: Sequence[Sequence[str]] = (),
    bands: Mapping[str, Sequence[float]] | None = None,
) -> list[Column]:
    """The groups of each column, then of each pair of columns.

    Args:
        pairs: names of two columns each; a group is what both say together.
        bands: column → ascending edges; a case at an edge is in the band above.

    Raises:
        MedsegError: names every column that is absent, the same for all cases or unique for most, and every edge that makes no
            sense.
    """
    bands = bands or {}
    problems = []
    if not names and not pairs:
        problems.append("expected columns or pairs of them, found none")
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
            problems.append(f"pairs: expected two different columns each, such as [[site, sex]]; found {pair!r}")
    wanted = dict.fromkeys([*names, *(name for pair in pairs if not isinstance(pair, str) for name in pair)])
    problems += [f"bands: {name} is not among columns or pairs" for name in bands if name not in wanted]
    found: dict[str, Column] = {}
    for name in wanted:
        if name not in cases.metadata:
            problems.append(f"no column {name!r}")
            continue
        try:
            found[name] = _column(name, cases.metadata[name], cases.patients, bands.get(name))
        except ValueError as error:
            problems.append(f"column {name!r}: {error}")
    if problems:
        there = ", ".join(cases.metadata) or "none (give the metadata with table=…)"
        raise all_at_once(f"audit: there are the columns {there}, and of what was asked for:", problems)
    return [*(found[name] for name in dict.fromkeys(names)), *(_crossed(found[a], found[b]) for a, b in pairs)]


def _column(name: str, cells: Sequence[str], patients: Sequence[str], edges: Sequence[float] | None) -> Column:
    """Raises ValueError where the cells make no groups."""
    numbers, odd = _numbers(cells)
    values = np.unique(numbers[~np.isnan(numbers)])
    if edges is not None:
        if odd:
            raise ValueError(
                f"bands need numbers, found {', '.join(map(repr, odd[:3]))}; leave out its bands, or mend it"
            )
        column = _banded(name, numbers, _ascending(edges))
    elif not odd and len(values) > FEW_NUMBERS:
        column = _banded(name, numbers, _thirds(numbers[~np.isnan(numbers)]))
    else:
        column = _categories(name, cells)
    known = len(cells) - column.unknown
    if len(column.groups) < 2:
        same = (
            f"is the same for all {known} cases ({column.groups[0]})"
            if known
            else f"is blank for all {len(cells)} cases"
        )
        where = " of which it is known" if 0 < known < len(cells) else ""
        raise ValueError(f"it {same}{where}, so there is nothing to compare")
    sizes = [
        len({p for p, at in zip(patients, column.of_case, strict=True) if at == g}) for g in range(len(column.groups))
    ]
    owners = {p for p, at in zip(patients, column.of_case, strict=True) if at != NOWHERE}
    if 2 * sizes.count(1) > len(owners):
        raise ValueError(
            f"it is different for nearly every patient ({len(sizes)} values for {len(owners)} patients), so there are no "
            "groups; numbers can be cut into bands={…}, names need to be joined to fewer ones"
        )
    return column


def _ascending(edges: Sequence[float]) -> list[float]:
    """Raises ValueError for what are no edges."""
    try:
        found = [float(edge) for edge in edges]
    except (TypeError, ValueError):
        found = []
    if not found or found != sorted(set(found)) or not all(map(math.isfinite, found)):
        raise ValueError(f"bands need ascending edges, such as [40, 60]; found {edges!r}")
    return found


def _numbers(cells: Sequence[str]) -> tuple[Array, list[str]]:
    """``(N,)`` the cells as numbers, NaN where nothing is known; and the cells that are none."""
    found = [_as_number(cell) for cell in cells]
    odd = {cell for cell, number in zip(cells, found, strict=True) if number is None and not _is_blank(cell)}
    return np.array([math.nan if number is None else number for number in found]), sorted(odd)


def _as_number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def _is_blank(cell: str) -> bool:
    return cell.strip().lower() in UNKNOWN


def _categories(name: str, cells: Sequence[str]) -> Column:
    """A group a value; numbers in their order and before names, each called as it is written shortest."""
    spelt: dict[float | str, str] = {}
    keys = [None if _is_blank(cell) else cell if (number := _as_number(cell)) is None else number for cell in cells]
    for key, cell in sorted(zip(keys, cells, strict=True), key=lambda pair: (len(pair[1]), pair[1])):
        if key is not None:
            spelt.setdefault(key, cell)
    order = sorted(spelt, key=lambda key: (isinstance(key, str), key))
    return _from_names(name, [None if key is None else spelt[key] for key in keys], [spelt[key] for key in order])


def _thirds(values: Array) -> list[float]:
    """Edges between thirds of the cases, of as few digits as people want to read; fewer where they fall together."""
    edges = sorted({float(f"{edge:.3g}") for edge in np.quantile(values, [1 / 3, 2 / 3])})
    return [edge for edge in edges if values.min() < edge <= values.max()]


def _banded(name: str, numbers: Array, edges: Sequence[float]) -> Column:
    text = [f"{edge:g}" for edge in edges]
    inner = [f"{low}–{high}" for low, high in itertools.pairwise(text)]
    bands = [f"< {text[0]}", *inner, f"≥ {text[-1]}"] if text else ["one band"]
    at = np.searchsorted(np.asarray(edges, float), numbers, side="right")
    return _from_names(name, [None if math.isnan(x) else bands[i] for x, i in zip(numbers, at, strict=True)], bands)


def _from_names(name: str, of_case: Sequence[str | None], order: Sequence[str]) -> Column:
    """Groups in ``order``, as far as they occur; None is in none of them."""
    there = set(of_case)
    groups = [group for group in order if group in there]
    at = {group: i for i, group in enumerate(groups)}
    of = [NOWHERE if group is None else at[group] for group in of_case]
    return Column(name, tuple(groups), np.array(of, np.int64))


def _crossed(one: Column, other: Column) -> Column:
    """What two columns say together, in the order of both."""
    both = (one.of_case != NOWHERE) & (other.of_case != NOWHERE)
    found, place = np.unique((one.of_case * len(other.groups) + other.of_case)[both], return_inverse=True)
    of_case = np.full(len(both), NOWHERE, np.int64)
    of_case[both] = place
    names = [divmod(int(code), len(other.groups)) for code in found]
    groups = tuple(f"{one.groups[a]} × {other.groups[b]}" for a, b in names)
    return Column(f"{one.name} × {other.name}", groups, of_case)
