"""Siemens mosaics: one picture that holds the slices of a volume as tiles. Says where each tile lies; cuts tiles out.

ImagePositionPatient of a mosaic belongs to a slice as wide as the whole picture, about the centre of the first tile. How
many tiles there are, and in which direction they are stacked, only the private CSA header says
(https://nipy.org/nibabel/dicom/dicom_mosaic.html), which nibabel parses. Without it the stack may be upside down: refused.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medseg.scans.headers import Slice
from medseg.scans.multiframe import floats
from medseg.scans.reading import ScanError, decoding
from medseg.volume import Array


def tiles_of(dataset: Dataset, path: Path, base: Slice) -> tuple[Slice, ...]:
    """One `Slice` a tile, in the order of the tiles: left to right, then top to bottom. ``base`` describes the whole picture.

    Raises:
        ScanError: ``"unsupported"`` where the CSA header is absent or contradicts the picture, ``"no_position"`` and
            ``"no_spacing"`` where it cannot be placed.
    """
    count, along = _csa(dataset, path)
    rows, columns, samples = base.matrix
    across = math.ceil(math.sqrt(count))
    if rows % across or columns % across:
        raise ScanError(
            f"{path.name}: a Siemens mosaic of {columns}×{rows} pixels does not divide into {across}×{across} tiles; it was "
            "resampled or cropped: export the series again",
            "unsupported",
        )
    step = floats(dataset, "SpacingBetweenSlices", 1)
    if base.orientation is None or base.position is None:
        raise ScanError(f"{path.name}: a Siemens mosaic without place in the patient; export it again", "no_position")
    if step is None or not step[0] or base.pixel_spacing is None:
        what = "PixelSpacing" if base.pixel_spacing is None else "SpacingBetweenSlices"
        raise ScanError(f"{path.name}: a Siemens mosaic without {what}; export it again", "no_spacing")
    height, width = rows // across, columns // across
    row, column = np.array(base.orientation[:3]), np.array(base.orientation[3:])
    first = (
        np.array(base.position)
        + row * base.pixel_spacing[1] * (columns - width) / 2
        + column * base.pixel_spacing[0] * (rows - height) / 2
    )
    direction = np.array(along) / max(float(np.linalg.norm(along)), 1e-12)
    return tuple(
        replace(
            base,
            frame=tile,
            matrix=(height, width, samples),
            position=tuple(float(v) for v in first + direction * (tile * abs(step[0]))),
            thickness=abs(step[0]),
        )
        for tile in range(count)
    )


def cut(picture: Array, tile: int, matrix: tuple[int, int, int]) -> Array:
    """A tile (from 0) of the whole picture ``(rows, columns, …)``; ``matrix`` is the tile's (a view)."""
    height, width, _ = matrix
    top, left = divmod(tile, picture.shape[1] // width)
    return picture[top * height : (top + 1) * height, left * width : (left + 1) * width]


def _csa(dataset: Dataset, path: Path) -> tuple[int, tuple[float, ...]]:
    """How many tiles there are, and the direction from each to the next (LPS)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its DICOM readers experimental; only the CSA parser is used
        from nibabel.nicom import csareader
    with decoding(path, "Siemens CSA header", path.name):
        header: dict[str, Any] = csareader.get_csa_header(dataset) or {}
        count = csareader.get_n_mosaic(header) if header else None
        along = csareader.get_slice_normal(header) if header else None
    if not count or along is None or not np.isfinite(along).all() or np.linalg.norm(along) < 0.5:
        raise ScanError(
            f"{path.name}: says that it is a Siemens mosaic, but the private CSA header that tells how many slices it holds, "
            "and which way they are stacked, was removed; export the series again with private tags",
            "unsupported",
        )
    return int(count), tuple(float(v) for v in along)
