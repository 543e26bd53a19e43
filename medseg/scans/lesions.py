"""The true lesions of a case, wherever they are written: boxes of its own, or the lesions of its mask.

A case that has both is believed in its boxes. What makes a lesion of a mask is said by a `LesionRule`, which is part of the
plan. Knows no network and no plan's grid: everything lies on the scan's own grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from medseg.scans import read_mask
from medseg.scans.boxes import boxes_of_case, boxes_of_mask, is_usable
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, Case, Fault, LabelTable, LesionRule
from medseg.volume import Array, Geometry


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one case on its scan's own grid.

    Args:
        boxes: one a lesion, without scores.
        numbered: ``(*S)`` int32 in which the n-th lesion, from 0, is n + 1; None where boxes are all that is known.
        faults: single boxes that were left out, and why.
    """

    boxes: Boxes
    numbered: Array | None = None
    faults: tuple[Fault, ...] = ()


def read_lesions(case: Case, geometry: Geometry, labels: LabelTable, rule: LesionRule) -> Lesions:
    """What lies in a case.

    Args:
        geometry: the scan's own grid.
        labels: exclusive labels.

    Raises:
        ScanError: nobody can say what lies in it: neither boxes nor a mask, or such that cannot be read.
        MedsegError: the labels are regions, or are several where a mask numbers its lesions.
    """
    if case.boxes is not None or case.label is None:
        boxes, faults = boxes_of_case(case, geometry, labels)
        if not is_usable(faults):
            worst = next(fault for fault in faults if not is_usable([fault]))
            raise ScanError(worst.message, worst.kind)
        return Lesions(boxes, faults=tuple(faults))
    mask, _ = read_mask(case.label, geometry, labels)
    return Lesions(*boxes_of_mask(mask, geometry, labels, instances=rule.instances, smallest_mm3=rule.smallest_mm3))
