"""Levels and anchors of boxes whose sizes are known, the share that they reach, and plans that no lesion fits."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
import yaml

from medseg.errors import MedsegError
from medseg.planning.anchors import (
    ENOUGH,
    MOST_ANCHORS,
    BoxPlan,
    BoxStatistics,
    cluster_sizes,
    plan_boxes,
    reached,
)

HALVED = {dimensions: ((1,) * dimensions, *((2,) * dimensions,) * 5) for dimensions in (2, 3)}
"""Six stages, hence decoder levels 0 to 4 with cells of 1, 2, 4, 8 and 16 voxels."""
LESION = {1: "lesion"}


def statistics(voxels: np.ndarray, labels: np.ndarray | None = None) -> BoxStatistics:
    voxels = np.asarray(voxels, float)
    return BoxStatistics(voxels, voxels * 2.0, np.ones(len(voxels), int) if labels is None else labels)


def around(size: tuple[float, ...], count: int, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Sizes scattered about ``size`` by a factor of e^±spread or so."""
    return np.array(size) * np.exp(np.random.default_rng(seed).normal(0, spread, (count, len(size))))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    shared = np.minimum(one, other).prod()
    return float(shared / (np.prod(one) + np.prod(other) - shared))


@pytest.mark.parametrize(
    ("size", "level"),
    [
        *(((4.0 * s,) * 2, n) for n, s in enumerate((0.5, 3, 6, 11, 25))),
        *(((2.0 * s,) * 3, n) for n, s in enumerate((0.75, 3, 6, 11, 25))),
    ],
)
def test_boxes_of_one_size_need_one_anchor_on_the_coarsest_level_of_which_they_span_enough_cells(
    size: tuple[float, ...], level: int
) -> None:
    """Four cells in 2D, two in 3D."""
    plan = plan_boxes(statistics(around(size, 60)), HALVED[len(size)], (128,) * len(size), classes=LESION)
    assert plan.levels == (level,)
    assert len(plan.anchors) == len(plan.anchors[0]) == 1
    np.testing.assert_allclose(plan.anchors[0][0], size, rtol=0.05)
    assert plan.reach == 1.0


def test_a_rare_class_of_small_boxes_gets_its_own_level() -> None:
    boxes, labels = np.vstack([around((80.0, 80), 200), around((10.0, 10), 4)]), np.repeat([1, 2], [200, 4])
    plan = plan_boxes(statistics(boxes, labels), HALVED[2], (256, 256), classes={1: "cell", 2: "platelet"})
    assert plan.levels == (1, 4)
    assert plan.reach == 1.0


def test_small_and_large_boxes_get_a_level_each_and_none_between() -> None:
    boxes = np.vstack([around((5.0, 5, 5), 30), around((40.0, 40, 40), 30)])
    plan = plan_boxes(statistics(boxes), HALVED[3], (96, 96, 96), classes=LESION)
    assert plan.levels == (1, 4)
    np.testing.assert_allclose(plan.anchors[0], [[5, 5, 5]], rtol=0.05)
    np.testing.assert_allclose(plan.anchors[1], [[40, 40, 40]], rtol=0.05)


def test_a_few_tiny_boxes_do_not_ask_for_a_finer_level_but_many_do() -> None:
    large = around((40.0, 40, 40), 97)
    few = plan_boxes(statistics(np.vstack([large, [[3, 3, 3]] * 3])), HALVED[3], (96,) * 3, classes=LESION)
    assert few.levels == (4,)
    assert few.reach == 0.97
    many = plan_boxes(statistics(np.vstack([large, [[3, 3, 3]] * 10])), HALVED[3], (96,) * 3, classes=LESION)
    assert many.levels == (1, 4)  # a cell of 2 voxels is the coarsest that fits into them
    assert many.reach == 1.0


