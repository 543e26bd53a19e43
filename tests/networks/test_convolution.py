"""Weights get the right gradient on maps that are thinner than the kernel."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from medseg.networks import build_network
from medseg.networks.convolution import make_safe
from tests.tiny import tiny_plan


def weight_gradient(layer: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    """After filling freed memory with NaN, so that what is read without having been written shows."""
    layer.zero_grad()
    junk = [torch.full((1000 * 2**size,), float("nan")) for size in range(6) for _ in range(3)]
    del junk
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    (y.float() * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return layer.weight.grad.clone()  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_in_bfloat16_are_those_in_float32(depth: int, transposed: bool) -> None:
    torch.manual_seed(0)
    layer = make_safe((nn.ConvTranspose3d if transposed else nn.Conv3d)(16, 16, 3, padding=1))
    x = torch.randn(2, 16, depth, 4, 4)
    expected = weight_gradient(layer, x, torch.float32)
    for _ in range(5):
        found = weight_gradient(layer, x, torch.bfloat16)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


SHORT = [  # kernel, stride, size: where PyTorch's own convolution reads or writes foreign memory
    ((3, 3), (2, 2), (2, 1)),
    ((7, 7), (2, 2), (4, 1)),
    ((3, 3), (1, 2), (3, 1)),
    ((3, 3, 3), (2, 2, 2), (3, 3, 1)),
    ((3, 3, 3), (2, 2, 1), (4, 1, 3)),
    ((1, 3, 3), (1, 2, 2), (4, 1, 3)),
    ((3, 3, 3), (1, 2, 2), (3, 1, 1)),
    ((7, 7, 7), (2, 2, 2), (6, 7, 6)),
    ((7, 7, 7), (2, 2, 2), (5, 16, 16)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "size"), SHORT)
def test_short_maps_with_a_stride_have_the_gradient_of_double_precision(
    kernel: tuple[int, ...], stride: tuple[int, ...], size: tuple[int, ...], transposed: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    kinds = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}[len(kernel)]
    padding = tuple(k // 2 for k in kernel)
    own = kinds[transposed](4, 4, kernel, stride, padding)  # type: ignore[arg-type]
    x = torch.randn(2, 4, *size)
    layer = make_safe(copy.deepcopy(own))
    torch.testing.assert_close(layer(x), own(x))
    expected = weight_gradient(own.double(), x.double(), torch.float64).float()
    for _ in range(2):
        found = weight_gradient(layer, x, dtype)
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_weights_keep_their_names_and_networks_can_be_copied() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Conv3d(2, 2, 1), nn.ReLU())
    names = list(network.state_dict())
    make_safe(network)
    assert list(network.state_dict()) == names
    assert type(network[0]) is not nn.Conv3d and type(network[1]) is nn.Conv3d
    assert list(pickle.loads(pickle.dumps(copy.deepcopy(network))).state_dict()) == names


def test_networks_of_monai_are_built_with_safe_convolutions() -> None:
    network = build_network({"_target_": "medseg.networks.monai_nets.unet"}, tiny_plan(), 3)
    large = [m for m in network.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d)) and m.kernel_size[0] > 2]
    assert large and not any(type(m) in (nn.Conv3d, nn.ConvTranspose3d) for m in large)
