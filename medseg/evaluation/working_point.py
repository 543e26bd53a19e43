"""The working point: from which score a box counts, stored in a model as numbers of false positives a scan.

    {"fp_per_scan": 1.0, "thresholds": {label: {"0.125": score, "0.25": score, … "8": score}},
     "calibration": {label: {"temperature": T, "bias": b}}}

It is chosen on `tune`; a user asks for a number of false positives a scan and never for a score. A segmentation model whose
components are boxes has the same under ``"components"``, with the options by which they are made beside. Knows no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medseg.errors import MedsegError
from medseg.evaluation.detection import FROC_RATES, DetectedCase, score_labels
from medseg.structures import LabelTable

COMPONENTS = "components"
"""Where a segmentation model keeps the working point of its components."""
CALIBRATION = "calibration"
"""Where a detector keeps what makes its scores probabilities (`medseg.evaluation.box_calibration`); thresholds are of those."""
_NO_OPTIONS = ("fp_per_scan", "thresholds", COMPONENTS, CALIBRATION)

Thresholds = dict[str, dict[float, float]]
"""Label → false positives a scan → score."""


def thresholds_at_rates(
    cases: Sequence[DetectedCase], labels: LabelTable, *, iou: float | None = None
) -> dict[str, dict[str, float]]:
    """For each label the lowest score that keeps to each rate of FROC.

    A rate that so few scans cannot show (1/8 needs eight) gets the score above which there is no false positive at all. A label
    of which nothing was found gets 0.

    Args:
        cases: the cases of `tune`; those without lesion count as scans.
        iou: overlap from which a lesion is found, by default `medseg.evaluation.detection.FROC_IOU`.

    Returns:
        Label → rate (``"0.125"`` … ``"8"``) → score; a box counts from that score up.

    Raises:
        MedsegError: there is no case, or a case cannot be scored.
    """
    return {
        score.name: {f"{rate:g}": score.ranking.threshold(score.FROC, rate) for rate in FROC_RATES}
        for score in score_labels(cases, labels, iou=iou)
    }


def chosen_thresholds(working_point: Mapping[str, Any], fp_per_scan: float | None = None) -> dict[str, float]:
    """Label → score from which a box counts: that of the highest stored rate which is not above the one asked for.

    Args:
        working_point: as a model stores it; an empty one chooses nothing.
        fp_per_scan: false positives a scan; None for the model's own choice.

    Raises:
        MedsegError: the rate lies outside those that are stored, the working point is not understood, or there is none and a
            rate was asked for.
    """
    if not working_point.get("thresholds"):
        if fp_per_scan is None:
            return {}
        raise MedsegError(
            f"boxes.fp_per_scan={fp_per_scan:g}: the model has no working point to choose by; leave it out to get every box, "
            "with its score"
        )
    thresholds, rate = _thresholds(working_point), fp_per_scan
    if rate is None:
        rate = _number(working_point.get("fp_per_scan"), "fp_per_scan")
    stored = sorted(set.intersection(*(set(of_label) for of_label in thresholds.values())))
    if not stored or not stored[0] <= rate <= stored[-1]:
        asked = "the model's own fp_per_scan is" if fp_per_scan is None else "boxes.fp_per_scan:"
        known = f"{stored[0]:g} to {stored[-1]:g}" if stored else "nothing"
        raise MedsegError(f"{asked} {rate:g} false positives a scan; the model knows its thresholds for {known}")
    nearest = max(known for known in stored if known <= rate)
    return {label: of_label[nearest] for label, of_label in thresholds.items()}


def mean_point(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number that all working points hold under the same keys, lists place by place; words that all share.

    What not all have, or differs, falls out. For thresholds that are chosen by a rate, and options beside them, see `averaged`.
    """
    found = _mean(points)
    return found if isinstance(found, dict) else {}


def _mean(values: Sequence[Any]) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        both = [key for key in values[0] if all(key in value for value in values)]
        found = {key: _mean([value[key] for value in values]) for key in both}
        return {key: value for key, value in found.items() if value is not None}
    if all(isinstance(value, (list, tuple)) for value in values) and len({len(value) for value in values}) == 1:
        return [_mean(row) for row in zip(*values, strict=True)]
    if all(isinstance(value, (int, float)) for value in values):
        return sum(values) / len(values)
    return values[0] if all(value == values[0] for value in values) else None


def averaged(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The working point of an ensemble: each threshold is the mean of its members'.

    Empty where a member has none. Of options (those of components) the choice of most members is taken, and the thresholds
    are of those members, as scores that are made differently cannot be averaged. The number of false positives is the lowest.

    Raises:
        MedsegError: a working point is not understood.
    """
    found: dict[str, Any] = {}
    if points and all(COMPONENTS in point for point in points):
        found[COMPONENTS] = averaged([point[COMPONENTS] for point in points])
    if not points or not all(point.get("thresholds") for point in points):
        return found
    options = [json.dumps(_options(point), sort_keys=True) for point in points]
    most, _ = Counter(options).most_common(1)[0]
    members = [point for point, own in zip(points, options, strict=True) if own == most]
    tables = [_thresholds(point) for point in members]
    thresholds = {
        label: {
            f"{rate:g}": sum(t[label][rate] for t in tables) / len(tables)
            for rate in _in_all([t[label] for t in tables])
        }
        for label in _in_all(tables)
    }
    rate = min(_number(point.get("fp_per_scan"), "fp_per_scan") for point in members)
    return {**found, **_options(members[0]), "fp_per_scan": rate, "thresholds": thresholds}


def _options(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name not in _NO_OPTIONS}


def _in_all(tables: Sequence[Mapping[Any, Any]]) -> list[Any]:
    """The keys that every mapping has, in the order of the first."""
    return [key for key in tables[0] if all(key in table for table in tables)]


def _thresholds(working_point: Mapping[str, Any]) -> Thresholds:
    """The stored thresholds as numbers. Raises MedsegError where they are laid out otherwise."""
    table = working_point["thresholds"]
    if not isinstance(table, Mapping) or not all(isinstance(of_label, Mapping) for of_label in table.values()):
        raise MedsegError(
            f"working point: expected thresholds {{label: {{rate: score}}}}, found {repr(table)[:80]}; copy the model again"
        )
    return {
        str(label): {
            _number(rate, f"a rate of {label}"): _number(score, f"a score of {label}") for rate, score in of.items()
        }
        for label, of in table.items()
    }


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:
        raise MedsegError(f"working point: {name}: expected a number, found {value!r}; copy the model folder again")
    return number
