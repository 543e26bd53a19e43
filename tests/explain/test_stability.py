from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.explain.stability import shifted, stability
from medseg.volume import Array


@pytest.mark.parametrize("shape", [(1, 24, 30), (2, 20, 18, 4)])  # a thin axis is not shifted
def test_a_map_that_moves_with_the_image_is_stable(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).random(shape)

    def attribute(x: Array) -> Array:
        return np.asarray(x[0] ** 3)

    assert stability(image, attribute(image), attribute) == pytest.approx(1)


def test_a_map_that_stays_while_the_image_moves_is_less_stable_the_finer_it_is() -> None:
    noise, image = np.random.default_rng(0).random((60, 60)), np.zeros((1, 60, 60))
    found = []
    for sigma in (0, 2, 8):
        heat = ndimage.gaussian_filter(noise, sigma)
        found.append(stability(image, heat, lambda x, heat=heat: heat))  # type: ignore[misc]
    assert abs(found[0]) < 0.05 < found[1] < 0.9 < found[2] < 1


def test_a_target_that_lies_somewhere_moves_with_the_image() -> None:
    image, region = np.random.default_rng(0).random((1, 24, 24)), np.zeros((24, 24), bool)
    region[8:12, 8:12] = True
    heat = image[0] * region
    found = [
        stability(image, heat, lambda x: x[0] * region, moved)
        for moved in (None, lambda shift: lambda x: x[0] * shifted(region, shift))
    ]
    assert found[0] < 0.6 and found[1] == pytest.approx(1)


def test_a_map_of_noise_is_not_stable() -> None:
    noise = np.random.default_rng(0)
    image = np.zeros((1, 50, 50))
    assert abs(stability(image, noise.random((50, 50)), lambda x: noise.random(x.shape[1:]))) < 0.1


def test_an_image_shifted_there_and_back_is_the_same_inside_and_repeats_its_border() -> None:
    image = np.arange(20.0).reshape(4, 5)
    moved = shifted(image, [1, -2])
    assert moved[1, 0] == image[0, 2] and moved[0, 0] == image[0, 2] and (moved[:, -2:] == moved[:, 2:3]).all()
    assert (shifted(moved, [-1, 2])[:3, 2:] == image[:3, 2:]).all()
