"""DICOM headers become volumes: which files belong together, in which order, and how they are told apart. Reads no pixels.

A series is everything of one SeriesInstanceUID. It is split where matrix size or orientation differ
(localizers), and where several slices share a position (time points, echoes, b-values). Slices are ordered by where they lie
along row × column, never by their number.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medseg.scans.find import PICTURES
from medseg.scans.names import patient_hash, series_id, study_hash
from medseg.scans.reading import ScanError, decoding
from medseg.volume import Array

_MARKS = (
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "InversionTime",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "FrameReferenceTime",
    "AcquisitionNumber",
    "ImageType",
    "AcquisitionTime",
    "SeriesTime",
    "StackID",
    "ContentTime",
)
"""What may tell apart slices at one position, the most telling first."""

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "StudyInstanceUID", "SeriesInstanceUID", "PatientID",
    "IssuerOfPatientID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "ImagerPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "Rows", "Columns", "SamplesPerPixel", "NumberOfFrames",
    "PhotometricInterpretation", *_MARKS,
]  # fmt: skip

# pydicom's remarks on odd values quote them, and they may be a patient's: errors are said here, in words of our own.
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_SAME_DIRECTION = 1e-2  # cosines; a degree apart is another plane, 0.3° is rounding
_SAME_PLACE_MM = 1e-2


@dataclass(frozen=True)
class Slice:
    """What the header of one single-frame image says. Lengths in mm, positions LPS as DICOM has them.

    ``series`` and ``instance`` are the UIDs; ``patient`` and ``study`` are hashes. ``matrix`` is (rows, columns, samples).
    """

    path: Path
    series: str
    study: str
    patient: str
    modality: str
    description: str
    instance: str
    number: int
    matrix: tuple[int, int, int]
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    thickness: float | None
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_picture(self) -> bool:
        """Whether it is read in 2D: a picture modality without a place in the patient."""
        return self.modality in PICTURES and (self.position is None or self.orientation is None)

    @property
    def along(self) -> float:
        """Position along the slice normal, row × column, in mm."""
        if self.orientation is None or self.position is None:
            return 0.0
        return float(np.dot(normal(self.orientation), self.position))


@dataclass(frozen=True)
class SeriesVolume:
    """The slices of one volume in ascending position; ``key`` tells it from the others of its series."""

    key: str
    slices: tuple[Slice, ...]

    @property
    def id(self) -> str:
        return series_id(self.slices[0].modality, self.slices[0].series, self.key)


@dataclass(frozen=True)
class LeftOut:
    """A file or series that no volume was made of. ``name`` is the id of the series, empty for a single file."""

    path: Path
    kind: str
    reason: str
    name: str = ""


def read_header(path: Path) -> Slice:
    """The header of one file, pixels untouched.

    Raises:
        ScanError: ``"no_scan"`` for DICOM objects that hold no image (RTSTRUCT, SR, DICOMDIR), ``"unsupported"`` for
            multi-frame objects, mosaics and segmentations, ``"unreadable"`` for damaged files.
    """
    with decoding(path, "DICOM", path.name):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
        return slice_of(dataset, path)


def slice_of(dataset: Dataset, path: Path) -> Slice:
    """A `Slice` of a dataset that was read already. Raises ScanError as `read_header`."""
    meta = getattr(dataset, "file_meta", None)
    storage = str(dataset.get("SOPClassUID", "") or (meta.get("MediaStorageSOPClassUID", "") if meta else ""))
    modality = str(dataset.get("Modality", "") or "").strip().upper()
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if storage == "1.2.840.10008.1.3.10":
        raise ScanError(f"{path.name}: a DICOMDIR, an index of other files", "no_scan")
    if modality in ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "REG") or not rows or not columns:
        if not storage and not modality:
            raise ScanError(
                f"{path.name}: a DICOM header without SOP class, modality or image size; the file is damaged"
            )
        raise ScanError(
            f"{path.name}: a DICOM object of modality {modality or 'unknown'} that is not a scan", "no_scan"
        )
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ScanError(
            f"{path.name}: a multi-frame DICOM object of {frames} frames; only single-frame series are read: convert it to NIfTI",
            "unsupported",
        )
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise ScanError(f"{path.name}: a Siemens mosaic; convert it to NIfTI (dcm2niix unfolds it)", "unsupported")
    study = str(dataset.get("StudyInstanceUID", "") or "")
    series = str(dataset.get("SeriesInstanceUID", "") or "")
    patient = _text(dataset, "PatientID")
    thickness = _numbers(dataset, "SpacingBetweenSlices", 1) or _numbers(dataset, "SliceThickness", 1)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    if spacing is None and modality in PICTURES:
        spacing = _numbers(dataset, "ImagerPixelSpacing", 2)
    return Slice(
        path=path,
        series=series or f"folder {path.parent}",
        study=study_hash(study or series or str(path.parent)),
        patient=patient_hash(patient, _text(dataset, "IssuerOfPatientID")) if patient else study_hash(study or series),
        modality=modality or "OT",
        description=str(dataset.get("SeriesDescription", "") or ""),
        instance=str(dataset.get("SOPInstanceUID", "") or path),
        number=int(dataset.get("InstanceNumber") or 0),
        matrix=(int(rows), int(columns), int(dataset.get("SamplesPerPixel") or 1)),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        position=_numbers(dataset, "ImagePositionPatient", 3),
        pixel_spacing=(spacing[0], spacing[1]) if spacing else None,
        thickness=abs(thickness[0]) if thickness else None,
        marks={tag: str(dataset.get(tag)) for tag in _MARKS if dataset.get(tag) not in (None, "")},
    )


def volumes(slices: Iterable[Slice]) -> tuple[list[SeriesVolume], list[LeftOut]]:
    """Group headers into volumes, in the order of their ids; and what was left out, with the reason."""
    left_out: list[LeftOut] = []
    by_series: dict[str, list[Slice]] = defaultdict(list)
    seen: dict[tuple[Any, ...], Slice] = {}
    for entry in slices:
        identity = (entry.series, entry.instance, entry.number, entry.position)
        if identity in seen:
            reason = f"{entry.path.name}: the same image (SOPInstanceUID) as {seen[identity].path.name}, which is used"
            left_out.append(LeftOut(entry.path, "no_scan", reason))
            continue
        seen[identity] = entry
        by_series[entry.series].append(entry)
    found: list[SeriesVolume] = []
    for members in by_series.values():
        parts = _by_plane(members)
        for part_key, part in parts:
            try:
                for time_key, volume in _by_time(part):
                    key = ";".join(word for word in (part_key if len(parts) > 1 else "", time_key) if word)
                    found.append(SeriesVolume(key, tuple(volume)))
            except ScanError as error:
                first = SeriesVolume(part_key if len(parts) > 1 else "", tuple(part))
                left_out.append(LeftOut(part[0].path, error.kind, f"series {first.id}: {error}", first.id))
    return sorted(found, key=lambda volume: volume.id), left_out


def normal(orientation: Sequence[float]) -> Array:
    """Unit vector row × column of six direction cosines, LPS."""
    cross = np.cross(orientation[:3], orientation[3:])
    return np.asarray(cross / max(float(np.linalg.norm(cross)), 1e-12))


def _by_plane(members: Sequence[Slice]) -> list[tuple[str, list[Slice]]]:
    """Split by matrix size and by orientation; every picture is its own part."""
    parts: list[tuple[str, list[Slice]]] = []
    representatives: list[Slice] = []
    for entry in sorted(members, key=lambda s: (s.number, s.instance)):
        if entry.is_picture:
            representatives.append(entry)
            parts.append((f"instance={entry.instance}", [entry]))
            continue
        for other, (_, part) in zip(representatives, parts, strict=True):
            if not other.is_picture and other.matrix == entry.matrix and _same_direction(other, entry):
                part.append(entry)
                break
        else:
            cosines = ",".join(f"{c:.2f}" for c in entry.orientation or ())
            representatives.append(entry)
            parts.append(
                (f"matrix={entry.matrix[0]}x{entry.matrix[1]}x{entry.matrix[2]};orientation={cosines}", [entry])
            )
    return parts


def _same_direction(one: Slice, two: Slice) -> bool:
    if one.orientation is None or two.orientation is None:
        return one.orientation is two.orientation
    return bool(np.abs(np.subtract(one.orientation, two.orientation)).max() < _SAME_DIRECTION)


def _by_time(part: Sequence[Slice]) -> list[tuple[str, list[Slice]]]:
    """Split where several slices share a position; each volume in ascending position.

    Raises:
        ScanError: ``"duplicate_slices"`` where neither a tag nor the count of slices says which belong together.
    """
    ordered = sorted(part, key=lambda s: (s.along, s.number, s.instance))
    if any(s.position is None or s.orientation is None for s in ordered):
        return [("", ordered)]  # said when it is read: no position
    places = _places(ordered)
    most = max(Counter(places).values())
    if most == 1:
        return [("", ordered)]
    for tag in _MARKS:
        values = [entry.marks.get(tag, "") for entry in ordered]
        if len(set(values)) == most and len(set(zip(values, places, strict=True))) == len(ordered):
            groups = {value: [s for s, v in zip(ordered, values, strict=True) if v == value] for value in set(values)}
            return [(f"{tag}={value}", groups[value]) for value in sorted(groups, key=_natural)]
    counts = Counter(Counter(places).values())
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        odd = sum(number for held, number in counts.items() if held != usual)
        raise ScanError(
            f"most positions hold {usual} slice(s), {odd} position(s) another number, and no tag says which "
            "belong together; remove the doubled files or copy the missing ones",
            "duplicate_slices",
        )
    by_place: dict[int, list[Slice]] = defaultdict(list)
    for entry, place in zip(ordered, places, strict=True):
        by_place[place].append(entry)
    return [(f"volume={n}", [by_place[place][n] for place in sorted(by_place)]) for n in range(most)]


def _places(ordered: Sequence[Slice]) -> list[int]:
    """A number for each slice of an ordered list; equal where they lie at the same place along the normal."""
    places, last = [0], ordered[0].along
    for entry in ordered[1:]:
        apart = entry.along - last > _SAME_PLACE_MM
        places.append(places[-1] + int(apart))
        last = entry.along if apart else last
    return places


def _natural(value: str) -> tuple[Any, ...]:
    """``"2" < "10"``."""
    words = re.findall(r"\d+\.?\d*|\D+", value)
    return tuple((0, float(word), "") if word[0].isdigit() else (1, 0.0, word) for word in words)


def _numbers(dataset: Dataset, tag: str, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers of a tag, or None where they are absent, too few or not numbers."""
    try:
        value = dataset.get(tag)
        numbers = tuple(float(v) for v in ([value] if count == 1 and value is not None else value or ()))
    except (TypeError, ValueError):
        return None
    if len(numbers) != count or not np.isfinite(numbers).all():
        return None
    nothing = not any(numbers) and tag != "ImagePositionPatient"  # (0, 0, 0) is a place, a spacing of zero is none
    return None if nothing else numbers


def _text(dataset: Dataset, tag: str) -> str:
    """The raw text of an identifier, never validated (a remark of pydicom would quote it)."""
    if tag not in dataset:
        return ""
    value = dataset.get_item(tag).value
    return value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value or "").strip()
