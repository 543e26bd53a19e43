"""A DICOM series that was written reads back: by the rules of the standard (pydicom, by hand) and by our own reader."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg import scans
from medseg.errors import MedsegError
from medseg.export.series import write_series
from medseg.scans.find import find
from medseg.volume import Geometry, Volume, reorient, reorientation_to

# Right- and left-handed ones (every turn of the axes, then a few with mirrored axes).
ORIENTATIONS = ["RAS", "LPS", "LAS", "RPI", "PSR", "ASL", "SRA", "IPL", "RSA"]


def oblique(codes: str, shape: tuple[int, int, int] = (6, 7, 5)) -> Geometry:
    """A grid turned about all axes, stored along ``codes``."""
    turn = np.linalg.qr(np.array([[1.0, 0.2, -0.1], [-0.2, 1.0, 0.15], [0.1, -0.15, 1.0]]))[0]
    turn *= np.sign(np.diag(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.713, 1.4002, 3.30517)
    affine[:3, 3] = (-101.23456789, 55.5, 1234.98765)
    geometry = Geometry(shape, affine)
    return reorientation_to(geometry, codes).apply_to_geometry(geometry)


def volume(codes: str, modality: str = "MR", scale: float = 87.3) -> Volume:
    """Noise around zero: values with fractions and signs."""
    geometry = oblique(codes)
    data = np.random.default_rng(3).normal(size=(1, *geometry.shape)) * scale
    return Volume(data.astype(np.float32), geometry, modality)


def by_hand(files: list[Path]) -> Volume:
    """The series as PS3.3 C.7.6.2.1.1 says it lies: pixel (column, row) → LPS mm, for each file as it stands."""
    planes, affines = [], []
    for path in files:
        dataset = pydicom.dcmread(path)
        row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        affine = np.eye(4)
        affine[:3, 0] = row * float(dataset.PixelSpacing[1])
        affine[:3, 1] = column * float(dataset.PixelSpacing[0])
        affine[:3, 3] = np.array(dataset.ImagePositionPatient, float)
        affines.append(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        planes.append(dataset.pixel_array.T * slope + intercept)
    affine = affines[0].copy()
    affine[:3, 2] = (affines[-1][:3, 3] - affines[0][:3, 3]) / (len(files) - 1)
    return Volume(np.stack(planes, -1)[None], Geometry((*planes[0].shape, len(files)), affine))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_geometry_and_values_are_what_the_standard_reads(codes: str, tmp_path: Path) -> None:
    written = volume(codes)
    read = by_hand(write_series(written, tmp_path / "series", seed="a"))
    assert np.allclose(read.geometry.affine, written.geometry.affine, atol=1e-6)
    step = np.ptp(written.data) / 65535
    assert np.abs(read.data - written.data).max() <= 0.51 * step


@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_our_reader_finds_every_voxel_where_it_lay(codes: str, modality: str, tmp_path: Path) -> None:
    written = volume(codes, modality)
    write_series(written, tmp_path / "series", seed="a")
    source = find(tmp_path / "series").sources[0].source
    read = scans.read_volume(source)
    assert read.modality == modality and scans.read_geometry(source).matches(read.geometry)
    expected, found = reorient(written, "RAS"), reorient(read, "RAS")
    assert found.geometry.matches(expected.geometry, tolerance=1e-4)
    assert found.geometry.spacing == pytest.approx(expected.geometry.spacing, rel=1e-6)
    assert np.abs(found.data - expected.data).max() <= 0.51 * np.ptp(written.data) / 65535 + 1e-5


@pytest.mark.parametrize("modality", ["MR", "CT", "PT"])
def test_whole_numbers_are_kept_exactly(modality: str, tmp_path: Path) -> None:
    geometry = oblique("LPS")
    low = 0 if modality == "PT" else -1024
    values = np.random.default_rng(1).integers(low, low + 60000, size=(1, *geometry.shape))
    files = write_series(Volume(values, geometry, modality), tmp_path / "series", seed="a")
    assert np.array_equal(by_hand(files).data, values)


@pytest.mark.parametrize("value", [0.0, 0.37, -1000.0])
def test_a_constant_volume_is_kept(value: float, tmp_path: Path) -> None:
    geometry = oblique("RAS")
    files = write_series(Volume(np.full((1, *geometry.shape), value), geometry, "CT"), tmp_path / "series", seed="a")
    assert by_hand(files).data == pytest.approx(value, abs=1e-9)


def test_pet_has_no_intercept_as_the_standard_wants(tmp_path: Path) -> None:
    positive = volume("LPS", "PT")
    files = write_series(Volume(np.abs(positive.data) + 5.5, positive.geometry, "PT"), tmp_path / "series", seed="a")
    datasets = [pydicom.dcmread(path) for path in files]
    assert {float(dataset.RescaleIntercept) for dataset in datasets} == {0.0}
    assert [dataset.ImageIndex for dataset in datasets] == [1, 2, 3, 4, 5]
    assert by_hand(files).data == pytest.approx(np.abs(positive.data) + 5.5, abs=0.51 * 300 / 65535)


def test_the_files_are_one_series_of_distinct_instances_made_from_the_seed(tmp_path: Path) -> None:
    runs = {
        name: [pydicom.dcmread(path) for path in write_series(volume("LPS"), tmp_path / name, seed=seed)]
        for name, seed in (("one", "a"), ("same", "a"), ("other", "b"))
    }
    one, same, other = runs["one"], runs["same"], runs["other"]
    for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({dataset[keyword].value for dataset in one}) == 1
        assert one[0][keyword].value == same[0][keyword].value != other[0][keyword].value
    assert len({dataset.SOPInstanceUID for dataset in itertools.chain(one, other)}) == 10
    assert [d.SOPInstanceUID for d in one] == [d.SOPInstanceUID for d in same]
    assert all(d.file_meta.MediaStorageSOPInstanceUID == d.SOPInstanceUID for d in one)
    assert all(bytes(a.PixelData) == bytes(b.PixelData) for a, b in zip(one, same, strict=True))
    for name in runs:
        assert len(find(tmp_path / name).sources) == 1


def test_decimal_strings_fit_into_sixteen_characters(tmp_path: Path) -> None:
    for path in write_series(volume("PSR", scale=1.23456789e-7), tmp_path / "series", seed="a"):
        for element in pydicom.dcmread(path):
            if element.VR == "DS":
                values = element.value if element.VM > 1 else [element.value]
                assert all(len(str(value)) <= 16 for value in values)


def test_what_a_series_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    sound = volume("RAS")
    colour = Volume(np.repeat(sound.data, 3, axis=0), sound.geometry, "MR")
    unknown = Volume(sound.data, sound.geometry, "US")
    picture = Volume(sound.data[..., 0], Geometry.from_spacing(sound.geometry.shape[:2], (1, 1)), "MR")
    broken = Volume(np.where(sound.data > 200, np.nan, sound.data * np.inf), sound.geometry, "MR")
    for refused, words in ((colour, "3 channels"), (unknown, "'US'"), (picture, "2D"), (broken, "NaN or infinite")):
        with pytest.raises(MedsegError, match=words):
            write_series(refused, tmp_path / "series", seed="a")
    assert not (tmp_path / "series").exists()
