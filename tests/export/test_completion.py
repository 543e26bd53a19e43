"""What a source lacks or writes wrongly is completed, and named without saying what it was."""

from __future__ import annotations

import re
from typing import Any

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medseg.export.completion import REQUIRED, Completions, completed_common, content_moment, line

WHOLE = {
    "PatientName": "Doe^Jane",
    "PatientID": "4711",
    "PatientBirthDate": "19700101",
    "PatientSex": "F",
    "StudyDate": "20200102",
    "StudyTime": "101112.5",
    "ReferringPhysicianName": "",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "StudyInstanceUID": "1.2.3",
    "FrameOfReferenceUID": "1.2.4",
    "PositionReferenceIndicator": "",
}


def header(character_set: str = "", **values: Any) -> Dataset:
    """A header as it comes from a file, in which values are bytes of whatever kind; None: absent."""
    dataset = Dataset()
    for keyword, value in {"SpecificCharacterSet": character_set, "SeriesDate": "20200102", **WHOLE, **values}.items():
        if value is not None:
            tag, body = Tag(keyword), value if isinstance(value, bytes) else str(value).encode()
            dataset[tag] = RawDataElement(tag, dictionary_VR(keyword), len(body), body, 0, False, True)
    encodings = pydicom.charset.convert_encodings(character_set.split("\\"))
    dataset.set_original_encoding(False, True, encodings)
    return dataset


def completed(dataset: Dataset, *, in_patient: bool = True) -> tuple[Dataset, tuple[str, ...]]:
    notes = Completions()
    return completed_common(dataset, "1.2.5", notes, in_patient=in_patient), notes.sentences()


def test_a_whole_source_is_copied_as_it_is() -> None:
    common, sentences = completed(header())
    assert sentences == ()
    assert {keyword: str(common[keyword].value or "") for keyword in WHOLE} == WHOLE


@pytest.mark.parametrize("keyword", REQUIRED)
def test_what_is_absent_is_written_empty(keyword: str) -> None:
    common, sentences = completed(header(**{keyword: None}))
    assert keyword in common and not common[keyword].value
    assert sentences == (f"{keyword}: absent from the source, written empty",)


def test_what_is_empty_stays_empty_without_a_word() -> None:
    common, sentences = completed(header(PatientName="", StudyDate="", AccessionNumber="  "))
    assert sentences == ()
    assert not common.PatientName and not common.StudyDate and not common.AccessionNumber


@pytest.mark.parametrize(
    ("keyword", "value", "expected", "word"),
    [
        ("StudyID", "12345678901234567890", None, "shortened"),
        ("PatientID", "x" * 65, None, "shortened"),
        ("PatientName", "Doe^" + "Ü" * 70, None, "shortened"),
        ("StudyDate", "2003.04.17", "20030417", "rewritten"),
        ("StudyTime", "10:46:07", "104607", "rewritten"),
        ("PatientSex", "f", "F", "rewritten"),
        ("PatientSex", "woman", "", "written empty"),
        ("StudyDate", "20031399", "", "written empty"),
        ("StudyTime", "noon", "", "written empty"),
        ("PatientBirthDate", "unknown", "", "written empty"),
        ("AccessionNumber", "A\\B", "A B", "rewritten"),
        ("PatientID", "4711\n", "4711", "rewritten"),
        ("PatientAge", "45", None, "left out"),
        ("PatientWeight", "heavy", None, "left out"),
        ("PatientWeight", "72.123456789012345", None, "left out"),
        ("StudyInstanceUID", "1.2." + "3" * 70, None, "derived"),
        ("StudyInstanceUID", "none", None, "derived"),
        ("FrameOfReferenceUID", "", None, "derived"),
    ],
)
def test_what_is_invalid_is_mended_and_named_without_its_value(
    keyword: str, value: str, expected: str | None, word: str
) -> None:
    common, (sentence,) = completed(header("ISO_IR 192", **{keyword: value}))
    assert sentence.startswith(f"{keyword}: ") and word in sentence
    assert len(value) < 2 or value not in sentence
    if expected is not None:
        assert str(common[keyword].value or "") == expected
    elif word == "left out":
        assert keyword not in common
    elif word == "derived":
        assert common[keyword].value.startswith("2.25.")
    else:
        assert len(str(common[keyword].value)) <= (16 if keyword == "StudyID" else 64)
        assert re.search(r"~[0-9A-F]{6}$", str(common[keyword].value))


