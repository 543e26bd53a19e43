"""Synthetic DICOM from a numpy volume and its affine, in the states in which scanners and archives leave it.

`write_series` takes voxel values and where they lie (RAS+ mm, i = column, j = row) and writes what a scanner would have
written: the arguments are the truth that a reader has to find again. `affine_of` gives the affine of a plane in a patient
position. Frames in one file (enhanced objects, NM, cine, mosaics) are built in `tests.dicom_frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import convert_color_space
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from tests.dicom_encoding import SYNTAXES, save

Array = np.ndarray[Any, Any]
Layout = Literal["classic", "enhanced", "mosaic", "cine", "picture"]

TO_LPS = np.array([-1.0, -1.0, 1.0])
PLANES = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((0.9, 0.3, -0.3), (-0.2, 0.9, 0.35)),  # made orthonormal
}
"""Directions of a row and of a column on the scanner, whose axes are a supine, head first patient's L, P and S."""

POSITIONS = {
    "HFS": ((1, 0, 0), (0, 1, 0)),
    "HFP": ((-1, 0, 0), (0, -1, 0)),
    "HFDL": ((0, -1, 0), (1, 0, 0)),
    "HFDR": ((0, 1, 0), (-1, 0, 0)),
    "FFS": ((-1, 0, 0), (0, 1, 0)),
    "FFP": ((1, 0, 0), (0, -1, 0)),
    "FFDL": ((0, 1, 0), (1, 0, 0)),
    "FFDR": ((0, -1, 0), (-1, 0, 0)),
}
"""Where the scanner's right and its floor lie in the patient (LPS); DICOM PS3.3 C.7.3.1.1.2."""

STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "NM": "1.2.840.10008.5.1.4.1.1.20",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "OT": "1.2.840.10008.5.1.4.1.1.7",
}


def _code(value: str, scheme: str, meaning: str, **more: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    for keyword, attribute in more.items():
        setattr(item, keyword, attribute)
    return item


RADIOGRAPH = {
    "PresentationIntentType": "FOR PRESENTATION",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "PixelIntensityRelationship": "LOG",
    "PixelIntensityRelationshipSign": 1,
    "LossyImageCompression": "00",
    "BurnedInAnnotation": "NO",
    "WindowCenter": "500",
    "WindowWidth": "1000",
    "DetectorType": "",
    "AcquisitionContextSequence": [],
    "AnatomicRegionSequence": [],
}
OF_MODALITY: dict[str, dict[str, Any]] = {
    "CT": {"KVP": "120", "AcquisitionNumber": 1},
    "MR": {
        "ScanningSequence": "GR",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "EchoTime": "5",
        "RepetitionTime": "10",
        "EchoTrainLength": "1",
        "FlipAngle": "10",
        "MagneticFieldStrength": "3",
    },
    "PT": {
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "100000",
        "ActualFrameDuration": "60000",
        "FrameReferenceTime": "0",
        "Units": "BQML",
        "CountsSource": "EMISSION",
        "SeriesType": ["STATIC", "IMAGE"],
        "CorrectedImage": ["DECY", "ATTN"],
        "DecayCorrection": "START",
        "DecayFactor": "1",
        "CollimatorType": "NONE",
        "PatientOrientationCodeSequence": [],
        "PatientGantryRelationshipCodeSequence": [],
    },
    "DX": {**RADIOGRAPH, "ImageLaterality": "U", "PatientOrientation": ["L", "F"]},
    "MG": {
        **RADIOGRAPH,
        "ImageLaterality": "L",
        "PatientOrientation": ["A", "F"],
        "PositionerType": "MAMMOGRAPHIC",
        "AnatomicRegionSequence": [_code("76752008", "SCT", "Breast")],
        "ViewCodeSequence": [_code("399162004", "SCT", "cranio-caudal", ViewModifierCodeSequence=[])],
        "OrganExposed": "BREAST",
    },
    "CR": {"BodyPartExamined": "CHEST", "ViewPosition": "PA", "PatientOrientation": ["L", "F"]},
    "US": {"PatientOrientation": []},
    "OT": {"ConversionType": "WSD", "PatientOrientation": []},
}


@dataclass(frozen=True)
class Plane:
    """One plane as it is to be stored: where it lies (LPS mm), pixels ``(rows, columns[, 3])``, slope and intercept."""

    k: int
    time: int
    position: Array
    pixels: Array
    slope: float
    intercept: float


@dataclass(frozen=True)
class Series:
    """What all planes share; ``number`` counts time points."""

    modality: str
    orientation: tuple[Array, Array]
    spacing: tuple[float, float, float]
    patient_position: str
    description: str
    photometric: str
    bits: int
    signed: bool
    study: str
    seed: str
    times: int
    tilt_degrees: float

    @property
    def allocated(self) -> int:
        return next(n for n in (8, 16, 32) if self.bits <= n)

    def uid(self, *parts: object) -> UID:
        return generate_uid(entropy_srcs=["dicom factory", self.study, *map(str, parts)])


def affine_of(
    shape: Sequence[int],
    plane: str = "axial",
    patient_position: str = "HFS",
    spacing: Sequence[float] = (0.7, 0.9, 2.5),
    centre: Sequence[float] = (12.0, -30.0, 41.0),
) -> Array:
    """``(4, 4)`` RAS+ mm of a volume ``shape`` around ``centre``, k along row × column as a scanner lays its slices."""
    right, floor = (np.array(axis, float) for axis in POSITIONS[patient_position])
    on_scanner = np.stack([right, floor, np.cross(right, floor)], 1)
    row, column = (on_scanner @ np.array(axis, float) for axis in PLANES[plane])
    row /= np.linalg.norm(row)
    column -= row * (column @ row)
    column /= np.linalg.norm(column)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row, column, np.cross(row, column)], 1) * TO_LPS[:, None] * np.asarray(spacing)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.asarray(shape[-3:]) - 1) / 2)
    return affine


