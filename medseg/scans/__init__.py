"""A path becomes cases, a case becomes a Volume: the only room that knows file formats of scans.

Here is how a source is read, whatever its format; each format has a module of its own, imported when it is first needed. A
volume lies on the scan's own grid: nothing is turned, cropped or resampled in this room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from medseg.scans.reading import ScanError
from medseg.structures import Case, LabelTable, Source
from medseg.volume import Array, Geometry, Reorientation, Volume, reorientation_to

GRID_TOLERANCE = 0.1
"""By how much of a voxel the corners of two grids may differ: headers are rounded, and a tenth of a voxel moves no label."""

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "grey": (False, True),
    "uneven": ("refuse", "resample"),
    "suv": (False, True),
    "invert": (True, False),
}
"""What readers can be told, the default first; they change values or grid, so a plan keeps them."""


def read_volume(source: Source, options: Mapping[str, Any] = _NO_OPTIONS, *, stored: bool = False) -> Volume:
    """The pixels of one source as float32 ``(C, *S)``: C = 1, or 3 (red, green, blue) for colour.

    Args:
        stored: whole numbers of up to 16 bits stay as they are, in half the memory; each has the same value in float32.
        options: ``grey=True`` turns colour into brightness (ITU-R BT.601), C = 1. Of DICOM alone: ``uneven="resample"``
            evens out gaps between slices (default: refuse), ``suv=True`` makes PET values SUVbw in g/ml, ``invert=False``
            leaves MONOCHROME1 pictures as they are stored (default: large values are bright).

    Raises:
        ScanError: the file is missing, damaged, or not one volume.
        ScanError: of kind ``"bad_option"`` for an option or a value that does not exist.
    """
    check_options(options)
    array, geometry, modality = _read(source, options)
    if options.get("grey") and len(array) == 3:
        array = np.tensordot(np.array([0.299, 0.587, 0.114]), array, axes=1)[None]
    short = stored and array.dtype.kind in "iu" and array.dtype.itemsize <= 2
    pixels = array if short else array.astype(np.float32, copy=False)
    return Volume(pixels, geometry, source.modality or modality)


def read_case(case: Case, options: Mapping[str, Any] = _NO_OPTIONS, *, stored: bool = False) -> Volume:
    """All channels of a case stacked, ``(C, *S)`` float32, on the grid of the first (others are turned onto it, never resampled).

    Args:
        options, stored: as for `read_volume`.

    Raises:
        ScanError: as `read_volume`; ``grids_differ`` where the channels do not lie on each other. Names the case.
    """
    volumes: list[Volume] = []
    for number, source in enumerate(case.images):
        try:
            volumes.append(read_volume(source, options, stored=stored))
        except ScanError as error:
            raise ScanError(f"case {case.id!r}: {error}", error.kind) from None
        turn = turn_onto(volumes[0].geometry, volumes[-1].geometry)
        if turn is not None:
            volumes[-1] = replace(volumes[-1], data=turn.apply(volumes[-1].data), geometry=volumes[0].geometry)
        else:
            raise ScanError(
                f"case {case.id!r}: channels 0 and {number} lie on different grids ("
                f"{difference(volumes[0].geometry, volumes[-1].geometry)}). Resample one onto the other, or leave the case out "
                f"with data.skip=[{case.id}]",
                "grids_differ",
            )
    if len(volumes) == 1:
        return volumes[0]
    modalities = dict.fromkeys(volume.modality for volume in volumes)
    stacked = np.concatenate([volume.data for volume in volumes])
    return Volume(stacked, volumes[0].geometry, "+".join(filter(None, modalities)))


def read_mask(
    source: Source, geometry: Geometry | None = None, labels: LabelTable | None = None
) -> tuple[Array, Geometry]:
    """The labels of a mask ``(*S)`` in the smallest integer type that holds them, and their grid.

    A DICOM SEG or RTSTRUCT has names rather than values: each segment or region is painted with the value that ``labels``
    gives its name, and is sampled at the voxel centres of ``geometry``.

    Args:
        geometry: the grid of the image, on whose voxels the mask must lie (it may be stored along other axes, and is turned);
            it is then what is returned. An RTSTRUCT cannot be read without.
        labels: what the names of a SEG or RTSTRUCT stand for; None for the numbers that the file gives them. Masks of other
            formats hold values, and are read as they are.

    Raises:
        ScanError: as `read_volume`; ``non_integer`` for other values than whole numbers, ``grids_differ``, ``colour_label``;
            as `medseg.scans.seg.read` and `medseg.scans.rtstruct.read`.
    """
    path = source.files[0]
    if source.kind == "seg":
        from medseg.scans import seg

        return seg.read(source, geometry, labels)
    if source.kind == "rtstruct":
        from medseg.scans import rtstruct

        if geometry is None:
            reason = f"{path.name}: contours have no grid of their own; read them with their image"
            raise ScanError(reason, "unsupported")
        return rtstruct.read(source, geometry, labels)
    if source.kind == "picture":
        from medseg.scans import picture

        array, found = picture.read(source, as_mask=True)
    else:
        array, found, _ = _read(source, _NO_OPTIONS)
    if len(array) > 1 and not all(np.array_equal(array[0], other) for other in array[1:]):
        reason = f"label {path}: expected one number a voxel, found colours; save the label values as grey"
        raise ScanError(reason, "colour_label")
    turn = None if geometry is None else turn_onto(geometry, found)
    if geometry is not None and turn is None:
        raise ScanError(
            f"label and image lie on different grids ({difference(found, geometry, 'label', 'image')}). "
            "Resample the label, or leave the case out",
            "grids_differ",
        )
    mask = _as_integers(array[0], str(path))
    return (mask if turn is None else turn.apply(mask)), geometry or found


def read_geometry(source: Source, options: Mapping[str, Any] = _NO_OPTIONS) -> Geometry:
    """The grid of a source from its header alone. Args and errors as `read_volume`."""
    check_options(options)
    if source.kind == "nifti":
        from medseg.scans import nifti

        return nifti.read_geometry(source)
    if source.kind == "dicom":
        from medseg.scans import dicom

        return dicom.read_geometry(source, options)
    if source.kind == "picture":
        from medseg.scans import picture

        return picture.read_geometry(source)
    if source.kind == "nrrd":
        from medseg.scans import nrrd

        return nrrd.read_geometry(source)
    if source.kind == "metaimage":
        from medseg.scans import metaimage

        return metaimage.read_geometry(source)
    if source.kind == "npz":
        from medseg.scans import npz

        return npz.read_geometry(source)
    raise ScanError(f"{source.files[0]}: files of kind {source.kind!r} are not read yet", "unsupported")


def value_bytes(source: Source) -> int:
    """What a voxel takes where `read_volume` leaves values as they are ``stored``, all colours together; from the header."""
    if source.kind == "nifti":
        from medseg.scans import nifti

        return nifti.value_bytes(source)
    return 12 if source.kind == "picture" else 4


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ScanError of kind ``"bad_option"`` for reader options or values that do not exist, all at once."""
    unknown = sorted(set(options) - set(_OPTIONS))
    problems = [f"no {', '.join(unknown)}; a reader has {', '.join(_OPTIONS)}"] if unknown else []
    for name, allowed in _OPTIONS.items():
        value = options.get(name, allowed[0])
        if type(value) is not type(allowed[0]) or value not in allowed:
            problems.append(f"{name} is {' or '.join(map(str, allowed))}, not {value!r}")
    if problems:
        raise ScanError(f"reader options: {'; '.join(problems)}", "bad_option")


