"""The layers written for speed do what PyTorch's own do, in every layout, and so do their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.networks.layers import AveragePool, InstanceNorm, UpConcat, add_leaky_relu

SIZES = {2: (6, 8), 3: (4, 6, 8)}
LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}
dimensional = pytest.mark.parametrize("dimensions", [2, 3])
in_both_layouts = pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])


def draw(shape: Sequence[int], last: bool, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) * 2 + 1
    return x.contiguous(memory_format=LAYOUT[len(shape) - 2] if last else torch.contiguous_format).requires_grad_()


def assert_same_gradients(found: Tensor, expected: Tensor, inputs: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    weight = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    one = torch.autograd.grad((found * weight).sum(), inputs, retain_graph=True)
    two = torch.autograd.grad((expected * weight).sum(), inputs)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def made_norm(channels: int, slope: float) -> InstanceNorm:
    norm = InstanceNorm(channels, slope=slope).double()
    with torch.no_grad():
        norm.weight.normal_(generator=torch.Generator().manual_seed(2))
        norm.bias.normal_(generator=torch.Generator().manual_seed(3))
    return norm


@dimensional
@in_both_layouts
@pytest.mark.parametrize("slope", [0.01, 1.0])
def test_norm_and_activation_equal_those_of_pytorch(dimensions: int, last: bool, slope: float) -> None:
    x = draw((3, 5, *SIZES[dimensions]), last)
    norm = made_norm(5, slope)
    expected = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias), slope)
    assert_same_gradients(norm(x), expected, [x, norm.weight, norm.bias])


def test_norm_in_bfloat16_keeps_its_type_and_is_close_to_float32() -> None:
    x = draw((2, 16, 4, 6, 8), last=True, dtype=torch.bfloat16)
    norm = InstanceNorm(16)
    found = norm(x)
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found.float(), norm(x.detach().float().contiguous()), rtol=0.02, atol=0.02)


def test_norm_of_a_single_voxel_is_its_bias() -> None:
    x = draw((2, 3, 1, 1, 1), last=True)
    norm = made_norm(3, 1.0)
    torch.testing.assert_close(norm(x), norm.bias.view(1, 3, 1, 1, 1).expand(2, -1, 1, 1, 1))


def test_a_skip_may_be_added_in_place_to_what_the_norm_returns() -> None:
    x = draw((2, 4, 4, 6, 8), last=True)
    norm = made_norm(4, 1.0)
    expected = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias) + x, 0.1)
    assert_same_gradients(add_leaky_relu(norm(x), x, 0.1), expected, [x, norm.weight])


@dimensional
@in_both_layouts
def test_up_concat_equals_transposed_convolution_and_concatenation(dimensions: int, last: bool) -> None:
    stride = (1, 2, 2)[-dimensions:]
    x = draw((2, 6, *SIZES[dimensions]), last)
    skip = draw((2, 3, *(n * s for n, s in zip(SIZES[dimensions], stride, strict=True))), last, seed=5)
    layer = UpConcat(6, 4, stride).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    transposed = F.conv_transpose2d if dimensions == 2 else F.conv_transpose3d
    expected = torch.cat((transposed(x, layer.weight, layer.bias, stride), skip), 1)
    assert_same_gradients(layer(x, skip), expected, [x, skip, layer.weight, layer.bias])


def test_up_concat_works_inside_autocast_and_gives_float32_gradients() -> None:
    x, skip = draw((2, 8, 4, 4, 4), True, torch.bfloat16), draw((2, 4, 8, 8, 8), True, torch.bfloat16)
    layer = UpConcat(8, 4, (2, 2, 2))
    nn.init.normal_(layer.weight)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, skip)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and layer.weight.grad is not None and layer.bias.grad is not None
    assert layer.weight.grad.dtype == torch.float32 and x.grad is not None and x.grad.dtype == torch.bfloat16
    # Every one of the 2·8³ voxels of the output has the bias once.
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 1024.0))


@dimensional
@in_both_layouts
def test_average_pool_equals_that_of_pytorch(dimensions: int, last: bool) -> None:
    stride = (1, 2, 2)[-dimensions:]
    x = draw((2, 3, *SIZES[dimensions]), last)
    expected = (F.avg_pool2d if dimensions == 2 else F.avg_pool3d)(x, stride, stride)
    assert_same_gradients(AveragePool(stride)(x), expected, [x])


def test_average_pool_keeps_bfloat16_inside_autocast() -> None:
    x = draw((1, 4, 4, 4, 4), True, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert AveragePool((2, 2, 2))(x).dtype == torch.bfloat16


@dimensional
@in_both_layouts
def test_compiled_layers_are_written_out_and_do_the_same(dimensions: int, last: bool) -> None:
    x = draw((3, 5, *SIZES[dimensions]), last)
    norm = made_norm(5, 0.01)
    expected = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias), 0.01)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    assert_same_gradients(torch.compile(norm, backend=backend)(x), expected, [x, norm.weight, norm.bias])
    assert any("var_mean" in name for name in seen) and not any("instance_norm" in name for name in seen)

    stride = (1, 2, 2)[-dimensions:]
    layer = UpConcat(5, 4, stride).double()
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    skip = draw((3, 2, *(n * s for n, s in zip(SIZES[dimensions], stride, strict=True))), last, seed=5)
    found = torch.compile(layer, backend=backend)(x, skip)
    assert_same_gradients(found, layer(x, skip), [x, skip, layer.weight, layer.bias])
