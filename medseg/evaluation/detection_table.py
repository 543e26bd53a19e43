"""A detector's summary as a few lines to read, beside those of other detectors on the same cases. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medseg.evaluation.detection import AT_WORKING_POINT, FROC_RATES, THIRDS
from medseg.evaluation.summary import MEAN, Summary

_PRECISION = {f"AP@{iou / 100:g}": f"ap_{iou}" for iou in (10, 20, 30, 40, 50)}
_FROC = {f"{rate:g}" if rate >= 1 else f"1/{1 / rate:g}": f"sensitivity_at_{rate:g}_fp" for rate in FROC_RATES}
_POINT = dict(zip(("sensitivity", "precision", "F1", "FP a scan", "clean scans"), AT_WORKING_POINT, strict=True)) | {
    name: f"sensitivity_{name}" for name in THIRDS
}
_WITH_INTERVAL = ("ap_10", "ap_50", "ap_coco", "sensitivity_at_1_fp", "cpm", "sensitivity")
_MOST_NOTES = 12


def format_detection(summaries: Mapping[str, Summary], *, coco: bool = False) -> str:
    """AP and CPM, then FROC, then the figures at the working point: a row a label and detector; ``–`` is blank, notes say why.

    Args:
        summaries: name of a detector → its summary (`medseg.evaluation.detection_summary`); the first is the one in question.
        coco: whether COCO AP is shown, as is usual for pictures.
    """
    first = next(iter(summaries.values()))
    precision = {**_PRECISION, **({"COCO AP": "ap_coco"} if coco else {}), "CPM": "cpm"}
    blocks = [_table("", precision, summaries, counts=True)]
    blocks.append(_table("sensitivity at so many false positives a scan", {**_FROC}, summaries))
    point = {heading: metric for heading, metric in _POINT.items() if metric in first}
    blocks.append(_table("at the working point", point, summaries))
    notes = list(_notes(summaries))
    if len(notes) > _MOST_NOTES:
        notes = [*notes[:_MOST_NOTES], f"and {len(notes) - _MOST_NOTES} more notes in summary.json"]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def _table(title: str, columns: Mapping[str, str], summaries: Mapping[str, Summary], *, counts: bool = False) -> str:
    several = len(summaries) > 1
    lines = [["label", *(["by"] if several else []), *columns, *(["lesions", "scans"] if counts else [])]]
    labels = list(next(iter(summaries.values()))["cpm"])
    for label in labels if len(labels) > 2 else labels[:1]:  # the mean of one label says nothing new
        for name, summary in summaries.items():
            cells = [_figure(metric, summary[metric][label]) for metric in columns.values()]
            size = summary["sensitivity"][label]
            lines.append([label, *([name] if several else []), *cells, *(_counts(size) if counts else [])])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*([title] if title else []), *rows])


def _counts(entry: Mapping[str, Any]) -> list[str]:
    return [str(entry["n"]), str(entry["n_cases"])]


def _figure(metric: str, entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "–"
    known = metric in _WITH_INTERVAL and entry["low"] is not None
    return f"{entry['value']:.3f}" + (f" [{entry['low']:.2f}–{entry['high']:.2f}]" if known else "")


def _notes(summaries: Mapping[str, Summary]) -> Iterator[str]:
    """Each note once, with the metrics and, where it is not said of all, the labels and detectors that it is said of."""
    said: dict[str, tuple[dict[str, None], dict[str, None], dict[str, None]]] = {}
    labels = [label for label in next(iter(summaries.values()))["cpm"] if label != MEAN]
    for detector, summary in summaries.items():
        for metric, entries in summary.items():
            for label in labels:
                for note in filter(None, entries[label].get("note", "").split("; ")):
                    for words, word in zip(said.setdefault(note, ({}, {}, {})), (metric, label, detector), strict=True):
                        words[word] = None
    for note, (metrics, of_labels, of_detectors) in said.items():
        whose = [*(of_labels if len(of_labels) < len(labels) else ())]
        whose += of_detectors if len(of_detectors) < len(summaries) else ()
        yield f"{', '.join(metrics)}" + (f" ({', '.join(whose)})" if whose else "") + f": {note}"
