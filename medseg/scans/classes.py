"""The class of a case, as tables and folders give it: one name, or several with ``;`` between them. Reads no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medseg.scans.reading import ScanError
from medseg.structures import Case

BETWEEN = ";"
NONE = "none"
"""The cell of a case that shows none of several classes; an empty cell says that nobody knows."""


def named_classes(cell: str | None) -> tuple[str, ...] | None:
    """The names in a cell, each once, in its order; ``()`` for ``none``, None where nothing is said."""
    names = tuple(dict.fromkeys(name for part in (cell or "").split(BETWEEN) if (name := part.strip())))
    if not names:
        return None
    return () if [name.lower() for name in names] == [NONE] else names


def classes_of(cases: Iterable[Case]) -> tuple[str, ...]:
    """Every class that some case has, sorted."""
    return tuple(sorted({name for case in cases for name in named_classes(case.class_name) or ()}))


def true_classes(case: Case, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes that a case shows, in the order of ``classes``.

    Raises:
        ScanError: nobody says which, or a name is not among ``classes``.
    """
    found = named_classes(case.class_name)
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
