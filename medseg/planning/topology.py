"""How deep a U-Net is for a patch, and how much memory training it takes: numbers in, numbers out.

Owns the rules for strides, kernels, features and blocks of the stages, after nnU-Net (Isensee et al. 2021, Nature Methods
18:203, supplementary note on the design of the network topology; residual encoder: Isensee et al. 2024, "nnU-Net
Revisited"), and the estimate of training memory. Knows neither data sets nor plans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Encoder = Literal["plain", "residual"]
Rows = tuple[tuple[int, ...], ...]

SMALLEST_MAP = 4
"""Feature maps are not halved below this edge."""
ANISOTROPY = 2.0
"""An axis this much coarser than the finest is neither halved nor convolved along, until the others have caught up."""
LARGEST_WIDTH = {2: 512, 3: 320}
BLOCKS: dict[Encoder, tuple[int, ...]] = {"plain": (2,), "residual": (1, 3, 4, 6)}
"""Convolutions (plain) or residual blocks of the first stages; the last number holds for all deeper ones."""
BYTES_PER_WEIGHT = 16
"""float32: value, gradient, momentum and running average."""


@dataclass(frozen=True)
class Stages:
    """One entry a stage, finest first, as in the Plan. ``blocks`` are convolutions or residual blocks, as ``encoder`` says."""

    encoder: Encoder
    features: tuple[int, ...]
    strides: Rows
    kernel_sizes: Rows
    blocks: tuple[int, ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        return tuple(math.prod(column) for column in zip(*self.strides, strict=True))


def plan_strides(patch: Sequence[int], spacing: Sequence[float], stages: int | None = None) -> Rows:
    """Strides of each stage: halve every axis of 8 voxels or more that is less than 2× as coarse as the finest such axis.

    Args:
        patch: voxels along each axis; need not be a multiple of anything, sizes are rounded up.
        spacing: of the patch's voxels.
        stages: stop at this many; to reach it, maps may become as small as 2 voxels. There may still be fewer.
    """
    size, step = list(patch), list(spacing)
    rows = [(1,) * len(size)]
    smallest = SMALLEST_MAP
    while stages is None or len(rows) < stages:
        large = [axis for axis, n in enumerate(size) if n >= 2 * smallest]
        if not large:
            if stages is None or smallest <= 2:
                break
            smallest = 2
            continue
        finest = min(step[axis] for axis in large)
        row = tuple(2 if axis in large and step[axis] < ANISOTROPY * finest else 1 for axis in range(len(size)))
        size = [-(-n // s) for n, s in zip(size, row, strict=True)]
        step = [length * s for length, s in zip(step, row, strict=True)]
        rows.append(row)
    return tuple(rows)


def plan_kernels(patch: Sequence[int], spacing: Sequence[float], strides: Rows) -> Rows:
    """Kernels of each stage: 3 along an axis, 1 while it is 2× or more coarser than the finest, or one voxel thin."""
    step = list(spacing)
    rows: list[tuple[int, ...]] = []
    for stride in strides:
        step = [length * s for length, s in zip(step, stride, strict=True)]
        now = [3 if length < ANISOTROPY * min(step) and n > 1 else 1 for length, n in zip(step, patch, strict=True)]
        # An axis once convolved along stays so: the others then only become coarser themselves.
        rows.append(tuple(max(k, before) for k, before in zip(now, rows[-1] if rows else now, strict=True)))
    return tuple(rows)


def plan_features(width: int, stages: int, dimensions: int) -> tuple[int, ...]:
    """Channels double from stage to stage up to 320 in 3D and 512 in 2D."""
    return tuple(min(width * 2**stage, LARGEST_WIDTH[dimensions]) for stage in range(stages))


def plan_blocks(pattern: Sequence[int], stages: int) -> tuple[int, ...]:
    """``pattern`` cut or continued with its last entry to ``stages`` entries."""
    return tuple(pattern[min(stage, len(pattern) - 1)] for stage in range(stages))


def count_weights(stages: Stages, channels: int, outputs: int) -> int:
    """Weights of the planned U-Net, norms and biases left out.

    The decoder has two convolutions a level beside a plain encoder and one beside a residual encoder.
    """
    residual = stages.encoder == "residual"
    before, total = channels, 0
    if residual:
        before = stages.features[0]
        total += channels * before * math.prod(stages.kernel_sizes[0])
    for stage, (width, kernel, blocks) in enumerate(
        zip(stages.features, stages.kernel_sizes, stages.blocks, strict=True)
    ):
        convolutions = 2 * blocks if residual else blocks
        total += math.prod(kernel) * width * (before + (convolutions - 1) * width)
        total += before * width if residual and before != width else 0
        if stage:
            fine = stages.features[stage - 1]
            total += width * fine * math.prod(stages.strides[stage])
            total += (2 if residual else 3) * fine * fine * math.prod(stages.kernel_sizes[stage - 1]) + fine * outputs
        before = width
    return total


def activation_bytes(patch: Sequence[int], stages: Stages, channels: int, outputs: int) -> int:
    """What one sample keeps for the backward pass, in float32 (in bf16 about 0.7 of it).

    4 · [ Σₛ Vₛ · Fₛ · (m · Bₛ + 6) + V₀ · (C + 4·K) ] bytes: V voxels, F features and B blocks of stage s, C input channels,
    K outputs. A convolution keeps m = 2 maps (the input of its norm and the output of its activation), a residual block
    m = 4, a level of the decoder 6. Counted with ``torch.autograd.graph.saved_tensors_hooks`` on our two U-Nets: within 2 %
    for patches of 40×56×40, 80³ and 256².
    """
    voxels = math.prod(patch)
    maps = 4 if stages.encoder == "residual" else 2
    total = voxels * (channels + 4 * outputs)
    for width, stride, blocks in zip(stages.features, stages.strides, stages.blocks, strict=True):
        voxels //= math.prod(stride)
        total += voxels * width * (maps * blocks + 6)
    return 4 * total


def training_bytes(patch: Sequence[int], batch: int, stages: Stages, channels: int, outputs: int) -> int:
    """16 bytes a weight, and the activations of ``batch`` samples; what torch itself takes (≈ 0.5 GB) comes on top."""
    weights = BYTES_PER_WEIGHT * count_weights(stages, channels, outputs)
    return weights + batch * activation_bytes(patch, stages, channels, outputs)
