"""Does the score hang on what the map points at? Deletion and insertion curves (Petsiuk et al. 2018, "RISE").

Deletion replaces the image from the highest values of the map on: a good map makes the score fall at once, its curve has a
**small** area. Insertion brings the image back into a fully replaced one in the same order: a **large** area is good. What is
replaced at a time are regions, not single pixels (Samek et al. 2017, "Evaluating the visualization of what a deep neural
network has learned"): cells of a 32nd of each side, ranked by their mean, so that every map tears the image in pieces of the
same size and a grainy map gains nothing by noise that the network has never seen. What stands in is the image blurred until no
structure is left: least strange to a network, and brightness stays where it was.

    score           1  the whole image, 0  the fully replaced one; clipped to 0…1, so that no case outweighs the others
    share           of the pixels that were replaced (deletion) or are back (insertion)

Signed maps are ranked by value: what speaks against the score goes last. Knows arrays and a callable, no network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.volume import Array

Score = Callable[[Array], float]
"""An image ``(C, *S)`` → how much it speaks for the target."""

STEPS = 24
"""Points of a curve after the first: both curves of a map cost 46 scores."""

_CELLS = 32  # along each axis
_BLUR = 0.1  # standard deviation of the blurred image, of each side: finer structure than that is gone


@dataclass(frozen=True, eq=False)
class Curve:
    """How the score follows the map: ``share`` of the pixels and ``score`` there, ``(n + 1,)`` each, both within 0…1."""

    share: Array
    score: Array

    @property
    def area(self) -> float:
        """Area under the curve, 0…1."""
        return float(np.trapezoid(self.score, self.share))


@dataclass(frozen=True, eq=False)
class Probe:
    """An image whose score is asked for in parts, and the two scores that all its curves run between.

    Attributes:
        image: ``(C, *S)``.
        replaced: ``(C, *S)`` what stands where the image is taken away.
        whole, empty: score of ``image`` and of ``replaced``.
    """

    image: Array
    replaced: Array
    score: Score
    whole: float
    empty: float

    @classmethod
    def of(cls, image: Array, score: Score) -> Probe:
        """Ask for the score of the whole and of the fully replaced image."""
        replaced = blurred(image)
        return cls(image, replaced, score, float(score(image)), float(score(replaced)))

    @property
    def is_telling(self) -> bool:
        """Whether the image scores above nothing at all; if not, there is no evidence that could be taken away."""
        return self.whole > self.empty

    def deletion(self, heat: Array, *, seed: int = 0) -> Curve:
        """The curve of taking the image away, highest values of ``heat`` ``(*S)`` first; the smaller its area the better."""
        return self._curve(heat, True, seed)

    def insertion(self, heat: Array, *, seed: int = 0) -> Curve:
        """The curve of bringing the image back, highest values of ``heat`` ``(*S)`` first; the larger its area the better."""
        return self._curve(heat, False, seed)

    def _curve(self, heat: Array, deleting: bool, seed: int) -> Curve:
        if not self.is_telling:
            raise MedsegError(
                f"faithfulness: the whole image scores {self.whole:g}, not above the fully replaced one ({self.empty:g}): "
                "there is no evidence to take away; leave the case out"
            )
        rank = ranks_of_cells(heat, seed)
        cells = int(rank.max()) + 1
        scores, shares = [], []
        for many in np.linspace(0, cells, min(STEPS, cells) + 1).round().astype(int):
            reached = rank < many
            if 0 < many < cells:
                score = float(self.score(np.where(reached == deleting, self.replaced, self.image)))
            else:
                score = self.whole if (many == 0) == deleting else self.empty
            scores.append((score - self.empty) / (self.whole - self.empty))
            shares.append(reached.mean())
        return Curve(np.asarray(shares), np.clip(scores, 0, 1))


def ranks_of_cells(heat: Array, seed: int = 0) -> Array:
    """``(*S)`` integers: the place of each voxel's cell in the order of falling means, from 0. Ties fall by lot of ``seed``.

    A side of up to 32 voxels has cells of one voxel.
    """
    sides = [-(-length // _CELLS) for length in heat.shape]
    counts = tuple(-(-length // side) for length, side in zip(heat.shape, sides, strict=True))
    at = np.ix_(*(np.arange(length) // side for length, side in zip(heat.shape, sides, strict=True)))
    cell = np.ravel_multi_index(np.broadcast_arrays(*at), counts)
    mean = np.bincount(cell.ravel(), heat.ravel()) / np.bincount(cell.ravel())
    order = np.lexsort((np.random.default_rng(seed).random(mean.size), -mean))
    rank = np.empty(mean.size, np.int64)
    rank[order] = np.arange(mean.size)
    return rank[cell]


def blurred(image: Array) -> Array:
    """``(C, *S)`` what stands in for an image ``(C, *S)`` that is taken away."""
    return np.asarray(ndimage.gaussian_filter(image, [0, *(_BLUR * length for length in image.shape[1:])]))
