"""The few elements of a DICOM header that say which volume a file belongs to, as text, straight from its first kilobytes.

Making objects of all elements takes twenty times as long: with ten thousand files that is the difference between a second and
a quarter of a minute. Here what is not wanted is stepped over and the walk stops behind the last element that is. A header that
is not plain little endian is left to pydicom. What the elements mean is settled in `medseg.scans.headers`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Header = Mapping[str, str]
"""Keyword → value as DICOM writes text, several values parted by a backslash. Absent and empty elements are left out."""

WANTED = {
    0x00080005: ("SpecificCharacterSet", "text"),
    0x00080008: ("ImageType", "text"),
    0x00080016: ("SOPClassUID", "text"),
    0x00080018: ("SOPInstanceUID", "text"),
    0x00080031: ("SeriesTime", "text"),
    0x00080032: ("AcquisitionTime", "text"),
    0x00080033: ("ContentTime", "text"),
    0x00080060: ("Modality", "text"),
    0x0008103E: ("SeriesDescription", "words"),
    0x00089208: ("ComplexImageComponent", "text"),
    0x00100020: ("PatientID", "text"),
    0x00100021: ("IssuerOfPatientID", "text"),
    0x00180050: ("SliceThickness", "text"),
    0x00180081: ("EchoTime", "text"),
    0x00180082: ("InversionTime", "text"),
    0x00180086: ("EchoNumbers", "text"),
    0x00180088: ("SpacingBetweenSlices", "text"),
    0x00181060: ("TriggerTime", "text"),
    0x00181164: ("ImagerPixelSpacing", "text"),
    0x00181210: ("ConvolutionKernel", "text"),
    0x00181314: ("FlipAngle", "text"),
    0x00189087: ("DiffusionBValue", "d"),
    0x0020000D: ("StudyInstanceUID", "text"),
    0x0020000E: ("SeriesInstanceUID", "text"),
    0x00200011: ("SeriesNumber", "text"),
    0x00200012: ("AcquisitionNumber", "text"),
    0x00200013: ("InstanceNumber", "text"),
    0x00200032: ("ImagePositionPatient", "text"),
    0x00200037: ("ImageOrientationPatient", "text"),
    0x00200052: ("FrameOfReferenceUID", "text"),
    0x00200100: ("TemporalPositionIdentifier", "text"),
    0x00209056: ("StackID", "text"),
    0x00209241: ("NominalPercentageOfCardiacPhase", "f"),
    0x00280002: ("SamplesPerPixel", "H"),
    0x00280008: ("NumberOfFrames", "text"),
    0x00280010: ("Rows", "H"),
    0x00280011: ("Columns", "H"),
    0x00280030: ("PixelSpacing", "text"),
    0x00541300: ("FrameReferenceTime", "text"),
}
"""Tag → keyword, and how its bytes become text: as they are, by the character set (``words``), or by a code of `struct`."""

_LAST, _LAST_OF_PET = 0x00280030, 0x00541300
_MODALITY = 0x00080060
_LITTLE_ENDIAN = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5")
_COMPRESSED = "1.2.840.10008.1.2.4."
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(
    (
        b"AE",
        b"AS",
        b"AT",
        b"CS",
        b"DA",
        b"DS",
        b"DT",
        b"FD",
        b"FL",
        b"IS",
        b"LO",
        b"LT",
        b"PN",
        b"SH",
        b"SL",
        b"SS",
        b"ST",
        b"TM",
        b"UI",
        b"UL",
        b"US",
    )
)
_ITEM, _ITEM_ENDS, _SEQUENCE_ENDS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_DEEPEST, _LARGEST = 16, 1 << 20

_explicit = struct.Struct("<HH2sH").unpack_from
_implicit = struct.Struct("<HHI").unpack_from
_length = struct.Struct("<I").unpack_from


class NotPlainError(Exception):
    """The header is written in a way that is pydicom's to read."""


def plain_header(head: bytes, file: BinaryIO) -> Header | None:
    """The wanted elements of a file.

    Args:
        head: its first bytes; more are read from ``file``, which stands behind them, where the header is longer.

    Returns:
        None where the header is big endian, deflated, very long or broken: pydicom's turn.
    """
    whole = False
    while True:
        try:
            return _elements(head, whole)
        except struct.error:  # the head ends before the header does
            more = b"" if whole or len(head) > _LARGEST else file.read(15 * len(head))
            if not more and (whole or len(head) > _LARGEST):
                return None
            whole = not more
            head += more
        except NotPlainError:
            return None


