"""What the values of masks mean: label tables from what a user or a data set says, or from the labels themselves.

A data set that has boxes and no mask numbers the classes of its boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg.errors import MedsegError
from medseg.scans import read_mask
from medseg.scans.boxes import classes_of
from medseg.scans.reading import ScanError
from medseg.scans.segments import IGNORE, Segment, canonical, check_rules, numbered, renamed
from medseg.structures import Case, Fault, LabelTable, Source
from medseg.volume import Array

BACKGROUND = "background"
MOST_VALUES = 1000
NAMED = ("seg", "rtstruct")
"""Kinds of labels whose segments have names; all others hold values."""

Names = Mapping[Any, Any] | Sequence[str]
"""``{1: "liver"}``, ``{"liver": 1}``, ``{"whole": [1, 2]}`` or ``["liver", …]``."""


@dataclass(frozen=True)
class LabelOptions:
    """What a user says of the labels of a data set: see `label_table`, and `picked` for ``match``."""

    names: Names | None
    ignore: int | None
    regions: Mapping[str, Sequence[int]] | None
    paint: Sequence[int] | None
    match: Mapping[str, str] | None = None

    def apply(self, cases: Sequence[Case], progress: bool) -> tuple[list[Case], LabelTable | None, list[Fault]]:
        """The cases with the segments that are meant, what they are called, and cases of which none is meant."""
        kept: list[Case] = []
        faults: list[Fault] = []
        check_rules(self.match or {})
        for case in cases:
            try:
                if self.match and case.label is not None and case.label.kind in NAMED:
                    case = replace(case, label=picked(case.label, self.match))
                kept.append(case)
            except ScanError as error:
                faults.append(Fault(case.id, error.kind, str(error)))
        masks = [case.label for case in kept if case.label]
        boxes = [case.boxes for case in kept if case.boxes is not None]
        if not masks and not boxes:
            return kept, None, faults
        names = self.names or list(self.match or ())
        if not names and masks:
            names = found_labels(masks, ignore=self.ignore, progress=progress)
        elif not names:
            names = class_names(sorted({name for marked in boxes for name in classes_of(marked)}), "boxes")
        table = label_table(names, ignore=self.ignore, regions=self.regions, paint=self.paint)
        known = {canonical(name) for name in (*table.names.values(), *table.regions, IGNORE)}
        unknown = [name for name in self.match or () if canonical(name) not in known]
        if unknown:
            raise MedsegError(
                f"label_match: {', '.join(unknown)} is none of the labels {', '.join(table.names.values())}; name the same ones"
            )
        return kept, table, faults


def label_table(
    names: Names,
    *,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
) -> LabelTable:
    """A label table from its plain description.

    Args:
        names: ``{1: "liver"}``, ``{"liver": 1}``, or ``["liver", …]`` counted from 1 (from 0 where the first is
            ``"background"``). Background may be named or not. A name may stand for several values
            (``{"whole": [1, 2]}``, as nnU-Net writes regions): then each entry is a region.
        ignore: mask value that is left out of loss and metrics; an entry named ``"ignore"`` says the same.
        regions: name → values of regions that overlap.
        paint: the value that each region is painted with; may be left out where each region has one value that no later
            region holds.

    Raises:
        MedsegError: no label, two of one value or name, or a region that cannot be painted.
    """
    values = _by_name(names)
    ignored = values.pop("ignore", None)
    if ignored is not None and len(ignored) == 1:
        ignore = ignored[0] if ignore is None else ignore
    values = {name: held for name, held in values.items() if held != (0,)}
    if any(len(held) > 1 for held in values.values()):
        regions = {**values, **(regions or {})}
        named = {v: f"value_{v}" for held in values.values() for v in held if v}
    else:
        named = {}
        for name, (value,) in values.items():
            if value in named:
                raise MedsegError(
                    f"labels: {named[value]!r} and {name!r} both have value {value}; give each a value of its own"
                )
            named[value] = name
    parts = {str(name): tuple(int(v) for v in held) for name, held in (regions or {}).items()}
    return LabelTable(named, ignore, parts, tuple(paint) if paint is not None else _paint(parts))


def found_labels(masks: Sequence[Source], *, ignore: int | None = None, progress: bool = False) -> dict[int, str]:
    """Value → ``"label_<value>"`` for every value above 0 in ``masks``; masks that cannot be read are passed over.

    The segments of SEG and the regions of RTSTRUCT files have names, which are numbered as `medseg.scans.segments.numbered`
    does.

    Raises:
        MedsegError: no mask holds a label, the masks hold so many values that they are no labels, or some labels have values
            and others names.
    """
    named = [source for source in masks if source.kind in NAMED]
    if named:
        if len(named) < len(masks):
            raise MedsegError(
                f"{len(named)} labels are SEG or RTSTRUCT, which have names, and {len(masks) - len(named)} are masks of values; "
                "say which value each name has with data.label_names"
            )
        return _found_names(named, progress)
    found: set[int] = set()
    for source in tqdm(masks, desc="finding labels", unit="mask", disable=not progress, leave=False, delay=1):
        try:
            mask, _ = read_mask(source)
        except ScanError:
            continue  # `check` says why
        found.update(present(mask))
        if len(found) > MOST_VALUES:
            raise MedsegError(
                f"{source.files[0]}: the masks hold more than {MOST_VALUES} values; are they images? "
                "Expected a few whole numbers: look at data.labels"
            )
    values = sorted(v for v in found if v > 0 and v != ignore)
    if not values:
        raise MedsegError(
            f"none of the {len(masks)} masks holds a label (a value above 0); is data.labels the right folder?"
        )
    return {value: f"label_{value}" for value in values}


def class_names(classes: Iterable[str], where: str) -> dict[int, str]:
    """Value → name for the classes that boxes name: numbered from 1 in their order, or ``"label_<value>"`` where all are values.

    Args:
        where: what the annotations are called in messages.

    Raises:
        MedsegError: no class is named.
    """
    found = list(dict.fromkeys(name for name in classes if name))
    if not found:
        raise MedsegError(f"{where}: no annotation names a class; say which there are with data.label_names=[lesion]")
    if all(name.isdecimal() and int(name) > 0 for name in found):
        return {int(name): f"label_{int(name)}" for name in found}
    return dict(enumerate(found, 1))


def segments_of(source: Source) -> list[tuple[Segment, ...]]:
    """What each file of a SEG or RTSTRUCT source describes. Raises ScanError."""
    if source.kind == "seg":
        from medseg.scans import seg

        return [seg.segments(path) for path in source.files]
    from medseg.scans import rtstruct

    return [rtstruct.rois(path) for path in source.files]


def picked(source: Source, rules: Mapping[str, str]) -> Source:
    """A SEG or RTSTRUCT of which only those segments count whose names fit a rule; each is then called like its rule.

    Raises:
        ScanError: ``unreadable``; ``unknown_label`` where no rule fits anything, with the names that there are.
    """
    described = segments_of(source)
    key = renamed(described, rules)
    if not key:
        there = ", ".join(repr(segment.label) for segments in described for segment in segments) or "nothing"
        raise ScanError(
            f"{source.files[0].name}: it holds {there}, and data.label_match fits none of it; widen an expression, or leave "
            "the case out",
            "unknown_label",
        )
    return replace(source, key=key)


def _found_names(sources: Sequence[Source], progress: bool) -> dict[int, str]:
    described: list[Sequence[Segment]] = []
    for source in tqdm(sources, desc="finding labels", unit="file", disable=not progress, leave=False, delay=1):
        try:
            described += segments_of(source)
        except ScanError:
            continue  # `check` says why
    found = numbered(described)
    if not found:
        raise MedsegError(
            f"none of the {len(sources)} SEG or RTSTRUCT marks anything; draw something, or leave them out"
        )
    return found


def present(mask: Array) -> list[int]:
    """The values that occur in an integer mask, ascending."""
    if mask.dtype.itemsize == 1:
        counts = np.bincount(mask.view(np.uint8).ravel(), minlength=256)
        return sorted(int(v) for v in np.flatnonzero(counts).astype(np.uint8).view(mask.dtype))
    return [int(v) for v in np.unique(mask)]


def _by_name(names: Names) -> dict[str, tuple[int, ...]]:
    """Name → mask values, whichever way round they were given."""
    if isinstance(names, str) or not isinstance(names, (Mapping, Sequence)):
        raise MedsegError(f"labels: expected {{1: liver}}, {{liver: 1}} or [liver], found {names!r}")
    if not isinstance(names, Mapping):
        start = 0 if names and str(names[0]).lower() == BACKGROUND else 1
        return _unique((str(name), (value,)) for value, name in enumerate(names, start))
    pairs: list[tuple[str, tuple[int, ...]]] = []
    for key, value in names.items():
        if isinstance(value, (list, tuple)):
            pairs.append((str(key), tuple(_whole(v) for v in value)))
        elif _is_whole(key) and not _is_whole(value):
            pairs.append((str(value), (_whole(key),)))
        elif _is_whole(value):
            pairs.append((str(key), (_whole(value),)))
        else:
            raise MedsegError(f"labels: expected a whole number and a name, found {key!r}: {value!r}")
    return _unique(pairs)


def _unique(pairs: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, values in pairs:
        if name in found:
            raise MedsegError(
                f"labels: the name {name!r} stands for {found[name]} and for {values}; name each value once"
            )
        found[name] = values
    return found


def _paint(regions: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The one value of each region that no later region holds: painting in order then gives every voxel its value back."""
    painted = []
    names = list(regions)
    for number, name in enumerate(names):
        later = {v for other in names[number + 1 :] for v in regions[other]}
        own = sorted(set(regions[name]) - later)
        if len(own) != 1:
            raise MedsegError(
                f"regions: {name!r} holds {own or 'no value'} beside the regions after it, expected one value; order the regions "
                "from whole to core, or say with which value each is painted"
            )
        painted.append(own[0])
    return tuple(painted)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("-").isdigit())


def _whole(value: object) -> int:
    if not _is_whole(value):
        raise MedsegError(f"labels: expected whole numbers as mask values, found {value!r}")
    return int(str(value).strip())
