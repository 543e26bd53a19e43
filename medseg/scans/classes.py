"""The class of a case, as tables and folders give it: one name, or several with ``;`` between them. Reads no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from medseg.scans.reading import ScanError
from medseg.structures import Case

BETWEEN = ";"
NONE = "none"
"""The cell of a case that shows none of several classes; an empty cell says that nobody knows."""


def named_classes(cell: str | None, *, several: bool = True) -> tuple[str, ...] | None:
    """The names in a cell, each once, in its order; None where nothing is said.

    Args:
        several: whether a case may have several classes; then ``none`` stands for ``()``, else it is a name like any other.
    """
    names = tuple(dict.fromkeys(name for part in (cell or "").split(BETWEEN) if (name := part.strip())))
    if not names:
        return None
    return () if several and _is_none(names) else names


def _is_none(names: Sequence[str]) -> bool:
    return [name.lower() for name in names] == [NONE]


def classes_of(cases: Iterable[Case], *, several: bool = True) -> tuple[str, ...]:
    """Every class that some case has, sorted; ``several`` as above."""
    return tuple(sorted({name for case in cases for name in named_classes(case.class_name, several=several) or ()}))


def classed_by_folders(cases: Iterable[Case], folder: Path) -> list[Case]:
    """The cases with the first folder below ``folder`` as their class; one that lies in no such folder has none."""
    parents = [(case, case.images[0].files[0].relative_to(folder).parts[:-1]) for case in cases]
    return [replace(case, class_name=names[0] if names else None) for case, names in parents]


def true_classes(case: Case, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes that a case shows, in the order of ``classes``.

    Raises:
        ScanError: nobody says which, or a name is not among ``classes``.
    """
    found = named_classes(case.class_name, several=False)
    if found is not None and _is_none(found) and found[0] not in classes:
        found = ()
    if found is None:
        raise ScanError(
            f"case {case.id!r}: expected a class ({', '.join(classes)}), found none. Name it in the column class, or leave the "
            "case out with data.skip",
            "class",
        )
    unknown = [name for name in found if name not in classes]
    if unknown:
        raise ScanError(
            f"case {case.id!r}: class {', '.join(map(repr, unknown))} is not in the list ({', '.join(classes)}); mend its name, "
            "or leave the case out with data.skip",
            "class",
        )
    return tuple(name for name in classes if name in found)
