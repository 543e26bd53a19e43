"""What a JPEG, JPEG-LS or JPEG 2000 codestream says of itself, and whether it is whole. Decodes nothing.

Decoders take the size from here, not from DICOM, and some of them crash where a header is damaged, or fill up what was cut
off without a word. So the markers are walked before a decoder sees them (ITU-T T.81 annex B, T.87 annex C, T.800 annex A).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

_SOI, _EOI, _SOS, _DHT = 0xD8, 0xD9, 0xDA, 0xC4
_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, _JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
_FRAMES = (_BASELINE, _EXTENDED, _PROGRESSIVE, _LOSSLESS, _JPEG_LS)
"""Start of frame. Arithmetic coding is not in DICOM."""
_SKIPPED = {0xDB, 0xDD, 0xF8, 0xFE, *range(0xE0, 0xF0)}  # DQT, DRI, LSE, COM, APPn
_J2K = b"\xff\x4f\xff\x51"
_SOT, _EOC = 0xFF90, 0xFFD9


@dataclass(frozen=True)
class Picture:
    """What the codestream holds; ``precision`` is bits of a sample."""

    columns: int
    rows: int
    components: int
    precision: int


def picture_of(codestream: bytes) -> Picture:
    """Walk all markers of a codestream.

    Raises:
        ValueError: it is damaged, or cut short.
        struct.error: it ends within a marker segment.
    """
    start = codestream.find(_J2K, 0, 4096)  # behind the boxes, if it is a whole JP2 file
    return _jpeg2000(codestream, start) if start >= 0 else _jpeg(codestream)


def _jpeg(codestream: bytes) -> Picture:
    if codestream[:2] != b"\xff\xd8":
        raise ValueError("the compressed picture does not begin as one")
    picture: Picture | None = None
    process, tables, position, scans = 0, set[int](), 2, 0
    while True:
        marker, position = _marker(codestream, position)
        if marker == _EOI:
            break
        (length,) = struct.unpack_from(">H", codestream, position)
        segment = codestream[position + 2 : position + length]
        if len(segment) != length - 2:
            raise ValueError("the compressed picture ends within its header")
        position += length
        if marker in _FRAMES and picture is None:
            picture, process = _frame(segment), marker
        elif marker == _DHT:
            tables |= _huffman_tables(segment)
        elif marker == _SOS and picture is not None:
            _check_scan(segment, picture, process, tables)
            position, scans = _end_of_scan(codestream, position), scans + 1
        elif marker not in _SKIPPED:
            raise ValueError(f"the compressed picture has a marker {marker:02X} where none belongs")
    if picture is None or not scans:
        raise ValueError("the compressed picture holds no pixels")
    return picture


def _marker(codestream: bytes, position: int) -> tuple[int, int]:
    """The marker at ``position``, which bytes FF may precede, and where its segment begins."""
    start = position
    while codestream[position : position + 1] == b"\xff":
        position += 1
    if position == start or position >= len(codestream):
        raise ValueError("the compressed picture is damaged, or ends without its end marker")
    return codestream[position], position + 1


def _frame(segment: bytes) -> Picture:
    precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
    factors = segment[7::3]
    if len(segment) != 6 + 3 * components or not 2 <= precision <= 16:
        raise ValueError("the header of the compressed picture is damaged")
    if any(not (1 <= factor >> 4 <= 4 and 1 <= factor & 15 <= 4) for factor in factors):
        raise ValueError("the header of the compressed picture is damaged")
    return Picture(columns, rows, components, precision)


def _huffman_tables(segment: bytes) -> set[int]:
    """Which tables a segment defines, as class << 4 | number; each must be a code that can be decoded."""
    found, position = set(), 0
    while position < len(segment):
        counts = segment[position + 1 : position + 17]
        space = sum(count << (15 - bits) for bits, count in enumerate(counts))
        total = sum(counts)
        if segment[position] & 0xEC or len(counts) != 16 or total > 256 or space > 1 << 16:
            raise ValueError("a Huffman table of the compressed picture is damaged")
        found.add(segment[position])
        position += 17 + total
    if position != len(segment):
        raise ValueError("a Huffman table of the compressed picture is damaged")
    return found


def _check_scan(segment: bytes, picture: Picture, process: int, tables: set[int]) -> None:
    """The components of a scan; those of the processes that GDCM decodes must have their Huffman ``tables``."""
    count = segment[0] if segment else 0
    if not 1 <= count <= picture.components or len(segment) != 4 + 2 * count:
        raise ValueError("the header of the compressed picture is damaged")
    named = segment[2 : 2 + 2 * count : 2]
    wanted = {pair >> 4 for pair in named} if process in (_EXTENDED, _LOSSLESS) else set()
    wanted |= {0x10 | pair & 15 for pair in named} if process == _EXTENDED else set()
    if not wanted <= tables:
        raise ValueError("the compressed picture names a Huffman table that it does not hold")
    if process == _LOSSLESS and not 1 <= segment[-3] <= 7:
        raise ValueError(f"the compressed picture names a predictor {segment[-3]}, which does not exist")


def _end_of_scan(codestream: bytes, position: int) -> int:
    """Where the next marker begins behind coded pixels, in which FF is followed by 00 (JPEG-LS: below 80) or a restart."""
    data = np.frombuffer(codestream, np.uint8, offset=position)
    after = np.flatnonzero(data[:-1] == 0xFF) + 1
    ends = after[(data[after] >= 0x80) & ((data[after] & 0xF8) != 0xD0) & (data[after] != 0xFF)]
    if not len(ends):
        raise ValueError("the compressed picture is cut short: it ends without its end marker")
    return position + int(ends[0]) - 1


def _jpeg2000(codestream: bytes, start: int) -> Picture:
    right, bottom, left, top, *tile = struct.unpack_from(">8L", codestream, start + 8)
    components, depth = struct.unpack_from(">HB", codestream, start + 40)
    columns, rows = right - left, bottom - top
    if not (tile[0] and tile[1] and columns > 0 and rows > 0):
        raise ValueError("the header of the compressed picture is damaged")
    position = start + 2
    while True:  # the main header, then tile parts, each as long as it says
        marker, length = struct.unpack_from(">HH", codestream, position)
        if marker == _SOT:
            break
        if marker < 0xFF50 or marker > 0xFF64:
            raise ValueError("the header of the compressed picture is damaged")
        position += 2 + length
    while position + 12 <= len(codestream) and codestream[position : position + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">L", codestream, position + 6)
        if length and position + length > len(codestream):
            raise ValueError(
                f"the compressed picture is cut short: {position + length - len(codestream):,} bytes are missing"
            )
        position = position + length if length >= 12 else len(codestream)
    return Picture(columns, rows, components, (depth & 0x7F) + 1)
