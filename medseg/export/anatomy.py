"""What the name of a label means in codes: which structure or lesion of the body it is, on which side, and where it lies.

Codes come from ``anatomy.yaml`` and from a file of the user's in the same form, never from anywhere else: a name that is not
understood gets the code of any anatomical structure, and its label says the rest. Knows nothing of masks or of DICOM objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg.errors import MedsegError, all_at_once
from medseg.export.codes import Code

BUILT_IN = Path(__file__).with_name("anatomy.yaml")

_SILENT = frozenset(
    (
        "of",
        "in",
        "the",
        "a",
        "an",
        "whole",
        "core",
        "region",
        "area",
        "primary",
        "primarie",
        "total",
        "all",
        "structure",
    )
)
"""Words that do not change what a name means ("primarie": plurals are compared without their s)."""
_NEGATIONS = frozenset(("no", "non", "not", "without", "normal", "healthy"))
_PARTS = {
    "categories": {"code", "scheme", "meaning"},
    "modifiers": {"code", "scheme", "meaning", "also"},
    "names": {"code", "scheme", "meaning", "also", "category", "region"},
}

Words = frozenset[str]


@dataclass(frozen=True)
class Anatomy:
    """What a label is.

    Args:
        category: of CID 7150: anatomical structure, tissue, body substance, morphologically abnormal structure, object.
        type: what it is.
        modifier: its side, or which part of it.
        region: where a lesion lies, if the name says so.
        region_modifier: the side of that.
    """

    category: Code
    type: Code
    modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None


@dataclass(frozen=True)
class _Entry:
    code: Code
    category: str
    region: str = ""


@dataclass(frozen=True)
class AnatomyTable:
    """Names of labels → codes; made by `load`."""

    categories: Mapping[str, Code]
    modifiers: Mapping[Words, Code]
    entries: Mapping[Words, _Entry]
    _lesions: tuple[Words, ...] = field(init=False)

    def __post_init__(self) -> None:
        lesions = [words for words, entry in self.entries.items() if entry.category == "lesion"]
        object.__setattr__(self, "_lesions", tuple(sorted(lesions, key=lambda words: (-len(words), sorted(words)))))

    @classmethod
    def load(cls, extra: Path | None = None) -> AnatomyTable:
        """The built-in table, and over it the names of a file of the user's.

        Raises:
            MedsegError: the file is not readable, or has entries that are not understood; all of them are named.
        """
        bodies = [_read(BUILT_IN), *([_read(Path(extra))] if extra is not None else [])]
        categories: dict[str, Code] = {}
        modifiers: dict[Words, Code] = {}
        entries: dict[Words, _Entry] = {}
        for body in bodies:
            categories.update({name: _code(entry) for name, entry in body.get("categories", {}).items()})
            for name, entry in body.get("modifiers", {}).items():
                modifiers.update({key: _code(entry) for key in _keys(name, entry)})
            for name, entry in body.get("names", {}).items():
                made = _Entry(_code(entry), str(entry.get("category", "structure")), str(entry.get("region", "")))
                entries.update(dict.fromkeys(_keys(name, entry), made))
        table = cls(categories, modifiers, entries)
        _check_references(table, extra or BUILT_IN)
        return table

    def code(self, name: str) -> Anatomy:
        """What a label of this name is; any anatomical structure, where the name is not understood.

        A name that begins with that of a model (``organs/liver``) is read without it.
        """
        *before, last = name.split("/")
        found = self._find(name)
        if found is None and not any(self._find(part) for part in before):
            found = self._find(last)
        if found is not None:
            return found
        structure = self.categories["structure"]
        return Anatomy(structure, structure, self._without_modifiers(_words(last))[1])

    def _find(self, name: str) -> Anatomy | None:
        words = _words(name)
        entry, modifier = self._exact(words)
        if entry is not None:
            region = self._exact(_words(entry.region))[0] if entry.region else None
            where, side = (region.code, modifier) if region else (None, None)
            return Anatomy(self.categories[entry.category], entry.code, None if region else modifier, where, side)
        lesion = next((words_of for words_of in self._lesions if words_of <= words), None)
        if lesion is None or words & _NEGATIONS:
            return None
        entry = self.entries[lesion]
        region, side = self._exact(words - lesion)
        where = region.code if region and region.category in ("structure", "tissue") else None
        return Anatomy(self.categories["lesion"], entry.code, region=where, region_modifier=side if where else None)

    def _exact(self, words: Words) -> tuple[_Entry | None, Code | None]:
        """The entry of just these words; or of these without side or number, and what the side is."""
        if words in self.entries:
            return self.entries[words], None
        rest, modifier = self._without_modifiers(words)
        return self.entries.get(rest), modifier

    def _without_modifiers(self, words: Words) -> tuple[Words, Code | None]:
        found = [key for key in self.modifiers if key <= words]
        rest = words.difference(*found)
        rest = frozenset(word for word in rest if not word.isdigit())
        return rest, self.modifiers[found[0]] if len(found) == 1 else None


def _words(name: str) -> Words:
    """The words of a name: ``"Lung_upper-lobeLeft"`` → lung, upper, lobe, left."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W_]+", spaced.lower())
    return frozenset(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words) - _SILENT


