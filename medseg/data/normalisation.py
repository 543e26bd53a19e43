"""How the values of a scan become those a network sees: the statistics of a whole scan, applied to any part of it.

Statistics are gathered slab by slab, so that no float copy of a scan is made. Knows channels of a plan, and no grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.planning.plan import Channel
from medseg.volume import Array

_SLAB = 1 << 22
"""Voxels that statistics are taken of at once."""


@dataclass(frozen=True)
class Scale:
    """How the values of one channel of a scan are normalised.

    Args:
        channel: what the plan says.
        shift, width: what values are lessened and then divided by, where the scan says so: its mean and deviation for ``zscore``
            and ``zscore_all``, its least value and its range for ``minmax``.
        least: what the scan's smallest value becomes; 0 where a region is cut out, the value that crops are padded with.
    """

    channel: Channel
    shift: float = 0.0
    width: float = 1.0
    least: float = 0.0

    @classmethod
    def of(cls, values: Array, channel: Channel, inside: Array | None) -> Scale:
        """``inside`` is where ``zscore`` takes its statistics; outside of it the result is 0.

        Raises:
            MedsegError: the plan cannot be followed.
        """
        scale = cls(channel)
        inside = inside if channel.normalisation == "zscore" else None
        if channel.normalisation in ("zscore", "zscore_all"):
            mean, std = _mean_std(values, inside)
            # A constant scan has no contrast to scale; without this, rounding errors would become the picture.
            scale = cls(channel, mean, std if std > 1e-6 * abs(mean) else 1.0)
            if inside is not None:
                return scale
        elif channel.normalisation == "minmax":
            low, high = np.float32(values.min()), np.float32(values.max())
            scale = cls(channel, float(low), float(max(high - low, np.float32(1e-8))))
        elif channel.normalisation == "rescale" and channel.high <= channel.low:
            raise MedsegError(
                f"channel {channel.name!r}: rescale needs low < high in the plan, found {channel.low}…{channel.high}"
            )
        least = np.array([values.min()], np.float32)
        scale.apply(least, None)
        return replace(scale, least=float(least[0]))

    def apply(self, values: Array, inside: Array | None) -> None:
        """Normalise float32 ``values`` in place; ``inside`` is the region's part of them."""
        channel = self.channel
        if channel.normalisation in ("zscore", "zscore_all", "minmax"):
            values -= np.float32(self.shift)
            values /= np.float32(self.width)
            if inside is not None and channel.normalisation == "zscore":
                values[~inside] = 0
        elif channel.normalisation == "ct":
            np.clip(values, channel.low, channel.high, out=values)
            values -= np.float32(channel.mean)
            values /= np.float32(max(channel.std, 1e-8))
        elif channel.normalisation == "rescale":
            values -= np.float32(channel.low)
            values /= np.float32(channel.high - channel.low)


def _mean_std(values: Array, inside: Array | None) -> tuple[float, float]:
    """Mean and standard deviation in float64 of ``(*S)``, slab by slab: no copy of a scan is made.

    Slabs are put together as in Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm", eq. 2.1.
    """
    count, mean, squares = 0, 0.0, 0.0
    thick = max(1, _SLAB * len(values) // values.size)
    for first in range(0, len(values), thick):
        slab = in_order(values[None, first : first + thick])[0]
        found = slab if inside is None else slab[inside[first : first + thick]]
        if not found.size:
            continue
        middle = float(found.mean(dtype=np.float64))
        spread = float(np.square(found - np.float32(middle), dtype=np.float64).sum())
        total, apart = count + found.size, middle - mean
        squares += spread + apart**2 * count * found.size / total
        count, mean = total, mean + apart * found.size / total
    return mean, math.sqrt(squares / count)


def in_order(array: Array, tile: int = 32) -> Array:
    """A C-ordered float32 copy, made tile by tile: scans lie in Fortran order, and turning one at once is four times slower."""
    out = np.empty(array.shape, np.float32)
    for first in range(0, array.shape[1], tile):
        for last in range(0, array.shape[-1], tile):
            window = (slice(None), slice(first, first + tile), ..., slice(last, last + tile))
            out[window] = array[window]
    return out


def inside_of(data: Array) -> Array | None:
    """``(*S)`` bool: not zero in some channel, or a hole enclosed by such voxels; None where that is everywhere.

    Holes count as inside, for a dark ventricle of exactly 0 is tissue and must not become the mean.
    """
    zero = ~data.any(axis=0)
    if not zero.any() or zero.all():
        return None
    parts, count = ndimage.label(zero)
    reaches_border = np.zeros(count + 1, bool)
    for axis in range(parts.ndim):
        for end in (0, -1):
            reaches_border[parts.take(end, axis=axis)] = True
    reaches_border[0] = False
    return ~reaches_border[parts]
