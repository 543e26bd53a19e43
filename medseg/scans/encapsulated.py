"""Compressed frames of a DICOM file: which bytes each one is made of, what they claim to hold, and the decoder that opens them.

One frame is decoded at a time, so that a frame of a long cine costs no more than itself. Decoders are named, one a syntax: those
with a permissive licence that were tried on damaged files. What the pixels mean is not known here.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import HTJ2K as HTJ2KLossy
from pydicom.uid import JPEG2000 as JPEG2000Lossy
from pydicom.uid import (
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medseg.scans.codestream import Picture, picture_of
from medseg.scans.reading import ScanError
from medseg.volume import Array

Fragments = tuple[tuple[int, int], ...]
"""Offset in the file and length of each piece of a frame."""

_PLUGINS = {
    JPEGBaseline8Bit: "pillow",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000Lossy: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2KLossy: "pylibjpeg",
    RLELossless: "pylibjpeg",
}
_ITEM, _SEQUENCE_ENDS = 0xFFFEE000, 0xFFFEE0DD
_EMPTY_TABLE = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
_STARTS = (b"\xff\xd8", b"\xff\x4f")  # of a JPEG or JPEG-LS image, of a JPEG 2000 codestream


def can_decode(syntax: UID) -> bool:
    return syntax in _PLUGINS or syntax == JPEGExtended12Bit


def frame_table(
    file: BinaryIO, start: int, frames: int, offsets: Sequence[int], file_name: str
) -> tuple[Fragments, ...]:
    """Where each frame lies in encapsulated pixel data whose value starts at ``start`` (PS3.5 A.4). Reads item headers only.

    Args:
        offsets: the extended offset table; empty where there is none.

    Raises:
        ScanError: ``"truncated"`` where fragments are cut short, or there are fewer frames than expected.
    """
    table, items = _items(file, start, file_name)
    if not items:
        raise ScanError(f"{file_name}: its pixel data hold no fragment; it was cut short, copy it again", "truncated")
    if len(items) == frames:
        return tuple((item,) for item in items)
    if frames == 1:
        return (tuple(items),)
    first = items[0][0] - 8
    begins = {first + offset for offset in (offsets or table)}
    if len(begins) != frames:
        begins = {offset - 8 for offset, _ in items if _read(file, offset, 2) in _STARTS}
    groups: list[list[tuple[int, int]]] = []
    for item in items:
        if item[0] - 8 in begins or not groups:
            groups.append([])
        groups[-1].append(item)
    if len(groups) < frames:
        raise ScanError(
            f"{file_name}: expected {frames} compressed frames, found {len(groups)}; it was cut short, copy it again",
            "truncated",
        )
    return tuple(tuple(group) for group in groups)


def decode(codestream: bytes, syntax: UID, options: Mapping[str, Any]) -> Array:
    """One compressed frame as stored values ``(rows, columns)``, or ``(rows, columns, 3)`` in red, green, blue.

    Args:
        options: what the header says of the pixels, as pydicom's decoders take it (``rows``, ``bits_stored`` …).

    Raises:
        Exception: of any kind where it cannot be decoded; wrap the call in `reading.decoding`.
    """
    if syntax != RLELossless:  # which says nothing of sizes
        picture = _check_claim(codestream, options)
        if syntax == JPEGExtended12Bit and picture.precision > 8:
            return _decode_12_bits(codestream, options)
    padded = codestream + b"\0" * (len(codestream) % 2)
    item = _EMPTY_TABLE + struct.pack("<HHL", 0xFFFE, 0xE000, len(padded)) + padded
    syntax = JPEGBaseline8Bit if syntax == JPEGExtended12Bit else syntax
    plugin = _PLUGINS[syntax]
    array, _ = get_decoder(syntax).as_array(item, index=0, decoding_plugin=plugin, **{**options, "number_of_frames": 1})
    return array


def _items(file: BinaryIO, start: int, file_name: str) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """The basic offset table, and offset and length of each fragment behind it."""
    end = file.seek(0, 2)
    found: list[tuple[int, int]] = []
    position = start
    while position + 8 <= end:
        group, number, length = struct.unpack("<HHL", _read(file, position, 8))
        tag, position = group << 16 | number, position + 8
        if tag == _SEQUENCE_ENDS:
            break
        if tag != _ITEM:
            raise ScanError(f"{file_name}: its compressed pixel data are damaged at byte {position - 8}; copy it again")
        if position + length > end:
            raise ScanError(
                f"{file_name}: the compressed pixel data are truncated: a fragment claims {length:,} bytes, "
                f"{end - position:,} are left; copy it again",
                "truncated",
            )
        found.append((position, length))
        position += length
    if not found:
        return (), []
    offset, length = found[0]
    table = _read(file, offset, length)
    return struct.unpack(f"<{length // 4}L", table[: length // 4 * 4]), found[1:]


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _check_claim(codestream: bytes, options: Mapping[str, Any]) -> Picture:
    """Refuse a codestream that is damaged, or of another size than the header's, before a decoder takes memory for it."""
    picture = picture_of(codestream)
    claimed = (picture.columns, picture.rows, picture.components)
    expected = (options["columns"], options["rows"], options["samples_per_pixel"])
    narrow = picture.precision > 16 or options["bits_allocated"] in (8, 16)  # GDCM ends the process for others
    if claimed != expected or picture.precision > options["bits_allocated"] or not narrow:
        found, wanted = ("×".join(map(str, size)) for size in (claimed, expected))
        raise ValueError(
            f"the compressed picture is {found} of {picture.precision} bits, the header says {wanted} of at most "
            f"{options['bits_allocated']}"
        )
    return picture


def _decode_12_bits(codestream: bytes, options: Mapping[str, Any]) -> Array:
    """JPEG Extended of 12 bits, with GDCM: pydicom does not ask it for them, though it decodes them."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(codestream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((options["columns"], options["rows"], 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(options["photometric_interpretation"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(JPEGExtended12Bit))))
    samples, allocated, stored = (options[key] for key in ("samples_per_pixel", "bits_allocated", "bits_stored"))
    image.SetPixelFormat(gdcm.PixelFormat(samples, allocated, stored, stored - 1, options["pixel_representation"]))
    pixels = image.GetBuffer().encode("utf-8", "surrogateescape")
    dtype = np.dtype(f"{'ui'[options['pixel_representation']]}{allocated // 8}")
    shape = (options["rows"], options["columns"], samples)[: 2 + (samples > 1)]
    return np.frombuffer(pixels, dtype).reshape(shape)
