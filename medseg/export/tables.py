"""``predictions.csv``: a row a case with what was found in it, for those who open it in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.evaluation.lesions import bounding_box, components
from medseg.export.manifest import Record
from medseg.files import write_text
from medseg.structures import Prediction

NAME = "predictions.csv"


def figures(prediction: Prediction, prefix: str = "") -> dict[str, float]:
    """Column → number for one prediction.

    ``<label>_ml`` is its volume (``_mm2`` the area in a picture, ``_px`` where spacing is unknown),
    ``<label>_components`` the number of its connected parts with 26 (8) neighbours: of a lesion label, the number of
    lesions. Class probabilities stand under the class's name.

    Args:
        prefix: goes before each label's name (``organs/``), where several models predict.
    """
    found: dict[str, float] = {f"{prefix}{name}": value for name, value in prediction.classes.items()}
    if prediction.mask is None:
        return found
    unit = "px" if prediction.geometry.unit == "px" else "ml" if prediction.geometry.dimensions == 3 else "mm2"
    for name, size in prediction.sizes().items():
        region = np.isin(prediction.mask, prediction.labels.targets[name])
        window = bounding_box(region)
        found[f"{prefix}{name}_{unit}"] = round(size, 6)
        found[f"{prefix}{name}_components"] = 0 if window is None else components(region[window])[1]
    return found


def write_predictions(cases: Mapping[str, Record], folder: Path) -> Path:
    """Write ``predictions.csv`` from the records of a manifest: whole or not at all; returns the path."""
    columns = list(dict.fromkeys(name for record in cases.values() for name in record.figures))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "status", "seconds", *columns, "reason"])
    for case, record in sorted(cases.items()):
        values = [record.figures.get(name, "") for name in columns]
        writer.writerow([case, record.status, f"{record.seconds:.2f}", *values, record.reason])
    path = folder / NAME
    write_text(path, text.getvalue())
    return path
