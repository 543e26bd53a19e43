"""Fusing gives each lesion once, keeps what all views agree on, and doubts what only some of them saw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.structures import Boxes
from medseg.tiling.fusion import RIM_FLOOR, BoxMerger, nms, rim_weight, soft_nms, weighted_box_clustering
from medseg.tiling.windows import window_starts

FUSIONS = {
    "nms": nms,
    "soft_nms": soft_nms,
    "wbc": lambda boxes, scores, labels, iou: weighted_box_clustering(boxes, scores, labels, iou=iou),
}


def crowd(count: int, dimensions: int, seed: int, size: float = 60.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random boxes of two classes that overlap a lot."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, size, (count, dimensions))
    half = rng.uniform(2, 12, (count, dimensions))
    return np.hstack([centre - half, centre + half]), rng.uniform(0.05, 1, count), rng.integers(1, 3, count)


def iou_of(one: np.ndarray, other: np.ndarray) -> float:
    half = len(one) // 2
    shared = np.prod(np.clip(np.minimum(one[half:], other[half:]) - np.maximum(one[:half], other[:half]), 0, None))
    return float(shared / (np.prod(one[half:] - one[:half]) + np.prod(other[half:] - other[:half]) - shared))


def slow_groups(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou: float) -> list[list[int]]:
    """What greedy grouping means, written without any thought of speed: each group starts with its best box."""
    left, groups = list(np.argsort(-scores)), []
    while left:
        best = left[0]
        group = [i for i in left if labels[i] == labels[best] and iou_of(boxes[best], boxes[i]) > iou]
        groups.append([int(i) for i in group])
        left = [i for i in left if i not in group]
    return groups


@pytest.mark.parametrize("iou", [0.0, 0.1, 0.5, 0.8])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_nms_keeps_the_best_box_of_every_group(dimensions: int, iou: float) -> None:
    boxes, scores, labels = crowd(60, dimensions, seed=dimensions, size=40)
    best = [group[0] for group in slow_groups(boxes, scores, labels, iou)]
    found = nms(boxes, scores, labels, iou)
    np.testing.assert_array_equal(found[0], boxes[best])
    np.testing.assert_array_equal(found[1], scores[best])
    np.testing.assert_array_equal(found[2], labels[best])


@pytest.mark.parametrize("iou", [0.1, 0.4])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_weighted_clustering_is_the_formula_of_the_paper(dimensions: int, iou: float) -> None:
    boxes, scores, labels = crowd(60, dimensions, seed=7, size=40)
    rng = np.random.default_rng(8)
    views, weight = rng.integers(1, 9, 60), rng.uniform(0.01, 1, 60)
    rows = []
    for group in slow_groups(boxes, scores * weight, labels, iou):
        best, s, c = boxes[group[0]], scores[group], boxes[group]
        f = np.array([iou_of(best, box) for box in c])
        a = np.prod(c[:, dimensions:] - c[:, :dimensions], axis=1)
        w = f * a * weight[group]
        missing = max(0.0, views[group].mean() - len(group))
        score = (s * w).sum() / (w.sum() + missing * w.mean())
        rows.append((score, labels[group[0]], (c * (s * w)[:, None]).sum(0) / (s * w).sum()))
    rows.sort(key=lambda row: -row[0])
    found = weighted_box_clustering(boxes, scores, labels, iou=iou, views=views, weight=weight)
    np.testing.assert_allclose(found[1], [row[0] for row in rows])
    np.testing.assert_array_equal(found[2], [row[1] for row in rows])
    np.testing.assert_allclose(found[0], np.stack([row[2] for row in rows]))


def test_soft_nms_lowers_a_score_by_what_each_better_box_covers() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [0, 5, 10, 15], [0, 10, 10, 20]])  # neighbours share a third
    found = soft_nms(boxes, np.array([0.9, 0.6, 0.8]), np.ones(3, int), 0.3)
    np.testing.assert_allclose(found[1], [0.9, 0.8, 0.6 * (2 / 3) * (2 / 3)])
    np.testing.assert_array_equal(found[0], boxes[[0, 2, 1]])
    # Below the threshold nothing is lowered, and what falls under the floor is gone.
    np.testing.assert_allclose(soft_nms(boxes, np.array([0.9, 0.6, 0.8]), np.ones(3, int), 0.4)[1], [0.9, 0.8, 0.6])
    assert len(soft_nms(boxes, np.array([0.9, 0.6, 0.8]), np.ones(3, int), 0.3, floor=0.3)[1]) == 2


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_order_in_which_boxes_come_does_not_matter(name: str, dimensions: int) -> None:
    boxes, scores, labels = crowd(200, dimensions, seed=3)
    scores = np.round(scores, 1)  # many ties
    expected = FUSIONS[name](boxes, scores, labels, 0.2)
    shuffle = np.random.default_rng(4).permutation(200)
    found = FUSIONS[name](boxes[shuffle], scores[shuffle], labels[shuffle], 0.2)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_the_order_in_which_views_and_their_boxes_come_does_not_matter() -> None:
    boxes, scores, labels = crowd(200, 3, seed=5)
    scores = np.round(scores, 1)
    rng = np.random.default_rng(6)
    known = {"views": rng.integers(3, 9, 200), "weight": rng.uniform(0.01, 1, 200), "source": rng.integers(0, 8, 200)}
    expected = weighted_box_clustering(boxes, scores, labels, iou=0.1, **known)
    shuffle = rng.permutation(200)
    shuffled = {name: values[shuffle] for name, values in known.items()}
    found = weighted_box_clustering(boxes[shuffle], scores[shuffle], labels[shuffle], iou=0.1, **shuffled)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("name", FUSIONS)
def test_boxes_that_do_not_touch_come_back_as_they_were_by_falling_score(name: str) -> None:
    corners = np.array(list(itertools.product(range(4), repeat=3)), float) * 10
    boxes = np.hstack([corners, corners + np.random.default_rng(0).uniform(1, 9, corners.shape)])
    scores = np.linspace(0.1, 1.0, len(boxes))
    found = FUSIONS[name](boxes, scores, np.ones(len(boxes), int), 0.0)
    np.testing.assert_allclose(found[0], boxes[::-1])
    np.testing.assert_allclose(found[1], scores[::-1])
    again = FUSIONS[name](*found, 0.0)
    np.testing.assert_allclose(again[0], found[0])
    np.testing.assert_allclose(again[1], found[1])


@pytest.mark.parametrize("name", FUSIONS)
def test_boxes_of_different_classes_never_meet(name: str) -> None:
    boxes = np.array([[2.0, 2, 8, 8], [2, 2, 8, 8]])
    found = FUSIONS[name](boxes, np.array([0.5, 0.9]), np.array([1, 2]), 0.2)
    np.testing.assert_array_equal(found[2], [2, 1])
    np.testing.assert_allclose(found[1], [0.9, 0.5])


@pytest.mark.parametrize("name", FUSIONS)
def test_nothing_fuses_into_nothing(name: str) -> None:
    found = FUSIONS[name](np.zeros((0, 6)), np.zeros(0), np.zeros(0, int), 0.2)
    assert [part.shape for part in found] == [(0, 6), (0,), (0,)]


def test_a_box_that_all_views_see_keeps_its_score_and_one_seen_by_one_of_n_has_an_nth_of_it() -> None:
    box = np.array([[3.0, 4, 5, 9, 9, 9]])
    for views in (1, 4, 8):
        everyone = weighted_box_clustering(
            box.repeat(views, 0), np.full(views, 0.8), np.ones(views, int), iou=0.2, views=views
        )
        np.testing.assert_allclose(everyone[0], box)
        np.testing.assert_allclose(everyone[1], [0.8])
        lonely = weighted_box_clustering(box, np.array([0.8]), np.ones(1, int), iou=0.2, views=views)
        np.testing.assert_allclose(lonely[1], [0.8 / views])


def test_several_boxes_of_one_view_count_as_one_vote_of_its_best() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10]])
    scores, labels = np.array([0.9, 0.1, 0.9]), np.ones(3, int)
    kept = weighted_box_clustering(boxes, scores, labels, iou=0.2, views=2, source=np.array([0, 0, 1]))
    np.testing.assert_allclose(kept[1], [0.9])
    # Two neighbouring boxes of the same view do not stand for the view that saw nothing.
    half = weighted_box_clustering(boxes[:2], scores[:2], labels[:2], iou=0.2, views=2, source=np.array([0, 0]))
    np.testing.assert_allclose(half[1], [0.45])


def test_a_box_at_the_rim_of_its_window_counts_less_unless_the_scan_ends_there() -> None:
    shape, patch = (96, 48), (48, 48)
    boxes = np.array([[20.0, 0, 28, 8], [38, 20, 42, 24], [40, 20, 48, 28], [44, 20, 52, 28]])
    np.testing.assert_allclose(rim_weight(boxes, (0, 0), patch, shape), [1, 0.5, RIM_FLOOR, RIM_FLOOR])
    # From the window on the other side, whose rim is at 48.
    np.testing.assert_allclose(rim_weight(np.array([[54.0, 0, 60, 8]]), (48, 0), patch, shape), [0.5])
    np.testing.assert_array_equal(rim_weight(boxes[:3], (0, 0), patch, patch), np.ones(3))


def test_a_lesion_cut_by_a_window_gets_the_box_of_the_window_that_holds_it_whole() -> None:
    merger = BoxMerger((144, 96, 96))
    lesion = np.array([80.0, 40, 40, 100, 60, 60])
    for lower in window_starts((144, 96, 96), (96, 96, 96)):
        start = np.array([*lower, *lower], float)
        seen = np.clip(lesion - start, 0, 96)[None]
        merger.add(Boxes(seen, np.array([1]), np.array([0.7])), lower, (96, 96, 96))
    found = merger.result()
    np.testing.assert_allclose(found.boxes, lesion[None], atol=0.2)
    np.testing.assert_allclose(found.scores, [0.7])


def test_the_silence_of_a_view_speaks_against_a_box_only_where_it_could_have_seen_it() -> None:
    shape, patch = (64, 32), (32, 32)
    merger = BoxMerger(shape)
    nothing = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    once = Boxes(np.array([[4.0, 4, 10, 10]]), np.array([1]), np.array([0.8]))
    for lower in window_starts(shape, patch):  # from 0, 16 and 32
        for mirrored in (False, True):
            merger.add(once if lower == (0, 0) and not mirrored else nothing, lower, patch)
    np.testing.assert_allclose(merger.result().scores, [0.4])
    merger.add(nothing, (16, 0), patch)
    np.testing.assert_allclose(merger.result().scores, [0.4])
    merger.add(nothing, (0, 0), patch)
    np.testing.assert_allclose(merger.result().scores, [0.8 / 3])


def test_a_planted_box_comes_back_from_every_window_and_member() -> None:
    """Windows that reach beyond a small grid included: there the window starts at a negative voxel."""
    for shape in ((50, 20, 70), (20, 20, 20)):
        merger = BoxMerger(shape)
        planted = np.array([5.0, 6, 7, 13, 12, 17])
        rng = np.random.default_rng(0)
        for lower, _member in itertools.product(window_starts(shape, (32, 32, 32)), range(5)):
            start = np.array([*lower, *lower])
            if (planted[:3] >= start[:3]).all() and (planted[3:] <= start[3:] + 32).all():
                jitter = rng.normal(0, 0.3, 6)
                merger.add(Boxes((planted - start + jitter)[None], np.array([2]), np.array([0.9])), lower, (32,) * 3)
        found = merger.result()
        assert np.abs(found.boxes - planted).max() < 0.5
        np.testing.assert_allclose(found.scores, [0.9])
        np.testing.assert_array_equal(found.labels, [2])


@pytest.mark.parametrize("fusion", ["wbc", "nms", "soft_nms"])
def test_what_lies_beyond_the_grid_is_cut_and_what_lies_wholly_beyond_is_gone(fusion) -> None:
    merger = BoxMerger((20, 30), fusion=fusion)
    assert merger.result().boxes.shape == (0, 4)
    outside = np.array([[0.0, 0, 8, 9], [0, 0, 3, 40]])  # the window starts at (−6, −1)
    merger.add(Boxes(outside, np.array([1, 1]), np.array([0.5, 0.4])), (-6, -1), (32, 32))
    np.testing.assert_allclose(merger.result().boxes, [[0, 0, 2, 8]])
    np.testing.assert_allclose(merger.result().scores, [0.5])


def test_mistakes_are_named() -> None:
    box, label = np.array([[0.0, 0, 1, 1]]), np.ones(1, int)
    with pytest.raises(MedsegError, match="1 of 1 have a score .* NaN"):
        nms(box, np.array([np.nan]), label, 0.5)
    with pytest.raises(MedsegError, match="NaN"):
        BoxMerger((8, 8)).add(Boxes(box, label, np.array([np.nan])), (0, 0), (8, 8))
    with pytest.raises(MedsegError, match="no extent"):
        nms(box[:, [0, 1, 0, 3]], np.ones(1), label, 0.5)
    with pytest.raises(MedsegError, match=r"iou 1\.5"):
        BoxMerger((8, 8), iou=1.5)
    with pytest.raises(MedsegError, match="expected one of wbc, nms, soft_nms"):
        BoxMerger((8, 8), fusion="median")  # type: ignore[arg-type]
    with pytest.raises(MedsegError, match="a score for each box"):
        BoxMerger((8, 8)).add(Boxes(box, label), (0, 0), (8, 8))
    with pytest.raises(MedsegError, match="grid of 3 axes"):
        BoxMerger((8, 8, 8)).add(Boxes(box, label, np.ones(1)), (0, 0, 0), (8, 8, 8))
    with pytest.raises(MedsegError, match="N scores"):
        nms(box, np.ones(2), label, 0.5)


def test_a_sloppy_view_does_not_pull_the_box_but_is_no_lesion_of_its_own() -> None:
    exact, sloppy = [[10.0, 10, 20, 20]], [[10.0, 10, 20, 34]]
    found = {}
    for cluster in (0.5, 0.2):
        merger = BoxMerger((40, 40), iou=0.2, cluster=cluster)
        for box, score in ((exact, 0.9), (exact, 0.8), (sloppy, 0.7)):
            merger.add(Boxes(np.array(box), np.array([1]), np.array([score])), (0, 0), (40, 40))
        found[cluster] = merger.result()
    assert found[0.5].boxes.tolist() == exact and len(found[0.2]) == 1
    assert found[0.2].boxes[0, 3] > 22


def test_views_that_agree_have_no_spread_and_half_of_them_silent_spreads_by_half_the_score():
    box = np.array([[2.0, 2, 6, 6]])
    found = Boxes(box, np.ones(1, np.int64), np.array([0.8]))
    silent = Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0))
    for second, expected in ((found, 0.0), (silent, 0.4)):
        merger = BoxMerger((8, 8), fusion="wbc", iou=0.2)
        for view in (found, second):
            merger.add(view, (0, 0), (8, 8))
        assert merger.result().spread == pytest.approx([expected])


def test_spread_looks_at_the_views_that_could_have_seen_the_box_only():
    merger = BoxMerger((20, 8), fusion="nms", iou=0.2)
    merger.add(Boxes(np.array([[2.0, 2, 6, 6]]), np.ones(1, np.int64), np.array([0.8])), (0, 0), (8, 8))
    merger.add(Boxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0)), (12, 0), (8, 8))
    assert merger.result().spread == pytest.approx([0.0])
