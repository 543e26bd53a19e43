"""Which cases segmentation and detection can use: those that somebody marked in the way that the task needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.planning.annotated import annotated_cohort, unmarked
from medseg.structures import Case, Cohort, LabelTable, Source

SOURCE = Source("picture", (Path("a.png"),))
CASES = (
    Case("healthy", (SOURCE,), class_name="normal"),
    Case("masked", (SOURCE,), SOURCE, class_name="ill"),
    Case("boxed", (SOURCE,), boxes="1,2,3,4"),
    Case("clean", (SOURCE,), boxes=""),
)


def test_segmentation_needs_masks_and_detection_masks_or_boxes() -> None:
    cohort = Cohort(CASES, ("image",), LabelTable({1: "lesion"}))
    kept, labels = annotated_cohort(cohort, "segmentation")
    assert [case.id for case in kept.cases] == ["masked"] and labels is cohort.labels
    assert {(fault.case, fault.kind) for fault in kept.faults} == {
        (name, "image_without_label") for name in ("healthy", "boxed", "clean")
    }
    assert "learns nothing from boxes" in str(kept.faults[1])
    assert [case.id for case in annotated_cohort(cohort, "detection")[0].cases] == ["masked", "boxed", "clean"]
    assert unmarked(CASES, "classification") == []


def test_a_cohort_of_which_nothing_can_be_used_is_refused() -> None:
    with pytest.raises(MedsegError, match="has no labels"):
        annotated_cohort(Cohort(CASES, ("image",)), "segmentation")
    with pytest.raises(MedsegError, match=r"none of the 2 cases can be used:\n.*boxed"):
        annotated_cohort(Cohort(CASES[2:], ("image",), LabelTable({1: "lesion"})), "segmentation")
