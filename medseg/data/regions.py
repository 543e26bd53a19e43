"""Reading a case as a plan wants to see it: all of it, or the field around what its mask marks. Resamples nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from medseg.planning.classes import Region
from medseg.planning.plan import Plan
from medseg.scans import read_case, read_mask
from medseg.scans.reading import ScanError
from medseg.structures import Case
from medseg.volume import Array, Geometry, Volume, reorientation_to


def read_planned(case: Case, plan: Plan, *, stored: bool = False) -> Volume:
    """The case's channels, cut to the plan's region where it has one, behind them the mask where the plan wants to see it.

    Args:
        stored: as for `medseg.scans.read_volume`.

    Raises:
        ScanError: as `read_case`; a region is wanted and the case has no mask, or its mask marks nothing.
    """
    volume = read_case(case, plan.options, stored=stored)
    region = None if plan.classes is None else plan.classes.region
    if region is None:
        return volume
    if case.label is None:
        raise ScanError(
            f"case {case.id!r}: this model looks at what a mask marks, and the case has no mask; give a table of cases with a "
            "column label",
            "image_without_label",
        )
    mask, _ = read_mask(case.label, volume.geometry, region.labels)
    marked = np.isin(mask, list(region.labels.names))
    if not marked.any():
        raise ScanError(
            f"case {case.id!r}: this model looks at what a mask marks, and its mask marks nothing; draw the mask, or leave the "
            "case out",
            "empty_mask",
        )
    largest = _largest(marked)
    if region.mask_channel:
        volume = replace(volume, data=np.concatenate([volume.data, marked[None].astype(volume.data.dtype)]))
    return cut_region(volume, largest, region, plan.orientation)


def _largest(marked: Array) -> Array:
    """The largest part that hangs together: the middle of two that lie apart may show neither."""
    parts, count = ndimage.label(marked, np.ones((3,) * marked.ndim, bool))
    if count < 2:
        return marked
    return np.asarray(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))


def cut_region(volume: Volume, marked: Array, region: Region, orientation: str) -> Volume:
    """The field around the middle of the box of ``marked`` (*S), on the scan's own voxels.

    What lies beyond the scan is the scan mirrored at its border (the border voxels twice): a constant would tell how much was
    missing, and with it how large the crop was that somebody made around a lesion.
    """
    lower, upper = region_window(volume.geometry, marked, region, orientation)
    inner = [(max(low, 0), min(up, n)) for low, up, n in zip(lower, upper, volume.geometry.shape, strict=True)]
    data = volume.data[(slice(None), *(slice(low, up) for low, up in inner))]
    beyond = [(low - want, end - up) for (low, up), want, end in zip(inner, lower, upper, strict=True)]
    data = np.pad(data, [(0, 0), *beyond], mode="symmetric")
    return Volume(data, volume.geometry.cropped(lower, upper), volume.modality)


def region_window(
    geometry: Geometry, marked: Array, region: Region, orientation: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lower and upper voxel of the field along the scan's own axes; both may lie beyond the scan."""
    dimensions = geometry.dimensions
    stored = dimensions == 2 or orientation == "stored"
    order = tuple(range(dimensions)) if stored else reorientation_to(geometry, orientation).order
    lengths = dict(zip(order, region.field, strict=True))
    lower, upper = [], []
    for axis in range(dimensions):
        found = np.flatnonzero(marked.any(tuple(a for a in range(dimensions) if a != axis)))
        size = max(1, round(lengths[axis] / geometry.spacing[axis]))
        low = int(np.floor((found[0] + found[-1] + 1 - size) / 2))
        lower.append(low)
        upper.append(low + size)
    return tuple(lower), tuple(upper)
