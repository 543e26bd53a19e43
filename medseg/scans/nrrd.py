"""NRRD files (``.nrrd``, ``.nhdr``, ``.seg.nrrd`` of one layer); pynrrd parses the header. Knows nothing of other formats.

The named space says the frame: ``left-posterior-superior`` is LPS, ``right-anterior-superior`` RAS+, and so on. A space
without names of the body (``3D-right-handed``, ``scanner-xyz``) and none at all are taken as LPS, as ITK does; a left-handed
one is refused, because nobody can say which side is left. Without directions the grid lies along the axes with ``spacings``.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from medseg.errors import MedsegError
from medseg.scans.reading import ScanError, check_claim, decoding, decompressed
from medseg.structures import Source
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)

_SIGNS = {
    "left": (0, -1),
    "right": (0, 1),
    "posterior": (1, -1),
    "anterior": (1, 1),
    "superior": (2, 1),
    "inferior": (2, -1),
}
_LETTERS = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "S": "superior", "I": "inferior"}
_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_ENCODINGS |= dict.fromkeys(("ascii", "text", "txt"), "ascii")
_LONGEST_HEADER = 1 << 22


def read_geometry(source: Source) -> Geometry:
    """The grid from the header alone, RAS+ mm. Raises ScanError as `read`."""
    path = source.files[0]
    return _geometry(path, _header(path)[0])[0]


def read(source: Source) -> tuple[Array, Geometry]:
    """Pixels ``(C, I, J, K)`` as stored and their grid; C = 3 for colours.

    Raises:
        ScanError: not readable, not 3D, sheared, truncated, spread over several files, or in a left-handed space.
    """
    path = source.files[0]
    header, start = _header(path)
    geometry, list_axis = _geometry(path, header)
    space = str(header.get("space", ""))
    if space and not _names(space):
        logger.warning(
            "%s: its space %r does not say where left is; taken as left-posterior-superior", path.name, space
        )
    array = _pixels(path, header, start).reshape([int(n) for n in header["sizes"]], order="F")
    array = np.moveaxis(array, list_axis, 0) if list_axis is not None else array[None]
    return array.astype(array.dtype.newbyteorder("="), copy=False), geometry


def _header(path: Path) -> tuple[Mapping[str, Any], int]:
    """The fields, and where the pixels start: behind the first empty line."""
    lines: list[bytes] = []
    with decoding(path, "NRRD"), path.open("rb") as file:
        while (line := file.readline(_LONGEST_HEADER)).strip():
            lines.append(line)
            if file.tell() > _LONGEST_HEADER:
                raise ValueError("its header does not end")
        start = file.tell()
    if any(line.split(b":")[0] in (b"data file", b"datafile") and (b"LIST" in line or b"%" in line) for line in lines):
        reason = f"{path}: its pixels are spread over several files; convert it to one .nrrd or .nii.gz file"
        raise ScanError(reason, "unsupported")
    with decoding(path, "NRRD"):
        header: Mapping[str, Any] = nrrd.read_header(lines)
        absent = [field for field in ("type", "dimension", "sizes", "encoding") if field not in header]
        if absent:
            raise ValueError(f"its header has no {', '.join(absent)}")
        if len(header["sizes"]) != int(header["dimension"]):
            raise ValueError("sizes and dimension disagree")
        if min(header["sizes"]) < 1:
            raise ValueError(f"an axis has no voxels: sizes {header['sizes'].tolist()}")
    return header, start


def _pixels(path: Path, header: Mapping[str, Any], start: int) -> Array:
    """All numbers of the file in the order in which they are stored."""
    with decoding(path, "NRRD"):
        encoding = _ENCODINGS.get(header["encoding"].lower(), "")
        lines, skip = (int(header.get(key, header.get(key.replace(" ", ""), 0))) for key in ("line skip", "byte skip"))
        named = header.get("data file", header.get("datafile"))
        if header["type"] not in _TYPES or not encoding:
            raise ScanError(
                f"{path}: pixels of type {header['type']!r}, encoding {header['encoding']!r}, are not understood; expected "
                "numbers, raw, gzip, bzip2 or ascii",
                "unsupported",
            )
        dtype = np.dtype(_TYPES[header["type"]])
        if dtype.itemsize > 1 and encoding != "ascii":
            if header.get("endian") not in ("little", "big"):
                raise ValueError(f"endian is {header.get('endian')}, expected little or big")
            dtype = dtype.newbyteorder(">" if header["endian"] == "big" else "<")
    data_file = path if named is None else path.parent / named
    size = math.prod(int(n) for n in header["sizes"]) * (dtype.itemsize if encoding != "ascii" else 1)
    with decoding(data_file, "NRRD"), data_file.open("rb") as file:
        if not data_file.is_file():
            raise ValueError("it is no file")
        file.seek(start if named is None else 0)
        while lines > 0 and file.readline():
            lines -= 1
        if skip > 0 and encoding in ("raw", "ascii"):
            file.seek(skip, os.SEEK_CUR)
        elif skip == -1 and encoding == "raw":
            file.seek(max(data_file.stat().st_size - size, 0))
        elif skip < 0:
            raise ValueError(f"byte skip {skip} of {header['encoding']} pixels makes no sense")
        left = max(data_file.stat().st_size - file.tell(), 0)
        if encoding != "bzip2":  # which makes zeros vanish; it is unpacked no further than it goes
            check_claim(path, "NRRD", size, left, encoding == "gzip")
        if encoding == "ascii":
            numbers = np.fromstring(file.read(), np.float64, sep=" ")  # exact up to 2⁵³
            if len(numbers) != size:
                raise ValueError(f"expected {size:,} numbers, found {len(numbers):,}")
            return numbers.astype(dtype)
        raw = file.read(size) if encoding == "raw" else decompressed(file.read(), encoding, max(skip, 0) + size)
        return np.frombuffer(raw, dtype, offset=max(skip, 0) if encoding != "raw" else 0)


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
        if spatial and spatial[-1] >= len(sizes):
            raise ValueError("more directions or kinds than axes")
    others = [axis for axis in range(len(sizes)) if axis not in spatial]
    if len(spatial) != 3 or len(others) > 1 or (others and sizes[others[0]] not in (1, 3)):
        raise ScanError(
            f"{path}: expected a 3D volume, found axes of {'×'.join(map(str, sizes))}, {len(spatial)} of them in space; "
            "split it into one file a volume (or a channel)",
            "not_3d",
        )
    space = str(header.get("space", ""))
    if space.lower().startswith("3d-left-handed"):
        raise ScanError(
            f"{path}: its space {space!r} does not say which side is left; name it (such as left-posterior-superior)",
            "unsupported",
        )
    with decoding(path, "NRRD"):
        affine = np.eye(4)
        if rows is not None:
            affine[:3, :3] = np.stack([rows[axis] for axis in spatial], axis=1)
            affine[:3, 3] = np.asarray(header.get("space origin", (0, 0, 0)), np.float64)
        else:
            spacings = np.asarray(header.get("spacings", np.ones(len(sizes))), np.float64)[spatial]
            affine[:3, :3] = np.diag(np.where(np.isfinite(spacings), spacings, 1.0))
        affine = _to_ras(space) @ affine
    try:
        return Geometry(tuple(sizes[axis] for axis in spatial), affine), others[0] if others else None
    except MedsegError as error:
        raise ScanError(f"{path}: {error}", "bad_affine") from None


def _names(space: str) -> list[str]:
    """The directions that a space names, empty where it names none. Raises KeyError for words that mean nothing."""
    if space.lower().startswith(("scanner", "3d-")):
        return []
    words = [_LETTERS[letter] for letter in space[:3]] if space.isupper() else space.lower().split("-")
    return [word for word in words[:3] if _SIGNS[word]]


def _to_ras(space: str) -> Array:
    """The 4×4 matrix from a named NRRD space to RAS+."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for stored, word in enumerate((_names(space) if space else []) or ["left", "posterior", "superior"]):
        world, sign = _SIGNS[word]
        matrix[world, stored] = sign
    return matrix
