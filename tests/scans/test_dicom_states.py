"""What the matrix leaves out, each against the truth it was made from: mended series, time points, colours, frames in time,
pictures, rare encodings, and headers that somebody stripped.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.scans.reading import ScanError
from medseg.structures import Source
from medseg.volume import Geometry
from tests.dicom_factory import affine_of, native_positions, palette_volume, write_series
from tests.scans.test_dicom_matrix import same

SHAPE = (16, 12, 7)
RAMP = np.arange(np.prod(SHAPE)).reshape(SHAPE)


def only(folder: Path) -> Source:
    found = find(folder)
    assert len(found.sources) == 1, found
    return found.sources[0].source


def linear(world: Any) -> np.ndarray:
    """A field in the patient, RAS mm → value: what is linear, every interpolation gives back."""
    return np.asarray(np.asarray(world) @ [3.0, -2.0, 5.0] - 300)


def sampled(affine: np.ndarray, **native: Any) -> np.ndarray:
    """The field on the native planes ``(I, J, K)``."""
    first = native_positions(affine, SHAPE[2], **native)
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    places = first[:, None, None] + i[..., None] * affine[:3, 0] + j[..., None] * affine[:3, 1]
    return linear(np.moveaxis(places, 0, 2))


def centres(geometry: Geometry) -> np.ndarray:
    return geometry.to_world(np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), -1))


def inside(geometry: Geometry, affine: np.ndarray, **native: Any) -> np.ndarray:
    """The voxels of a grid that lie between native pixels, not at the rim."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    offset = centres(geometry) - affine[:3, 3]
    i, j, depth = (offset @ (affine[:3, axis] / spacing[axis]) for axis in range(3))
    j = j - np.tan(np.radians(native.get("tilt_degrees", 0))) * depth
    last = np.max(native.get("depths_mm", spacing[2] * (SHAPE[2] - 1)))
    near = 1e-3
    return (
        (i >= -near) & (i <= spacing[0] * (SHAPE[0] - 1) + near)
        & (j >= -near) & (j <= spacing[1] * (SHAPE[1] - 1) + near)
        & (depth >= -near) & (depth <= last + near)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("plane", "patient", "made", "tilt", "drop"),
    [
        ("axial", "HFS", {}, 12.0, ()),
        ("axial", "FFS", {"modality": "MR", "transfer_syntax": "RLE"}, -18.0, ()),
        ("oblique", "HFDL", {"layout": "enhanced", "transfer_syntax": "deflated"}, 12.0, ()),
        ("coronal", "HFP", {"modality": "PT", "order": "shuffled"}, 7.0, ()),
        ("sagittal", "FFDR", {"layout": "enhanced", "modality": "MR", "order": "reversed"}, -18.0, ()),
        ("oblique", "FFP", {"transfer_syntax": "JPEG-LS"}, -12.0, (3,)),
        ("axial", "HFDR", {"layout": "enhanced", "modality": "PT"}, 18.0, (2, 3)),
    ],
)
def test_a_tilted_gantry_is_sheared_back_and_every_value_keeps_its_place(
    tmp_path: Path, plane: str, patient: str, made: dict[str, Any], tilt: float, drop: tuple[int, ...]
) -> None:
    affine = affine_of(SHAPE, plane, patient)
    values = sampled(affine, tilt_degrees=tilt)
    middle = round(float(values.mean()))
    write_series(
        tmp_path,
        values,
        affine,
        tilt_degrees=tilt,
        drop=drop,
        slope=0.01,
        intercept=middle,
        patient_position=patient,
        **made,
    )
    volume = read_volume(only(tmp_path), {"uneven": "resample"} if drop else {})
    axes = volume.geometry.affine[:3, :3] / volume.geometry.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(volume.geometry.spacing, (0.7, 0.9, 2.5), atol=1e-6)
    held = inside(volume.geometry, affine, tilt_degrees=tilt)
    assert held.sum() > 0.8 * values.size
    error = np.abs(volume.data[0] - linear(centres(volume.geometry)))
    assert np.median(error[held]) < 0.02  # a hundredth is what is stored
    # Half a pixel inside the rim cubic convolution has all its neighbours; nearer, it repeats the last one.
    assert (error[held] < 0.05).mean() > 0.75
    assert drop or error[held].max() < 3.0  # at the rim of a gap only one of two shifted slices reaches
    corners = np.array([[0, 0, 0, 1], [SHAPE[0] - 1, SHAPE[1] - 1, 0, 1]]) @ affine.T
    last = native_positions(affine, SHAPE[2], tilt)[-1] + (corners[1] - corners[0])[:3]
    for place in (corners[0, :3], corners[1, :3], last):  # nothing is cut off
        index = volume.geometry.to_index(place)
        assert (index > -0.51).all() and (index < np.array(volume.geometry.shape) - 0.49).all()


