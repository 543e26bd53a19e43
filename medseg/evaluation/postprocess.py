"""Removing what is too small to be true: keep the largest component, drop those below a volume, label by label.

The choice is made once, on `tune`, travels with the model as plain data, and is applied to masks on the scan's own grid:

    {"<label or region>": {"largest": true, "smallest": 0.05, "unit": "ml"}}

``smallest`` is the volume below which a component goes (after ``largest``, if both are there), in ``unit``: ml of a scan,
mm² of a picture, px³ or px² where the spacing is unknown. Nothing here knows models or files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.lesions import bounding_box, component_sizes, components
from medseg.structures import LabelTable, marked
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
SMALLEST_GAIN = 1e-3
"""Mean Dice that a rule must gain on `tune`: less is within the noise of a few cases."""
_CANDIDATES = 64


def apply_postprocessing(mask: Array, geometry: Geometry, labels: LabelTable, options: Mapping[str, Any]) -> Array:
    """The mask without the components that ``options`` rules out.

    A removed voxel gets the value of the last painted region that still holds it, else 0.

    Args:
        mask: ``geometry.shape`` integer labels; not changed.
        options: as `choose_postprocessing` returns them; an empty mapping returns the mask itself.

    Raises:
        MedsegError: the options name a label or a rule that does not exist.
    """
    _check(labels, options)
    if not any(options.values()):
        return mask
    unit, voxel = _unit(geometry)
    kept: dict[str, Array] = {}
    removed = np.zeros(mask.shape, bool)
    for name, values in labels.targets.items():
        kept[name] = marked(mask, values)
        rule = options.get(name, {})
        window = bounding_box(kept[name]) if rule else None
        if window is None:
            continue
        if rule.get("smallest") and rule.get("unit", unit) != unit:
            logger.warning("%s: the smallest volume is in %s, the scan in %s; not applied", name, rule["unit"], unit)
            rule = {**rule, "smallest": 0}
        part = kept[name][window]
        labelled, count = components(part)
        keep = _kept(component_sizes(labelled, count) * voxel, rule)
        gone = part & ~np.concatenate([[False], keep])[labelled]
        part[gone] = False  # a view of kept[name]
        removed[window] |= gone
    if not removed.any():
        return mask
    left = np.zeros(int(np.count_nonzero(removed)), mask.dtype)
    for name, value in zip(labels.regions, labels.paint, strict=True):
        left[kept[name][removed]] = value
    out = mask.copy()
    out[removed] = left
    return out


def choose_postprocessing(
    cases: Iterable[tuple[Array, Array, Geometry]], labels: LabelTable, *, smallest_gain: float = SMALLEST_GAIN
) -> dict[str, dict[str, Any]]:
    """For each label the rule that raises mean Dice most; a label that none raises by ``smallest_gain`` is not named.

    Dice is counted as it is reported (both empty: left out), so that a rule is never chosen that makes the figure worse.
    Of equally good rules the one that removes least is taken. Only component sizes are kept in memory.

    Args:
        cases: ``(predicted mask, true mask, geometry)`` of the cases of `tune`, read one by one.

    Returns:
        ``{label: {"largest": bool, "smallest": volume, "unit": unit}}``, ready for `apply_postprocessing`.
    """
    found: dict[str, list[_Found]] = {name: [] for name in labels.targets}
    units = set()
    for predicted, truth, geometry in cases:
        unit, voxel = _unit(geometry)
        units.add(unit)
        window = bounding_box((predicted != 0) | (truth != 0))
        if window is None:
            continue
        predicted, truth = predicted[window], truth[window]
        counts_here = truth != labels.ignore if labels.ignore is not None else np.ones(truth.shape, bool)
        for name, values in labels.targets.items():
            labelled, count = components(np.isin(predicted, values))
            true = np.isin(truth, values) & counts_here
            found[name].append(
                _Found(
                    volumes=component_sizes(labelled, count) * voxel,
                    voxels=component_sizes(labelled[counts_here], count),
                    overlaps=component_sizes(labelled[true], count),
                    truth=int(true.sum()),
                )
            )
    unit = units.pop() if len(units) == 1 else ""
    chosen: dict[str, dict[str, Any]] = {}
    for name, cases_found in found.items():
        rule: dict[str, Any] = {}
        best = _mean_dice(cases_found, {}) + smallest_gain
        for candidate in _rules(cases_found, volumes=bool(unit)):
            dice = _mean_dice(cases_found, candidate)
            if dice >= best + (1e-9 if rule else 0):  # ties stay with the earlier rule, which removes less
                best, rule = dice, candidate
        if rule:
            chosen[name] = {"largest": False, "smallest": 0.0, **rule, "unit": unit}
            logger.info("post-processing of %s: %s (mean Dice %.4f on tune)", name, chosen[name], best)
    return chosen


@dataclass(frozen=True)
class _Found:
    """The predicted components of a label in one case: volume, voxels that count, and how many of these are true."""

    volumes: Array
    voxels: Array
    overlaps: Array
    truth: int


def _kept(volumes: Array, rule: Mapping[str, Any]) -> Array:
    """Which components of ``volumes`` a rule keeps; of equally large ones the first is the largest."""
    keep = np.ones(len(volumes), bool)
    if rule.get("largest") and len(volumes):
        keep = np.arange(len(volumes)) == np.argmax(volumes)
    # A threshold that is the volume of a component keeps it, whatever the last digit of the spacing.
    return keep & (volumes >= rule.get("smallest", 0.0) * (1 - 1e-4))


def _mean_dice(cases: Iterable[_Found], rule: Mapping[str, Any]) -> float:
    dice = []
    for case in cases:
        keep = _kept(case.volumes, rule)
        both = int(case.voxels[keep].sum()) + case.truth
        if both:
            dice.append(2 * int(case.overlaps[keep].sum()) / both)
    return float(np.mean(dice)) if dice else 0.0


def _rules(cases: Iterable[_Found], *, volumes: bool) -> Iterable[dict[str, Any]]:
    """Candidates, the gentlest first: volumes that components really have, then the largest alone, then both.

    No volume is tried beyond half of the smallest component that is right: ``tune`` is small, and the next patient's organ
    may be smaller than any in it.
    Volumes cannot be compared where cases have different units (``volumes`` is False): then only the largest is tried.
    """
    cases = list(cases)
    right = [case.volumes[2 * case.overlaps >= np.maximum(case.voxels, 1)] for case in cases]
    highest = 0.5 * min((float(volumes.min()) for volumes in right if len(volumes)), default=0.0)
    seen = np.unique(np.minimum(np.concatenate([np.zeros(1), *(case.volumes for case in cases)]), highest))
    if len(seen) > _CANDIDATES:
        seen = seen[np.linspace(0, len(seen) - 1, _CANDIDATES).astype(int)]
    sizes = [float(f"{size:.6g}") for size in seen[1:]] if volumes else []
    yield from ({"smallest": size} for size in sizes)
    yield {"largest": True}
    yield from ({"largest": True, "smallest": size} for size in sizes)


def _unit(geometry: Geometry) -> tuple[str, float]:
    """The unit of a volume on this grid and what a voxel has of it."""
    if geometry.unit == "px":
        return f"px{geometry.dimensions}", geometry.voxel_volume
    return ("ml", geometry.voxel_volume / 1000) if geometry.dimensions == 3 else ("mm2", geometry.voxel_volume)


def _check(labels: LabelTable, options: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - set(labels.targets))
    if unknown:
        raise MedsegError(f"postprocessing: no label {unknown}; the model has {list(labels.targets)}")
    for name, rule in options.items():
        odd = sorted(set(rule) - {"largest", "smallest", "unit"})
        if odd:
            raise MedsegError(f"postprocessing of {name!r}: no rule {odd}; expected largest, smallest, unit")
