"""What a network has learned is shown as it is: known filters, known activations, and inputs known from a formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.explain.features import Ascent, activations, exciting_input, first_filters, strongest

EDGE = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)


class Edges(nn.Module):
    """Sees edges across the second axis and, in another channel, brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.head = nn.Linear(2, 1)
        with torch.no_grad():
            self.body.weight[0, 0] = torch.from_numpy(EDGE)
            self.body.weight[1, 0] = 1 / 9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu().mean((2, 3)))


def weighing(dimensions: int, weights: list[float]) -> nn.Module:
    """One channel: the weighted sum of the input's channels, voxel by voxel."""
    layer = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(len(weights), 1, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.tensor(weights).reshape(layer.weight.shape)
    return nn.Sequential(layer)


def test_the_first_filters_are_the_weights_of_the_first_convolution():
    name, weights = first_filters(Edges(), np.zeros((1, 6, 6), np.float32))
    assert name == "body"
    np.testing.assert_array_equal(weights[0, 0], EDGE)
    assert weights.shape == (2, 1, 3, 3)


def test_a_network_without_convolutions_has_no_filters():
    with pytest.raises(MedsegError, match="looks at its input with a Conv2d, found none in Linear"):
        first_filters(nn.Linear(2, 2), np.zeros((1, 2, 2), np.float32))
    with pytest.raises(MedsegError, match="with a Conv2d, found none in Sequential"):
        first_filters(nn.Sequential(nn.Flatten(2), nn.Conv1d(1, 1, 1)), np.zeros((1, 2, 2), np.float32))


def test_the_convolution_that_runs_first_is_meant_not_the_one_that_is_declared_first():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.weigh, self.body = nn.Conv2d(4, 1, 1), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(1, 4, 3)

        def forward(self, x):
            return self.head(self.body(self.weigh(x.flatten(2)).reshape(x.shape)))

    name, weights = first_filters(Backwards(), np.zeros((1, 6, 6), np.float32))
    assert (name, weights.shape) == ("body", (4, 1, 3, 3))
    alone = nn.Conv2d(1, 2, 3)
    assert first_filters(alone, np.zeros((1, 6, 6), np.float32))[1].shape == (2, 1, 3, 3)


def test_activations_are_what_the_layer_answers():
    network = Edges()
    image = np.zeros((1, 8, 8), np.float32)
    image[0, :, 4:] = 1
    found = activations(network, "body", image)
    assert found.shape == (2, 8, 8)
    np.testing.assert_allclose(found[0, 1:-1, 3:5], 4)
    np.testing.assert_allclose(found[0, 1:-1, 1:3], 0)
    assert strongest(found, 1) == [0]
    assert not network.body._forward_hooks


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_most_exciting_input_of_a_weighted_sum_is_known(dimensions):
    """It maximises w·x / |w| − energy·|x|² / C a voxel: x = C·w / (2·energy·|w|), the same everywhere."""
    weights, energy = [0.6, -0.8], 0.25
    network = weighing(dimensions, [100 * weight for weight in weights])
    shape = (2, *(6,) * dimensions)
    found = exciting_input(network, "0", 0, shape, Ascent(steps=300, rate=0.05, energy=energy))
    for channel, weight in zip(found, weights, strict=True):
        assert channel.mean() == pytest.approx(2 * weight / (2 * energy), rel=0.15)
        assert channel.std() < 0.1


def test_an_edge_filter_is_excited_by_a_ramp_along_its_axis():
    network = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.ReLU())
    with torch.no_grad():
        network[0].weight[0, 0] = torch.from_numpy(EDGE)
    found = exciting_input(network, "0", 0, (1, 12, 12), Ascent(jitter=0, variation=0.0))[0]
    assert found[:, -1].mean() > 1
    assert found[:, 0].mean() < -1
    assert abs(found[-1].mean() - found[0].mean()) < 0.2


def test_the_same_seed_gives_the_same_input_and_leaves_the_random_numbers_of_others_alone():
    network = Edges()
    state = torch.get_rng_state()
    one, two, other = (exciting_input(network, "body", 1, (1, 8, 8), Ascent(5, seed=s)) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_total_variation_makes_the_input_smoother():
    network = Edges()
    rough, smooth = (exciting_input(network, "body", 0, (1, 12, 12), Ascent(40, variation=v))[0] for v in (0.0, 1.0))
    assert np.abs(np.diff(smooth, axis=1)).mean() < 0.5 * np.abs(np.diff(rough, axis=1)).mean()


def test_a_channel_that_is_not_there_is_refused():
    network = Edges()
    with pytest.raises(MedsegError, match="channels 0 to 1, found 2"):
        exciting_input(network, "body", 2, (1, 8, 8))


def test_a_search_that_cannot_be_is_refused_with_all_that_is_wrong():
    with pytest.raises(MedsegError, match="found steps=0, energy=0"):
        Ascent(steps=0, energy=0)
