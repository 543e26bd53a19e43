"""Does the map depend on what the network has learned? (Adebayo et al. 2018, "Sanity checks for saliency maps".)

Model parameter randomisation: the weights are shuffled, from the output layer down, and the map of the spoilt network is
compared with the map of the trained one by Spearman's rank correlation and SSIM. A map that hardly changes is drawn by image
and architecture, however well it matches the lesion.

**The rule.** A method is flagged where, in the mean over cases, |rank correlation| with the map of the wholly shuffled network
is at least `DEPENDS` (0.7) of the map's reliability, its rank correlation with itself under a small shift. Dividing by
reliability is Spearman's correction for attenuation (1904): noise alone must not pass as dependence on the weights. At 0.7
about half (0.49) of the rank variance that the map can reproduce at all is there without training. The sign does not count:
a random output layer turns a map over as often as not. A reliability below `RELIABLE` (0.5) means that more than half of the
variance is noise; that is a flag of its own, and leaves nothing to compare.

Compares arrays; knows neither how a map nor how a network is made.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, stats

from medseg.volume import Array

DEPENDS = 0.7
RELIABLE = 0.5

SAME_WITHOUT_WEIGHTS = "does not depend on the weights"
UNRELIABLE = "changes under a small shift"


def flags_of(shuffled_rank: float, stability: float) -> tuple[str, ...]:
    """What speaks against a method, by the rule above; NaN is a figure that was not measured and raises no flag.

    Args:
        shuffled_rank: mean of |rank correlation| with the map of the shuffled network.
        stability: mean rank correlation of the map with itself under a small shift.
    """
    if stability < RELIABLE:
        return (UNRELIABLE,)
    return (SAME_WITHOUT_WEIGHTS,) if shuffled_rank >= DEPENDS * stability else ()


def rank_correlation(first: Array, second: Array) -> float:
    """Spearman's rank correlation of two maps of one shape, −1…1, ties by mean rank.

    Of two constant maps it is 1, as they are the same; of a constant and another map 0.
    """
    flat = first.min() == first.max(), second.min() == second.max()
    if any(flat):
        return float(all(flat))
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])


def structural_similarity(first: Array, second: Array) -> float:
    """Mean SSIM of two maps ``(*S)`` in 2D or 3D, −1…1 (Wang et al. 2004, eq. 13, with its constants and Gaussian window).

    Each map is brought to 0…1 between its 1st and 99th percentile first: a single hot voxel would leave two flat images.
    """
    a, b = _as_shown(first), _as_shown(second)
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float((above / below).mean())


def _as_shown(heat: Array) -> Array:
    low, high = np.percentile(heat, (1, 99))
    return np.clip((heat.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)


def _blurred(array: Array) -> Array:
    return np.asarray(ndimage.gaussian_filter(array, 1.5, truncate=3.5))
