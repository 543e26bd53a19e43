"""Reads ``boxes.json``, as predictions are written and as labels may be given, onto the grid of a scan.

The file states its own grid; where that is another one than the scan's, its boxes are carried over through the world. What
its boxes are worth is judged by `medseg.scans.boxes`. The writer is `medseg.export.boxes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.scans import same_grid
from medseg.scans.box_frames import grid_boxes, moved
from medseg.scans.boxes import Marked, checked
from medseg.scans.reading import ScanError, decoding
from medseg.structures import Boxes, Fault, LabelTable
from medseg.volume import Geometry

FRAME = "RAS+"


def read_boxes_json(path: Path, geometry: Geometry, table: LabelTable, case: str = "") -> tuple[Boxes, list[Fault]]:
    """The boxes of a file in voxel edges of ``geometry``, with their scores where all have one, and a fault for each left out.

    Raises:
        ScanError: as `read`.
    """
    return checked(read(path, geometry), geometry, table, case)


def read(path: Path, geometry: Geometry) -> list[Marked]:
    """What a file marks, in voxel edges of ``geometry`` and in the file's order.

    Of a volume ``box_vox`` is taken (voxel edges of the file's ``affine``, or of ``geometry`` where it states none), else
    ``box_mm`` (RAS+, world-aligned); of a picture ``box_px``, else ``box_vox``.

    Raises:
        ScanError: ``missing_file``, ``unreadable``; ``malformed_boxes`` where it is not laid out so; ``wrong_dimensions``;
            ``grids_differ`` where it says for which shape it is made, and the scan has another.
    """
    body = _body(path)
    if body.get("frame", FRAME) not in (FRAME, "px"):
        raise _malformed(path, f"expected the frame {FRAME!r}, found {body['frame']!r}; convert it")
    source = _grid_of(path, body, geometry)
    return [_box(path, number, entry, source, geometry) for number, entry in enumerate(body["boxes"], 1)]


def classes(path: Path) -> list[str]:
    """The classes that a file names, a box each, without looking at its boxes.

    Raises:
        ScanError: ``missing_file``, ``unreadable``; ``malformed_boxes`` where it holds no list of boxes.
    """
    named = (entry.get("label") for entry in _body(path)["boxes"])
    return [str(label) for label in named if label not in (None, "")]


def read_working_point(path: Path) -> dict[str, float]:
    """Label → score from which a box of a file is a finding; empty where the file states none, and all are.

    Raises:
        ScanError: ``missing_file``, ``unreadable``; ``malformed_boxes`` where it is not laid out so.
    """
    stated = _body(path).get("working_point", {})
    if not isinstance(stated, dict) or not all(_is_number(v) and math.isfinite(v) for v in stated.values()):
        raise _malformed(path, f"expected the working_point as a score a label, found {repr(stated)[:60]}")
    return {label: float(score) for label, score in stated.items()}


def _body(path: Path) -> Mapping[str, Any]:
    """The object that a file holds, with a list of objects ``boxes``. Raises ScanError."""
    with decoding(path, "boxes.json"):
        body = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(body, dict):
        raise _malformed(path, f"expected an object with a list 'boxes', found {repr(body)[:60]}")
    listed = body.get("boxes")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise _malformed(path, f"expected a list 'boxes' of objects, found {repr(listed)[:60]}")
    return body


def _grid_of(path: Path, body: Mapping[str, Any], geometry: Geometry) -> Geometry:
    """The grid that ``box_vox`` of a file lies on."""
    shape, affine = body.get("shape"), body.get("affine")
    if shape is not None and (not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape)):
        raise _malformed(path, f"expected the shape as whole numbers, found {repr(shape)[:60]}")
    if shape is not None and len(shape) != geometry.dimensions:
        reason = (
            f"{path.name}: boxes of a grid of {len(shape)} axes, the scan has {geometry.dimensions}; name its own file"
        )
        raise ScanError(reason, "wrong_dimensions")
    if affine is not None and geometry.dimensions == 3:
        try:
            return Geometry(tuple(shape or geometry.shape), np.array(affine, np.float64))
        except (MedsegError, ValueError, TypeError) as error:
            raise _malformed(path, f"its affine is none: {error}") from None
    if shape is not None and tuple(shape) != geometry.shape:
        made, found = ("×".join(map(str, s)) for s in (shape, geometry.shape))
        raise ScanError(
            f"{path.name}: boxes of an image of {made}, the scan has {found}; name its own file, or mend the shape",
            "grids_differ",
        )
    return geometry


def _box(path: Path, number: int, entry: Mapping[str, Any], source: Geometry, geometry: Geometry) -> Marked:
    keys = ("box_vox", "box_mm") if geometry.dimensions == 3 else ("box_px", "box_vox")
    key = next((key for key in keys if entry.get(key) is not None), None)
    if key is None:
        raise _malformed(path, f"box {number} has neither {' nor '.join(keys)}")
    given, score, label = entry[key], entry.get("score"), entry.get("label")
    if not isinstance(given, list) or not all(_is_number(value) for value in given):
        raise _malformed(path, f"{key} of box {number}: expected numbers, found {repr(given)[:60]}")
    if len(given) != 2 * geometry.dimensions:
        reason = f"{key} of box {number} has {len(given)} numbers, expected {2 * geometry.dimensions}"
        raise ScanError(f"{path.name}: {reason}; mend the file, or name the scan's own", "wrong_dimensions")
    if score is not None and not _is_number(score):
        raise _malformed(path, f"the score of box {number}: expected a number, found {score!r}")
    edges = np.array([given], np.float64)
    # A box that ends before it begins would be put right by its corners; it stays as it is, to be found and named.
    if np.isfinite(edges).all() and (edges[0, geometry.dimensions :] >= edges[0, : geometry.dimensions]).all():
        if key == "box_mm":
            edges = grid_boxes(edges, geometry)
        elif not (source is geometry or same_grid(source, geometry)):
            edges = moved(edges, source, geometry)
    return Marked(
        tuple(edges[0].tolist()), "" if label is None else str(label), None if score is None else float(score)
    )


def _is_number(value: object) -> bool:
    """Whether JSON gave a number that a float holds; NaN is one, and is found later."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def _malformed(path: Path, reason: str) -> ScanError:
    return ScanError(f"{path.name}: {reason}", "malformed_boxes")
