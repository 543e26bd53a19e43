"""What the segments of a DICOM SEG and the regions of an RTSTRUCT are called, and which mask value each is painted with.

Names decide, not numbers: two files may number the same organ differently. ``"Left_Kidney"`` and ``"left kidney"`` are one
name. Knows neither pixels nor contours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medseg.errors import MedsegError
from medseg.scans.reading import ScanError
from medseg.structures import LabelTable
from medseg.volume import Array

IGNORE = "ignore"
"""The name of the segment that is painted with the ignore value of a label table."""

_LARGEST_NUMBER = 255  # of a file that is kept as mask value


@dataclass(frozen=True)
class Segment:
    """One segment of a SEG or one region of an RTSTRUCT: the number that the file gives it, and its name."""

    number: int
    label: str


@dataclass(frozen=True, eq=False)
class Palette:
    """What is painted with what: a segment has a rank, a rank has a value, and the higher rank covers the lower.

    Args:
        ranks: segment number → rank from 1 up; a segment that is not here is left out.
        values: ``(ranks + 1,)`` the mask value of each rank, 0 of rank 0, in the smallest integer type.
        unknown: segment number → name that the label table does not have; painting one is a fault.
        known: the names that the table has, for messages.
        nested: whether the table has regions, in which case overlaps are meant.
    """

    ranks: Mapping[int, int]
    values: Array
    unknown: Mapping[int, str] = field(default_factory=dict)
    known: tuple[str, ...] = ()
    nested: bool = False

    @property
    def rank_type(self) -> np.dtype[np.unsignedinteger]:
        return np.min_scalar_type(len(self.values) - 1)

    def paints(self, number: int, name: str) -> int:
        """The rank of a segment that marks something; 0 where it is left out.

        Raises:
            ScanError: ``unknown_label`` where nothing names it; ``name`` opens the message.
        """
        if number in self.unknown:
            raise ScanError(
                f"{name}: it holds {self.unknown[number]!r}, which nothing names; known are {', '.join(self.known)}. Name it in "
                "data.label_names, or say with data.label_match which segments are meant",
                "unknown_label",
            )
        return self.ranks.get(number, 0)


def palettes(files: Sequence[Sequence[Segment]], table: LabelTable | None, key: str = "") -> list[Palette]:
    """How the segments of each file are painted; all files share ranks and values.

    Regions are painted from whole to core, then labels by ascending value.

    Args:
        table: None paints every segment with its own number.
        key: as `renamed` makes it.
    """
    if key:
        meant = [{int(number): str(name) for number, name in names.items()} for names in json.loads(key)]
        pairs = zip(files, meant, strict=True)
        files = [[Segment(s.number, names[s.number]) for s in file if s.number in names] for file, names in pairs]
    if table is None:
        numbers = sorted({segment.number for file in files for segment in file})
        own = {number: rank for rank, number in enumerate(numbers, 1)}
        return [Palette(own, _smallest(np.array([0, *numbers])))] * len(files)
    order = _order(table)
    ranks = {canonical(name): rank for rank, (name, _) in enumerate(order, 1)}
    values = _smallest(np.array([0, *(value for _, value in order)]))
    return [
        Palette(
            {s.number: ranks[canonical(s.label)] for s in file if canonical(s.label) in ranks},
            values,
            {s.number: s.label for s in file if canonical(s.label) not in ranks},
            tuple(name for name, _ in order),
            nested=bool(table.regions),
        )
        for file in files
    ]


def merged(lower: Array, upper: Array) -> tuple[Array, int]:
    """Two arrays of ranks as one, and in how many voxels both mark something and differ."""
    doubled = int(np.count_nonzero((lower != upper) & (lower != 0) & (upper != 0)))
    return np.maximum(lower, upper), doubled


def canonical(name: str) -> str:
    """A name as it is compared: case does not matter, and spaces and underscores are alike."""
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


def renamed(files: Sequence[Sequence[Segment]], rules: Mapping[str, str]) -> str:
    """Which segments of each file are meant by which label: the key of a `Source`; empty where no rule fits any segment.

    Args:
        rules: label → regular expression that a whole segment name matches, whatever its case. The first that fits counts,
            and a segment that none fits is left out.
    """
    found: list[dict[str, str]] = []
    for segments in files:
        found.append({})
        for segment in segments:
            label = next(
                (name for name, rule in rules.items() if re.fullmatch(rule, segment.label, re.IGNORECASE)), None
            )
            if label is not None:
                found[-1][str(segment.number)] = label
    return json.dumps(found) if any(found) else ""


def check_rules(rules: Mapping[str, str]) -> None:
    """Raise MedsegError for what is no regular expression."""
    for name, rule in rules.items():
        try:
            re.compile(rule)
        except (re.error, TypeError) as error:
            raise MedsegError(f"label_match {name!r}: {rule!r} is no regular expression ({error})") from None


def numbered(files: Sequence[Sequence[Segment]]) -> dict[int, str]:
    """Value → name for the segments of many files: the files' own numbers where all agree, else counted in their order."""
    by_name: dict[str, tuple[str, set[int]]] = {}
    for segment in (segment for segments in files for segment in segments):
        by_name.setdefault(canonical(segment.label), (segment.label, set()))[1].add(segment.number)
    own = {number: name for name, numbers in by_name.values() for number in numbers}
    agreed = len(own) == len(by_name) == sum(len(numbers) for _, numbers in by_name.values())
    if own and agreed and min(own) >= 1 and max(own) <= _LARGEST_NUMBER:
        return dict(sorted(own.items()))
    ordered = sorted(by_name.values(), key=lambda held: (min(held[1]), canonical(held[0])))
    return {value: name for value, (name, _) in enumerate(ordered, 1)}


def _order(table: LabelTable) -> list[tuple[str, int]]:
    """(name, value) in the order of painting; a name that is both a region and a label is painted as the region."""
    regions = list(zip(table.regions, table.paint, strict=True))
    taken = {canonical(name) for name, _ in regions}
    plain = [(name, value) for value, name in table.names.items() if canonical(name) not in taken]
    return [*regions, *plain, *([(IGNORE, table.ignore)] if table.ignore is not None else [])]


def _smallest(values: Array) -> Array:
    low, high = int(values.min()), int(values.max())
    return values.astype(np.min_scalar_type(min(low, -high - 1) if low < 0 else high))
