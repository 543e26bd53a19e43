"""Classifiers: an encoder, its last feature map pooled over space, and one linear layer; ``(B, C, *S)`` → logits ``(B, K)``.

The encoder is that of our U-Nets, under the same names, so that a segmentation model or a detector can be the start; or one of
MONAI's networks for images. Every classifier has two children, ``encoder`` (behind a ``stem`` in ours) and ``head``: **the last
feature map is what the module** ``encoder`` **returns**, finer ones what its children return. No layer of MONAI's works in place,
so that a hook sees what was computed. Knows nothing of plans, losses or devices: numbers come in, a module comes out.

MONAI's networks are taken for their architecture alone: nothing is downloaded. They come with group norm (Wu & He 2018), since
batch norm is poor at the few cases that fit in a batch of volumes, and its running figures are not those of averaged weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.efficientnet import EfficientNet, efficientnet_params
from monai.networks.nets.resnet import ResNet
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks.unet import Rows, initialise, planned_encoder

Pooling = Literal["both", "mean", "max"]
Norm = Literal["group", "batch"]

_GROUPS = 8
_DENSE_BLOCKS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32)}
_RESIDUAL_BLOCKS = {
    10: ("basic", [1, 1, 1, 1]),
    18: ("basic", [2, 2, 2, 2]),
    34: ("basic", [3, 4, 6, 3]),
    50: ("bottleneck", [3, 4, 6, 3]),
}
_EFFICIENT_BLOCKS = (
    "r1_k3_s11_e1_i32_o16_se0.25",
    "r2_k3_s22_e6_i16_o24_se0.25",
    "r2_k5_s22_e6_i24_o40_se0.25",
    "r3_k3_s22_e6_i40_o80_se0.25",
    "r3_k5_s11_e6_i80_o112_se0.25",
    "r4_k5_s22_e6_i112_o192_se0.25",
    "r1_k3_s11_e6_i192_o320_se0.25",
)
"""Table 1 of Tan & Le 2019 in MONAI's words: repeats, kernel, stride, expansion, channels in and out, squeeze."""
_SIZES = ("b0", "b1", "b2", "b3", "b4")
_ODD = 33
"""A size that is odd at each of the five strides: MONAI then pads both sides of its convolutions alike, for any size."""


class ClassHead(nn.Module):
    """The mean over space, the maximum, or both side by side; dropout; a linear layer.

    The mean says how much of the image looks like something, the maximum whether any of it does.
    """

    def __init__(self, features: int, outputs: int, *, pooling: Pooling = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        _check("pooling", pooling, get_args(Pooling))
        if not 0 <= dropout < 1:
            raise MedsegError(f"network: expected dropout from 0 to below 1, found {dropout}")
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features * (2 if pooling == "both" else 1), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, features, *S)`` → ``(B, outputs)``."""
        flat = x.flatten(2)
        pooled = {"mean": [flat.mean(2)], "max": [flat.amax(2)], "both": [flat.mean(2), flat.amax(2)]}[self.pooling]
        logits: Tensor = self.linear(self.dropout(torch.cat(pooled, 1)))
        return logits


def encoder_classifier(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    patch_size: Sequence[int] | None = None,
    encoder: str = "plain",
    pooling: Pooling = "both",
    dropout: float = 0.0,
) -> nn.Module:
    """The encoder of `unet.plain_unet` or `unet.residual_unet`, and a head for classes; maps come from ``encoder``.

    Args:
        dimensions, in_channels, features, strides, kernel_sizes, blocks: as for `unet.plain_unet`; S is a multiple of the
            product of the strides.
        out_channels: number of classes.
        patch_size: of the input, to be checked.
        encoder: ``"plain"`` or ``"residual"``.
        pooling: of the deepest stage: ``"mean"``, ``"max"`` or ``"both"``.
        dropout: share of the pooled features dropped in training mode.

    Raises:
        MedsegError: numbers that do not fit each other, or a patch of which one voxel is left in the deepest stage: instance
            norm makes of a single voxel the same number for every image.
    """
    if patch_size is not None and all(
        size <= math.prod(column) for size, column in zip(patch_size, zip(*strides, strict=True), strict=True)
    ):
        raise MedsegError(
            f"network: encoder_classifier shrinks the patch {list(patch_size)} to a single voxel, in which instance norm leaves "
            "nothing of the image; set a larger plan.patch_size or fewer plan.strides, or take network=resnet"
        )
    stem, stages = planned_encoder(
        encoder, dimensions=dimensions, in_channels=in_channels, features=features, strides=strides,
        kernel_sizes=kernel_sizes, blocks=blocks,
    )  # fmt: skip
    stem.apply(initialise)
    head = ClassHead(features[-1], out_channels, pooling=pooling, dropout=dropout)
    return _children(stem=stem, encoder=nn.Sequential(*stages).apply(initialise), head=head)


def densenet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    depth: int = 121,
    width: int = 64,
    growth: int = 32,
    norm: Norm = "group",
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI's DenseNet (Huang et al. 2017) for sizes of multiples of 32; maps, 32 times as coarse, come from ``encoder``.

    Args:
        dimensions: 2 or 3.
        out_channels: number of classes.
        depth: 121 or 169.
        width: channels of the first convolution; ``growth``: channels that each layer adds.
        norm: ``"group"`` or ``"batch"``.
        dropout: share of the pooled features dropped in training mode.

    Raises:
        MedsegError: a depth or norm that there is not.
    """
    _check("densenet of depth", depth, _DENSE_BLOCKS)
    network = DenseNet(dimensions, in_channels, out_channels, width, growth, _DENSE_BLOCKS[depth])
    encoder = network.features
    encoder.add_module("relu5", nn.ReLU())
    head = ClassHead(network.class_layers.out.in_features, out_channels, dropout=dropout)  # type: ignore[union-attr, arg-type]
    return _children(encoder=_with_norm(encoder, norm), head=head)


