from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medseg.scans import datasets
from medseg.scans.datasets import UNDEFINED_LENGTH, inflate, read_header
from tests.dicom_factory import affine_of, write_series


def written(folder: Path, **kind: Any) -> Path:
    volume = np.arange(40 * 36 * 2.0).reshape(40, 36, 2) % 256
    return write_series(folder, volume, affine_of(volume.shape), bits=8, signed=False, **kind)[0]


def nested(dataset: Dataset, n: int) -> None:
    """Sequences of both kinds of length, texts in another character set, private and empty elements."""
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SeriesDescription, dataset.AccessionNumber, dataset.AcquisitionContextSequence = "Schädel", "", []
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "größer"
    middle = Dataset()
    middle.ConceptCodeSequence = [inner, inner]
    dataset.RequestAttributesSequence = [middle]
    dataset.ProcedureCodeSequence = [inner]
    for sequence in (dataset["RequestAttributesSequence"], dataset["ProcedureCodeSequence"]):
        sequence.is_undefined_length = True
    middle["ConceptCodeSequence"].is_undefined_length = middle.is_undefined_length_sequence_item = True
    dataset.private_block(0x0009, "MEDSEG TEST", create=True).add_new(1, "OB", b"\x01\x02" * 50_000)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "RLE", "JPEG-LS", "big endian", "deflated"])
@pytest.mark.parametrize("layout", ["classic", "enhanced"])
def test_a_header_is_what_pydicom_reads_and_ends_where_the_pixels_begin(
    tmp_path: Path, syntax: str, layout: str
) -> None:
    path = written(tmp_path, transfer_syntax=syntax, layout=layout, change=nested)
    with path.open("rb") as file:
        dataset, element = read_header(file)
    whole = pydicom.dcmread(path)
    assert element is not None
    pixels = whole.PixelData
    with path.open("rb") as file:
        data = inflate(file)[1] if element.deflated else file.read()
    if element.length == UNDEFINED_LENGTH:
        assert whole["PixelData"].is_undefined_length
        assert data[element.offset : element.offset + len(pixels)] == pixels
    else:
        assert data[element.offset : element.offset + element.length] == pixels
    assert element.vr == whole["PixelData"].VR
    del whole.PixelData
    assert dataset == whole
    assert dataset.file_meta == whole.file_meta
    assert dataset.SeriesDescription == "Schädel"


def test_plain_files_are_not_left_to_pydicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("asked pydicom")

    monkeypatch.setattr(datasets, "_by_pydicom", refuse)
    for number, syntax in enumerate(("explicit", "implicit", "JPEG-LS")):
        with written(tmp_path / str(number), transfer_syntax=syntax, change=nested).open("rb") as file:
            assert read_header(file)[0].Rows == 36


def test_a_dataset_without_meta_information_gets_its_transfer_syntax(tmp_path: Path) -> None:
    path = written(tmp_path, transfer_syntax="explicit")
    whole = pydicom.dcmread(path)
    path.write_bytes(path.read_bytes()[132 + 12 + whole.file_meta.FileMetaInformationGroupLength :])
    with path.open("rb") as file:
        dataset, element = read_header(file)
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert element is not None
    assert element.length == element.stored == 40 * 36


def test_a_header_without_pixels_says_so(tmp_path: Path) -> None:
    path = written(tmp_path)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    with path.open("rb") as file:
        assert read_header(file)[1] is None


@pytest.mark.parametrize("cut", [200, 400, 700])
def test_a_header_that_was_cut_short_is_what_pydicom_makes_of_it(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with path.open("rb") as file:
        dataset, element = read_header(file)
    assert element is None
    assert dataset.keys() == pydicom.dcmread(path).keys()
