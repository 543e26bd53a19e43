"""A mask as a DICOM RT structure set: the outlines of every label on the slices that it was made from.

Contours are CLOSED_PLANAR, holes are keyholes. DICOM also knows CLOSEDPLANAR_XOR, which is newer and read by fewer programs;
keyholes are read by those that fill each contour, by those that take even and odd together, and by those that know neither
rule of holes. `medseg.scans.rtstruct` turns them back into exactly the same mask. Decides nothing about the mask.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from medseg.errors import MedsegError
from medseg.export.anatomy import AnatomyTable
from medseg.export.completion import line
from medseg.export.contours import outlines
from medseg.export.dicom_source import TO_LPS, Algorithm, DicomSource, derived_object, save
from medseg.export.multiframe import decimal, slabs
from medseg.export.overlay import COLOURS
from medseg.export.seg import Segment, segments_of
from medseg.export.uids import identify
from medseg.scans.labels import present
from medseg.structures import Prediction
from medseg.volume import Array

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management: retired, and what readers expect here
_CONTOUR_DATA = Tag("ContourData")
_DS_LENGTH = 16
_EVEN = 0.1  # of the distance of two planes: so far may a plane lie off its place in an even row
_ROUNDING = 0.005
"""By how much of a pixel a coordinate may be rounded; centres lie half a pixel from every contour."""


def write_rtstruct(
    prediction: Prediction, source: DicomSource, path: Path, *, anatomy: AnatomyTable, algorithm: Algorithm
) -> Dataset:
    """Write the mask of a prediction as a DICOM RTSTRUCT: one ROI a label, or a region where the model predicts regions.

    Regions may overlap. A label that does not occur is an ROI without contours, so that a reader sees that it was looked for.

    Args:
        prediction: on the grid of ``source``.

    Returns:
        The object as it was written, without its contours.

    Raises:
        MedsegError: there is no mask, it lies on another grid, or the source lies nowhere in the patient.
    """
    if prediction.mask is None:
        raise MedsegError(f"case {prediction.case!r}: the prediction holds no mask for an RTSTRUCT")
    if source.is_picture:
        raise MedsegError(
            f"case {prediction.case!r}: a picture has no place in the patient, which the contours of an RTSTRUCT need; "
            "write it without: export.rtstruct=false"
        )
    rois = segments_of(prediction.labels, "binary")
    contours, digest = _contours(source.mask_planes(prediction.mask), source, rois)
    dataset = derived_object(
        source,
        RTStructureSetStorage,
        modality="RTSTRUCT",
        number=2,
        description=f"{algorithm.name} contours",
        algorithm=algorithm,
    )
    # A contour may be longer than the 64 KiB that an element with an explicit VR can say of itself.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    _describe(dataset, source, algorithm)
    frame = str(dataset.FrameOfReferenceUID)
    dataset.StructureSetROISequence = [_roi(roi, frame, algorithm) for roi in rois]
    dataset.RTROIObservationsSequence = [_observation(roi, anatomy) for roi in rois]
    identify(dataset, digest)
    stack = _stack(source)
    dataset.ROIContourSequence = [
        _roi_contour(roi, COLOURS[index % len(COLOURS)], stack, contours[roi.number]) for index, roi in enumerate(rois)
    ]
    save(dataset, path)
    del dataset.ROIContourSequence
    return dataset


def _contours(planes: Array, source: DicomSource, rois: Sequence[Segment]) -> tuple[dict[int, list[Dataset]], bytes]:
    """The contours of each ROI by its number, and a hash of them all.

    Args:
        planes: ``(K, rows, columns)`` labels.
    """
    images = source.references()
    affines = source.grid.planes[:, :3] * TO_LPS[:, None]
    decimals = _decimals(affines, planes.shape[1:])
    digest = hashlib.sha256()
    found: dict[int, list[Dataset]] = defaultdict(list)
    for k, plane in enumerate(plane for slab in slabs(planes) for plane in slab):
        values = set(present(plane))
        for roi in rois:
            if values.isdisjoint(roi.values):
                continue
            mask = plane == roi.values[0] if len(roi.values) == 1 else np.isin(plane, roi.values)
            for vertices in outlines(mask):
                points = vertices @ affines[k, :, :2].T + affines[k, :, 3]
                text = "\\".join(map(repr, (np.round(points, decimals) + 0.0).ravel().tolist())).encode("ascii")
                digest.update(b"%d %d %b\n" % (roi.number, k, text))
                found[roi.number].append(_contour(text, len(points), images[k]))
    return found, digest.digest()


def _decimals(affines: Array, matrix: Sequence[int]) -> int:
    """How many decimals of a millimetre coordinates are written with: four, or as many as `_ROUNDING` asks for if these fit.

    They do on every grid that `medseg.scans.grid` accepts, but for pixels of micrometres a kilometre from the origin.
    """
    spacing = float(np.linalg.norm(affines[:, :, :2], axis=1).min())
    needed = math.ceil(-math.log10(2 * _ROUNDING * spacing))
    extent = np.abs(affines[:, :, :2]).max(axis=0) @ matrix[::-1]
    farthest = float((np.abs(affines[:, :, 3]).max(axis=0) + extent).max())
    return min(max(needed, 4), _DS_LENGTH - len(f"-{farthest:.0f}."))


def _contour(text: bytes, count: int, image: Dataset) -> Dataset:
    """One contour; its coordinates are written as they are, since millions of numbers would take pydicom minutes."""
    item = Dataset()
    item.ContourImageSequence = [image]
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", count
    even = text + b" " * (len(text) % 2)
    item[_CONTOUR_DATA] = RawDataElement(_CONTOUR_DATA, "DS", len(even), even, 0, True, True)
    item.set_original_encoding(True, True)  # which pydicom therefore need not decode
    return item


def _describe(dataset: Dataset, source: DicomSource, algorithm: Algorithm) -> None:
    """The structure set itself, and every instance of the source that it lies on (PS3.3 C.8.8.5)."""
    dataset.StructureSetLabel, dataset.StructureSetName = line(algorithm.name, 16), line(algorithm.name)
    dataset.StructureSetDate, dataset.StructureSetTime = source.moment
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.OperatorsName = ""
    series = []
    for listed in source.referenced_series():
        item = Dataset()
        item.SeriesInstanceUID, item.ContourImageSequence = listed.SeriesInstanceUID, listed.ReferencedInstanceSequence
        series.append(item)
    study, frame = Dataset(), Dataset()
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _STUDY_CLASS, dataset.StudyInstanceUID
    study.RTReferencedSeriesSequence = series
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = dataset.FrameOfReferenceUID, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]


def _roi(roi: Segment, frame_of_reference: str, algorithm: Algorithm) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName, item.ReferencedFrameOfReferenceUID = roi.number, line(roi.name), frame_of_reference
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = line(f"{algorithm.name} {algorithm.version}")
    return item


def _stack(source: DicomSource) -> list[Dataset]:
    """An item that says on which even row of planes the contours lie (PS3.3 C.8.8.6.4): where there is none, nothing is.

    Without it a reader would have to guess whether a plane was left for it to interpolate. Where slices are tilted or uneven,
    none can be written.
    """
    planes = source.grid.planes
    across, down, through = np.linalg.norm(planes[0, :3, :3], axis=0)
    even = planes[0, :3, 3] + np.arange(len(planes))[:, None] * planes[0, :3, 2]
    if np.abs(planes[:, :3, 3] - even).max() > _EVEN * through:
        return []
    item = Dataset()
    item.PixelSpacing, item.SpacingBetweenSlices = [decimal(down), decimal(across)], decimal(through)
    directions = (planes[0, :3, :2] / (across, down)).T * TO_LPS
    item.ImageOrientationPatient = [decimal(v) for v in directions.ravel()]
    item.ImagePositionPatient = [decimal(v) for v in planes[0, :3, 3] * TO_LPS]
    return [item]


def _roi_contour(roi: Segment, colour: tuple[int, int, int], stack: list[Dataset], contours: list[Dataset]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = roi.number, list(colour)
    if stack:
        item.SourcePixelPlanesCharacteristicsSequence = stack
    if contours:
        item.ContourSequence = contours
    return item


def _observation(roi: Segment, anatomy: AnatomyTable) -> Dataset:
    """What an ROI is, in codes (PS3.3 C.8.8.8). Only a physician says that something is a target volume."""
    meant = anatomy.code(roi.name)
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = roi.number
    item.RTROIInterpretedType = "ORGAN" if meant.category == anatomy.categories["structure"] else ""
    item.ROIInterpreter = ""
    item.SegmentedPropertyCategoryCodeSequence = meant.category.sequence()
    item.RTROIIdentificationCodeSequence = meant.type.sequence(SegmentedPropertyTypeModifierCodeSequence=meant.modifier)
    if meant.region is not None:
        item.AnatomicRegionSequence = meant.region.sequence(AnatomicRegionModifierSequence=meant.region_modifier)
    return item
