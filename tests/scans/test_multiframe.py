from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MPEG4HP41

from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.scans.headers import read_headers
from medseg.scans.multiframe import FunctionalGroups
from medseg.scans.reading import ScanError
from tests.dicom_factory import affine_of, write_series

SHAPE = (6, 5, 4)
VALUES = np.arange(120.0).reshape(SHAPE)


def written(folder: Path, **kind: Any) -> Path:
    return write_series(folder, VALUES, affine_of(SHAPE, kind.pop("plane", "axial")), **kind)[0]


def changed(path: Path, **values: Any) -> Path:
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def refusal(path: Path) -> ScanError:
    with pytest.raises(ScanError) as caught:
        read_headers(path)
    assert "ecret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
@pytest.mark.parametrize("order", ["ascending", "shuffled"])
def test_every_frame_lies_where_its_functional_groups_say(tmp_path: Path, modality: str, order: str) -> None:
    affine = affine_of(SHAPE, "oblique")
    path = written(tmp_path, plane="oblique", modality=modality, layout="enhanced", order=order)
    slices = read_headers(path)
    assert [entry.frame for entry in slices] == [0, 1, 2, 3]
    volume = read_volume(find(path).sources[0].source)
    np.testing.assert_allclose(volume.geometry.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(volume.data[0], VALUES)


def test_a_frames_own_group_goes_before_the_shared_one() -> None:
    dataset = Dataset()
    shared, own, other = Dataset(), Dataset(), Dataset()
    for item, spacing in ((shared, [1, 1]), (own, [2, 2])):
        item.PixelMeasuresSequence = [Dataset()]
        item.PixelMeasuresSequence[0].PixelSpacing = spacing
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [own, other]
    groups = FunctionalGroups(dataset)
    assert groups.item(0, "PixelMeasuresSequence").PixelSpacing == [2, 2]
    assert groups.item(1, "PixelMeasuresSequence").PixelSpacing == [1, 1]
    assert groups.item(1, "PlanePositionSequence") is None


def test_slope_and_intercept_are_each_frames_own(tmp_path: Path) -> None:
    values = VALUES * 2  # whole multiples of every slope
    path = write_series(
        tmp_path,
        values,
        affine_of(SHAPE),
        layout="enhanced",
        modality="PT",
        slope=[0.5, 1, 2, 0.25],
        intercept=[0, 2, 4, 6],
    )[0]
    np.testing.assert_allclose(read_volume(find(path).sources[0].source).data[0], values)


def test_time_points_of_one_file_are_told_apart(tmp_path: Path) -> None:
    volumes = np.stack([VALUES, VALUES + 1000, VALUES + 2000])
    path = write_series(tmp_path, volumes, affine_of(SHAPE), layout="enhanced", modality="MR")[0]
    assert {entry.marks["TemporalPositionIdentifier"] for entry in read_headers(path)} == {"1", "2", "3"}
    found = find(path).sources
    assert len(found) == 3
    read = sorted((read_volume(entry.source).data[0] for entry in found), key=lambda data: data.min())
    np.testing.assert_array_equal(np.stack(read), volumes)


def test_dimensions_that_are_no_place_tell_frames_apart(tmp_path: Path) -> None:
    path = written(tmp_path, layout="enhanced", modality="MR")
    dataset = pydicom.dcmread(path)
    pointer = Dataset()
    pointer.DimensionIndexPointer = 0x00189087  # DiffusionBValue
    dataset.DimensionIndexSequence = [*dataset.DimensionIndexSequence[1:], pointer]  # in-stack position, b-value
    for n, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item.FrameContentSequence[0].DimensionIndexValues = [n // 2 + 1, n % 2 + 7]
    dataset.save_as(path)
    assert [entry.marks["DimensionIndexValues"] for entry in read_headers(path)] == ["7", "8", "7", "8"]


@pytest.mark.parametrize("order", ["ascending", "reversed"])
def test_nuclear_slices_lie_one_behind_the_other_from_the_first_on(tmp_path: Path, order: str) -> None:
    path = written(tmp_path, modality="NM", layout="enhanced", plane="coronal", order=order)
    assert (float(pydicom.dcmread(path).SpacingBetweenSlices) > 0) == (order == "ascending")
    volume = read_volume(find(path).sources[0].source)
    np.testing.assert_allclose(volume.geometry.affine, affine_of(SHAPE, "coronal"), atol=1e-6)
    np.testing.assert_array_equal(volume.data[0], VALUES)


def test_nuclear_slices_stand_in_the_order_of_their_vector(tmp_path: Path) -> None:
    path = changed(written(tmp_path, modality="NM", layout="enhanced"), SliceVector=[3, 1, 2, 4])
    first = affine_of(SHAPE)[2, 3]
    depths = [entry.position[2] - first for entry in read_headers(path)]
    np.testing.assert_allclose(depths, [5, 0, 2.5, 7.5], atol=1e-6)


def test_gates_of_a_nuclear_volume_are_told_apart(tmp_path: Path) -> None:
    path = changed(
        written(tmp_path, modality="NM", layout="enhanced"),
        SliceVector=[1, 2, 1, 2],
        TimeSlotVector=[1, 1, 2, 2],
        ImageType=["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"],
    )
    found = find(path).sources
    assert len(found) == 2
    assert {entry.source.frames for entry in found} == {(0, 1), (2, 3)}


def test_planar_nuclear_frames_are_pictures(tmp_path: Path) -> None:
    path = written(tmp_path, modality="NM", layout="enhanced")
    dataset = pydicom.dcmread(path)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "STATIC", "EMISSION"]
    del dataset.SliceVector
    dataset.save_as(path)
    assert [entry.is_picture for entry in read_headers(path)] == [True] * 4


def test_a_nuclear_volume_without_place_or_spacing_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, modality="NM", layout="enhanced")
    dataset = pydicom.dcmread(path)
    del dataset.SpacingBetweenSlices, dataset.SliceThickness
    dataset.save_as(path)
    assert refusal(path).kind == "no_spacing"
    del dataset.DetectorInformationSequence[0].ImagePositionPatient
    dataset.save_as(path)
    assert refusal(path).kind == "no_position"


def test_more_frames_than_the_file_can_hold_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, modality="US", layout="cine", bits=8, signed=False)
    error = refusal(changed(path, NumberOfFrames=2_000_000_000))
    assert error.kind == "truncated"
    assert "2,000,000,000 frames" in str(error)


def test_frames_that_nothing_describes_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, layout="enhanced")
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:2]
    dataset.save_as(path)
    assert "4 frames describes 2" in str(refusal(path))


def test_a_video_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, modality="US", layout="cine", bits=8, signed=False, transfer_syntax="JPEG-LS")
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = MPEG4HP41
    dataset.save_as(path)
    error = refusal(path)
    assert error.kind == "unsupported"
    assert "MPEG-4" in str(error)


def test_a_place_that_only_the_first_frame_may_have_is_dropped(tmp_path: Path) -> None:
    path = written(tmp_path, modality="US", layout="cine", bits=8, signed=False)
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    frames = read_headers(changed(path, FrameIncrementPointer=0x00182005, **place))  # SliceLocationVector
    assert {entry.position for entry in frames} == {None}
    over_time = read_headers(changed(path, FrameIncrementPointer=0x00181063))  # FrameTime
    assert {entry.position for entry in over_time} == {(1.0, 2.0, 3.0)}
    assert [entry.marks["TemporalPositionIdentifier"] for entry in over_time] == ["1", "2", "3", "4"]
