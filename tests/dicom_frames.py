"""Synthetic DICOM objects that hold many planes in one file: enhanced CT, MR and PET, NM, cine, Siemens mosaics.

Part of `tests.dicom_factory`, which says what the arguments mean and writes the files. Lengths are mm, positions LPS.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tests.dicom_factory import Array, Plane, Series, common, in_patient, text

ENHANCED = {
    "CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "PT": "1.2.840.10008.5.1.4.1.1.130",
}
CINE = "1.2.840.10008.5.1.4.1.1.3.1"
NUCLEAR = "1.2.840.10008.5.1.4.1.1.20"


def item(**attributes: Any) -> list[Dataset]:
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return [dataset]


def code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    return item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def enhanced(series: Series, planes: Sequence[Plane]) -> Dataset:
    """An Enhanced CT, MR or PET object: one stack, a frame a plane, time points by TemporalPositionIndex."""
    ds = common(series, ENHANCED[series.modality], "enhanced", 0)
    in_patient(ds, series)
    del ds.Laterality  # each frame has its own
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames, ds.ContentQualification, ds.BurnedInAnnotation = len(planes), "RESEARCH", "NO"
    ds.PresentationLUTShape, ds.LossyImageCompression = "IDENTITY", "00"
    ds.ManufacturerModelName, ds.DeviceSerialNumber, ds.SoftwareVersions = "SYNTHETIC", "1", "1"
    ds.PixelPresentation, ds.VolumetricProperties, ds.VolumeBasedCalculationTechnique = "MONOCHROME", "VOLUME", "NONE"
    ds.AcquisitionDateTime, ds.AcquisitionDuration, ds.AcquisitionNumber = "20200102100000", 1.0, 1
    ds.AcquisitionContextSequence = []
    organization = series.uid(series.seed, "dimensions")
    ds.DimensionOrganizationSequence = item(DimensionOrganizationUID=organization)
    ds.DimensionOrganizationType = "3D" if series.times == 1 else "3D_TEMPORAL"
    pointers = [("StackID", "FrameContentSequence"), ("InStackPositionNumber", "FrameContentSequence")]
    pointers += [("TemporalPositionIndex", "FrameContentSequence")] if series.times > 1 else []
    ds.DimensionIndexSequence = [
        item(
            DimensionIndexPointer=Tag(pointer),
            FunctionalGroupPointer=Tag(group),
            DimensionOrganizationUID=organization,
            DimensionDescriptionLabel=pointer,
        )[0]
        for pointer, group in pointers
    ]
    shared = Dataset()
    shared.PixelMeasuresSequence = item(
        PixelSpacing=[text(series.spacing[1]), text(series.spacing[0])], SliceThickness=text(series.spacing[2])
    )
    shared.PlaneOrientationSequence = item(
        ImageOrientationPatient=[text(v) for axis in series.orientation for v in axis]
    )
    shared.FrameAnatomySequence = item(FrameLaterality="U", AnatomicRegionSequence=code("818983003", "SCT", "Abdomen"))
    getattr(_Modality, series.modality)(ds, shared)
    ds.SharedFunctionalGroupsSequence = [shared]
    ranks = {k: rank for rank, k in enumerate(sorted({plane.k for plane in planes}), 1)}
    ds.PerFrameFunctionalGroupsSequence = [_frame(series, plane, ranks[plane.k]) for plane in planes]
    return ds


def _frame(series: Series, plane: Plane, rank: int) -> Dataset:
    frame = Dataset()
    time = [plane.time + 1] if series.times > 1 else []
    frame.FrameContentSequence = item(
        FrameAcquisitionNumber=1 + plane.time,
        FrameReferenceDateTime=f"202001021000{plane.time:02d}",
        FrameAcquisitionDateTime=f"202001021000{plane.time:02d}",
        FrameAcquisitionDuration=1.0,
        StackID="1",
        InStackPositionNumber=rank,
        DimensionIndexValues=[1, rank, *time],
    )
    if time or series.modality == "PT":
        frame.FrameContentSequence[0].TemporalPositionIndex = plane.time + 1
    frame.PlanePositionSequence = item(ImagePositionPatient=[text(v) for v in plane.position])
    frame.PixelValueTransformationSequence = item(
        RescaleIntercept=text(plane.intercept),
        RescaleSlope=text(plane.slope),
        RescaleType="HU" if series.modality == "CT" else "US",
    )
    return frame


class _Modality:
    """What the standard wants of each modality beside the geometry."""

    @staticmethod
    def CT(ds: Dataset, shared: Dataset) -> None:
        kind = {"FrameType": list(ds.ImageType), "PixelPresentation": "MONOCHROME"}
        kind |= {"VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE"}
        shared.CTImageFrameTypeSequence = item(**kind)
        shared.CTAcquisitionTypeSequence = item(
            AcquisitionType="SEQUENCED", ConstantVolumeFlag="NO", FluoroscopyFlag="NO"
        )
        shared.CTAcquisitionDetailsSequence = item(
            RotationDirection="CW", RevolutionTime=1.0, SingleCollimationWidth=1.0, TotalCollimationWidth=16.0,
            TableHeight=0.0, GantryDetectorTilt=0.0, DataCollectionDiameter=500.0,
        )  # fmt: skip
        shared.CTTableDynamicsSequence = item(TableSpeed=1.0, TableFeedPerRotation=1.0, SpiralPitchFactor=1.0)
        shared.CTGeometrySequence = item(DistanceSourceToDetector=1000.0, DistanceSourceToDataCollectionCenter=500.0)
        shared.CTPositionSequence = item(
            DataCollectionCenterPatient=[0.0] * 3, ReconstructionTargetCenterPatient=[0.0] * 3, TablePosition=0.0
        )
        shared.CTReconstructionSequence = item(
            ReconstructionAlgorithm="FILTER_BACK_PROJ", ConvolutionKernel="B30", ConvolutionKernelGroup="SOFT_TISSUE",
            ReconstructionDiameter=500.0, ReconstructionAngle=360.0, ImageFilter="NONE",
            ReconstructionPixelSpacing=list(shared.PixelMeasuresSequence[0].PixelSpacing),
        )  # fmt: skip
        shared.CTExposureSequence = item(
            ExposureTimeInms=100.0, XRayTubeCurrentInmA=100.0, ExposureInmAs=10.0,
            ExposureModulationType="NONE", CTDIvol=1.0,
        )  # fmt: skip
        shared.CTXRayDetailsSequence = item(
            KVP=120.0,
            FocalSpots=[1.0],
            FilterType="NONE",
            FilterMaterial="ALUMINUM",
            CalciumScoringMassFactorPatient=1.0,
        )
        shared.IrradiationEventIdentificationSequence = item(IrradiationEventUID="1.2.3")
        ds.MultienergyCTAcquisition = "NO"

    @staticmethod
    def MR(ds: Dataset, shared: Dataset) -> None:
        kind = {"VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE"}
        kind |= {"ComplexImageComponent": "MAGNITUDE", "AcquisitionContrast": "T1", "PixelPresentation": "MONOCHROME"}
        for keyword, value in kind.items():
            setattr(ds, keyword, value)
        shared.MRImageFrameTypeSequence = item(FrameType=list(ds.ImageType), **kind)
        ds.ResonantNucleus, ds.MagneticFieldStrength, ds.KSpaceFiltering = "1H", 3.0, "NONE"
        ds.ApplicableSafetyStandardAgency = "IEC"
        ds.AcquisitionContrast, ds.PulseSequenceName, ds.MRAcquisitionType = "T1", "SYNTHETIC", "3D"
        ds.EchoPulseSequence, ds.MultiPlanarExcitation = "GRADIENT", "NO"
        ds.PhaseContrast, ds.TimeOfFlightContrast = "NO", "NO"
        ds.SteadyStatePulseSequence, ds.EchoPlanarPulseSequence, ds.SaturationRecovery = "NONE", "NO", "NO"
        ds.SpectrallySelectedSuppression, ds.OversamplingPhase = "NONE", "NONE"
        ds.GeometryOfKSpaceTraversal, ds.RectilinearPhaseEncodeReordering = "RECTILINEAR", "LINEAR"
        ds.SegmentedKSpaceTraversal, ds.CoverageOfKSpace, ds.NumberOfKSpaceTrajectories = "SINGLE", "FULL", 1
        shared.MRTimingAndRelatedParametersSequence = item(
            RepetitionTime=10.0, FlipAngle=10.0, EchoTrainLength=1, RFEchoTrainLength=0, GradientEchoTrainLength=1,
            SpecificAbsorptionRateSequence=item(
                SpecificAbsorptionRateDefinition="IEC_WHOLE_BODY", SpecificAbsorptionRateValue=0.1
            ),
            GradientOutputType="DB_DT", GradientOutput=1.0, OperatingModeSequence=item(
                OperatingModeType="STATIC FIELD", OperatingMode="IEC_NORMAL"
            ),
        )  # fmt: skip
        shared.MREchoSequence = item(EffectiveEchoTime=5.0)
        shared.MRFOVGeometrySequence = item(
            InPlanePhaseEncodingDirection="ROW", MRAcquisitionFrequencyEncodingSteps=16,
            MRAcquisitionPhaseEncodingStepsInPlane=16, MRAcquisitionPhaseEncodingStepsOutOfPlane=16,
            PercentSampling=100.0, PercentPhaseFieldOfView=100.0,
        )  # fmt: skip
        shared.MRModifierSequence = item(
            InversionRecovery="NO", FlowCompensation="NONE", Spoiling="NONE", T2Preparation="NO",
            SpectrallySelectedExcitation="NONE", SpatialPresaturation="NONE", PartialFourier="NO",
            ParallelAcquisition="NO",
        )  # fmt: skip
        shared.MRImagingModifierSequence = item(
            MagnetizationTransfer="NONE", BloodSignalNulling="NO", Tagging="NONE", TransmitterFrequency=123.0,
            PixelBandwidth=100.0,
        )  # fmt: skip
        shared.MRReceiveCoilSequence = item(
            ReceiveCoilName="BODY", ReceiveCoilManufacturerName="", ReceiveCoilType="BODY", QuadratureReceiveCoil="YES"
        )
        shared.MRTransmitCoilSequence = item(
            TransmitCoilName="BODY", TransmitCoilManufacturerName="", TransmitCoilType="BODY"
        )
        shared.MRAveragesSequence = item(NumberOfAverages=1.0)

    @staticmethod
    def PT(ds: Dataset, shared: Dataset) -> None:
        kind = {"VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE"}
        shared.PETFrameTypeSequence = item(FrameType=list(ds.ImageType), PixelPresentation="MONOCHROME", **kind)
        shared.RadiopharmaceuticalUsageSequence = item(RadiopharmaceuticalAgentNumber=1)
        shared.PETFrameAcquisitionSequence = item(
            TableHeight=0.0, GantryDetectorTilt=0.0, GantryDetectorSlew=0.0, DataCollectionDiameter=600.0
        )
        shared.PETDetectorMotionDetailsSequence = item(RotationDirection="CW", RevolutionTime=1.0)
        shared.PETPositionSequence = item(
            DataCollectionCenterPatient=[0.0] * 3, ReconstructionTargetCenterPatient=[0.0] * 3, TablePosition=0.0
        )
        shared.PETFrameCorrectionFactorsSequence = item(
            PrimaryPromptsCountsAccumulated=1, SliceSensitivityFactor=1.0, ScatterFractionFactor=0.0, DeadTimeFactor=1.0
        )
        shared.PETReconstructionSequence = item(
            ReconstructionType="2D", ReconstructionAlgorithm="FILTER_BACK_PROJ", IterativeReconstructionMethod="NO",
            ReconstructionDiameter=500.0,
        )  # fmt: skip
        ds.RadiopharmaceuticalInformationSequence = item(
            RadiopharmaceuticalAgentNumber=1, RadionuclideCodeSequence=code("77004003", "SCT", "^18^Fluorine"),
            RadiopharmaceuticalCodeSequence=code("35321007", "SCT", "Fluorodeoxyglucose F^18^"),
            RadiopharmaceuticalRoute="IV", RadiopharmaceuticalStartDateTime="20200102090000",
            AdministrationRouteCodeSequence=code("47625008", "SCT", "Intravenous route"),
            RadionuclideTotalDose="300000000", RadionuclideHalfLife="6586", RadionuclidePositronFraction="0.97",
            RadiopharmaceuticalStopDateTime="", RadiopharmaceuticalVolume="1",
        )  # fmt: skip
        ds.CollimatorType, ds.TypeOfDetectorMotion, ds.TableMotion = "NONE", "NONE", "STATIC"
        ds.AcquisitionStartCondition, ds.AcquisitionTerminationCondition = "MANUAL", "TIME"
        ds.TerminationTimeThreshold = 60.0
        ds.TransverseDetectorSeparation, ds.AxialDetectorDimension, ds.CoincidenceWindowWidth = 4.0, 4.0, 4.0
        ds.EnergyWindowRangeSequence = item(EnergyWindowLowerLimit="400", EnergyWindowUpperLimit="600")
        ds.TimeOfFlightInformationUsed, ds.CountsSource = "FALSE", "EMISSION"
        ds.ViewCodeSequence = code("24422004", "SCT", "Axial")
        ds.SliceProgressionDirection = "FEET_TO_HEAD"
        for correction in (
            "DecayCorrected", "AttenuationCorrected", "ScatterCorrected", "DeadTimeCorrected", "GantryMotionCorrected",
            "PatientMotionCorrected", "CountLossNormalizationCorrected", "RandomsCorrected", "SensitivityCalibrated",
            "NonUniformRadialSamplingCorrected", "DetectorNormalizationCorrection",
        ):  # fmt: skip
            setattr(ds, correction, "NO")


def nm(series: Series, planes: Sequence[Plane]) -> Dataset:
    """A reconstructed SPECT: the first frame's place and the distance of the others, negative where they run backwards."""
    ds = common(series, NUCLEAR, "nm", 0)
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = series.uid("frame of reference"), ""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    ds.NumberOfFrames, ds.NumberOfSlices = len(planes), len(planes)
    ds.FrameIncrementPointer = Tag("SliceVector")
    ds.SliceVector = list(range(1, len(planes) + 1)) if len(planes) > 1 else 1
    ds.PixelSpacing, ds.SliceThickness = [text(series.spacing[1]), text(series.spacing[0])], text(series.spacing[2])
    step = float((planes[-1].position - planes[0].position) @ np.cross(*series.orientation)) if len(planes) > 1 else 1.0
    ds.SpacingBetweenSlices = text(step / max(len(planes) - 1, 1))
    ds.DetectorInformationSequence = item(
        CollimatorType="PARA",
        FieldOfViewShape="RECTANGLE",
        ImagePositionPatient=[text(v) for v in planes[0].position],
        ImageOrientationPatient=[text(v) for axis in series.orientation for v in axis],
    )
    ds.NumberOfEnergyWindows = ds.NumberOfDetectors = ds.NumberOfRotations = 1
    ds.CountsAccumulated = ""
    ds.RotationInformationSequence = []
    ds.EnergyWindowInformationSequence, ds.RadiopharmaceuticalInformationSequence = [], []
    ds.PatientOrientationCodeSequence, ds.PatientGantryRelationshipCodeSequence = [], []
    ds.RescaleSlope, ds.RescaleIntercept = text(planes[0].slope), text(planes[0].intercept)
    return ds


