"""Calibration of a classifier: one temperature and conformal sets, chosen on `tune`, and what they are worth on `test`.

    working point   {"temperature": T, "conformal": {"alpha": 0.1, "kind": "lac", "level": q}}, beside what else a model decides

Exclusive classes share a softmax, several classes a case have a sigmoid each (``multilabel``); classes are named where they are
shown only. Knows arrays and that mapping; no model, no file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.calibration import ALL, Calibration, Forecast, check_row_names, compare
from medseg.evaluation.conformal import choose_conformal, in_sets
from medseg.evaluation.temperature import fit_temperature, logits_of, probabilities_of
from medseg.volume import Array


def choose_calibration(logits: Array, truth: Array, multilabel: bool = False) -> dict[str, Any]:
    """The temperature and the level of the conformal sets, for `Model.working_point`.

    Both come from the same cases; one number fitted on them moves the coverage of the sets far less than their spread.

    Args:
        logits: ``(N, K)`` of the cases of `tune`, as the network gives them.
        truth: ``(N,)`` index of the class, or ``(N, K)`` 0 or 1 (``multilabel``).

    Raises:
        MedsegError: shapes or numbers make no sense.
    """
    temperature = fit_temperature(logits, truth, multilabel=multilabel)
    probabilities = probabilities_of(logits, multilabel=multilabel, temperature=temperature)
    conformal = choose_conformal(probabilities, truth, multilabel=multilabel)
    return {"temperature": temperature, "conformal": conformal}


def calibrated(logits: Array, working_point: Mapping[str, Any], multilabel: bool = False) -> Array:
    """Probabilities ``(…, K)`` of logits ``(…, K)``, float64; a working point without temperature leaves them as they are."""
    return probabilities_of(logits, multilabel=multilabel, temperature=_temperature(working_point))


def uncalibrated(probabilities: Array, working_point: Mapping[str, Any], multilabel: bool = False) -> Array:
    """The inverse of `calibrated`: the network's own logits ``(…, K)``; of a softmax without the offset that it drops."""
    return logits_of(probabilities, multilabel=multilabel) * _temperature(working_point)


def class_set(
    probabilities: Array, working_point: Mapping[str, Any], classes: Sequence[str], multilabel: bool = False
) -> tuple[str, ...] | None:
    """The classes that cannot be excluded, in the order of ``classes``; None where the model has no conformal sets.

    Args:
        probabilities: ``(K,)`` calibrated, of one case.

    Raises:
        MedsegError: the working point does not fit the classes.
    """
    conformal = working_point.get("conformal", {})
    if "level" not in conformal:
        return None
    (inside,) = in_sets(np.asarray(probabilities)[None], conformal, multilabel=multilabel)
    return tuple(name for name, held in zip(classes, inside, strict=True) if held)


def class_calibration(
    probabilities: Array,
    truth: Array,
    patients: Sequence[str],
    classes: Sequence[str],
    working_points: Sequence[Mapping[str, Any]],
    *,
    multilabel: bool = False,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Calibration]:
    """Calibration before and after, of predicted probabilities: ``all`` and each class.

    ``all`` is of the likeliest class, or of all classes pooled (``multilabel``); a class is a question of yes or no.

    Args:
        probabilities: ``(N, K)`` as predicted, that is calibrated; what they were before is worked out from them.
        truth: ``(N,)`` index of the class, or ``(N, K)`` 0 or 1 (``multilabel``).
        patients: ``N`` keys.
        working_points: that of the model which predicted each case, ``N``.

    Raises:
        MedsegError: a class is called ``all``, or there is not one of everything a case.
    """
    check_row_names(classes)
    truth, after = np.asarray(truth), np.asarray(probabilities, np.float64)
    if not len(after) == len(truth) == len(patients) == len(working_points) or after.shape[1:] != (len(classes),):
        found = f"{after.shape}, {len(truth)}, {len(patients)}, {len(working_points)}, {len(classes)} classes"
        raise MedsegError(
            f"calibration: expected probabilities (N, K), and N truths, patients and working points; found {found}"
        )
    temperatures = np.array([_temperature(point) for point in working_points]).reshape(-1, 1)
    logits = logits_of(after, multilabel=multilabel) * temperatures
    before = probabilities_of(logits, multilabel=multilabel)
    scalings = [(float(temperature), 0.0) for temperature in temperatures[:, 0]]
    shown = truth.astype(bool) if multilabel else truth[:, None] == np.arange(len(classes))

    def row(at: int | None) -> Calibration:
        if at is not None:
            pair = [Forecast.of_events(p[:, at], shown[:, at], patients) for p in (before, after)]
        elif multilabel:
            pair = [Forecast.of_events(p, shown, patients) for p in (before, after)]
        else:
            pair = [Forecast.of_likeliest(p, truth, patients) for p in (before, after)]
        return compare(pair[0], pair[1], scalings, samples=samples, seed=seed)

    return {ALL: row(None), **{name: row(at) for at, name in enumerate(classes)}}


def _temperature(working_point: Mapping[str, Any]) -> float:
    found = working_point.get("temperature", 1.0)
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not found > 0:
        raise MedsegError(
            f"working point: expected a temperature above 0, found {found!r}; copy the model folder again"
        )
    return float(found)
