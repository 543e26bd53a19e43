"""Contours of a DICOM RTSTRUCT become a mask on the grid of an image. Knows nothing of cases or of series.

A voxel belongs to a region if its centre lies inside the contours of its plane (`medseg.scans.contours.inside`). Slices that
lie between contour planes are interpolated from the two around them. Only closed planar contours enclose anything: points
and open contours are passed over, with a remark.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medseg.scans.contours import between, inside
from medseg.scans.reading import ScanError, decoding
from medseg.scans.segments import Palette, Segment, merged, palettes
from medseg.structures import LabelTable, Source
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)

ON_SLICE = 0.1
"""Of a slice: contours that lie no farther from its centre are taken as they are."""

ONE_PART = 1.5
"""Contour planes farther apart than this many of their usual distances belong to separate parts; between them is nothing."""

_TO_RAS = np.array([-1.0, -1.0, 1.0])
_SAME_PLACE_MM = 0.05
_FARTHEST_MM = 1e5
_FLAT = 0.25  # of a slice: by how much a contour may leave its plane
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_OPEN = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")


@dataclass(frozen=True, eq=False)
class Region:
    """A region of interest: closed contours ``(N, 3)`` RAS+ mm, and how many contours of other types were passed over.

    ``apart_mm`` is the distance of the planes that it was drawn on, all of them where it occurs; None if that is not said.
    """

    segment: Segment
    contours: tuple[Array, ...]
    passed_over: Counter[str] = field(default_factory=Counter)
    apart_mm: float | None = None


def regions(path: Path) -> tuple[Region, ...]:
    """The regions of a file, by number. Raises ScanError where it cannot be read or a coordinate is no number."""
    with decoding(path, "DICOM RTSTRUCT", path.name):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        names = {
            int(item.ROINumber): str(item.get("ROIName", "") or "").strip()[:64]
            for item in dataset.get("StructureSetROISequence") or ()
        }
        found: dict[int, Region] = {n: Region(Segment(n, name or f"roi_{n}"), ()) for n, name in names.items()}
        for item in dataset.get("ROIContourSequence") or ():
            number = int(item.ReferencedROINumber)
            region = found.setdefault(number, Region(Segment(number, f"roi_{number}"), ()))
            contours = tuple(_closed(item, region.passed_over))
            found[number] = Region(region.segment, (*region.contours, *contours), region.passed_over, _apart(item))
    if any(not np.abs(contour).max() < _FARTHEST_MM for region in found.values() for contour in region.contours):
        raise ScanError(f"{path.name}: a contour has coordinates that are no place in a patient; export it again")
    return tuple(found[number] for number in sorted(found))


def rois(path: Path) -> tuple[Segment, ...]:
    """The regions that have closed contours, and so enclose something. Raises ScanError as `regions`."""
    return tuple(region.segment for region in regions(path) if region.contours)


def read(source: Source, geometry: Geometry, names: LabelTable | None = None) -> tuple[Array, Geometry]:
    """The mask of one or several RTSTRUCT files on the grid of their image ``(I, J, K)``, and that grid.

    Where regions overlap, the later in the table's order is kept, and a warning says how many voxels that were.

    Args:
        source: of kind ``"rtstruct"``; its key is as `medseg.scans.segments.renamed` makes it.
        names: what each region is painted with, by name; None for its number.

    Raises:
        ScanError: ``unreadable``, ``unsupported`` (of a picture), ``empty_annotation`` without any closed contour,
            ``oblique_contours``, ``outside_image``, ``unknown_label``.
    """
    first = source.files[0].name
    if geometry.dimensions != 3:
        raise ScanError(f"{first}: an RTSTRUCT is read for volumes, and the image is a picture", "unsupported")
    files = [regions(path) for path in source.files]
    for path, found in zip(source.files, files, strict=True):
        _remark(found, path.name)
    if not any(region.contours for found in files for region in found):
        drawn = sum(len(found) for found in files)
        raise ScanError(
            f"{first}: an RTSTRUCT of {drawn} region(s) without any closed contour; draw them, or take the file away",
            "empty_annotation",
        )
    colours = palettes([[region.segment for region in found] for found in files], names, source.key)
    mask = np.zeros(geometry.shape[::-1], colours[0].rank_type).T  # a slice after the other in memory
    doubled = outside = 0
    for path, found, palette in zip(source.files, files, colours, strict=True):
        twice, beyond = _paint(mask, found, palette, geometry, path.name)
        doubled, outside = doubled + twice, outside + beyond
    painted = sum(
        len(r.contours) for f, p in zip(files, colours, strict=True) for r in f if r.segment.number in p.ranks
    )
    if outside and outside == painted:
        raise ScanError(
            f"{first}: none of its {painted} contours lies in the image ({geometry.describe()}); it belongs to another",
            "outside_image",
        )
    if outside:
        logger.warning("%s: %d of %d contours lie on planes beyond the image", first, outside, painted)
    if doubled and not colours[0].nested:
        logger.warning("%s: regions overlap in %d voxels; the later label in the table is kept", first, doubled)
    return colours[0].values[mask], geometry


def lies_on(path: Path, geometry: Geometry) -> bool:
    """Whether every contour lies on a slice of the grid, within its field of view. Raises ScanError as `regions`."""
    contours = tuple(contour for region in regions(path) for contour in region.contours)
    if not contours or geometry.dimensions != 3:
        return False
    try:
        _, places = planes_of(contours, geometry, path.name)
    except ScanError:
        return False
    index = geometry.to_index(np.concatenate(contours))
    inside = ((index > -1) & (index < geometry.shape)).all()
    return bool(inside and (np.abs(places - np.rint(places)) <= ON_SLICE).all())


def planes_of(contours: tuple[Array, ...], geometry: Geometry, name: str) -> tuple[int, Array]:
    """Which axis of the grid the contours lie across, and where each lies on it, in slices.

    Raises:
        ScanError: ``oblique_contours`` where they lie across no axis.
    """
    index = [geometry.to_index(contour) for contour in contours]
    flat = np.array([np.ptp(points, axis=0) for points in index]) <= _FLAT  # (contours, 3)
    axis = max((2, 1, 0), key=lambda axis: int(flat[:, axis].sum()))
    if not flat[:, axis].all():
        lost = int(np.count_nonzero(~flat[:, axis]))
        raise ScanError(
            f"{name}: {lost} of {len(index)} contours lie in no plane of the image's grid ({geometry.describe()}); were they "
            "drawn on another image?",
            "oblique_contours",
        )
    return axis, np.array([points[:, axis].mean() for points in index])


def _apart(item: Dataset) -> float | None:
    """The distance of the planes on each of which a region has contours where it occurs (PS3.3 C.8.8.6.4)."""
    stack = item.get("SourcePixelPlanesCharacteristicsSequence")
    spacing = float(stack[0].get("SpacingBetweenSlices") or 0) if stack else 0.0
    return spacing if np.isfinite(spacing) and spacing > 0 else None


def _closed(item: Dataset, passed_over: Counter[str]) -> Iterator[Array]:
    """The closed contours of one region, RAS+ mm; the same contour a second time would undo itself, and is left out."""
    seen: set[bytes] = set()
    for contour in item.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType", "") or "")
        points = _numbers(contour)
        if kind not in _CLOSED:
            passed_over[kind if kind in _OPEN else "of unknown type"] += 1
        elif len(points) % 3 or len(points) < 9:
            passed_over["closed, of less than three points"] += 1
        elif points.tobytes() in seen:
            passed_over["the same contour twice"] += 1
        else:
            seen.add(points.tobytes())
            yield points.reshape(-1, 3) * _TO_RAS


def _numbers(contour: Dataset) -> Array:
    """ContourData, from its bytes: making an object of each of a million numbers takes minutes."""
    if "ContourData" not in contour:
        return np.zeros(0)
    value: Any = contour.get_item("ContourData").value
    if isinstance(value, bytes):
        return np.array(value.strip(b"\0 \\").split(b"\\"), np.float64) if value.strip(b"\0 ") else np.zeros(0)
    return np.array([float(v) for v in ([] if value is None else np.atleast_1d(value))], np.float64)


def _remark(found: tuple[Region, ...], name: str) -> None:
    passed: Counter[str] = Counter()
    for region in found:
        passed.update(region.passed_over)
    if passed:
        listed = ", ".join(f"{number} {kind}" for kind, number in sorted(passed.items()))
        logger.warning("%s: contours that enclose nothing are passed over: %s", name, listed)


def _paint(mask: Array, found: tuple[Region, ...], palette: Palette, geometry: Geometry, name: str) -> tuple[int, int]:
    """Paint the regions into a mask of ranks. Returns how many voxels are claimed twice, and contours beyond the image."""
    drawn = []
    for region in found:
        rank = palette.paints(region.segment.number, name) if region.contours else 0
        if rank:
            drawn.append((rank, _Stack.of(region, geometry, f"{name}, {region.segment.label!r}")))
    gaps = np.concatenate([np.zeros(0), *(stack.gaps for _, stack in drawn)])
    usual = _usual(gaps) if len(gaps) else 1.0
    doubled = outside = interpolated = 0
    for rank, stack in drawn:
        slices = np.moveaxis(mask, stack.axis, 0)
        outside += stack.beyond(len(slices))
        for k, shape, made in stack.slices(len(slices), usual):
            interpolated += made
            slices[k], twice = merged(slices[k], shape.astype(mask.dtype) * mask.dtype.type(rank))
            doubled += twice
    if interpolated:
        logger.warning("%s: %d slices between contours were interpolated", name, interpolated)
    return doubled, outside


@dataclass(frozen=True, eq=False)
class _Stack:
    """The contours of one region by plane.

    Args:
        axis: of the grid, across the planes.
        places: ``(P,)`` where each plane lies on that axis, in slices, ascending.
        polygons: the contours of each plane, ``(N, 2)`` in voxels along the other two axes.
        shape, spacing: of a slice.
        apart: how far the planes lie apart that the region was drawn on, in slices; None if that is not said.
    """

    axis: int
    places: Array
    polygons: list[list[Array]]
    shape: tuple[int, int]
    spacing: tuple[float, float]
    apart: float | None

    @classmethod
    def of(cls, region: Region, geometry: Geometry, name: str) -> _Stack:
        axis, places = planes_of(region.contours, geometry, name)
        others = [a for a in range(3) if a != axis]
        order = np.argsort(places, kind="stable")
        starts = np.flatnonzero(np.diff(places[order]) * geometry.spacing[axis] > _SAME_PLACE_MM) + 1
        planes = np.split(order, starts)
        polygons = [[geometry.to_index(region.contours[c])[:, others] for c in plane] for plane in planes]
        a, b = others
        return cls(
            axis,
            np.array([places[plane].mean() for plane in planes]),
            polygons,
            (geometry.shape[a], geometry.shape[b]),
            (geometry.spacing[a], geometry.spacing[b]),
            region.apart_mm / geometry.spacing[axis] if region.apart_mm else None,
        )

    @property
    def gaps(self) -> Array:
        """Distances of neighbouring planes, in slices."""
        return np.diff(self.places)

    def beyond(self, slices: int) -> int:
        """How many contours lie on planes before the first or behind the last slice."""
        out = (self.places < -0.5) | (self.places >= slices - 0.5)
        return sum(len(polygons) for polygons, lost in zip(self.polygons, out, strict=True) if lost)

    def slices(self, count: int, usual: float) -> Iterator[tuple[int, Array, bool]]:
        """Number, mask, and whether it was interpolated, of each slice that the region may reach.

        A slice on a contour plane has that plane's shape. One between two planes of a part has the shape between theirs.
        Where the planes lie between the slices, the outermost reach half of their usual distance farther.

        Args:
            usual: distance of contour planes in slices, where this region has too few to tell.
        """
        usual = self.apart or (_usual(self.gaps) if len(self.gaps) > 1 else usual)
        on_slices = bool((np.abs(self.places - np.rint(self.places)) <= ON_SLICE).all())
        reach = 0.0 if on_slices else usual / 2
        masks: dict[int, Array] = {}

        def mask(plane: int) -> Array:
            if plane not in masks:
                masks[plane] = inside(self.polygons[plane], self.shape)
            return masks[plane]

        first, last = int(np.ceil(self.places[0] - reach - ON_SLICE)), int(np.floor(self.places[-1] + reach + ON_SLICE))
        for k in range(max(first, 0), min(last, count - 1) + 1):
            nearest = int(np.abs(self.places - k).argmin())
            distance = abs(self.places[nearest] - k)
            upper = int(np.searchsorted(self.places, k))
            if distance <= ON_SLICE:
                yield k, mask(nearest), False
            elif 0 < upper < len(self.places) and self.gaps[upper - 1] <= ONE_PART * usual:
                weight = (k - self.places[upper - 1]) / self.gaps[upper - 1]
                yield k, between(mask(upper - 1), mask(upper), float(weight), self.spacing), True
            elif distance < reach - 1e-3:
                yield k, mask(nearest), False


def _usual(gaps: Array) -> float:
    """The median distance, the lower of two."""
    return float(np.sort(gaps)[(len(gaps) - 1) // 2])
