from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.explain.sanity import (
    DEPENDS,
    SAME_WITHOUT_WEIGHTS,
    UNRELIABLE,
    flags_of,
    rank_correlation,
    structural_similarity,
)

NOISE = np.random.default_rng(0)


def test_ranks_see_order_alone() -> None:
    heat = NOISE.random((7, 9))
    assert rank_correlation(heat, np.exp(5 * heat)) == pytest.approx(1)
    assert rank_correlation(heat, -heat) == pytest.approx(-1)
    # ranks 1 2 3 4 against 2 1 4 3: 1 − 6·4 / (4·15)
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 9, 5])) == pytest.approx(0.6)


def test_a_constant_map_is_like_another_constant_map_only() -> None:
    heat, flat = NOISE.random((4, 4, 4)), np.zeros((4, 4, 4))
    assert rank_correlation(flat, flat + 3) == 1
    assert rank_correlation(flat, heat) == 0 == rank_correlation(heat, flat)


@pytest.mark.parametrize("shape", [(40, 50), (16, 17, 18)])
def test_structure_that_is_the_same_unlike_or_turned_over(shape: tuple[int, ...]) -> None:
    heat = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 3)
    other = ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(shape), 3)
    assert structural_similarity(heat, heat) == pytest.approx(1)
    assert structural_similarity(heat, 7 * heat - 2) == pytest.approx(1)  # brought to one range
    grainy = structural_similarity(heat, heat + 0.1 * heat.std() * NOISE.standard_normal(shape))
    assert abs(structural_similarity(heat, other)) < grainy < 1
    assert structural_similarity(heat, -heat) < 0


def test_one_hot_voxel_does_not_make_maps_alike() -> None:
    heat, other = np.random.default_rng(3).random((2, 40, 40))
    heat[5, 5] = other[5, 5] = 1e6
    assert structural_similarity(heat, other) < 0.3


def test_constant_maps_have_the_same_structure() -> None:
    assert structural_similarity(np.zeros((8, 8)), np.full((8, 8), 2.0)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("shuffled_rank", "stability", "flags"),
    [
        (0.65, 0.95, ()),
        (0.70, 0.95, (SAME_WITHOUT_WEIGHTS,)),
        (0.45, 0.60, (SAME_WITHOUT_WEIGHTS,)),  # little, but most of what the map reproduces at all
        (0.01, 0.02, (UNRELIABLE,)),  # noise is not dependence on the weights
        (np.nan, 0.9, ()),
        (0.9, np.nan, ()),
    ],
)
def test_flags_follow_the_rule(shuffled_rank: float, stability: float, flags: tuple[str, ...]) -> None:
    assert DEPENDS == 0.7
    assert flags_of(shuffled_rank, stability) == flags