def test_dcm2niix_mends_tilt_onto_the_same_place_in_the_patient(tmp_path: Path) -> None:
    """To within a pixel: it knowingly differs, with a grid of its own that it grows and shifts by whole pixels."""
    program = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}") or shutil.which("dcm2niix")
    if program is None:
        pytest.skip("dcm2niix is not installed (pip install dcm2niix)")
    affine = affine_of(SHAPE)
    write_series(tmp_path / "in", sampled(affine, tilt_degrees=15.0), affine, tilt_degrees=15.0)
    (tmp_path / "out").mkdir()
    command = [program, "-f", "%d", "-b", "n", "-z", "n", "-o", str(tmp_path / "out"), str(tmp_path / "in")]
    subprocess.run(command, capture_output=True, check=False, timeout=60)
    (mended,) = (tmp_path / "out").glob("*_Tilt_1.nii")
    theirs: Any = nib.load(mended)
    geometry = Geometry(theirs.shape, theirs.affine)
    held = inside(geometry, affine, tilt_degrees=15.0)
    values = np.asarray(theirs.dataobj, np.float64)
    assert held.sum() > 0.7 * RAMP.size
    assert np.median(np.abs(values - linear(centres(geometry)))[held]) < 2 * 0.9  # sheared the other way: 9


@pytest.mark.parametrize("layout", ["classic", "enhanced"])
def test_a_gap_is_refused_in_mm_and_filled_on_request(tmp_path: Path, layout: Any) -> None:
    affine = affine_of(SHAPE, "coronal")
    write_series(tmp_path, sampled(affine), affine, drop=(2, 4), layout=layout, slope=0.01)
    with pytest.raises(ScanError, match=r"2 slice\(s\) missing.* 5 mm") as caught:
        read_volume(only(tmp_path))
    assert caught.value.kind == "missing_slices"
    assert "uneven=resample" in str(caught.value)
    volume = read_volume(only(tmp_path), {"uneven": "resample"})
    assert volume.geometry.matches(Geometry(SHAPE, affine), 1e-4)
    np.testing.assert_allclose(volume.data[0], linear(centres(volume.geometry)), atol=0.02)


def test_uneven_slices_are_refused_in_mm_and_evened_out_on_request(tmp_path: Path) -> None:
    affine, depths = affine_of(SHAPE), (0.0, 2.0, 4.0, 6.7, 8.7, 10.7, 14.0)
    write_series(tmp_path, sampled(affine, depths_mm=depths), affine, depths_mm=depths, slope=0.01)
    with pytest.raises(ScanError, match="2.7 mm") as caught:
        read_volume(only(tmp_path))
    assert caught.value.kind == "uneven_slices"
    volume = read_volume(only(tmp_path), {"uneven": "resample"})
    assert volume.geometry.spacing == pytest.approx((0.7, 0.9, 2.0))
    held = inside(volume.geometry, affine, depths_mm=depths)
    assert held.sum() == RAMP.size // SHAPE[2] * 8  # 0, 2 … 14 mm
    np.testing.assert_allclose(volume.data[0][held], linear(centres(volume.geometry))[held], atol=0.02)


