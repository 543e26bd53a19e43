"""Onto which grid every case is brought, from the grids on which they lie: orientation, crop, spacing, and how to resample.

Owns these rules, which are those of nnU-Net (Isensee et al. 2021, Nature Methods 18:203), and writes the reason of each choice
into ``why``. Numbers in, numbers out: knows no patch, no network and no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg.errors import MedsegError
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.normalisation import short
from medseg.planning.plan import Channel
from medseg.volume import Array

COARSE = 3.0
"""An axis along which slices lie this much further apart than the voxels within them is resampled on its own."""
CROP_SAVES = 0.25
"""Images are cropped to what is not zero if that saves this share of their voxels."""


@dataclass(frozen=True, eq=False)
class Grids:
    """Every case's grid along the plan's axes: shapes, shapes of the box around what is not zero, and spacings, ``(N, D)`` each.

    ``side`` is the axis from left to right, in most cases where they are stored in different ways.
    """

    orientation: str
    shapes: Array
    crops: Array
    spacings: Array
    side: int


def oriented(fingerprint: Fingerprint, orientation: str | None, why: dict[str, str]) -> Grids:
    """The grids of the cases, turned to ``orientation`` (None: what is usual for volumes, or pictures).

    Raises:
        MedsegError: an orientation that a plan does not know.
    """
    dimensions = fingerprint.dimensions
    if dimensions == 2:
        if orientation not in (None, "stored"):
            raise MedsegError(
                f"plan.orientation {orientation!r}: pictures keep the orientation in which they are stored"
            )
        why["orientation"] = "pictures have no orientation in the patient"
    elif orientation not in (None, "RAS", "stored"):
        raise MedsegError(f"plan.orientation {orientation!r}: expected RAS or stored")
    else:
        why["orientation"] = "scans are turned to RAS, so that the same anatomy always lies along the same axes"
    stored = dimensions == 2 or orientation == "stored"
    rows, sides = [], []
    for case in fingerprint.cases:
        order = np.argsort(case.stored) if stored else np.arange(dimensions)
        rows.append(np.array([case.shape, case.crop, case.spacing], float)[:, order])
        sides.append(int(np.flatnonzero(order == 0)[0]))
    table = np.stack(rows, 1)
    return Grids("stored" if stored else "RAS", table[0], table[1], table[2], max(set(sides), key=sides.count))


def plan_crop(grids: Grids, channels: Sequence[Channel], why: dict[str, str]) -> Literal["nonzero", "none"]:
    """Whether images are cut to what is not zero: where that saves a lot, and never where 0 means water."""
    saved = 1 - float(np.median(grids.crops.prod(1) / grids.shapes.prod(1)))
    found = f"the box around the non-zero voxels is {saved:.0%} smaller than the image (median)"
    if any(channel.normalisation == "ct" for channel in channels):
        why["crop"] = "0 HU is water, not emptiness"
        return "none"
    if saved >= CROP_SAVES:
        why["crop"] = (
            f"{found}; from {CROP_SAVES:.0%} on images are cropped to it and normalised within the non-zero voxels"
        )
        return "nonzero"
    why["crop"] = f"{found}, less than {CROP_SAVES:.0%}"
    return "none"


def plan_spacing(
    grids: Grids, given: Sequence[float] | None, unit: str, why: dict[str, str]
) -> tuple[tuple[float, ...], int | None]:
    """The target spacing, and the axis along which the slices lie so far apart that it is resampled on its own."""
    median = np.median(grids.spacings, axis=0)
    size = np.median(grids.shapes, axis=0)
    count = f"{len(grids.shapes)} cases ({_span(grids.spacings)} {unit})"
    target, coarse = median.copy(), None
    why["spacing"] = f"median of {count}"
    if len(median) == 3:
        axis = int(np.argmax(median))
        others = np.delete(median, axis)
        if median[axis] > COARSE * others.max() and size[axis] * COARSE < np.delete(size, axis).min():
            coarse = axis
            tenth = float(np.percentile(grids.spacings[:, axis], 10))
            target[axis] = max(tenth, others.max())
            why["spacing"] = (
                f"median of {count}; along axis {axis} slices lie more than {COARSE:g}× further apart "
                f"({median[axis]:.4g}) than the voxels within them ({others.max():.4g}) and are few ({size[axis]:g}), so the "
                f"10th percentile {tenth:.4g} is taken there to lose less of the finer scans"
            )
    if given is not None:
        return tuple(given), coarse
    return tuple(short(s) for s in target), coarse


def plan_orders(dimensions: int, coarse: int | None, why: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Orders along each axis by which images and labels are resampled; ``coarse`` is an axis of its own, see `plan_spacing`."""
    if coarse is None:
        why["image_order"], why["label_order"] = "cubic", "linear on each label, the largest wins: smooth borders"
    else:
        why["image_order"] = (
            f"cubic within the slices; nearest along axis {coarse}, where slices are too far apart to blend"
        )
        why["label_order"] = f"linear within the slices, nearest along axis {coarse}, as for images"
    image = tuple(0 if axis == coarse else 3 for axis in range(dimensions))
    return image, tuple(min(order, 1) for order in image)


def _span(spacings: Array) -> str:
    low, high = spacings.min(0), spacings.max(0)
    text = "×".join(f"{s:.4g}" for s in low)
    return f"all {text}" if np.allclose(low, high, rtol=1e-3) else f"{text} to {'×'.join(f'{s:.4g}' for s in high)}"
