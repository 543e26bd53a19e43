"""What a heat map must beat: maps that know nothing of the network. All are ``(*S)``; only the random one is signed.

random   noise as smooth as the map in question: what its grain alone brings
edges    gradient magnitude of the image: what contrast alone brings
centre   a blob in the middle, the same in all images: what the position of most lesions alone brings
area     the same everywhere: its energy in a mask is the share of the image that the mask covers
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.volume import Array

NAMES = ("random", "edges", "centre", "area")

_CENTRE = 1 / 6  # standard deviation of the blob, of each side: three of them reach the border
_LARGEST = 1 / 4  # of a side: beyond it, noise would be a ramp


def baseline_maps(image: Array, like: Array, *, seed: int = 0) -> dict[str, Array]:
    """Every baseline for an image ``(C, *S)``, by name; the random one as smooth as ``like`` ``(*S)``."""
    shape = like.shape
    maps = random_map(shape, smoothness(like), seed=seed), edge_map(image), centre_map(shape), np.ones(shape)
    return dict(zip(NAMES, maps, strict=True))


def random_map(shape: Sequence[int], sigma: Sequence[float], *, seed: int = 0) -> Array:
    """White noise smoothed with a Gaussian of ``sigma`` voxels an axis; signed, of mean 0."""
    noise = np.random.default_rng(seed).standard_normal(tuple(shape))
    return np.asarray(ndimage.gaussian_filter(noise, list(sigma), mode="wrap"))


def smoothness(heat: Array) -> tuple[float, ...]:
    """The standard deviation, in voxels an axis, of the Gaussian that gives white noise the grain of ``heat``.

    Noise so smoothed has the autocorrelation ρ(d) = exp(−d² / 4σ²), so that neighbours (d = 1) give σ = 1 / √(−4 ln ρ(1)).
    It is 0 for a map no smoother than noise, and at most a quarter of the side.
    """
    values = heat.astype(np.float64)
    variance = values.var()
    sigma = []
    for axis, length in enumerate(values.shape):
        apart = np.mean(np.diff(values, axis=axis) ** 2) if length > 1 else 0.0
        rho = 1 - apart / (2 * variance) if variance > 0 else 1.0
        wide = 0.0 if rho <= 0 else np.inf if rho >= 1 else 1 / np.sqrt(-4 * np.log(rho))
        sigma.append(float(min(wide, _LARGEST * length)))
    return tuple(sigma)


def edge_map(image: Array) -> Array:
    """Gradient magnitude (Sobel, a voxel as unit) of an image ``(C, *S)``, summed over the channels."""
    channels = [
        np.sqrt(sum(ndimage.sobel(c, axis=axis) ** 2 for axis in range(c.ndim))) for c in image.astype(np.float64)
    ]
    return np.asarray(sum(channels))


def centre_map(shape: Sequence[int]) -> Array:
    """A Gaussian blob in the middle, 1 at its top, whose standard deviation is a sixth of each side."""
    squared = [((np.arange(n) - (n - 1) / 2) / (_CENTRE * n)) ** 2 for n in shape]
    return np.asarray(np.exp(-0.5 * sum(np.ix_(*squared))))
