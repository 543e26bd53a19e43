"""The U-Nets that are planned from the data: any number of stages, whose features, strides, kernels and blocks the Plan gives.

Owns the topology of nnU-Net (Isensee et al. 2021; residual encoder: Isensee et al. 2024, "nnU-Net Revisited"), so that
nnU-Net's weights fit. Detectors stand on the same trunk: they ask for feature maps of its levels (`UNet.pyramid`). Knows
nothing of plans, losses or devices: numbers come in, a module comes out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks.layers import CONV, AveragePool, InstanceNorm, UpConcat, add_leaky_relu

SLOPE = 0.01
Rows = Sequence[Sequence[int]]


class ConvBlock(nn.Sequential):
    """Convolution (padded to keep the size, divided by the stride), instance norm, and LeakyReLU unless ``act`` is False."""

    def __init__(
        self,
        dimensions: int,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        bias: bool = True,
        act: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv = CONV[dimensions](
            inputs, outputs, tuple(kernel), tuple(stride or [1] * dimensions), tuple(k // 2 for k in kernel), bias=bias
        )
        if dropout:
            self.dropout = (nn.Dropout2d if dimensions == 2 else nn.Dropout3d)(dropout)
        self.norm = InstanceNorm(outputs, slope=SLOPE if act else 1.0)


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip that is average-pooled by the stride and projected 1×1 where the channels change.

    This is block D of He et al. 2018 ("Bag of tricks"), as nnU-Net's residual encoder has it. It starts as its skip alone.
    """

    def __init__(
        self,
        dimensions: int,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(dimensions, inputs, outputs, kernel, stride, dropout=dropout)
        self.second = ConvBlock(dimensions, outputs, outputs, kernel, act=False)
        nn.init.zeros_(self.second.norm.weight)
        skip: list[nn.Module] = []
        if max(stride) > 1:
            skip.append(AveragePool(stride))
        if inputs != outputs:
            skip.append(ConvBlock(dimensions, inputs, outputs, (1,) * dimensions, bias=False, act=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        return add_leaky_relu(self.second(self.first(x)), self.skip(x), SLOPE)


class UNet(nn.Module):
    """Encoder stages, then per level a transposed convolution, the skip beside it, convolutions and a 1×1×1 head.

    ``encoder[s]`` is stage ``s`` (0 the finest); ``ups[s]``, ``decoder[s]`` and ``heads[s]`` lead back to the resolution of
    stage ``s``. In training mode with deep supervision the outputs of all heads are returned, finest first; in evaluation
    the finest only. Sizes whose axes are any multiple of ``any_multiple_of`` go through the very same operations.

    Args:
        decoder_blocks: convolutions at each level of the decoder; one number for all, or one a level, finest first.
        finest: level at which the decoder ends; below it an index leads to an empty module, so that a level is an index and
            weights have their names in every U-Net.
        out_channels: of the heads; 0 where there are none.
    """

    def __init__(
        self,
        *,
        dimensions: int,
        stem: nn.Module,
        encoder: Sequence[nn.Module],
        features: Sequence[int],
        strides: Rows,
        kernel_sizes: Rows,
        decoder_blocks: int | Sequence[int],
        out_channels: int,
        deep_supervision: bool,
        dropout: float,
        finest: int = 0,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.any_multiple_of = tuple(math.prod(column) for column in zip(*strides, strict=True))
        self.stem = stem
        self.encoder = nn.ModuleList(encoder)
        self.ups, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        levels = len(features) - 1
        counts = [decoder_blocks] * levels if isinstance(decoder_blocks, int) else list(decoder_blocks)
        if len(counts) != levels or min(counts) < 1:
            raise MedsegError(
                f"network: decoder_blocks: expected one or more for each of {levels} levels, found {decoder_blocks}"
            )
        for fine in range(len(features) - 1):
            if fine < finest:
                self.ups.append(nn.Identity())
                self.decoder.append(nn.Identity())
                continue
            width = features[fine]
            self.ups.append(UpConcat(features[fine + 1], width, strides[fine + 1]))
            self.decoder.append(
                nn.Sequential(
                    *(
                        ConvBlock(
                            dimensions, 2 * width if i == 0 else width, width, kernel_sizes[fine], dropout=dropout
                        )
                        for i in range(counts[fine])
                    )
                )
            )
            # Without deep supervision only the finest head is used, and a parameter without gradient stops DDP.
            if out_channels and (fine == 0 or deep_supervision):
                self.heads.append(CONV[dimensions](width, out_channels, 1))
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` → ``(B, out_channels, *S)``, or a list of levels; S a multiple of the product of the strides."""
        return self.outputs(self.pyramid(x, self.output_levels))

    @property
    def output_levels(self) -> range:
        """The levels whose heads `outputs` asks for now."""
        return range(len(self.heads) if self.training else min(len(self.heads), 1))

    def pyramid(self, x: Tensor, levels: Collection[int]) -> dict[int, Tensor]:
        """Feature maps of ``levels`` by level: of the decoder, or of the encoder's deepest stage. Computes no finer one."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        deepest = len(skips)
        maps: dict[int, Tensor] = {deepest: x} if deepest in levels else {}
        for fine in range(deepest - 1, min(levels) - 1, -1):
            x = self.decoder[fine](self.ups[fine](x, skips.pop()))
            if fine in levels:
                maps[fine] = x
        return maps

    def outputs(self, maps: dict[int, Tensor]) -> Tensor | list[Tensor]:
        """Feature maps of at least `output_levels` → what `forward` returns."""
        if self.training and self.deep_supervision:
            return [head(maps[level]) for level, head in enumerate(self.heads)]
        finest: Tensor = self.heads[0](maps[0])
        return finest


def plain_encoder(
    *,
    dimensions: int,
    in_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    dropout: float = 0.0,
) -> tuple[nn.Module, list[nn.Module]]:
    """A stem that does nothing, and stages of ``blocks[s]`` convolutions, the first of them strided.

    Arguments and errors are those of `plain_unet`.
    """
    _check(dimensions, features, strides, kernel_sizes, blocks)
    encoder: list[nn.Module] = []
    before = in_channels
    for width, stride, kernel, count in zip(features, strides, kernel_sizes, blocks, strict=True):
        convs = [
            ConvBlock(dimensions, width if i else before, width, kernel, None if i else stride, dropout=dropout)
            for i in range(count)
        ]
        encoder.append(nn.Sequential(*convs))
        before = width
    return nn.Identity(), encoder


def residual_encoder(
    *,
    dimensions: int,
    in_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    dropout: float = 0.0,
) -> tuple[nn.Module, list[nn.Module]]:
    """A stem of one convolution, and stages of ``blocks[s]`` residual blocks, the first of them strided.

    Arguments and errors are those of `plain_unet`.
    """
    _check(dimensions, features, strides, kernel_sizes, blocks)
    encoder: list[nn.Module] = []
    before = features[0]
    for width, stride, kernel, count in zip(features, strides, kernel_sizes, blocks, strict=True):
        stage = [
            ResidualBlock(
                dimensions, width if i else before, width, kernel, (1,) * dimensions if i else stride, dropout=dropout
            )
            for i in range(count)
        ]
        encoder.append(nn.Sequential(*stage))
        before = width
    return ConvBlock(dimensions, in_channels, features[0], kernel_sizes[0]), encoder


def planned_encoder(kind: str, **sizes: Any) -> tuple[nn.Module, list[nn.Module]]:
    """Stem and stages of `plain_encoder` (``"plain"``) or `residual_encoder` (``"residual"``), whose arguments ``sizes`` are.

    Raises:
        MedsegError: another kind, or lists that do not fit each other.
    """
    encoders = {"plain": plain_encoder, "residual": residual_encoder}
    if kind not in encoders:
        raise MedsegError(f"network: encoder {kind!r}; expected one of {', '.join(encoders)}")
    return encoders[kind](**sizes)


def plain_unet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    deep_supervision: bool = True,
    decoder_blocks: int | Sequence[int] = 2,
    dropout: float = 0.0,
) -> UNet:
    """nnU-Net's plain U-Net: ``blocks[s]`` convolutions in encoder stage ``s``, the first of them strided.

    Args:
        dimensions: 2 or 3.
        features, strides, kernel_sizes, blocks: one entry a stage, as in the Plan.
        deep_supervision: a head at every level of the decoder.
        decoder_blocks: convolutions at each level of the decoder; one number for all, or one a level, finest first.
        dropout: share of channels dropped after each convolution.

    Raises:
        MedsegError: the lists do not fit each other.
    """
    stem, encoder = plain_encoder(
        dimensions=dimensions, in_channels=in_channels, features=features, strides=strides, kernel_sizes=kernel_sizes,
        blocks=blocks, dropout=dropout,
    )  # fmt: skip
    return UNet(
        dimensions=dimensions, stem=stem, encoder=encoder, features=features, strides=strides,
        kernel_sizes=kernel_sizes, decoder_blocks=decoder_blocks, out_channels=out_channels,
        deep_supervision=deep_supervision, dropout=dropout,
    )  # fmt: skip


def residual_unet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    deep_supervision: bool = True,
    decoder_blocks: int | Sequence[int] = 1,
    dropout: float = 0.0,
) -> UNet:
    """nnU-Net's residual-encoder U-Net: a stem, ``blocks[s]`` residual blocks in encoder stage ``s``, a light decoder.

    Arguments and errors are those of `plain_unet`.
    """
    stem, encoder = residual_encoder(
        dimensions=dimensions, in_channels=in_channels, features=features, strides=strides, kernel_sizes=kernel_sizes,
        blocks=blocks, dropout=dropout,
    )  # fmt: skip
    return UNet(
        dimensions=dimensions, stem=stem, encoder=encoder, features=features, strides=strides,
        kernel_sizes=kernel_sizes, decoder_blocks=decoder_blocks, out_channels=out_channels,
        deep_supervision=deep_supervision, dropout=dropout,
    )  # fmt: skip


def initialise(module: nn.Module) -> None:
    """Kaiming-normal weights for the slope of the LeakyReLU, biases zero (nnU-Net's ``InitWeights_He``)."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, UpConcat)):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(dimensions: int, features: Sequence[int], strides: Rows, kernel_sizes: Rows, blocks: Sequence[int]) -> None:
    if dimensions not in (2, 3):
        raise MedsegError(f"network: expected 2 or 3 dimensions, found {dimensions}")
    lengths = {len(features), len(strides), len(kernel_sizes), len(blocks)}
    if len(lengths) != 1 or len(features) < 2:
        raise MedsegError(
            "network: features, strides, kernel_sizes and blocks need one entry for each of two or more stages; found "
            f"{len(features)}, {len(strides)}, {len(kernel_sizes)}, {len(blocks)}"
        )
    for name, rows in (("strides", strides), ("kernel_sizes", kernel_sizes)):
        if any(len(row) != dimensions for row in rows):
            raise MedsegError(f"network: {name} need {dimensions} numbers a stage, found {[list(row) for row in rows]}")
    if any(s != 1 for s in strides[0]):
        raise MedsegError(
            f"network: the first stage keeps the resolution; expected strides[0] of ones, found {strides[0]}"
        )
    if any(k % 2 == 0 for row in kernel_sizes for k in row):
        raise MedsegError(f"network: kernel sizes must be odd, found {[list(row) for row in kernel_sizes]}")
    if min(blocks) < 1 or min(features) < 1:
        raise MedsegError(
            f"network: expected at least one block and one feature a stage, found {blocks} and {features}"
        )


residual_unet.encoder = "residual"  # type: ignore[attr-defined]  # the planner gives its stages 1, 3, 4, 6 … blocks
