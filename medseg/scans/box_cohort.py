"""What data sets of pictures with files of boxes share: finding the pictures, joining a table, naming classes → a Cohort.

The files of boxes themselves are read elsewhere; no pixel is read here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg.errors import MedsegError, all_at_once
from medseg.scans.classes import classes_of
from medseg.scans.find import Found, find
from medseg.scans.labels import Names, class_names, label_table
from medseg.scans.matching import is_colour
from medseg.scans.picture import COLOURS
from medseg.scans.tables import read_table
from medseg.structures import Case, Cohort, Fault


def existing(path: Path, what: str) -> Path:
    """``path``, if it is there. Raises MedsegError."""
    if not path.exists():
        raise MedsegError(
            f"{what} {path}: no such file or folder; look at how it is spelt and at where you stand ({Path.cwd()})"
        )
    return path


def pictures_below(folder: Path, progress: bool) -> Found:
    """The images in a folder of any depth. Raises MedsegError where there is none."""
    found = find(existing(folder, "images"), progress=progress)
    if not found.sources:
        reasons = [fault.message for fault in found.unread[:10]] or ["the folder is empty"]
        raise all_at_once(f"images {folder}: expected pictures (PNG, JPEG, TIFF), found none:", reasons)
    return found


def box_cohort(
    cases: Iterable[Case],
    faults: Iterable[Fault],
    classes: Iterable[str],
    *,
    where: Path,
    label_names: Names | None = None,
    channels: Sequence[str] | None = None,
    skip: Collection[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Cohort:
    """A cohort whose cases have boxes and no mask, sorted by id.

    Args:
        classes: the names that the annotations use, in the order in which they are numbered from 1.
        where: what the data set is called in messages.
        label_names: ``{1: "cyst"}`` or ``["cyst", …]`` instead of what the annotations say.
        channels: a name a channel; by default the colours of a picture, or its modality.
        skip: ids of cases to leave out.
        table: a CSV table with a column ``id``; ``patient``, ``class`` and metadata are taken from it.
        columns: our name → the name in ``table``.

    Raises:
        MedsegError: no case is left, no class is known, or ``skip`` names a case that is not there.
    """
    cases, faults = list(cases), list(faults)
    skipped = {str(name) for name in skip}
    unknown = sorted(skipped - {case.id for case in cases} - {fault.case for fault in faults})
    if unknown:
        raise MedsegError(f"skip: {where} has no case {', '.join(map(repr, unknown[:5]))}; look at how it is spelt")
    kept = sorted((case for case in cases if case.id not in skipped), key=lambda case: case.id)
    rest = [fault for fault in faults if fault.case not in skipped]
    if table is not None:
        kept, missing = _with_rows(kept, Path(table), columns)
        rest += missing
    if not kept:
        reasons = [str(fault) for fault in rest[:20]] or ["all were skipped"]
        raise all_at_once(f"{where}: no case is left to work with:", reasons)
    labels = label_table(class_names(classes, str(where)) if label_names is None else label_names)
    return Cohort(tuple(kept), tuple(channels or _channels(kept[0])), labels, tuple(rest), classes_of(kept))


def _channels(case: Case) -> tuple[str, ...]:
    source = case.images[0]
    return COLOURS if is_colour(source) else (source.modality or "image",)


def _with_rows(cases: Sequence[Case], path: Path, columns: Mapping[str, str] | None) -> tuple[list[Case], list[Fault]]:
    """Cases with the patient, class and metadata of their row; one without a row is a fault."""
    rows = read_table(path, columns).by_id()
    joined, missing = [], []
    for case in cases:
        row = rows.get(case.id)
        if row is None:
            missing.append(
                Fault(case.id, "missing_row", f"{path} has no row with this id; add it or leave the case out")
            )
            continue
        patient, name = row.get("patient") or case.patient, row.get("class") or None
        joined.append(replace(case, patient=patient, class_name=name, metadata=row.metadata))
    return joined, missing
