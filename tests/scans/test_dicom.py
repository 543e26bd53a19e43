from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.scans import dicom, encapsulated, read_geometry, read_volume
from medseg.scans.find import Found, find
from medseg.scans.reading import ScanError
from medseg.structures import Source
from medseg.volume import Geometry, Volume, reorient
from tests.dicom_factory import affine_of
from tests.dicom_factory import write_series as write_synthetic

Series = Callable[..., list[Path]]
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)


def only(found: Found) -> Source:
    assert len(found.sources) == 1, found
    return found.sources[0].source


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("back_to_front", [False, True])
def test_every_voxel_lies_where_the_header_says(
    tmp_path: Path, write_series: Series, ramp: np.ndarray, orientation: tuple[float, ...], back_to_front: bool
) -> None:
    spacing, origin = (0.7, 1.3, 2.5), np.array([-10.0, 4.0, 33.0])
    along = np.cross(orientation[:3], orientation[3:]) * spacing[2] * (-1 if back_to_front else 1)
    write_series(tmp_path, ramp, orientation=orientation, origin=origin, spacing=spacing, step=along)
    volume = read_volume(only(find(tmp_path)))
    assert volume.geometry.shape == (4, 5, 3)
    assert volume.geometry.spacing == pytest.approx(spacing)
    assert np.linalg.det(volume.geometry.affine) > 0  # row × column is the third axis, and LPS → RAS+ is a rotation
    for row, column, number in ((0, 0, 0), (4, 3, 2), (1, 2, 1)):
        # DICOM PS3.3 C.7.6.2.1.1: position + column index × row direction × column spacing + row index × …
        lps = (
            origin
            + number * along
            + column * spacing[0] * np.array(orientation[:3])
            + row * spacing[1] * np.array(orientation[3:])
        )
        i, j, k = np.rint(volume.geometry.to_index(lps * [-1, -1, 1])).astype(int)
        assert volume.data[0, i, j, k] == ramp[row, column, number]
    assert read_geometry(only(find(tmp_path))).matches(volume.geometry, 1e-9)


