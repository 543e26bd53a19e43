from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.explain.baselines import NAMES, baseline_maps, centre_map, edge_map, random_map, smoothness


def test_noise_is_as_smooth_as_the_map_in_question() -> None:
    shape, sigma = (160, 160), (2.0, 5.0)
    heat = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), sigma, mode="wrap")
    assert smoothness(heat) == pytest.approx(sigma, rel=0.1)
    noise = baseline_maps(np.zeros((1, *shape)), heat)["random"]
    assert smoothness(noise) == pytest.approx(sigma, rel=0.2)


def test_smoothness_has_ends() -> None:
    assert smoothness(np.ones((8, 40, 1))) == (2, 10, 0.25)  # a constant: a quarter of the side
    board = np.indices((8, 8)).sum(0) % 2
    assert smoothness(board) == (0, 0)  # neighbours differ: no smoother than noise


def test_noise_is_the_same_for_a_seed() -> None:
    one, again, other = (random_map((9, 9, 9), (1, 1, 1), seed=seed) for seed in (4, 4, 5))
    assert (one == again).all() and not (one == other).any()


def test_edges_lie_where_an_image_changes() -> None:
    image = np.zeros((2, 10, 12))
    image[1, :, 6:] = 1
    edges = edge_map(image)
    assert (edges[:, [5, 6]] == 4).all() and not edges[:, :5].any() and not edges[:, 7:].any()  # Sobel: 1 + 2 + 1


def test_the_blob_is_in_the_middle_and_the_area_everywhere() -> None:
    blob = centre_map((31, 61, 13))
    assert np.unravel_index(blob.argmax(), blob.shape) == (15, 30, 6) and blob.max() == 1
    assert (blob == blob[::-1, ::-1, ::-1]).all()
    assert centre_map((61, 61))[30, 40] == pytest.approx(np.exp(-0.5 * (10 * 6 / 61) ** 2))
    maps = baseline_maps(np.ones((1, 6, 7)), np.ones((6, 7)))
    assert tuple(maps) == NAMES and (maps["area"] == 1).all()
    assert {heat.shape for heat in maps.values()} == {(6, 7)}
