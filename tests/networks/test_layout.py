"""Channels lie beside one another, and a single channel says so too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medseg.networks.layout import channels_last, channels_last_format


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_values_and_gradients_stay_and_channels_have_stride_one(dimensions, channels):
    x = torch.randn(2, channels, *(4, 5, 6)[:dimensions]).requires_grad_()
    turned = channels_last(x)
    assert torch.equal(turned, x) and turned.stride(1) == 1
    assert turned.is_contiguous(memory_format=channels_last_format(dimensions))
    weights = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((turned * weights).sum(), x)
    torch.testing.assert_close(gradient, weights)


def test_a_convolution_of_one_channel_answers_channels_last_where_weights_or_map_say_so():
    weight, x = torch.randn(8, 1, 3, 3, 3), torch.randn(2, 1, 6, 6, 6)
    expected = F.conv3d(x, weight, padding=1)
    for one, other in ((channels_last(x), weight), (x, channels_last(weight))):
        found = F.conv3d(one, other, padding=1)
        assert found.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
