"""Whether maps deserve trust is measured on labelled cases, beside maps that know nothing; what cannot be judged is named."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medseg.commands.judge as command
from medseg.commands.judge import judge, true_region
from medseg.errors import MachineError, MedsegError, SomeFailed
from medseg.explain.explainer import Explainer
from medseg.explain.targets import Aim, Target
from medseg.model import save_model
from medseg.planning.classes import ClassPlan
from medseg.structures import Case, Cohort, LabelTable, as_source
from medseg.volume import Geometry
from tests.explain.nets import POOLED, model_of, plan_2d
from tests.tiny import LABELS, POINTWISE, threshold_model, tiny_plan

CPU = {"device": "cpu", "precision": "float32"}
SIDE = 16
SQUARE = (slice(2, 7), slice(3, 7))
"""Columns and rows of the bright lesion."""
LIVER = Aim(Target("label", "liver"), "liver")


def picture(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.T.astype(np.uint8)).save(path)
    return path


def case(folder: Path, name: str, **known: Any) -> Case:
    """A bright square on a faintly grainy ground, marked with label 1."""
    image = np.random.default_rng(len(name)).integers(0, 20, (SIDE, SIDE))
    mask = np.zeros((SIDE, SIDE))
    image[SQUARE], mask[SQUARE] = 250, 1
    label = as_source("picture", picture(folder / "masks" / f"{name}.png", mask))
    return Case(name, (as_source("picture", picture(folder / "images" / f"{name}.png", image)),), label=label, **known)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Calls what is well above the mean the first label."""
    save_model(threshold_model(tiny_plan(2), at=1.0), tmp_path / "model")
    return tmp_path / "model"


def run(model: Path, listed: list[Case], output: Path, **options: Any) -> Any:
    given = {"saliency": {"method": "gradient"}, "split": "all", "bootstrap": 0, **options}
    cohort = Cohort(tuple(listed), ("MRI",), LABELS)
    return judge(
        model=model,
        cohort=cohort,
        output=output,
        runtime=CPU,
        mirror=False,
        trust=[POINTWISE, POOLED],
        progress=False,
        **given,
    )


def test_a_map_that_lies_in_the_lesion_is_told_from_maps_that_know_nothing(model, tmp_path):
    run(model, [case(tmp_path, "a"), case(tmp_path, "bb")], tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "trust.json").read_text())
    assert list(figures) == ["gradient", "random", "edges", "centre", "area"]
    assert figures["gradient"]["energy_inside"]["value"] == pytest.approx(1)
    assert figures["gradient"]["pointing"]["value"] == pytest.approx(1)
    assert figures["area"]["energy_inside"]["value"] == pytest.approx(20 / SIDE**2)
    assert figures["gradient"]["deletion"]["value"] < figures["random"]["deletion"]["value"]
    rows = list(csv.DictReader((tmp_path / "out" / "trust.csv").open(newline="")))
    assert {row["id"] for row in rows} == {"a", "bb"}
    assert {row["target"] for row in rows} == {"label-liver"}
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {"trust.png", "trust_curves.png"}


def test_a_classifier_is_judged_by_what_the_masks_of_its_cases_mark(tmp_path):
    labels = LabelTable({1: "benign", 2: "malignant"})
    plan = plan_2d(SIDE, task="classification", labels=labels, classes=ClassPlan((0.5, 0.5)), spacing=(1.0, 1.0))
    brighter_is_worse = {"features.0.weight": [1, -1], "last.weight": [0, 1, 3, 0]}
    weights = {"features.0.bias": [0, 0], "last.bias": [0, 0], **brighter_is_worse}
    save_model(model_of(POOLED, plan, "classification", weights=weights), tmp_path / "classes")
    listed = case(tmp_path, "a", class_name="malignant")
    table = run(tmp_path / "classes", [listed], tmp_path / "out", saliency={"method": "layer_cam", "layer": "features"})
    image = np.asarray(Image.open(listed.images[0].files[0]), float).T
    assert table.estimates["layer_cam"]["energy_inside"].value == pytest.approx(image[SQUARE].sum() / image.sum())
    rows = list(csv.DictReader((tmp_path / "out" / "trust.csv").open(newline="")))
    assert {row["target"] for row in rows} == {"class-malignant"}


def test_several_methods_are_judged_side_by_side_and_cases_are_thinned_evenly(model, tmp_path):
    cases = [case(tmp_path, "x" * n) for n in (1, 2, 3)]
    methods = ["smooth_grad", "gradient"]
    table = run(
        model, cases, tmp_path / "out", saliency={"method": "smooth_grad", "samples": 1}, methods=methods, cases=2
    )
    assert (table.method, table.cases) == ("smooth_grad", 2)
    rows = list(csv.DictReader((tmp_path / "out" / "trust.csv").open(newline="")))
    assert {row["id"] for row in rows} == {"x", "xxx"}
    assert set(methods) <= {row["method"] for row in rows}


