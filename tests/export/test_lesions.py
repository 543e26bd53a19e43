from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation import lesions as components
from medseg.export.lesions import lesions_of, longest_diameter
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Array, Geometry

LABELS = LabelTable({1: "liver", 2: "tumour"})
SPACING = (0.5, 2.0, 3.0)


def predicted(
    mask: Array | None, boxes: Boxes | None = None, labels: LabelTable = LABELS, **thresholds: float
) -> Prediction:
    shape = (12, 10, 8) if mask is None else mask.shape
    grid = Geometry.from_spacing(shape, SPACING[: len(shape)])
    return Prediction("case", grid, labels, mask=mask, boxes=boxes, thresholds=thresholds)


def volume(*parts: tuple[slice | int, ...], value: int = 2) -> Array:
    mask = np.zeros((12, 10, 8), np.uint8)
    for part in parts:
        mask[part] = value
    return mask


def test_components_of_lesion_labels_are_lesions_by_falling_size() -> None:
    small, large = np.s_[0, 0, 0], np.s_[4:8, 3:5, 2:4]
    mask = volume(small, large)
    mask[10, 9, 7] = 1
    first, second = lesions_of(predicted(mask), ["tumour"])
    assert (first.id, second.id, first.label) == (1, 2, "tumour")
    assert first.size == pytest.approx(16 * 3.0) and second.size == pytest.approx(3.0)
    assert first.score is None
    np.testing.assert_array_equal(first.box_vox, (4, 3, 2, 8, 5, 4))


def test_voxels_that_touch_by_a_corner_are_one_lesion() -> None:
    assert len(lesions_of(predicted(volume(np.s_[1, 1, 1], np.s_[2, 2, 2])), ["tumour"])) == 1
    picture = np.zeros((6, 6), np.uint8)
    picture[1, 1] = picture[2, 2] = picture[4, 4] = 2
    assert len(lesions_of(predicted(picture), ["tumour"])) == 2


def test_boxes_are_lesions_by_falling_score() -> None:
    boxes = Boxes(np.array([[0, 0, 0, 2, 2, 2], [1, 1, 1, 9, 3, 4.0]]), np.array([2, 1]), np.array([0.2, 0.7]))
    first, second = lesions_of(predicted(None, boxes), [])
    assert (first.score, first.label, second.label) == (0.7, "liver", "tumour")
    assert first.size is None
    assert first.diameter == pytest.approx(4.0)  # 8 × 0.5 mm and 2 × 2 mm; the 3 × 3 mm across slices do not count


def test_boxes_without_scores_come_by_falling_size() -> None:
    boxes = Boxes(np.array([[0, 0, 0, 1, 1, 1.0], [0, 0, 0, 3, 3, 3]]), np.array([2, 2]))
    assert [one.box_vox[3] for one in lesions_of(predicted(None, boxes), [])] == [3, 1]


def test_a_box_takes_its_voxels_and_a_component_that_no_box_holds_is_no_lesion() -> None:
    mask = volume(np.s_[2:5, 2:4, 2], np.s_[9:11, 8, 6])
    boxes = Boxes(np.array([[1.6, 1.7, 1.6, 4.4, 4.2, 3.4]]), np.array([2]), np.array([0.1]))
    (boxed,) = lesions_of(predicted(mask, boxes), ["tumour"])
    assert boxed.is_box and boxed.score == 0.1
    assert boxed.size == pytest.approx(4 * 3.0)  # columns 2 and 3: the centre of 4 lies at 4.5
    np.testing.assert_array_equal(boxed.box_vox, boxes.boxes[0])


def test_a_box_below_the_working_point_is_no_lesion_nor_are_its_voxels() -> None:
    mask = volume(np.s_[2:5, 2:4, 2])
    boxes = Boxes(np.array([[2.0, 2, 2, 5, 4, 3], [8, 8, 6, 9, 9, 7]]), np.array([2, 2]), np.array([0.4, 0.5]))
    (only,) = lesions_of(predicted(mask, boxes, tumour=0.5), ["tumour"])
    assert only.id == 1 and only.score == 0.5 and only.size is None
    assert lesions_of(predicted(mask, boxes, tumour=0.6), ["tumour"]) == []


def test_components_of_a_label_that_another_model_masks_come_behind_the_findings() -> None:
    boxes = Boxes(np.array([[0, 0, 0, 2, 1, 1.0]]), np.array([1]), np.array([0.9]))
    box, component = lesions_of(predicted(volume(np.s_[3:9, 3:9, 3]), boxes, liver=0.5), ["liver", "tumour"])
    assert (box.id, box.label, box.size, box.is_box) == (1, "liver", None, True)
    assert (component.id, component.label, component.score, component.is_box) == (2, "tumour", None, False)
    assert component.size == pytest.approx(36 * 3.0)