@pytest.mark.parametrize("layout", ["classic", "enhanced", "mosaic"])
def test_time_points_are_volumes_of_their_own(tmp_path: Path, layout: Any) -> None:
    affine = affine_of(SHAPE, "oblique")
    times = np.stack([RAMP + 2000 * time for time in range(3)])
    write_series(tmp_path / "a", times, affine, modality="MR", layout=layout, order="reversed")
    found = find(tmp_path / "a").sources
    assert len({entry.id for entry in found}) == 3
    volumes = sorted((read_volume(entry.source) for entry in found), key=lambda volume: float(volume.data.min()))
    for values, volume in zip(times, volumes, strict=True):
        same(volume, values, affine)
    write_series(tmp_path / "b", times, affine, modality="MR", layout=layout, order="reversed")
    assert {entry.id for entry in find(tmp_path / "b").sources} == {entry.id for entry in found}


@pytest.mark.parametrize("against", [False, True])
@pytest.mark.parametrize("order", ["ascending", "reversed"])
@pytest.mark.parametrize(("layout", "modality"), [("enhanced", "NM"), ("mosaic", "MR")])
@pytest.mark.parametrize("plane", ["coronal", "oblique"])
def test_a_stack_whose_header_gives_one_direction_may_run_either_way(
    tmp_path: Path, layout: Any, modality: str, order: Any, against: bool, plane: str
) -> None:
    """SPECT by the sign of SpacingBetweenSlices, mosaics by Siemens' SliceNormalVector."""
    affine = affine_of(SHAPE, plane, "FFP")
    if against:
        affine[:3, 2] *= -1
    write_series(tmp_path, RAMP, affine, modality=modality, layout=layout, order=order)
    same(read_volume(only(tmp_path)), RAMP, affine)


def test_an_id_hangs_on_the_series_alone_not_on_the_order_or_names_of_files(tmp_path: Path) -> None:
    ids = set()
    for order in ("ascending", "reversed", "shuffled"):
        write_series(tmp_path / order, RAMP, affine_of(SHAPE), order=order)  # type: ignore[arg-type]
        ids |= {entry.id for entry in find(tmp_path / order).sources}
    assert len(ids) == 1
    assert "ecret" not in str(ids)


RAW = ("implicit", "explicit", "big endian", "deflated")
DENSE = ("RLE", "JPEG lossless", "JPEG-LS")