def native_positions(
    affine: Array, count: int, tilt_degrees: float = 0.0, depths_mm: Sequence[float] | None = None
) -> Array:
    """``(K, 3)`` RAS mm of the first voxel of each plane; a tilted gantry shifts each plane along its columns."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    depth = np.arange(count) * spacing[2] if depths_mm is None else np.asarray(depths_mm, float)
    shift = np.tan(np.radians(tilt_degrees)) * depth
    return np.asarray(affine[:3, 3] + depth[:, None] * directions[:, 2] + shift[:, None] * directions[:, 1])


def write_series(
    folder: Path,
    volume: Array,
    affine: Array,
    *,
    modality: str = "CT",
    layout: Layout = "classic",
    transfer_syntax: str = ExplicitVRLittleEndian,
    patient_position: str = "HFS",
    tilt_degrees: float = 0.0,
    depths_mm: Sequence[float] | None = None,
    drop: Sequence[int] = (),
    order: Literal["ascending", "reversed", "shuffled"] = "ascending",
    bits: int = 16,
    signed: bool = True,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = 0.0,
    photometric: str = "MONOCHROME2",
    seed: str = "1",
    study: str = "1",
    description: str = "synthetic",
    strip: Sequence[str] = (),
    marks: dict[str, Any] | None = None,
    change: Callable[[Dataset, int], None] | None = None,
) -> list[Path]:
    """Write ``volume`` as DICOM files into ``folder``; the files in the order of their numbers.

    Args:
        volume: ``(I, J, K)`` values after slope and intercept; ``(3, I, J, K)`` red, green, blue where ``photometric`` is a
            colour; ``(T, I, J, K)`` time points otherwise. Must be what the stored type can hold.
        affine: RAS+ mm; i = column, j = row. Pictures and cine take their pixel spacing from it and have no position.
        layout: ``classic`` one file a slice; ``enhanced`` one multi-frame file (CT, MR, PT, NM); ``mosaic`` one Siemens file
            a time point (MR); ``cine`` frames without a place (US); ``picture`` one file a plane without a place.
        transfer_syntax: one of `SYNTAXES`, by name or UID.
        tilt_degrees: each plane is shifted along its columns; ``volume`` holds the planes as they are stored.
        depths_mm: where each plane lies along the normal, from the first; by default ``k`` times the spacing.
        drop: planes that are missing.
        order: how file names, numbers and frames run against k.
        slope, intercept: one for all, or one a plane.
        strip: keywords removed from every dataset, nested ones too.
        marks: attributes set in each file (classic); ``change(dataset, n)`` may spoil the n-th file before it is encoded.
    """
    colour = photometric not in ("MONOCHROME1", "MONOCHROME2")
    volumes = volume[None] if volume.ndim == 3 or colour else volume  # (T, [3,] I, J, K)
    count = volumes.shape[-1]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    row, column = (affine[:3, axis] / spacing[axis] * TO_LPS for axis in (0, 1))
    series = Series(
        modality,
        (row, column),
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        patient_position,
        description,
        photometric,
        bits,
        signed,
        study,
        seed,
        len(volumes),
        tilt_degrees,
    )
    positions = native_positions(affine, count, tilt_degrees, depths_mm) * TO_LPS
    slopes, intercepts = np.broadcast_to(slope, count), np.broadcast_to(intercept, count)
    ranks = [k for k in range(count) if k not in drop]
    if order == "reversed":
        ranks.reverse()
    elif order == "shuffled":
        np.random.default_rng(7).shuffle(ranks)
    planes = [
        Plane(
            k,
            time,
            positions[k],
            _stored(volumes[time][..., k].T, series, float(slopes[k]), float(intercepts[k])),
            float(slopes[k]),
            float(intercepts[k]),
        )
        for time in range(len(volumes))
        for k in ranks
    ]
    datasets = _datasets(series, planes, layout)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (dataset, pixels) in enumerate(datasets):
        for keyword, value in (marks or {}).items():
            setattr(dataset, keyword, value)
        for keyword in strip:
            _strip(dataset, keyword)
        path = folder / f"{seed}_{number:04d}.dcm"
        spoil = None if change is None else (lambda ds, n=number: change(ds, n))
        save(path, dataset, pixels, UID(SYNTAXES.get(transfer_syntax, transfer_syntax)), spoil)
        paths.append(path)
    return paths


def _datasets(series: Series, planes: list[Plane], layout: Layout) -> list[tuple[Dataset, Array]]:
    """Headers, each with the pixels ``(frames, rows, columns[, 3])`` that it is to hold."""
    if layout in ("classic", "picture"):
        return [(_classic(series, plane, n, layout), plane.pixels[None]) for n, plane in enumerate(planes)]
    from tests import dicom_frames

    if layout == "mosaic":
        groups = [[p for p in planes if p.time == time] for time in range(series.times)]
        return [dicom_frames.mosaic(series, group, n) for n, group in enumerate(groups)]
    build = (
        dicom_frames.cine if layout == "cine" else dicom_frames.nm if series.modality == "NM" else dicom_frames.enhanced
    )
    return [(build(series, planes), np.stack([plane.pixels for plane in planes]))]


def common(series: Series, storage: str, instance: str, number: int) -> Dataset:
    """Patient, study, series, equipment and image pixel module: what every object has."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = UID(storage)
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = series.uid(series.seed, instance)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Secret^Name", "SECRET-ID", "", ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID = series.uid("study"), series.uid(series.seed, "series")
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber, ds.AccessionNumber = "1", 1, number + 1, ""
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20200102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "100000"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.SeriesDescription = "", "SYNTHETIC", series.description
    if series.modality not in ("CR", "DX", "MG"):  # which say it otherwise
        ds.Laterality = ""
    ds.Modality = series.modality
    ds.ImageType = ["ORIGINAL", "PRIMARY", *(["AXIAL"] if series.modality == "CT" else ["OTHER"])]
    ds.SamplesPerPixel = 1 if series.photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR") else 3
    ds.PhotometricInterpretation = series.photometric
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = series.allocated, series.bits, series.bits - 1
    ds.PixelRepresentation = int(series.signed)
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    if series.photometric == "PALETTE COLOR":
        for colour in ("Red", "Green", "Blue"):
            setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
            values = np.array([_palette(n) for n in range(256)], np.uint16)[:, ("Red", "Green", "Blue").index(colour)]
            setattr(ds, f"{colour}PaletteColorLookupTableData", (values * 257).astype("<u2").tobytes())
    return ds


