"""The DICOM series that a result lies on, as an object derived from it needs to know it: whose it is, which instances it
holds, and where each of its native planes lies. Reads headers only; what they lack is completed and named.

Masks come in on the grid of the volume and go out on the native planes: where a tilt or uneven slices were mended while
reading, they are sampled back, so that every frame of an object lies on the slice that it refers to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

import medseg
from medseg.errors import MedsegError
from medseg.export.codes import ARTIFICIAL_INTELLIGENCE, Code
from medseg.export.completion import COPIED, Completions, completed_common, content_moment, line, valid_uid
from medseg.files import whole_file
from medseg.scans.datasets import read_header
from medseg.scans.dicom import native_grid
from medseg.scans.grid import Grid
from medseg.scans.names import series_id
from medseg.scans.reading import decoding
from medseg.structures import Source
from medseg.volume import Array, Geometry

TO_LPS = np.array([-1.0, -1.0, 1.0])
"""RAS+ to LPS, the frame of DICOM."""

_OWN = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "Modality", "ImageType",
    "BodyPartExamined", "NumberOfFrames", "Rows", "Columns", "PixelSpacing", "SliceThickness", "ImagePositionPatient",
    "ImageOrientationPatient", "PatientOrientation",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "ContentDate", "ContentTime", "AcquisitionDate", "AcquisitionTime", "SeriesDate", "SeriesTime",
)  # fmt: skip
"""What each file says of itself; patient, study and frame of reference are those of the first file."""


@dataclass(frozen=True)
class Algorithm:
    """What made a result: written into every object, so that a reader knows what to think of it.

    ``version`` should tell two trainings apart (a hash of the model). ``family`` is a code of CID 7162.
    """

    name: str
    version: str
    manufacturer: str = "medseg"
    family: Code = ARTIFICIAL_INTELLIGENCE

    def item(self) -> Dataset:
        """The item of an algorithm identification sequence (PS3.3 10.16)."""
        item = Dataset()
        item.AlgorithmFamilyCodeSequence = self.family.sequence()
        item.AlgorithmVersion = line(self.version)
        item.AlgorithmName = line(self.name)
        return item


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A DICOM volume that objects are derived from.

    Args:
        datasets: the completed header of each file, without pixels, in ascending position; text in UTF-8.
        frames: for each native plane the index in ``datasets`` and the frame number from 1, None where the file is one image.
        grid: where the native planes lie, and how a mask gets back onto them.
        modality: of the source.
        series: its id, which says nothing of the patient.
        completions: what was completed, a sentence each.
    """

    datasets: tuple[Dataset, ...]
    frames: tuple[tuple[int, int | None], ...]
    grid: Grid
    modality: str
    series: str
    completions: tuple[str, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """The grid that predictions lie on."""
        return self.grid.geometry

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture without a place in the patient."""
        return self.geometry.dimensions == 2

    def is_tile(self, plane: int) -> bool:
        """Whether a native plane is only a part of the image that it is stored in, as in a mosaic."""
        index, frame = self.frames[plane]
        columns, rows, _ = self.grid.shape
        stored = self.datasets[index]
        return frame is None and (stored.get("Rows"), stored.get("Columns")) != (rows, columns)

    @property
    def moment(self) -> tuple[str, str]:
        """Content date and time of what is derived (DA, TM): those of the source.

        The UIDs are stable, and two objects that bear one UID must not differ, in the time of writing neither.
        """
        return content_moment(self.datasets[0])

    def mask_planes(self, mask: Array) -> Array:
        """Labels or other values ``geometry.shape`` as ``(K, rows, columns)`` on the native planes.

        A view where nothing was mended; else the nearest voxel of each pixel.

        Raises:
            MedsegError: the values lie on another grid.
        """
        if mask.shape != self.geometry.shape:
            raise MedsegError(f"{self.series}: expected values on {self.geometry.shape} voxels, found {mask.shape}")
        if self.is_picture:
            return mask.T[None]
        return self.grid.sample_back(mask).transpose(2, 1, 0)

    def references(self) -> Sequence[Dataset]:
        """An item of a source image sequence for each native plane: the instance, and the frame where it holds several."""
        items = []
        for index, frame in self.frames:
            item = Dataset()
            item.ReferencedSOPClassUID = self.datasets[index].SOPClassUID
            item.ReferencedSOPInstanceUID = self.datasets[index].SOPInstanceUID
            if frame is not None:
                item.ReferencedFrameNumber = frame
            items.append(item)
        return items

    def referenced_series(self) -> Sequence[Dataset]:
        """The item of a referenced series sequence that lists every instance of the source (PS3.3 C.12.2)."""
        instances = []
        for dataset in self.datasets:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
            instances.append(item)
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedInstanceSequence = self.datasets[0].SeriesInstanceUID, instances
        return [series]


def dicom_source(source: Source, options: Mapping[str, Any]) -> DicomSource:
    """Read the headers of a DICOM volume and complete them.

    Args:
        source: the source that the volume was read from.
        options: the reader options of the plan, as `medseg.scans.read_volume` takes them.

    Raises:
        MedsegError: the source is not DICOM.
        ScanError: a file is gone or damaged since it was read.
    """
    if source.kind != "dicom":
        raise MedsegError(
            f"{source.files[0].name}: expected a DICOM series to derive objects from, found {source.kind}"
        )
    grid = native_grid(source, options)
    files = source.distinct_files
    notes = Completions()
    first = _header(files[0])
    series = valid_uid(first, "SeriesInstanceUID", notes, "source series", str(first.get("SOPInstanceUID", "")))
    common = completed_common(first, series, notes, in_patient=grid.geometry.dimensions == 3)
    datasets = tuple(_completed(_header(path), common, series, notes, number) for number, path in enumerate(files))
    index = {path: number for number, path in enumerate(files)}
    planes = zip(source.files, source.frames or (0,) * len(source.files), strict=True)
    modality = source.modality or str(datasets[0].get("Modality", "OT"))
    return DicomSource(
        datasets=datasets,
        frames=tuple((index[path], _frame_number(datasets[index[path]], frame)) for path, frame in planes),
        grid=grid,
        modality=modality,
        series=series_id(modality, series, source.key),
        completions=notes.sentences(),
    )


def derived_object(
    source: DicomSource, storage: UID, *, modality: str, number: int, description: str, algorithm: Algorithm
) -> Dataset:
    """An object of the source's patient and study, in a series of its own: what all objects share, but for their UIDs.

    `medseg.export.uids.identify` gives the UIDs when it is complete. It bears no date of today, see `DicomSource.moment`.

    Args:
        number: of the series among those that medseg derives from one source, from 1.
    """
    first = source.datasets[0]
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = storage
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in COPIED:
        if keyword in first:
            setattr(dataset, keyword, first[keyword].value)
    dataset.Modality, dataset.SeriesDescription = modality, line(description)
    dataset.SeriesNumber, dataset.InstanceNumber = _series_number(first, number), 1
    dataset.Manufacturer, dataset.ManufacturerModelName = line(algorithm.manufacturer), "medseg"
    dataset.DeviceSerialNumber = line(algorithm.version)
    dataset.SoftwareVersions = line(medseg.__version__)
    return dataset


def save(dataset: Dataset, path: Path) -> None:
    """Write an object, whole or not at all."""
    with whole_file(path) as aside:
        dataset.save_as(aside, enforce_file_format=True)


def _header(path: Path) -> Dataset:
    """What a file says; identifiers that only its meta information has are taken from there."""
    with decoding(path, "DICOM", path.name), path.open("rb") as file:
        header, _ = read_header(file)
        for keyword in ("SOPClassUID", "SOPInstanceUID"):
            if keyword not in header and f"MediaStorage{keyword}" in header.file_meta:
                setattr(header, keyword, header.file_meta[f"MediaStorage{keyword}"].value)
        return header


def _completed(header: Dataset, common: Dataset, series: str, notes: Completions, number: int) -> Dataset:
    """What a file says of itself, with the patient, study and frame of reference of all; elements are shared, not copied."""
    dataset = Dataset()
    dataset.update(common)
    for keyword in _OWN:
        try:
            dataset[keyword] = header[keyword]
        except Exception:
            continue  # absent, or whatever pydicom raises on a value that is not of its type: nothing that objects need
    dataset.SeriesInstanceUID = series
    dataset.SOPInstanceUID = valid_uid(header, "SOPInstanceUID", notes, "source instance", series, str(number))
    dataset.SOPClassUID = valid_uid(header, "SOPClassUID", notes, "source class")
    return dataset


def _frame_number(dataset: Dataset, frame: int) -> int | None:
    """How a reference names a plane: frames count from 1; a file of one image (also of one mosaic of tiles) has none."""
    return frame + 1 if int(dataset.get("NumberOfFrames") or 1) > 1 else None


def _series_number(first: Dataset, number: int) -> int:
    """A number that sorts a derived series behind its source: 301, 302 … of series 3."""
    try:
        own = int(first.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        own = 0
    return 100 * own + number if 0 <= own < 2**31 // 100 - 1 else number
