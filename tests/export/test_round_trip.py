"""What is written lies on the source, voxel by voxel: read back by medseg, and by hand from the positions in the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, DicomSource, dicom_source
from medseg.export.rtstruct import write_rtstruct
from medseg.export.seg import write_segmentation
from medseg.scans import read_geometry, read_mask
from medseg.scans.find import find
from medseg.structures import LabelTable, Prediction, Source
from medseg.volume import Geometry
from tests.dicom_factory import affine_of, native_positions, write_series

SHAPE = (19, 14, 9)
LABELS = LabelTable({1: "liver", 2: "kidney", 5: "tumour"})
ALGORITHM = Algorithm("round trip", "1")
ANATOMY = AnatomyTable.load(None)
STRIPPED = ("FrameOfReferenceUID", "StudyInstanceUID", "PatientName", "PatientID", "StudyDate", "Manufacturer")
EVENED = {"uneven": "resample"}


@dataclass(frozen=True)
class State:
    """A source: how the factory writes it, how it is read, and whether reading has to mend it."""

    plane: str = "axial"
    patient: str = "HFS"
    against: bool = False
    volumes: int = 1
    shape: tuple[int, int, int] = SHAPE
    options: Mapping[str, Any] = field(default_factory=dict)
    mended: bool = False
    made: Mapping[str, Any] = field(default_factory=dict)


STATES = {
    "axial": State(),
    "coronal": State("coronal"),
    "sagittal": State("sagittal"),
    "oblique": State("oblique"),
    "feet first": State("axial", "FFS"),
    "feet first prone": State("oblique", "FFP"),
    "decubitus left": State("axial", "HFDL"),
    "decubitus right, feet first": State("coronal", "FFDR"),
    "reversed numbers": State("oblique", made={"order": "reversed"}),
    "shuffled numbers": State("sagittal", made={"order": "shuffled"}),
    "stacked against row × column": State("oblique", against=True),
    "MR": State("coronal", made={"modality": "MR"}),
    "PET": State(made={"modality": "PT"}),
    "enhanced CT": State("oblique", made={"layout": "enhanced"}),
    "enhanced MR, reversed": State("sagittal", made={"layout": "enhanced", "modality": "MR", "order": "reversed"}),
    "second of three time points": State("oblique", volumes=3, made={"layout": "enhanced", "modality": "MR"}),
    "mosaic": State("oblique", made={"layout": "mosaic", "modality": "MR", "order": "reversed"}),
    "SPECT": State("coronal", made={"layout": "enhanced", "modality": "NM"}),
    "anonymised": State("oblique", "FFS", made={"strip": STRIPPED}),
    "one slice": State("oblique", shape=(19, 14, 1)),
    "tilted": State(mended=True, made={"tilt_degrees": 17.0}),
    "tilted the other way": State("oblique", "FFS", mended=True, made={"tilt_degrees": -9.0}),
    "missing slices": State("sagittal", options=EVENED, mended=True, made={"drop": (3, 4)}),
    "uneven": State(options=EVENED, mended=True, made={"depths_mm": (0, 2, 4, 6.7, 8.7, 10.7, 14, 16, 18)}),
    "uneven, enhanced": State(
        "oblique",
        options=EVENED,
        mended=True,
        made={"depths_mm": (0, 2, 4, 6.7, 8.7, 11, 13, 15, 17), "layout": "enhanced"},
    ),
}


@dataclass(frozen=True)
class Written:
    """A source on the disk, a mask on its grid, and what an export needs of it."""

    prediction: Prediction
    source: DicomSource
    state: State
    affine: np.ndarray
    scanned: Mapping[str, pydicom.Dataset]


def blobs(shape: tuple[int, ...]) -> np.ndarray:
    """Labels with holes, several components, single voxels, and voxels at every face; nothing is symmetric."""
    noise = np.random.default_rng(3).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, [1.2, 1.2, 0.5])
    mask = np.zeros(shape, np.uint8)
    mask[smooth > 0.12] = 1
    mask[smooth < -0.2] = 2
    mask[3, 2, shape[2] // 2] = mask[0, 0, 0] = mask[-1, -1, -1] = 5
    mask[8:13, 5:10, shape[2] // 2] = 1
    mask[10, 7, shape[2] // 2] = 0
    return mask


@pytest.fixture(scope="module", params=STATES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    state, folder = STATES[request.param], tmp_path_factory.mktemp("scan")
    affine = affine_of(state.shape, state.plane, state.patient)
    if state.against:
        affine[:3, 3] += affine[:3, 2] * (state.shape[2] - 1)
        affine[:3, 2] *= -1
    values = np.arange(np.prod(state.shape)).reshape(state.shape)
    volume = values if state.volumes == 1 else np.stack([values] * state.volumes)
    write_series(folder, volume, affine, patient_position=state.patient, **state.made)
    found = sorted(find(folder).sources, key=lambda entry: entry.source.key)
    assert len(found) == state.volumes
    source = found[state.volumes // 2].source
    geometry = read_geometry(source, state.options)
    prediction = Prediction("case", geometry, LABELS, mask=blobs(geometry.shape))
    scanned = {str(header.SOPInstanceUID): header for header in map(pydicom.dcmread, source.distinct_files)}
    return Written(prediction, dicom_source(source, state.options), state, affine, scanned)


def test_objects_are_derived_from_the_planes_that_were_scanned(written: Written) -> None:
    """What all else here is compared with is where the factory put it."""
    made, affine = written.state.made, written.affine
    first = native_positions(affine, written.state.shape[2], made.get("tilt_degrees", 0.0), made.get("depths_mm"))
    expected = np.delete(first, made.get("drop", ()), axis=0)
    expected = expected[::-1] if written.state.against else expected
    np.testing.assert_allclose(written.source.grid.planes[:, :3, 3], expected, atol=1e-3)
    for plane in written.source.grid.planes:
        np.testing.assert_allclose(plane[:3, :2], affine[:3, :2], atol=1e-6)


def _seg(kind: Any) -> Callable[[Written, Path], None]:
    def write(written: Written, path: Path) -> None:
        write_segmentation(written.prediction, written.source, path, kind=kind, anatomy=ANATOMY, algorithm=ALGORITHM)

    return write


def _contours(written: Written, path: Path) -> None:
    write_rtstruct(written.prediction, written.source, path, anatomy=ANATOMY, algorithm=ALGORITHM)


WRITERS: dict[str, tuple[Any, Callable[[Written, Path], None]]] = {
    "binary": ("seg", _seg("binary")),
    "labelmap": ("seg", _seg("labelmap")),
    "contours": ("rtstruct", _contours),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_lies_on_the_source(written: Written, kind: str, tmp_path: Path) -> None:
    source_kind, write = WRITERS[kind]
    path, mask = tmp_path / "object.dcm", written.prediction.mask
    assert mask is not None
    write(written, path)
    read, geometry = read_mask(Source(source_kind, (path,)), written.prediction.geometry, LABELS)
    assert geometry.matches(written.prediction.geometry, 1e-9)
    if not written.state.mended:
        np.testing.assert_array_equal(read, mask)
        return
    # Where the volume was mended, the object lies on the slices as they were scanned, and there nothing may differ. On the
    # mended grid every voxel between slices that lie as they should is the same; of gaps the object knows nothing.
    native = written.source.mask_planes(mask)
    if kind != "contours":
        np.testing.assert_array_equal(written.source.mask_planes(read), native)
    for plane, labels in zip(written.source.grid.planes, native, strict=True):
        alone = Geometry((*written.source.grid.shape[:2], 1), plane)
        one, _ = read_mask(Source(source_kind, (path,)), alone, LABELS)
        np.testing.assert_array_equal(one[..., 0].T, labels)
    if "tilt_degrees" in written.state.made:
        ones = np.ones((1, *written.source.grid.shape), np.float32)
        reached = written.source.grid.apply(ones, 0.0)[0] > 0.99
        assert reached.mean() > 0.6
        np.testing.assert_array_equal(read[reached], mask[reached])


def places(geometry: Geometry, mask: np.ndarray, value: int) -> np.ndarray:
    """``(N, 3)`` RAS mm of the voxels of a label, sorted and rounded to a hundredth."""
    return ordered(geometry.to_world(np.argwhere(mask == value)))


def ordered(points: Any) -> np.ndarray:
    rounded = np.round(np.asarray(points).reshape(-1, 3), 2) + 0.0
    return rounded[np.lexsort(rounded.T)]


def native_places(written: Written, value: int) -> np.ndarray:
    """The same of the pixels of the native planes."""
    mask = written.source.mask_planes(written.prediction.mask)  # type: ignore[arg-type]
    points = [
        plane @ [i, j, 0, 1] for plane, labels in zip(written.source.grid.planes, mask, strict=True)
        for j, i in np.argwhere(labels == value)
    ]  # fmt: skip
    return ordered([point[:3] for point in points])


def frames_by_hand(dataset: pydicom.Dataset) -> dict[int, list[np.ndarray]]:
    """Segment number → RAS mm of its pixels, from the functional groups alone (PS3.3 C.7.6.2.1.1)."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    points: dict[int, list[np.ndarray]] = {}
    for frame, groups in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        spacing = (groups if "PixelMeasuresSequence" in groups else shared).PixelMeasuresSequence[0].PixelSpacing
        orientation = (groups if "PlaneOrientationSequence" in groups else shared).PlaneOrientationSequence[0]
        row, column = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for r, c in np.argwhere(frame):
            place = (origin + c * float(spacing[1]) * row + r * float(spacing[0]) * column) * [-1, -1, 1]
            binary = dataset.SegmentationType == "BINARY"
            number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber if binary else frame[r, c]
            points.setdefault(int(number), []).append(place)
    return points


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_the_pixels_of_a_segmentation_lie_where_its_positions_say(written: Written, kind: str, tmp_path: Path) -> None:
    WRITERS[kind][1](written, tmp_path / "seg.dcm")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    numbers = {str(segment.SegmentLabel): int(segment.SegmentNumber) for segment in dataset.SegmentSequence}
    points = frames_by_hand(dataset)
    for value, name in LABELS.names.items():
        expected = native_places(written, value)
        assert len(expected) > 0
        np.testing.assert_allclose(ordered(points[numbers[name]]), expected, atol=0.011)
        if not written.state.mended:
            np.testing.assert_allclose(
                expected, places(written.prediction.geometry, written.prediction.mask, value), atol=0.011
            )  # type: ignore[arg-type]
    assert dataset.FrameOfReferenceUID == written.source.datasets[0].FrameOfReferenceUID


