"""What a source leaves out or writes wrongly is completed before anything refers to it, and every completion is named.

An object of the patient and study of a source copies their attributes. Scanners, archives and anonymisers leave required
ones out, exceed lengths or forget the character set; a copy would not be valid DICOM. Sentences name the attribute, never
its value, which may be the patient's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import DA, TM

from medseg.export.uids import uid

REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip
"""Type 2 of the Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): they stand in every object, empty if unknown."""

OPTIONAL = (
    "IssuerOfPatientID", "OtherPatientIDs", "PatientBirthTime", "EthnicGroup", "QualityControlSubject",
    "PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription", "PatientBreedCodeSequence",
    "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization",
    "PatientSexNeutered", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "StudyDescription", "IssuerOfAccessionNumberSequence", "PatientAge", "PatientSize", "PatientWeight",
    "TimezoneOffsetFromUTC",
)  # fmt: skip
"""What else is copied where it is there: what tells patients and studies apart, and how the patient was made anonymous."""

COPIED = (*REQUIRED, *OPTIONAL, "StudyInstanceUID", "FrameOfReferenceUID", "PositionReferenceIndicator")
"""All that derived objects take over from the modules of patient, study and frame of reference."""

NO_MOMENT = ("19000101", "000000")
"""Of a source that bears no date: objects must have one."""

_LENGTHS = {"LO": 64, "SH": 16, "CS": 16, "ST": 1024, "LT": 10240, "UC": 2**31}
_PATTERNS = {
    "CS": r"[A-Z0-9 _]*",
    "AS": r"\d{3}[DWMY]",
    "DS": r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *",
    "IS": r" *[+-]?\d+ *",
}
_ABSENT = "absent from the source, written empty"
_DERIVED = "absent from the source or no valid UID, derived from the series"
_SHORTENED = "longer than DICOM allows, shortened"
_REWRITTEN = "not in the form that DICOM wants, rewritten"
_EMPTIED = "no valid value of its type, written empty"
_LEFT_OUT = "no valid value of its type, left out"
_DATELESS = "the source bears no date at all, written as 1900-01-01"
_GUESSED = "absent although text is not ASCII, read as ISO_IR 100"
_UNKNOWN = "not a term of DICOM, text read as ISO_IR 100"


class Completions:
    """What was done to which attributes of a source."""

    def __init__(self) -> None:
        self._attributes: dict[str, dict[str, None]] = {}

    def add(self, done: str, keyword: str) -> None:
        """Note what was done to an attribute; more than once counts once."""
        self._attributes.setdefault(done, {})[keyword] = None

    def sentences(self) -> tuple[str, ...]:
        """One sentence for each thing that was done, naming the attributes."""
        return tuple(f"{', '.join(keywords)}: {done}" for done, keywords in self._attributes.items())


def completed_common(header: Dataset, series: str, notes: Completions, *, in_patient: bool) -> Dataset:
    """The attributes `COPIED` of a source, valid and in UTF-8.

    Args:
        header: of one file of the series.
        series: its SeriesInstanceUID, from which UIDs are derived where they are absent.
        notes: gets what was completed.
        in_patient: whether the source has a place in the patient, and so a frame of reference.
    """
    common = Dataset()
    common.SpecificCharacterSet = "ISO_IR 192"
    for keyword in (*REQUIRED, *(["PositionReferenceIndicator"] if in_patient else [])):
        if keyword not in header:
            notes.add(_ABSENT, keyword)
        value, problem = cleaned(header, keyword)
        if problem:
            notes.add(_EMPTIED if value is None else problem, keyword)
        setattr(common, keyword, "" if value is None else value)
    for keyword in OPTIONAL:
        value, problem = cleaned(header, keyword)
        if problem:
            notes.add(_LEFT_OUT if value is None else problem, keyword)
        if value is not None:
            setattr(common, keyword, value)
    common.StudyInstanceUID = valid_uid(header, "StudyInstanceUID", notes, "study", series)
    if in_patient:
        common.FrameOfReferenceUID = valid_uid(header, "FrameOfReferenceUID", notes, "frame of reference", series)
    if content_moment(header) == NO_MOMENT:
        notes.add(_DATELESS, "ContentDate")
    _note_character_set(header, common, notes)
    return common


def valid_uid(header: Dataset, keyword: str, notes: Completions, *parts: str) -> str:
    """A UID of a header as it stands, or one made from ``parts`` where it is absent or cannot be one."""
    found = str(header.get(keyword) or "").strip(" \0")
    if re.fullmatch(r"[0-9]+(\.[0-9]+)+", found) and len(found) <= 64:
        return found
    notes.add(_DERIVED, keyword)
    return str(uid(*parts))


def content_moment(header: Dataset) -> tuple[str, str]:
    """Date and time (DA, TM) of what a file shows, from the most to the least telling; `NO_MOMENT` where it has none."""
    for kind in ("Content", "Acquisition", "Series", "Study"):
        date = cleaned(header, f"{kind}Date")[0]
        if date:
            return date, cleaned(header, f"{kind}Time")[0] or "000000"
    return NO_MOMENT


def line(text: str, length: int = 64) -> str:
    """``text`` as DICOM's short types of text want it: no backslash or control character, at most ``length`` characters.

    What is cut off leaves a hash, so that two names stay two. A text that has to be cut fits in bytes too: some programs
    count these.
    """
    text = re.sub(r"[\x00-\x1f\x7f\\]+", " ", text).strip()
    if len(text) <= length:
        return text
    body = text.encode("utf-8", "replace")
    kept = body[: length - 7].decode("utf-8", "ignore").rstrip()
    return f"{kept}~{hashlib.sha256(body).hexdigest()[:6].upper()}"


def cleaned(header: Dataset, keyword: str) -> tuple[Any, str]:
    """A valid value of an attribute (None: there is none), and what was wrong with the one that was found."""
    try:
        value = header.get(keyword)
    except Exception:  # pydicom raises nearly anything on values that are not of their type
        return None, _EMPTIED
    if value is None:
        return None, ""
    vr = dictionary_VR(keyword)
    if vr == "SQ":
        return [_decoded(item) for item in value] or None, ""
    parts = [str(part) for part in value] if isinstance(value, MultiValue) else [str(value)]
    texts = parts if dictionary_VM(keyword) != "1" else ["\\".join(parts)]
    found = [_valid(text, vr) for text in texts]
    if None in found or (keyword == "PatientSex" and found[0] not in ("M", "F", "O", "")):
        return None, _EMPTIED
    if not any(found):
        return None, ""
    problem = next(filter(None, map(_problem, texts, found, [vr] * len(found))), "")
    return (found if len(found) > 1 else found[0]), problem


def _problem(old: str, new: str | None, vr: str) -> str:
    old = old.strip(" \0")
    if old == new:
        return ""
    return _SHORTENED if len(old) > _LENGTHS.get(vr, 64) else _REWRITTEN


def _valid(text: str, vr: str) -> str | None:
    """``text`` as a value of type ``vr``, rewritten where need be; None where it cannot be one."""
    if vr == "PN":
        return "=".join("^".join(line(group).split("^", 4)) for group in text.split("=")[:3])
    text = line(text, _LENGTHS.get(vr, 64))
    if vr in ("DA", "TM"):
        text = (
            text.replace(".", "") if vr == "DA" else text.replace(":", "")[:13]
        )  # 2003.04.17 and 10:46:07 are older forms
        try:
            return text if not text or (DA(text) if vr == "DA" else TM(text)) is not None else None
        except ValueError:
            return None
    if vr == "CS":
        text = text.upper()
    if text and not re.fullmatch(_PATTERNS.get(vr, r"[\s\S]*"), text):
        return None
    if vr in ("DS", "IS") and len(text) > (16 if vr == "DS" else 12):
        return None
    return text


def _decoded(item: Dataset) -> Dataset:
    """A copy of a sequence item whose text is no longer bytes in the character set of its file."""
    copy = Dataset()
    for element in item:
        if not element.tag.is_private:
            value = [_decoded(inner) for inner in element.value] if element.VR == "SQ" else element.value
            copy.add_new(element.tag, element.VR, str(value) if element.VR == "PN" else value)
    return copy


def _note_character_set(header: Dataset, common: Dataset, notes: Completions) -> None:
    """Say where the text was read by a guess."""
    named = header.get("SpecificCharacterSet")
    terms = [str(term).strip() for term in (named if isinstance(named, MultiValue) else [named or ""])]
    if any(term not in python_encoding for term in terms):
        notes.add(_UNKNOWN, "SpecificCharacterSet")
    elif not any(terms) and not all(text.isascii() for text in _texts(common)):
        notes.add(_GUESSED, "SpecificCharacterSet")


def _texts(dataset: Dataset) -> Iterator[str]:
    """Every text of a dataset, without those in sequences."""
    yield from (str(element.value) for element in dataset if element.VR != "SQ")