def cine(series: Series, planes: Sequence[Plane]) -> Dataset:
    """An ultrasound clip: frames in time, nowhere in the patient."""
    ds = common(series, CINE, "cine", 0)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "", "0001"]
    ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = len(planes), "40", Tag("FrameTime")
    ds.PatientOrientation, ds.LossyImageCompression = [], "00"
    ds.UltrasoundColorDataPresent = int(ds.SamplesPerPixel == 3)
    return ds


def mosaic(series: Series, planes: Sequence[Plane], number: int) -> tuple[Dataset, Array]:
    """A Siemens mosaic: tiles row by row in one image, whose position is that of the corner of the whole sheet.

    The private CSA header says how many tiles there are and along which normal they follow each other.
    """
    from tests.dicom_factory import OF_MODALITY, STORAGE

    ds = common(series, STORAGE["MR"], f"mosaic {number}", number)
    in_patient(ds, series)
    for keyword, value in OF_MODALITY["MR"].items():
        setattr(ds, keyword, value)
    side = int(np.ceil(np.sqrt(len(planes))))
    rows, columns = planes[0].pixels.shape
    sheet = np.zeros((side * rows, side * columns), planes[0].pixels.dtype)
    for n, plane in enumerate(planes):
        top, left = n // side * rows, n % side * columns
        sheet[top : top + rows, left : left + columns] = plane.pixels
    right, down = series.orientation
    corner = (
        planes[0].position
        - right * series.spacing[0] * columns * (side - 1) / 2
        - down * series.spacing[1] * rows * (side - 1) / 2
    )
    normal = np.cross(right, down)
    if len(planes) > 1 and float((planes[1].position - planes[0].position) @ normal) < 0:
        normal = -normal
    ds.ImageType, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "SIEMENS"
    ds.MRAcquisitionType, ds.ScanningSequence, ds.AcquisitionNumber = "2D", "EP", number + 1
    ds.AcquisitionTime = ds.ContentTime = f"1000{2 * number:02d}"
    ds.PixelSpacing = [text(series.spacing[1]), text(series.spacing[0])]
    ds.SliceThickness = ds.SpacingBetweenSlices = text(series.spacing[2])
    ds.ImageOrientationPatient = [text(v) for axis in series.orientation for v in axis]
    ds.ImagePositionPatient = [text(v) for v in corner]
    if (planes[0].slope, planes[0].intercept) != (1, 0):
        ds.RescaleSlope, ds.RescaleIntercept = text(planes[0].slope), text(planes[0].intercept)
    ds.add_new((0x0029, 0x0010), "LO", "SIEMENS CSA HEADER")
    ds.add_new((0x0029, 0x1008), "CS", "IMAGE NUM 4")
    ds.add_new(
        (0x0029, 0x1010),
        "OB",
        csa_header({"NumberOfImagesInMosaic": ("US", [len(planes)]), "SliceNormalVector": ("FD", list(normal))}),
    )
    return ds, sheet[None]


def csa_header(fields: dict[str, tuple[str, list[Any]]]) -> bytes:
    """Siemens' private header, second version: name → (VR, values), each value written as text.

    Layout as nibabel documents it (nibabel.org, "Siemens format DICOM with CSA header"): ``SV10``, a magic word, the number of
    fields, 77; then a field each: name[64], vm, vr[4], syngo type, items, 77; then an item each: length four times, text.
    """
    out = b"SV10\x04\x03\x02\x01" + struct.pack("<II", len(fields), 77)
    for name, (vr, values) in fields.items():
        out += struct.pack("<64si4siii", name.encode(), len(values), vr.encode(), 0, 6, 77)
        for n in range(6):
            raw = f"{values[n]:.8f}".encode() + b"\0" if n < len(values) and vr == "FD" else b""
            raw = f"{values[n]}".encode() + b"\0" if n < len(values) and vr != "FD" else raw
            out += struct.pack("<4i", len(raw), len(raw), 77, len(raw)) + raw + b"\0" * (-len(raw) % 4)
    return out + b"\0" * 4