def in_patient(ds: Dataset, series: Series) -> None:
    """Frame of reference and patient position, for objects that lie in the patient."""
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = series.uid("frame of reference"), ""
    if series.modality != "PT":  # which has the same as codes
        ds.PatientPosition = series.patient_position


def text(value: float) -> str:
    """A number as the at most 16 characters of a decimal string, as precise as they allow."""
    return str(format_number_as_ds(float(value) + 0.0))


def _classic(series: Series, plane: Plane, number: int, layout: Layout) -> Dataset:
    ds = common(series, STORAGE[series.modality], f"{plane.time} {plane.k}", number)
    for keyword, value in OF_MODALITY.get(series.modality, {}).items():
        setattr(ds, keyword, deepcopy(value))
    spacing = [text(series.spacing[1]), text(series.spacing[0])]  # between rows, then between columns
    if layout == "picture":
        setattr(ds, "ImagerPixelSpacing" if series.modality in ("CR", "DX", "MG") else "PixelSpacing", spacing)
    else:
        in_patient(ds, series)
        ds.PixelSpacing, ds.SliceThickness = spacing, text(series.spacing[2])
        ds.ImageOrientationPatient = [text(v) for axis in series.orientation for v in axis]
        ds.ImagePositionPatient = [text(v) for v in plane.position]
    if series.modality == "PT":
        ds.NumberOfSlices, ds.ImageIndex = 1, number + 1
        ds.RadiopharmaceuticalInformationSequence = [Dataset()]
        ds.RadiopharmaceuticalInformationSequence[0].RadionuclideCodeSequence = []
    if series.modality == "CT" and series.tilt_degrees:
        ds.GantryDetectorTilt = text(series.tilt_degrees)
    if series.times > 1:
        ds.TemporalPositionIdentifier, ds.NumberOfTemporalPositions = plane.time + 1, series.times
    if (series.modality != "MR" or (plane.slope, plane.intercept) != (1, 0)) and ds.SamplesPerPixel == 1:
        ds.RescaleSlope, ds.RescaleIntercept = text(plane.slope), text(plane.intercept)
        if series.modality in ("CR", "DX", "MG"):
            ds.RescaleType = "US"
    if series.modality in ("DX", "MG"):
        ds.PresentationLUTShape = "INVERSE" if series.photometric == "MONOCHROME1" else "IDENTITY"
    return ds


