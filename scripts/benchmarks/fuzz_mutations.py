"""Ways to spoil a file: what `fuzz_readers.py` does to the sound files of `fuzz_files`. Reads nothing itself.

A mutation is a function of the bytes and a random generator, so that a case is known by its seed and number alone. Those of
one format know its fields; they claim what cannot be, or contradict each other.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

Random = np.random.Generator
Mutation = Callable[[bytes, Random], bytes]


def mutations(name: str) -> dict[str, Mutation]:
    """What can be done to the target of a seed: to any file, and to one of its format."""
    own: dict[str, dict[str, Mutation]] = {
        "dicom": {"tags": _dicom_tags, "claims": _dicom_claims},
        "nifti": {"fields": _nifti_fields, "claims": _nifti_claims},
        "nrrd": {"fields": _text_fields(b":", _NRRD), "claims": _text_fields(b":", {b"sizes": _HUGE_SIZES})},
        "metaimage": {"fields": _text_fields(b"=", _META), "claims": _text_fields(b"=", {b"DimSize": _HUGE_SIZES})},
        "picture": {"claims": _picture_claims},
    }
    return {
        "flips": _flips,
        "truncation": _truncation,
        "numbers": _numbers,
        "pieces": _pieces,
        **own[name.split("/")[0]],
    }


# What can happen to any file --------------------------------------------------------------------------------------------


def _somewhere(length: int, random: Random) -> int:
    """A place in a file, half of the time among its first bytes, where headers are."""
    return int(random.integers(0, min(length, 1500) if random.random() < 0.5 else length))


def _flips(raw: bytes, random: Random) -> bytes:
    spoilt = bytearray(raw)
    for _ in range(int(2 ** random.uniform(0, 7))):
        spoilt[_somewhere(len(raw), random)] ^= 1 << int(random.integers(8))
    return bytes(spoilt)


def _truncation(raw: bytes, random: Random) -> bytes:
    return raw[: _somewhere(len(raw), random)]


def _numbers(raw: bytes, random: Random) -> bytes:
    """Integers and floats of the edges of their types at some places."""
    spoilt = bytearray(raw)
    for _ in range(int(random.integers(1, 4))):
        order = "<>"[int(random.integers(2))]
        code, value = [
            ("H", 0), ("H", 0xFFFF), ("h", -1), ("I", 0), ("I", 0x7FFFFFFF), ("I", 0xFFFFFFFF), ("I", 0x80000000),
            ("Q", 1 << 40), ("f", float("nan")), ("f", float("inf")), ("f", -1e30), ("d", 1e300), ("d", float("nan")),
        ][int(random.integers(13))]  # fmt: skip
        at = _somewhere(len(raw), random) & ~1
        number = struct.pack(order + code, value)
        spoilt[at : at + len(number)] = number
    return bytes(spoilt)


def _pieces(raw: bytes, random: Random) -> bytes:
    """A piece is lost, doubled, zeroed, or comes from elsewhere in the file."""
    at, length = _somewhere(len(raw), random), int(2 ** random.uniform(0, 9))
    other = _somewhere(len(raw), random)
    piece = [b"", raw[at : at + length] * 2, bytes(length), raw[other : other + length]][int(random.integers(4))]
    return raw[:at] + piece + raw[at + length :]


# What can happen to files of one format ---------------------------------------------------------------------------------

_ANYTHING = [
    "",
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    65535,
    2**31 - 1,
    "NaN",
    "inf",
    "-1e30",
    "abc",
    "1\\2",
    "1\\2\\3\\4\\5\\6\\7",
    b"\xff\xfe",
]
_TAGS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "SeriesInstanceUID",
    "SOPInstanceUID", "SOPClassUID", "Modality", "ImageType", "InstanceNumber", "SpecificCharacterSet", "PatientID",
    "SegmentationType", "MaximumFractionalValue", "ReferencedSegmentNumber", "SegmentNumber", "ContourData",
    "NumberOfContourPoints", "ContourGeometricType", "ReferencedROINumber", "ROINumber", "ReferencedSOPInstanceUID",
    "FrameOfReferenceUID", "DimensionIndexValues", "PixelData", "RedPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "NumberOfSlices", "SliceVector", "DetectorVector", "FrameIncrementPointer",
    "TransferSyntaxUID", "PlanePositionSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SegmentSequence", "ROIContourSequence", "StructureSetROISequence", "ReferencedSeriesSequence",
)  # fmt: skip
_WORDS: dict[str, list[Any]] = {
    "PhotometricInterpretation": ["MONOCHROME1", "RGB", "YBR_FULL_422", "YBR_FULL", "PALETTE COLOR", "XYZ"],
    "TransferSyntaxUID": [
        f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".5", ".1.99", ".4.50", ".4.70", ".4.80", ".4.90", ".4.201", ".9")
    ],
    "Modality": ["CT", "MR", "PT", "NM", "US", "CR", "SEG", "RTSTRUCT", "SR", "OT", ""],
    "SegmentationType": ["BINARY", "FRACTIONAL", "LABELMAP", ""],
    "ImageType": ["ORIGINAL\\PRIMARY\\MOSAIC", "DERIVED", "ORIGINAL\\PRIMARY\\RECON TOMO"],
    "ImageOrientationPatient": ["0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "1e300\\0\\0\\0\\1e300\\0", "0\\1\\0\\0\\0\\-1"],
    "ImagePositionPatient": ["0\\0\\0", "1e300\\-1e300\\0", "1e5\\0\\0", "NaN\\0\\0"],
    "PixelSpacing": ["0\\0", "-1\\1", "1e-30\\1e-30", "1e30\\1e30"],
    "BitsAllocated": [1, 8, 12, 16, 32, 64],
    "SpecificCharacterSet": ["ISO_IR 192", "ISO 2022 IR 87", "nonsense"],
}  # fmt: skip


def _dicom_tags(raw: bytes, random: Random) -> bytes:
    """Values that contradict others or make no sense, anywhere in the object; elements that are gone."""

    def spoil(dataset: Dataset) -> None:
        for _ in range(int(random.integers(1, 4))):
            keyword = _TAGS[int(random.integers(len(_TAGS)))]
            holders = [d for d in (dataset.file_meta, *_datasets_in(dataset)) if keyword in d]
            if not holders:
                holders = [dataset]
            holder = holders[int(random.integers(len(holders)))]
            values = _WORDS.get(keyword, []) + (_ANYTHING if random.random() < 0.5 or keyword not in _WORDS else [])
            _set(holder, keyword, values[int(random.integers(len(values)))], gone=random.random() < 0.25)

    return _edited(raw, random, spoil)


def _dicom_claims(raw: bytes, random: Random) -> bytes:
    """Rows, columns, frames or bits that claim up to hundreds of GB."""

    def spoil(dataset: Dataset) -> None:
        large = [60000, 65535, 32768, 5000]
        for keyword in ("Rows", "Columns"):
            if random.random() < 0.8:
                _set(dataset, keyword, large[int(random.integers(4))])
        if random.random() < 0.6:
            _set(dataset, "NumberOfFrames", [1000, 2**31 - 1, 10**6, 50][int(random.integers(4))])
        if random.random() < 0.3:
            _set(dataset, "BitsAllocated", [1, 8, 32, 64][int(random.integers(4))])
        if random.random() < 0.2:
            _set(dataset, "SamplesPerPixel", [3, 4, 65535][int(random.integers(3))])

    return _edited(raw, random, spoil)


def _datasets_in(dataset: Dataset) -> list[Dataset]:
    found = [dataset]
    for element in dataset:
        if element.VR == "SQ":
            found += [inner for item in element.value for inner in _datasets_in(item)]
    return found


def _set(dataset: Dataset, keyword: str, value: Any, *, gone: bool = False) -> None:
    if gone and keyword in dataset:
        del dataset[keyword]
        return
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
    if vr == "SQ":
        items = list(dataset.get(keyword) or [])
        value = (items * 2, items[:-1], items[::-1], [Dataset()])[value % 4 if isinstance(value, int) else 1]
    elif vr in ("US", "SS", "UL"):
        value = value % 65536 if isinstance(value, int) else 0
    elif vr in ("OB", "OW", "UN"):
        value = value if isinstance(value, bytes) else b"\0\1" * 3
    elif isinstance(value, bytes) or vr not in ("DS", "IS", "FD", "AT"):
        value = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    try:
        dataset[keyword] = DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)
    except (ValueError, TypeError, OverflowError):  # not even pydicom takes it: as it was read from a file
        dataset[keyword] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), vr, len(str(value)), str(value).encode("latin-1", "replace"), 0, False, True
        )


def _edited(raw: bytes, random: Random, spoil: Callable[[Dataset], None]) -> bytes:
    """The object with its elements changed; as bits where it cannot be written so."""
    mode = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        dataset = pydicom.dcmread(io.BytesIO(raw), force=True)
        syntax = dataset.file_meta.TransferSyntaxUID
        spoil(dataset)
        claimed = dataset.file_meta.get("TransferSyntaxUID", "")
        if claimed != syntax:  # written in its own syntax under the name of another one, in place
            dataset.file_meta.TransferSyntaxUID = syntax
        stream = io.BytesIO()
        pydicom.dcmwrite(stream, dataset, enforce_file_format=False)
        written = stream.getvalue()
        if claimed != syntax:
            old = str(syntax).encode()
            written = written.replace(old, str(claimed).encode()[: len(old)].ljust(len(old), b"\0"), 1)
        return written
    except Exception:
        return _flips(raw, random)
    finally:
        pydicom.config.settings.writing_validation_mode = mode


def _unzipped(change: Mutation) -> Mutation:
    """A mutation of what a gzip file holds; the stream itself is sound."""

    def changed(raw: bytes, random: Random) -> bytes:
        zipped = raw[:2] == b"\x1f\x8b"
        spoilt = change(gzip.decompress(raw) if zipped else raw, random)
        return gzip.compress(spoilt, mtime=0) if zipped else spoilt

    return changed


@_unzipped
def _nifti_fields(raw: bytes, random: Random) -> bytes:
    """Fields of the header that contradict each other: dimensions, types, scales, places."""
    spoilt = bytearray(raw)
    order = "<" if raw[0] in (0x5C, 0x1C) else ">"
    if raw[4:8] in (b"n+2\0", b"ni2\0"):
        fields = {12: "h", 14: "h", **{16 + 8 * n: "q" for n in range(8)}, **{104 + 8 * n: "d" for n in range(8)}}
        fields |= {168: "q", 176: "d", 184: "d", 344: "i", 348: "i", **{400 + 8 * n: "d" for n in range(12)}}
    else:
        fields = {70: "h", 72: "h", **{40 + 2 * n: "h" for n in range(8)}, **{76 + 4 * n: "f" for n in range(8)}}
        fields |= {108: "f", 112: "f", 116: "f", 252: "h", 254: "h", **{256 + 4 * n: "f" for n in range(18)}}
    for _ in range(int(random.integers(1, 5))):
        at = list(fields)[int(random.integers(len(fields)))]
        code = fields[at]
        whole = [0, 1, 2, 3, 4, 7, -1, 16, 64, 128, 512, 2304, 32767]
        real = [0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 352.0, 1e6, 0.5]
        values: list[Any] = real if code in "fd" else whole
        struct.pack_into(order + code, spoilt, at, values[int(random.integers(len(values)))])
    return bytes(spoilt)


@_unzipped
def _nifti_claims(raw: bytes, random: Random) -> bytes:
    spoilt = bytearray(raw)
    order = "<" if raw[0] in (0x5C, 0x1C) else ">"
    sizes = [int(10 ** random.uniform(2, 4.4)) for _ in range(3)]
    if raw[4:8] in (b"n+2\0", b"ni2\0"):
        struct.pack_into(f"{order}3q", spoilt, 24, *(size * 1000 if random.random() < 0.2 else size for size in sizes))
    else:
        struct.pack_into(f"{order}3h", spoilt, 42, *sizes)
    return bytes(spoilt)


_HUGE_SIZES = [
    b"6000 6000 6000",
    b"1000000 1000 100",
    b"2 2 50000000000",
    b"9" * 20 + b" 1 1",
    b"3037000500 3037000500 2",
]
_ODD = [
    b"",
    b"0",
    b"-1",
    b"1",
    b"nan",
    b"inf",
    b"1e300",
    b"none",
    b"one two",
    b"1 2",
    b"1 2 3 4",
    b"\xff\xfe",
    b"9" * 400,
]
_NRRD = {
    b"type": [b"block", b"uint8", b"double", b"float", b"long long int", b"nonsense", b""],
    b"dimension": [b"2", b"4", b"-3", b"three", b"16"],
    b"sizes": [b"36 34", b"36 34 -4", b"36 0 4", b"36 34 4 1", b"3 36 34", b"34 36 4"],
    b"space": [b"RAS", b"3D-right-handed", b"3D-left-handed", b"scanner-xyz", b"left-left-left", b"nowhere", b"LPST"],
    b"space directions": [
        b"none (1,0,0) (0,1,0)",
        b"(1,0,0) (1,0,0) (0,0,1)",
        b"(0,0,0) (0,1,0) (0,0,1)",
        b"(1,0) (0,1) (1,1)",
    ],
    b"space origin": [b"(nan,nan,nan)", b"(1e300,0,0)", b"(1,2)", b"1 2 3"],
    b"kinds": [b"RGB-color domain domain", b"list domain domain domain", b"domain"],
    b"endian": [b"big", b"middle"],
    b"encoding": [b"raw", b"gzip", b"bzip2", b"ascii", b"hex", b"zrl"],
    b"data file": [b"gone.raw", b"LIST", b"x%03d.raw 1 3 1", b".", b"/dev/zero", b"a.nhdr"],
    b"line skip": [b"1", b"-1", b"99999999999"],
    b"byte skip": [b"-1", b"-2", b"100", b"99999999999999"],
}
_META = {
    b"NDims": [b"2", b"4", b"-3", b"three"],
    b"DimSize": [b"36 34", b"36 34 -4", b"36 0 4", b"3 36 34 4", b"34 36 4"],
    b"TransformMatrix": [b"1 0 0 0 1 0", b"1 0 0 1 0 0 0 0 1", b"nan 0 0 0 1 0 0 0 1", b"0 0 0 0 0 0 0 0 0"],
    b"Offset": [b"nan nan nan", b"1e300 0 0", b"1 2"],
    b"ElementSpacing": [b"0 0 0", b"-1 1 1", b"1e300 1 1", b"1e-300 1 1", b"1 1"],
    b"ElementType": [b"MET_DOUBLE", b"MET_UCHAR", b"MET_OTHER", b"MET_USHORT_ARRAY"],
    b"ElementNumberOfChannels": [b"0", b"3", b"-1", b"two", b"99999999999"],
    b"CompressedData": [b"True", b"False", b"maybe"],
    b"BinaryData": [b"False"],
    b"HeaderSize": [b"-1", b"100", b"99999999999999", b"-5", b"x"],
    b"ElementDataFile": [b"gone.raw", b"LIST", b"x%03d.raw 1 3 1", b".", b"/dev/zero", b"a.mha", b""],
}


def _text_fields(separator: bytes, fields: Mapping[bytes, list[bytes]]) -> Mutation:
    """Lines of a header in text that say something else, are missing, doubled or added."""

    def changed(raw: bytes, random: Random) -> bytes:
        lines = raw.split(b"\n")
        for _ in range(int(random.integers(1, 4)) if len(fields) > 1 else 1):
            name = list(fields)[int(random.integers(len(fields)))]
            values = fields[name] + (_ODD if random.random() < 0.3 else [])
            line = name + separator + b" " + values[int(random.integers(len(values)))]
            at = next((n for n, old in enumerate(lines) if old.split(separator)[0].strip() == name), None)
            if at is None:
                lines.insert(1, line)
            elif random.random() < 0.1 and len(fields) > 1:
                del lines[at]
            else:
                lines[at] = line
        return b"\n".join(lines)

    return changed


def _picture_claims(raw: bytes, random: Random) -> bytes:
    """Width and height of a PNG with a sound checksum; in other formats the numbers of its size wherever they stand."""
    sizes = [int(10 ** random.uniform(3, 5)) for _ in range(2)]
    if raw[:4] == b"\x89PNG":
        header = raw[12:16] + struct.pack(">2I", *sizes) + raw[24:29]
        return raw[:12] + header + struct.pack(">I", zlib.crc32(header)) + raw[33:]
    for old, new in zip((34, 36), sizes, strict=True):
        for code in (">H", "<H"):
            raw = raw.replace(struct.pack(code, old), struct.pack(code, min(new, 65535)), 3)
    return raw