def test_a_few_huge_boxes_do_not_get_a_level_of_their_own() -> None:
    plan = plan_boxes(
        statistics(np.vstack([around((10.0, 10), 97), [[80, 80]] * 3])), HALVED[2], (128, 128), classes=LESION
    )
    assert plan.levels == (1,)


def test_an_axis_that_is_not_halved_does_not_keep_a_box_from_a_coarse_level() -> None:
    strides = ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    flat = plan_boxes(statistics(around((20.0, 20, 1.5), 40, 0.01)), strides, (128, 128, 16), classes=LESION)
    assert flat.levels == (2,)
    assert flat.reach == 1.0


def test_boxes_of_two_shapes_get_an_anchor_each() -> None:
    boxes = np.vstack([around((12.0, 36), 40), around((36.0, 12), 40)])
    plan = plan_boxes(statistics(boxes), HALVED[2], (128, 128), classes=LESION)
    np.testing.assert_allclose(sorted(plan.anchors[0]), [[12, 36], [36, 12]], rtol=0.05)


def test_clusters_are_those_that_no_exchange_improves_and_come_by_rising_volume() -> None:
    boxes = np.exp(np.random.default_rng(0).normal(2.5, 0.5, (150, 3)))
    sizes = cluster_sizes(boxes, 5)
    assert (np.diff(sizes.prod(axis=1)) > 0).all()
    nearest = np.array([np.argmax([iou(box, size) for size in sizes]) for box in boxes])
    for index, size in enumerate(sizes):
        np.testing.assert_allclose(size, np.exp(np.log(boxes[nearest == index]).mean(axis=0)))


def test_more_clusters_than_boxes_are_the_boxes() -> None:
    boxes = np.array([[2.0, 2], [30, 4]])
    np.testing.assert_allclose(cluster_sizes(boxes, 6), boxes)


def test_a_box_is_reached_if_it_fits_the_patch_holds_a_cell_and_resembles_an_anchor() -> None:
    anchors, strides, patch = [((8.0, 8.0),), ((32.0, 32.0),)], np.array([[4, 4], [16, 16]]), np.array([64, 64])
    boxes = {
        (8.0, 8.0): True,
        (8.0, 4.0): True,  # IoU of exactly a half
        (8.0, 3.99): False,  # shorter than a cell by less than the slack, but less than a half
        (10.0, 3.9): False,  # shorter than a cell
        (16.0, 16.0): False,  # a quarter of either anchor
        (32.0, 17.0): True,
        (64.0, 16.1): False,
        (65.0, 32.0): False,  # longer than the patch
    }
    found = reached(np.array(list(boxes)), anchors, strides, patch)
    assert dict(zip(boxes, found.tolist(), strict=True)) == boxes


def test_the_share_in_reach_is_that_of_boxes_with_a_similar_anchor() -> None:
    boxes = np.exp(np.random.default_rng(1).normal(2.5, 0.6, (300, 3)))
    plan = plan_boxes(statistics(boxes), HALVED[3], (96, 96, 96), classes=LESION)
    found = [
        any(
            iou(box, np.array(size)) >= 0.5 and (box >= 0.99 * 2**level).all()
            for level, sizes in zip(plan.levels, plan.anchors, strict=True)
            for size in sizes
        )
        for box in boxes
    ]
    assert plan.reach == pytest.approx(np.mean(found), abs=1e-4)
    assert 0.5 < plan.reach < 1
    assert max(map(len, plan.anchors)) <= MOST_ANCHORS


def test_the_order_of_the_boxes_does_not_matter() -> None:
    boxes = np.exp(np.random.default_rng(2).normal(2.5, 0.6, (100, 3)))
    shuffled = boxes[np.random.default_rng(3).permutation(100)]
    one, other = (plan_boxes(statistics(b), HALVED[3], (96,) * 3, classes=LESION) for b in (boxes, shuffled))
    assert one == other


