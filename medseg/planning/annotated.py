"""Which cases say where things are, as segmentation and detection need it: the others become faults. Reads no file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medseg.errors import MedsegError, all_at_once
from medseg.structures import Case, Cohort, Fault, LabelTable


def unmarked(cases: Sequence[Case], task: str) -> list[Fault]:
    """The cases that the task can do nothing with: segmentation needs a mask, detection a mask or boxes, other tasks neither.

    Boxes that are given as none say that there is no lesion.
    """
    faults = []
    for case in cases:
        if task == "segmentation" and case.label is None:
            reason = "no mask says what it shows" + (
                ", and segmentation learns nothing from boxes" if case.boxes else ""
            )
            faults.append(Fault(case.id, "image_without_label", reason))
        elif task == "detection" and case.label is None and case.boxes is None:
            reason = "neither a mask nor boxes say what it shows; write 'none' as its boxes where there is no lesion"
            faults.append(Fault(case.id, "image_without_label", reason))
    return faults


def annotated_cohort(cohort: Cohort, task: str) -> tuple[Cohort, LabelTable]:
    """The cases that segmentation or detection can learn from, and their labels; the others become faults of the cohort.

    Raises:
        MedsegError: there is none.
    """
    if cohort.labels is None:
        raise MedsegError("the data set has no labels; expected a mask or boxes for each image (set data.labels)")
    faults = unmarked(cohort.cases, task)
    left_out = {fault.case for fault in faults}
    kept = tuple(case for case in cohort.cases if case.id not in left_out)
    if not kept:
        raise all_at_once(f"{task}: none of the {len(cohort.cases)} cases can be used:", map(str, faults[:10]))
    return replace(cohort, cases=kept, faults=(*cohort.faults, *faults)), cohort.labels
