"""Builders over MONAI's networks, so that each obeys the Plan's stages or states the ``divisor`` of its input size.

Owns how a plan becomes MONAI's arguments and how MONAI's outputs become our contract: ``(B, K, *S)``, or a list of levels,
finest first, in training mode with deep supervision, which only DynUNet has. Options are MONAI's, under MONAI's names.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from medseg.errors import MedsegError

Rows = Sequence[Sequence[int]]
Named = str | Sequence[Any]
"""MONAI's way to name a layer: ``"INSTANCE"``, or ``["GROUP", {"num_groups": 4}]``."""


class LevelledDynUNet(DynUNet):
    """MONAI's DynUNet whose heads return their own levels, finest first, instead of one stack of enlarged ones.

    MONAI registers every block twice, as itself and within ``skip_layers``, which safetensors refuses: the latter goes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.skip_layers
        self.heads = []

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(B, C, *S)`` → ``(B, K, *S)``, or levels."""
        skips = [self.input_block(x)]
        for block in self.downsamples:
            skips.append(block(skips[-1]))
        x = self.bottleneck(skips[-1])
        features = []
        for block in self.upsamples:
            x = block(x, skips.pop())
            features.append(x)
        out: Tensor = self.output_block(features.pop())
        if not (self.training and self.deep_supervision):
            return out
        coarser = zip(self.deep_supervision_heads, reversed(features), strict=True)
        return [out, *(head(level) for head, level in coarser)]


def dynunet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    patch_size: Sequence[int] | None = None,
    deep_supervision: bool = True,
    res_block: bool = False,
    trans_bias: bool = False,
    dropout: float = 0.0,
    norm_name: Named = ("INSTANCE", {"affine": True}),
    act_name: Named = ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
) -> nn.Module:
    """MONAI's DynUNet with the stages of the plan (three or more), and a head at every level of its decoder.

    Raises:
        MedsegError: fewer than three stages, or a patch of which a single voxel is left in the deepest.
    """
    if len(strides) < 3:
        raise MedsegError(f"network: DynUNet needs three or more stages, found {len(strides)}; take plain_unet")
    _check_deepest("DynUNet", patch_size, strides)
    return LevelledDynUNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=_rows(kernel_sizes),
        strides=_rows(strides),
        upsample_kernel_size=_rows(strides[1:]),
        filters=list(features),
        deep_supervision=deep_supervision,
        deep_supr_num=len(strides) - 2,
        res_block=res_block,
        trans_bias=trans_bias,
        dropout=dropout or None,
        norm_name=_named(norm_name),
        act_name=_named(act_name),
    )


def unet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Rows,
    patch_size: Sequence[int] | None = None,
    kernel_size: int = 3,
    num_res_units: int = 2,
    act: Named = "PRELU",
    norm: Named = "INSTANCE",
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI's U-Net with the features and strides of the plan, and one kernel throughout.

    Raises:
        MedsegError: a patch of which a single voxel is left in the deepest stage.
    """
    _check_deepest("UNet", patch_size, strides)
    network: nn.Module = UNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=list(features),
        strides=_rows(strides[1:]),  # type: ignore[arg-type]  # MONAI takes rows too
        kernel_size=kernel_size,
        up_kernel_size=kernel_size,
        num_res_units=num_res_units,
        act=_named(act),
        norm=_named(norm),
        dropout=dropout,
    )
    return network


def attention_unet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_size: int = 3,
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI's Attention U-Net (Oktay et al. 2018) with the features and strides of the plan, and batch norm."""
    network: nn.Module = AttentionUnet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=list(features),
        strides=_rows(strides[1:]),  # type: ignore[arg-type]  # MONAI takes rows too
        kernel_size=kernel_size,
        up_kernel_size=kernel_size,
        dropout=dropout,
    )
    return network


def segresnet(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    init_filters: int = 16,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    num_groups: int = 8,
    dropout: float = 0.0,
    upsample_mode: str = "nontrainable",
) -> nn.Module:
    """MONAI's SegResNet (Myronenko 2018): four stages of its own, each half the size of the one before.

    Raises:
        MedsegError: another number of stages, which would need another divisor.
    """
    if (len(blocks_down), len(blocks_up)) != (4, 3):
        raise MedsegError(
            f"network: segresnet has four stages; expected four blocks_down and three blocks_up, found "
            f"{list(blocks_down)} and {list(blocks_up)}"
        )
    network: nn.Module = SegResNet(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=out_channels,
        init_filters=init_filters,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        num_groups=num_groups,
        dropout_prob=dropout or None,
        upsample_mode=upsample_mode,
    )
    return network


def swin_unetr(
    *,
    dimensions: int,
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int] | None = None,
    feature_size: int = 24,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: int | Sequence[int] = 7,
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    dropout_path_rate: float = 0.0,
    use_checkpoint: bool = False,
    use_v2: bool = False,
) -> nn.Module:
    """MONAI's SwinUNETR (Hatamizadeh et al. 2022): stages of its own, each half the size of the one before.

    Raises:
        MedsegError: einops is not installed, or the patch leaves a single voxel in the deepest stage.
    """
    if importlib.util.find_spec("einops") is None:
        raise MedsegError("network: SwinUNETR needs the package einops: pip install 'medseg[swin]'")
    _check_deepest("SwinUNETR", patch_size, [[32] * dimensions])
    network: nn.Module = SwinUNETR(
        spatial_dims=dimensions,
        in_channels=in_channels,
        out_channels=out_channels,
        feature_size=feature_size,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size,
        drop_rate=drop_rate,
        attn_drop_rate=attn_drop_rate,
        dropout_path_rate=dropout_path_rate,
        use_checkpoint=use_checkpoint,
        use_v2=use_v2,
    )
    return network


segresnet.divisor = 8  # type: ignore[attr-defined]
swin_unetr.divisor = 32  # type: ignore[attr-defined]


def _rows(rows: Rows) -> list[list[int]]:
    return [list(row) for row in rows]


def _named(layer: Named) -> Any:
    """YAML has lists where MONAI wants tuples."""
    return layer if isinstance(layer, str) else tuple(layer)


def _check_deepest(name: str, patch_size: Sequence[int] | None, strides: Rows) -> None:
    """PyTorch's instance norm refuses to train on a single voxel."""
    if patch_size is None:
        return
    divisor = [math.prod(column) for column in zip(*strides, strict=True)]
    if math.prod(n // d for n, d in zip(patch_size, divisor, strict=True)) < 2:
        raise MedsegError(
            f"network: {name} shrinks the patch {list(patch_size)} to a single voxel, which its norm cannot train on; "
            f"expected at least {2 * max(divisor)} along some axis: set plan.patch_size=…"
        )
