"""NRRD files (``.nrrd``, ``.nhdr``, ``.seg.nrrd`` of one layer) with pynrrd. Knows nothing of cases or of other formats.

The named space says the frame: ``left-posterior-superior`` and files without a space (with directions) are LPS, as in ITK
and 3D Slicer, ``right-anterior-superior`` is RAS+. Without directions the grid lies along the axes with ``spacings``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from medseg.errors import MedsegError
from medseg.scans.reading import ScanError, check_claim, decoding
from medseg.structures import Source
from medseg.volume import Array, Geometry

_SIGNS = {
    "left": (0, -1),
    "right": (0, 1),
    "posterior": (1, -1),
    "anterior": (1, 1),
    "superior": (2, 1),
    "inferior": (2, -1),
}
_LETTERS = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "S": "superior", "I": "inferior"}


def read_geometry(source: Source) -> Geometry:
    """The grid from the header alone, RAS+ mm. Raises ScanError as `read`."""
    path = source.files[0]
    return _geometry(path, _header(path))[0]


def read(source: Source) -> tuple[Array, Geometry]:
    """Pixels ``(C, I, J, K)`` as stored and their grid; C = 3 for colours.

    Raises:
        ScanError: not readable, not 3D, sheared, truncated.
    """
    path = source.files[0]
    header = _header(path)
    geometry, list_axis = _geometry(path, header)
    if "data file" not in header and "datafile" not in header:
        with decoding(path, "NRRD"):
            stored = path.stat().st_size
        claimed = math.prod(int(n) for n in header["sizes"])  # at least a byte each
        check_claim(path, "NRRD", claimed, stored, header.get("encoding", "raw") != "raw")
    with decoding(path, "NRRD"):
        array, _ = nrrd.read(str(path), index_order="F")
        array = np.asarray(array)
    if array.dtype.kind not in "iufb":
        raise ScanError(f"{path}: pixels of type {array.dtype} are not understood; expected real numbers")
    array = np.moveaxis(array, list_axis, 0) if list_axis is not None else array[None]
    return array.astype(array.dtype.newbyteorder("="), copy=False), geometry


def _header(path: Path) -> Mapping[str, Any]:
    with decoding(path, "NRRD"):
        header: Mapping[str, Any] = nrrd.read_header(str(path))
        if len(header["sizes"]) != int(header["dimension"]):
            raise ValueError("sizes and dimension disagree")
        return header


def _geometry(path: Path, header: Mapping[str, Any]) -> tuple[Geometry, int | None]:
    """The grid, and which stored axis holds colours (None where there is none)."""
    sizes = [int(n) for n in header["sizes"]]
    with decoding(path, "NRRD"):
        directions = header.get("space directions")
        rows = None if directions is None else [np.asarray(row, np.float64) for row in directions]
        kinds = list(header.get("kinds", []))
        spatial = list(range(len(sizes)))
        if rows is not None:
            spatial = [axis for axis, row in enumerate(rows) if row.shape == (3,) and np.isfinite(row).all()]
        elif kinds:
            spatial = [axis for axis, kind in enumerate(kinds) if kind in ("domain", "space", "???", "none")]
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    if len(spatial) != 3 or len(others) > 1 or (others and sizes[others[0]] not in (1, 3)):
        raise ScanError(
            f"{path}: expected a 3D volume, found axes of {'×'.join(map(str, sizes))}, {len(spatial)} of them in space; "
            "split it into one file a volume (or a channel)",
            "not_3d",
        )
    with decoding(path, "NRRD"):
        affine = np.eye(4)
        if rows is not None:
            affine[:3, :3] = np.stack([rows[axis] for axis in spatial], axis=1)
            affine[:3, 3] = np.asarray(header.get("space origin", (0, 0, 0)), np.float64)
        else:
            spacings = np.asarray(header.get("spacings", np.ones(len(sizes))), np.float64)[spatial]
            affine[:3, :3] = np.diag(np.where(np.isfinite(spacings), spacings, 1.0))
        affine = _to_ras(str(header.get("space", "")), rows is not None) @ affine
    try:
        return Geometry(tuple(sizes[axis] for axis in spatial), affine), others[0] if others else None
    except MedsegError as error:
        raise ScanError(f"{path}: {error}", "bad_affine") from None


def _to_ras(space: str, oriented: bool) -> Array:
    """The 4×4 matrix from a named NRRD space to RAS+."""
    if not space or space.lower().startswith(("scanner", "3d-")):
        return np.diag([-1.0, -1.0, 1.0, 1.0]) if oriented else np.eye(4)
    words = [_LETTERS[letter] for letter in space] if len(space) == 3 and space.isupper() else space.lower().split("-")
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for stored, word in enumerate(words[:3]):
        world, sign = _SIGNS[word]
        matrix[world, stored] = sign
    return matrix
