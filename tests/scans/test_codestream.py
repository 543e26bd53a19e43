from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import openjpeg
import pydicom
import pytest
from PIL import Image

from medseg.scans.codestream import Picture, picture_of
from tests.dicom_factory import affine_of, write_series

PIXELS = (np.arange(40 * 36) % 251).reshape(36, 40).astype(np.uint8)


def jpeg(**kind: object) -> bytes:
    out = BytesIO()
    Image.fromarray(PIXELS).save(out, "JPEG", **kind)
    return out.getvalue()


def lossless(folder: Path) -> bytes:
    path = write_series(folder, PIXELS.T[..., None] * 1.0, affine_of((40, 36, 1)), transfer_syntax="JPEG lossless")[0]
    return next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1)).rstrip(b"\0")


def test_a_codestream_says_its_size_and_precision(tmp_path: Path) -> None:
    assert picture_of(jpeg()) == Picture(40, 36, 1, 8)
    assert picture_of(jpeg(progressive=True)) == Picture(40, 36, 1, 8)  # several scans
    assert picture_of(lossless(tmp_path)) == Picture(40, 36, 1, 16)
    wide = (PIXELS.astype(np.uint16) * 16)[..., None].repeat(3, 2)
    assert picture_of(bytes(openjpeg.encode(wide, bits_stored=12, photometric_interpretation=1))) == Picture(
        40, 36, 3, 12
    )


def refusal(codestream: bytes) -> str:
    with pytest.raises(ValueError) as caught:
        picture_of(codestream)
    return str(caught.value)


def test_a_codestream_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    for codestream in (jpeg(), lossless(tmp_path)):
        assert "cut short" in refusal(codestream[:-30])
    codestream = bytes(openjpeg.encode(PIXELS))
    assert picture_of(codestream[:-2]) == Picture(40, 36, 1, 8)  # without its end marker, but whole
    assert "cut short: 30 bytes are missing" in refusal(codestream[:-32])


# Damages on which GDCM 3.2 ends the process instead of raising: found by mutating files, a byte each.
@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b"\xff\xc4", b"\x00\xc4", "damaged"),
        (b"\xff\xc4", b"\xff\x00", "marker 00"),
        (b"\xff\xc3\x00\x0b\x10", b"\xff\xc3\x00\x0b\xff", "header .* is damaged"),
        (
            b"\xff\xc3\x00\x0b\x10\x00\x24\x00\x28\x01\x01\x11",
            b"\xff\xc3\x00\x0b\x10\x00\x24\x00\x28\x01\x01\xf1",
            "damaged",
        ),
        (b"\xff\xc4\x00\x15\x00", b"\xff\xc4\x00\x15\x01", "names a Huffman table"),
        (b"\xff\xda\x00\x08\x01\x01\x00\x01", b"\xff\xda\x00\x08\x01\x01\x00\x09", "predictor 9"),
        (b"\xff\xda\x00\x08\x01", b"\xff\xda\x00\x08\x03", "header .* is damaged"),
    ],
)
def test_damage_that_decoders_do_not_survive_is_refused(tmp_path: Path, old: bytes, new: bytes, word: str) -> None:
    path = write_series(tmp_path, np.zeros((40, 36, 1)), affine_of((40, 36, 1)), transfer_syntax="JPEG lossless")[0]
    codestream = next(pydicom.encaps.generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))
    assert old in codestream
    with pytest.raises(ValueError, match=word):
        picture_of(codestream.replace(old, new, 1))


def test_a_huffman_table_that_is_no_code_is_refused() -> None:
    codestream = jpeg()
    at = codestream.index(b"\xff\xc4") + 5
    assert "Huffman table" in refusal(codestream[:at] + b"\xff" + codestream[at + 1 :])


@pytest.mark.parametrize("codestream", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"\xff\xd8" + b"\xff" * 50, b"RIFF" * 9])
def test_what_is_no_codestream_is_refused(codestream: bytes) -> None:
    assert refusal(codestream)
