"""Probabilities become boxes: what is one lesion, how sure it is, and what is chosen on `tune`."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.inference.components import LEVELS, Aggregate, choose_components, components
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array, Geometry

LESION = LabelTable({4: "lesion"})
TWO = LabelTable({1: "mass", 7: "cyst"})


def grid(shape: tuple[int, ...]) -> Geometry:
    return Geometry.from_spacing(shape, (1.0,) * (len(shape) - 1) + (2.0,))


def with_background(*channels: Array) -> Array:
    return np.stack([1 - sum(channels), *channels]).astype(np.float32)


def painted(shape: tuple[int, ...], *blocks: tuple[tuple[int, ...], float]) -> Array:
    """Later blocks ``(edges, probability)`` over earlier ones, on 0.01."""
    values = np.full(shape, 0.01)
    for edges, probability in blocks:
        half = len(edges) // 2
        values[tuple(slice(a, b) for a, b in zip(edges[:half], edges[half:], strict=True))] = probability
    return values


def found(values: Array, labels: LabelTable = LESION, **options: Any) -> Boxes:
    return components(with_background(values), grid(values.shape), labels, **options)


def listed(boxes: Boxes) -> list[tuple[list[int], float]]:
    assert boxes.scores is not None
    return [(list(map(int, box)), round(float(score), 6)) for box, score in zip(boxes.boxes, boxes.scores, strict=True)]


def random_map(seed: int, axes: int = 3) -> Array:
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(20,) * axes), 1.5)
    return 1 / (1 + np.exp(2.5 - 1.5 * smooth / smooth.std()))


# ---- what is a candidate


def test_a_lesion_is_a_box_around_its_voxels_with_the_label_of_its_channel() -> None:
    boxes = found(painted((16, 14, 10), ((2, 3, 4, 6, 8, 7), 0.8)))
    assert listed(boxes) == [([2, 3, 4, 6, 8, 7], 0.8)] and boxes.labels.tolist() == [4]


def test_an_unsure_lesion_is_a_candidate_too_and_comes_behind() -> None:
    values = painted(
        (16, 16), ((0, 0, 3, 3), 0.2), ((6, 6, 9, 9), 0.9), ((12, 12, 15, 15), 0.4), ((0, 12, 2, 14), 0.06)
    )
    assert [score for _, score in listed(found(values))] == [0.9, 0.4, 0.2, 0.06]


def test_what_comes_together_at_a_lower_level_only_stays_apart() -> None:
    values = painted((20, 10), ((2, 2, 16, 6), 0.2), ((3, 3, 6, 5), 0.9), ((12, 3, 15, 5), 0.35))
    assert listed(found(values)) == [([3, 3, 6, 5], 0.9), ([12, 3, 15, 5], 0.35)]


def test_neighbours_across_a_corner_are_one_lesion() -> None:
    values = painted((8, 8, 8), ((1, 1, 1, 2, 2, 2), 0.9), ((2, 2, 2, 3, 3, 3), 0.8))
    assert listed(found(values)) == [([1, 1, 1, 3, 3, 3], 0.9)]


def test_labels_are_looked_at_by_themselves() -> None:
    mass, cyst = painted((12, 12), ((1, 1, 4, 4), 0.7)), painted((12, 12), ((2, 2, 6, 6), 0.2))
    boxes = components(with_background(mass, cyst), grid((12, 12)), TWO)
    assert listed(boxes) == [([1, 1, 4, 4], 0.7), ([2, 2, 6, 6], 0.2)] and boxes.labels.tolist() == [1, 7]


def test_where_nothing_is_likely_there_is_no_box() -> None:
    boxes = found(painted((6, 6, 6)))
    assert boxes.boxes.shape == (0, 6) and boxes.scores is not None and len(boxes.scores) == 0


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_every_likely_voxel_is_near_a_candidate_and_candidates_share_no_voxel(seed: int, axes: int) -> None:
    """Each component of the lowest level holds a candidate, each candidate is a component of the level its score says."""
    values = with_background(random_map(seed, axes))[1]
    boxes = components(with_background(values), grid(values.shape), LESION)
    assert boxes.scores is not None and (np.diff(boxes.scores) <= 0).all() and len(boxes) > 3
    taken = np.zeros(values.shape, int)
    around = np.ones((3,) * axes)
    for box, score in zip(boxes.boxes.astype(int), boxes.scores, strict=True):
        level = max(level for level in LEVELS if level <= score)
        labelled, _ = ndimage.label(values >= level, around)
        peak = np.argwhere((values == np.float32(score)) & (labelled > 0))[0]
        window = tuple(slice(a, b) for a, b in zip(box[:axes], box[axes:], strict=True))
        assert ndimage.find_objects(labelled)[labelled[tuple(peak)] - 1] == window
        taken[labelled == labelled[tuple(peak)]] += 1
    assert taken.max() == 1
    lowest, count = ndimage.label(values >= LEVELS[-1], around)
    assert (ndimage.maximum(taken, lowest, range(1, count + 1)) == 1).all()


def test_the_order_of_axes_does_not_matter() -> None:
    values = random_map(5)
    one, two = found(values), found(np.ascontiguousarray(values[::-1].transpose(2, 0, 1)))
    turned = two.boxes[:, [1, 2, 0, 4, 5, 3]]
    turned[:, [0, 3]] = values.shape[0] - turned[:, [3, 0]]
    assert sorted(map(tuple, turned)) == sorted(map(tuple, one.boxes))


# ---- scores and sizes


@pytest.mark.parametrize("aggregate", ["max", "mean", "p95"])
def test_a_score_is_made_of_the_probabilities_inside_the_component(aggregate: Aggregate) -> None:
    random = np.random.default_rng(0)
    values = np.full((20, 20), 0.01)
    values[3:10, 4:12] = random.uniform(0.5, 1, (7, 8))
    values[14:17, 2:5] = random.uniform(0.31, 0.49, (3, 3))
    values = with_background(values)[1].astype(np.float64)
    makes = {"max": np.max, "mean": np.mean, "p95": lambda inside: np.percentile(inside, 95)}[aggregate]
    boxes = found(values, aggregate=aggregate)
    assert boxes.scores == pytest.approx([makes(values[3:10, 4:12]), makes(values[14:17, 2:5])], abs=1e-6)


def test_smaller_components_are_left_out_by_their_volume() -> None:
    values = painted((20, 10, 10), ((1, 1, 1, 3, 3, 3), 0.9), ((10, 2, 2, 14, 6, 6), 0.6))
    assert [score for _, score in listed(found(values))] == [0.9, 0.6]
    assert [score for _, score in listed(found(values, smallest_mm3=16.0))] == [0.9, 0.6]  # 8 voxels of 2 mm³
    assert [score for _, score in listed(found(values, smallest_mm3=16.5))] == [0.6]


def test_a_core_that_is_too_small_leaves_its_surroundings_as_the_lesion() -> None:
    values = painted((12, 12), ((2, 2, 8, 8), 0.2), ((4, 4, 5, 5), 0.9))
    assert listed(found(values)) == [([4, 4, 5, 5], 0.9)]
    assert listed(found(values, smallest_mm3=10.0)) == [([2, 2, 8, 8], 0.9)]


def test_at_most_a_hundred_of_a_label_are_kept_the_surest() -> None:
    values = np.full((60, 60), 0.01)
    values[::4, ::4] = np.linspace(0.1, 0.9, 225).reshape(15, 15)
    boxes = found(values)
    assert boxes.scores is not None and len(boxes) == 100
    assert boxes.scores.min() == pytest.approx(np.sort(values[::4, ::4].ravel())[-100], abs=1e-6)


# ---- what is refused


@pytest.mark.parametrize(
    ("shape", "labels", "options", "message"),
    [
        ((2, 6, 6), LabelTable({1: "a", 2: "b"}, regions={"all": (1, 2)}, paint=(1,)), {}, "regions all"),
        ((3, 6, 6), LESION, {}, r"expected probabilities \(2, 6, 6\), found \(3, 6, 6\)"),
        ((2, 6, 6), LESION, {"aggregate": "median"}, "expected one of max, mean, p95"),
    ],
)
def test_what_cannot_be_made_into_boxes_is_refused(
    shape: tuple[int, ...], labels: LabelTable, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedsegError, match=message):
        components(np.zeros(shape, np.float32), grid((6, 6)), labels, **options)


# ---- what is chosen on tune


def example(seed: int, specks: bool) -> tuple[Array, Boxes, Geometry]:
    """Two lesions of moderate probability and, with ``specks``, brighter single voxels that are none; every third is empty."""
    random = np.random.default_rng(seed)
    blocks, true = [], []
    for corner in (3, 20) if seed % 3 else ():
        low = random.integers(corner, corner + 5, 2)
        edges = (*low, *(low + 6))
        blocks.append((edges, float(random.uniform(0.6, 0.7))))
        true.append(edges)
    for place in random.integers(14, 18, 3 * int(specks)).tolist():
        blocks.append(((14, place, 15, place + 1), 0.95))
    values = painted((36, 36), *blocks)
    truth = Boxes(np.array(true, float).reshape(-1, 4), np.full(len(true), 4))
    return with_background(values), truth, Geometry.from_spacing(values.shape, (0.5, 0.5))


def test_the_first_options_are_taken_where_all_are_equal() -> None:
    chosen = choose_components((example(seed, specks=False) for seed in range(9)), LESION)
    assert (chosen["aggregate"], chosen["smallest_mm3"], chosen["fp_per_scan"]) == ("max", 0.0, 1.0)
    assert isinstance(chosen["thresholds"], dict)
    assert list(chosen["thresholds"]) == ["lesion"] and len(chosen["thresholds"]["lesion"]) == 7


def test_specks_are_left_out_where_tune_shows_that_they_are_none() -> None:
    examples = [example(seed, specks=True) for seed in range(9)]
    chosen = choose_components(iter(examples), LESION)
    assert chosen["smallest_mm3"] == 1.0  # four pixels of 0.25 mm²
    for probabilities, truth, geometry in examples:
        size = float(str(chosen["smallest_mm3"]))
        boxes = components(probabilities, geometry, LESION, smallest_mm3=size)
        assert sorted(map(tuple, boxes.boxes)) == sorted(map(tuple, truth.boxes))


def test_a_tune_without_lesions_chooses_the_working_point_alone(caplog: pytest.LogCaptureFixture) -> None:
    chosen = choose_components([example(0, specks=True)] * 2, LESION, fp_per_scan=0.5)
    assert (chosen["aggregate"], chosen["smallest_mm3"], chosen["fp_per_scan"]) == ("max", 0.0, 0.5)
    assert "hold no lesion" in caplog.text
    with pytest.raises(MedsegError, match="at least one case"):
        choose_components([], LESION)


def test_a_large_case_takes_seconds_and_more_voxels_cost_in_proportion() -> None:
    """Seconds of this process for a tenth of 200×200×150 voxels, dense with components; the whole takes ten times that."""
    spent = []
    for shape in ((100, 100, 30), (100, 100, 60)):
        smooth = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 1.0)
        values = ((smooth - smooth.min()) / np.ptp(smooth)) ** 3
        started = time.process_time()
        assert len(found(values)) == 100
        spent.append(time.process_time() - started)
    assert spent[1] < 1.0
    assert all(later < 6 * max(sooner, 0.02) for sooner, later in pairwise(spent))
