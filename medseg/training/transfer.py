"""Starting from another model's weights, also where its labels or channels differ. Pure tensors: no files, no Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Transferred:
    """Names of the tensors that were taken whole, taken in part (other labels or channels), and left as they were."""

    whole: tuple[str, ...]
    adapted: tuple[str, ...]
    left: tuple[str, ...]


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
    name, and the mean of the old channels for new ones.
    """
    own = network.state_dict()
    whole: list[str] = []
    adapted: list[str] = []
    left: list[str] = []
    for name, tensor in own.items():
        old = weights.get(name)
        new = None if old is None else _fit(tensor, old, outputs, old_outputs, channels, old_channels)
        if new is None:
            left.append(name)
            continue
        (whole if old is not None and old.shape == tensor.shape and new is old else adapted).append(name)
        with torch.no_grad():
            tensor.copy_(new)
    return Transferred(tuple(whole), tuple(adapted), tuple(left))


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
