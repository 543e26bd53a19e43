"""Classifiers say what their last map says, hand the true gradient back, and need neither the network nor torchvision."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks import classifier
from medseg.networks.classifier import ClassHead, encoder_classifier
from medseg.networks.unet import plain_unet, residual_unet

STAGES: dict[str, Any] = {
    "features": (4, 6, 8),
    "strides": ((1, 1), (2, 2), (2, 2)),
    "kernel_sizes": ((3, 3),) * 3,
    "blocks": (1, 2, 1),
}
DEEP: dict[str, Any] = {  # the same in three dimensions
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
SMALL: dict[str, dict[str, Any]] = {
    "encoder_classifier": STAGES,
    "densenet": {"width": 8, "growth": 8},
    "resnet": {"depth": 10, "width": 8},
    "efficientnet": {},
}
MONAI = ("densenet", "resnet", "efficientnet")
every = pytest.mark.parametrize("name", list(SMALL))
of_monai = pytest.mark.parametrize("name", MONAI)


def built(name: str, dimensions: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    small = SMALL[name] | (DEEP if name == "encoder_classifier" and dimensions == 3 else {})
    builder: Callable[..., nn.Module] = getattr(classifier, name)
    return builder(dimensions=dimensions, in_channels=2, out_channels=3, **small | options)


def noise(*shape: int) -> Tensor:
    return torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(1))


@every
@pytest.mark.parametrize("dimensions", [2, 3])
def test_logits_follow_from_the_map_that_the_encoder_returns(name: str, dimensions: int) -> None:
    network = built(name, dimensions).eval()
    seen: list[Tensor] = []
    network.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = noise(64, *(32,) * (dimensions - 1))
    with torch.no_grad():
        logits = network(x)
        (features,) = seen
        assert logits.shape == (2, 3) and features.ndim == dimensions + 2
        pooled = [features.flatten(2).mean(2)] + ([features.flatten(2).amax(2)] if name == "encoder_classifier" else [])
        torch.testing.assert_close(logits, network.head.linear(torch.cat(pooled, 1)))
    ratio = {2: (4, 4), 3: (2, 4, 4)}[dimensions] if name == "encoder_classifier" else (32,) * dimensions
    assert features.shape[2:] == tuple(n // r for n, r in zip(x.shape[2:], ratio, strict=True))


@every
def test_the_gradient_is_that_of_the_function(name: str) -> None:
    """Against the slope along a random direction; MONAI's ResNet of depth 18 has skips that hand no gradient back."""
    options = {"depth": 18} if name == "resnet" else {}
    network = built(name, **options).double().eval()
    x = noise(64, 64).double().requires_grad_()
    along = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
    network(x)[:, 0].sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        step = 1e-6 * along
        slope = (network(x + step) - network(x - step))[:, 0].sum() / 2e-6
    assert float((x.grad * along).sum()) == pytest.approx(float(slope), rel=1e-3)


@of_monai
def test_nothing_works_in_place_and_the_norm_is_the_one_asked_for(name: str) -> None:
    for norm, kind, other in (("group", nn.GroupNorm, nn.BatchNorm2d), ("batch", nn.BatchNorm2d, nn.GroupNorm)):
        modules = list(built(name, norm=norm).modules())
        assert not any(getattr(module, "inplace", False) for module in modules)
        assert any(isinstance(module, kind) for module in modules)
        assert not any(isinstance(module, other) for module in modules)


@of_monai
def test_a_batch_of_one_trains_where_a_single_voxel_is_left(name: str) -> None:
    """Batch norm cannot: it has one value a channel."""
    x = noise(32, 32)[:1]
    loss = built(name).train()(x).square().sum()
    loss.backward()
    assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        built(name, norm="batch").train()(x)


