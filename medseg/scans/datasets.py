"""The header of one DICOM file as a pydicom Dataset, ten times as fast as pydicom reads it, and where its pixel data begin.

Headers are most of the work of reading a series. Here the elements of a plain little endian file are cut out of its first
kilobytes, and pydicom decodes the few that somebody asks for. Whatever is out of the ordinary is left to pydicom altogether.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

import pydicom
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian
from pydicom.uid import ImplicitVRLittleEndian as ImplicitVR

from medseg.scans.tags import NotPlainError, element_at, end_of_items, start_of_dataset

UNDEFINED_LENGTH = 0xFFFFFFFF
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_CHUNK = 1 << 16
_SYNTAX, _CHARACTER_SET = BaseTag(0x00020010), BaseTag(0x00080005)

Elements = dict[BaseTag, DataElement | RawDataElement]


@dataclass(frozen=True)
class PixelElement:
    """Where the value of the pixel data lies: from ``offset`` on in the file, or in what `inflate` makes of it.

    ``length`` is what the header claims (`UNDEFINED_LENGTH`: encapsulated), ``stored`` how many bytes follow in fact.
    """

    keyword: str
    vr: str
    offset: int
    length: int
    stored: int
    deflated: bool = False


def read_header(file: BinaryIO) -> tuple[Dataset, PixelElement | None]:
    """All elements before the pixel data, the file meta information with its transfer syntax, and the pixel data (or None).

    Raises:
        Exception: of nearly any kind where pydicom cannot read it; wrap the call in `reading.decoding`.
    """
    size, head = os.fstat(file.fileno()).st_size, file.read(_CHUNK)
    while True:
        try:
            return _plain(head, size)
        except struct.error:  # the head ends before the header does
            more = file.read(3 * len(head))
            if not more:
                return _by_pydicom(file, size)
            head += more
        except (NotPlainError, UnicodeDecodeError):
            return _by_pydicom(file, size)


def _plain(head: bytes, size: int) -> tuple[Dataset, PixelElement | None]:
    position, explicit = start_of_dataset(head)
    if head[128:132] != b"DICM":
        raise NotPlainError
    meta, _ = _elements(head, 132, True, position)
    elements, position = _elements(head, position, explicit, size)
    dataset = Dataset(elements)
    dataset.file_meta = FileMetaDataset(meta)
    if _SYNTAX not in meta:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVR
    named = elements.get(_CHARACTER_SET)
    names = named.value.decode("ascii").split("\\") if named is not None and isinstance(named.value, bytes) else [""]
    dataset.set_original_encoding(not explicit, True, convert_encodings([name.strip() for name in names]))
    if position >= size:
        return dataset, None
    tag, length, start = element_at(head, position, explicit)
    vr = head[position + 4 : position + 6].decode("ascii") if explicit else "OW"
    return dataset, PixelElement(_PIXELS[tag], vr, start, length, size - start)


def _elements(head: bytes, position: int, explicit: bool, end: int) -> tuple[Elements, int]:
    """Those from ``position`` on until the pixel data or ``end``. Raises struct.error where ``head`` ends too early."""
    found: Elements = {}
    while position < end:
        tag, length, start = element_at(head, position, explicit)
        if tag in _PIXELS:
            break
        vr = head[position + 4 : position + 6].decode("ascii") if explicit else None
        if length == UNDEFINED_LENGTH:
            if vr == "UN":  # its items are in the other encoding
                raise NotPlainError
            position, vr = end_of_items(head, start, explicit, 0), "SQ"
            value = head[start : position - 8]
        else:
            position = start + length
            value = head[start:position]
        if position > len(head):
            raise struct.error
        key, empty = BaseTag(tag), None if value else empty_value_for_VR(vr, raw=True)
        found[key] = RawDataElement(key, vr, len(value), value or empty, start, not explicit, True)  # type: ignore[arg-type]
    return found, position


def _by_pydicom(file: BinaryIO, size: int) -> tuple[Dataset, PixelElement | None]:
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    dataset.ensure_file_meta()
    syntax = UID(str(dataset.file_meta.get("TransferSyntaxUID", "") or ""))
    if syntax == DeflatedExplicitVRLittleEndian:
        return _deflated(file)
    implicit, little = dataset.original_encoding
    if not syntax:
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVR if implicit else explicit
    position, order = file.tell(), "<" if little else ">"
    head = file.read(12)
    if len(head) < 8:
        return dataset, None
    group, number, length = struct.unpack(f"{order}HHL", head[:8])
    keyword, vr, start = _PIXELS.get(group << 16 | number, ""), "OW", position + 8
    if not implicit and head[4:6].isalpha() and len(head) == 12:  # some datasets turn implicit on the way
        vr, start = head[4:6].decode("ascii"), position + 12
        (length,) = struct.unpack(f"{order}L", head[8:])
    return dataset, PixelElement(keyword, vr, start, length, size - start) if keyword else None


def _deflated(file: BinaryIO) -> tuple[Dataset, PixelElement | None]:
    dataset, value = inflate(file)
    keyword = next((keyword for keyword in _PIXELS.values() if keyword in dataset), None)
    if keyword is None:
        return dataset, None
    vr = str(dataset.pop(keyword).VR)
    return dataset, PixelElement(keyword, vr, 0, len(value), len(value), deflated=True)


def inflate(file: BinaryIO) -> tuple[Dataset, bytes]:
    """The dataset of a deflated file, and the value of its pixel data (empty where there are none)."""
    file.seek(0)
    dataset = pydicom.dcmread(file, force=True)
    keyword = next((keyword for keyword in _PIXELS.values() if keyword in dataset), None)
    return dataset, (dataset[keyword].value or b"") if keyword else b""
