"""Probabilities and heat maps as DICOM parametric maps: the raw float32 values on the slices that they belong to, with a code
for what they measure. Values are neither scaled nor cut off; a window over their range lets a viewer show them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ParametricMapStorage

from medseg.errors import MedsegError
from medseg.export.anatomy import AnatomyTable
from medseg.export.codes import (
    CLASS_ACTIVATION,
    GRADIENT_CLASS_ACTIVATION,
    NO_UNITS,
    PROBABILITY,
    QUANTITY,
    SALIENCY,
    Code,
)
from medseg.export.completion import line
from medseg.export.dicom_source import Algorithm, DicomSource, derived_object
from medseg.export.multiframe import LARGEST, decimal, describe_frames, frame_groups, slabs, write_frames
from medseg.export.uids import identify
from medseg.volume import Array


@dataclass(frozen=True)
class Quantity:
    """What the values of a map measure.

    Args:
        code: of CID 7180.
        explanation: in words, at most 64 characters.
        label: the name of the label or class that they speak of.
    """

    code: Code
    explanation: str
    label: str
    units: Code = NO_UNITS


def probability_of(label: str) -> Quantity:
    """The probability, 0 to 1, that a voxel belongs to ``label``."""
    return Quantity(PROBABILITY, f"Probability of {label}", label)


def attribution_by(method: str, target: str) -> Quantity:
    """How much a voxel speaks for ``target`` by a method of saliency, such as ``gradcam`` or ``occlusion``."""
    plain = method.lower().replace("-", "").replace("_", "")
    code = (GRADIENT_CLASS_ACTIVATION if "grad" in plain else CLASS_ACTIVATION) if "cam" in plain else SALIENCY
    return Quantity(code, f"{method} for {target}", target)


def write_parametric_map(
    values: Array,
    source: DicomSource,
    path: Path,
    *,
    quantity: Quantity,
    algorithm: Algorithm,
    anatomy: AnatomyTable,
    number: int = 4,
) -> Dataset:
    """Write values on the grid of ``source`` as a parametric map of 32-bit floats.

    Args:
        values: ``geometry.shape``, finite.
        number: of the series among those derived from one source; 1 to 3 are SEG, RTSTRUCT and SR.

    Returns:
        The object as it was written, without its frames and pixels.

    Raises:
        MedsegError: the values lie on another grid, are not finite, are too many for one object, or belong to a picture.
    """
    if source.is_picture:
        raise MedsegError(
            f"{path.name}: a picture has no place in the patient, which DICOM demands of a parametric map (PS3.3 A.75.3); "
            "its maps are written as plain files only: export.maps=false"
        )
    planes = source.mask_planes(values)
    length = 4 * planes.size
    if length > LARGEST:
        raise MedsegError(f"{path.name}: {length:,} bytes of values, and a DICOM object holds {LARGEST:,}")
    low, high, digest = _scanned(planes, path.name)
    dataset = derived_object(
        source,
        ParametricMapStorage,
        modality=source.modality,
        number=number,
        description=f"{algorithm.name} {quantity.explanation}",
        algorithm=algorithm,
    )
    describe_frames(dataset, source, planes.shape[1:], segmented=False)
    dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "QUANTITY"]
    dataset.ContentLabel, dataset.ContentDescription = "PARAMETRIC_MAP", line(quantity.explanation)
    dataset.ContentQualification = "RESEARCH"
    dataset.BurnedInAnnotation = dataset.RecognizableVisualFeatures = "NO"
    dataset.PresentationLUTShape, dataset.BitsAllocated = "IDENTITY", 32
    dataset.AcquisitionContextSequence = []
    dataset.NumberOfFrames = len(planes)
    _describe_values(dataset, quantity, anatomy, low, high)
    identify(dataset, digest)
    groups = frame_groups(source, [(plane, None) for plane in range(len(planes))])
    write_frames(dataset, path, groups, _as_floats(planes), length=length, keyword="FloatPixelData")
    return dataset


def _describe_values(dataset: Dataset, quantity: Quantity, anatomy: AnatomyTable, low: float, high: float) -> None:
    """The functional groups, the same for all frames, that say what a value means and how to show it."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    meant = anatomy.code(quantity.label)
    place, identity, window, kind = Dataset(), Dataset(), Dataset(), Dataset()
    place.AnatomicRegionSequence = (meant.region or _somewhere(meant.category, meant.type, anatomy)).sequence()
    place.FrameLaterality = "U"
    identity.RescaleIntercept, identity.RescaleSlope, identity.RescaleType = "0", "1", "US"
    width = (high - low) or 1.0
    window.WindowCenter, window.WindowWidth = decimal(low + width / 2), decimal(width)
    window.VOILUTFunction = "LINEAR_EXACT"  # LINEAR takes whole steps, and has no width below 1
    kind.FrameType = dataset.ImageType
    shared.FrameAnatomySequence = [place]
    shared.PixelValueTransformationSequence = [identity]
    shared.FrameVOILUTSequence = [window]
    shared.ParametricMapFrameTypeSequence = [kind]
    mapping, defined = Dataset(), Dataset()
    mapping.LUTExplanation, mapping.LUTLabel = line(quantity.explanation), line(quantity.label, 16)
    mapping.MeasurementUnitsCodeSequence = quantity.units.sequence()
    mapping.DoubleFloatRealWorldValueFirstValueMapped, mapping.DoubleFloatRealWorldValueLastValueMapped = low, high
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 0.0, 1.0
    defined.ValueType = "CODE"
    defined.ConceptNameCodeSequence, defined.ConceptCodeSequence = QUANTITY.sequence(), quantity.code.sequence()
    mapping.QuantityDefinitionSequence = [defined]
    shared.RealWorldValueMappingSequence = [mapping]


def _somewhere(category: Code, meant: Code, anatomy: AnatomyTable) -> Code:
    """The structure that a label is; any one, where it is a lesion that may lie anywhere."""
    structure = anatomy.categories["structure"]
    return meant if category == structure else structure


def _scanned(planes: Array, name: str) -> tuple[float, float, bytes]:
    """The range of the values and a hash of them. Raises MedsegError where one is not finite."""
    digest = hashlib.sha256(str(planes.shape).encode())
    low, high = np.inf, -np.inf
    for part in _as_floats(planes):
        digest.update(part)
        values = np.frombuffer(part, "<f4")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not np.isfinite([low, high]).all():  # NaN is not finite, and no minimum of other numbers
            raise MedsegError(f"{name}: expected finite values, found NaN or infinite ones")
    return low, high, digest.digest()


def _as_floats(planes: Array) -> Iterator[bytes]:
    """The values as they are written."""
    yield from (slab.astype("<f4", copy=False).tobytes() for slab in slabs(planes))
