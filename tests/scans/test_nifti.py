from __future__ import annotations

import gzip
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.scans import read_geometry, read_mask, read_volume, value_bytes
from medseg.scans.find import find_one
from medseg.scans.reading import ScanError
from medseg.structures import Source

Write = Callable[..., Path]
AFFINE = np.array([[0, -2.0, 0, 5], [0.9, 0, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])


def nifti(path: Path, key: str = "") -> Source:
    return Source("nifti", (path,), key)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_pixels_and_affine_are_those_of_nibabel(tmp_path: Path, name: str, version: type) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(version(array, AFFINE), tmp_path / name)
    volume = read_volume(find_one(tmp_path / name).source)
    np.testing.assert_array_equal(volume.data, array[None])
    np.testing.assert_allclose(volume.geometry.affine, AFFINE)
    assert volume.data.dtype == np.float32
    assert read_geometry(nifti(tmp_path / name)).matches(volume.geometry, 1e-9)


@pytest.mark.parametrize(
    ("kind", "slope", "stored", "size"),
    [("int16", None, "int16", 2), ("uint8", None, "uint8", 1), ("int16", 2.0, "float32", 4), ("int32", None, "float32", 4),
     ("float64", None, "float32", 4)],
)  # fmt: skip
def test_short_whole_numbers_stay_as_stored_on_request(
    tmp_path: Path, kind: str, slope: float | None, stored: str, size: int
) -> None:
    image = nib.Nifti1Image(np.arange(24).reshape(2, 3, 4).astype(kind), AFFINE)
    image.header.set_slope_inter(slope, 0 if slope else None)
    nib.save(image, tmp_path / "a.nii.gz")
    source = nifti(tmp_path / "a.nii.gz")
    volume = read_volume(source, stored=True)
    assert volume.data.dtype == stored
    assert value_bytes(source) == size == volume.data.itemsize
    np.testing.assert_array_equal(volume.data, read_volume(source).data)


def test_big_endian_and_scaled_integers_are_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(8, dtype=">i2").reshape(2, 2, 2), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(">i2")
    image.header.set_slope_inter(0.5, -3)
    image.to_filename(tmp_path / "a.nii")
    expected = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    np.testing.assert_allclose(read_volume(nifti(tmp_path / "a.nii")).data[0], expected)


def warnings_of(caplog: pytest.LogCaptureFixture, path: Path) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "medseg"):
        read_volume(nifti(path))
    return " ".join(record.getMessage() for record in caplog.records)


def test_the_sform_wins_over_the_qform_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    image.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    nib.save(image, tmp_path / "both.nii")
    assert read_geometry(nifti(tmp_path / "both.nii")).spacing == (2, 2, 2)
    said = warnings_of(caplog, tmp_path / "both.nii")
    assert "both.nii: qform and sform differ by up to 0.5 voxels; the sform (code 1) is believed" in said
    assert "nibabel" in said
    image.set_sform(np.diag([2.0, 2, 2, 1]), 0)
    nib.save(image, tmp_path / "q.nii")
    assert read_geometry(nifti(tmp_path / "q.nii")).spacing == (3, 3, 3)
    assert warnings_of(caplog, tmp_path / "q.nii") == ""


def test_forms_that_agree_but_for_rounding_are_nothing_to_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, 4], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), turned)
    image.set_sform(turned, 1)
    image.set_qform(turned, 1)
    nib.save(image, tmp_path / "a.nii")
    assert warnings_of(caplog, tmp_path / "a.nii") == ""


def test_a_file_that_does_not_say_where_it_lies_is_read_as_nibabel_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), None)
    image.header.set_zooms((2, 3, 4))
    nib.save(image, tmp_path / "a.nii")
    expected = nib.load(tmp_path / "a.nii").affine
    assert expected[0, 0] == -2
    np.testing.assert_array_equal(read_geometry(nifti(tmp_path / "a.nii")).affine, expected)
    assert "left and right may be exchanged" in warnings_of(caplog, tmp_path / "a.nii")


def test_other_units_than_mm_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([7.0, 7, 7, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    assert "lengths in micrometres; they are taken as mm" in warnings_of(caplog, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[123] = 7  # no unit at all
    (tmp_path / "a.nii").write_bytes(bytes(raw))
    assert "lengths" not in warnings_of(caplog, tmp_path / "a.nii")


def test_a_2d_image_without_thickness_gets_1_mm_along_its_normal(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(20, dtype=np.int16).reshape(4, 5), None)
    image.set_sform(np.array([[0, 2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 0, 7], [0, 0, 0, 1]]), 1)
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(nifti(tmp_path / "a.nii"))
    assert volume.data.shape == (1, 4, 5, 1)
    assert volume.geometry.spacing == (3, 2, 1)
    np.testing.assert_array_equal(volume.geometry.to_world((0, 0, 0)), [5, 6, 7])


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_a_slope_of_zero_or_nan_is_none(tmp_path: Path, slope: float, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "a.nii", np.arange(8, dtype=np.int16).reshape(2, 2, 2))
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<2f", slope, 5)
    path.write_bytes(bytes(raw))
    np.testing.assert_array_equal(read_volume(nifti(path)).data.ravel(), np.arange(8))


def test_nan_stays_nan_in_images_and_is_refused_in_labels(tmp_path: Path, write_nifti: Write) -> None:
    array = np.ones((3, 3, 3), np.float32)
    array[1, 1, 1] = np.nan
    path = write_nifti(tmp_path / "a.nii.gz", array)
    assert np.isnan(read_volume(nifti(path)).data).sum() == 1
    with pytest.raises(ScanError, match="found NaN"):
        read_mask(nifti(path))


def test_long_headers_with_extensions_are_passed_over(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1_000_000))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, tmp_path / name)
        volume = read_volume(find_one(tmp_path / name).source)
        np.testing.assert_array_equal(volume.data[0], np.arange(24).reshape(2, 3, 4))


def test_a_flipped_bit_in_a_gzip_is_found_by_its_checksum(tmp_path: Path, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 9, (8, 8, 8)).astype(np.uint8))
    stored = gzip.decompress(path.read_bytes())
    zipped = bytearray(gzip.compress(stored, 0))  # stored as it is: a flipped bit is a flipped voxel and nothing else
    zipped[-100] ^= 1
    path.write_bytes(bytes(zipped))
    with pytest.raises(ScanError, match="CRC"):
        read_volume(nifti(path))


