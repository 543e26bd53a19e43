"""What the header of one DICOM file says: a `Slice` a plane, or the `Annotation` that labels a series. Reads no pixels.

Only the file in hand is known here; which slices make a volume is settled in `medseg.scans.series`, and frames and tiles are
told apart in modules of their own. Values that make no sense count as absent. No name or number of a patient leaves this
module except as a hash. UIDs do, inside `Slice` and `Annotation`, and must not be shown.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from medseg.scans.annotations import ANNOTATIONS, Annotation, annotation_of
from medseg.scans.dicomdir import begins_dicomdir
from medseg.scans.names import patient_hash, study_hash
from medseg.scans.reading import ScanError, decoding
from medseg.scans.tags import Header, header_of, plain_header
from medseg.volume import Array

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Annotation", "Slice", "annotation_of", "headers_of", "held_by", "normal", "read_annotation", "read_headers"]

HEAD = 8192
"""How many bytes of a file are read at first: in nearly every file what is wanted lies within them."""

PICTURES = frozenset(
    ("CR", "DX", "MG", "US", "IO", "PX", "XA", "RF", "NM", "XC", "OP", "ES", "GM", "SM", "DG", "OT", "SC")
)
"""Modalities whose planes are pictures unless they carry a position in the patient."""

MARKS = (
    "StackID",
    "TemporalPositionIdentifier",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "InversionTime",
    "FlipAngle",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "FrameReferenceTime",
    "ComplexImageComponent",
    "ImageType",
    "ConvolutionKernel",
    "AcquisitionNumber",
    "AcquisitionTime",
    "SeriesTime",
    "ContentTime",
    "SeriesNumber",
)
"""What may tell apart slices at one position, the most telling first."""

# pydicom's remarks on odd values quote them, and they may be a patient's: errors are said here, in words of our own.
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
logging.getLogger("pydicom").addFilter(lambda record: False)  # pydicom sets its level anew when it is imported

_STANDARD = "1.2.840.10008.5.1.4.1.1."
_NO_IMAGE = frozenset(_STANDARD + ending for ending in ("4.2", "30", "66", "67"))
"""SOP classes that hold no scan: spectra, parametric maps, raw data, real world value maps."""
_NO_IMAGES = tuple(_STANDARD + ending for ending in ("9.", "11.", "66.", "88.", "104.", "131", "200.", "481."))
"""Families of SOP classes: waveforms, presentation states, registrations, reports, documents, protocols, radiotherapy."""
_NO_SCANS = frozenset(
    ("RTDOSE", "RTPLAN", "RTRECORD", "RTIMAGE", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN", "AU", "ECG", "HD", "M3D")
)
"""Modalities of such objects, whatever else they say."""
_CAPTURE = _STANDARD + "7"


@dataclass(frozen=True)
class Slice:
    """What the header says of one plane. Lengths in mm, positions LPS as DICOM has them.

    Args:
        series, instance, frame_of_reference, storage: SeriesInstanceUID, SOPInstanceUID, FrameOfReferenceUID, SOPClassUID;
            empty where absent.
        patient, study: hashes; where nothing identifies them, of the folder.
        number: InstanceNumber of the file.
        matrix: (rows, columns, samples).
        orientation, position: ImageOrientationPatient (6) and ImagePositionPatient (3); None where absent or not finite.
        pixel_spacing: (between rows, between columns).
        thickness: SpacingBetweenSlices, else SliceThickness; says how thick a single slice is, never where the next one lies.
        marks: values of `MARKS` that the header has.
        frame: which plane of the file, from 0; None where the file holds one.
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
    frame: int | None = None
    frame_of_reference: str = ""
    storage: str = ""

    @property
    def is_picture(self) -> bool:
        """Whether it is read in 2D: a picture modality without a place in the patient."""
        return self.modality in PICTURES and (self.position is None or self.orientation is None)

    @property
    def is_capture(self) -> bool:
        """Whether it is a picture of a screen that calls itself a scan: it lies nowhere in the patient."""
        secondary = self.storage == _CAPTURE or self.storage.startswith(f"{_CAPTURE}.")
        screen = secondary or "SCREEN SAVE" in self.marks.get("ImageType", "")
        return screen and self.modality not in PICTURES and self.position is None and self.orientation is None

    @property
    def along(self) -> float:
        """Position along the slice normal, row × column, in mm."""
        if self.orientation is None or self.position is None:
            return 0.0
        a, b, c = _cross(self.orientation)
        x, y, z = self.position
        return a * x + b * y + c * z


