"""The head of a detector: what is there, and where it ends, at every place of every level.

Owns the layers between feature maps and logits, and how they start. Knows neither what the numbers of a box mean
(`medseg.networks.anchor_grid`) nor how many levels the trunk has beyond those it is handed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks.layers import CONV
from medseg.networks.unet import SLOPE, initialise

PRIOR = 0.01
"""Probability that a fresh head gives each class at each place: without it, thousands of empty places swamp the first steps
(Lin et al. 2017, section 4.1)."""
_GROUP = 8


class BoxHead(nn.Module):
    """One row of convolutions for the classes and one for the boxes, shared by all levels (RetinaNet, Lin et al. 2017).

    Each level has a 1×1 convolution before them, from the trunk's features to ``width``, and its own last convolutions, since its
    anchors are its own. The norm is over groups of channels: an instance norm would make of an empty window's noise what it
    makes of a lesion, and nothing of a level of one cell.

    Args:
        features: channels of each level's map, finest first.
        classes: without background; each has a sigmoid of its own.
        per_cell: anchors a cell of each level, 1 without anchors.
        width: channels of the convolutions, a multiple of 8.
        depth: convolutions in each row.
        start: what every number of a box starts at.

    Raises:
        MedsegError: sizes that cannot be built.
    """

    def __init__(
        self,
        dimensions: int,
        features: Sequence[int],
        *,
        classes: int,
        per_cell: Sequence[int],
        width: int = 64,
        depth: int = 2,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        if classes < 1 or depth < 0 or width < _GROUP or width % _GROUP:
            raise MedsegError(
                f"network: expected one or more classes, head_depth of 0 or more and head_width a multiple of {_GROUP}; "
                f"found {classes}, {depth}, {width}"
            )
        sure = -math.log((1 - PRIOR) / PRIOR)
        self.lateral = nn.ModuleList(CONV[dimensions](channels, width, 1) for channels in features)
        self.score_row = nn.Sequential(*(_block(dimensions, width) for _ in range(depth)))
        self.box_row = nn.Sequential(*(_block(dimensions, width) for _ in range(depth)))
        self.apply(initialise)
        self.scores = nn.ModuleList(_last(dimensions, width, count * classes, sure) for count in per_cell)
        self.deltas = nn.ModuleList(_last(dimensions, width, count * 2 * dimensions, start) for count in per_cell)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps ``(B, features[l], *S_l)`` → logits ``(B, A_l·classes, *S_l)`` and codes ``(B, A_l·2·D, *S_l)``."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        scores = [last(self.score_row(x)) for last, x in zip(self.scores, maps, strict=True)]
        return scores, [last(self.box_row(x)) for last, x in zip(self.deltas, maps, strict=True)]


def _block(dimensions: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        CONV[dimensions](width, width, 3, padding=1), nn.GroupNorm(width // _GROUP, width), nn.LeakyReLU(SLOPE)
    )


def _last(dimensions: int, inputs: int, outputs: int, bias: float) -> nn.Module:
    """A convolution that says ``bias`` of everything, but for a little noise."""
    conv = CONV[dimensions](inputs, outputs, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv
