"""Does the map depend on what the network has learned? (Adebayo et al. 2018, "Sanity checks for saliency maps".)

Model parameter randomisation: all weights are shuffled, and the map of the spoilt network is compared with the map of the
trained one by Spearman's rank correlation and SSIM. A map that hardly changes is drawn by image and architecture, however well
it matches the lesion. One lot says little, so the weights are shuffled several times and the figures are means.

**The rule.** A method is flagged where, in the mean over cases, |rank correlation| with the maps of shuffled networks is at
least `DEPENDS` (0.7) of the map's reliability, its rank correlation with itself under a small shift. Dividing by reliability is
Spearman's correction for attenuation (1904): noise alone must not pass as dependence on the weights. At 0.7 about half (0.49)
of the rank variance that the map can reproduce at all is there without training. The sign does not count: a random output
layer turns a map over as often as not. A reliability below `RELIABLE` (0.5) means that more than half of the variance is noise;
that is a flag of its own, and leaves nothing to compare.

**Where maps are compared.** What is asked of a label or a box is seen by a part of the image alone, and all maps are exactly 0
elsewhere. Over the whole image two unlike maps would then agree, by their background: of maps that are random within a tenth of
it the rank correlation is 0.996. So two maps are compared in the smallest window outside of which both are 0. A window, as
receptive fields are windows; not the voxels that differ from 0, as rectified maps that are unlike would be opposites there.

**The floor.** Inside the window all maps fall off around the target, whatever the weights, so that even maps of two shuffled
networks are alike. How much is the floor: what image, architecture and the place of the target draw without any training, and
what any two networks share. It is shown and not subtracted: edges of the image have a floor of 1, and subtracting would acquit
them. A high rank correlation is a flag whatever it comes from, for the map then says little that image and question do not.

Compares arrays; knows neither how a map nor how a network is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import ndimage, stats

from medseg.evaluation.lesions import bounding_box
from medseg.volume import Array

DEPENDS = 0.7
RELIABLE = 0.5

SAME_WITHOUT_WEIGHTS = "does not depend on the weights"
UNRELIABLE = "changes under a small shift"


def flags_of(shuffled_rank: float, stability: float) -> tuple[str, ...]:
    """What speaks against a method, by the rule above; NaN is a figure that was not measured and raises no flag.

    Args:
        shuffled_rank: mean of |rank correlation| with the maps of shuffled networks.
        stability: mean rank correlation of the map with itself under a small shift.
    """
    if stability < RELIABLE:
        return (UNRELIABLE,)
    return (SAME_WITHOUT_WEIGHTS,) if shuffled_rank >= DEPENDS * stability else ()


def dependence(heat: Array, shuffled: Sequence[Array]) -> dict[str, float]:
    """How much of a map is there without training, measure → figure; empty where nothing was shuffled.

    Args:
        heat: ``(*S)``, of the trained network.
        shuffled: of networks whose weights were shuffled, each by a lot of its own.

    Returns:
        ``shuffled_rank``, ``shuffled_ssim``: mean of |rank correlation| and of SSIM of ``heat`` with each.
        ``shuffled_floor``: mean of |rank correlation| of these with each other; not there for a single one.
    """
    figures: dict[str, float] = {}
    if shuffled:
        figures["shuffled_rank"] = float(np.mean([abs(rank_correlation(heat, other)) for other in shuffled]))
        figures["shuffled_ssim"] = float(np.mean([structural_similarity(heat, other) for other in shuffled]))
    if len(shuffled) > 1:
        figures["shuffled_floor"] = float(np.mean([abs(rank_correlation(*two)) for two in combinations(shuffled, 2)]))
    return figures


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's rank correlation, −1…1, of two maps of one shape where they are not both silent; ties by mean rank.

    Of two constant maps it is 1, as they are the same; of a constant and another map 0.
    """
    first, second = _where_not_silent(first, second)
    flat = first.min() == first.max(), second.min() == second.max()
    if any(flat):
        return float(all(flat))
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def structural_similarity(first: Array, second: Array) -> float:
    """Mean SSIM of two maps ``(*S)`` in 2D or 3D where they are not both silent, −1…1 (Wang et al. 2004, eq. 13, with its
    constants and Gaussian window).

    Each map is brought to 0…1 between its 1st and 99th percentile first: a single hot voxel would leave two flat images.
    """
    a, b = (_as_shown(heat) for heat in _where_not_silent(first, second))
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float((above / below).mean())


def _where_not_silent(first: Array, second: Array) -> tuple[Array, Array]:
    """Both maps in the smallest window outside of which both are 0; the whole of them if that is everywhere."""
    window = bounding_box((first != 0) | (second != 0))
    return (first, second) if window is None else (first[window], second[window])


def _as_shown(heat: Array) -> Array:
    low, high = np.percentile(heat, (1, 99))
    return np.clip((heat.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)


def _blurred(array: Array) -> Array:
    return np.asarray(ndimage.gaussian_filter(array, 1.5, truncate=3.5))