def normal(orientation: Sequence[float]) -> Array:
    """Unit vector row × column of six direction cosines, LPS."""
    return np.array(_cross(orientation))


def read_headers(path: Path) -> tuple[Slice, ...]:
    """The planes of one file, one a frame or tile, pixels untouched.

    Raises:
        ScanError: ``"no_scan"`` for DICOM objects that hold no image, ``"unreadable"`` for damaged files.
    """
    with decoding(path, "DICOM", path.name), path.open("rb") as file:
        found = held_by(path, file.read(HEAD), file)
    if isinstance(found, Annotation):
        raise ScanError(f"{path.name}: a DICOM {found.kind.upper()}, which holds labels of another series", "no_scan")
    return found


def read_annotation(path: Path) -> Annotation:
    """What a SEG or RTSTRUCT refers to. Raises ScanError ``"no_scan"`` where the file is neither."""
    with decoding(path, "DICOM", path.name), path.open("rb") as file:
        return annotation_of(_dataset(file), path)


def headers_of(dataset: Dataset, path: Path) -> tuple[Slice, ...]:
    """The planes of a dataset that was read already. Raises ScanError as `read_headers`."""
    header = header_of(dataset)
    if not header.get("SOPClassUID"):
        meta = getattr(dataset, "file_meta", None) or {}
        header = {**header, "SOPClassUID": str(meta.get("MediaStorageSOPClassUID", "") or "")}
    _refuse_strangers(header, path)
    base = _slice(header, path)
    if _whole(header, "NumberOfFrames", 1) > 1 or "PerFrameFunctionalGroupsSequence" in dataset:
        from medseg.scans.multiframe import slices_of_frames

        return slices_of_frames(dataset, path, base)
    if _is_mosaic(header):
        from medseg.scans.mosaic import tiles_of

        return tiles_of(dataset, path, base)
    return (base,)


def held_by(path: Path, head: bytes, file: BinaryIO) -> tuple[Slice, ...] | Annotation:
    """What a file holds whose first bytes were read already; ``file`` stands behind them.

    Raises:
        ScanError: as `read_headers`.
    """
    if begins_dicomdir(head):  # said at once: an index of a disc is long
        raise ScanError(f"{path.name}: a DICOMDIR, an index of other files", "no_scan")
    with decoding(path, "DICOM", path.name):
        header = plain_header(head, file)
        if header is not None and _is_single(header):
            _refuse_strangers(header, path)
            return (_slice(header, path),)
        dataset = _dataset(file)
        if _annotates(header_of(dataset)):
            return annotation_of(dataset, path)
        return headers_of(dataset, path)


def _dataset(file: BinaryIO) -> Dataset:
    from medseg.scans.datasets import read_header  # with it comes pydicom, which most files do without

    file.seek(0)
    return read_header(file)[0]


def _refuse_strangers(header: Header, path: Path) -> None:
    """Raise where the header is not that of an image."""
    storage, modality = header.get("SOPClassUID", ""), _modality(header)
    if modality == "NM" and _image_type(header)[2:3] in (["TOMO"], ["GATED TOMO"]):
        raise ScanError(f"{path.name}: the projections of a SPECT, of which the scan is reconstructed", "no_scan")
    known = storage in _NO_IMAGE or storage.startswith(_NO_IMAGES) or modality in _NO_SCANS or _annotates(header)
    if not known and _whole(header, "Rows", 0) > 0 and _whole(header, "Columns", 0) > 0:
        return
    name = _storage_name(storage)
    if known or (storage and "Image" not in name and "Volume" not in name):
        raise ScanError(
            f"{path.name}: a DICOM object ({name}, modality {modality or 'unknown'}) that is no scan", "no_scan"
        )
    raise ScanError(
        f"{path.name}: a DICOM header without image size (Rows, Columns); the file is damaged or cut short: copy it again"
    )