def _keys(name: str, entry: Mapping[str, Any]) -> Iterator[Words]:
    yield from (_words(str(text)) for text in (name, *entry.get("also", ())))


def _code(entry: Mapping[str, Any]) -> Code:
    return Code(str(entry["code"]), str(entry.get("scheme", "SCT")), str(entry["meaning"]))


def _read(path: Path) -> Mapping[str, Any]:
    """The parts of a table. Raises MedsegError for what is not understood."""
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise MedsegError(f"anatomy {path}: expected a YAML file, {reason}") from None
    if not isinstance(body, dict) or not set(body) <= set(_PARTS):
        found = ", ".join(map(str, body)) if isinstance(body, dict) else type(body).__name__
        raise MedsegError(
            f"anatomy {path}: expected {', '.join(_PARTS)}; found {found}. See medseg/export/anatomy.yaml"
        )
    problems = [
        problem
        for part, allowed in _PARTS.items()
        for name, entry in (body.get(part) or {}).items()
        if (problem := _problem(part, str(name), entry, allowed))
    ]
    if problems:
        raise all_at_once(f"anatomy {path}: entries that are not understood:", problems)
    return {part: body.get(part) or {} for part in _PARTS}


def _problem(part: str, name: str, entry: Any, allowed: set[str]) -> str:
    """What is wrong with one entry; empty where nothing is."""
    if not isinstance(entry, dict):
        return f"{part}: {name}: expected {{code: …, meaning: …}}, found {entry!r}"
    unknown, missing = sorted(set(entry) - allowed), sorted({"code", "meaning"} - set(entry))
    if unknown or missing:
        return f"{part}: {name}: " + (f"no {', '.join(missing)}" if missing else f"{', '.join(unknown)} is not known")
    value, scheme, meaning = _code(entry)
    if not value or len(value) > 16 or not scheme or len(scheme) > 16 or not meaning or len(meaning) > 64:
        return f"{part}: {name}: code and scheme have at most 16 characters, the meaning at most 64"
    if not isinstance(entry.get("also", []), list):
        return f"{part}: {name}: also: expected a list of names, found {entry['also']!r}"
    return ""


def _check_references(table: AnatomyTable, path: Path) -> None:
    """Raises MedsegError where an entry names a category or region that is not in the table."""
    problems = []
    for words, entry in table.entries.items():
        name = " ".join(sorted(words))
        if entry.category not in table.categories:
            problems.append(f"{name}: category {entry.category!r}: expected one of {', '.join(table.categories)}")
        if entry.region and table._exact(_words(entry.region))[0] is None:
            problems.append(f"{name}: region {entry.region!r} is not a name of the table")
    if problems:
        raise all_at_once(f"anatomy {path}: entries that are not understood:", problems)
