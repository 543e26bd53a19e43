"""Which of the volumes that were found make one case: files by their channel number, DICOM series by rules. Reads no pixels."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from medseg.errors import MedsegError
from medseg.scans.find import Found, FoundSource
from medseg.scans.names import case_id, channel_of, joined_stem, stem, suffix
from medseg.scans.reading import ScanError
from medseg.structures import Fault, Source


@dataclass(frozen=True)
class Examination:
    """The channels of one case. ``names`` are those under which its label or table row may be filed, the closest first."""

    id: str
    sources: tuple[Source, ...]
    names: tuple[str, ...]
    patient: str = ""


@dataclass(frozen=True)
class Rule:
    """A channel, and by what its DICOM series is recognised: a regular expression over modality and series description."""

    name: str
    match: str = ""

    def fits(self, source: Source) -> bool:
        return re.search(self.match, f"{source.modality} {source.description}", re.IGNORECASE) is not None


def rules_of(channels: Sequence[str] | Mapping[str, str]) -> list[Rule]:
    """Channels by name alone, or as name → regular expression. Raises MedsegError for what is no regular expression."""
    rules = [Rule(name, match) for name, match in channels.items()] if isinstance(channels, Mapping) else [
        Rule(name) for name in channels
    ]  # fmt: skip
    for rule in rules:
        try:
            re.compile(rule.match)
        except re.error as error:
            raise MedsegError(f"channel {rule.name!r}: {rule.match!r} is no regular expression ({error})") from None
    return rules


def examinations(
    found: Found, rules: Sequence[Rule] | None, known: Collection[str] = ()
) -> tuple[list[Examination], list[Fault]]:
    """Group what was found into cases, sorted by id, and say which channels are missing.

    Args:
        rules: a rule a channel; None where their number shall be told from the names of the files.
        known: names of labels or rows: a file called like one of them is a case of its own, whatever its name ends in.
    """
    files = [entry for entry in found.sources if entry.source.kind != "dicom"]
    series = [entry for entry in found.sources if entry.source.kind == "dicom"]
    count = sources_per_case(found, len(rules)) if rules is not None else guess_channels(files, known)
    names = [rule.name for rule in rules or ()] or [str(number) for number in range(count)]
    from_files, faults = _from_files(files, count, names, known)
    from_series, more = _from_series(series, count, list(rules or ()))
    return _distinct(sorted([*from_files, *from_series], key=lambda e: e.id), [*faults, *more])


def _distinct(examinations: Sequence[Examination], faults: Sequence[Fault]) -> tuple[list[Examination], list[Fault]]:
    """Leave out every examination whose id another one bears too (``p1.nii.gz`` beside ``p1_0000.nii.gz``)."""
    count = Counter(entry.id for entry in examinations)
    twice = [
        Fault(name, "duplicate_id", f"{number} scans would bear this id; rename all but one of them")
        for name, number in count.items()
        if number > 1
    ]
    return [entry for entry in examinations if count[entry.id] == 1], [*faults, *twice]


def sources_per_case(found: Found, channels: int) -> int:
    """How many files make a case of ``channels`` channels: a colour picture holds three of them."""
    first = next((entry.source for entry in found.sources if entry.source.kind == "picture"), None)
    return max(1, channels // 3) if first is not None and channels % 3 == 0 and is_colour(first) else channels


def is_colour(source: Source) -> bool:
    """Whether a picture reads as three channels; False where it cannot be read at all."""
    if source.kind != "picture":
        return False
    from medseg.scans import picture

    try:
        return picture.is_colour(source.files[0])
    except ScanError:
        return False


def guess_channels(files: Sequence[FoundSource], known: Collection[str] = ()) -> int:
    """The number of channels that file names speak of: all end in ``_0000`` … ``_000N``, the same for every case.

    One where the full names are those of labels, or where a single group of many files is more likely a numbered list.
    """
    stems = [stem(entry.relative.name) for entry in files]
    numbered = [channel_of(name) for name in stems]
    if not files or any(n is None for n in numbered) or any(name in known for name in stems):
        return 1
    groups: dict[tuple[PurePath, str], set[int]] = defaultdict(set)
    for entry, number in zip(files, numbered, strict=True):
        if number is not None:
            groups[entry.relative.parent, number[0]].add(number[1])
    most = max(max(numbers) for numbers in groups.values()) + 1
    named = any(base in known for _, base in groups)
    plausible = named or len(groups) > 1 or most <= 4
    return most if plausible and all(0 in numbers for numbers in groups.values()) and most <= 64 else 1


def match_one(names: Sequence[str], index: Mapping[str, Sequence[FoundSource]]) -> FoundSource | None:
    """What is filed under the closest of ``names``, if only one thing is."""
    return next((index[name][0] for name in names if len(index.get(name, ())) == 1), None)


def label_names(entry: FoundSource, label_suffix: str) -> list[str]:
    """The names that a label is filed under: its stem and joined path without ``label_suffix``, and its id."""
    plain = [joined_stem(entry.relative), stem(entry.relative.name)] if entry.source.kind != "dicom" else []
    cut = [name.removesuffix(label_suffix) for name in plain if name.endswith(label_suffix)]
    return list(dict.fromkeys([*cut, *plain, entry.id]))


def names_of(entry: FoundSource) -> list[str]:
    """The names under which the label of a volume may be filed, with and without a channel number."""
    if entry.source.kind == "dicom":
        return [entry.id, *_folders(entry.relative)]
    plain = [entry.id, joined_stem(entry.relative), stem(entry.relative.name)]
    return list(dict.fromkeys([*plain, *(channel[0] for name in plain if (channel := channel_of(name)))]))


def _from_files(
    files: Sequence[FoundSource], count: int, names: Sequence[str], known: Collection[str]
) -> tuple[list[Examination], list[Fault]]:
    groups: dict[tuple[PurePath, str], dict[int, FoundSource]] = defaultdict(dict)
    whole: list[tuple[PurePath, str, FoundSource]] = []
    numbers = Counter((e.relative.parent, c[0]) for e in files if (c := channel_of(stem(e.relative.name))) is not None)
    for entry in files:
        name, parent = stem(entry.relative.name), entry.relative.parent
        channel = channel_of(name)
        single = channel is not None and channel[1] == 0 and numbers[parent, channel[0]] == 1
        if channel is None or name in known or (count == 1 and not single) or channel[1] in groups[parent, channel[0]]:
            whole.append((parent, name, entry))
        else:
            groups[parent, channel[0]][channel[1]] = entry
    ids = _ids([*((parent, base) for (parent, base), held in groups.items() if held), *((p, n) for p, n, _ in whole)])
    examinations: list[Examination] = []
    faults: list[Fault] = []
    for (parent, base), held in groups.items():
        if not held:
            continue
        name = ids[parent, base]
        lost = [number for number in range(count) if number not in held]
        extra = [number for number in sorted(held) if number >= count]
        ending = suffix(next(iter(held.values())).relative.name)
        if lost:
            faults.append(
                Fault(
                    name,
                    "missing_channel",
                    f"channel {lost[0]} ({names[lost[0]]}) is missing: expected {base}_{lost[0]:04d}{ending} beside "
                    f"{', '.join(sorted(entry.relative.name for entry in held.values()))}",
                )
            )
        elif extra:
            reason = f"expected {count} channel(s), found also {base}_{extra[0]:04d}{ending}; name every channel in data.channels"
            faults.append(Fault(name, "extra_channel", reason))
        else:
            sources = tuple(held[number].source for number in range(count))
            examinations.append(Examination(name, sources, (_joined(parent, base), base, held[0].id)))
    alone = Counter((parent, base) for parent, base, _ in whole)
    for parent, base, entry in whole:
        name = ids[parent, base] if alone[parent, base] == 1 else entry.id
        sources = (entry.source,) if count == 1 else _volumes_of_one_file(entry.source, count)
        if len(sources) == count:
            examinations.append(Examination(name, sources, (_joined(parent, base), base, entry.id)))
            continue
        expected = f"expected {count} channels ({', '.join(names)}) as {base}_0000, {base}_0001 … or as one 4D file"
        faults.append(Fault(name, "missing_channel", f"{expected}, found {entry.relative.as_posix()} alone"))
    return examinations, faults


def _volumes_of_one_file(source: Source, count: int) -> tuple[Source, ...]:
    """The channels of a 4D NIfTI file of ``count`` volumes, as MSD stores them; empty for any other file."""
    if source.kind != "nifti":
        return ()
    from medseg.scans import nifti

    try:
        held = nifti.volume_count(source.files[0])
    except ScanError:
        return ()
    return tuple(Source("nifti", source.files, str(number)) for number in range(count)) if held == count else ()


def _from_series(
    series: Sequence[FoundSource], count: int, rules: Sequence[Rule]
) -> tuple[list[Examination], list[Fault]]:
    faults: list[Fault] = []
    if count == 1:
        chosen = [entry for entry in series if not rules or rules[0].fits(entry.source)]
        if series and not chosen:
            reason = f"no DICOM series matches {rules[0].match!r}, the rule of channel {rules[0].name}; found {_listed(series)}"
            faults.append(Fault("", "missing_channel", reason))
        return [Examination(e.id, (e.source,), (e.id, *_folders(e.relative)), e.patient) for e in chosen], faults
    by_study: dict[str, list[FoundSource]] = defaultdict(list)
    for entry in series:
        by_study[entry.study].append(entry)
    examinations: list[Examination] = []
    for members in by_study.values():
        chosen, reason = _choose(members, count, rules)
        if reason:
            faults.append(Fault(members[0].id, "missing_channel", reason))
            continue
        sources = tuple(entry.source for entry in chosen)
        common = _common([entry.relative for entry in chosen])
        names = (chosen[0].id, *_folders(common))
        examinations.append(Examination(chosen[0].id, sources, names, chosen[0].patient))
    return examinations, faults


def _choose(members: Sequence[FoundSource], count: int, rules: Sequence[Rule]) -> tuple[list[FoundSource], str]:
    """A series for each rule, or why there is none."""
    if len(rules) != count or not all(rule.match for rule in rules):
        return [], (
            f"{count} channels of DICOM need a rule each that says which series is which: set plan.channels[…].match to a "
            f"regular expression over modality and series description; found {_listed(members)}"
        )
    chosen = []
    for number, rule in enumerate(rules):
        fitting = [entry for entry in members if rule.fits(entry.source)]
        if len(fitting) != 1:
            what = "is missing: no series matches" if not fitting else f"is ambiguous: {_listed(fitting)} match"
            rest = "" if fitting else f"; found {_listed(members)}"
            return [], f"channel {number} ({rule.name}) {what} {rule.match!r}{rest}"
        chosen.append(fitting[0])
    return chosen, ""


def _listed(series: Sequence[FoundSource]) -> str:
    return ", ".join(entry.id for entry in series[:6]) + (" …" if len(series) > 6 else "")


def _ids(bases: Sequence[tuple[PurePath, str]]) -> dict[tuple[PurePath, str], str]:
    count = Counter(base for _, base in set(bases))
    return {(parent, base): case_id(base if count[base] == 1 else _joined(parent, base)) for parent, base in bases}


def _joined(parent: PurePath, base: str) -> str:
    return "__".join([*parent.parts, base])


def _folders(relative: PurePath) -> tuple[str, ...]:
    """The folder of a series and those around it, innermost first, and the whole path joined."""
    return tuple(dict.fromkeys([*reversed(relative.parts), "__".join(relative.parts)])) if relative.parts else ()


def _common(paths: Sequence[PurePath]) -> PurePath:
    """The innermost folder that holds all of ``paths``."""
    common = paths[0]
    while not all(path.is_relative_to(common) for path in paths):
        common = common.parent
    return common
