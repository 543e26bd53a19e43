"""From the cases that a layout lists to a Cohort: joined with a table, without what is skipped, labels and channels named.

Owns which of the cases say anything at all: those with a mask or boxes where some have them, and those with a class. What a task
makes of them is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from medseg.errors import MedsegError, all_at_once
from medseg.scans.box_files import WITHOUT_ANNOTATION
from medseg.scans.classes import classes_of
from medseg.scans.labels import LabelOptions
from medseg.scans.matching import is_colour
from medseg.scans.tables import read_table
from medseg.structures import Case, Cohort, Fault

_NONE: Mapping[str, Fault] = MappingProxyType({})


def with_table(
    cases: Sequence[Case],
    faults: Sequence[Fault],
    names: Mapping[str, tuple[str, ...]],
    table: Path | str | None,
    columns: Mapping[str, str] | None,
    bare: Mapping[str, Fault] = _NONE,
) -> tuple[list[Case], list[Fault]]:
    """Join patient, class, boxes and metadata by id; a case without a row is a fault, a row without a case is not.

    Args:
        names: id → names under which a case may have its row, too.
        table: without one the cases stay as they are.
        bare: as of `cohort_of`: the fault of such a case without a row.

    Raises:
        MedsegError: the table is not readable, or has a row of no case.
    """
    if table is None:
        return list(cases), list(faults)
    read = read_table(Path(table), columns)
    rows = read.by_id()
    joined: list[Case] = []
    missing: list[Fault] = []
    for case in cases:
        row = next((rows[name] for name in (case.id, *names.get(case.id, ())) if name in rows), None)
        if row is None:
            reason = f"{read.path} has no row with this id; add it or leave the case out"
            missing.append(bare.get(case.id) or Fault(case.id, "missing_row", reason))
            continue
        boxes = read.boxes_of(row)
        joined.append(
            replace(
                case,
                patient=row.get("patient") or case.patient,
                class_name=row.get("class") or case.class_name,
                boxes=boxes if case.boxes is None else case.boxes,
                metadata=row.metadata,
            )
        )
    if not joined and cases:
        raise MedsegError(
            f"{read.path}: no row has the id of a case; ids such as {', '.join(list(rows)[:2])}, cases such as "
            f"{', '.join(case.id for case in cases[:2])}"
        )
    return joined, [*faults, *missing]


def cohort_of(
    cases: Sequence[Case],
    faults: Sequence[Fault],
    labels: LabelOptions,
    channels: Sequence[str] | None,
    skip: Sequence[str],
    where: str,
    progress: bool,
    bare: Mapping[str, Fault] = _NONE,
) -> Cohort:
    """Leave out what shall be skipped and what says nothing, and find out what was not said.

    Args:
        where: what the data set is called in messages.
        bare: id of a case that nobody marked → why it is left out, unless it has a class.

    Raises:
        MedsegError: no case is left, or ``skip`` names one that is not there.
    """
    skipped = {str(name) for name in skip}
    unknown = sorted(skipped - {case.id for case in cases} - {fault.case for fault in faults})
    if unknown:
        raise MedsegError(f"skip: {where} has no case {', '.join(map(repr, unknown[:5]))}; look at how it is spelt")
    kept = sorted((case for case in cases if case.id not in skipped), key=lambda case: case.id)
    kept, unmarked = _annotated(kept, bare)
    kept, table, unnamed = labels.apply(kept, progress)
    rest = (*(fault for fault in faults if fault.case not in skipped), *unmarked, *unnamed)
    if not kept:
        raise all_at_once(
            f"{where}: no case is left to work with:", map(str, rest[:20]) if rest else ["all were skipped"]
        )
    return Cohort(tuple(kept), tuple(channels or _channel_names(kept[0])), table, rest, classes_of(kept))


def _annotated(cases: Sequence[Case], bare: Mapping[str, Fault]) -> tuple[list[Case], list[Fault]]:
    """The cases that have a mask or boxes, if any has, or a class; and a fault for each of the others.

    An empty cell of boxes says that there is no lesion, but not where the mask that other cases have is missing as well. What is
    kept for its class says nothing else: whether that is enough depends on the task.
    """
    masks = any(case.label is not None for case in cases)
    said = {
        case.id
        for case in cases
        if case.id not in bare and (case.label is not None or case.boxes or (case.boxes == "" and not masks))
    }
    if not said and not bare:
        return list(cases), []
    kind, reason = WITHOUT_ANNOTATION, "its row has no cell of boxes, which is not the same as an empty one"
    if masks:
        kind, reason = "image_without_label", "its row names no label"
    if any(case.boxes is not None for case in cases):
        reason += "; write 'none' as its boxes where there is no lesion"
    kept: list[Case] = []
    faults: list[Fault] = []
    for case in cases:
        if case.id in said:
            kept.append(case)
        elif case.class_name:
            kept.append(replace(case, label=None, boxes=None))
        else:
            faults.append(bare.get(case.id) or Fault(case.id, kind, reason))
    return kept, faults


def _channel_names(case: Case) -> list[str]:
    """Names of channels that nobody named: the modality, the colours of a picture, or a number."""
    if len(case.images) > 1:
        return [f"channel_{number}" for number in range(len(case.images))]
    if is_colour(case.images[0]):
        from medseg.scans.picture import COLOURS

        return list(COLOURS)
    return [case.images[0].modality or "image"]
