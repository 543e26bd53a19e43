"""What is lost when a part of the scan is covered: the score is asked again, and no gradient is needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from medseg.errors import MedsegError
from medseg.explain.evidence import CaseScore
from medseg.tiling.windows import overlap_slices
from medseg.volume import Array

Box = tuple[slice, ...]


def occlusion(score: CaseScore, array: Array, *, size: float | None = None, stride: float | None = None) -> Array:
    """How much the score of the case falls when a box is set to zero, the mean (Zeiler & Fergus 2014, section 4.2).

    A voxel has the mean over the boxes that cover it. Boxes lie on the grid of the case, not of a window, which Captum's
    occlusion cannot do; of each, the windows are asked again that see it.

    Args:
        size: edge of a box, in mm (px for pictures without spacing); by default an eighth of the window along each axis.
        stride: from a box to the next; by default half a box in pictures and a box in volumes, which have enough of them.

    Raises:
        MedsegError: a size or stride that is not positive, or a stride beyond the size, which would leave gaps.
    """
    stitching = score.stitching
    spacing = stitching.plan.spacing
    sizes = [
        max(1, n // 8) if size is None else _voxels(size, s) for n, s in zip(stitching.patch, spacing, strict=True)
    ]
    halves = 2 if len(sizes) == 2 else 1
    steps = [max(1, n // halves) if stride is None else _voxels(stride, s) for n, s in zip(sizes, spacing, strict=True)]
    if (
        (size is not None and size <= 0)
        or (stride is not None and stride <= 0)
        or any(step > n for step, n in zip(steps, sizes, strict=True))
    ):
        raise MedsegError(
            f"occlusion: expected size > 0 and 0 < stride ≤ size, found size={size} and stride={stride} ({sizes} and {steps} "
            "voxels)"
        )
    lost: Array = np.zeros(stitching.shape, np.float32)
    boxes = list(_boxes(stitching.shape, sizes, steps))
    for share in score.shares:
        window = score.cut(array, share.lower)
        seen = [(box, part) for box in boxes if (part := _part(box, share.lower, stitching.patch)) is not None]
        with torch.no_grad():
            whole = float(score.of_window(window, share))
            for first in range(0, len(seen), stitching.plan.batch_size):
                chosen = seen[first : first + stitching.plan.batch_size]
                batch = window.repeat(len(chosen), *[1] * (window.ndim - 1))
                for one, (_, part) in zip(batch, chosen, strict=True):
                    one[(slice(None), *part)] = 0
                left = score.of_window(batch, share).tolist()
                for (box, _), value in zip(chosen, left, strict=True):
                    lost[box] += whole - value
    covering: Array = np.zeros(stitching.shape, np.float32)
    for box in boxes:
        covering[box] += 1
    return lost / covering


def _voxels(length: float, spacing: float) -> int:
    return max(1, round(length / spacing))


def _boxes(shape: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> Iterator[Box]:
    """Boxes that cover a grid; the last along an axis may be cut off at its border."""
    counts = [math.ceil(max(n - s, 0) / step) + 1 for n, s, step in zip(shape, size, stride, strict=True)]
    for place in itertools.product(*map(range, counts)):
        yield tuple(
            slice(at * step, min(at * step + s, n)) for at, step, s, n in zip(place, stride, size, shape, strict=True)
        )


def _part(box: Box, lower: Sequence[int], patch: Sequence[int]) -> Box | None:
    """The part of a box that a window sees, in its voxels; None where it sees nothing."""
    start = [side.start - first for side, first in zip(box, lower, strict=True)]
    part, _ = overlap_slices(start, [side.stop - side.start for side in box], patch)
    return part if all(side.stop > side.start for side in part) else None
