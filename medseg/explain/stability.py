"""Does the map stay where the image is? Shift the image a little, explain it again, shift that map back, and compare.

The mean rank correlation is also the reliability by which `medseg.explain.sanity` judges how much of a map is noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medseg.explain.sanity import rank_correlation
from medseg.volume import Array

Attribute = Callable[[Array], Array]
"""An image ``(C, *S)`` → its heat map ``(*S)``."""
Moved = Callable[[list[int]], Attribute]
"""Voxels along each axis → the same question about what has moved by so many."""

_FARTHEST = 2  # voxels
_SHORTEST = 8  # an axis is shifted by at most this part of its length, a thin one not at all


def stability(image: Array, heat: Array, attribute: Attribute, moved: Moved | None = None) -> float:
    """Mean rank correlation, −1…1, of ``heat`` with the map of the image shifted by 2 voxels along all axes, there and back.

    What enters at the border repeats its last voxels, and is not compared.

    Args:
        image: ``(C, *S)``; heat: ``(*S)``, the map of ``image``.
        attribute: what made ``heat``.
        moved: the same, asked about a target that has moved with the image; None where it lies nowhere.
    """
    far = [min(_FARTHEST, length // _SHORTEST) for length in heat.shape]
    found = []
    for sign in (1, -1):
        shift = [sign * step for step in far]
        ask = attribute if moved is None else moved(shift)
        there = np.asarray(ask(shifted(image, [0, *shift])))
        inside = tuple(slice(step, length - step) for step, length in zip(far, heat.shape, strict=True))
        found.append(rank_correlation(heat[inside], shifted(there, [-step for step in shift])[inside]))
    return float(np.mean(found))


def shifted(array: Array, shift: list[int]) -> Array:
    """``array`` moved by ``shift`` voxels an axis towards the higher indices; what enters repeats the border."""
    index = [np.clip(np.arange(n) - step, 0, n - 1) for n, step in zip(array.shape, shift, strict=True)]
    return array[np.ix_(*index)]
