"""Targets: names and ids as in the result folder, voxels on the scan's own grid, and what is said of those that do not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.data.preprocess import preprocess
from medseg.errors import MedsegError
from medseg.explain.targets import Target, aims_of, region_on_plan, targets_of
from medseg.export.lesions import lesions_of
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry, Volume
from tests.tiny import LABELS, tiny_plan

GRID = Geometry.from_spacing((12, 10, 6), (1.0, 1.0, 2.0))


def masked() -> Prediction:
    """Lesions of 8, 27 and 2 voxels, and a liver of 30."""
    mask = np.zeros(GRID.shape, np.uint8)
    mask[0:2, 0:2, 0:2] = 3
    mask[4:7, 4:7, 0:3] = 3
    mask[10, 8, 4:6] = 3
    mask[0:6, 9, 1:6] = 1
    return Prediction("p", GRID, LABELS, mask=mask)


def boxed(**more: Any) -> Prediction:
    edges = [[1, 1, 1, 4, 4, 4], [5.2, 5, 1, 9.6, 9, 3], [0, 0, 0, 2, 2, 2]]
    boxes = Boxes(np.array(edges, float), np.array([3, 1, 3]), np.array([0.6, 0.9, 0.1]))
    return Prediction("p", GRID, LABELS, boxes=boxes, thresholds={"lesion": 0.5, "liver": 0.5}, **more)


def classified(**thresholds: float) -> Prediction:
    return Prediction("p", GRID, LABELS, classes={"liver": 0.7, "lesion": 0.3}, thresholds=thresholds)


def found(prediction: Prediction, text: str) -> np.ndarray:
    voxels = aims_of(prediction, [Target.parse(text)])[0].region
    assert voxels is not None and voxels.shape == prediction.geometry.shape
    return voxels


def test_a_target_is_read_as_it_is_written() -> None:
    for text in ("lesion=1", "lesion-1", " lesion = 1 "):
        assert Target.parse(text) == Target("lesion", "1")
    assert str(Target.parse("label=non-enhancing core")) == "label-non-enhancing core"
    assert Target.parse("class-a=b").name == "a=b"


@pytest.mark.parametrize("text", ["tumour", "organ=liver", "lesion=0", "box=first", "box="])
def test_what_is_no_target_is_said(text: str) -> None:
    with pytest.raises(MedsegError, match="such as"):
        Target.parse(text)


def test_lesions_are_numbered_as_in_the_report() -> None:
    prediction = masked()
    for lesion in lesions_of(prediction, list(LABELS.targets)):
        voxels = found(prediction, f"lesion={lesion.id}")
        assert voxels.sum() * GRID.voxel_volume == lesion.size
        assert aims_of(prediction, [Target("lesion", str(lesion.id))])[0].output == lesion.label
    assert found(prediction, "lesion=2").sum() == 27
    assert (found(prediction, "label=lesion") == (prediction.mask == 3)).all()


def test_boxes_are_numbered_by_falling_score_and_fill_their_voxels() -> None:
    prediction = boxed()
    voxels = found(prediction, "box=1")
    assert voxels[5:10, 5:9, 1:3].all() and voxels.sum() == 5 * 4 * 2
    aim = aims_of(prediction, [Target("box", "2")])[0]
    assert aim.output == "lesion" and aim.region is not None and aim.region.sum() == 27
    assert [lesion.label for lesion in lesions_of(prediction, ())] == ["liver", "lesion"]


def test_a_lesion_of_a_model_with_boxes_is_what_its_box_marks() -> None:
    mask = np.zeros(GRID.shape, np.uint8)
    mask[2:6, 2:6, 2:6] = 3
    assert found(boxed(mask=mask), "lesion=2").sum() == 2**3
    assert found(boxed(), "lesion=2").sum() == 27


def test_regions_that_overlap_are_labels_too() -> None:
    table = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    mask = np.zeros(GRID.shape, np.uint8)
    mask[1:4], mask[2] = 1, 2
    prediction = Prediction("p", GRID, table, mask=mask)
    assert found(prediction, "label=whole").sum() == 3 * 60
    assert targets_of(prediction) == [Target("label", "whole"), Target("label", "core")]


def test_what_is_explained_where_nobody_says() -> None:
    assert targets_of(masked()) == [Target("label", "liver"), Target("label", "lesion")]
    assert targets_of(boxed()) == [Target("box", "1"), Target("box", "2")]
    assert targets_of(classified()) == [Target("class", "liver")]
    assert targets_of(classified(lesion=0.25)) == [Target("class", "lesion")]
    assert targets_of(classified(lesion=0.35)) == [Target("class", "liver")]
    # Of two that exclude each other, the other one is called below the threshold.
    assert targets_of(classified(liver=0.8)) == [Target("class", "lesion")]
    assert targets_of(classified(liver=0.6, lesion=0.2)) == [Target("class", "liver"), Target("class", "lesion")]
    assert targets_of(classified(liver=0.8, lesion=0.4)) == [Target("class", "liver")]
    assert targets_of(Prediction("p", GRID, LABELS, mask=np.zeros(GRID.shape, np.uint8))) == []


def test_all_targets_that_do_not_exist_are_named_with_those_that_do() -> None:
    asked = [Target("label", "kidney"), Target("lesion", "9"), Target("class", "a"), Target("box", "1")]
    with pytest.raises(MedsegError) as error:
        aims_of(masked(), asked)
    said = str(error.value)
    assert "label-kidney: the model has no label 'kidney'; it has liver, lesion" in said
    assert "lesion-9: expected one of lesion-1 to lesion-4" in said
    assert "class-a: the model has no class 'a'; it gives no classes; ask for label-liver, label-lesion" in said
    assert "box-1: the model finds no boxes; ask for label-liver" in said
    with pytest.raises(MedsegError, match="box-3: expected one of box-1 to box-2"):
        aims_of(boxed(), [Target("box", "3")])
    with pytest.raises(MedsegError, match="has no class 'x'; it has liver, lesion"):
        aims_of(classified(), [Target("class", "x")])
    with pytest.raises(MedsegError, match="it gives no masks; ask for box-1, box-2"):
        aims_of(boxed(), [Target("label", "liver")])


def test_an_empty_mask_has_nothing_to_point_at() -> None:
    empty = Prediction("p", GRID, LABELS, mask=np.zeros(GRID.shape, np.uint8))
    with pytest.raises(MedsegError, match="holds no 'liver', so there is nothing to point at; this case has nothing"):
        aims_of(empty, [Target("label", "liver")])
    with pytest.raises(MedsegError, match="the mask is empty, so there is no lesion"):
        aims_of(empty, [Target("lesion", "1")])
    none = Boxes(np.zeros((0, 6)), np.zeros(0, int), np.zeros(0))
    with pytest.raises(MedsegError, match="box-1: no box was found"):
        aims_of(Prediction("p", GRID, LABELS, boxes=none), [Target("box", "1")])


def test_a_class_lies_nowhere() -> None:
    assert aims_of(classified(), [Target("class", "liver")])[0].region is None


@pytest.mark.parametrize("size", [1, 6])
def test_a_region_reaches_the_plans_grid_however_small_it_is(size: int) -> None:
    plan = tiny_plan(spacing=(2.0, 2.0, 4.0))
    _, restoration = preprocess(Volume(np.ones((1, *GRID.shape), np.float32), GRID), plan)
    voxels = np.zeros(GRID.shape, bool)
    voxels[3 : 3 + size, 2, 1] = True
    moved = region_on_plan(voxels, restoration, plan)
    assert moved.shape == restoration.shape == (6, 5, 3)
    centre = np.argwhere(moved).mean(0)
    expected = restoration.geometry.to_index(GRID.to_world(np.argwhere(voxels).mean(0)))
    assert np.abs(centre - expected).max() <= 0.75
