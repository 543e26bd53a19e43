"""How a DICOM series that holds several volumes is split. Reads no file.

Planes belong apart where matrix, pixel spacing or orientation differ (localizers), and where several share a place. These are
told apart by their marks: time points, echoes, b-values, phases, parts of complex images. A mark divides where it takes the
same values at every place; a time that differs from slice to slice does not. The key of a part says what told it apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medseg.scans.headers import MARKS, Slice, normal
from medseg.scans.names import digest

_SAME_DIRECTION = 1e-2  # cosines; a degree apart is another plane, 0.3° is rounding
_SAME_SPACING = 1e-2  # of the spacing
_SAME_PLACE_MM = 1e-2
_SURE = MARKS.index("AcquisitionNumber")  # marks before it say what differs; those from it on only that something does
_CLOCKS = ("AcquisitionTime", "SeriesTime", "ContentTime")


@dataclass(frozen=True)
class Part:
    """Planes of a series, and what tells them from the others; ``problem`` says why they make no volume."""

    key: str
    slices: tuple[Slice, ...]
    problem: str = ""

    def below(self, key: str) -> Part:
        return replace(self, key=";".join(filter(None, (key, self.key))))


def parts(members: Sequence[Slice]) -> Iterator[Part]:
    """The volumes of one series."""
    if not members:
        return
    unnamed = "" if members[0].series else f"unnamed={digest(*sorted(map(_likeness, members)))}"
    pictures = [entry for entry in members if entry.is_picture]
    for entry in pictures:
        frame = "" if entry.frame is None else f";frame={entry.frame}"
        yield Part(f"instance={digest(_likeness(entry))}{frame}", (entry,)).below(unnamed)
    planes = _by_plane([entry for entry in members if not entry.is_picture])
    for key, plane in planes.items():
        for part in _by_mark(plane):
            yield part.below(key if len(planes) > 1 or pictures else "").below(unnamed)


def _likeness(entry: Slice) -> str:
    """What an image is known by: its UID, or if that was stripped, what else the header says of it."""
    return entry.instance or repr((entry.number, entry.position, entry.orientation, sorted(entry.marks.items())))


def _by_plane(members: Sequence[Slice]) -> dict[str, list[Slice]]:
    """Split by matrix, pixel spacing and orientation, under a key that says them."""
    parts: dict[str, list[Slice]] = {}
    known: dict[tuple[Any, ...], str] = {}
    for entry in sorted(members, key=_in_order):
        plane = (entry.matrix, entry.pixel_spacing, entry.orientation, entry.position is None)
        if plane not in known:
            same = (key for key, part in parts.items() if _same_plane(part[0], entry))
            known[plane] = next(same, "") or _plane_key(entry)
        parts.setdefault(known[plane], []).append(entry)
    return parts


def _in_order(entry: Slice) -> tuple[int, int, str]:
    return entry.number, entry.frame or 0, entry.instance


def _same_plane(one: Slice, two: Slice) -> bool:
    if one.matrix != two.matrix or (one.position is None) != (two.position is None):
        return False
    return _close(one.orientation, two.orientation, _SAME_DIRECTION) and _close(
        one.pixel_spacing, two.pixel_spacing, _SAME_SPACING * max(one.pixel_spacing or (1.0,))
    )


def _close(one: Sequence[float] | None, two: Sequence[float] | None, tolerance: float) -> bool:
    if one is None or two is None:
        return one is two
    return all(abs(a - b) <= tolerance for a, b in zip(one, two, strict=True))


def _plane_key(entry: Slice) -> str:
    cosines = ",".join(f"{round(c, 2) + 0.0:.2f}" for c in entry.orientation or ())
    spacing = "x".join(f"{mm:.3g}" for mm in entry.pixel_spacing or ())
    placed = "" if entry.position else ";unplaced"
    return f"matrix={'x'.join(map(str, entry.matrix))};spacing={spacing};orientation={cosines}{placed}"


def _by_mark(plane: Sequence[Slice]) -> Iterator[Part]:
    """Split where several planes share a place; each volume in ascending position."""
    if plane[0].position is None or plane[0].orientation is None:
        yield Part("", tuple(sorted(plane, key=_in_order)))  # said when it is read: no position
        return
    # One normal for all: the slices' own differ in the last digits, which far from the origin is a millimetre.
    x, y, z = normal(plane[0].orientation).tolist()
    depths = [(x * a + y * b + z * c, entry) for entry in plane for a, b, c in (entry.position or (),)]
    depths.sort(key=lambda pair: (pair[0], _in_order(pair[1])))
    named = dict.fromkeys(keyword for entry in plane for keyword in entry.marks)
    others = sorted(keyword for keyword in named if keyword not in MARKS)
    # The last two tell files of several planes apart, which hold a volume each.
    keywords = [*MARKS[:_SURE], *others, *MARKS[_SURE:], "InstanceNumber", "instance"]
    yield from _divide(_placed(depths), keywords)


def _placed(depths: Sequence[tuple[float, Slice]]) -> list[tuple[int, Slice]]:
    """The slices with a number for the place where they lie, equal for those at the same depth."""
    place, last = 0, depths[0][0]
    placed = []
    for depth, entry in depths:
        if depth - last > _SAME_PLACE_MM:
            place, last = place + 1, depth
        placed.append((place, entry))
    return placed


def _divide(placed: Sequence[tuple[int, Slice]], keywords: Sequence[str]) -> Iterator[Part]:
    """Divide by the first of the marks that does, and each group by those that follow, until no place holds two slices."""
    alone = len({place for place, _ in placed}) == len(placed)
    for n, keyword in enumerate(keywords):
        if alone and keyword != "StackID":
            break
        groups: dict[str, list[tuple[int, Slice]]] = defaultdict(list)
        for place, entry in placed:
            groups[_value(entry, keyword)].append((place, entry))
        if len(groups) > 1 and (_divides(groups) if not alone else 2 * len(groups) <= len(placed)):
            for value in sorted(groups, key=_natural):
                for part in _divide(groups[value], keywords[n + 1 :]):
                    yield part.below(f"{keyword}={value}")
            return
    if alone:
        yield Part("", tuple(entry for _, entry in placed))
    else:
        yield from _by_order(placed)


def _divides(groups: dict[str, list[tuple[int, Slice]]]) -> bool:
    """Whether a mark takes the same values at every place (fewer where slices are missing).

    A time that differs from slice to slice does not; nor does a mark that only a doubled slice has in another value.
    """
    held: dict[int, Counter[str]] = defaultdict(Counter)
    for value, members in groups.items():
        for place, _ in members:
            held[place][value] += 1
    usual = max(held.values(), key=Counter.total)
    return all(values <= usual for values in held.values())


def _by_order(placed: Sequence[tuple[int, Slice]]) -> Iterator[Part]:
    """The first slice of every place, the second of every place …, in the order of their numbers or times."""
    by_place: dict[int, list[Slice]] = defaultdict(list)
    for place, entry in placed:
        by_place[place].append(entry)
    counts = Counter(map(len, by_place.values()))
    everything = tuple(entry for _, entry in placed)
    usual = counts.most_common(1)[0][0]
    if len(counts) > 1:
        odd = len(by_place) - counts[usual]
        yield Part(
            "",
            everything,
            (
                f"most positions hold {usual} slice(s), {odd} position(s) another number, and no tag says which belong together; "
                "remove the doubled files or copy the missing ones"
            ),
        )
        return
    for order in _ORDERS:
        if all(len(set(map(order, members))) == usual for members in by_place.values()):
            for members in by_place.values():
                members.sort(key=order)
            yield from (Part(f"volume={n}", tuple(m[n] for m in by_place.values())) for n in range(usual))
            return
    yield Part(
        "",
        everything,
        f"every position holds {usual} slices, and no tag says which belong together; export the series again",
    )


def _value(entry: Slice, keyword: str) -> str:
    """A mark as it is compared: ``"20.0"`` is ``"20"``, and so is what single precision makes of it."""
    if keyword == "InstanceNumber":
        return str(entry.number)
    if keyword == "instance":
        return digest(entry.instance)
    text = entry.marks.get(keyword, "")
    try:
        return text if keyword in _CLOCKS else f"{float(text):.7g}"
    except ValueError:
        return text


def _natural(value: str) -> tuple[Any, ...]:
    """``"2" < "10"``."""
    words = re.findall(r"\d+\.?\d*|\D+", value)
    return tuple((0, float(word), "") if word[0].isdigit() else (1, 0.0, word) for word in words)


_ORDERS: tuple[Callable[[Slice], Any], ...] = (
    lambda entry: (entry.number, entry.frame or 0),
    lambda entry: _natural(entry.marks.get("AcquisitionTime", "")),
    lambda entry: _natural(entry.marks.get("ContentTime", "")),
)
