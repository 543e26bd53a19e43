from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medseg.scans.tags import WANTED, Header, header_of, plain_header

Series = Callable[..., list[Path]]


def plain(body: bytes, first: int = 8192) -> Header | None:
    file = io.BytesIO(body)
    return plain_header(file.read(first), file)


def parsed(body: bytes) -> Header:
    return header_of(pydicom.dcmread(io.BytesIO(body), force=True))


@pytest.fixture
def dataset(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> Dataset:
    """One slice with every kind of element: sequences, private blocks, numbers in binary."""
    ds = pydicom.dcmread(write_series(tmp_path, ramp, description="brain")[0])
    ds.ImageType, ds.EchoTime, ds.DiffusionBValue = ["ORIGINAL", "PRIMARY", "M"], "4.6", 1000.0
    ds.NominalPercentageOfCardiacPhase = 37.5
    inner = Dataset()
    inner.Modality, inner.SeriesInstanceUID, inner.ReferencedImageSequence = "XX", "9.9.9", [Dataset()]
    ds.ReferencedImageSequence = [inner, inner]
    ds.private_block(0x0019, "MEDSEG TEST", create=True).add_new(1, "OB", bytes(300))
    return ds


def encoded(ds: Dataset, syntax: str, undefined_length: bool = False) -> bytes:
    ds.file_meta.TransferSyntaxUID = syntax
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = undefined_length
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined_length
    file = io.BytesIO()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(file, ds, enforce_file_format=True, little_endian=little, implicit_vr=implicit)
    return file.getvalue()


@pytest.mark.parametrize("undefined_length", [False, True])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_plain_header_says_what_pydicom_says(dataset: Dataset, syntax: str, undefined_length: bool) -> None:
    body = encoded(dataset, syntax, undefined_length)
    found = plain(body)
    assert found == parsed(body)
    assert found is not None
    assert found["Modality"] == "MR"  # that of the sequence is none of the file's
    assert (found["Rows"], found["DiffusionBValue"], found["NominalPercentageOfCardiacPhase"]) == (
        "5",
        "1000.0",
        "37.5",
    )
    assert found["ImageType"] == "ORIGINAL\\PRIMARY\\M"


def test_a_dataset_without_preamble_is_plain_too(dataset: Dataset) -> None:
    body = encoded(dataset, ExplicitVRLittleEndian)
    assert plain(body[132:]) == plain(body)


@pytest.mark.parametrize("first", [140, 200, 700, 900])
def test_a_header_longer_than_the_first_bytes_is_read_on(dataset: Dataset, first: int) -> None:
    body = encoded(dataset, ExplicitVRLittleEndian, undefined_length=True)
    assert plain(body, first) == plain(body)


def test_converted_values_are_the_same_text(dataset: Dataset) -> None:
    body = encoded(dataset, ExplicitVRLittleEndian)
    ds = pydicom.dcmread(io.BytesIO(body))
    before = header_of(ds)
    for keyword, _ in WANTED.values():
        ds.get(keyword)  # pydicom converts what is asked for
    assert header_of(ds) == before


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_are_left_to_pydicom(dataset: Dataset, syntax: str) -> None:
    body = encoded(dataset, syntax)
    assert plain(body) is None
    assert parsed(body) == plain(encoded(dataset, ExplicitVRLittleEndian))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body.replace(b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00??"),  # no type of an element
        lambda body: body[: body.index(b"\x28\x00\x10\x00US")],  # cut short before the size
        lambda body: body.replace(b"\x20\x00\x0d\x00UI", b"\x20\x00\x0d\x00UN"),  # a length of another form
    ],
)
def test_a_broken_header_is_never_half_a_header(dataset: Dataset, spoil: Callable[[bytes], bytes]) -> None:
    body = encoded(dataset, ExplicitVRLittleEndian)
    found = plain(spoil(body))
    assert spoil(body) != body
    assert found is None or "Rows" not in found


def test_sequences_nested_without_end_are_left_to_pydicom(dataset: Dataset) -> None:
    body = encoded(dataset, ImplicitVRLittleEndian)
    start = body.index(b"\x08\x00\x40\x11")
    bomb = b"\x08\x00\x40\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 5000
    assert plain(body[:start] + bomb) is None


@pytest.mark.parametrize(
    ("charset", "text"),
    [("ISO_IR 192", "Schädel äöü"), ("ISO_IR 100", "Crâne"), ("ISO_IR 144", "Мозг"), ("nonsense", "abc")],
)
def test_descriptions_are_read_in_their_alphabet(dataset: Dataset, charset: Any, text: str) -> None:
    dataset.SpecificCharacterSet = charset if charset != "nonsense" else ""
    dataset.SeriesDescription = text
    body = encoded(dataset, ExplicitVRLittleEndian)
    if charset == "nonsense":
        body = body.replace(b"\x08\x00\x05\x00CS\x00\x00", b"\x08\x00\x05\x00CS\x08\x00nonsense")
    found = plain(body)
    assert found is not None and found["SeriesDescription"] == text


@pytest.mark.shared_data
def test_every_real_header_says_what_pydicom_says(shared_data: Path) -> None:
    compared = 0
    for path in sorted((shared_data / "dicom").rglob("*")):
        body = path.read_bytes() if path.is_file() else b""
        if body[128:132] == b"DICM" and b"1.2.840.10008.1.2.2\0" not in body[:400]:
            found = plain(body)
            assert found is not None and found == {k: v for k, v in parsed(body).items() if k in found}
            compared += 1
    assert compared > 300
