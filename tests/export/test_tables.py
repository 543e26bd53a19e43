"""A row a case, with volumes and components whose true size is known."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from medseg.export.manifest import Record
from medseg.export.tables import figures, write_predictions
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry


def test_figures_are_volume_in_ml_and_number_of_components():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[:10, :10, :10] = 1
    mask[12, 12, 12] = mask[13, 13, 13] = 2  # diagonal neighbours are one component
    mask[18, 18, 18] = 2
    prediction = Prediction(
        "a", Geometry.from_spacing(mask.shape, (1, 1, 2)), LabelTable({1: "liver", 2: "lesion", 3: "x"}), mask=mask
    )
    assert figures(prediction, "m/") == {
        "m/liver_ml": pytest.approx(2.0),
        "m/liver_components": 1,
        "m/lesion_ml": pytest.approx(0.006),
        "m/lesion_components": 2,
        "m/x_ml": 0.0,
        "m/x_components": 0,
    }


@pytest.mark.parametrize(("unit", "column", "size"), [("mm", "lesion_mm2", 1.5), ("px", "lesion_px", 1.5)])
def test_pictures_have_areas(unit, column, size):
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :3] = 1
    prediction = Prediction("a", Geometry.from_spacing((4, 4), (1, 0.5), unit), LabelTable({1: "lesion"}), mask=mask)
    assert figures(prediction)[column] == size


def test_regions_that_overlap_are_counted_whole():
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    mask = np.array([[1, 2, 2, 0]], np.uint8)
    found = figures(Prediction("a", Geometry.from_spacing((1, 4), (1, 1)), labels, mask=mask))
    assert (found["whole_mm2"], found["core_mm2"]) == (3, 2)


def test_findings_are_counted_and_the_surest_is_said():
    edges = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4.0]])
    boxes = Boxes(edges, np.array([1, 1, 3]), np.array([0.8, 0.4, 0.3], np.float32))
    labels = LabelTable({1: "cyst", 3: "mass"})
    grid = Geometry.from_spacing((8, 8), (1, 1), "px")
    prediction = Prediction("a", grid, labels, boxes=boxes, thresholds={"cyst": 0.5, "mass": 0.31})
    assert figures(prediction, "m/") == {"m/cyst_lesions": 1, "m/cyst_top_score": 0.8, "m/mass_lesions": 0}
    masked = figures(Prediction("a", grid, labels, mask=np.ones((8, 8), np.uint8), boxes=boxes))
    assert list(masked) == [
        *("cyst_px", "cyst_components", "mass_px", "mass_components"),
        *("cyst_lesions", "cyst_top_score", "mass_lesions", "mass_top_score"),
    ]


def test_the_column_of_the_top_score_is_there_though_nothing_was_found(tmp_path):
    cases = {
        "a": Record("done", 1.0, figures={"cyst_lesions": 0, "mass_lesions": 1, "mass_top_score": 0.5}),
        "b": Record("done", 1.0, figures={"cyst_lesions": 0, "mass_lesions": 0}),
    }
    rows = list(csv.reader(write_predictions(cases, tmp_path).open(newline="")))
    assert rows[0][3:-1] == ["cyst_lesions", "cyst_top_score", "mass_lesions", "mass_top_score"]
    assert [row[3:-1] for row in rows[1:]] == [["0", "", "1", "0.5"], ["0", "", "0", ""]]


def test_the_table_has_a_row_for_every_case_whatever_its_name_holds(tmp_path):
    cases = {
        "b, x": Record("done", 1.0, figures={"liver_ml": 2.5}),
        "a": Record("failed", reason='truncated: "x",\nsee log'),
    }
    rows = list(csv.DictReader(write_predictions(cases, tmp_path).open(newline="")))
    assert [row["case"] for row in rows] == ["a", "b, x"]
    assert rows[0]["status"] == "failed"
    assert rows[0]["liver_ml"] == ""
    assert rows[0]["reason"] == 'truncated: "x",\nsee log'
    assert float(rows[1]["liver_ml"]) == 2.5