@pytest.mark.parametrize("name", ["resnet", "efficientnet"])
@pytest.mark.parametrize("shape", [(1, 40), (37, 5), (3, 17, 1)])
def test_any_size_will_do(name: str, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert built(name, len(shape)).eval()(noise(*shape)).isfinite().all()


def test_paddings_are_alike_on_both_sides() -> None:
    """MONAI pads for one size of picture, and for even sizes on one side: a mirrored image would not be one."""
    pads = [module.padding for module in built("efficientnet").modules() if isinstance(module, nn.ConstantPad2d)]
    assert len(pads) > 10
    assert all(left == right and top == bottom for left, right, top, bottom in pads)


def test_a_finer_stem_gives_a_finer_map() -> None:
    with torch.no_grad():
        assert built("resnet", stem_stride=1).encoder(noise(32, 48)).shape[2:] == (2, 3)


LARGER = [
    ("densenet", {"depth": 169}),
    ("resnet", {"depth": 34}),
    ("resnet", {"depth": 50}),
    ("efficientnet", {"size": "b4"}),
]


@pytest.mark.parametrize(("name", "option"), LARGER)
def test_a_deeper_network_is_larger(name: str, option: dict[str, Any]) -> None:
    def weights(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    with torch.device("meta"):
        assert weights(built(name, **option)) > weights(built(name))


@pytest.mark.parametrize(("kind", "unet"), [("plain", plain_unet), ("residual", residual_unet)])
def test_the_encoder_has_the_names_of_the_segmentation_networks(kind: str, unet: Callable[..., nn.Module]) -> None:
    shapes = {name: w.shape for name, w in built("encoder_classifier", encoder=kind).state_dict().items()}
    theirs = unet(dimensions=2, in_channels=2, out_channels=3, **STAGES).state_dict()
    common = {name: w.shape for name, w in theirs.items() if name.startswith(("stem.", "encoder."))}
    assert common == {name: shape for name, shape in shapes.items() if not name.startswith("head.")}


def test_pooling_is_the_mean_the_maximum_or_both() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    for pooling, expected in (("mean", [3.0]), ("max", [6.0]), ("both", [3.0, 6.0])):
        head = ClassHead(1, len(expected), pooling=pooling)  # type: ignore[arg-type]
        nn.init.eye_(head.linear.weight)
        nn.init.zeros_(head.linear.bias)
        assert head(x).tolist() == [expected]


@every
def test_dropout_is_for_training_only(name: str) -> None:
    still = {"drop_connect": 0.0} if name == "efficientnet" else {}
    network, x = built(name, dropout=0.5, **still), noise(32, 32)
    torch.manual_seed(0)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))
        network.head.dropout.p = 0.0
        assert torch.equal(network.train()(x), network(x))


def test_building_needs_neither_the_network_nor_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in SMALL:
        built(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("densenet", {"depth": 120}, "densenet of depth 120; expected one of 121, 169"),
        ("resnet", {"depth": 101}, "resnet of depth 101; expected one of 10, 18, 34, 50"),
        ("resnet", {"norm": "instance"}, "norm 'instance'; expected one of group, batch"),
        ("efficientnet", {"size": "b5"}, "efficientnet of size 'b5'; expected one of b0, b1, b2, b3, b4"),
        ("resnet", {"dropout": 1.0}, "dropout from 0 to below 1, found 1.0"),
        ("encoder_classifier", {"pooling": "sum"}, "pooling 'sum'; expected one of both, mean, max"),
        ("encoder_classifier", {"encoder": "dense"}, "encoder 'dense'; expected one of plain, residual"),
        ("encoder_classifier", {"patch_size": (4, 4)}, r"patch \[4, 4\] to a single voxel.*take network=resnet"),
    ],
)
def test_what_cannot_be_built_is_one_clear_message(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        built(name, **options)


def test_a_patch_of_which_two_voxels_are_left_is_enough() -> None:
    assert isinstance(
        encoder_classifier(dimensions=2, in_channels=1, out_channels=2, patch_size=(4, 8), **STAGES), nn.Module
    )
