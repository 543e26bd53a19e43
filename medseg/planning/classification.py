"""From cases with classes to what a plan needs of them: which can be used, their labels, shares and region. Reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medseg.errors import MedsegError, all_at_once
from medseg.planning.classes import ClassPlan, Region
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Channel, Plan
from medseg.scans.classes import classes_of, named_classes
from medseg.structures import Case, Cohort, Fault, LabelTable

CLASSIFICATION = "classification"
AROUND = 1.5
"""A field is this much longer than what nearly all masks mark, so that what surrounds a lesion is seen as well."""
NEARLY_ALL = 95
MASK_CHANNEL = Channel("mask", "rescale", low=0.0, high=1.0)
"""What a classifier that sees the mask has behind the channels of the scan."""


def class_cohort(cohort: Cohort, spec: Mapping[str, Any]) -> Cohort:
    """The cases that a classifier can learn from or be scored on; the others become faults of the cohort.

    Without ``region`` masks and boxes are left aside. The classes are sorted, but ``positive`` comes last.

    Args:
        spec: of the task.

    Raises:
        MedsegError: no case has a class, or all have the same one; a region is wanted and nobody says where.
    """
    kept, faults, classes, problem = _sorted_out(cohort, spec)
    if problem:
        heading = f"classification: {problem}"
        raise all_at_once(f"{heading}:", map(str, faults[:10])) if faults else MedsegError(heading)
    positive = spec.get("positive")
    if positive is not None:
        classes = (*(name for name in classes if name != positive), positive)
    seen = seen_cohort(replace(cohort, cases=tuple(kept)), spec)
    return replace(seen, faults=(*cohort.faults, *faults), classes=classes)


def class_faults(cohort: Cohort, spec: Mapping[str, Any]) -> list[Fault]:
    """What keeps cases, or (a fault without case) all of them, from being of use to a classifier.

    Args:
        spec: of the task.
    """
    _, faults, _, problem = _sorted_out(cohort, spec)
    return [*faults, *([Fault("", "classes", problem)] if problem else [])]


def seen_cohort(cohort: Cohort, spec: Mapping[str, Any]) -> Cohort:
    """What a classifier looks at: without ``region`` neither masks nor boxes."""
    if _looks_at_mask(spec):
        return cohort
    return replace(cohort, cases=tuple(replace(case, label=None, boxes=None) for case in cohort.cases), labels=None)


def _sorted_out(cohort: Cohort, spec: Mapping[str, Any]) -> tuple[list[Case], list[Fault], tuple[str, ...], str]:
    """The cases that can be used, why others cannot, the classes, and what is wrong with these (nothing: ``""``)."""
    by_mask, several, positive = _looks_at_mask(spec), bool(spec.get("multilabel", False)), spec.get("positive")
    kept: list[Case] = []
    faults: list[Fault] = []
    for case in cohort.cases:
        reason = _fault_of(case, several, by_mask)
        if reason:
            faults.append(Fault(case.id, *reason))
        else:
            kept.append(case)
    classes, problem = classes_of(kept, several=several), ""
    if len(classes) < (1 if several else 2):
        problem = (
            f"expected {'a class' if several else 'two classes or more'}, found {', '.join(classes) or 'none'} in {len(kept)} of "
            f"{len(cohort.cases)} cases that can be used. Name the class of each case in the column class of the table "
            "(data.columns={class: <its name>})"
        )
    elif positive is not None and positive not in classes:
        problem = f"task.positive={positive!r}: expected one of the classes {', '.join(classes)}"
    return kept, faults, classes, problem


def _fault_of(case: Case, several: bool, by_mask: bool) -> tuple[str, str] | None:
    names = named_classes(case.class_name, several=several)
    if names is None:
        return "case_without_class", "nobody says its class; fill in the column class, or leave it out with data.skip"
    if not several and len(names) != 1:
        return (
            "several_classes",
            f"expected one class, found {case.class_name!r}; task.multilabel=true is for cases that may show several or none",
        )
    if by_mask and case.label is None:
        return "image_without_label", "task.region=mask looks at what a mask marks, and it has none"
    return None


def _looks_at_mask(spec: Mapping[str, Any]) -> bool:
    region = spec.get("region")
    if region not in (None, "mask"):
        raise MedsegError(f"task.region={region!r}: expected mask (what a mask marks) or null (the whole scan)")
    return region == "mask"


def class_labels(classes: Sequence[str]) -> LabelTable:
    """The classes as a label table: the n-th has value n, from 1."""
    return LabelTable(dict(enumerate(classes, start=1)))


def plan_classes(
    cohort: Cohort, fingerprint: Fingerprint, spec: Mapping[str, Any], orientation: str | None = None
) -> ClassPlan:
    """What the cases, of `class_cohort`, say of classes and region.

    Args:
        fingerprint: of these cases; where a region is wanted, with the lengths of what their masks mark.
        spec: of the task; ``field`` goes before the computed one.
        orientation: that is wanted of the plan: with ``stored``, the field has its lengths along the axes of the files.

    Raises:
        MedsegError: a region is wanted and no mask marks anything, or ``field`` is not one length an axis.
    """
    several = bool(spec.get("multilabel", False))
    shown = [named_classes(case.class_name, several=several) or () for case in cohort.cases]
    shares = tuple(sum(name in names for names in shown) / len(shown) for name in cohort.classes)
    why = {"shares": f"of {len(shown)} cases, all folds together"}
    region = None
    if _looks_at_mask(spec) and cohort.labels is not None:
        given = spec.get("field")
        lengths = np.array(
            [
                np.max(sizes, axis=0)[np.argsort(case.stored) if orientation == "stored" else ...]
                for case in fingerprint.cases
                if (sizes := _marked(case.lesions))
            ]
        )
        if not len(lengths):
            raise MedsegError("plan: task.region=mask, but no mask marks anything; is data.labels the right folder?")
        if given is not None and len(given) != fingerprint.dimensions:
            raise MedsegError(f"task.field={list(given)}: expected {fingerprint.dimensions} lengths, one an axis")
        computed = AROUND * np.percentile(lengths, NEARLY_ALL, axis=0)
        field = tuple(float(f"{v:.4g}") for v in (computed if given is None else given))
        region = Region(cohort.labels, field, bool(spec.get("mask_channel", False)))
        why["region"] = (
            f"{AROUND:g}× the {NEARLY_ALL}th percentile of what {len(lengths)} masks mark along each axis"
            if given is None
            else "as configured"
        )
    else:
        odd = [f"task.{option}" for option in ("field", "mask_channel") if spec.get(option)]
        if odd:
            raise MedsegError(
                f"{', '.join(odd)}: belong to a region around a mask; say task.region=mask, or leave them out"
            )
    return ClassPlan(shares, several, region, why)


def with_classes(plan: Plan, classes: ClassPlan) -> Plan:
    """The plan of a classifier; where it sees the mask, with a channel for it."""
    plan = plan.changed(why="from the classes of the training cases", classes=classes)
    if classes.region is None or not classes.region.mask_channel:
        return plan
    why = {**plan.why, "channels": f"{plan.why['channels']}; the mask, as configured"}
    return replace(plan, channels=(*plan.channels, MASK_CHANNEL), why=why)


def _marked(lesions: Mapping[str, Sequence[Sequence[float]]]) -> list[Sequence[float]]:
    return [size for sizes in lesions.values() for size in sizes]


def seen_by_classifier(fingerprint: Fingerprint, region: Region | None, orientation: str | None = None) -> Fingerprint:
    """The fingerprint of what a classifier is shown: the scans, or the region cut out of each; see `plan_classes`."""
    if region is None:
        return fingerprint
    cases = []
    for case in fingerprint.cases:
        field = [region.field[axis] for axis in case.stored] if orientation == "stored" else region.field
        shape = tuple(max(1, round(length / s)) for length, s in zip(field, case.spacing, strict=True))
        cases.append(replace(case, shape=shape, crop=shape))
    return replace(fingerprint, cases=tuple(cases))
