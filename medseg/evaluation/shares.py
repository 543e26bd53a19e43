"""Ratios of sums, and means over what has a value: NaN, never a warning, where there is nothing to divide by. Knows no figure."""

from __future__ import annotations

import numpy as np

from medseg.volume import Array


def share(part: Array, whole: Array, *, empty: float = np.nan) -> Array:
    """``part / whole``, and ``empty`` where ``whole`` is not above 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), empty), where=np.asarray(whole) > 0)


def mean_present(values: Array, axis: int) -> Array:
    """The mean along ``axis`` over what is not NaN."""
    present = ~np.isnan(values)
    return share(np.where(present, values, 0.0).sum(axis), present.sum(axis))


def with_mean(values: Array, axis: int) -> Array:
    """``values`` with `mean_present` along ``axis`` behind its last entry."""
    return np.concatenate([values, np.expand_dims(mean_present(values, axis), axis)], axis)
