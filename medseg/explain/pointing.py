"""Does the map point at the lesion? Its energy in and near the true mask, the pointing game, and how far off its centre lies.

Only the positive part of a map counts. ``spacing`` is the size of a voxel, `REACH` and distances are in its unit (pixels where
it is not given). Masks are ``(*S)`` booleans with at least one voxel. A map without any positive value points nowhere:
its energy and its hit are 0, so that a method cannot gain by staying silent, and its centre is blank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.volume import Array

REACH = 10.0
"""How near the lesion still counts as pointing at it: its rim and its shadow, which speak for it too."""


def surroundings(mask: Array, *, spacing: Sequence[float] | None = None) -> Array:
    """``(*S)`` booleans: the mask and all within `REACH` of it, voxel centre to voxel centre.

    Raises:
        MedsegError: the mask is empty.
    """
    if not mask.any():
        raise MedsegError("pointing: expected a mask with at least one voxel, found an empty one; leave the case out")
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=spacing) <= REACH)


def energy(heat: Array, region: Array) -> float:
    """Share of the positive map in ``region``, 0…1: the energy-based pointing game (Wang et al. 2020, "Score-CAM")."""
    positive = np.clip(heat, 0, None, dtype=np.float64)
    total = positive.sum()
    return float(positive[region].sum() / total) if total > 0 else 0.0


def pointing_hit(heat: Array, region: Array) -> float:
    """1 where the highest value lies in ``region``, else 0 (pointing game, Zhang et al. 2016, "Excitation backprop", §4.1).

    Of several highest values it is the share that lies there: what drawing one by lot would hit on average.
    """
    highest = heat.max()
    return float(region[heat == highest].mean()) if highest > 0 else 0.0


def centre_distance(heat: Array, mask: Array, *, spacing: Sequence[float] | None = None) -> float:
    """How far the centre of mass of the positive map lies from that of the mask; NaN for a map without positive value."""
    positive = np.clip(heat, 0, None, dtype=np.float64)
    if not positive.any():
        return float("nan")
    apart = np.subtract(ndimage.center_of_mass(positive), ndimage.center_of_mass(mask))
    return float(np.linalg.norm(apart if spacing is None else apart * np.asarray(spacing)))
