"""How tensors lie in memory: channels beside one another, as convolutions want them. Knows no network."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last_format(dimensions: int) -> torch.memory_format:
    return torch.channels_last_3d if dimensions == 3 else torch.channels_last


def channels_last(x: Tensor) -> Tensor:
    """``(B, C, *S)``, laid out channels last.

    A single channel lies the same either way, and PyTorch takes it for channels first: a convolution then answers so, too (2.3
    instead of 0.4 ms for 1 → 32 channels of 40×56×40 voxels in bfloat16 on two cores). Here its stride says what it is.
    """
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return x.contiguous(memory_format=channels_last_format(x.ndim - 2))
