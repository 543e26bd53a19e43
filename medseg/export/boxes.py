"""``boxes.json``: the boxes of a case in voxel edges of its scan's own grid and in millimetres. Decides nothing.

The reader, which takes such a file as a label too, is `medseg.scans.box_json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.files import write_text
from medseg.scans.box_frames import world_boxes
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array, Geometry

NAME = "boxes.json"
_DECIMALS = 4
"""Of edges: a ten-thousandth of a voxel or millimetre is below what any scan resolves."""


def write_boxes_json(boxes: Boxes, geometry: Geometry, table: LabelTable, path: Path) -> Path:
    """Write boxes by falling score, those without score by falling size, their ids running from 1; returns the path.

    Of a volume each has ``box_vox``, half-open voxel edges of ``geometry``, and ``box_mm``, the smallest world-aligned box
    (RAS+) around its corners; of a picture ``box_px``, ``[x0, y0, x1, y1]``. ``score`` is null where there is none.

    Raises:
        MedsegError: the boxes do not fit the grid, a label is not in the table, or an edge or score is no finite number.
    """
    dimensions = geometry.dimensions
    if boxes.boxes.shape[1] != 2 * dimensions:
        raise MedsegError(
            f"{path}: expected boxes (N, {2 * dimensions}) on a grid {geometry.shape}, found {boxes.boxes.shape}"
        )
    unknown = sorted({int(value) for value in boxes.labels} - set(table.names))
    if unknown:
        raise MedsegError(f"{path}: boxes of the labels {unknown}, which nothing names; known are {dict(table.names)}")
    edges = np.asarray(boxes.boxes, np.float64)
    scores = None if boxes.scores is None else np.asarray(boxes.scores, np.float64)
    if not np.isfinite(edges).all() or (scores is not None and not np.isfinite(scores).all()):
        raise MedsegError(f"{path}: expected finite edges and scores, found NaN or infinite ones")
    world = world_boxes(edges, geometry)
    listed = []
    for number, n in enumerate(_order(edges, scores), 1):
        entry: dict[str, Any] = {"id": number, "label": table.names[int(boxes.labels[n])]}
        entry["score"] = None if scores is None else float(scores[n])
        if dimensions == 3:
            entry |= {"box_vox": _rounded(edges[n]), "box_mm": _rounded(world[n])}
        else:
            entry["box_px"] = _rounded(edges[n])
        listed.append(entry)
    grid: dict[str, Any] = {"shape": list(geometry.shape)}
    if dimensions == 3:
        grid = {"frame": "RAS+", **grid, "affine": geometry.affine.tolist()}
    write_text(path, _laid_out(grid, listed))
    return path


def _order(edges: Array, scores: Array | None) -> Array:
    """Positions by falling score, then by falling size, then as they came."""
    dimensions = edges.shape[1] // 2
    size = np.prod(edges[:, dimensions:] - edges[:, :dimensions], axis=1)
    return np.lexsort((-size, -scores) if scores is not None else (-size,))


def _rounded(values: Array) -> list[float]:
    return [float(value) for value in np.round(values, _DECIMALS) + 0.0]  # without -0.0


def _laid_out(grid: dict[str, Any], listed: list[dict[str, Any]]) -> str:
    """JSON with a line a box, which people can read."""
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in grid.items())
    lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False, allow_nan=False)}" for entry in listed)
    body = f"[\n{lines}\n  ]" if lines else "[]"
    return f'{{\n{head}  "boxes": {body}\n}}\n'
