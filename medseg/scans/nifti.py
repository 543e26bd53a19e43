"""NIfTI-1 and NIfTI-2 files, gzipped or not, with nibabel. Knows nothing of cases or of other formats.

Where the grid lies is nibabel's rule: the sform if its code is above 0, else the qform if its code is, else the voxel sizes
about the centre of the volume, with the first axis from right to left. Lengths are taken as mm, whatever unit the header
names. Where the header contradicts itself, a warning says which part was believed. Axes stay as they are stored; a trailing
axis of one voxel is dropped beyond the third. Values are slope × stored + intercept where the slope is neither 0 nor NaN;
NaN voxels stay NaN.
"""

from __future__ import annotations

import gzip
import logging
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

logger = logging.getLogger(__name__)

_FORMS_APART = 0.1
"""By how much of a voxel the corners may differ between qform and sform: one is rounded to a quaternion."""
_OTHER_UNITS = {1: "metres", 3: "micrometres"}
_TAIL = 1 << 20


def read_geometry(source: Source) -> Geometry:
    """The grid from the header alone, RAS+ mm.

    Raises:
        ScanError: not readable, sheared, or several volumes where ``source.key`` names none.
    """
    path = source.files[0]
    with ExitStack() as stack:
        return _geometry(path, _open(path, stack)[0], source.key)


def value_bytes(source: Source) -> int:
    """What a voxel takes as `read` gives it, and float32 where that is wider. Raises ScanError as `read_geometry`."""
    with ExitStack() as stack:
        image, _ = _open(source.files[0], stack)
        kind, scaled = image.get_data_dtype(), (image.dataobj.slope, image.dataobj.inter) != (1, 0)
    if kind.names:
        return 3
    return kind.itemsize if kind.kind in "iu" and kind.itemsize <= 2 and not scaled else 4


def volume_count(path: Path) -> int:
    """How many volumes the file holds along its fourth axis."""
    with ExitStack() as stack:
        shape = _shape(_open(path, stack)[0])
    return shape[3] if len(shape) == 4 else 1


def read(source: Source) -> tuple[Array, Geometry]:
    """Pixels ``(C, I, J, K)`` and their grid: integers as stored, float32 where the header scales them; C = 3 for RGB.

    Raises:
        ScanError: as `read_geometry`; truncated or damaged pixels.
    """
    path = source.files[0]
    with ExitStack() as stack:
        image, stream = _open(path, stack)
        geometry = _geometry(path, image, source.key)
        _check_size(path, image)
        for contradiction in _contradictions(image, geometry):
            logger.warning("%s: %s", path.name, contradiction)
        with decoding(path, "NIfTI"):
            array = _pixels(image, source.key)
            if isinstance(stream, gzip.GzipFile) and not source.key:
                stream.read(_TAIL)  # to the end, where the checksum is
    if array.dtype.names:
        if not {"R", "G", "B"} <= set(array.dtype.names):
            raise ScanError(f"{path}: pixels of type {array.dtype} are not understood; expected numbers or RGB")
        array = np.stack([array[colour].reshape(geometry.shape) for colour in "RGB"])
    elif array.dtype.kind not in "iufb":
        raise ScanError(f"{path}: pixels of type {array.dtype} are not understood; expected real numbers")
    else:
        array = array.reshape((1, *geometry.shape), order="F")
    return array.astype(array.dtype.newbyteorder("="), copy=False), geometry


def _open(path: Path, stack: ExitStack) -> tuple[Any, Any]:
    """A nibabel image whose pixels are not read yet, and the stream that they come from; it closes with ``stack``."""
    with decoding(path, "NIfTI"):
        raw = stack.enter_context(path.open("rb"))
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
        start = stream.read(352)
        stream.seek(0)
        kind = nib.Nifti2Image if b"n+2\0" in start[4:8] else nib.Nifti1Image
        if start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0":
            return nib.load(path), None  # a pair of .hdr and .img
        return kind.from_stream(stream), stream


def _shape(image: Any) -> tuple[int, ...]:
    """At least three axes, without trailing axes of one voxel beyond the third."""
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return (*shape, *(1,) * (3 - len(shape)))


def _geometry(path: Path, image: Any, key: str) -> Geometry:
    shape = _shape(image)
    if len(shape) == 4 and key.isdecimal() and int(key) < shape[3]:
        shape = shape[:3]
    if len(shape) != 3:
        found = "×".join(map(str, shape))
        which = f" and no volume {key!r}" if key else ""
        raise ScanError(
            f"{path}: expected a 3D volume, found {len(shape)}D {found}{which}; split it into one file a volume (or a channel)",
            "not_3d",
        )
    if min(shape) < 1 or not image.shape:
        raise ScanError(
            f"{path}: expected voxels along each axis, found shape {image.shape}; mend the header of the file"
        )
    with decoding(path, "NIfTI"):
        affine = _with_thickness(np.asarray(image.affine, np.float64), shape)
    try:
        return Geometry(shape, affine)
    except MedsegError as error:
        raise ScanError(f"{path}: {error}", "bad_affine") from None


def _with_thickness(affine: Array, shape: tuple[int, ...]) -> Array:
    """Axes of one voxel that have no length, as 2D images are written, get 1 mm along what the others leave."""
    thin = [axis for axis in range(3) if shape[axis] == 1 and not affine[:3, axis].any()]
    if len(thin) != 1:
        return affine
    one, two = (affine[:3, (thin[0] + n) % 3] for n in (1, 2))
    across = np.cross(one, two)
    mended = affine.copy()
    mended[:3, thin[0]] = across / max(float(np.linalg.norm(across)), 1e-12)
    return mended


def _contradictions(image: Any, geometry: Geometry) -> list[str]:
    """What the header says twice, differently, or not at all, and what was believed."""
    header, found = image.header, []
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform and qform:
        corners = np.stack(np.meshgrid(*((0, n - 1) for n in geometry.shape), indexing="ij"), -1).reshape(-1, 3)
        try:
            other = header.get_qform()
            apart = np.abs(geometry.to_index(corners @ other[:3, :3].T + other[:3, 3]) - corners).max()
            what = f"differ by up to {apart:.3g} voxels" if apart > _FORMS_APART else ""
        except (nib.spatialimages.HeaderDataError, ValueError):
            what = "differ (the qform is no rotation)"
        if what:
            found.append(f"qform and sform {what}; the sform (code {sform}) is believed, by the rule of nibabel")
    elif not sform and not qform:
        found.append(
            "neither qform nor sform says where it lies (both codes are 0): its voxel sizes are taken about the centre, the "
            "first axis from right to left, by the rule of nibabel; left and right may be exchanged"
        )
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        found.append(f"the header gives lengths in {unit}; they are taken as mm, by the rule of nibabel")
    return found


def _check_size(path: Path, image: Any) -> None:
    pixels = image.dataobj.file_like  # an open file, or the name of the .img of a pair
    data_file = Path(pixels) if isinstance(pixels, (str, Path)) else path
    with decoding(path, "NIfTI"):
        stored = data_file.stat().st_size
        with data_file.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
    # Python's integers do not overflow
    claimed = math.prod(int(n) for n in image.shape) * image.get_data_dtype().itemsize
    check_claim(path, "NIfTI", claimed, stored, zipped)


def _pixels(image: Any, key: str) -> Array:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    scaled = (slope, intercept) != (1, 0)
    if len(_shape(image)) == 4:
        at = (..., int(key), *(0,) * (len(image.shape) - 4))
        return np.asarray(image.dataobj[at], np.float32 if scaled else None)
    return np.asarray(image.dataobj, np.float32) if scaled else image.dataobj.get_unscaled()
