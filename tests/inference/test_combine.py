"""Several models' masks become one, later ones on top, and their boxes one list, with names that say which model."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.inference.combine import combine
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry

GRID = Geometry.from_spacing((4, 4, 4), (1, 1, 1))


def prediction(names: dict[int, str], values: dict[int, int], grid: Geometry = GRID) -> Prediction:
    """A mask whose slice ``i`` is labelled ``values[i]``."""
    mask = np.zeros(grid.shape, np.uint8)
    for i, value in values.items():
        mask[i] = value
    return Prediction("a", grid, LabelTable(names), mask=mask)


def test_labels_are_renumbered_in_the_order_of_the_models_and_later_ones_lie_on_top():
    organs = prediction({2: "liver", 5: "spleen"}, {0: 2, 1: 5, 2: 2})
    lesions = prediction({1: "lesion"}, {2: 1})
    both = combine({"organs": organs, "lesions": lesions})
    assert dict(both.labels.names) == {1: "organs/liver", 2: "organs/spleen", 3: "lesions/lesion"}
    assert [int(both.mask[i, 0, 0]) for i in range(4)] == [1, 2, 3, 0]
    assert both.mask.dtype == np.uint8


def test_masks_on_different_grids_are_refused():
    other = Geometry.from_spacing((4, 4, 4), (2, 1, 1))
    with pytest.raises(MedsegError, match="'b': expected its result on the scan's own grid"):
        combine({"a": prediction({1: "x"}, {}), "b": prediction({1: "x"}, {}, other)})


def test_more_than_255_labels_still_fit():
    many = prediction({i: f"l{i}" for i in range(1, 201)}, {0: 200})
    both = combine({"a": many, "b": many})
    assert both.mask[0, 0, 0] == 400


def detected(scores: dict[int, list[float]], **thresholds: float) -> Prediction:
    """A box a score of each label; the box's first edge along i is its score."""
    found = [(score, label) for label, of_label in scores.items() for score in of_label]
    edges = np.array([[score, 0, 0, 2, 2, 2] for score, _ in found]).reshape(-1, 6)
    boxes = Boxes(edges, np.array([label for _, label in found], int), np.array([score for score, _ in found]))
    return Prediction("a", GRID, LabelTable({2: "cyst", 7: "mass"}), boxes=boxes, thresholds=thresholds)


def test_boxes_stand_side_by_side_by_falling_score_with_their_own_working_points():
    one, two = detected({2: [0.9, 0.2], 7: [0.5]}, cyst=0.3, mass=0.4), detected({7: [0.7]})
    both = combine({"one": one, "two": two})
    assert both.mask is None
    names = [both.labels.names[int(value)] for value in both.boxes.labels]
    assert names == ["one/cyst", "two/mass", "one/mass", "one/cyst"]
    assert both.boxes.scores.tolist() == both.boxes.boxes[:, 0].tolist() == [0.9, 0.7, 0.5, 0.2]
    assert dict(both.thresholds) == {"one/cyst": 0.3, "one/mass": 0.4, "two/cyst": 0.0, "two/mass": 0.0}
    assert both.findings.scores.tolist() == [0.9, 0.7, 0.5]


def test_a_model_of_masks_and_one_of_boxes_mix_in_any_order():
    organs, lesions = prediction({1: "liver"}, {0: 1}), detected({2: [0.5]}, cyst=0.1, mass=0.1)
    for models in ({"organs": organs, "lesions": lesions}, {"lesions": lesions, "organs": organs}):
        both = combine(models)
        assert {both.labels.names[int(value)] for value in np.unique(both.mask[0])} == {"organs/liver"}
        assert not both.mask[1:].any()
        assert [both.labels.names[int(value)] for value in both.boxes.labels] == ["lesions/cyst"]
        assert set(both.thresholds) == {"lesions/cyst", "lesions/mass"}  # no working point of what only a mask knows
    np.testing.assert_array_equal(organs.mask[0], 1)  # the models' own masks stay as they are


def classed(threshold: float, *inside: str) -> Prediction:
    labels = LabelTable({1: "ill", 2: "well"})
    said = {"classes": {"ill": 0.3, "well": 0.7}, "thresholds": {"well": threshold}}
    return Prediction("a", GRID, labels, **said, class_set=inside or None)


def test_classes_keep_the_thresholds_of_their_models_and_sets_where_all_have_one():
    both = combine({"one": classed(0.2, "well"), "two": classed(0.6, "ill", "well")})
    assert dict(both.thresholds) == {"one/well": 0.2, "two/well": 0.6}
    assert both.class_set == ("one/well", "two/ill", "two/well")
    assert combine({"one": classed(0.2, "well"), "two": classed(0.6)}).class_set is None


def test_models_of_masks_alone_have_no_boxes():
    assert combine({"a": prediction({1: "x"}, {})}).boxes is None


def test_a_model_that_says_nothing_is_named():
    with pytest.raises(MedsegError, match="'b': expected a mask, boxes or classes, found nothing"):
        combine({"a": detected({}), "b": Prediction("a", GRID, LabelTable({1: "x"}))})
