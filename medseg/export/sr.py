"""What a prediction measures, as a DICOM structured report (TID 1500) that other software reads without knowing medseg.

One group of measurements a label (its volume), a lesion (its diameter, its volume, the model's certainty) and a class.
Numbers have codes that DICOM itself lists; how a diameter was taken, and what a class is called, has none, and stands under
medseg's own scheme with its meaning. What a lesion is, is decided in `medseg.export.lesions`, where it lies is said in
`medseg.export.regions`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    ObservationContext,
    ObserverContext,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage

import medseg
from medseg.errors import MedsegError
from medseg.export import codes
from medseg.export.anatomy import Anatomy, AnatomyTable
from medseg.export.codes import Code
from medseg.export.completion import line
from medseg.export.dicom_source import Algorithm, DicomSource, derived_object, save
from medseg.export.lesions import Lesion, boxed_labels, lesions_of
from medseg.export.regions import NOWHERE, Region, Regions
from medseg.export.uids import identify, uid
from medseg.structures import Prediction
from medseg.volume import Geometry

SCHEME = "99MEDSEG"
"""medseg's own codes: how a diameter was taken, and the classes of a model."""
OF_VOXELS = Code("DIAMETER_VOXELS", SCHEME, "Longest distance of two voxel corners in one slice")
OF_BOX = Code("DIAMETER_BOX", SCHEME, "Longer in-plane side of the bounding box")
PIXELS = Code("{pixels}", "UCUM", "pixels")

PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    **dict.fromkeys(("CR", "DX", "MG", "XA", "RF"), Code("43468-8", "LN", "XR unspecified body region")),
}
"""Of CID 100, by modality."""
ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")

_SIDES = ("7771000", "24028007", "51440002")  # left, right, bilateral: of CID 244; other modifiers are topographical


def write_report(
    prediction: Prediction,
    source: DicomSource,
    path: Path,
    *,
    segmentation: Dataset | None,
    anatomy: AnatomyTable,
    algorithm: Algorithm,
) -> Dataset:
    """Write what a prediction measures as a DICOM SR (Comprehensive 3D, TID 1500).

    Lesions are the findings and, of labels that are not answered with boxes, the components of those that the table of
    anatomy counts among the morphologically abnormal. A finding lies in its box, also where a SEG holds its voxels, as a
    segment has all lesions of a label.

    Args:
        prediction: on the grid of ``source``.
        segmentation: the SEG that was written of the same prediction; labels and their components refer to its segments.
            Without it, components are the boxes around them.

    Returns:
        The object as it was written.

    Raises:
        MedsegError: the prediction holds neither a mask nor boxes nor classes.
    """
    report = _Report(prediction, source, Regions(source, segmentation), anatomy, algorithm)
    groups = list(report.groups())
    if not groups:
        raise MedsegError(
            f"case {prediction.case!r}: the prediction holds nothing to report: no mask, no boxes, no classes"
        )
    dataset = derived_object(
        source,
        Comprehensive3DSRStorage,
        modality="SR",
        number=3,
        description=f"{algorithm.name} measurements",
        algorithm=algorithm,
    )
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):  # each region says its own
        dataset.pop(keyword, None)
    dataset.ContentDate, dataset.ContentTime = source.moment
    dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE", "UNVERIFIED"
    dataset.ReferencedPerformedProcedureStepSequence, dataset.PerformedProcedureCodeSequence = [], []
    dataset.CurrentRequestedProcedureEvidenceSequence = [_evidence(dataset, source, segmentation)]
    dataset.CodingSchemeIdentificationSequence = [_scheme()]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_device(algorithm)),
        procedure_reported=_concept(PROCEDURES.get(source.modality, ANY_PROCEDURE)),
        imaging_measurements=groups,
    )
    dataset.update(content[0])
    identify(dataset)
    save(dataset, path)
    return dataset


