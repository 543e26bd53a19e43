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

from medseg.commands.judge import judge, true_region
from medseg.errors import MedsegError, SomeFailed
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
    np.testing.assert_array_equal(true_region(marked, grid, LABELS, plan, "liver"), expected)
    np.testing.assert_array_equal(true_region(marked, grid, LABELS, plan, "malignant"), expected)
    assert not true_region(marked, grid, LABELS, plan, "lesion").any()
    assert true_region(replace(marked, label=None), grid, LABELS, plan, "liver") is None
    assert true_region(marked, grid, None, plan, "liver") is None


def test_boxes_are_truth_too_and_a_part_of_the_scan_sees_its_part(tmp_path):
    boxed = replace(case(tmp_path, "a"), label=None, boxes="2,3,7,7,liver")
    grid = Geometry.from_spacing((SIDE, SIDE), (1.0, 1.0), "px")
    whole = true_region(boxed, grid, LABELS, tiny_plan(2), "liver")
    assert whole.sum() == 20
    part = true_region(boxed, grid.cropped((-3, 4), (5, 20)), LABELS, tiny_plan(2), "liver")
    assert part.shape == (8, 16)
    np.testing.assert_array_equal(part[3:, :12], whole[:5, 4:])
    assert part.sum() == whole[:5, 4:].sum()
