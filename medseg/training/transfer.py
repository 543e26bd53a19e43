"""Starting from another model's weights, also where its labels, channels or task differ. Pure tensors: no files, no Lightning.

Segmentation networks, detectors and `encoder_classifier` name the layers of their common U-Net alike, but for the ``trunk.`` in
front of a detector's; it is looked past. What one has and the other does not (heads, a decoder) starts afresh.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

TRUNK = "trunk."
COMMON = ("stem", "encoder", "ups", "decoder")
"""Parts of our networks that know nothing of labels, however many channels they have."""


@dataclass(frozen=True)
class Transferred:
    """Names of the tensors that were taken whole, taken in part (other labels or channels), and left as they were."""

    whole: tuple[str, ...]
    adapted: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        """``24 of 26 tensors taken (encoder 24 of 24, head 0 of 2), 1 of them adapted to other labels or channels``."""
        taken = Counter(map(_part, (*self.whole, *self.adapted)))
        total = taken + Counter(map(_part, self.left))
        parts = ", ".join(f"{part} {taken[part]} of {count}" for part, count in total.items())
        adapted = f", {len(self.adapted)} of them adapted to other labels or channels" if self.adapted else ""
        return f"{taken.total()} of {total.total()} tensors taken ({parts}){adapted}"


def transfer(
    network: nn.Module,
    weights: dict[str, Tensor],
    *,
    outputs: Sequence[str],
    old_outputs: Sequence[str],
    channels: Sequence[str],
    old_channels: Sequence[str],
) -> Transferred:
    """Copy into ``network`` what fits of ``weights``.

    A tensor of the same name and shape is copied. One whose first axis is the outputs takes the rows of the outputs that
    share a name and keeps fresh rows for the others. One whose second axis is the input channels takes those that share a
    name, and the mean of the old channels for new ones. Where not one kernel or matrix fits (2D and 3D, other widths),
    nothing is copied: the norms alone would be worth nothing.
    """
    own = network.state_dict()
    by_layer = {name.removeprefix(TRUNK): weight for name, weight in weights.items()}
    fitting: dict[str, Tensor] = {}
    whole: list[str] = []
    for name, tensor in own.items():
        old = weights.get(name, by_layer.get(name.removeprefix(TRUNK)))
        rows = ((), ()) if _part(name) in COMMON else (outputs, old_outputs)
        new = None if old is None else _fit(tensor, old, *rows, channels, old_channels)
        if new is not None:
            fitting[name] = new
        if new is not None and new is old:
            whole.append(name)
    if not any(own[name].ndim > 1 for name in whole):
        return Transferred((), (), tuple(own))
    with torch.no_grad():
        for name, new in fitting.items():
            own[name].copy_(new)
    adapted = tuple(name for name in fitting if name not in whole)
    return Transferred(tuple(whole), adapted, tuple(name for name in own if name not in fitting))


def _fit(
    new: Tensor,
    old: Tensor,
    outputs: Sequence[str],
    old_outputs: Sequence[str],
    channels: Sequence[str],
    old_channels: Sequence[str],
) -> Tensor | None:
    """``old`` in the shape of ``new``, or None where they have nothing in common."""
    if new.ndim != old.ndim or not new.ndim:
        return old if new.shape == old.shape else None
    head = (len(new), len(old)) == (len(outputs), len(old_outputs)) and new.shape[1:] == old.shape[1:]
    if head and (list(outputs) != list(old_outputs)):
        if not set(outputs) & set(old_outputs):
            return None
        result = new.clone()
        for row, name in enumerate(outputs):
            if name in old_outputs:
                result[row] = old[old_outputs.index(name)]
        return result
    if new.shape == old.shape:
        return old
    stem = new.ndim > 2 and new.shape[0] == old.shape[0] and new.shape[2:] == old.shape[2:]
    if stem and (new.shape[1], old.shape[1]) == (len(channels), len(old_channels)):
        mean = old.mean(1)
        picked = [old[:, old_channels.index(name)] if name in old_channels else mean for name in channels]
        return torch.stack(picked, 1) * (old.shape[1] / new.shape[1])
    return None


def _part(name: str) -> str:
    """``encoder`` of ``trunk.encoder.0.conv.weight``."""
    return name.removeprefix(TRUNK).partition(".")[0]