def chosen_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are not what they are by default: what a plan has to keep. Raises ScanError as `check_options`."""
    check_options(options)
    return {name: value for name, value in options.items() if value != _OPTIONS[name][0]}


def same_grid(one: Geometry, two: Geometry) -> bool:
    """Whether two grids lie on each other; for pictures of unknown spacing, whether they have the same size."""
    if one.dimensions == two.dimensions == 2 and "px" in (one.unit, two.unit):
        return one.shape == two.shape
    return one.dimensions == two.dimensions and one.matches(two, GRID_TOLERANCE)


def turn_onto(grid: Geometry, other: Geometry) -> Reorientation | None:
    """How an array on ``other`` is turned to lie on ``grid``; None where its voxels lie elsewhere.

    The same voxels may be stored along other axes: a label that was made from a NIfTI conversion of a DICOM series has its
    rows the other way round. No value changes.
    """
    if same_grid(grid, other):
        return Reorientation(tuple(range(grid.dimensions)), (False,) * grid.dimensions)
    if grid.dimensions == other.dimensions == 3:
        turn = reorientation_to(other, grid.axis_codes)
        if same_grid(grid, turn.apply_to_geometry(other)):
            return turn
    return None


def difference(one: Geometry, two: Geometry, first: str = "the first", second: str = "the other") -> str:
    """What differs between two grids, as a message says it."""
    text = f"{first} {one.describe()}, {second} {two.describe()}"
    if one.shape != two.shape or not np.allclose(one.spacing, two.spacing, rtol=1e-3):
        return text
    corner = np.linalg.norm(one.to_world([0] * one.dimensions) - two.to_world([0] * two.dimensions))
    if one.dimensions == 3 and one.axis_codes != two.axis_codes:
        return f"{text}; {first} is stored {one.axis_codes}, {second} {two.axis_codes}"
    return f"{text}; their first voxels lie {corner:.4g} {one.unit} apart"


def _read(source: Source, options: Mapping[str, Any]) -> tuple[Array, Geometry, str]:
    """Pixels ``(C, *S)`` in the type that the format has, their grid, and the modality if the format knows it."""
    if source.kind == "nifti":
        from medseg.scans import nifti

        return (*nifti.read(source), "")
    if source.kind == "dicom":
        from medseg.scans import dicom

        return dicom.read(source, options)
    if source.kind == "picture":
        from medseg.scans import picture

        return (*picture.read(source), "")
    if source.kind == "nrrd":
        from medseg.scans import nrrd

        return (*nrrd.read(source), "")
    if source.kind == "metaimage":
        from medseg.scans import metaimage

        return (*metaimage.read(source), "")
    if source.kind == "npz":
        from medseg.scans import npz

        return (*npz.read(source), "")
    raise ScanError(f"{source.files[0]}: files of kind {source.kind!r} are not read yet", "unsupported")


def _as_integers(array: Array, name: str) -> Array:
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ScanError(f"label {name}: expected whole numbers, found NaN or infinite values", "non_integer")
        rounded = np.rint(array)
        if np.abs(array - rounded).max() > 1e-3:
            odd = float(array[np.unravel_index(int(np.argmax(np.abs(array - rounded))), array.shape)])
            raise ScanError(
                f"label {name}: expected whole numbers, found {odd:.6g}; was it resampled with interpolation, or is it a "
                "probability map? Make it again with nearest-neighbour resampling",
                "non_integer",
            )
        if np.abs(rounded).max() > 2**31:
            raise ScanError(
                f"label {name}: expected label values, found {float(np.abs(rounded).max()):.4g}", "non_integer"
            )
        array = rounded.astype(np.int64)
    low, high = int(array.min()), int(array.max())
    return array.astype(np.min_scalar_type(min(low, -high - 1) if low < 0 else high), copy=False)