@dataclass(frozen=True, eq=False)
class _Report:
    """The groups of measurements of one prediction."""

    prediction: Prediction
    source: DicomSource
    regions: Regions
    anatomy: AnatomyTable
    algorithm: Algorithm

    def groups(self) -> Iterator[Any]:
        """Labels in the order of their table, then lesions by id, then classes.

        A label that is answered with boxes and has no voxels may never have been looked for among voxels: it has no volume.
        """
        boxed = boxed_labels(self.prediction)
        for name, size in self.prediction.sizes().items():
            if size or name not in boxed:
                yield self._label(name, size)
        names = [name for name in self.prediction.labels.targets if self._is_lesion(name)]
        if self.prediction.boxes is not None or (self.prediction.mask is not None and names):
            lesions = lesions_of(self.prediction, names)
            count = Measurement(_concept(codes.NUMBER_OF_LESIONS), len(lesions), _concept(codes.NO_UNITS))
            yield self._group("lesions", ("lesions",), NOWHERE, [count], finding=codes.LESION)
            yield from map(self._lesion, lesions)
        for name, probability in self.prediction.classes.items():
            certainty = _certainty(codes.CERTAINTY_OF_IMPRESSION, probability)
            yield self._group(name, ("class", name), NOWHERE, [certainty], finding=_class_code(name))

    def _label(self, name: str, size: float) -> Any:
        geometry = self.prediction.geometry
        measured = _size(size * 1000.0 if geometry.dimensions == 3 else size, geometry)  # ml → mm³
        region = self.regions.segment(name) or NOWHERE
        return self._group(name, ("label", name), region, [measured], self.anatomy.code(name))

    def _lesion(self, lesion: Lesion) -> Any:
        geometry = self.prediction.geometry
        measurements = [
            Measurement(
                _concept(codes.DIAMETER),
                _plain(lesion.diameter),
                _concept(PIXELS if geometry.unit == "px" else codes.MILLIMETRE),
                derivation=_concept(codes.MAXIMUM),
                method=_concept(OF_BOX if lesion.size is None else OF_VOXELS),
            )
        ]
        if lesion.size is not None:
            measurements.append(_size(lesion.size, geometry))
        if lesion.score is not None:
            measurements.append(_certainty(codes.CERTAINTY_OF_FINDING, lesion.score))
        segment = None if lesion.is_box else self.regions.segment(lesion.label)
        place = (str(lesion.id), *(f"{edge:.6g}" for edge in lesion.box_vox))
        return self._group(
            f"lesion {lesion.id}: {lesion.label}",
            ("lesion", lesion.label, *place),
            segment or self.regions.box(lesion.box_vox),
            measurements,
            self.anatomy.code(lesion.label),
        )

    def _group(
        self,
        name: str,
        tracked: Sequence[str],
        region: Region,
        measurements: Sequence[Measurement],
        meant: Anatomy | None = None,
        finding: Code | None = None,
    ) -> Any:
        """A group of measurements.

        Args:
            name: for people.
            tracked: what tells this finding from others of the same volume and model; its UID is a hash of it.
        """
        template, place = region
        algorithm = AlgorithmIdentification(
            line(self.algorithm.name), line(self.algorithm.version), family=_concept(self.algorithm.family)
        )
        model = (self.algorithm.name, self.algorithm.version)
        return template(
            TrackingIdentifier(str(uid("tracking", self.source.series, *model, *tracked)), line(name)),
            finding_category=_concept(meant.category) if meant else None,
            finding_type=_concept(meant.type if meant else finding or codes.FINDING),
            finding_sites=_sites(meant) if meant else None,
            algorithm_id=algorithm,
            measurements=measurements,
            **place,
        )

    def _is_lesion(self, name: str) -> bool:
        return self.anatomy.code(name).category == self.anatomy.categories["lesion"]


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning)


def _plain(value: float) -> float:
    """A number without the noise of its last digits, which a decimal string has no room for."""
    return float(f"{value:.12g}")


def _certainty(name: Code, share: float) -> Measurement:
    """How likely a model holds something, in percent as DICOM defines these codes; whether that is calibrated is not said."""
    return Measurement(_concept(name), _plain(100.0 * share), _concept(codes.PERCENT))


def _size(value: float, geometry: Geometry) -> Measurement:
    """A volume in mm³, or the area of a picture in mm² or pixels."""
    name = codes.VOLUME if geometry.dimensions == 3 else codes.AREA
    unit = codes.CUBIC_MILLIMETRE if geometry.dimensions == 3 else codes.SQUARE_MILLIMETRE
    return Measurement(_concept(name), _plain(value), _concept(PIXELS if geometry.unit == "px" else unit))


def _sites(meant: Anatomy) -> list[FindingSite] | None:
    """Where a finding lies: the region of a lesion if its name says so; a structure with a side is its own site."""
    place, modifier = (meant.region, meant.region_modifier) if meant.region else (meant.type, meant.modifier)
    if meant.region is None and modifier is None:
        return None
    side = modifier is not None and modifier.value in _SIDES
    other = None if modifier is None or side else _concept(modifier)
    return [FindingSite(_concept(place), _concept(modifier) if modifier is not None and side else None, other)]


def _class_code(name: str) -> Code:
    """A class of a model: its name is all that is known of it, and two classes must never share a code."""
    return Code(f"CLASS_{hashlib.sha256(name.encode()).hexdigest()[:10].upper()}", SCHEME, line(name))


def _device(algorithm: Algorithm) -> ObserverContext:
    """Who observed: the model, a device of medseg."""
    attributes = DeviceObserverIdentifyingAttributes(
        uid=str(uid("device", algorithm.manufacturer, algorithm.name, algorithm.version)),
        name=line(algorithm.name),
        manufacturer_name=line(algorithm.manufacturer),
        model_name=f"medseg {medseg.__version__}",
        serial_number=line(algorithm.version),
    )
    return ObserverContext(_concept(codes.DEVICE), attributes)


def _evidence(dataset: Dataset, source: DicomSource, segmentation: Dataset | None) -> Dataset:
    """Every instance that the report refers to (PS3.3 C.17.2.3)."""
    item = Dataset()
    item.StudyInstanceUID, item.ReferencedSeriesSequence = dataset.StudyInstanceUID, []
    for listed in source.referenced_series():
        series = Dataset()
        series.SeriesInstanceUID = listed.SeriesInstanceUID
        series.ReferencedSOPSequence = listed.ReferencedInstanceSequence
        item.ReferencedSeriesSequence.append(series)
    if segmentation is not None:
        series, instance = Dataset(), Dataset()
        instance.ReferencedSOPClassUID = segmentation.SOPClassUID
        instance.ReferencedSOPInstanceUID = segmentation.SOPInstanceUID
        series.SeriesInstanceUID, series.ReferencedSOPSequence = segmentation.SeriesInstanceUID, [instance]
        item.ReferencedSeriesSequence.append(series)
    return item


def _scheme() -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = SCHEME, "medseg private codes"
    item.CodingSchemeResponsibleOrganization = "medseg"
    return item