@pytest.mark.parametrize(
    ("syntax", "planar"), [*((name, planar) for name in RAW for planar in (False, True)), *((n, False) for n in DENSE)]
)
def test_colours_are_three_channels(tmp_path: Path, syntax: str, planar: bool) -> None:
    rgb = np.stack([RAMP % 251, RAMP // 8 % 256, 255 - RAMP % 97])

    def apart(dataset: Dataset, n: int) -> None:
        dataset.PlanarConfiguration = 1
        dataset.PixelData = rgb[..., n].transpose(0, 2, 1).astype(np.uint8).tobytes()

    write_series(tmp_path, rgb, affine_of(SHAPE), modality="MR", photometric="RGB", bits=8, signed=False,
                 transfer_syntax=syntax, change=apart if planar else None)  # fmt: skip
    volume = read_volume(only(tmp_path))
    np.testing.assert_array_equal(volume.data, rgb)
    grey = read_volume(only(tmp_path), {"grey": True})
    np.testing.assert_allclose(grey.data[0], np.tensordot([0.299, 0.587, 0.114], rgb, 1), rtol=1e-5)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    rgb = palette_volume(SHAPE)
    write_series(tmp_path, rgb, affine_of(SHAPE), modality="MR", photometric="PALETTE COLOR", bits=8, signed=False)
    data = read_volume(only(tmp_path)).data
    scale = 257 if data.max() > 255 else 1  # entries of 16 bits
    np.testing.assert_array_equal(data, rgb * scale)


def test_luminance_and_chrominance_become_red_green_and_blue(tmp_path: Path) -> None:
    rgb = np.stack([RAMP % 251, RAMP // 8 % 256, 255 - RAMP % 97])
    write_series(tmp_path, rgb, affine_of(SHAPE), modality="MR", photometric="YBR_FULL", bits=8, signed=False)
    assert np.abs(read_volume(only(tmp_path)).data - rgb).max() <= 2  # rounded twice


@pytest.mark.parametrize("colour", [False, True])
def test_every_frame_of_a_clip_is_a_picture(tmp_path: Path, colour: bool) -> None:
    frames = np.stack([RAMP % 256, RAMP // 7 % 256, 255 - RAMP % 256]) if colour else RAMP % 256
    photometric = "RGB" if colour else "MONOCHROME2"
    write_series(
        tmp_path, frames, np.eye(4), modality="US", layout="cine", photometric=photometric, bits=8, signed=False
    )
    found = find(tmp_path).sources
    assert len(found) == SHAPE[2]
    data = {entry.source.frames: read_volume(entry.source) for entry in found}
    for frame in range(SHAPE[2]):
        volume = data[(frame,)]
        assert volume.geometry.shape == SHAPE[:2] and volume.modality == "US"
        np.testing.assert_array_equal(volume.data, (frames if colour else frames[None])[..., frame])


@pytest.mark.parametrize("modality", ["CR", "DX", "MG"])
def test_radiographs_are_pictures_bright_where_values_are_large(tmp_path: Path, modality: str) -> None:
    affine = np.diag([0.2, 0.3, 1, 1])
    write_series(tmp_path, RAMP, affine, modality=modality, layout="picture", photometric="MONOCHROME1", bits=12,
                 signed=False, drop=range(1, 7))  # fmt: skip
    volume = read_volume(only(tmp_path))
    assert volume.geometry.shape == SHAPE[:2]
    assert volume.geometry.spacing == pytest.approx((0.2, 0.3))
    np.testing.assert_array_equal(volume.data[0], 4095 - RAMP[..., 0])
    np.testing.assert_array_equal(read_volume(only(tmp_path), {"invert": False}).data[0], RAMP[..., 0])


@pytest.mark.parametrize("syntax", ["JPEG baseline", "JPEG extended"])
@pytest.mark.parametrize("layout", ["classic", "enhanced"])
def test_what_was_compressed_with_loss_is_read_to_within_that_loss(tmp_path: Path, syntax: str, layout: Any) -> None:
    affine, smooth = affine_of(SHAPE), RAMP // 6 % 230
    write_series(tmp_path, smooth, affine, layout=layout, transfer_syntax=syntax, bits=8, signed=False)
    volume = read_volume(only(tmp_path))
    assert volume.geometry.matches(Geometry(SHAPE, affine), 1e-5)
    assert np.abs(volume.data[0] - smooth).max() <= 2


# One plane each, from encoders that are not installed: value = a · row + b · column, in 12 and 16 bits.
STREAMS = {
    "1.2.840.10008.1.2.4.51": (  # JPEG extended, 12 bits: (16, 16), a = 200, b = 40; gdcm 3.2
        12,
        (16, 16, 200, 40),
        "/9j/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQH/wQALEAAQABABAREA"
        "/8QAFgABAQEAAAAAAAAAAAAAAAAADA0O/8QAHBAAAAYDAAAAAAAAAAAAAAAAAAoMKTdHVWVz/9oACAEBAAA/ALSAUmQ4UZtBYijeOiCgApMhwoza"
        "CxFG8dENQAFJkOFGbQWIo3jogoAKTIcKM2gsRRvHRD//2Q==",
    ),
    "1.2.840.10008.1.2.4.201": (  # HTJ2K lossless: (12, 16), a = 300, b = 17; OpenJPH 0.26 in imagecodecs 2026.3
        16,
        (12, 16, 300, 17),
        "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
        "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAH8AAf+TwAAmrfUFB3QAAMAAEsAAEwA2AYd0ABD0A4d0AMAAE0AAEwAazQEC"
        "dACnpwBCNADAABUwAAVgiqL8oCIwgnYARCUqUYn6wFKBvrYAwAAq4AAWoAAAAMDninpwAncAVlqxYsWKFStW/voQgHv2QgHsugD/2Q==",
    ),
}


@pytest.mark.parametrize("syntax", STREAMS)
def test_streams_of_other_encoders_are_decoded(tmp_path: Path, syntax: str) -> None:
    bits, (rows, columns, a, b), stream = STREAMS[syntax]
    row, column = np.mgrid[:rows, :columns]
    plane = (a * row + b * column).T[..., None]

    def encode(dataset: Dataset, n: int) -> None:
        dataset.PixelData = encapsulate([base64.b64decode(stream)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax

    write_series(tmp_path, plane, affine_of(plane.shape), bits=bits, signed=False, change=encode)
    np.testing.assert_array_equal(read_volume(only(tmp_path)).data[0], plane)


NEEDLESS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "SeriesDate", "SeriesTime", "SeriesNumber", "SeriesDescription", "InstanceNumber", "AccessionNumber", "ContentDate",
    "ContentTime", "FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition", "Manufacturer", "ImageType",
    "SliceThickness", "RescaleSlope", "RescaleIntercept", "HighBit", "KVP", "AcquisitionNumber", "StackID",
    "DimensionIndexSequence", "DimensionOrganizationSequence", "FrameContentSequence", "DeviceSerialNumber",
)  # fmt: skip


@pytest.mark.parametrize("layout", ["classic", "enhanced"])
def test_what_an_anonymiser_strips_changes_neither_values_nor_place(tmp_path: Path, layout: Any) -> None:
    affine = affine_of(SHAPE, "sagittal", "FFS")
    write_series(tmp_path, RAMP, affine, layout=layout, strip=NEEDLESS, order="shuffled")
    same(read_volume(only(tmp_path)), RAMP, affine)


@pytest.mark.parametrize("layout", ["classic", "enhanced"])
@pytest.mark.parametrize(
    ("keyword", "kind"),
    [
        ("ImagePositionPatient", "no_position"),
        ("ImageOrientationPatient", "no_position"),
        ("PixelSpacing", "no_spacing"),
    ],
)
def test_what_cannot_be_done_without_is_said_by_name(tmp_path: Path, layout: Any, keyword: str, kind: str) -> None:
    write_series(tmp_path, RAMP, affine_of(SHAPE), layout=layout, strip=(keyword,))
    found = find(tmp_path)
    if found.sources:
        with pytest.raises(ScanError, match=keyword) as caught:
            read_volume(found.sources[0].source)
        assert caught.value.kind == kind
    else:
        assert [fault.kind for fault in found.faults] == [kind]
        assert keyword in found.faults[0].message


@pytest.mark.parametrize("signed", [False, True])
def test_bits_beside_the_stored_ones_say_nothing(tmp_path: Path, signed: bool) -> None:
    """PS3.5 8.1.1: in old files they hold overlays; and a sign may end where the stored bits do."""

    def overlay(dataset: Dataset, n: int) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint16) & 0x0FFF
        dataset.PixelData = (stored | 0x5000).tobytes()

    values = RAMP - 700 if signed else RAMP
    write_series(tmp_path, values, affine_of(SHAPE), bits=12, signed=signed, change=overlay)
    np.testing.assert_array_equal(read_volume(only(tmp_path)).data[0], values)


def test_two_series_that_share_a_folder_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path, RAMP, affine_of(SHAPE), seed="1")
    write_series(tmp_path, RAMP + 5000, affine_of(SHAPE, "sagittal"), seed="2", modality="MR")
    volumes = {v.modality: v for v in (read_volume(entry.source) for entry in find(tmp_path).sources)}
    same(volumes["CT"], RAMP, affine_of(SHAPE))
    same(volumes["MR"], RAMP + 5000, affine_of(SHAPE, "sagittal"))
