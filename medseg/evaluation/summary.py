"""The evaluation folder: every figure of every case in one long table, and their means with intervals.

    cases.csv      id, patient, fold, split, label, metric, value, n_gt, n_pred, then the cohort's own columns
    summary.json   {metric: {label: {value, low, high, n, n_cases, n_missing}}}; the label ``mean`` is the mean of the labels

A blank ``value`` (null in JSON) means that there was nothing to measure; `medseg.evaluation.segmentation` has the rule. ``n``
counts the values in the mean, ``n_cases`` the cases, ``n_missing`` those where the truth has the label and the prediction
lacks it. Nothing here computes a metric or reads a mask.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import Estimate, estimate_means
from medseg.evaluation.segmentation import Row
from medseg.files import write_text

COLUMNS = ("id", "patient", "fold", "split", "label", "metric", "value", "n_gt", "n_pred")
MEAN = "mean"
Summary = dict[str, dict[str, dict[str, Any]]]
"""``{metric: {label: {value, low, high, n, n_cases, n_missing}}}``; None where there is nothing to say."""


@dataclass(frozen=True)
class ScoredCase:
    """The figures of one case. ``fold`` is blank where there are no folds; ``metadata`` is what the cohort knows beside."""

    id: str
    patient: str
    split: str
    rows: tuple[Row, ...]
    fold: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def summarise(cases: Sequence[ScoredCase], *, samples: int = 1000, seed: int = 0) -> Summary:
    """Mean of every metric and label over the cases, with 95 % bootstrap intervals over patients.

    Args:
        samples: bootstrap draws; 0 for no intervals.

    Raises:
        MedsegError: a label is called ``mean``, which is the name of the mean over labels.
    """
    labels = list(dict.fromkeys(row.label for case in cases for row in case.rows))
    metrics = list(dict.fromkeys(row.metric for case in cases for row in case.rows))
    check_label_names(labels)
    patients = [case.patient for case in cases]
    summary: Summary = {}
    for metric in metrics:
        values = np.full((len(cases), len(labels)), np.nan)
        counts = np.zeros((len(labels), 2), int)  # cases, of which missing
        for i, case in enumerate(cases):
            for row in case.rows:
                if row.metric == metric:
                    at = labels.index(row.label)
                    values[i, at] = row.value
                    counts[at] += 1, row.n_gt > 0 and row.n_pred == 0
        columns, overall = estimate_means(values, patients, samples=samples, seed=seed)
        entries = dict(zip(labels, columns, strict=True))
        summary[metric] = {label: _entry(entries[label], *counts[i]) for i, label in enumerate(labels)}
        summary[metric][MEAN] = _entry(overall, len(cases), counts[:, 1].sum())
    return summary


def check_label_names(labels: Sequence[str]) -> None:
    """Raises MedsegError for a label whose name the summary needs itself."""
    if MEAN in labels:
        raise MedsegError(
            f"a label is called {MEAN!r}, which is the name of the mean over labels; give it another name"
        )


def write_evaluation(folder: Path, cases: Sequence[ScoredCase], *, samples: int = 1000, seed: int = 0) -> Summary:
    """Write ``cases.csv`` and ``summary.json`` into ``folder``, each whole or not at all, and return the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarise(cases, samples=samples, seed=seed)
    write_text(folder / "cases.csv", cases_csv(cases))
    write_text(folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def cases_csv(cases: Sequence[ScoredCase]) -> str:
    """The long table; a column of the cohort that is called like one of ours gets ``cohort_`` before its name."""
    extra = list(dict.fromkeys(name for case in cases for name in case.metadata))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"cohort_{name}" if name in COLUMNS else name for name in extra)])
    for case in cases:
        known = [case.metadata.get(name, "") for name in extra]
        for row in case.rows:
            value = "" if math.isnan(row.value) else f"{row.value:.6g}"
            writer.writerow(
                [
                    case.id,
                    case.patient,
                    case.fold,
                    case.split,
                    row.label,
                    row.metric,
                    value,
                    row.n_gt,
                    row.n_pred,
                    *known,
                ]
            )
    return text.getvalue()


def format_table(summary: Summary) -> str:
    """A few lines to read: a row a label with Dice and its interval, then the means of the other metrics people ask for."""
    wanted = [m for m in summary if m in ("iou", "nsd", "lesion_f1") or m.startswith(("hd95_", "assd_"))]
    head = ["label", "Dice [95 % interval]", "n", *(_heading(m) for m in wanted), "missing"]
    lines = [head]
    for label, dice in summary.get("dice", {}).items():
        interval = f" [{_number(dice['low'])}–{_number(dice['high'])}]" if dice["low"] is not None else ""
        figures = [_number(summary[m][label]["value"], 2 if "_mm" in m or "_px" in m else 3) for m in wanted]
        lines.append([label, _number(dice["value"]) + interval, str(dice["n"]), *figures, str(dice["n_missing"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _heading(metric: str) -> str:
    name, _, unit = metric.partition("_")
    return {"iou": "IoU", "nsd": "NSD", "lesion": "lesion F1"}.get(name, f"{name.upper()} {unit}")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _entry(estimate: Estimate, n_cases: int, n_missing: int) -> dict[str, Any]:
    figures = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    entry: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in figures.items()}
    return {**entry, "n": estimate.n, "n_cases": int(n_cases), "n_missing": int(n_missing)}