def referred_to(written: Written, image: pydicom.Dataset) -> list[np.ndarray]:
    """RAS mm of the first pixel of the slice that an item refers to, from the file that it names; all tiles of a mosaic."""
    header, number = written.scanned[str(image.ReferencedSOPInstanceUID)], image.get("ReferencedFrameNumber")
    if "PerFrameFunctionalGroupsSequence" in header:
        place = header.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
    elif header.Modality == "NM":
        detector = header.DetectorInformationSequence[0]
        row, column = np.array(detector.ImageOrientationPatient, float).reshape(2, 3)
        away = (number - 1) * float(header.SpacingBetweenSlices)
        place = np.array(detector.ImagePositionPatient, float) + away * np.cross(row, column)
    else:
        assert number is None
        if "MOSAIC" in header.ImageType:
            return list(written.source.grid.planes[:, :3, 3])
        place = header.ImagePositionPatient
    return [np.array(place, float) * [-1, -1, 1]]


def test_every_frame_refers_to_the_slice_that_it_lies_on(written: Written, tmp_path: Path) -> None:
    WRITERS["binary"][1](written, tmp_path / "seg.dcm")
    for groups in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        places = referred_to(written, groups.DerivationImageSequence[0].SourceImageSequence[0])
        origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1]
        assert min(np.abs(place - origin).max() for place in places) < 1e-3


def test_every_contour_lies_in_the_slice_that_it_refers_to(written: Written, tmp_path: Path) -> None:
    WRITERS["contours"][1](written, tmp_path / "rtstruct.dcm")
    dataset = pydicom.dcmread(tmp_path / "rtstruct.dcm")
    names = {int(roi.ROINumber): str(roi.ROIName) for roi in dataset.StructureSetROISequence}
    normal = written.affine[:3, 2] / np.linalg.norm(written.affine[:3, 2])
    seen = set()
    for roi in dataset.ROIContourSequence:
        (value,) = (v for v, name in LABELS.names.items() if name == names[int(roi.ReferencedROINumber)])
        everything = []
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3) * [-1, -1, 1]
            places = referred_to(written, contour.ContourImageSequence[0])
            assert min(np.abs((points - place) @ normal).max() for place in places) < 0.01
            everything.append(points)
        reach, held = np.concatenate(everything), native_places(written, value)
        half = np.abs(written.source.grid.planes[0][:3, :2]).sum(1) / 2 + 0.02
        assert (reach.min(0) >= held.min(0) - half).all() and (reach.max(0) <= held.max(0) + half).all()
        seen.add(value)
    assert seen == set(LABELS.names)
