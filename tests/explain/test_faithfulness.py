from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.explain.faithfulness import STEPS, Probe, Score, blurred, ranks_of_cells
from medseg.volume import Array


def against_zero(image: Array, score: Score) -> Probe:
    """What is replaced is 0, so that scores are known by hand."""
    nothing = np.zeros_like(image)
    return Probe(image, nothing, score, score(image), score(nothing))


def linear(weights: Array) -> Probe:
    """f(x) = Σ w·x at x = 1, against zero: the perfect map is w itself."""
    return against_zero(np.ones((1, *weights.shape)), lambda x: float((weights * x[0]).sum()))


@pytest.mark.parametrize(
    "weights", [[[5.0, 1, 3], [0.5, 2, 4]], [[5.0, -1, 3], [-0.5, 2, 4]]], ids=["positive", "signed"]
)
def test_the_perfect_map_of_a_linear_score_is_not_beaten_by_any_order_of_the_pixels(weights: list[list[float]]) -> None:
    perfect = np.array(weights)
    probe = linear(perfect)
    deleted, inserted = [], []
    for order in permutations(range(6)):
        heat = np.array(order, float).reshape(2, 3)
        deleted.append(probe.deletion(heat).area)
        inserted.append(probe.insertion(heat).area)
    assert probe.deletion(perfect).area == pytest.approx(min(deleted))
    assert probe.insertion(perfect).area == pytest.approx(max(inserted))
    assert probe.deletion(-perfect).area == pytest.approx(max(deleted))
    if (perfect > 0).all():  # then no score is clipped, and the mean curve is the diagonal
        assert np.mean(deleted) == pytest.approx(0.5) and np.mean(inserted) == pytest.approx(0.5)


def test_areas_are_those_computed_by_hand() -> None:
    weights = np.array([[2.0, 3.0, 1.0]])
    probe = linear(weights)
    curve = probe.deletion(weights)
    assert curve.share == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert curve.score == pytest.approx([1, 3 / 6, 1 / 6, 0])
    assert curve.area == pytest.approx(7 / 18)
    assert probe.insertion(weights).area == pytest.approx(11 / 18)


def test_a_constant_map_lies_in_between_and_falls_by_lot() -> None:
    weights = np.arange(1.0, 37).reshape(6, 6)
    probe, flat = linear(weights), np.ones((6, 6))
    areas = [probe.deletion(flat, seed=seed).area for seed in range(20)]
    assert len(set(areas)) > 10
    assert probe.deletion(weights).area < min(areas) < 0.5 < max(areas) < probe.deletion(-weights).area
    assert probe.deletion(flat, seed=3).area == areas[3]


def test_a_curve_asks_for_few_scores_and_runs_from_one_end_to_the_other() -> None:
    asked: list[float] = []

    def score(x: Array) -> float:
        asked.append(float(x.sum()))
        return asked[-1]

    probe = against_zero(np.ones((2, 20, 20, 20)), score)
    curve = probe.deletion(np.random.default_rng(0).random((20, 20, 20)))
    assert len(asked) == 2 + STEPS - 1
    assert (curve.score[0], curve.score[-1], curve.share[0], curve.share[-1]) == (1, 0, 0, 1)
    assert curve.score == pytest.approx(1 - curve.share)


def test_pixels_of_a_large_image_are_replaced_in_cells() -> None:
    heat = np.random.default_rng(0).random((64, 40))  # cells of 2 × 2
    rank = ranks_of_cells(heat)
    cells = rank.reshape(32, 2, 20, 2)
    assert (cells == cells[:, :1, :, :1]).all() and rank.max() + 1 == 32 * 20
    means = heat.reshape(32, 2, 20, 2).mean((1, 3))
    assert (np.argsort(-means.ravel()) == np.argsort(cells[:, 0, :, 0].ravel())).all()
    assert ranks_of_cells(np.zeros((33, 5))).max() + 1 == 17 * 5  # the last row of cells is one voxel wide


def test_scores_beyond_the_ends_are_clipped() -> None:
    probe = linear(np.array([[4.0, -3.0]]))
    assert probe.insertion(np.array([[1.0, 0.0]])).score == pytest.approx([0, 1, 1])
    assert probe.deletion(np.array([[1.0, 0.0]])).score == pytest.approx([1, 0, 0])


def test_what_stands_in_is_an_image_without_structure_of_the_same_brightness() -> None:
    image = np.zeros((2, 40, 40), np.float32)
    image[0, ::2] = 2  # stripes of a voxel
    image[1] = 5
    probe = Probe.of(image, lambda x: float(x.mean()))
    np.testing.assert_array_equal(probe.replaced, blurred(image))
    assert probe.replaced.dtype == np.float32
    assert abs(probe.replaced[0] - 1).max() < 0.15 and probe.replaced[1] == pytest.approx(5, abs=1e-4)
    assert probe.empty == pytest.approx(probe.whole, rel=0.02)


def test_a_score_without_evidence_is_refused() -> None:
    probe = linear(np.array([[-1.0, 0.5]]))
    assert not probe.is_telling
    with pytest.raises(MedsegError, match=r"-0\.5, not above the fully replaced one \(0\)"):
        probe.deletion(np.ones((1, 2)))