def test_a_case_that_cannot_be_read_is_named_and_the_others_are_judged(model, tmp_path):
    broken = case(tmp_path, "bb")
    broken.label.files[0].write_bytes(b"no picture")
    with pytest.raises(SomeFailed, match=r"1 of 2 cases failed[\s\S]*'bb'"):
        run(model, [case(tmp_path, "a"), broken], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "trust.json").read_text())["gradient"]["stability"]["n"] == 1


@pytest.fixture
def interrupted(monkeypatch):
    """Stops the judgement, as a user would, once so many cases were asked about; a case that is asked about is counted."""
    found, asked = command._Part.judged, []

    def after(cases: int) -> list[str]:
        def judged(self, case):
            if len(asked) == cases:
                raise KeyboardInterrupt
            asked.append(case.id)
            return found(self, case)

        monkeypatch.setattr(command._Part, "judged", judged)
        return asked

    return after


def test_a_judgement_that_was_interrupted_goes_on_and_gives_the_same_table(model, tmp_path, interrupted):
    cases = [case(tmp_path, "x" * n) for n in (1, 2, 3)]
    whole = run(model, cases, tmp_path / "whole")
    asked = interrupted(2)
    with pytest.raises(KeyboardInterrupt):
        run(model, cases, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "judged").iterdir()} == {"x.json", "xx.json"}
    interrupted(99)
    table = run(model, cases, tmp_path / "out")
    assert asked == ["x", "xx", "xxx"]
    assert (table.cases, table.patients) == (whole.cases, whole.patients) == (3, 3)
    for name in ("trust.csv", "trust.json", "trust_verdict.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    curves = [np.asarray(Image.open(tmp_path / out / "figures" / "trust_curves.png")) for out in ("out", "whole")]
    np.testing.assert_array_equal(*curves)
    assert not (tmp_path / "out" / "judged").exists()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"methods": ["gradient", "smooth_grad"]}, "methods"),
        ({"saliency": {"method": "gradient", "targets": ["label-liver"]}}, "targets"),
        ({"overlap": 0.25}, "prediction"),
    ],
)
def test_what_was_begun_for_another_request_is_refused_or_replaced(model, other, named, tmp_path, interrupted):
    cases = [case(tmp_path, "a"), case(tmp_path, "bb")]
    asked = interrupted(1)
    with pytest.raises(KeyboardInterrupt):
        run(model, cases, tmp_path / "out")
    with pytest.raises(MedsegError, match=rf"judged for another request \(other {named}\)"):
        run(model, cases, tmp_path / "out", **other)
    interrupted(99)
    run(model, cases, tmp_path / "out", overwrite=True, **other)
    assert asked == ["a", "a", "bb"]


def test_a_case_whose_files_changed_or_whose_record_is_damaged_is_judged_again(model, tmp_path, interrupted):
    cases = [case(tmp_path, "x" * n) for n in (1, 2, 3, 4)]
    asked = interrupted(3)
    with pytest.raises(KeyboardInterrupt):
        run(model, cases, tmp_path / "out")
    picture(cases[0].label.files[0], place(slice(2, 5), slice(2, 5)).astype(float))
    (tmp_path / "out" / "judged" / "xx.json").write_text('{"format": 1,')
    interrupted(99)
    run(model, cases, tmp_path / "out")
    assert asked == ["x", "xx", "xxx", "x", "xx", "xxxx"]


def test_cases_that_failed_are_tried_again_and_the_others_are_not(model, tmp_path, interrupted):
    broken = case(tmp_path, "bb")
    whole = broken.label.files[0].read_bytes()
    broken.label.files[0].write_bytes(b"no picture")
    asked = interrupted(99)
    with pytest.raises(SomeFailed):
        run(model, [case(tmp_path, "a"), broken], tmp_path / "out")
    broken.label.files[0].write_bytes(whole)
    assert run(model, [case(tmp_path, "a"), broken], tmp_path / "out").cases == 2
    assert asked == ["a", "bb", "bb"]


def failing(monkeypatch, error: Exception, on: str = "gradient") -> None:
    real = Explainer.on_grid

    def maybe(self, array, name, region=None):
        if self.method == on:
            raise error
        return real(self, array, name, region)

    monkeypatch.setattr(Explainer, "on_grid", maybe)


@pytest.mark.parametrize("error", [MedsegError("its rectifier is not known"), ValueError("its rectifier is not known")])
def test_a_method_that_fails_is_named_with_its_cases_and_leaves_the_others_theirs(model, tmp_path, monkeypatch, error):
    cases = [case(tmp_path, "a"), case(tmp_path, "bb")]
    failing(monkeypatch, error)
    options = {"saliency": {"method": "smooth_grad", "samples": 1}}
    with pytest.raises(SomeFailed, match=r"gradient: .*its rectifier is not known \(2 of 2 cases: 'a', 'bb'\)"):
        run(model, cases, tmp_path / "out", methods=["smooth_grad", "gradient"], **options)
    figures = json.loads((tmp_path / "out" / "trust.json").read_text())
    assert figures["smooth_grad"]["energy_near"]["n"] == 2
    assert "gradient" not in figures
    with pytest.raises(MedsegError, match="none of the 2 cases could be judged"):
        run(model, cases, tmp_path / "alone")
    with pytest.raises(MedsegError, match=r"gradient could not be judged in any case[\s\S]*2 of 2 cases"):
        run(model, cases, tmp_path / "first", methods=["gradient", "smooth_grad"], **options)


