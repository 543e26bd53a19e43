"""Which cases a classifier can use, and what they say of classes and region."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.planning.classes import ClassPlan, Region
from medseg.planning.classification import class_cohort, class_faults, class_labels, plan_classes, seen_by_classifier
from medseg.planning.fingerprint import CaseStatistics, ChannelStatistics, Fingerprint
from medseg.structures import Case, Cohort, LabelTable, Source
from tests.tiny import tiny_plan

SOURCE = Source("picture", (Path("a.png"),))


def cohort_of(*names: str | None, labels: LabelTable | None = None) -> Cohort:
    label = SOURCE if labels else None
    cases = [Case(f"c{n}", (SOURCE,), label, class_name=name) for n, name in enumerate(names)]
    return Cohort(tuple(cases), ("image",), labels)


def fingerprint_of(*lengths: tuple[float, ...]) -> Fingerprint:
    cases = [
        CaseStatistics(f"c{n}", (100, 80), (0.5, 0.5), "mm", (100, 80), (0, 1), {}, {"lesion": (row,)})
        for n, row in enumerate(lengths)
    ]
    return Fingerprint(tuple(cases), (ChannelStatistics("", 0, 1, 0, 0, 1, 0, 1),))


def test_cases_without_a_class_become_faults_and_the_others_stay() -> None:
    found = class_cohort(cohort_of("benign", None, "malignant", ""), {"name": "classification"})
    assert [case.id for case in found.cases] == ["c0", "c2"]
    assert found.classes == ("benign", "malignant")
    assert [(fault.case, fault.kind) for fault in found.faults] == [
        ("c1", "case_without_class"),
        ("c3", "case_without_class"),
    ]


def test_several_classes_are_a_fault_unless_the_task_is_multilabel() -> None:
    cohort = cohort_of("edema", "effusion", "edema; effusion", "none")
    one = class_cohort(cohort, {})
    assert ([f.case for f in one.faults], one.classes) == (["c2"], ("edema", "effusion", "none"))
    found = class_cohort(cohort, {"multilabel": True})
    assert len(found.cases) == 4
    assert plan_classes(found, fingerprint_of(), {"multilabel": True}).shares == (0.5, 0.5)


def test_faults_of_cases_and_of_all_together_are_listed_without_refusing() -> None:
    cohort = cohort_of("benign", "benign", None, "benign;malignant")
    found = class_faults(cohort, {})
    assert [(fault.case, fault.kind) for fault in found] == [
        *(("c2", "case_without_class"), ("c3", "several_classes"), ("", "classes"))
    ]
    assert "found benign in 2 of 4 cases" in str(found[-1])
    (fault,) = class_faults(cohort_of("ill", "well"), {"positive": "sick"})
    assert "task.positive='sick'" in str(fault)


def test_one_class_is_refused_with_what_was_found() -> None:
    with pytest.raises(MedsegError, match=r"two classes or more, found benign in 2 of 3 cases.*\n.*c2"):
        class_cohort(cohort_of("benign", "benign", None), {})


def test_masks_are_left_aside_unless_a_region_is_wanted() -> None:
    cohort = cohort_of("a", "b", labels=LabelTable({1: "lesion"}))
    assert [case.label for case in class_cohort(cohort, {}).cases] == [None, None]
    assert class_cohort(cohort, {}).labels is None
    assert [case.label for case in class_cohort(cohort, {"region": "mask"}).cases] == [SOURCE, SOURCE]


def test_a_case_without_mask_cannot_be_seen_by_a_classifier_of_regions() -> None:
    with pytest.raises(MedsegError, match=r"task\.region=mask looks at what a mask marks"):
        class_cohort(cohort_of("a", "b"), {"region": "mask"})


def test_an_unknown_region_names_those_there_are() -> None:
    with pytest.raises(MedsegError, match=r"task\.region='box': expected mask"):
        class_cohort(cohort_of("a", "b"), {"region": "box"})


def test_the_field_is_longer_than_nearly_all_masks_or_as_configured() -> None:
    cohort = class_cohort(cohort_of("a", "b", labels=LabelTable({1: "lesion"})), {"region": "mask"})
    measured = fingerprint_of((10.0, 4.0), (10.0, 4.0))
    computed = plan_classes(cohort, measured, {"region": "mask"})
    assert computed.region == Region(LabelTable({1: "lesion"}), (15.0, 6.0))
    given = plan_classes(cohort, measured, {"region": "mask", "field": [30, 20]})
    assert given.region is not None
    assert given.region.field == (30.0, 20.0)
    assert given.why["region"] == "as configured"
    with pytest.raises(MedsegError, match="expected 2 lengths"):
        plan_classes(cohort, measured, {"region": "mask", "field": [30]})


def test_a_field_without_region_is_refused() -> None:
    with pytest.raises(MedsegError, match=r"say task\.region=mask"):
        plan_classes(class_cohort(cohort_of("a", "b"), {}), fingerprint_of(), {"field": [3, 3]})
    with pytest.raises(MedsegError, match=r"task\.mask_channel: belong to a region"):
        plan_classes(class_cohort(cohort_of("a", "b"), {}), fingerprint_of(), {"mask_channel": True})


def test_what_is_planned_for_is_the_region_in_voxels_of_each_scan() -> None:
    region = Region(LabelTable({1: "lesion"}), (15.0, 6.0))
    (case,) = seen_by_classifier(fingerprint_of((1.0, 1.0)), region).cases
    assert case.shape == case.crop == (30, 12)
    whole = fingerprint_of((1.0, 1.0))
    assert seen_by_classifier(whole, None) is whole


def test_a_field_along_the_axes_of_the_files_fits_scans_that_are_stored_otherwise() -> None:
    cohort = class_cohort(cohort_of("a", "b", labels=LabelTable({1: "lesion"})), {"region": "mask"})
    of_ras = {"lesion": ((10.0, 20.0, 30.0),)}
    stored = CaseStatistics("c0", (90, 80, 70), (1.0, 2.0, 5.0), "mm", (90, 80, 70), (2, 0, 1), {}, of_ras)
    measured = Fingerprint((stored,), fingerprint_of().channels)
    region = plan_classes(cohort, measured, {"region": "mask"}, "stored").region
    assert region is not None
    assert region.field == (30.0, 45.0, 15.0)  # the file's axes are A, S, R
    (case,) = seen_by_classifier(measured, region, "stored").cases
    assert case.shape == (15, 15, 9)  # along R, A, S


def test_a_class_plan_survives_its_plain_form() -> None:
    plan = ClassPlan((0.25, 0.75), True, Region(LabelTable({3: "x"}, ignore=9), (1.0, 2.0)), {"shares": "why"})
    assert ClassPlan.from_plain(plan.to_plain()) == plan
    with pytest.raises(MedsegError, match=r"plan\.classes: expected shares"):
        ClassPlan.from_plain({"shares": [1]})


def test_what_classes_are_called_changes_no_preprocessed_case() -> None:
    two = tiny_plan(task="classification", classes=ClassPlan((0.5, 0.5)), labels=LabelTable({1: "a", 2: "b"}))
    three = tiny_plan(task="classification", classes=ClassPlan((0.5, 0.3, 0.2)), labels=class_labels(("a", "b", "c")))
    assert two.preprocessing_key() == three.preprocessing_key()
    region = ClassPlan((0.5, 0.5), region=Region(LabelTable({1: "lesion"}), (9.0, 9.0, 9.0)))
    assert two.changed(classes=region.to_plain()).preprocessing_key() != two.preprocessing_key()
    masks = tiny_plan(labels=LabelTable({1: "a"}))
    assert masks.preprocessing_key() != tiny_plan(labels=LabelTable({1: "b"})).preprocessing_key()


def test_classes_are_labels_from_one_up() -> None:
    assert dict(class_labels(("a", "b")).names) == {1: "a", 2: "b"}


def test_the_positive_class_comes_last_and_must_be_one() -> None:
    cohort = cohort_of("ill", "well")
    assert class_cohort(cohort, {}).classes == ("ill", "well")
    assert class_cohort(cohort, {"positive": "ill"}).classes == ("well", "ill")
    with pytest.raises(MedsegError, match=r"task\.positive='sick': expected one of the classes ill, well"):
        class_cohort(cohort, {"positive": "sick"})
