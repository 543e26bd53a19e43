"""The planned U-Nets: nnU-Net's topology, any number of stages, levels finest first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks.unet import ResidualBlock, UNet, plain_unet, residual_unet

both = pytest.mark.parametrize("builder", [plain_unet, residual_unet])


def numbers(dimensions: int = 3, stages: int = 3, **changes: Any) -> dict[str, Any]:
    """An anisotropic plan: the first axis is halved from the second step on."""
    strides = [(1,) * dimensions, (1,) + (2,) * (dimensions - 1), *([(2,) * dimensions] * (stages - 2))]
    return {
        "dimensions": dimensions,
        "in_channels": 2,
        "out_channels": 3,
        "features": [4 * 2 ** min(stage, 3) for stage in range(stages)],
        "strides": strides[:stages],
        "kernel_sizes": [(1,) + (3,) * (dimensions - 1), *([(3,) * dimensions] * (stages - 1))],
        "blocks": [1, 2, *([3] * (stages - 2))],
    } | changes


@both
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("stages", [2, 3, 5])
def test_training_returns_a_level_for_each_decoder_stage_finest_first(
    builder: Any, dimensions: int, stages: int
) -> None:
    network = builder(**numbers(dimensions, stages))
    size = (8 if stages < 5 else 16, *([16] * (dimensions - 1)))
    levels = network(torch.randn(1, 2, *size))
    assert len(levels) == stages - 1
    assert levels[0].shape == (1, 3, *size)
    for level, strides in zip(levels[1:], numbers(dimensions, stages)["strides"][1:], strict=False):
        size = tuple(n // s for n, s in zip(size, strides, strict=True))
        assert level.shape == (1, 3, *size)
    assert isinstance(network.eval()(torch.randn(1, 2, 16, *([16] * (dimensions - 1)))), Tensor)


@both
def test_without_deep_supervision_there_is_one_head(builder: Any) -> None:
    network = builder(**numbers(deep_supervision=False))
    assert len(network.heads) == 1
    assert isinstance(network.train()(torch.randn(1, 2, 8, 8, 8)), Tensor)


def test_the_plain_unet_has_the_parameters_of_nnunet() -> None:
    """Counted by hand after nnU-Net's PlainConvUNet: every convolution and transposed convolution has a bias."""
    shapes = sorted(tuple(p.shape) for p in plain_unet(**numbers(stages=2, features=[4, 8])).parameters())
    norms = [(4,)] * (2 * 3) + [(8,)] * (2 * 2)  # weight and bias of each norm
    biases = [(4,)] * 3 + [(8,)] * 2 + [(4,), (3,)]
    weights = [(4, 2, 1, 3, 3), (8, 4, 3, 3, 3), (8, 8, 3, 3, 3), (8, 4, 1, 2, 2), (4, 8, 1, 3, 3), (4, 4, 1, 3, 3)]
    assert shapes == sorted([*norms, *biases, *weights, (3, 4, 1, 1, 1)])


def test_the_residual_encoder_has_the_blocks_of_nnunet() -> None:
    """Stem, block D with a pooled and projected skip (no bias), one convolution a decoder stage."""
    network = residual_unet(**numbers(stages=3, features=[4, 8, 8], blocks=[1, 2, 1]))
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 4
    assert [len(block.skip) for block in blocks] == [0, 2, 0, 1]  # pooled and projected; the last is only pooled
    projection = blocks[1].skip[1].conv
    assert projection.weight.shape == (8, 4, 1, 1, 1) and projection.bias is None
    assert [len(stage) for stage in network.decoder] == [1, 1]
    assert network.stem.conv.weight.shape == (4, 2, 1, 3, 3)


def test_a_residual_block_starts_as_its_skip_alone() -> None:
    network = residual_unet(**numbers(stages=2))
    block = network.encoder[0][0]
    x = torch.randn(1, 4, 4, 8, 8)
    torch.testing.assert_close(block(x), F.leaky_relu(x, 0.01))


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_the_plain_unet_is_what_pytorch_modules_compute(last: bool) -> None:
    torch.manual_seed(0)
    network = plain_unet(**numbers(stages=3)).double()
    x = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64)
    found = network(x)
    if last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        network = network.to(memory_format=torch.channels_last_3d)
        found = network(x)
    for level, expected in zip(found, _reference(network, x), strict=True):
        torch.testing.assert_close(level, expected)


def _reference(network: UNet, x: Tensor) -> list[Tensor]:
    def blocks(stage: nn.Sequential, x: Tensor) -> Tensor:
        for block in stage:
            conv, norm = block.conv, block.norm
            x = F.conv3d(x, conv.weight, conv.bias, conv.stride, conv.padding)
            x = F.leaky_relu(F.instance_norm(x, weight=norm.weight, bias=norm.bias), 0.01)
        return x

    skips = []
    for stage in network.encoder:
        x = blocks(stage, x)
        skips.append(x)
    levels = []
    for fine in (1, 0):
        up = network.ups[fine]
        x = torch.cat((F.conv_transpose3d(x, up.weight, up.bias, up.stride), skips[fine]), 1)
        x = blocks(network.decoder[fine], x)
        levels.insert(0, network.heads[fine](x))
    return levels


@both
def test_a_step_against_the_gradient_lowers_the_loss_in_bfloat16(builder: Any) -> None:
    torch.manual_seed(0)
    network = builder(**numbers(stages=3)).to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    x = torch.randn(2, 2, 4, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    target = (x.sum(1) > 0).long()
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            out = network(x)[0]
        loss = F.cross_entropy(out.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@both
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_a_network_that_is_bfloat16_itself_predicts(builder: Any, dimensions: int, last: bool) -> None:
    network = builder(**numbers(dimensions, kernel_sizes=[(3,) * dimensions] * 3)).eval()
    x = torch.randn(1, 2, *(8,) * dimensions)
    expected = network(x)
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    low = network.bfloat16().to(memory_format=layout if last else torch.contiguous_format)
    with torch.inference_mode():
        found = low(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimensions": 4}, "2 or 3 dimensions"),
        ({"blocks": [1, 1]}, "one entry for each"),
        ({"strides": [(1, 2, 2), (1, 2, 2), (2, 2, 2)]}, "first stage keeps the resolution"),
        ({"strides": [(1, 1), (2, 2), (2, 2)]}, "strides need 3 numbers"),
        ({"kernel_sizes": [(3, 3, 3), (2, 3, 3), (3, 3, 3)]}, "must be odd"),
        ({"blocks": [1, 0, 1]}, "at least one block"),
    ],
)
@both
def test_numbers_that_do_not_fit_are_named(builder: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        builder(**numbers(**changes))


def test_levels_of_the_decoder_may_have_their_own_number_of_convolutions():
    sizes = {
        "features": (4, 6, 8),
        "strides": [[1, 1], [2, 2], [2, 2]],
        "kernel_sizes": [[3, 3]] * 3,
        "blocks": (1, 1, 1),
    }
    network = plain_unet(dimensions=2, in_channels=1, out_channels=2, decoder_blocks=[1, 3], **sizes)
    assert [len(level) for level in network.decoder] == [1, 3]
    with pytest.raises(MedsegError, match="decoder_blocks"):
        plain_unet(dimensions=2, in_channels=1, out_channels=2, decoder_blocks=[1], **sizes)
