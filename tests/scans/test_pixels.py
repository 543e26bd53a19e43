from __future__ import annotations

from base64 import b85decode
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless

from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.scans.reading import ScanError
from tests.dicom_encoding import SYNTAXES
from tests.dicom_factory import affine_of, palette_volume, write_series

SHAPE = (36, 34, 3)
RAMP = (np.arange(np.prod(SHAPE)) * 7 % 4096).reshape(SHAPE).astype(float)
LOSSLESS = [name for name in SYNTAXES if name not in ("JPEG baseline", "JPEG extended")]
# 16 × 12 samples of (100 · row + 7 · column) mod 4096 in 16 bits, encoded as HTJ2K by OpenJPH (imagecodecs 2026.3.6)
HTJ2K = (
    "|4;u>04YEK0000C0000G00000000000000C0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh=~7W0"
    "2crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000aR34TlfVEbGyDYybN~Rr0206e5`gvqhjaiU0*7<}zyJ}z026>4a{!Jz{s4ni0KfnfzyK8>-ra$I%X"
    "I+2fq}pnz>Ky4zyK<s02SaQNs`{Dr>8=90LDh6(P;eq01);e0qnT||Je"
)


def values(folder: Path, options: dict[str, Any] | None = None) -> np.ndarray:
    (entry,) = find(folder).sources
    return read_volume(entry.source, options or {}).data


def written(folder: Path, volume: np.ndarray = RAMP, **kind: Any) -> Path:
    return write_series(folder, volume, affine_of(volume.shape), **kind)[0]


def refusal(folder: Path) -> ScanError:
    with pytest.raises(ScanError) as caught:
        values(folder)
    assert "ecret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("layout", ["classic", "enhanced"])
def test_all_lossless_syntaxes_read_to_the_same_values(tmp_path: Path, syntax: str, layout: str) -> None:
    written(tmp_path, RAMP - 2000, transfer_syntax=syntax, layout=layout)
    np.testing.assert_array_equal(values(tmp_path)[0], RAMP - 2000)


@pytest.mark.parametrize("syntax", ["JPEG baseline", "JPEG extended"])
def test_lossy_jpeg_is_read_to_nearly_the_values(tmp_path: Path, syntax: str) -> None:
    smooth = np.broadcast_to(np.add.outer(np.arange(36.0), np.arange(34.0))[..., None] * 3, SHAPE)
    written(tmp_path, smooth, transfer_syntax=syntax, bits=8, signed=False)
    np.testing.assert_allclose(values(tmp_path)[0], smooth, atol=6)


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_extended_of_12_bits_is_read(tmp_path: Path, name: str) -> None:
    source = pydicom.data.get_testdata_file(name)
    (tmp_path / "x.dcm").write_bytes(Path(source).read_bytes())
    picture = values(tmp_path)[0]
    # pixels of the same file as pydicom's own tests expect them from libjpeg, which rounds otherwise
    np.testing.assert_allclose(picture[120, 230:240], [95, 86, 89, 92, 84, 69, 70, 85, 94, 92], atol=1)
    assert picture.max() == pytest.approx(264, abs=1)


def test_htj2k_is_read(tmp_path: Path) -> None:
    def swap(dataset: Dataset, k: int) -> None:
        dataset.PixelData = encapsulate([b85decode(HTJ2K)])
        dataset["PixelData"].is_undefined_length, dataset["PixelData"].VR = True, "OB"
        dataset.file_meta.TransferSyntaxUID = HTJ2KLossless

    written(tmp_path, np.zeros((12, 16, 1)), signed=False, change=swap)
    i, j = np.indices((12, 16))
    np.testing.assert_array_equal(values(tmp_path)[0, ..., 0], (100 * j + 7 * i) % 4096)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("syntax", ["explicit", "big endian"])
def test_numbers_of_any_width_keep_their_sign(tmp_path: Path, bits: int, signed: bool, syntax: str) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    volume = np.linspace(low, high, np.prod(SHAPE)).reshape(SHAPE).astype(np.int64).astype(float)
    written(tmp_path, volume, bits=bits, signed=signed, transfer_syntax=syntax)
    np.testing.assert_array_equal(values(tmp_path)[0], volume.astype(np.float32))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("bits", "high"), [(12, 11), (10, 9), (12, 15)])
def test_bits_that_are_not_stored_do_not_count(tmp_path: Path, signed: bool, bits: int, high: int) -> None:
    volume = RAMP % 1024 - (512 if signed else 0)
    stored = volume.transpose(2, 1, 0).astype(np.int16).view(np.uint16)
    mask = ((1 << bits) - 1) << high + 1 - bits
    garbage = np.random.default_rng(0).integers(0, 1 << 16, stored.shape, np.uint16) & ~np.uint16(mask)

    def spoil(dataset: Dataset, k: int) -> None:
        dataset.BitsStored, dataset.HighBit = bits, high
        dataset.PixelData = ((stored[k] << high + 1 - bits) & mask | garbage[k]).tobytes()

    written(tmp_path, volume, signed=signed, change=spoil)
    np.testing.assert_array_equal(values(tmp_path)[0], volume)


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_floating_point_pixels_are_read(tmp_path: Path, keyword: str, dtype: type) -> None:
    def swap(dataset: Dataset, k: int) -> None:
        setattr(dataset, keyword, np.ascontiguousarray(RAMP[..., k].T / 3).astype(dtype).tobytes())
        dataset.BitsAllocated = 8 * np.dtype(dtype).itemsize
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation

    written(tmp_path, change=swap)
    np.testing.assert_array_equal(values(tmp_path)[0], (RAMP / 3).astype(np.float32))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", ["explicit", "JPEG-LS", "RLE", "JPEG 2000", "JPEG lossless"])
