"""``predictions.csv``: a row a case with what was found in it, for those who open it in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from medseg.evaluation.lesions import count_components, label_windows
from medseg.export.manifest import Record
from medseg.files import write_text
from medseg.structures import Prediction, marked

NAME = "predictions.csv"
COMPONENTS, LESIONS, TOP_SCORE = "_components", "_lesions", "_top_score"
"""How columns end that count in a mask, and that are made from boxes."""


def figures(prediction: Prediction, prefix: str = "") -> dict[str, float]:
    """Column → number for one prediction.

    ``<label>_ml`` is its volume (``_mm2`` the area in a picture, ``_px`` where spacing is unknown),
    ``<label>_components`` the number of its connected parts with 26 (8) neighbours: of a lesion label, the number of
    lesions. Of a model that answers with boxes, ``<label>_lesions`` is the number of findings and ``<label>_top_score`` the
    surest one's score, absent where there is none. Class probabilities stand under the class's name, and under
    ``<class>_in_set`` whether the class cannot be excluded (1) or can (0), where the model knows.

    Args:
        prefix: goes before each label's name (``organs/``), where several models predict.
    """
    found = {**_of_classes(prediction), **_of_mask(prediction), **_of_boxes(prediction)}
    return {f"{prefix}{name}": value for name, value in found.items()}


def _of_classes(prediction: Prediction) -> dict[str, float]:
    """How likely each class is, and which ones remain possible."""
    found = {name: round(probability, 6) for name, probability in prediction.classes.items()}
    if prediction.class_set is not None:
        found |= {f"{name}_in_set": float(name in prediction.class_set) for name in prediction.classes}
    return found


def _of_mask(prediction: Prediction) -> dict[str, float]:
    """How much of each label there is."""
    found: dict[str, float] = {}
    if prediction.mask is None:
        return found
    windows = label_windows(prediction.mask, prediction.labels)
    unit = "px" if prediction.geometry.unit == "px" else "ml" if prediction.geometry.dimensions == 3 else "mm2"
    for name, size in prediction.sizes().items():
        found[f"{name}_{unit}"] = round(size, 6)
        region = prediction.mask[windows[name]] if name in windows else None
        parts = 0 if region is None else count_components(marked(region, prediction.labels.targets[name]))
        found[f"{name}{COMPONENTS}"] = parts
    return found


def _of_boxes(prediction: Prediction) -> dict[str, float]:
    """How many findings of each label there are, and how sure the surest is."""
    found: dict[str, float] = {}
    findings = prediction.findings
    if findings is None:
        return found
    for value, name in prediction.labels.names.items():
        boxes = findings.chosen(findings.labels == value)
        found[f"{name}{LESIONS}"] = len(boxes)
        if boxes.scores is not None and len(boxes):
            found[f"{name}{TOP_SCORE}"] = round(float(boxes.scores.max()), 6)
    return found


def write_predictions(cases: Mapping[str, Record], folder: Path) -> Path:
    """Write ``predictions.csv`` from the records of a manifest: whole or not at all; returns the path."""
    columns = _columns(cases.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "status", "seconds", *columns, "reason"])
    for case, record in sorted(cases.items()):
        values = [record.figures.get(name, "") for name in columns]
        writer.writerow([case, record.status, f"{record.seconds:.2f}", *values, record.reason])
    path = folder / NAME
    write_text(path, text.getvalue())
    return path


def _columns(cases: Iterable[Record]) -> list[str]:
    """Every figure of any case; that of the surest finding stands beside their number though no case may have one."""
    columns: dict[str, None] = {}
    for name in (name for record in cases for name in record.figures):
        columns[name] = None
        if name.endswith(LESIONS):
            columns[name.removesuffix(LESIONS) + TOP_SCORE] = None
    return list(columns)