def test_slices_ascend_along_row_cross_column_whatever_their_numbers(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    def shuffle(ds: Dataset, k: int) -> None:
        ds.InstanceNumber = (7, 3, 9)[k]

    write_series(tmp_path, ramp, step=(0, 0, -2.0), spacing=(1, 1, 2), change=shuffle)
    volume = read_volume(only(find(tmp_path)))
    assert volume.geometry.affine[2, 2] > 0
    np.testing.assert_array_equal(volume.data[0], ramp.transpose(1, 0, 2)[..., ::-1])


def test_slope_and_intercept_are_each_slices_own(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def rescale(ds: Dataset, k: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = str(1.5 + k), str(-1024 * k)

    write_series(tmp_path, ramp, change=rescale, modality="PT")
    volume = read_volume(only(find(tmp_path)))
    assert volume.modality == "PT"
    assert volume.data.dtype == np.float32
    for k in range(3):
        np.testing.assert_allclose(volume.data[0, :, :, k], ramp[:, :, k].T * (1.5 + k) - 1024 * k)


def expect(tmp_path: Path, kind: str, *words: str) -> None:
    with pytest.raises(ScanError) as caught:
        read_volume(only(find(tmp_path)))
    assert caught.value.kind == kind
    for word in words:
        assert word in str(caught.value)
    assert "ecret" not in str(caught.value)
    if kind != "truncated":
        with pytest.raises(ScanError) as again:
            read_geometry(only(find(tmp_path)))
        assert again.value.kind == kind


def test_a_missing_slice_is_named_in_mm(tmp_path: Path, write_series: Series) -> None:
    paths = write_series(tmp_path, np.zeros((4, 4, 6), np.int16), spacing=(1, 1, 2.5))
    paths[3].unlink()
    expect(tmp_path, "missing_slices", "1 slice(s) missing", "2.5 mm apart", "5 mm between IM0002 and IM0004")


def test_uneven_spacing_is_named_in_mm(tmp_path: Path, write_series: Series) -> None:
    def move(ds: Dataset, k: int) -> None:
        ds.ImagePositionPatient[2] += 0.7 * (k >= 3)

    write_series(tmp_path, np.zeros((4, 4, 6), np.int16), spacing=(1, 1, 2), change=move)
    expect(tmp_path, "uneven_slices", "uneven spacing", "2 to 2.7 mm", "2.7 mm between IM0002 and IM0003")


def test_positions_with_two_decimals_are_even(tmp_path: Path, write_series: Series) -> None:
    def rounded(ds: Dataset, k: int) -> None:
        ds.ImagePositionPatient[2] = round(k * 0.625, 2)

    write_series(tmp_path, np.zeros((4, 4, 9), np.int16), spacing=(1, 1, 0.625), change=rounded)
    assert read_volume(only(find(tmp_path))).geometry.spacing[2] == pytest.approx(0.625)


def test_uneven_slices_are_evened_out_on_request_and_native_planes_are_kept(
    tmp_path: Path, write_series: Series, caplog: pytest.LogCaptureFixture
) -> None:
    paths = write_series(tmp_path, np.zeros((4, 4, 6), np.int16) + 10 * np.arange(6, dtype=np.int16), spacing=(1, 1, 2))
    paths[3].unlink()
    source = only(find(tmp_path))
    volume = read_volume(source, {"uneven": "resample"})
    assert volume.geometry.matches(read_geometry(source, {"uneven": "resample"}), 1e-9)
    np.testing.assert_allclose(volume.data[0, 0, 0], [0, 10, 20, 30, 40, 50])  # linear between its neighbours
    grid = dicom.native_grid(source, {"uneven": "resample"})
    assert grid.shape == (4, 4, 5) and grid.geometry.shape == (4, 4, 6)
    assert "resampled to 6 slices" in caplog.text and "ecret" not in caplog.text


def test_a_tilted_gantry_is_sheared_back_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    planes = np.broadcast_to(np.arange(5.0), (8, 6, 5))
    write_synthetic(tmp_path, planes, affine_of((8, 6, 5), spacing=(1, 1, 2)), tilt_degrees=20)
    volume = read_volume(only(find(tmp_path)))
    assert volume.geometry.shape[0] == 8 and volume.geometry.shape[1] > 6
    middle = volume.data[0, 4]
    for k in range(5):
        assert middle[:, k].max() == pytest.approx(k, abs=1e-4)
    assert "tilted by 20.0°" in caplog.text


def test_a_series_without_position_is_refused(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def strip(ds: Dataset, k: int) -> None:
        del ds.ImagePositionPatient

    write_series(tmp_path, ramp, change=strip)
    expect(tmp_path, "no_position", "ImagePositionPatient")


def test_a_series_without_pixel_spacing_is_refused(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def strip(ds: Dataset, k: int) -> None:
        del ds.PixelSpacing

    write_series(tmp_path, ramp, change=strip)
    expect(tmp_path, "no_spacing", "PixelSpacing")


def test_truncated_pixels_are_said_in_bytes(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def cut(ds: Dataset, k: int) -> None:
        ds.PixelData = ds.PixelData[: 40 if k else 20]

    write_series(tmp_path, ramp, change=cut)
    expect(tmp_path, "truncated", "expected 40 bytes, found 20", "IM0000", "series MR_")


def test_absent_pixels_are_said(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def strip(ds: Dataset, k: int) -> None:
        del ds.PixelData

    write_series(tmp_path, ramp, change=strip)
    expect(tmp_path, "truncated", "no pixel data")


def test_mixed_sizes_in_one_source_are_refused(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    one = write_series(tmp_path / "a", ramp)
    two = write_series(tmp_path / "b", ramp[:4], origin=(0, 0, 3))
    with pytest.raises(ScanError, match=r"4×5 in IM0000, 4×4 in IM0000") as caught:
        read_volume(Source("dicom", (*one, *two)))
    assert caught.value.kind == "mixed_matrix"


def test_a_doubled_slice_is_refused(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    paths = write_series(tmp_path, ramp)
    with pytest.raises(ScanError, match="doubled"):
        read_volume(Source("dicom", (paths[0], paths[1], paths[1], paths[2])))


def test_pictures_are_2d_and_bright_where_values_are_large(tmp_path: Path, write_series: Series) -> None:
    rows = np.arange(12, dtype=np.uint16).reshape(3, 4, 1)

    def invert(ds: Dataset, k: int) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.BitsStored, ds.HighBit = 12, 11
        del ds.ImagePositionPatient, ds.ImageOrientationPatient

    write_series(tmp_path, rows, modality="CR", change=invert, spacing=(0.2, 0.3, 1))
    volume = read_volume(only(find(tmp_path)))
    assert volume.geometry.shape == (4, 3)
    assert volume.geometry.spacing == pytest.approx((0.2, 0.3))
    np.testing.assert_array_equal(volume.data[0], 4095 - rows[:, :, 0].T)


def test_a_single_slice_is_a_volume_as_thick_as_it_says(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    write_series(tmp_path, ramp[:, :, :1], spacing=(1, 1, 4))
    geometry = read_geometry(only(find(tmp_path)))
    assert geometry.shape == (4, 5, 1)
    assert geometry.spacing[2] == pytest.approx(4)


def test_monochrome1_stays_as_it_is_stored_on_request(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(4, 3, 1)
    kind = {"modality": "DX", "layout": "picture", "photometric": "MONOCHROME1", "signed": False, "bits": 12}
    write_synthetic(tmp_path, values, affine_of((4, 3, 1)), **kind)
    source = only(find(tmp_path))
    np.testing.assert_array_equal(read_volume(source, {"invert": False}).data[0], values[..., 0])
    np.testing.assert_array_equal(read_volume(source).data[0], 4095 - values[..., 0])


def test_each_frame_of_a_cine_is_a_picture_and_only_that_frame_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 40, 36, 7)).astype(float)
    kind = {"modality": "US", "layout": "cine", "photometric": "RGB", "bits": 8, "signed": False}
    write_synthetic(tmp_path, frames, affine_of((40, 36, 7)), transfer_syntax="JPEG 2000", **kind)
    decoded: list[int] = []
    decode = encapsulated.decode
    monkeypatch.setattr(
        "medseg.scans.pixels.decode", lambda data, *rest: decoded.append(len(data)) or decode(data, *rest)
    )
    sources = [entry.source for entry in find(tmp_path).sources]
    assert sorted(source.frames for source in sources) == [(n,) for n in range(7)]
    for source in sources:
        np.testing.assert_array_equal(read_volume(source).data, frames[..., source.frames[0]])
    assert len(decoded) == 7


def test_a_file_of_several_planes_must_say_which_are_meant(tmp_path: Path) -> None:
    (path,) = write_synthetic(tmp_path, np.zeros((4, 4, 3)), affine_of((4, 4, 3)), layout="enhanced")
    with pytest.raises(ScanError, match="holds 3 planes") as caught:
        read_volume(Source("dicom", (path,)))
    assert caught.value.kind == "ambiguous"
    with pytest.raises(ScanError, match="expected plane 5, found 3"):
        read_volume(Source("dicom", (path, path), frames=(2, 5)))
    assert read_volume(Source("dicom", (path,), frames=(1,))).geometry.shape == (4, 4, 1)


def test_reading_takes_the_volume_and_hardly_more(tmp_path: Path) -> None:
    shape = (128, 128, 32)
    write_synthetic(tmp_path, np.zeros(shape), affine_of(shape))
    source = only(find(tmp_path))
    read_volume(source)  # imports and caches
    tracemalloc.start()
    volume = read_volume(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.1 * volume.data.nbytes


def _reference(path: Path) -> Volume:
    image = nib.load(path)
    raw = np.asarray(image.dataobj)
    data = np.stack([raw[c] for c in "RGB"]) if raw.dtype.names else raw.astype(np.float32)[None]
    return reorient(Volume(data, Geometry(data.shape[1:4], image.affine)), "RAS")


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "series",
    [
        "ge/anatomical/001",
        "ge/anatomical/001_implicit",
        "ge/anatomical/001_single_slice",
        "generic/anatomical/001",
        "generic/anatomical/001_implicit",
        "generic/anatomical/002_non_isotropic",
        "generic/compressed/001",
        "generic/compressed_j2k/001",
        "generic/compressed_jpeg/001",
        "generic/compressed_jpegls/001",
        "generic/compressed_rle/001",
        "generic/rgb/001",
    ],
)
def test_real_series_equal_their_reference(shared_data: Path, series: str) -> None:
    folder = shared_data / "dicom" / series
    ours = reorient(read_volume(only(find(folder))), "RAS")
    theirs = _reference(folder.parent / f"{folder.name}_ground_truth.nii.gz")
    np.testing.assert_allclose(ours.geometry.affine, theirs.geometry.affine, atol=1e-3)
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-5)


@pytest.mark.shared_data
@pytest.mark.parametrize("series", ["ge/dti/001", "ge/dti/002", "ge/fmri/001", "ge/fmri/001_implicit"])
def test_real_time_series_are_split_into_their_volumes(shared_data: Path, series: str) -> None:
    folder = shared_data / "dicom" / series
    image: Any = nib.load(folder.parent / f"{folder.name}_ground_truth.nii.gz")
    found = sorted(find(folder).sources, key=lambda entry: entry.source.key)
    assert len(found) == image.shape[3]
    for number, entry in enumerate(found):
        ours = reorient(read_volume(entry.source), "RAS")
        theirs = np.asarray(image.dataobj[..., number], np.float32)[None]
        expected = reorient(Volume(theirs, Geometry(theirs.shape[1:], image.affine)), "RAS")
        np.testing.assert_allclose(ours.geometry.affine, expected.geometry.affine, atol=1e-3)
        np.testing.assert_array_equal(ours.data, expected.data)


@pytest.mark.shared_data
def test_a_real_mosaic_is_the_same_volume_in_all_transfer_syntaxes(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "transfer_syntaxes"
    reference = _reference(folder / "Ref" / "1.nii")
    found = find(folder / "In").sources
    assert len(found) == 9
    for entry in found:
        ours = reorient(read_volume(entry.source), "RAS")
        np.testing.assert_allclose(ours.geometry.affine, reference.geometry.affine, atol=1e-3)
        np.testing.assert_array_equal(ours.data, reference.data)


@pytest.mark.shared_data
def test_a_ct_and_the_nrrd_of_its_label_lie_on_each_other(shared_data: Path) -> None:
    found = {entry.source.kind: entry.source for entry in find(shared_data / "dicom" / "seg_ct3").sources}
    assert read_geometry(found["dicom"]).matches(read_geometry(found["nrrd"]))
    assert read_volume(found["dicom"]).modality == "CT"
