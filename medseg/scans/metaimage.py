"""MetaImage files: ``.mha`` (header and pixels) and ``.mhd`` (a header that names its pixel file). numpy and zlib suffice.

Keys as in the MetaIO documentation: ``Offset`` is the centre of the first voxel, each row of ``TransformMatrix`` the direction
of one axis, both LPS; the first axis varies fastest.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from medseg.errors import MedsegError
from medseg.scans.reading import ScanError, check_claim, decoding, decompressed
from medseg.structures import Source
from medseg.volume import Array, Geometry

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LONGEST_HEADER = 65536


def read_geometry(source: Source) -> Geometry:
    """The grid from the header alone, RAS+ mm. Raises ScanError as `read`."""
    return _geometry(source.files[0], _header(source.files[0])[0])


def read(source: Source) -> tuple[Array, Geometry]:
    """Pixels ``(C, I, J, K)`` as stored and their grid; C = 3 for colours.

    Raises:
        ScanError: not readable, not 3D, truncated, or spread over a list of files.
    """
    path = source.files[0]
    header, start = _header(path)
    geometry = _geometry(path, header)
    channels = _whole(path, header, "ElementNumberOfChannels", 1)
    if header.get("ElementType") not in _TYPES or channels not in (1, 3):
        raise ScanError(
            f"{path}: {channels} × {header.get('ElementType')} a voxel is not understood; expected 1 or 3 numbers"
        )
    dtype = np.dtype(_TYPES[header["ElementType"]])
    dtype = dtype.newbyteorder(">" if _is_true(header, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<")
    zipped = _is_true(header, "CompressedData")
    size = math.prod(geometry.shape) * channels * dtype.itemsize
    named = header["ElementDataFile"]
    spread = named.upper().startswith("LIST") or "%" in named
    if spread or header.get("BinaryData", "True").lower() == "false":
        what = "its pixels are spread over several files" if spread else "its pixels are written as text"
        raise ScanError(f"{path}: {what}; convert it to one .mha or .nii.gz file", "unsupported")
    skip = _whole(path, header, "HeaderSize", 0)
    data_file = path if named.upper() == "LOCAL" else path.parent / named
    with decoding(data_file, "MetaImage"):
        stored = data_file.stat().st_size
        if not data_file.is_file():
            raise ValueError("it is no file")
        begin = start if data_file == path else stored - size if skip == -1 and not zipped else max(skip, 0)
        check_claim(path, "MetaImage", size, max(stored - max(begin, 0), 0), zipped)
        with data_file.open("rb") as file:
            file.seek(begin)
            raw = decompressed(file.read(), "gzip", size) if zipped else file.read(size)
    array = np.frombuffer(raw, dtype).reshape((channels, *geometry.shape), order="F")
    return array.astype(dtype.newbyteorder("=")), geometry


def _is_true(header: dict[str, str], *keys: str) -> bool:
    return next((header[key] for key in keys if key in header), "False").lower() == "true"


def _whole(path: Path, header: dict[str, str], key: str, default: int) -> int:
    with decoding(path, "MetaImage"):
        return int(header.get(key, default))


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The keys and where the pixels start: ``ElementDataFile`` is the last key by definition."""
    with decoding(path, "MetaImage"), path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    header: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in header:
        end = start.find(b"\n", position)
        if end < 0:
            raise ScanError(f"{path}: its MetaImage header has no ElementDataFile; the file is damaged or cut short")
        key, _, value = start[position:end].decode("latin-1").partition("=")
        header[key.strip()] = value.strip()
        position = end + 1
    return header, position


def _geometry(path: Path, header: dict[str, str]) -> Geometry:
    def numbers(*keys: str) -> list[float] | None:
        text = next((header[key] for key in keys if key in header), None)
        return None if text is None else [float(word) for word in text.split()]

    with decoding(path, "MetaImage"):
        sizes = [int(n) for n in numbers("DimSize") or []]
        dimensions = int(header.get("NDims", len(sizes)))
        if len(sizes) != dimensions:
            raise ValueError(f"NDims is {dimensions}, DimSize has {len(sizes)} numbers")
    if dimensions != 3:
        found = "×".join(map(str, sizes))
        raise ScanError(
            f"{path}: expected a 3D volume, found {dimensions}D {found}; split it into one file a volume", "not_3d"
        )
    with decoding(path, "MetaImage"):
        spacing = np.array(numbers("ElementSpacing", "ElementSize") or [1.0] * 3)
        matrix = np.array(numbers("TransformMatrix", "Rotation", "Orientation") or np.eye(3).ravel()).reshape(3, 3)
        affine = np.eye(4)
        affine[:3, :3] = matrix.T * spacing
        affine[:3, 3] = numbers("Offset", "Position", "Origin") or [0.0] * 3
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    try:
        return Geometry(tuple(sizes), affine)
    except MedsegError as error:
        raise ScanError(f"{path}: {error}", "bad_affine") from None
