"""A classifier's summary as a few lines to read, and beside those of other predictors on the same cases. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medseg.evaluation.summary import MEAN, Summary
from medseg.evaluation.text_table import aligned, said
from medseg.volume import Array

_COLUMNS = {
    "AUROC": "auroc",
    "AUPRC": "auprc",
    "F1": "f1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "PPV": "ppv",
    "NPV": "npv",
    "balanced": "balanced_accuracy",
    "accuracy": "accuracy",
    "Brier": "brier",
    "NLL": "nll",
}
_WITH_INTERVAL = ("auroc", "auprc", "sensitivity", "specificity")
_BAND = "auroc_in_"
_MOST_NOTES = 12
Confusion = tuple[tuple[str, ...], tuple[str, ...], Array]
"""Names of rows and columns, and counts."""


def format_classification(summary: Summary, confusion: Confusion) -> str:
    """A row a class with all figures, AUROC in the bands, the confusion matrix; ``–`` is blank, and notes say why."""
    labels = list(summary["auroc"])
    lines = [["class", *_COLUMNS, "cases"]]
    for label in labels:
        cells = [_figure(summary[metric][label], metric in _WITH_INTERVAL) for metric in _COLUMNS.values()]
        lines.append([label, *cells, _count(summary["auroc"][label])])
    blocks = [aligned(lines)]
    bands = [metric for metric in summary if metric.startswith(_BAND)]
    if bands:
        lines = [["AUROC in", *labels, "cases"]]
        for band in bands:
            cells = [_figure(summary[band][label], interval=True) for label in labels]
            lines.append([said(band.removeprefix(_BAND)), *cells, _count(summary[band][MEAN])])
        blocks.append(aligned(lines))
    rows, columns, counts = confusion
    head = "truth \\ called" if rows == columns else "cases"
    lines = [[head, *columns], *([name, *map(str, of)] for name, of in zip(rows, counts.tolist(), strict=True))]
    notes = list(_notes(summary))
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"and {len(notes) - _MOST_NOTES} more notes in summary.json"]
    return "\n\n".join([*blocks, aligned(lines), *(["\n".join(notes)] if notes else [])])


def format_comparison(summary: Summary, baselines: Mapping[str, Summary]) -> str:
    """The mean AUROC beside that of each baseline, in all cases and in every band, and how sure the difference is.

    Args:
        summary: with the differences of `medseg.evaluation.classification_summary.auroc_differences`.
    """
    lines = [["AUROC, mean of classes", "baseline", "this", "baseline's", "difference", "above 0 in", "cases"]]
    for name, theirs in baselines.items():
        for metric in (metric for metric in theirs if metric == "auroc" or metric.startswith(_BAND)):
            mine, other, apart = (s[MEAN] for s in (summary[metric], theirs[metric], summary[f"{metric}_minus_{name}"]))
            place = "all cases" if metric == "auroc" else said(metric.removeprefix(_BAND))
            above = "–" if apart["above"] is None else f"{100 * apart['above']:.1f} % of draws"
            figures = [_figure(mine), _figure(other), _figure(apart, interval=True), above, _count(mine)]
            lines.append([place, said(name), *figures])
    return aligned(lines)


def _figure(entry: Mapping[str, Any], interval: bool = False) -> str:
    if entry["value"] is None:
        return "–"
    known = interval and entry["low"] is not None
    return f"{entry['value']:.3f}" + (f" [{entry['low']:.2f}–{entry['high']:.2f}]" if known else "")


def _count(entry: Mapping[str, Any]) -> str:
    """The cases with the class of all cases."""
    return f"{entry['n']} of {entry['n_cases']}"


def _notes(summary: Summary) -> Iterator[str]:
    """Each note once, with what it is said of."""
    found: dict[tuple[str, str], list[str]] = {}
    for metric, entries in summary.items():
        for label, entry in entries.items():
            if "note" in entry and label != MEAN:
                found.setdefault((label, entry["note"]), []).append(said(metric))
    for (label, note), metrics in found.items():
        yield f"{label}: {note}: {', '.join(metrics)}"
