"""What detection adds to a plan: the boxes of a fingerprint, brought onto the plan's grid, decide levels and anchors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.planning.anchors import BoxStatistics, plan_boxes
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.plan import Plan
from medseg.structures import LesionRule


def with_boxes(
    plan: Plan,
    fingerprint: Fingerprint,
    rule: LesionRule,
    *,
    masks: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan with a `BoxPlan` for the lesions that were measured.

    Args:
        plan: of the same cases; its grid, patch and strides decide what can be found.
        rule: by which the lesions of the fingerprint were measured.
        masks: whether every case has a mask.
        overrides: values of the `BoxPlan` that the user sets.

    Raises:
        MedsegError: no case has a lesion, none fits the plan, or an override that a `BoxPlan` does not have.
    """
    values = {name: value for value, name in plan.labels.names.items()}
    lengths, labels = [], []
    for case in fingerprint.cases:
        axes = np.argsort(case.stored) if plan.orientation == "stored" else np.arange(plan.dimensions)
        for name, sizes in case.lesions.items():
            lengths += [np.array(size)[axes] for size in sizes]
            labels += [values[name]] * len(sizes)
    if not lengths:
        raise MedsegError(
            f"plan: none of the {len(fingerprint.cases)} cases has a lesion; is data.boxes (or data.labels) the right place?"
        )
    measured = BoxStatistics(np.array(lengths) / plan.spacing, np.array(lengths), np.array(labels))
    boxes = plan_boxes(measured, plan.strides, plan.patch_size, classes=plan.labels.names, rule=rule, masks=masks)
    planned = plan.changed(why="from the sizes of the training lesions; its own reasons are below it", boxes=boxes)
    return planned.changed(why="as configured", boxes=dict(overrides)) if overrides else planned
