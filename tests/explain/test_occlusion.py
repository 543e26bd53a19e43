"""Occlusion by hand, against Captum's in one window, and over windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from torch import nn

from medseg.errors import MedsegError
from medseg.explain.occlusion import occlusion
from tests.explain.nets import convolutions, plan_2d, random_array, score_of, weighted


def test_covering_a_box_of_a_linear_network_costs_what_is_in_it() -> None:
    network = weighted(nn.Conv2d(1, 2, 1), weights=[[0.0, 3.0]])
    array, region = random_array((1, 4, 8)), np.ones((4, 8), bool)
    region[:, 6:] = False
    found = occlusion(score_of(network, array, region=region), array, size=2, stride=2)
    lost = (3 * array[0] * region / region.sum()).reshape(2, 2, 4, 2).sum((1, 3))
    np.testing.assert_allclose(found, lost.repeat(2, 0).repeat(2, 1), rtol=1e-3, atol=1e-6)


def test_of_one_window_it_is_captums() -> None:
    torch.manual_seed(0)
    network, array = convolutions(2, 1, 2), random_array((1, 8, 8))
    expected = Occlusion(lambda x: network(x)[:, 1].mean((1, 2))).attribute(
        torch.from_numpy(array)[None], sliding_window_shapes=(1, 3, 3), strides=(1, 2, 2)
    )
    found = occlusion(score_of(network, array, plan_2d(8)), array, size=3, stride=2)
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-6)


def test_size_is_a_length_and_its_default_follows_the_window() -> None:
    network = weighted(nn.Conv2d(1, 2, 1), weights=[[0.0, 1.0]])
    array = random_array((1, 8, 8))
    fine = plan_2d(8, spacing=(0.5, 1.0), unit="mm")
    found = occlusion(score_of(network, array, fine), array, size=2, stride=2)
    assert len(np.unique(found.round(6), axis=0)) == 2 and len(np.unique(found.round(6), axis=1).T) == 4
    array = random_array((1, 16, 16))
    default = occlusion(score_of(network, array, plan_2d(16)), array)
    np.testing.assert_allclose(default, occlusion(score_of(network, array, plan_2d(16)), array, size=2, stride=1))


def test_impossible_boxes_are_named() -> None:
    array = random_array((1, 4, 4))
    score = score_of(convolutions(2, 1, 2), array)
    for options in ({"size": 0}, {"size": 2, "stride": 3}, {"stride": -1}):
        with pytest.raises(MedsegError, match="expected size > 0 and 0 < stride ≤ size"):
            occlusion(score, array, **options)
