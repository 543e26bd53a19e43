from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation.boxes import box_volumes, iou_matrix, longest_edges, match_boxes
from medseg.volume import Array


def some_boxes(count: int, axes: int, seed: int, size: int = 12) -> Array:
    random = np.random.default_rng(seed)
    lower = random.integers(0, size - 1, (count, axes))
    return np.concatenate([lower, lower + random.integers(1, size - lower + 1)], axis=1).astype(float)


def as_mask(box: Array, size: int = 12) -> Array:
    mask = np.zeros((size,) * (len(box) // 2), bool)
    lower, upper = np.split(box.astype(int), 2)
    mask[tuple(slice(a, b) for a, b in zip(lower, upper, strict=True))] = True
    return mask


@pytest.mark.parametrize("axes", [2, 3])
def test_the_overlap_of_boxes_is_that_of_their_masks(axes: int) -> None:
    first, second = some_boxes(12, axes, 0), some_boxes(9, axes, 1)
    iou = iou_matrix(first, second)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            one, two = as_mask(a), as_mask(b)
            assert iou[i, j] == pytest.approx((one & two).sum() / (one | two).sum())
    assert box_volumes(first).tolist() == [as_mask(box).sum() for box in first]


def test_touching_boxes_do_not_overlap_and_equal_ones_do_wholly() -> None:
    box, beside = np.array([[0, 0, 2, 2.0]]), np.array([[2, 0, 4, 2.0]])
    assert iou_matrix(box, beside)[0, 0] == 0 and iou_matrix(box, box)[0, 0] == 1
    assert iou_matrix(box, np.zeros((0, 4))).shape == (1, 0)


def test_the_longest_edge_is_measured_in_millimetres() -> None:
    boxes = np.array([[0, 0, 0, 10, 10, 2], [0, 0, 0, 10, 10, 1.0]])
    assert longest_edges(boxes, (0.5, 0.5, 6)).tolist() == [12, 6]


def test_boxes_choose_in_their_order_and_each_lesion_is_found_once() -> None:
    iou = np.array([[0.3, 0.6], [0.7, 0.0], [0.9, 0.9]])
    partners = match_boxes(iou, [0.1, 0.5, 0.8])
    assert partners[0].tolist() == [1, 0, -1]  # the second lesion to the first box, the best one comes too late
    assert partners[1].tolist() == [1, 0, -1]
    assert partners[2].tolist() == [-1, -1, 1]  # of equal overlaps the last, as COCO does


def test_an_overlap_that_is_just_enough_is_enough() -> None:
    assert match_boxes(np.array([[0.5]]), [0.5]).tolist() == [[0]]
    assert match_boxes(np.array([[1.0]]), [1.0]).tolist() == [[0]]
    assert match_boxes(np.array([[0.4999]]), [0.5]).tolist() == [[-1]]


def test_the_surest_boxes_alone_are_matched_as_among_all() -> None:
    iou = iou_matrix(some_boxes(30, 2, 2), some_boxes(8, 2, 3))
    everything = match_boxes(iou, [0.1, 0.3, 0.5])
    for count in range(1, 30):
        assert (match_boxes(iou[:count], [0.1, 0.3, 0.5]) == everything[:, :count]).all()


def test_nothing_found_and_nothing_true_match_nothing() -> None:
    assert match_boxes(np.zeros((0, 3)), [0.5]).shape == (1, 0)
    assert match_boxes(np.zeros((3, 0)), [0.5]).tolist() == [[-1, -1, -1]]