def _stored(values: Array, series: Series, slope: float, intercept: float) -> Array:
    """Values ``(rows, columns)`` or ``(rows, columns, 3)`` as the integers that are stored."""
    if series.photometric == "PALETTE COLOR":
        index = {_palette(n): n for n in range(256)}
        return np.array([[index[tuple(v)] for v in line] for line in values.astype(int).tolist()], np.uint8)
    dtype = np.dtype(f"{'i' if series.signed else 'u'}{series.allocated // 8}")
    stored = np.rint((values.astype(np.float64) - intercept) / slope)
    if series.photometric.startswith("YBR"):
        return np.asarray(convert_color_space(stored.astype(np.uint8), "RGB", "YBR_FULL"))
    low = -(1 << (series.bits - 1)) if series.signed else 0
    if stored.min() < low or stored.max() > low + (1 << series.bits) - 1:
        raise ValueError(f"values {values.min():g}…{values.max():g} do not fit into {series.bits} bits as {dtype}")
    return stored.astype(dtype)


def palette_volume(shape: Sequence[int]) -> Array:
    """``(3, I, J, K)`` colours of the palette that PALETTE COLOR series are written with."""
    index = np.arange(np.prod(shape)).reshape(shape) % 256
    return np.moveaxis(np.array([_palette(n) for n in range(256)])[index], -1, 0)


def _palette(index: int) -> tuple[int, int, int]:
    return index, 255 - index, index * 7 % 256


def _strip(dataset: Dataset, keyword: str) -> None:
    if keyword in dataset:
        delattr(dataset, keyword)
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            _strip(item, keyword)
