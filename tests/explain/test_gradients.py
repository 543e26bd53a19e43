"""Gradient methods on networks whose attributions are known by hand, and on windows that must add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.explain.gradients import gradient, guided_backprop, integrated_gradients, smooth_grad
from medseg.networks.layers import InstanceNorm
from tests.explain.nets import Functional, Hidden, convolutions, plan_2d, random_array, score_of, weighted
from tests.tiny import tiny_model, tiny_plan


def linear(*weights: float) -> nn.Sequential:
    """Background says 0, the lesion a weighted sum of the channels, at each voxel."""
    return weighted(nn.Conv2d(len(weights), 2, 1), weights=[[[0.0] * len(weights), list(weights)]])


def halves(shape: tuple[int, ...]) -> np.ndarray:
    region = np.zeros(shape, bool)
    region[: shape[0] // 2] = True
    return region


def test_the_gradient_of_a_linear_network_is_its_weights_inside_the_region() -> None:
    array, region = random_array((2, 4, 4)), halves((4, 4))
    found = gradient(score_of(linear(3.0, -1.0), array, plan_2d(channels=2), region), array)
    np.testing.assert_allclose(found, np.where(region, (3 - 1) / 8, 0), atol=1e-6)


def test_the_gradient_of_one_voxel_of_a_convolution_is_its_kernel() -> None:
    kernel = np.arange(1.0, 10).reshape(3, 3)
    network = weighted(nn.Conv2d(1, 2, 3, padding=1), weights=[np.stack([0 * kernel, kernel]).tolist()])
    array, region = random_array((1, 4, 4)), np.zeros((4, 4), bool)
    region[1, 2] = True
    found = gradient(score_of(network, array, region=region), array)
    expected = np.zeros((4, 4))
    expected[0:3, 1:4] = kernel
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (7, 9), (3, 6)])
def test_windows_of_a_linear_network_have_no_seams(shape: tuple[int, int]) -> None:
    array, region = random_array((1, *shape)), halves(shape)
    score = score_of(linear(2.0), array, region=region)
    np.testing.assert_allclose(gradient(score, array), np.where(region, 2 / region.sum(), 0), rtol=1e-3, atol=1e-7)
    found = integrated_gradients(score, array, steps=3)
    np.testing.assert_allclose(found, np.where(region, 2 * array[0] / region.sum(), 0), rtol=1e-3, atol=1e-6)


def test_maps_of_windows_add_up_to_the_gradient_of_the_whole_score() -> None:
    array, region = random_array((1, 9, 6)), random_array((9, 6), 1) > 0
    torch.manual_seed(0)
    score = score_of(convolutions(2, 1, 2), array, region=region)
    assert len(score.shares) > 4
    direction = random_array((1, 9, 6), 2)
    step = 1e-2
    rise = (score(array + step * direction) - score(array - step * direction)) / (2 * step)
    assert float((gradient(score, array) * direction[0]).sum()) == pytest.approx(rise, rel=0.02)


def test_integrated_gradients_add_up_to_what_the_score_rises_from_an_empty_case() -> None:
    array, region = random_array((1, 7, 4)), halves((7, 4))
    torch.manual_seed(1)
    score = score_of(convolutions(2, 1, 2), array, region=region)
    rise = score(array) - score(np.zeros_like(array))
    assert float(integrated_gradients(score, array, steps=24).sum()) == pytest.approx(rise, rel=0.02)
    assert abs(rise) > 1e-3


def test_noise_changes_nothing_in_a_linear_network() -> None:
    array = random_array((1, 6, 5))
    score = score_of(linear(2.0), array)
    np.testing.assert_allclose(smooth_grad(score, array, samples=3, noise=0.5), gradient(score, array), atol=1e-6)


def test_noise_is_drawn_by_seed_and_averaged() -> None:
    array = random_array((1, 6, 5))
    torch.manual_seed(0)
    score = score_of(convolutions(2, 1, 2), array)
    first = smooth_grad(score, array, samples=2, noise=1.0, seed=3)
    np.testing.assert_array_equal(first, smooth_grad(score, array, samples=2, noise=1.0, seed=3))
    assert np.abs(first - smooth_grad(score, array, samples=2, noise=1.0, seed=4)).max() > 1e-4
    np.testing.assert_allclose(smooth_grad(score, array, samples=2, noise=0.0), gradient(score, array), atol=1e-7)


def leaky(rectifier: nn.Module) -> nn.Sequential:
    """x → 2x and −3x → rectifier → lesion: the first less the second."""
    return weighted(nn.Conv2d(1, 2, 1), rectifier, nn.Conv2d(2, 2, 1), weights=[[2.0, -3.0], [[0.0, 0.0], [1.0, -1.0]]])


PLUS, MINUS = np.ones((1, 4, 4), np.float32), -np.ones((1, 4, 4), np.float32)


def test_the_guided_rule_by_hand_on_leaky_relu() -> None:
    """At x = 1 the slopes are 1 and 0.1: the gradient is 1·1·2 + (−1)·0.1·(−3) = 2.3. Guided, the second path's −1 is cut off.
    At x = −1 the slopes are 0.1 and 1: 1·0.1·2 + (−1)·1·(−3) = 3.2, and guided 0.2."""
    network = leaky(nn.LeakyReLU(0.1))
    for array, plain, guided in ((PLUS, 2.3, 2.0), (MINUS, 3.2, 0.2)):
        score = score_of(network, array)
        np.testing.assert_allclose(gradient(score, array), plain / 16, rtol=1e-5)
        np.testing.assert_allclose(guided_backprop(score, array), guided / 16, rtol=1e-5)


@pytest.mark.parametrize(
    ("rectifier", "slopes"),
    [
        (nn.ReLU(inplace=True), (1.0, 0.0)),
        (nn.PReLU(init=0.3), (1.0, 0.3)),
        (nn.ELU(), (1.0, float(np.exp(-2)))),
        (nn.ReLU6(), (1.0, 0.0)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_guided_rule_has_the_slope_of_each_rectifier(rectifier: nn.Module, slopes: tuple[float, float]) -> None:
    for array, slope in zip((PLUS, MINUS), slopes, strict=True):
        found = guided_backprop(score_of(leaky(rectifier), array), array)
        np.testing.assert_allclose(found, 2 * slope / 16, atol=1e-6)


@pytest.mark.parametrize("rectifier", [nn.SiLU(), nn.GELU(), nn.Mish()], ids=lambda value: type(value).__name__)
def test_where_a_rectifier_falls_nothing_is_passed_back(rectifier: nn.Module) -> None:
    """These fall below about −1.3: at 2·(−1) = −2 the slope is negative, and the plain gradient is."""
    network = weighted(nn.Conv2d(1, 1, 1), rectifier, nn.Conv2d(1, 2, 1), weights=[[2.0], [0.0, 1.0]])
    score = score_of(network, MINUS)
    assert (gradient(score, MINUS) < 0).all()
    assert (guided_backprop(score, MINUS) == 0).all()


def test_a_rectifier_that_is_a_plain_function_in_place_is_guided_too() -> None:
    network = leaky(nn.Identity())
    found = guided_backprop(score_of(Functional(network[0], network[2]), PLUS), PLUS)
    np.testing.assert_allclose(found, 2.0 / 16, rtol=1e-5)


def test_the_rectifier_inside_our_norm_is_guided_like_one_behind_it() -> None:
    array = random_array((1, 4, 4))
    weights = [[1.0, -2.0], [[0.0, 0.0], [1.0, -1.0]]]
    fused = weighted(nn.Conv2d(1, 2, 1), InstanceNorm(2, slope=0.1), nn.Conv2d(2, 2, 1), weights=weights)
    apart = weighted(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2), nn.LeakyReLU(0.1), nn.Conv2d(2, 2, 1), weights=weights)
    region = array[0] > 0.5
    expected = guided_backprop(score_of(apart, array, region=region), array)
    assert np.abs(expected - gradient(score_of(apart, array, region=region), array)).max() > 1e-3
    np.testing.assert_allclose(guided_backprop(score_of(fused, array, region=region), array), expected, atol=1e-6)
    assert fused[1].slope == 0.1


@pytest.mark.parametrize("target", ["plain_unet", "residual_unet"])
def test_our_networks_can_be_guided_and_stay_as_they_are(target: str) -> None:
    model = tiny_model(0, tiny_plan(2), f"medseg.networks.unet.{target}")
    network, array = model.network_module(), random_array((1, 8, 8))
    plan = plan_2d(8, labels=model.plan.labels)
    before = score_of(network, array, plan)(array)
    score = score_of(network, array, plan)
    assert np.abs(guided_backprop(score, array) - gradient(score, array)).max() > 1e-5
    assert score(array) == before


def test_what_cannot_be_guided_is_refused_by_name() -> None:
    array = random_array((1, 4, 4))
    with pytest.raises(MedsegError, match="cannot be applied to HiddenRectifier of this network"):
        guided_backprop(score_of(Hidden(), array), array)
    with pytest.raises(MedsegError, match="calls none of relu, .*take method=gradient"):
        guided_backprop(score_of(linear(1.0), array), array)


def test_impossible_options_are_named() -> None:
    array = random_array((1, 4, 4))
    score = score_of(linear(1.0), array)
    with pytest.raises(MedsegError, match="steps ≥ 1, found 0"):
        integrated_gradients(score, array, steps=0)
    with pytest.raises(MedsegError, match="found 0 and -1"):
        smooth_grad(score, array, samples=0, noise=-1)
