"""Detectors on the trunk of the segmentation networks: RetinaNet, Retina U-Net, and one without anchors.

The decoder of the U-Net is the feature pyramid; a head that all levels share says for every place of a level which classes are
there and where the box ends. Retina U-Net (Jaeger et al. 2018) also segments at full resolution, whose gradient teaches the
trunk what a lesion looks like. In both modes ``forward`` returns a dictionary:

    scores   a list of levels (B, A_l·classes, *S_l), finest first: logits, channel a·classes + c
    deltas   a list of levels (B, A_l·2·D, *S_l): codes that `anchor_grid.AnchorGrid.decode` turns into boxes; of a head
             without anchors they are called ``faces``
    mask     (B, mask_channels, *S), or levels in training mode with deep supervision; only where masks are asked for

Knows nothing of plans, losses or devices: numbers come in, a module comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from medseg.networks.anchor_grid import AnchorGrid
from medseg.networks.detection_heads import BoxHead
from medseg.networks.unet import Rows, UNet, planned_encoder

_TWO_STRIDES = 1.84  # as `anchor_grid.decode_faces` reads it: a fresh head without anchors says boxes of four cells


class BoxNet(nn.Module):
    """A U-Net whose levels share a head for boxes; its own heads, where it has any, give the mask."""

    def __init__(self, trunk: UNet, head: BoxHead, levels: Sequence[int], codes: str) -> None:
        super().__init__()
        self.trunk, self.head, self.levels, self.codes = trunk, head, tuple(levels), codes

    def forward(self, x: Tensor) -> dict[str, Any]:
        """``(B, C, *S)`` → the dictionary above; S a multiple of the product of the strides."""
        maps = self.trunk.pyramid(x, {*self.levels, *self.trunk.output_levels})
        scores, codes = self.head([maps[level] for level in self.levels])
        output: dict[str, Any] = {"scores": scores, self.codes: codes}
        if len(self.trunk.heads):
            output["mask"] = self.trunk.outputs(maps)
        return output


def retinanet(
    *,
    dimensions: int,
    in_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    classes: int,
    levels: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]],
    encoder: str = "plain",
    decoder_blocks: int = 2,
    head_width: int = 64,
    head_depth: int = 2,
    dropout: float = 0.0,
) -> BoxNet:
    """RetinaNet (Lin et al. 2017) on the levels of a U-Net, whose decoder ends at the finest level that is used.

    Args:
        dimensions, in_channels, features, strides, kernel_sizes, blocks, decoder_blocks, dropout: as for `unet.plain_unet`.
        classes: that boxes can have, without background.
        levels: of the decoder, ascending, 0 the finest; the last stage of the encoder counts too.
        anchors: for each level one or more sizes in voxels of the input along each axis.
        encoder: ``"plain"`` or ``"residual"``.
        head_width, head_depth: channels (a multiple of 8) and number of the convolutions before scores and boxes.

    Raises:
        MedsegError: numbers that do not fit each other.
    """
    return _build(
        dimensions=dimensions, in_channels=in_channels, features=features, strides=strides, kernel_sizes=kernel_sizes,
        blocks=blocks, classes=classes, levels=levels, anchors=anchors, encoder=encoder, decoder_blocks=decoder_blocks,
        head_width=head_width, head_depth=head_depth, dropout=dropout, mask_channels=0, deep_supervision=False,
    )  # fmt: skip


def retina_unet(
    *,
    dimensions: int,
    in_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    classes: int,
    levels: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]],
    mask_channels: int = 0,
    deep_supervision: bool = True,
    encoder: str = "plain",
    decoder_blocks: int = 2,
    head_width: int = 64,
    head_depth: int = 2,
    dropout: float = 0.0,
) -> BoxNet:
    """Retina U-Net (Jaeger et al. 2018): `retinanet`, and the mask of a whole U-Net beside the boxes.

    Args:
        mask_channels: channels of the mask, as a segmentation network would have them (with background where exclusive); 0
            where there are no masks to learn from: it is then `retinanet`.
        deep_supervision: a mask at every level of the decoder in training mode.

    Other arguments and errors are those of `retinanet`.
    """
    return _build(
        dimensions=dimensions, in_channels=in_channels, features=features, strides=strides, kernel_sizes=kernel_sizes,
        blocks=blocks, classes=classes, levels=levels, anchors=anchors, encoder=encoder, decoder_blocks=decoder_blocks,
        head_width=head_width, head_depth=head_depth, dropout=dropout, mask_channels=mask_channels,
        deep_supervision=deep_supervision and mask_channels > 0,
    )  # fmt: skip


def anchor_free(
    *,
    dimensions: int,
    in_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    classes: int,
    levels: Sequence[int],
    mask_channels: int = 0,
    deep_supervision: bool = True,
    encoder: str = "plain",
    decoder_blocks: int = 2,
    head_width: int = 64,
    head_depth: int = 2,
    dropout: float = 0.0,
) -> BoxNet:
    """A detector without anchors, after FCOS (Tian et al. 2019): every cell says how far the faces of its box are.

    FCOS's output for how central a cell is, is left out; `medseg.losses_boxes.quality_giou` teaches the score itself how well
    the box fits. ``mask_channels`` 0 leaves the mask out. Other arguments and errors are those of `retina_unet`.
    """
    return _build(
        dimensions=dimensions, in_channels=in_channels, features=features, strides=strides, kernel_sizes=kernel_sizes,
        blocks=blocks, classes=classes, levels=levels, anchors=None, encoder=encoder, decoder_blocks=decoder_blocks,
        head_width=head_width, head_depth=head_depth, dropout=dropout, mask_channels=mask_channels,
        deep_supervision=deep_supervision and mask_channels > 0,
    )  # fmt: skip


def _build(
    *,
    dimensions: int,
    in_channels: int,
    features: Sequence[int],
    strides: Rows,
    kernel_sizes: Rows,
    blocks: Sequence[int],
    classes: int,
    levels: Sequence[int],
    anchors: Sequence[Sequence[Sequence[float]]] | None,
    encoder: str,
    decoder_blocks: int,
    head_width: int,
    head_depth: int,
    dropout: float,
    mask_channels: int,
    deep_supervision: bool,
) -> BoxNet:
    stem, stages = planned_encoder(
        encoder, dimensions=dimensions, in_channels=in_channels, features=features, strides=strides,
        kernel_sizes=kernel_sizes, blocks=blocks, dropout=dropout,
    )  # fmt: skip
    grid = AnchorGrid.of(strides, levels, anchors)
    trunk = UNet(
        dimensions=dimensions, stem=stem, encoder=stages, features=features, strides=strides, kernel_sizes=kernel_sizes,
        decoder_blocks=decoder_blocks, out_channels=mask_channels, deep_supervision=deep_supervision, dropout=dropout,
        finest=0 if mask_channels else levels[0],
    )  # fmt: skip
    head = BoxHead(
        dimensions, [features[level] for level in levels], classes=classes, per_cell=grid.per_cell, width=head_width,
        depth=head_depth, start=_TWO_STRIDES if grid.anchor_free else 0.0,
    )  # fmt: skip
    return BoxNet(trunk, head, levels, grid.codes)
