"""``boxes.json``: the boxes of a case in voxel edges of its scan's own grid and in millimetres. Decides nothing.

The reader, which takes such a file as a label too, is `medseg.scans.box_json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.files import write_text
from medseg.scans.box_frames import world_boxes
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Array, Geometry

NAME = "boxes.json"
_DECIMALS = 4
"""Of edges: a ten-thousandth of a voxel or millimetre is below what any scan resolves."""


def write_boxes(prediction: Prediction, folder: Path, *, every: bool = False) -> Path:
    """``boxes.json`` of the findings or, with ``every``, of all candidates; returns the path.

    Raises:
        MedsegError: the prediction holds no boxes, or as `write_boxes_json`.
    """
    boxes = prediction.boxes if every else prediction.findings
    if boxes is None:
        raise MedsegError(f"case {prediction.case!r}: the prediction holds no boxes to write")
    table, grid = prediction.labels, prediction.geometry
    least = {name: score for name, score in prediction.thresholds.items() if name not in prediction.classes}
    return write_boxes_json(boxes, grid, table, folder / NAME, thresholds=least)


def write_boxes_json(
    boxes: Boxes, geometry: Geometry, table: LabelTable, path: Path, *, thresholds: Mapping[str, float] | None = None
) -> Path:
    """Write boxes by falling score, those without score by falling size, their ids running from 1; returns the path.

    Of a volume each has ``box_vox``, half-open voxel edges of ``geometry``, and ``box_mm``, the smallest world-aligned box
    (RAS+) around its corners; of a picture ``box_px``, ``[x0, y0, x1, y1]``. ``score`` is null where there is none; ``spread``,
    where it is known, says how far the views disagree about it (`Boxes.spread`).

    Args:
        thresholds: label → score from which a box is a finding, stated as ``working_point``. Boxes below it come behind all
            others, so that findings bear the same ids whether or not anything else is listed.

    Raises:
        MedsegError: the boxes do not fit the grid, a label is not in the table, or an edge, score or threshold is no finite
            number.
    """
    dimensions = geometry.dimensions
    if boxes.boxes.shape[1] != 2 * dimensions:
        raise MedsegError(
            f"{path}: expected boxes (N, {2 * dimensions}) on a grid {geometry.shape}, found {boxes.boxes.shape}"
        )
    unknown = sorted({int(value) for value in boxes.labels} - set(table.names))
    if unknown:
        raise MedsegError(f"{path}: boxes of the labels {unknown}, which nothing names; known are {dict(table.names)}")
    least = {name: float(score) for name, score in (thresholds or {}).items()}
    scores = np.zeros(0) if boxes.scores is None else boxes.scores
    if not all(np.isfinite(values).all() for values in (boxes.boxes, scores, np.array(list(least.values())))):
        raise MedsegError(f"{path}: expected finite edges, scores and thresholds, found NaN or infinite ones")
    boxes = _findings_first(boxes.ranked(), table, least)
    edges = np.asarray(boxes.boxes, np.float64)
    world = world_boxes(edges, geometry)
    listed = []
    for n, value in enumerate(boxes.labels):
        entry: dict[str, Any] = {"id": n + 1, "label": table.names[int(value)]}
        entry["score"] = None if boxes.scores is None else float(boxes.scores[n])
        if boxes.spread is not None and np.isfinite(boxes.spread[n]):
            entry["spread"] = float(np.round(boxes.spread[n], _DECIMALS))
        if dimensions == 3:
            entry |= {"box_vox": _rounded(edges[n]), "box_mm": _rounded(world[n])}
        else:
            entry["box_px"] = _rounded(edges[n])
        listed.append(entry)
    grid: dict[str, Any] = {"shape": list(geometry.shape)}
    if dimensions == 3:
        grid = {"frame": "RAS+", **grid, "affine": geometry.affine.tolist()}
    write_text(path, _laid_out({**grid, "working_point": least} if least else grid, listed))
    return path


def _findings_first(boxes: Boxes, table: LabelTable, least: Mapping[str, float]) -> Boxes:
    """The same order otherwise."""
    if boxes.scores is None or not least:
        return boxes
    below = boxes.scores < [least.get(table.names[int(value)], 0.0) for value in boxes.labels]
    return boxes.chosen(np.argsort(below, kind="stable"))


def _rounded(values: Array) -> list[float]:
    return [float(value) for value in np.round(values, _DECIMALS) + 0.0]  # without -0.0


def _laid_out(head: dict[str, Any], listed: list[dict[str, Any]]) -> str:
    """JSON with a line a box, which people can read."""
    lead = "".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},\n" for key, value in head.items())
    lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False, allow_nan=False)}" for entry in listed)
    body = f"[\n{lines}\n  ]" if lines else "[]"
    return f'{{\n{lead}  "boxes": {body}\n}}\n'
