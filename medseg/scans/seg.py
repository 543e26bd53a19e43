"""DICOM SEG (binary, fractional, labelmap) becomes a mask on the grid of an image. Knows nothing of cases or of series.

Every frame says where it lies, so their order does not matter, and planes without a frame hold nothing. Frames are painted on
the planes of the file, and these are brought onto the image by `medseg.scans.planes`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medseg.scans.datasets import read_header
from medseg.scans.headers import normal
from medseg.scans.pixels import Pixels, pixels_of
from medseg.scans.planes import Planes, onto, own_grid
from medseg.scans.reading import ScanError, decoding
from medseg.scans.segments import Palette, Segment, merged, palettes
from medseg.structures import LabelTable, Source
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)

_TO_RAS = np.array([-1.0, -1.0, 1.0])
_SAME_PLACE_MM = 0.02
_LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
_EMPTINESS, _SMALL = 20_000, 1 << 24
"""An empty frame takes next to nothing; beyond that many voxels a byte, and so many altogether, a header is wrong."""


def segments(path: Path) -> tuple[Segment, ...]:
    """The segments that the file describes, whether or not they mark anything. Reads no pixels; raises ScanError."""
    with decoding(path, "DICOM SEG", path.name):
        return _segments(_header(path))


def planes(path: Path) -> Planes:
    """Where its frames lie, from the header alone. Raises ScanError as `read`."""
    with decoding(path, "DICOM SEG", path.name):
        return _planes(_header(path), path.name)[0]


def read(source: Source, geometry: Geometry | None = None, names: LabelTable | None = None) -> tuple[Array, Geometry]:
    """The mask of one or several SEG files ``(I, J, K)`` and its grid.

    Fractions count from one half up. Where segments overlap, the later in the table's order is kept, and a warning says how
    many voxels that were.

    Args:
        source: of kind ``"seg"``; its key is as `medseg.scans.segments.renamed` makes it.
        geometry: the grid of the image; None for the grid that the frames of one file span.
        names: what each segment is painted with, by name; None for its number.

    Raises:
        ScanError: ``unreadable``, ``truncated``, ``unsupported`` (tiled, or of a picture), ``no_position``, ``grids_differ``,
            ``outside_image``, ``unknown_label``.
    """
    first = source.files[0].name
    if geometry is not None and geometry.dimensions != 3:
        raise ScanError(
            f"{first}: a SEG is read for volumes, and the image is a picture; save it as PNG", "unsupported"
        )
    if geometry is None and len(source.files) > 1:
        raise ScanError(
            f"{first}: several SEG files have no grid of their own; read them with their image", "unsupported"
        )
    colours = palettes([segments(path) for path in source.files], names, source.key)
    mask: Array | None = None
    doubled = 0
    for path, palette in zip(source.files, colours, strict=True):
        dataset, pixels = _opened(path)
        with decoding(path, "DICOM SEG", path.name):
            found, plane_of_frame = _planes(dataset, path.name)
        geometry = geometry or own_grid(found, path.name)
        stack, twice = _painted(dataset, pixels, found, plane_of_frame, palette)
        placed = onto(stack, found, geometry, path.name)
        mask, more = (placed, 0) if mask is None else merged(mask, placed)
        doubled += twice + more
    if mask is None or geometry is None:
        raise ScanError("a SEG source without files")
    if doubled and not colours[0].nested:
        logger.warning("%s: segments overlap in %d voxels; the later label in the table is kept", first, doubled)
    return colours[0].values[mask], geometry


def _header(path: Path) -> Dataset:
    with path.open("rb") as file:
        return read_header(file)[0]


def _opened(path: Path) -> tuple[Dataset, Pixels]:
    """The header, and how the frames are stored. Raises ScanError where the file cannot hold them."""
    with decoding(path, "DICOM SEG", path.name), path.open("rb") as file:
        dataset, element = read_header(file)
        pixels = pixels_of(file, dataset, element, path)
    if pixels.samples != 1 or pixels.signed or pixels.allocated > 16:
        raise ScanError(f"{path.name}: expected segments of 1, 8 or 16 bits without sign; it is damaged", "unsupported")
    return dataset, pixels


def _segments(dataset: Dataset) -> tuple[Segment, ...]:
    found = []
    for item in dataset.get("SegmentSequence") or ():
        number = int(item.SegmentNumber)
        kind = item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
        label = str(item.get("SegmentLabel", "") or kind[0].get("CodeMeaning", "") or f"segment_{number}").strip()[:64]
        if number > 0:  # a labelmap may describe its background
            found.append(Segment(number, label))
    return tuple(found)


def _planes(dataset: Dataset, name: str) -> tuple[Planes, Array]:
    """The planes of a file, and which one each frame lies on."""
    tiled = str(dataset.get("DimensionOrganizationType", "")).startswith("TILED")
    if tiled or "TotalPixelMatrixRows" in dataset:
        raise ScanError(f"{name}: a SEG of tiles (of a whole slide); only those of planes are read", "unsupported")
    frames, shared = _frame_groups(dataset)
    if not frames or len(frames) != int(dataset.get("NumberOfFrames") or 1):
        raise ScanError(
            f"{name}: {len(frames)} frames are described, {dataset.get('NumberOfFrames')} stored; it is damaged"
        )
    places, turns, measures = [], [], []
    for frame in frames:
        place, turn, measure = (
            _first(frame, f"{keyword}Sequence") or _first(shared, f"{keyword}Sequence")
            for keyword in ("PlanePosition", "PlaneOrientation", "PixelMeasures")
        )
        if place is None or turn is None or measure is None:
            raise ScanError(f"{name}: its frames do not say where they lie; export it again", "no_position")
        places.append([float(v) for v in place.ImagePositionPatient])
        turns.append([float(v) for v in turn.ImageOrientationPatient])
        measures.append([float(v) for v in measure.PixelSpacing])
    positions, cosines, spacing = np.array(places), np.array(turns), np.array(measures)
    finite = all(np.isfinite(values).all() for values in (positions, cosines, spacing))
    if not finite or positions.shape[1:] != (3,) or cosines.shape[1:] != (6,) or spacing.min() <= 0:
        raise ScanError(f"{name}: its frames lie nowhere: position, orientation or spacing is no number", "no_position")
    if np.abs(cosines - cosines[0]).max() > 1e-3 or np.ptp(spacing, axis=0).max() > 1e-3 * spacing.min():
        raise ScanError(f"{name}: its frames have several orientations or spacings; split it", "unsupported")
    across = normal(cosines[0])
    depth = positions @ across
    order = np.argsort(depth, kind="stable")
    new = np.concatenate([[True], np.diff(depth[order]) > _SAME_PLACE_MM])
    plane_of_frame = np.empty(len(depth), np.intp)
    plane_of_frame[order] = np.cumsum(new) - 1
    origins = positions[order][new]
    if np.abs(positions - origins[plane_of_frame]).max() > 0.1 * spacing.min():
        raise ScanError(f"{name}: frames of one plane lie beside each other; only whole planes are read", "unsupported")
    measure = _first(frames[0], "PixelMeasuresSequence") or _first(shared, "PixelMeasuresSequence") or Dataset()
    step, thickness = (abs(float(measure.get(k) or 0)) for k in ("SpacingBetweenSlices", "SliceThickness"))
    row, column = cosines[0, :3], cosines[0, 3:]
    axes = np.stack([row / np.linalg.norm(row), column / np.linalg.norm(column), across]) * _TO_RAS
    shape = (int(dataset.Columns), int(dataset.Rows))
    pixel = (float(spacing[0, 1]), float(spacing[0, 0]))
    return Planes(origins * _TO_RAS, axes, pixel, shape, step or None, thickness or step or 1.0), plane_of_frame


def _frame_groups(dataset: Dataset) -> tuple[list[Dataset], Dataset]:
    return list(dataset.get("PerFrameFunctionalGroupsSequence") or ()), _first(
        dataset, "SharedFunctionalGroupsSequence"
    ) or Dataset()


def _first(dataset: Dataset, keyword: str) -> Dataset | None:
    """The one item of a sequence of functional groups."""
    items = dataset.get(keyword)
    return items[0] if items else None


def _painted(
    dataset: Dataset, pixels: Pixels, planes: Planes, plane_of_frame: Array, palette: Palette
) -> tuple[Array, int]:
    """Ranks on the planes of the file ``(P, rows, columns)``, and how many voxels several segments claim."""
    claimed, stored = len(planes.origins) * math.prod(planes.shape), pixels.element.stored
    if pixels.table and claimed > max(stored * _EMPTINESS, _SMALL):
        raise ScanError(
            f"{pixels.path.name}: {claimed:,} voxels are claimed to be compressed into {stored:,} bytes; the file is damaged or "
            "cut short: copy it again",
            "truncated",
        )
    with decoding(pixels.path, "DICOM SEG", pixels.path.name):
        stack = np.zeros((len(planes.origins), *planes.shape[::-1]), palette.rank_type)
    doubled = 0
    for plane, ranks in zip(plane_of_frame, _ranked(dataset, pixels, palette), strict=True):
        if ranks is not None:
            stack[plane], twice = merged(stack[plane], ranks)
            doubled += twice
    return stack, doubled


def _ranked(dataset: Dataset, pixels: Pixels, palette: Palette) -> Iterator[Array | None]:
    """Each frame ``(rows, columns)`` as ranks; None where it marks nothing."""
    path, name = pixels.path, pixels.path.name
    with decoding(path, "DICOM SEG", name):
        labelmap = dataset.get("SOPClassUID") == _LABELMAP or dataset.get("SegmentationType") == "LABELMAP"
        fractional = dataset.get("SegmentationType") == "FRACTIONAL"
        half = float(dataset.get("MaximumFractionalValue") or 255) / 2
        background = {0, int(dataset.get("PixelPaddingValue") or 0)}
        frames, shared = _frame_groups(dataset)
        described = {segment.number for segment in _segments(dataset)}

    def rank_of(segment: int) -> int:
        if segment not in described:
            raise ScanError(f"{name}: it holds segment {segment}, which it does not describe; mend it", "unknown_label")
        return palette.paints(segment, name)

    ranks = np.zeros(2**16, palette.rank_type)
    seen: set[int] = set()
    with pixels.open() as stored:
        for number, frame in enumerate(frames):
            values = stored.stored(number)
            if labelmap:
                present = set(np.flatnonzero(np.bincount(values.ravel())).tolist()) - background - seen
                for segment in present:
                    ranks[segment] = rank_of(segment)
                seen |= present
                yield ranks[values]
                continue
            marked = values >= half if fractional else values > 0
            if not marked.any():
                yield None
                continue
            with decoding(path, "DICOM SEG", name):
                item = _first(frame, "SegmentIdentificationSequence") or shared.SegmentIdentificationSequence[0]
                rank = rank_of(int(item.ReferencedSegmentNumber))
            yield marked.astype(palette.rank_type) * palette.rank_type.type(rank) if rank else None
