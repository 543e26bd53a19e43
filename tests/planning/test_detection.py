"""Lesions of a fingerprint become levels and anchors of a plan, along the plan's own axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.planning.detection import with_boxes
from medseg.planning.fingerprint import CaseStatistics, ChannelStatistics, Fingerprint, content_key, fingerprint
from medseg.planning.plan import Plan
from medseg.scans.layouts import folder
from medseg.structures import Case, LabelTable, LesionRule
from tests.tiny import tiny_boxes, tiny_plan, write_nifti

CHANNEL = ChannelStatistics("MR", 0, 1, 0, -1, 1, -1, 1)


def measured(*sizes: tuple[float, ...], stored: tuple[int, ...] = (0, 1, 2)) -> Fingerprint:
    case = CaseStatistics(
        "a", (40, 40, 40), (1.0, 1.0, 1.0), "mm", (40, 40, 40), stored, {}, {"liver": (), "lesion": sizes}
    )
    return Fingerprint((case,), (CHANNEL,))


def test_anchors_follow_the_lesions_along_the_axes_of_the_plan() -> None:
    sizes = [(4.0, 6.0, 8.0)] * 5
    ras = with_boxes(tiny_plan(task="detection"), measured(*sizes, stored=(2, 0, 1)), LesionRule())
    stored = with_boxes(
        tiny_plan(task="detection", orientation="stored"), measured(*sizes, stored=(2, 0, 1)), LesionRule()
    )
    assert ras.boxes is not None and ras.boxes.anchors == (((4.0, 6.0, 8.0),),) and ras.boxes.reach == 1
    assert stored.boxes is not None and stored.boxes.anchors == (((6.0, 8.0, 4.0),),)
    assert ras.boxes.median == {"lesion": (4.0, 6.0, 8.0)}


def test_a_plan_with_boxes_is_written_and_read_back() -> None:
    rule = LesionRule(instances=True, smallest_mm3=3.5)
    plan = with_boxes(tiny_plan(task="detection"), measured((4.0, 4.0, 4.0)), rule, masks=True)
    again = Plan.from_yaml(plan.to_yaml())
    assert again == plan and again.boxes is not None and again.boxes.rule == rule and again.boxes.masks
    assert Plan.from_yaml(tiny_plan().to_yaml()).boxes is None
    assert "boxes" not in tiny_plan().to_yaml()


def test_values_that_the_user_sets_stand() -> None:
    chosen = {"anchors": [[[5, 5, 5], [3, 3, 3]]]}
    plan = with_boxes(tiny_plan(task="detection"), measured((4.0, 4.0, 4.0)), LesionRule(), overrides=chosen)
    assert plan.boxes is not None and plan.boxes.anchors == (((5.0, 5.0, 5.0), (3.0, 3.0, 3.0)),)
    with pytest.raises(MedsegError, match=r"plan.boxes: expected .*look at \['anchor'\]"):
        with_boxes(
            tiny_plan(task="detection"), measured((4.0, 4.0, 4.0)), LesionRule(), overrides={"anchor": [[[5, 5, 5]]]}
        )


def test_without_a_lesion_there_is_nothing_to_plan() -> None:
    with pytest.raises(MedsegError, match="none of the 1 cases has a lesion"):
        with_boxes(tiny_plan(task="detection"), measured(), LesionRule())


def test_only_the_rule_for_lesions_changes_what_is_preprocessed() -> None:
    plan = tiny_plan(task="detection", boxes=tiny_boxes())
    key = plan.preprocessing_key()
    assert plan.changed(boxes={"reach": 0.5, "anchors": [[[9, 9, 9]]]}).preprocessing_key() == key
    assert plan.changed(boxes={"rule": {"instances": True, "smallest_mm3": 0}}).preprocessing_key() != key
    assert tiny_plan().preprocessing_key() != key


def test_lesions_are_measured_in_mm_along_ras_axes(tmp_path: Path) -> None:
    mask = np.zeros((20, 16, 12), np.uint8)
    mask[2:8, 3:7, 1:3], mask[12:14, 8:10, 6:8] = 3, 1
    affine = np.diag([0.5, 1.0, 2.0, 1.0])[:, [1, 2, 0, 3]]  # stored axes run along A, S and R
    turned = np.ascontiguousarray(mask.transpose(1, 2, 0))
    for name, values in (("images", turned * 50.0 + 1), ("labels", turned)):
        write_nifti(tmp_path / name / "a.nii.gz", values, affine)
    cohort = folder(tmp_path / "images", tmp_path / "labels", label_names={1: "liver", 3: "lesion"})
    found = fingerprint(cohort, lesions=LesionRule(), progress=False)
    assert found.cases[0].lesions == {"liver": ((1.0, 2.0, 4.0),), "lesion": ((3.0, 4.0, 4.0),)}
    assert found.presence() == {"a": "lesion+liver"}
    assert Fingerprint.from_json(found.to_json()) == found
    few = fingerprint(cohort, lesions=LesionRule(smallest_mm3=20), progress=False)
    assert few.cases[0].lesions == {"liver": (), "lesion": ((3.0, 4.0, 4.0),)}
    keys = {content_key(cohort, lesions=rule, progress=False) for rule in (None, LesionRule(), LesionRule(False, 20))}
    assert len(keys) == 3


def test_the_values_inside_boxes_are_the_foreground(tmp_path: Path) -> None:
    values = np.ones((20, 16, 12), np.float32)
    values[2:8, 3:7, 1:3] = 100
    write_nifti(tmp_path / "images" / "a.nii.gz", values)
    from dataclasses import replace

    cohort = folder(tmp_path / "images")
    case: Case = replace(cohort.cases[0], boxes="2,3,1,8,7,3,lesion")
    cohort = replace(cohort, cases=(case,), labels=LabelTable({1: "lesion"}))
    found = fingerprint(cohort, lesions=LesionRule(), progress=False)
    assert found.channels[0].median == 100 and found.cases[0].lesions == {"lesion": ((6.0, 4.0, 4.0),)}
    other = replace(cohort, cases=(replace(case, boxes="none"),))
    keys = {content_key(one, lesions=LesionRule(), progress=False) for one in (cohort, other)}
    assert len(keys) == 2