def test_one_slice_stays_a_volume_and_trailing_single_axes_go(tmp_path: Path, write_nifti: Write) -> None:
    assert read_volume(nifti(write_nifti(tmp_path / "a.nii", np.zeros((4, 5, 1))))).data.shape == (1, 4, 5, 1)
    assert read_volume(nifti(write_nifti(tmp_path / "b.nii", np.zeros((4, 5))))).data.shape == (1, 4, 5, 1)
    assert read_volume(nifti(write_nifti(tmp_path / "c.nii", np.zeros((4, 5, 6, 1, 1))))).data.shape == (1, 4, 5, 6)


def test_4d_is_refused_with_its_shape_unless_a_volume_is_named(tmp_path: Path, write_nifti: Write) -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    path = write_nifti(tmp_path / "a.nii.gz", array)
    with pytest.raises(ScanError, match="found 4D 2×3×4×5") as caught:
        read_volume(nifti(path))
    assert caught.value.kind == "not_3d"
    np.testing.assert_array_equal(read_volume(nifti(path, "3")).data[0], array[..., 3])
    with pytest.raises(ScanError, match="no volume '5'"):
        read_geometry(nifti(path, "5"))


def test_colours_become_three_channels(tmp_path: Path) -> None:
    rgb = np.zeros((2, 3, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = 7
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), tmp_path / "rgb.nii")
    assert [float(channel.max()) for channel in read_volume(nifti(tmp_path / "rgb.nii")).data] == [0, 7, 0]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("keep", [0.95, 0.5, 0.1])
def test_a_truncated_file_is_said(tmp_path: Path, write_nifti: Write, name: str, keep: float) -> None:
    path = write_nifti(tmp_path / name, np.random.default_rng(0).normal(size=(16, 16, 16)))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ScanError, match=r"damaged or cut short"):
        read_volume(nifti(path))


def test_garbage_behind_a_good_name_is_said(tmp_path: Path) -> None:
    for name, content in (
        ("a.nii", b"x" * 1000),
        ("b.nii.gz", b"\x1f\x8b" + b"y" * 100),
        ("c.nii.gz", gzip.compress(b"z" * 1000)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ScanError, match=name):
            read_volume(nifti(tmp_path / name))
    with pytest.raises(ScanError, match="no such file"):
        read_volume(nifti(tmp_path / "missing.nii"))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path, write_nifti: Write, name: str) -> None:
    path = write_nifti(tmp_path / name, np.zeros((4, 4, 4), np.int16))
    raw = bytearray(gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes())
    raw[40:56] = struct.pack("<8h", 3, 30000, 30000, 30000, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(raw)) if name.endswith("gz") else bytes(raw))
    with pytest.raises(ScanError, match="claims 54,000,000,000,000 bytes"):
        read_volume(nifti(path))


@pytest.mark.parametrize("dimensions", [(3, 4, 0, 4), (3, 4, -4, 4), (0, 0, 0, 0), (9, 4, 4, 4)])
def test_sizes_that_make_no_sense_are_said(tmp_path: Path, write_nifti: Write, dimensions: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4), np.int16))
    raw = bytearray(path.read_bytes())
    raw[40:48] = struct.pack("<4h", *dimensions)
    path.write_bytes(bytes(raw))
    with pytest.raises(ScanError, match=r"a\.nii: .*(expected voxels|header|cannot be read)"):
        read_volume(nifti(path))


def test_a_sheared_affine_is_refused(tmp_path: Path, write_nifti: Write) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    with pytest.raises(ScanError, match="not orthogonal"):
        read_geometry(nifti(write_nifti(tmp_path / "a.nii", np.zeros((3, 3, 3)), sheared)))


def test_integer_masks_keep_their_type_and_large_values(tmp_path: Path, write_nifti: Write) -> None:
    array = np.array([[[0, 70000]]], np.int32)
    mask, _ = read_mask(nifti(write_nifti(tmp_path / "m.nii.gz", array)))
    assert mask.dtype == np.uint32
    assert mask.max() == 70000
