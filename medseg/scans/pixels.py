"""The pixels of one DICOM file: how they are stored, whether they can be there, and their values, frame by frame.

Made from a header alone, `Pixels` refuses what the file cannot hold before memory is taken for it. Plain pixels are read
straight from where they lie, compressed ones by `medseg.scans.encapsulated`. Which planes make a volume is not known here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.uid import UID, ExplicitVRBigEndian

from medseg.scans.datasets import PixelElement, inflate
from medseg.scans.encapsulated import Fragments, can_decode, decode, frame_table
from medseg.scans.multiframe import FunctionalGroups, floats
from medseg.scans.reading import ScanError, decoding
from medseg.scans.tags import header_of
from medseg.volume import Array

_FLOATS = {"FloatPixelData": "<f4", "DoubleFloatPixelData": "<f8"}
_TAGS = {
    0x00280002: ("SamplesPerPixel", "H"),
    0x00280004: ("PhotometricInterpretation", "text"),
    0x00280006: ("PlanarConfiguration", "H"),
    0x00280008: ("NumberOfFrames", "text"),
    0x00280010: ("Rows", "H"),
    0x00280011: ("Columns", "H"),
    0x00280100: ("BitsAllocated", "H"),
    0x00280101: ("BitsStored", "H"),
    0x00280102: ("HighBit", "H"),
    0x00280103: ("PixelRepresentation", "H"),
}


@dataclass(frozen=True)
class Pixels:
    """How the pixels of one file are stored, and where.

    Args:
        allocated, stored, high: bits of a sample; only ``stored`` of them count, ``high`` is the uppermost of these.
        element: where the value lies.
        table: of each compressed frame, its fragments; empty where pixels are stored plainly.
        tables: group 0028 of the header, where it holds a palette or a modality lookup table.
    """

    path: Path
    syntax: UID
    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    planar: int
    photometric: str
    element: PixelElement
    table: tuple[Fragments, ...] = ()
    tables: Dataset | None = None

    @property
    def channels(self) -> int:
        return 3 if self.samples == 3 or self.photometric == "PALETTE COLOR" else 1

    @property
    def frame_bits(self) -> int:
        """Bits of one frame that is not compressed."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.allocated

    @contextmanager
    def open(self) -> Iterator[Frames]:
        """The frames, while the file is open."""
        with decoding(self.path, "DICOM", self.path.name):
            file: Any = self.path.open("rb", buffering=0)
        with file:
            if self.element.deflated:
                with decoding(self.path, "DICOM", self.path.name):
                    file = BytesIO(inflate(file)[1])
            yield Frames(self, file)

    def options(self) -> dict[str, Any]:
        """The same as pydicom's decoders take it."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "samples_per_pixel": self.samples,
            "number_of_frames": self.frames,
            "bits_allocated": self.allocated,
            "bits_stored": self.stored,
            "pixel_representation": int(self.signed),
            "planar_configuration": self.planar,
            "photometric_interpretation": self.photometric,
            "pixel_keyword": self.element.keyword,
            "pixel_vr": self.element.vr,
        }


def pixels_of(file: BinaryIO, dataset: Dataset, element: PixelElement | None, path: Path) -> Pixels:
    """How the pixels of a file are stored whose header was read; ``file`` is asked where compressed frames lie.

    Raises:
        ScanError: ``"truncated"`` where the file cannot hold what its header claims, ``"unsupported"`` for what is not read.
    """
    if element is None or not element.stored or not element.length:
        raise ScanError(f"{path.name} holds no pixel data; it was cut short, copy it again", "truncated")
    header = header_of(dataset, _TAGS)
    numbers = {keyword: int(text) for keyword, text in header.items() if keyword != "PhotometricInterpretation"}
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    floating = _FLOATS.get(element.keyword)
    allocated = 8 * np.dtype(floating).itemsize if floating else numbers.get("BitsAllocated", 0)
    stored = numbers.get("BitsStored", allocated)
    stored = stored if 0 < stored <= allocated else allocated
    high = numbers.get("HighBit", stored - 1)
    samples = numbers.get("SamplesPerPixel", 1)
    photometric = header.get("PhotometricInterpretation", "RGB" if samples == 3 else "MONOCHROME2")
    pixels = Pixels(
        path=path,
        syntax=syntax,
        rows=numbers.get("Rows", 0),
        columns=numbers.get("Columns", 0),
        samples=samples,
        frames=max(numbers.get("NumberOfFrames", 1), 1),
        allocated=allocated,
        stored=stored,
        high=high if stored - 1 <= high < allocated else stored - 1,
        signed=numbers.get("PixelRepresentation", 0) == 1,
        planar=numbers.get("PlanarConfiguration", 0),
        photometric=photometric,
        element=element,
        tables=_tables(dataset, photometric),
    )
    _check_format(pixels)
    if not syntax.is_encapsulated:
        _check_length(pixels)
        return pixels
    offsets = dataset.get("ExtendedOffsetTable") or b""
    starts = struct.unpack(f"<{len(offsets) // 8}Q", offsets[: len(offsets) // 8 * 8])
    return replace(pixels, table=frame_table(file, element.offset, pixels.frames, starts, path.name))


def rescale(dataset: Dataset, groups: FunctionalGroups | None, frame: int, path: Path) -> tuple[float, float]:
    """Slope and intercept of a frame (from 0): its own, that of all frames, or that of the file; else 1 and 0."""
    item = groups.item(frame, "PixelValueTransformationSequence") if groups else None
    found = []
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        holder = item if item is not None and keyword in item else dataset
        value = floats(holder, keyword, 1)
        if value is None and holder.get(keyword) not in (None, ""):
            raise ScanError(f"{path.name}: {keyword} is not a number; the file is damaged, export it again")
        found.append(default if value is None else value[0])
    return found[0], found[1]


class Frames:
    """The frames of an open file, decoded one at a time as they are asked for."""

    def __init__(self, pixels: Pixels, file: BinaryIO) -> None:
        self._pixels, self._file = pixels, file

    def stored(self, number: int) -> Array:
        """The stored values of a frame (from 0), ``(rows, columns)``, or ``(rows, columns, 3)`` in red, green, blue.

        Raises:
            ScanError: ``"truncated"`` or ``"unreadable"``.
        """
        pixels = self._pixels
        with decoding(pixels.path, "DICOM pixel data", pixels.path.name):
            if pixels.table:
                codestream = b"".join(map(self._bytes, pixels.table[number]))
                found = decode(codestream, pixels.syntax, pixels.options())
            elif pixels.samples == 1 and pixels.allocated % 8 == 0 and pixels.syntax != ExplicitVRBigEndian:
                found = self._plain(number)
            elif pixels.samples == pixels.allocated == 1 and pixels.syntax != ExplicitVRBigEndian:
                found = self._bits(number)
            else:
                self._file.seek(pixels.element.offset)
                found, _ = get_decoder(pixels.syntax).as_array(self._file, index=number, **pixels.options())
            return apply_color_lut(found, pixels.tables)[..., :3] if pixels.photometric == "PALETTE COLOR" else found

    def _bytes(self, fragment: tuple[int, int]) -> bytes:
        self._file.seek(fragment[0])
        return self._file.read(fragment[1])

    def _bits(self, number: int) -> Array:
        """Frames of one bit a pixel follow each other without a gap, and need not begin with a byte (PS3.5 8.1.1)."""
        rows, columns = self._pixels.rows, self._pixels.columns
        begin, end = number * rows * columns, (number + 1) * rows * columns
        self._file.seek(self._pixels.element.offset + begin // 8)
        packed = np.frombuffer(self._file.read(-(-end // 8) - begin // 8), np.uint8)
        return np.unpackbits(packed, bitorder="little")[begin % 8 :][: end - begin].reshape(rows, columns)

    def _plain(self, number: int) -> Array:
        """Little endian numbers, read to where they stay."""
        pixels = self._pixels
        kind = _FLOATS.get(pixels.element.keyword) or f"<{'ui'[pixels.signed]}{pixels.allocated // 8}"
        found = np.empty((pixels.rows, pixels.columns), kind)
        self._file.seek(pixels.element.offset + number * found.nbytes)
        if self._file.readinto(found.view(np.uint8)) != found.nbytes:  # type: ignore[attr-defined]
            raise ScanError(
                f"{pixels.path.name}: its pixel data end within frame {number + 1}; copy it again", "truncated"
            )
        if pixels.stored < pixels.allocated and found.dtype.kind in "iu":
            # PS3.5 8.1.1: what the bits above (and below) hold is nobody's business; an arithmetic shift keeps the sign.
            found <<= pixels.allocated - 1 - pixels.high
            found >>= pixels.allocated - pixels.stored
        return found


def write_values(
    out: Array, stored: Array, pixels: Pixels, slope: float, intercept: float, inverted: bool = False
) -> None:
    """Turn stored values into what they mean, in ``out`` ``(C, rows, columns)`` float32.

    Args:
        inverted: take the complement, so that large values of a MONOCHROME1 picture are bright.
    """
    if stored.ndim == 3:
        out[...] = np.moveaxis(stored, -1, 0)
        return
    if inverted:
        stored = (-1 if pixels.signed else (1 << pixels.stored) - 1) - stored.astype(np.int64)
    if pixels.tables is not None and "ModalityLUTSequence" in pixels.tables:
        out[0] = apply_modality_lut(stored, pixels.tables)
        return
    exact = slope == 1 and intercept.is_integer() and abs(intercept) < 1 << 22
    if exact and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:  # float32 holds whole numbers up to 2²⁴
        out[0] = stored
        if intercept:
            out[0] += np.float32(intercept)
    else:
        out[0] = stored * np.float64(slope) + np.float64(intercept)


def _check_format(pixels: Pixels) -> None:
    name = pixels.path.name
    if not pixels.syntax.is_transfer_syntax:
        raise ScanError(
            f"{name} has the transfer syntax {pixels.syntax}, which DICOM does not know; export it again", "unsupported"
        )
    if pixels.syntax.is_encapsulated and not can_decode(pixels.syntax):
        raise ScanError(
            f"{name} is compressed as {pixels.syntax.name}, which is not read; decompress it", "unsupported"
        )
    if pixels.rows < 1 or pixels.columns < 1 or pixels.samples not in (1, 3):
        found = f"{pixels.columns}×{pixels.rows} pixels of {pixels.samples} samples"
        raise ScanError(f"{name}: expected pixels of one or three samples, found {found}", "unsupported")
    if pixels.allocated not in (1, 8, 16, 32, 64):
        raise ScanError(
            f"{name}: samples of {pixels.allocated} bits (BitsAllocated); expected 1, 8, 16, 32 or 64", "unsupported"
        )


def _check_length(pixels: Pixels) -> None:
    """Refuse pixel data that are shorter than the header claims, with the numbers."""
    expected = math.ceil(pixels.frame_bits * pixels.frames / 8)
    found = min(pixels.element.length, pixels.element.stored)
    if found < expected:
        raise ScanError(
            f"the pixel data of {pixels.path.name} are truncated: expected {expected:,} bytes, found {found:,}; copy it again",
            "truncated",
        )


def _tables(dataset: Dataset, photometric: str) -> Dataset | None:
    wanted = photometric == "PALETTE COLOR" or "ModalityLUTSequence" in dataset
    return dataset.group_dataset(0x0028) if wanted else None