def resnet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    depth: int = 18,
    width: int = 64,
    stem_stride: int = 2,
    norm: Norm = "group",
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI's ResNet (He et al. 2016) for any input size; maps, 16 · ``stem_stride`` times as coarse, come from ``encoder``.

    Where channels or size change, the skip is a 1×1 convolution at every depth: MONAI's other kind, the one it has at depths
    18 and 34, cuts the gradient off, so that neither training nor a saliency map would see it.

    Args:
        depth: 10, 18, 34 or 50.
        width: channels of the first stage, doubled in each; four times as many leave a stage at depth 50.
        stem_stride: of the first convolution; 1 for inputs below some 64 voxels.

    Other arguments and errors are those of `densenet`.
    """
    _check("resnet of depth", depth, _RESIDUAL_BLOCKS)
    kind, blocks = _RESIDUAL_BLOCKS[depth]
    network = ResNet(
        kind, blocks, [width, 2 * width, 4 * width, 8 * width], dimensions, in_channels, conv1_t_stride=stem_stride,
        shortcut_type="B", bias_downsample=False,
    )  # fmt: skip
    head = ClassHead(network.fc.in_features, out_channels, dropout=dropout)  # type: ignore[union-attr]
    stages = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return _children(encoder=_with_norm(_children(**{n: getattr(network, n) for n in stages}), norm), head=head)


def efficientnet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    size: str = "b0",
    norm: Norm = "group",
    dropout: float = 0.2,
    drop_connect: float = 0.2,
) -> nn.Module:
    """MONAI's EfficientNet (Tan & Le 2019) for any input size; maps, 32 times as coarse, come from ``encoder``.

    Args:
        size: ``"b0"`` to ``"b4"``.
        drop_connect: chance at which a sample skips the last block in training mode, falling to 0 at the first.

    Other arguments and errors are those of `densenet`.
    """
    _check("efficientnet of size", size, _SIZES)
    wider, deeper, *_ = efficientnet_params[f"efficientnet-{size}"]
    network = EfficientNet(
        list(_EFFICIENT_BLOCKS), dimensions, in_channels, out_channels, wider, deeper, image_size=_ODD,
        drop_connect_rate=drop_connect,
    )  # fmt: skip
    encoder = _children(
        stem_padding=network._conv_stem_padding, stem=network._conv_stem, norm0=network._bn0, act0=nn.SiLU(),
        blocks=network._blocks, last=network._conv_head, norm1=network._bn1, act1=nn.SiLU(),
    )  # fmt: skip
    head = ClassHead(network._fc.in_features, out_channels, dropout=dropout)
    return _children(encoder=_with_norm(encoder, norm), head=head)


densenet.divisor = 32  # type: ignore[attr-defined]
resnet.divisor = 1  # type: ignore[attr-defined]
efficientnet.divisor = 1  # type: ignore[attr-defined]


def _children(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _with_norm(network: nn.Module, norm: Norm) -> nn.Module:
    """The network with this norm throughout (MONAI's ResNet hands one to its first layer only), and nothing in place."""
    _check("norm", norm, get_args(Norm))
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if norm == "group" and isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
                channels = child.num_features
                setattr(parent, name, nn.GroupNorm(math.gcd(_GROUPS, channels), channels))
            elif hasattr(child, "inplace"):
                child.inplace = False  # type: ignore[assignment]
    return network


def _check(option: str, value: object, known: Iterable[object]) -> None:
    known = list(known)
    if value not in known:
        raise MedsegError(f"network: {option} {value!r}; expected one of {', '.join(map(str, known))}")