def test_a_method_for_which_the_memory_is_too_small_leaves_its_case_to_be_tried_again(model, tmp_path, monkeypatch):
    failing(monkeypatch, MachineError("the memory does not hold it"))
    options = {"saliency": {"method": "smooth_grad", "samples": 1}, "methods": ["smooth_grad", "gradient"]}
    with pytest.raises(MachineError, match="memory did not hold 1 of 1"):
        run(model, [case(tmp_path, "a")], tmp_path / "out", **options)
    monkeypatch.undo()
    assert set(run(model, [case(tmp_path, "a")], tmp_path / "out", **options).estimates) > {"smooth_grad", "gradient"}


def test_a_table_that_is_there_is_kept_unless_overwritten(model, tmp_path):
    cases = [case(tmp_path, "a")]
    run(model, cases, tmp_path / "out")
    with pytest.raises(MedsegError, match="holds a trust table"):
        run(model, cases, tmp_path / "out")
    run(model, cases, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["gradcam"]}, "method 'gradcam'; expected one of"),
        ({"split": "validation"}, "split=validation: expected one of fit, tune, test or all"),
        ({"cases": 0}, "cases=0: expected at least 1"),
        ({"saliency": {"method": "gradient", "targets": ["label-spleen"]}}, "no label 'spleen'"),
    ],
)
def test_what_cannot_be_asked_is_said_before_any_work(model, options, message, tmp_path):
    with pytest.raises(MedsegError, match=message):
        run(model, [case(tmp_path, "a")], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_finds_nothing_is_said_so(tmp_path):
    save_model(threshold_model(tiny_plan(2), at=1e3), tmp_path / "blind")
    with pytest.raises(MedsegError, match="found nothing in any of 1 cases"):
        run(tmp_path / "blind", [case(tmp_path, "a")], tmp_path / "out")


def test_where_a_map_should_point_is_the_label_in_question_or_for_a_class_any(tmp_path):
    marked, grid = case(tmp_path, "a"), Geometry.from_spacing((SIDE, SIDE), (1.0, 1.0), "px")
    plan = tiny_plan(2)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[SQUARE] = True
    np.testing.assert_array_equal(true_region(marked, grid, LABELS, plan, LIVER), expected)
    malignant = Aim(Target("class", "malignant"), "malignant")
    np.testing.assert_array_equal(true_region(marked, grid, LABELS, plan, malignant), expected)
    assert not true_region(marked, grid, LABELS, plan, Aim(Target("label", "lesion"), "lesion")).any()
    assert true_region(replace(marked, label=None), grid, LABELS, plan, LIVER) is None
    assert true_region(marked, grid, None, plan, LIVER) is None


def place(*window: slice) -> np.ndarray:
    inside = np.zeros((SIDE, SIDE), bool)
    inside[window] = True
    return inside


@pytest.mark.parametrize("boxed", [False, True], ids=["mask", "boxes"])
@pytest.mark.parametrize("kind", ["box", "lesion"])
def test_one_box_or_lesion_should_point_at_the_true_lesions_that_it_touches(kind, boxed, tmp_path):
    two = place(slice(2, 5), slice(2, 5)), place(slice(9, 12), slice(4, 8))
    marked = case(tmp_path, "a")
    picture(marked.label.files[0], (two[0] | two[1]).astype(float))
    if boxed:
        marked = replace(marked, label=None, boxes="2,2,5,5,liver;9,4,12,8,liver;6,12,8,14,lesion")
    grid = Geometry.from_spacing((SIDE, SIDE), (1.0, 1.0), "px")
    expected = [
        (place(slice(4, 8), slice(4, 8)), two[0]),
        (place(slice(10, 11), slice(5, 6)), two[1]),
        (place(slice(4, 10), slice(4, 8)), two[0] | two[1]),
        (place(slice(6, 8), slice(12, 14)), place(slice(0, 0))),  # a false positive: there is nowhere to point
    ]
    for region, truth in expected:
        aim = Aim(Target(kind, "1"), "liver", region)
        np.testing.assert_array_equal(true_region(marked, grid, LABELS, tiny_plan(2), aim), truth)


def test_boxes_are_truth_too_and_a_part_of_the_scan_sees_its_part(tmp_path):
    boxed = replace(case(tmp_path, "a"), label=None, boxes="2,3,7,7,liver")
    grid = Geometry.from_spacing((SIDE, SIDE), (1.0, 1.0), "px")
    whole = true_region(boxed, grid, LABELS, tiny_plan(2), LIVER)
    assert whole.sum() == 20
    part = true_region(boxed, grid.cropped((-3, 4), (5, 20)), LABELS, tiny_plan(2), LIVER)
    assert part.shape == (8, 16)
    np.testing.assert_array_equal(part[3:, :12], whole[:5, 4:])
    assert part.sum() == whole[:5, 4:].sum()
