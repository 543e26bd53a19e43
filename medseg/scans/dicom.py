"""The planes of a DICOM volume become pixels on a grid. Which planes belong together is settled in `medseg.scans.series`.

i = column, j = row, k = plane in ascending position along row × column, so that (i, j, k) is right-handed in the patient.
Headers are read first: what they say of place (`medseg.scans.grid`) and of pixels (`medseg.scans.pixels`) is judged before
memory is taken, then every plane is read straight to where it stays. Slope and intercept are each plane's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from medseg.scans.datasets import read_header
from medseg.scans.grid import Grid, grid_of
from medseg.scans.headers import Slice, headers_of, read_headers
from medseg.scans.mosaic import cut
from medseg.scans.multiframe import FunctionalGroups
from medseg.scans.names import series_id
from medseg.scans.pixels import Pixels, pixels_of, rescale, write_values
from medseg.scans.reading import COMPRESSION_LIMIT, ScanError, decoding
from medseg.scans.suv import Uptake, factors, uptake_of
from medseg.structures import Source
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_EMPTY_PICTURE = 1 << 24
"""Samples of a picture of one colour may take next to no bytes; so many are never too many."""


@dataclass(frozen=True)
class _File:
    """What the header of one file says: its planes, how they are stored, slope and intercept of each."""

    planes: tuple[Slice, ...]
    pixels: Pixels
    scales: tuple[tuple[float, float], ...]
    uptake: Uptake | None = None


@dataclass(frozen=True)
class _Plane:
    """One plane of the volume: ``frame`` of its file, or a tile of a frame."""

    entry: Slice
    pixels: Pixels
    slope: float
    intercept: float

    @property
    def is_tile(self) -> bool:
        return self.entry.matrix[:2] != (self.pixels.rows, self.pixels.columns)

    @property
    def frame(self) -> int:
        return 0 if self.is_tile else self.entry.frame or 0


def read_geometry(source: Source, options: Mapping[str, Any] = _NO_OPTIONS) -> Geometry:
    """The grid from the headers alone, RAS+ mm (pictures: 2D, px where the pixel spacing is unknown).

    Raises:
        ScanError: as `medseg.scans.grid.grid_of`; ``"unreadable"`` for damaged files.
    """
    return native_grid(source, options).geometry


def native_grid(source: Source, options: Mapping[str, Any] = _NO_OPTIONS) -> Grid:
    """The grid of a volume with the planes that it was read from, from the headers alone. Raises as `read_geometry`."""
    planes = {path: read_headers(path) for path in source.distinct_files}
    slices = [planes[path][number] for path, number in _numbered(source, {p: len(s) for p, s in planes.items()})]
    return grid_of(slices, _name(slices[0], source.key), options)


def read(source: Source, options: Mapping[str, Any] = _NO_OPTIONS) -> tuple[Array, Geometry, str]:
    """Pixels ``(C, *S)`` float32 after slope and intercept (C = 3 for colour), their grid, and the modality.

    Args:
        options: ``uneven="resample"`` as `medseg.scans.grid.grid_of` takes it; ``suv=True`` makes PET values SUVbw (g/ml);
            ``invert=False`` leaves MONOCHROME1 pictures as they are stored, otherwise large values are bright.

    Raises:
        ScanError: as `read_geometry`; ``"truncated"`` where pixel data are missing or short, ``"unreadable"`` where they
            cannot be decoded, ``"unsupported"``, and ``"no_suv"``.
    """
    planes, name = _planes(source, bool(options.get("suv")))
    grid = grid_of([plane.entry for plane in planes], name, options)
    first = planes[0].pixels
    with _named(name):
        _check_claims(planes)
    rows, columns, _ = planes[0].entry.matrix
    stack = np.empty((first.channels, len(planes), rows, columns), np.float32)
    with _named(name):
        _fill(stack, planes, bool(options.get("invert", True)))
    for sentence in grid.mended:
        logger.warning("%s: %s", name, sentence)
    pixels = stack.transpose(0, 3, 2, 1)  # (C, K, J, I) in memory, seen as (C, I, J, K)
    nothing = float(pixels.min()) if grid.resampled else 0.0
    return grid.apply(pixels, nothing), grid.geometry, planes[0].entry.modality


def _planes(source: Source, suv: bool) -> tuple[list[_Plane], str]:
    """Every plane of a source in its order, from the headers; and what messages call the series."""
    files = {path: _file(path, source.key, suv) for path in source.distinct_files}
    numbers = list(_numbered(source, {path: len(file.planes) for path, file in files.items()}))
    name = _name(files[source.files[0]].planes[0], source.key)
    scales = {path: file.scales for path, file in files.items()}
    uptakes = {path: file.uptake for path, file in files.items() if file.uptake is not None}
    with _named(name):
        by_file = dict(zip(uptakes, factors(list(uptakes.values()), source.files[0]), strict=True))
    for path, factor in by_file.items():
        scales[path] = tuple((slope * factor, intercept * factor) for slope, intercept in scales[path])
    return [_Plane(files[path].planes[n], files[path].pixels, *scales[path][n]) for path, n in numbers], name


def _numbered(source: Source, counts: Mapping[Path, int]) -> Iterator[tuple[Path, int]]:
    """File and number of each plane of a source."""
    if not source.files:
        raise ScanError("a DICOM source without files")
    for n, path in enumerate(source.files):
        if not source.frames and counts[path] > 1:
            raise ScanError(
                f"{path.name} holds {counts[path]} planes, and nothing says which of them are meant: let `medseg.scans.find` "
                "list its volumes",
                "ambiguous",
            )
        number = source.frames[n] if source.frames else 0
        if number >= counts[path]:
            raise ScanError(f"{path.name}: expected plane {number}, found {counts[path]}; the file has changed")
        yield path, number


def _file(path: Path, key: str, suv: bool) -> _File:
    with decoding(path, "DICOM", path.name):
        status = path.stat()
    try:
        return _header(path, suv, status.st_mtime_ns, status.st_size)
    except ScanError as error:
        first, *_ = read_headers(path)  # raises where nobody can say of which series the file is
        raise ScanError(f"{_name(first, key)}: {error}", error.kind) from None


@lru_cache(maxsize=4)  # one file may hold all volumes of a time series, and its header takes long
def _header(path: Path, suv: bool, changed_ns: int, size: int) -> _File:
    with decoding(path, "DICOM", path.name), path.open("rb", buffering=0) as file:
        dataset, element = read_header(file)  # type: ignore[arg-type]
        planes = headers_of(dataset, path)
        pixels = pixels_of(file, dataset, element, path)  # type: ignore[arg-type]
        groups = FunctionalGroups(dataset) if "SharedFunctionalGroupsSequence" in dataset else None
        scales = tuple(rescale(dataset, groups, plane.frame or 0, path) for plane in planes)
        uptake = uptake_of(dataset, path) if suv and planes[0].modality == "PT" else None
    return _File(planes, pixels, scales, uptake)


def _check_claims(planes: Sequence[_Plane]) -> None:
    """Refuse compressed files that claim more pixels than they can hold, before memory is taken for them."""
    first = planes[0].pixels
    odd = next((plane for plane in planes if plane.pixels.channels != first.channels), None)
    if odd is not None:
        raise ScanError(
            f"{first.path.name} has {first.channels} channel(s), {odd.pixels.path.name} has {odd.pixels.channels}; read them as "
            "volumes of their own",
            "mixed_matrix",
        )
    rows, columns, _ = planes[0].entry.matrix
    claimed = first.channels * len(planes) * rows * columns
    stored = sum({plane.pixels.path: plane.pixels.element.stored for plane in planes if plane.pixels.table}.values())
    if first.table and claimed > max(stored * COMPRESSION_LIMIT, _EMPTY_PICTURE):
        raise ScanError(
            f"{first.path.name}: {len(planes)} plane(s) of {columns}×{rows} are claimed to be compressed into {stored:,} bytes; "
            "the file is damaged or cut short: copy it again",
            "truncated",
        )


def _fill(stack: Array, planes: Sequence[_Plane], invert: bool) -> None:
    """Read all planes into ``stack`` ``(C, K, rows, columns)``. One thread: decoders hold the interpreter's lock anyway."""
    for _, of_file in groupby(enumerate(planes), key=lambda item: item[1].pixels.path):
        members = list(of_file)
        with members[0][1].pixels.open() as frames:
            for frame, of_frame in groupby(members, key=lambda item: item[1].frame):
                picture = frames.stored(frame)
                for k, plane in of_frame:
                    stored = cut(picture, plane.entry.frame or 0, plane.entry.matrix) if plane.is_tile else picture
                    inverted = invert and plane.pixels.photometric == "MONOCHROME1" and plane.entry.is_picture
                    write_values(stack[:, k], stored, plane.pixels, plane.slope, plane.intercept, inverted)


def _name(first: Slice, key: str) -> str:
    return f"series {series_id(first.modality, first.series, key)}"


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the name of the series before what is said of one of its files."""
    try:
        yield
    except ScanError as error:
        raise ScanError(f"{name}: {error}", error.kind) from None
