"""``calibration.json`` of an evaluation folder, and its figures as a few lines to read. Computes nothing.

    {row: {temperature, n, n_patients, and of ece, ece_equal_mass, brier, nll one ``…_before`` and one ``…_after``,
           ece_before_interval, ece_after_interval, ece_if_perfect, ece_if_perfect_range,
           bins: {before, after: {edges, count, confidence, accuracy}}, note, conformal}}

A row is ``all``, a class, a label, or what the task has beside (``findings``, ``around``). ``ece_if_perfect`` goes with
``ece_after``. ``bias`` is there where one was fitted, ``scalings`` where several models had a part, ``note`` and
``conformal`` (of ``all``) where there is something to say; null means that there was nothing to measure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import Estimate
from medseg.evaluation.calibration import ALL, Calibration, Measured
from medseg.evaluation.conformal import Coverage
from medseg.evaluation.text_table import aligned
from medseg.files import write_text

NAME = "calibration.json"


def write_calibration(
    folder: Path,
    calibrations: Mapping[str, Calibration],
    *,
    coverage: Coverage | None = None,
    held: tuple[float, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write ``calibration.json`` into ``folder``, whole or not at all, and return what it holds.

    Args:
        coverage: of conformal sets over random splits.
        held: the share of the truth that the model's own sets hold on these cases, and their mean size.

    Raises:
        MedsegError: there is no row ``all``.
    """
    if ALL not in calibrations:
        raise MedsegError(f"{NAME}: expected a row {ALL!r}, found {list(calibrations)}")
    body = {name: _row(calibration) for name, calibration in calibrations.items()}
    if held:
        body[ALL].setdefault("conformal", {}).update(zip(("coverage", "set_size"), map(_plain, held), strict=True))
    if coverage:
        splits = {name: _plain(value) for name, value in asdict(coverage).items()}
        body[ALL].setdefault("conformal", {})["over_splits"] = splits
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / NAME, json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    return body


def format_calibration(body: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a label or class with ECE before and after, then what the conformal sets hold; ``–`` is blank."""
    head = ["calibration", "T", "ECE before [95 %]", "ECE after [95 %]", "if perfect (95 %)"]
    lines = [[*head, "Brier", "NLL", "events", "patients"]]
    for name, row in body.items():
        before, after = (
            _with_range(row[f"ece_{when}"], row[f"ece_{when}_interval"], "[]") for when in ("before", "after")
        )
        perfect = _with_range(row["ece_if_perfect"], row["ece_if_perfect_range"], "()")
        proper = [f"{_number(row[f'{score}_before'])} → {_number(row[f'{score}_after'])}" for score in ("brier", "nll")]
        counts = [str(row["n"]), str(row["n_patients"])]
        lines.append([name, _number(row["temperature"], 2), before, after, perfect, *proper, *counts])
    notes = [f"{name}: {row['note']}" for name, row in body.items() if row.get("note")]
    return "\n".join([aligned(lines), *notes, *_sets(body.get(ALL, {}).get("conformal", {}))])


def _row(calibration: Calibration) -> dict[str, Any]:
    row: dict[str, Any] = {"temperature": calibration.temperature}
    if any(bias for _, bias in calibration.scalings):
        row["bias"] = calibration.bias
    if len(calibration.scalings) > 1:
        row["scalings"] = [{"temperature": temperature, "bias": bias} for temperature, bias in calibration.scalings]
    both = {"before": calibration.before, "after": calibration.after}
    row |= {"n": calibration.after.ece.n, "n_patients": calibration.after.patients}
    for when, measured in both.items():
        row |= {f"ece_{when}": _plain(measured.ece.value), f"ece_{when}_interval": _range(measured.ece)}
        scores = {"ece_equal_mass": measured.ece_equal_mass, "brier": measured.brier, "nll": measured.nll}
        row |= {f"{name}_{when}": _plain(value) for name, value in scores.items()}
    perfect = calibration.if_perfect
    row |= {"ece_if_perfect": _plain(perfect.value), "ece_if_perfect_range": _range(perfect)}
    row["bins"] = {when: _bins(measured) for when, measured in both.items()}
    return {**row, "note": calibration.note} if calibration.note else row


def _bins(measured: Measured) -> dict[str, list[Any]]:
    bins = measured.bins
    return {
        "edges": [round(float(edge), 6) for edge in bins.edges],
        "count": bins.counts.tolist(),
        "confidence": [_plain(value) for value in bins.confidence],
        "accuracy": [_plain(value) for value in bins.accuracy],
    }


def _range(estimate: Estimate) -> list[float | None]:
    return [_plain(estimate.low), _plain(estimate.high)]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _sets(conformal: Mapping[str, Any]) -> list[str]:
    lines = []
    if "coverage" in conformal:
        held, size = _number(conformal["coverage"]), _number(conformal["set_size"], 2)
        lines.append(
            f"conformal sets of the model: hold the truth in {held} of the cases, {size} classes each on average"
        )
    if splits := conformal.get("over_splits"):
        found = (
            f"{_number(splits['value'])} ± {_number(splits['spread'])}, {_number(splits['set_size'], 2)} classes each"
        )
        expected = f"{_number(splits['expected'])} ± {_number(splits['expected_spread'])}"
        promise = f"{1 - splits['alpha']:g} promised, {expected} expected of exchangeable cases"
        lines.append(f"conformal sets over {splits['splits']} random halvings by patient: {found} ({promise})")
    return lines


def _with_range(value: float | None, ends: list[float | None], brackets: str) -> str:
    if None in ends:
        return _number(value)
    return f"{_number(value)} {brackets[0]}{_number(ends[0])}–{_number(ends[1])}{brackets[1]}"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