def _storage_name(storage: str) -> str:
    """``"Raw Data Storage"``; of a UID that DICOM does not list only that it is private."""
    from pydicom.uid import UID

    name = UID(storage).name
    return "of a private class" if name == storage else name


def _slice(header: Header, path: Path) -> Slice:
    modality = _modality(header) or "OT"
    study, series, patient = (header.get(k, "") for k in ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"))
    thickness = _numbers(header, "SpacingBetweenSlices", 1) or _numbers(header, "SliceThickness", 1)
    spacing = _numbers(header, "PixelSpacing", 2)
    if spacing is None and modality in PICTURES:
        spacing = _numbers(header, "ImagerPixelSpacing", 2)
    known = study or series or str(path.parent)
    return Slice(
        path=path,
        series=series,
        study=study_hash(known),
        patient=patient_hash(patient, header.get("IssuerOfPatientID", "")) if patient else study_hash(known),
        modality=modality,
        description=header.get("SeriesDescription", ""),
        instance=header.get("SOPInstanceUID", ""),
        number=_whole(header, "InstanceNumber", 0),
        matrix=(_whole(header, "Rows", 0), _whole(header, "Columns", 0), _whole(header, "SamplesPerPixel", 1)),
        orientation=_numbers(header, "ImageOrientationPatient", 6),
        position=_numbers(header, "ImagePositionPatient", 3),
        pixel_spacing=(spacing[0], spacing[1]) if spacing else None,
        thickness=abs(thickness[0]) if thickness else None,
        marks={keyword: header[keyword] for keyword in MARKS if keyword in header},
        frame_of_reference=header.get("FrameOfReferenceUID", ""),
        storage=header.get("SOPClassUID", ""),
    )


def _modality(header: Header) -> str:
    return header.get("Modality", "").upper()[:16]


def _annotates(header: Header) -> bool:
    return header.get("SOPClassUID") in ANNOTATIONS or _modality(header) in ANNOTATIONS


def _is_single(header: Header) -> bool:
    """Whether the top level says all: enhanced objects keep the place of each frame elsewhere."""
    placed = "ImagePositionPatient" in header or _modality(header) in PICTURES
    several = "NumberOfFrames" in header or _is_mosaic(header)
    return "Rows" in header and placed and not several and not _annotates(header)


def _is_mosaic(header: Header) -> bool:
    return "MOSAIC" in _image_type(header)


def _image_type(header: Header) -> list[str]:
    return header.get("ImageType", "").split("\\")


def _whole(header: Header, keyword: str, default: int) -> int:
    numbers = _numbers(header, keyword, 1)
    return default if numbers is None else int(numbers[0])


def _numbers(header: Header, keyword: str, count: int) -> tuple[float, ...] | None:
    """``count`` finite numbers of an element, or None where they are absent, too few or not numbers."""
    try:
        numbers = tuple(map(float, header[keyword].split("\\")))
    except (KeyError, ValueError):
        return None
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        return None
    nothing = not any(numbers) and keyword != "ImagePositionPatient"  # (0, 0, 0) is a place, a spacing of zero is none
    return None if nothing else numbers


def _cross(orientation: Sequence[float]) -> tuple[float, float, float]:
    """Unit row × column in plain floats: sorting asks for it once a slice, where arrays of three are slow."""
    a, b, c, d, e, f = orientation
    x, y, z = b * f - c * e, c * d - a * f, a * e - b * d
    length = max(math.sqrt(x * x + y * y + z * z), 1e-12)
    return x / length, y / length, z / length