def header_of(dataset: Dataset, wanted: Mapping[int, tuple[str, str]] = WANTED) -> Header:
    """The same of a dataset that pydicom has read, without converting (and thereby checking) its values."""
    found: dict[str, str] = {}
    for tag, (keyword, form) in wanted.items():
        if tag not in dataset:
            continue
        element = dataset.get_item(tag)
        value = element.value
        if isinstance(value, bytes):
            little = getattr(element, "is_little_endian", True)
            text = _text(value, form, "<" if little else ">", found.get("SpecificCharacterSet", ""))
        else:
            values = [value] if isinstance(value, (str, int, float)) else value or ()
            text = "\\".join(str(one).strip(" \0") for one in values if isinstance(one, (str, int, float)))
        if text:
            found[keyword] = text
    return found


def _elements(head: bytes, whole: bool) -> Header:
    """Walk the top level. Raises struct.error where ``head`` ends too early, unless it is the ``whole`` file."""
    position, explicit = start_of_dataset(head)
    found: dict[str, str] = {}
    last = _LAST
    while not (whole and position == len(head)):
        tag, length, position = element_at(head, position, explicit)
        if tag > last:
            break
        if length == _UNDEFINED:
            position = end_of_items(head, position, explicit, 0)
            continue
        wanted = WANTED.get(tag)
        if wanted:
            if position + length > len(head):
                raise struct.error
            text = _text(head[position : position + length], wanted[1], "<", found.get("SpecificCharacterSet", ""))
            if text:
                found[wanted[0]] = text
                if tag == _MODALITY and text in ("PT", "NM"):
                    last = _LAST_OF_PET
        position += length
    return found


def start_of_dataset(head: bytes) -> tuple[int, bool]:
    """Where the dataset begins behind the meta information, and whether it names the type of each element."""
    position = 132 if head[128:132] == b"DICM" else 0
    syntax = ""
    while head[position : position + 2] == b"\x02\x00":
        tag, length, position = element_at(head, position, True)
        if tag == 0x00020010:
            syntax = head[position : position + length].decode("latin-1").strip(" \0")
        position += length
    group, _, kind, _ = _explicit(head, position)
    if group not in (0x0004, 0x0008) or (syntax not in _LITTLE_ENDIAN and not syntax.startswith(_COMPRESSED)):
        raise NotPlainError
    return position, kind in _SHORT or kind in _LONG


def element_at(head: bytes, position: int, explicit: bool) -> tuple[int, int, int]:
    """Tag and length of the element at ``position``, and where its value begins."""
    if not explicit:
        group, number, length = _implicit(head, position)
        return group << 16 | number, length, position + 8
    group, number, kind, length = _explicit(head, position)
    if kind in _SHORT:
        return group << 16 | number, length, position + 8
    if kind in _LONG:
        return group << 16 | number, _length(head, position + 8)[0], position + 12
    raise NotPlainError


def end_of_items(head: bytes, position: int, explicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends whose first item stands at ``position``."""
    if depth > _DEEPEST:
        raise NotPlainError
    while True:
        group, number, length = _implicit(head, position)
        tag, position = group << 16 | number, position + 8
        if tag == _SEQUENCE_ENDS:
            return position
        if tag != _ITEM:
            raise NotPlainError
        position = position + length if length != _UNDEFINED else _item_end(head, position, explicit, depth)


def _item_end(head: bytes, position: int, explicit: bool, depth: int) -> int:
    """Where an item of undefined length ends whose first element stands at ``position``."""
    while True:
        group, number, _ = _implicit(head, position)
        if group << 16 | number == _ITEM_ENDS:
            return position + 8
        _, length, position = element_at(head, position, explicit)
        position = position + length if length != _UNDEFINED else end_of_items(head, position, explicit, depth + 1)


def _text(value: bytes, form: str, order: str, charset: str) -> str:
    if form == "text":
        return value.decode("latin-1").strip(" \0")
    if form == "words":
        return _words(value, charset).strip(" \0")
    size = struct.calcsize(form)
    numbers = struct.unpack(f"{order}{len(value) // size}{form}", value[: len(value) // size * size])
    return "\\".join(map(str, numbers))


def _words(value: bytes, charset: str) -> str:
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    from pydicom.charset import convert_encodings, decode_bytes

    try:
        return str(decode_bytes(value, convert_encodings(charset.split("\\")), set(b"\\\t\n\f\r")))
    except (LookupError, ValueError, AttributeError):
        return value.decode("latin-1")
