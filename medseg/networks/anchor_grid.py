"""Where a detection head predicts, and the code between a place and a box.

The cells of a level with stride ``s`` divide the network's input into blocks of ``s`` voxels, the first of which begins at
edge 0. A *place* is a box centred on a cell: an anchor, or for a head without anchors the cell itself. In edge coordinates,
which all boxes here have (`medseg.structures.Boxes`), the centre of cell ``n`` is ``(n + ½)·s``, not ``n·s``:

    voxels    0   1   2   3   4   5   6   7
    edges   0   1   2   3   4   5   6   7   8
    s = 4   |-------o-------|-------o-------|        centres 2 and 6

Places run level by level, within a level cell by cell (last axis fastest), within a cell anchor by anchor; `AnchorGrid.rows`
brings the channels of a head into that order. Knows neither networks nor losses, nor where a window lies in its scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg.errors import MedsegError

_GROWTH = 4.0
"""Limit of the log of a box's size over its anchor's: far beyond what anchors are made for, and exp stays finite."""
_NEAREST = 0.01
"""Least distance, in strides, of a face from its cell's centre: boxes keep a positive size."""


@dataclass(frozen=True)
class AnchorGrid:
    """The places of the levels that a detector uses, finest first.

    Args:
        strides: voxels of the input per cell along each axis, one row a level.
        anchors: for each level one or more sizes in voxels along each axis; None for a head without anchors.

    Raises:
        MedsegError: rows that do not fit each other, or a size or stride that is not positive.
    """

    strides: tuple[tuple[int, ...], ...]
    anchors: tuple[tuple[tuple[float, ...], ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.strides or len({len(row) for row in self.strides}) != 1 or min(map(min, self.strides)) < 1:
            raise MedsegError(f"boxes: expected a row of positive strides a level, found {self.strides}")
        if self.anchors is None:
            return
        if len(self.anchors) != len(self.strides) or not all(self.anchors):
            raise MedsegError(
                f"boxes: expected one or more anchors for each of {len(self.strides)} levels, found "
                f"{[len(level) for level in self.anchors]}"
            )
        sizes = [size for level in self.anchors for size in level]
        if any(len(size) != self.dimensions or not min(size) > 0 for size in sizes):
            raise MedsegError(f"boxes: expected {self.dimensions} positive numbers of voxels an anchor, found {sizes}")

    @classmethod
    def of(
        cls,
        strides: Sequence[Sequence[int]],
        levels: Sequence[int],
        anchors: Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> AnchorGrid:
        """The grid of ``levels`` (0 the finest) of a network with the plan's ``strides`` (one row a stage).

        Raises:
            MedsegError: levels that the network does not have, that do not ascend, or anchors that do not fit them.
        """
        if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or levels[-1] >= len(strides):
            raise MedsegError(f"boxes: expected ascending levels of 0…{len(strides) - 1}, found {list(levels)}")
        rows = tuple(tuple(math.prod(column) for column in zip(*strides[: n + 1], strict=True)) for n in levels)
        if anchors is None:
            return cls(rows)
        return cls(rows, tuple(tuple(tuple(float(n) for n in size) for size in level) for level in anchors))

    @property
    def dimensions(self) -> int:
        return len(self.strides[0])

    @property
    def anchor_free(self) -> bool:
        return self.anchors is None

    @property
    def codes(self) -> str:
        """Under which name a network's output holds what `decode` reads: ``faces`` without anchors, else ``deltas``."""
        return "faces" if self.anchor_free else "deltas"

    @property
    def per_cell(self) -> tuple[int, ...]:
        """Places a cell, of each level."""
        return (1,) * len(self.strides) if self.anchors is None else tuple(map(len, self.anchors))

    def places(self, shapes: Sequence[Sequence[int]], device: torch.device | None = None) -> list[Tensor]:
        """For each level, of ``shapes[level]`` cells along the axes: ``(cells · per_cell, 2·D)`` float32."""
        sizes = self.anchors if self.anchors is not None else [[stride] for stride in self.strides]
        levels = zip(shapes, self.strides, sizes, strict=True)
        return [_places(shape, stride, of_level, device) for shape, stride, of_level in levels]

    def rows(self, levels: Sequence[Tensor]) -> Tensor:
        """Outputs ``(B, per_cell · C, *S)`` of all levels → ``(B, N, C)`` float32, in the order of the places.

        Channel ``a·C + c`` is number ``c`` of anchor ``a``.
        """
        flat = []
        for level, count in zip(levels, self.per_cell, strict=True):
            batch, channels = level.shape[:2]
            if channels % count:
                raise MedsegError(f"boxes: {channels} channels are no multiple of {count} anchors a cell")
            flat.append(level.movedim(1, -1).reshape(batch, -1, channels // count))
        return torch.cat(flat, 1).float()

    def decode(self, codes: Tensor, places: Tensor) -> Tensor:
        """What a head says ``(…, 2·D)`` at ``places`` → boxes, always of positive size."""
        return (decode_faces if self.anchor_free else decode_deltas)(codes, places)

    def encode(self, boxes: Tensor, places: Tensor) -> Tensor:
        """What a head should say at ``places`` ``(…, 2·D)`` for ``boxes``; the inverse of `decode`."""
        return (encode_faces if self.anchor_free else encode_deltas)(boxes, places)


def encode_deltas(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Shift of the centre over the anchor's size, then log of size over size (Girshick et al. 2014, appendix C).

    The same as MONAI's ``BoxCoder`` with weights of 1, which refuses what is not finite: here a loss may become NaN, and the
    training loop says so.
    """
    center, size = _center_size(boxes)
    at, scale = _center_size(anchors)
    return torch.cat(((center - at) / scale, (size / scale).log()), -1)


def decode_deltas(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The inverse of `encode_deltas`, for boxes of e⁻⁴ to e⁴ times their anchor."""
    shift, growth = deltas.chunk(2, -1)
    at, scale = _center_size(anchors)
    center, half = at + shift * scale, growth.clamp(-_GROWTH, _GROWTH).exp() * scale / 2
    return torch.cat((center - half, center + half), -1)


def encode_faces(boxes: Tensor, cells: Tensor) -> Tensor:
    """Inverse softplus of the distance, in strides, from the cell's centre to each lower, then each upper face.

    A centre outside its box, as boxes smaller than a cell may have it, counts as 1/50 of a stride inside.
    """
    at, stride = _center_size(cells)
    lower, upper = boxes.chunk(2, -1)
    distances = (torch.cat(((at - lower) / stride, (upper - at) / stride), -1) - _NEAREST).clamp(min=_NEAREST)
    return distances + (-torch.expm1(-distances)).log()


def decode_faces(codes: Tensor, cells: Tensor) -> Tensor:
    """The inverse of `encode_faces`: distances to the faces as in FCOS (Tian et al. 2019), with softplus in place of exp."""
    at, stride = _center_size(cells)
    lower, upper = (F.softplus(codes) + _NEAREST).chunk(2, -1)
    return torch.cat((at - lower * stride, at + upper * stride), -1)


class Candidates(NamedTuple):
    """What a head found in one window, by falling score: boxes ``(N, 2·D)`` float32 in its voxels, scores and classes (N,)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def candidates(
    output: Mapping[str, Any], grid: AnchorGrid, *, keep: int = 1000, above: float = 0.01
) -> list[Candidates]:
    """The best boxes of each sample of a detector's output, many of them of the same lesion: fusing them is `medseg.tiling`'s.

    Args:
        output: ``scores`` (logits) and ``deltas`` or ``faces``, a list of levels each.
        keep: boxes a sample at most.
        above: probability that a box must exceed.

    Returns:
        one a sample; classes count from 0; boxes may reach beyond the window.
    """
    places = torch.cat(grid.places([level.shape[2:] for level in output["scores"]], output["scores"][0].device))
    scores, codes = grid.rows(output["scores"]).sigmoid(), grid.rows(output[grid.codes])
    found = []
    for score, code in zip(scores, codes, strict=True):
        best, index = score.flatten().topk(min(keep, score.numel()))
        index = index[best > above]  # NaN exceeds nothing
        place = index // score.shape[1]
        boxes = grid.decode(code[place], places[place])
        found.append(Candidates(boxes, best[best > above], index % score.shape[1]))
    return found


def _places(
    shape: Sequence[int], stride: Sequence[int], sizes: Sequence[Sequence[float]], device: torch.device | None
) -> Tensor:
    axes = [(torch.arange(n, dtype=torch.float32, device=device) + 0.5) * s for n, s in zip(shape, stride, strict=True)]
    centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 1, len(axes))
    half = torch.tensor([list(size) for size in sizes], dtype=torch.float32, device=device) / 2
    return torch.cat((centers - half, centers + half), -1).reshape(-1, 2 * len(axes))


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = boxes.chunk(2, -1)
    return (lower + upper) / 2, upper - lower