def test_several_attributes_are_named_in_one_sentence() -> None:
    _, sentences = completed(header(PatientSex=None, StudyID=None))
    assert sentences == ("PatientSex, StudyID: absent from the source, written empty",)


def test_what_is_shortened_stays_different() -> None:
    one, two = (completed(header(PatientID="4" * 70 + end))[0].PatientID for end in "12")
    assert one != two and one[:50] == two[:50]


def test_a_valid_uid_is_kept_even_with_the_leading_zeros_that_archives_write() -> None:
    common, sentences = completed(header(StudyInstanceUID="1.2.0840.01"))
    assert (common.StudyInstanceUID, sentences) == ("1.2.0840.01", ())


def test_a_picture_has_no_frame_of_reference() -> None:
    common, sentences = completed(header(FrameOfReferenceUID=None, PositionReferenceIndicator=None), in_patient=False)
    assert "FrameOfReferenceUID" not in common and "PositionReferenceIndicator" not in common
    assert sentences == ()


@pytest.mark.parametrize(
    ("character_set", "name", "expected", "sentence"),
    [
        ("ISO_IR 100", "Jörg^Müller".encode("latin-1"), "Jörg^Müller", ""),
        ("ISO_IR 192", "Jörg^山田".encode(), "Jörg^山田", ""),
        ("ISO_IR 144", "Иванов".encode("iso8859-5"), "Иванов", ""),
        (
            "",
            "Jörg".encode("latin-1"),
            "Jörg",
            "SpecificCharacterSet: absent although text is not ASCII, read as ISO_IR 100",
        ),
        ("LATIN", b"Jane", "Jane", "SpecificCharacterSet: not a term of DICOM, text read as ISO_IR 100"),
    ],
)
def test_text_of_every_character_set_becomes_utf_8(
    character_set: str, name: bytes, expected: str, sentence: str
) -> None:
    common, sentences = completed(header(character_set, PatientName=name))
    assert common.SpecificCharacterSet == "ISO_IR 192"
    assert str(common.PatientName) == expected
    assert sentences == ((sentence,) if sentence else ())


def test_how_a_patient_was_made_anonymous_is_copied() -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "113100", "DCM", "Basic Profile"
    source = header(PatientIdentityRemoved="YES")
    source.DeidentificationMethodCodeSequence = [item]
    common, _ = completed(source)
    assert common.PatientIdentityRemoved == "YES"
    assert common.DeidentificationMethodCodeSequence[0].CodeValue == "113100"


def test_the_content_bears_the_date_of_the_source() -> None:
    dated = header(ContentDate="", AcquisitionDate="20200103", AcquisitionTime="1011", SeriesDate="20200104")
    assert content_moment(dated) == ("20200103", "1011")
    assert content_moment(header(SeriesDate=None, StudyTime=None)) == ("20200102", "000000")
    nothing = header(SeriesDate=None, StudyDate=None)
    assert content_moment(nothing) == ("19000101", "000000")
    assert any(sentence.startswith("ContentDate: ") for sentence in completed(nothing)[1])


def test_a_line_fits_and_differs() -> None:
    assert line("a\\b\nc ") == "a b c"
    assert line("x" * 64) == "x" * 64
    assert line("short", 16) == "short"
    cut = line("Ü" * 65)
    assert len(cut.encode()) <= 64 and cut != line("Ü" * 66)
