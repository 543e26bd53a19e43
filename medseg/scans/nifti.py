"""NIfTI-1 and NIfTI-2 files, gzipped or not, with nibabel. Knows nothing of cases or of other formats.

Where the grid lies is nibabel's rule: the sform if its code is above 0, else the qform if its code is, else the voxel sizes
about the centre of the volume. Axes stay as they are stored; a trailing axis of one voxel is dropped beyond the third.
"""

from __future__ import annotations

import gzip
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.errors import MedsegError
from medseg.scans.reading import ScanError, check_claim, decoding
from medseg.structures import Source
from medseg.volume import Array, Geometry


def read_geometry(source: Source) -> Geometry:
    """The grid from the header alone, RAS+ mm.

    Raises:
        ScanError: not readable, sheared, or several volumes where ``source.key`` names none.
    """
    path = source.files[0]
    with ExitStack() as stack:
        return _geometry(path, _open(path, stack), source.key)


def volume_count(path: Path) -> int:
    """How many volumes the file holds along its fourth axis."""
    with ExitStack() as stack:
        shape = _shape(_open(path, stack))
    return shape[3] if len(shape) == 4 else 1


def read(source: Source) -> tuple[Array, Geometry]:
    """Pixels ``(C, I, J, K)`` and their grid: integers as stored, float32 where the header scales them; C = 3 for RGB.

    Raises:
        ScanError: as `read_geometry`; truncated or damaged pixels.
    """
    path = source.files[0]
    with ExitStack() as stack:
        image = _open(path, stack)
        geometry = _geometry(path, image, source.key)
        _check_size(path, image)
        with decoding(path, "NIfTI"):
            array = _pixels(image, source.key)
    if array.dtype.names:
        if not {"R", "G", "B"} <= set(array.dtype.names):
            raise ScanError(f"{path}: pixels of type {array.dtype} are not understood; expected numbers or RGB")
        array = np.stack([array[colour].reshape(geometry.shape) for colour in "RGB"])
    elif array.dtype.kind not in "iufb":
        raise ScanError(f"{path}: pixels of type {array.dtype} are not understood; expected real numbers")
    else:
        array = array.reshape((1, *geometry.shape), order="F")
    return array.astype(array.dtype.newbyteorder("="), copy=False), geometry


def _open(path: Path, stack: ExitStack) -> Any:
    """A nibabel image whose pixels are not read yet; its file closes with ``stack``."""
    with decoding(path, "NIfTI"):
        raw = stack.enter_context(path.open("rb"))
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
        start = stream.read(352)
        stream.seek(0)
        kind = nib.Nifti2Image if b"n+2\0" in start[4:8] else nib.Nifti1Image
        if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
            return nib.load(path)  # a pair of .hdr and .img
        return kind.from_stream(stream)


def _shape(image: Any) -> tuple[int, ...]:
    """At least three axes, without trailing axes of one voxel beyond the third."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, 1) if len(shape) == 2 else shape


def _geometry(path: Path, image: Any, key: str) -> Geometry:
    shape = _shape(image)
    if len(shape) == 4 and key.isdigit() and int(key) < shape[3]:
        shape = shape[:3]
    if len(shape) != 3:
        found = "×".join(map(str, shape))
        which = f" and no volume {key!r}" if key else ""
        raise ScanError(
            f"{path}: expected a 3D volume, found {len(shape)}D {found}{which}; split it into one file a volume (or a channel)",
            "not_3d",
        )
    if min(shape) < 1:
        raise ScanError(f"{path}: an axis has no voxels: shape {shape}")
    with decoding(path, "NIfTI"):
        affine = np.asarray(image.affine, np.float64)
    try:
        return Geometry(shape, affine)
    except MedsegError as error:
        raise ScanError(f"{path}: {error}", "bad_affine") from None


def _check_size(path: Path, image: Any) -> None:
    pixels = image.dataobj.file_like  # an open file, or the name of the .img of a pair
    data_file = Path(pixels) if isinstance(pixels, (str, Path)) else path
    with decoding(path, "NIfTI"):
        stored = data_file.stat().st_size
        with data_file.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
    claimed = (
        math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    )  # Python's integers do not overflow
    check_claim(path, "NIfTI", claimed, stored, zipped)


def _pixels(image: Any, key: str) -> Array:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    scaled = (slope, intercept) != (1, 0)
    if len(_shape(image)) == 4:
        at = (..., int(key), *(0,) * (len(image.shape) - 4))
        return np.asarray(image.dataobj[at], np.float32 if scaled else None)
    return np.asarray(image.dataobj, np.float32) if scaled else image.dataobj.get_unscaled()