def test_colours_are_red_green_and_blue(tmp_path: Path, photometric: str, syntax: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 40, 36, 2)).astype(float)
    written(
        tmp_path,
        colours,
        modality="OT",
        layout="cine",
        photometric=photometric,
        bits=8,
        signed=False,
        transfer_syntax=syntax,
    )
    for entry in find(tmp_path).sources:
        read = read_volume(entry.source).data
        frame = colours[..., entry.source.frames[0]]
        np.testing.assert_allclose(read, frame, atol=0 if photometric == "RGB" else 2)  # YCbCr is rounded twice
        grey = read_volume(entry.source, {"grey": True}).data
        np.testing.assert_allclose(grey[0], np.tensordot([0.299, 0.587, 0.114], read, 1), rtol=1e-5)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    colours = palette_volume((20, 16, 1)).astype(float)
    written(tmp_path, colours, modality="OT", layout="picture", photometric="PALETTE COLOR", bits=8, signed=False)
    np.testing.assert_array_equal(values(tmp_path), colours[..., 0] * 257)  # tables of 16 bits


def test_a_modality_lookup_table_is_applied(tmp_path: Path) -> None:
    def add(dataset: Dataset, k: int) -> None:
        item = Dataset()
        item.LUTDescriptor, item.LUTData = [64, 0, 16], np.arange(64, dtype="<u2").__pow__(2).tobytes()
        item.ModalityLUTType = "US"
        dataset.ModalityLUTSequence = [item]
        del dataset.RescaleSlope, dataset.RescaleIntercept

    picture = np.arange(64.0).reshape(8, 8, 1)
    written(tmp_path, picture, modality="CR", layout="picture", bits=8, signed=False, change=add)
    np.testing.assert_array_equal(values(tmp_path)[0], picture[..., 0] ** 2)


@pytest.mark.parametrize("syntax", ["explicit", "deflated", "JPEG-LS", "RLE"])
def test_slope_and_intercept_are_applied_without_rounding_twice(tmp_path: Path, syntax: str) -> None:
    stored = RAMP - 2000

    def scale(dataset: Dataset, k: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.0072", "-1024.4"

    written(tmp_path, stored, transfer_syntax=syntax, change=scale)
    np.testing.assert_array_equal(values(tmp_path)[0], (stored * 0.0072 - 1024.4).astype(np.float32))


def test_a_slope_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, RAMP[..., :1])
    data = bytearray(path.read_bytes())
    data[data.index(b"\x28\0\x53\x10DS") + 8] = ord("x")
    path.write_bytes(data)
    assert "RescaleSlope" in str(refusal(tmp_path))


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian", "JPEG-LS", "JPEG 2000", "RLE"])
@pytest.mark.parametrize("layout", ["classic", "enhanced"])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, syntax: str, layout: str) -> None:
    path = written(tmp_path, RAMP[..., :1] if layout == "classic" else RAMP, transfer_syntax=syntax, layout=layout)
    path.write_bytes(path.read_bytes()[:-200])
    error = refusal(tmp_path)
    assert error.kind == "truncated"
    assert path.name in str(error)


@pytest.mark.parametrize("syntax", ["JPEG-LS", "JPEG 2000", "JPEG lossless", "JPEG baseline"])
def test_a_fragment_that_was_cut_short_is_refused_rather_than_filled_up(tmp_path: Path, syntax: str) -> None:
    def cut(dataset: Dataset, k: int) -> None:
        codestream = b"".join(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate([codestream[: len(codestream) * 2 // 3]])
        dataset["PixelData"].is_undefined_length = True

    written(tmp_path, RAMP[..., :1] % 256, bits=8, signed=False, transfer_syntax=syntax, change=cut)
    assert refusal(tmp_path).kind == "unreadable"


@pytest.mark.parametrize("syntax", ["explicit", "JPEG-LS", "RLE"])
def test_sizes_beyond_the_file_are_refused_before_memory_is_taken(tmp_path: Path, syntax: str) -> None:
    path = written(tmp_path, RAMP[..., :1], transfer_syntax=syntax)
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(path)
    error = refusal(tmp_path)
    assert error.kind == "truncated"


def test_a_codestream_of_another_size_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, RAMP[..., :1], transfer_syntax="JPEG 2000")
    dataset = pydicom.dcmread(path)
    dataset.Rows = 33
    dataset.save_as(path)
    assert "the compressed picture is 36×34×1 of 16 bits, the header says 36×33×1" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("keyword", "value", "word"),
    [("BitsAllocated", 12, "samples of 12 bits"), ("SamplesPerPixel", 4, "one or three samples")],
)
def test_formats_that_are_not_read_are_refused_by_name(tmp_path: Path, keyword: str, value: int, word: str) -> None:
    path = written(tmp_path, RAMP[..., :1])
    dataset = pydicom.dcmread(path)
    setattr(dataset, keyword, value)
    dataset.save_as(path)
    error = refusal(tmp_path)
    assert error.kind == "unsupported"
    assert word in str(error)


@pytest.mark.parametrize(
    ("uid", "kind"),
    [
        ("1.2.840.10008.1.2.4.50", "unreadable"),
        ("1.2.840.10008.1.2.4.55", "unsupported"),
        ("1.2.3.4.5.6.7", "unsupported"),
    ],
)
def test_a_transfer_syntax_that_is_not_read_or_not_true_is_refused(tmp_path: Path, uid: str, kind: str) -> None:
    path = written(tmp_path, RAMP[..., :1])
    explicit = b"1.2.840.10008.1.2.1\0"
    path.write_bytes(path.read_bytes().replace(b"UI\x14\0" + explicit, b"UI\x16\0" + uid.ljust(22, "\0").encode(), 1))
    error = refusal(tmp_path)
    assert error.kind == kind