def test_a_detector_that_finds_nothing_leaves_the_components_of_its_mask_unsaid() -> None:
    nothing = Boxes(np.zeros((0, 6)), np.zeros(0, int), np.zeros(0))
    assert lesions_of(predicted(volume(np.s_[1, 1, 1]), nothing, tumour=0.5), ["tumour"]) == []
    assert lesions_of(predicted(volume(np.s_[1, 1, 1]), nothing), ["tumour"]) == []


def test_equal_scores_are_told_apart_by_size_whatever_the_mask_says() -> None:
    edges = np.array([[0, 0, 0, 1, 1, 1.0], [0, 0, 0, 3, 3, 3], [5, 5, 5, 9, 6, 6]])
    boxes = Boxes(edges, np.array([2, 2, 2]), np.array([0.5, 0.5, 0.7], np.float32))
    assert boxes.ranked().boxes[:, 3].tolist() == [9, 3, 1]
    found = lesions_of(predicted(volume(np.s_[0, 0, 0]), boxes), [])
    assert [one.box_vox[3] for one in found] == [9, 3, 1]


def test_regions_are_lesions_too() -> None:
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    mask = volume(np.s_[2:6, 2:6, 2:6], value=1)
    mask[3, 3, 3] = 2
    whole, core = lesions_of(predicted(mask, labels=labels), ["whole", "core"])
    assert (whole.label, core.label) == ("whole", "core")
    assert whole.size == pytest.approx(64 * 3.0) and core.size == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (np.s_[4, 4, 4], np.hypot(0.5, 2.0)),
        (np.s_[0:10, 4, 4], np.hypot(5.0, 2.0)),
        (np.s_[4, 4, 0:8], np.hypot(0.5, 2.0)),
        (np.s_[0:12, 0:10, 3], np.hypot(6.0, 20.0)),
    ],
    ids=["one voxel", "a row", "across slices", "a slice"],
)
def test_the_diameter_is_the_longest_in_one_slice_from_corner_to_corner(
    region: tuple[slice, ...], expected: float
) -> None:
    mask = np.zeros((12, 10, 8), bool)
    mask[region] = True
    assert longest_diameter(mask, SPACING) == pytest.approx(expected)


def test_the_diameter_is_that_of_all_pairs_of_corners() -> None:
    picture = np.random.default_rng(3).random((9, 7)) < 0.1
    corners = [(i + a, j + b) for i, j in np.argwhere(picture) for a in (0, 1) for b in (0, 1)]
    points = np.array(corners) * (0.5, 2.0)
    expected = max(float(np.linalg.norm(a - b)) for a in points for b in points)
    assert longest_diameter(picture, (0.5, 2.0)) == pytest.approx(expected)


def test_a_prediction_without_lesions_has_none() -> None:
    assert lesions_of(predicted(volume()), ["tumour"]) == []
    assert lesions_of(predicted(None), ["tumour"]) == []
    nothing = Boxes(np.zeros((0, 6)), np.zeros(0, int), np.zeros(0))
    assert lesions_of(predicted(volume(np.s_[1, 1, 1]), nothing), []) == []


def test_lesions_that_many_slabs_hold_are_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two prongs that meet three planes further on: one lesion, and in the first planes one diameter across both.
    mask = volume(np.s_[1, 1, 0:4], np.s_[1, 8, 0:4], np.s_[1, 1:9, 3], np.s_[8, 4, 6])
    expected = lesions_of(predicted(mask), ["tumour"])
    assert expected[0].diameter == pytest.approx(np.hypot(8 * 2.0, 0.5))
    monkeypatch.setattr(components, "_SLAB", mask[..., 0].size)
    found = lesions_of(predicted(mask), ["tumour"])
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert (one.id, one.size, one.diameter) == (other.id, other.size, other.diameter)
        np.testing.assert_array_equal(one.box_vox, other.box_vox)


def test_the_diameter_of_a_plane_spans_parts_that_meet_in_another_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = volume(np.s_[1, 1, 0:4], np.s_[9, 1, 0:4], np.s_[1:10:8, 1:3, 3], np.s_[1:10, 2, 3])
    mask[2:9, 2, 3] = 0
    mask[1:10, 2, 4] = 2  # joins the prongs in a plane of its own
    monkeypatch.setattr(components, "_SLAB", mask[..., 0].size)
    (one,) = lesions_of(predicted(mask), ["tumour"])
    assert one.diameter == pytest.approx(
        np.hypot(9 * 0.5, 2 * 2.0)
    )  # in plane 3; what joins the prongs is 1 voxel wide