def test_each_class_has_its_smallest_median_and_largest_length_in_mm(caplog) -> None:
    boxes = np.array([[4.0, 6], [6, 6], [8, 7], [20, 30]])
    with caplog.at_level(logging.WARNING, "medseg"):
        plan = plan_boxes(
            statistics(boxes, np.array([1, 1, 1, 2])), HALVED[2], (64, 64), classes={1: "cell", 2: "clump", 3: "dust"}
        )
    assert plan.smallest == {"cell": (8, 12), "clump": (40, 60)}
    assert plan.median == {"cell": (12, 12), "clump": (40, 60)}
    assert plan.largest == {"cell": (16, 14), "clump": (40, 60)}
    assert "no training case has a box of dust" in caplog.text
    assert "cell 100.0%" in plan.why["reach"]


def test_a_plan_returns_from_yaml() -> None:
    boxes = np.exp(np.random.default_rng(4).normal(2.5, 0.5, (60, 3)))
    plan = plan_boxes(statistics(boxes), HALVED[3], (96,) * 3, classes=LESION)
    assert BoxPlan.from_plain(yaml.safe_load(yaml.safe_dump(plan.to_plain()))) == plan
    assert {"levels", "anchors", "reach"} <= set(plan.why)


def test_lesions_out_of_reach_are_a_warning_that_says_why(caplog) -> None:
    boxes = np.vstack([around((10.0, 10, 10), 80), [[60, 10, 10]] * 20, [[0.5, 10, 10]] * 4])
    with caplog.at_level(logging.WARNING, "medseg"):
        plan = plan_boxes(statistics(boxes), HALVED[3], (40, 40, 40), classes=LESION)
    assert plan.reach == pytest.approx(80 / 104, abs=1e-4)
    assert plan.reach < ENOUGH
    assert "reach 77 % of 104 boxes" in caplog.text
    assert "20 are longer than the patch 40×40×40" in caplog.text
    assert "4 are shorter than a cell" in caplog.text


@pytest.mark.parametrize(("size", "cause"), [(100.0, "longer than the patch"), (0.4, "shorter than a cell")])
def test_a_plan_that_no_lesion_fits_is_refused(size: float, cause: str) -> None:
    with pytest.raises(MedsegError, match=f"no lesion fits this plan: .*{cause}"):
        plan_boxes(statistics(around((size,) * 3, 10)), HALVED[3], (64, 64, 64), classes=LESION)


def test_mistakes_are_named() -> None:
    sizes = statistics(around((10.0, 10), 5), np.full(5, 7))
    with pytest.raises(MedsegError, match=r"labels \[7\] are not among the classes"):
        plan_boxes(sizes, HALVED[2], (64, 64), classes=LESION)
    for strides, patch in itertools.product((HALVED[2], HALVED[3], HALVED[2][:1]), ((64, 64), (64, 64, 64))):
        if strides != HALVED[2] or len(patch) != 2:
            with pytest.raises(MedsegError, match="strides of two or more stages"):
                plan_boxes(sizes, strides, patch, classes={7: "lesion"})


def test_a_plan_that_was_edited_into_nonsense_is_refused() -> None:
    plan = plan_boxes(statistics(around((10.0, 10), 5)), HALVED[2], (64, 64), classes=LESION)
    plain = plan.to_plain()
    for change, message in (
        ({"levels": [0, 1]}, "a list of anchors for each"),
        ({"levels": []}, "ascending levels"),
        ({"anchors": [[]]}, "at least one anchor"),
        ({"anchors": [[[4, -1]]]}, "lengths above 0"),
        ({"anchors": [[[4, 4], [4, 4, 4]]]}, "at least one anchor"),
        ({"reach": 2}, "between 0 and 1"),
        ({"reach": None}, "wrong type"),
        ({"anchros": 1}, "look at .*anchros"),
    ):
        with pytest.raises(MedsegError, match=message):
            BoxPlan.from_plain(plain | change)
    with pytest.raises(MedsegError, match="ascending levels"):
        replace(plan, levels=(3, 1), anchors=plan.anchors * 2)
