from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended

from medseg.scans.encapsulated import Fragments, can_decode, frame_table
from medseg.scans.reading import ScanError
from tests.dicom_encoding import SYNTAXES

FRAMES = [b"\xff\xd8" + bytes([n]) * (20 + 2 * n) for n in range(5)]


def bytes_of(data: bytes, table: tuple[Fragments, ...]) -> list[bytes]:
    return [b"".join(data[offset : offset + length] for offset, length in frame) for frame in table]


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("has_table", [True, False])
def test_every_frame_is_found(pieces: int, has_table: bool) -> None:
    data = b"head" + encapsulate(FRAMES, fragments_per_frame=pieces, has_bot=has_table)
    table = frame_table(BytesIO(data), 4, 5, (), "x.dcm")
    assert [frame.rstrip(b"\0") for frame in bytes_of(data, table)] == [frame.rstrip(b"\0") for frame in FRAMES]


def test_an_extended_offset_table_is_obeyed() -> None:
    data, offsets, _ = encapsulate_extended(FRAMES)
    starts = struct.unpack(f"<{len(offsets) // 8}Q", offsets)
    assert bytes_of(data, frame_table(BytesIO(data), 0, 5, starts, "x.dcm")) == FRAMES


def test_all_fragments_belong_to_the_only_frame() -> None:
    data = encapsulate([b"".join(FRAMES)], fragments_per_frame=4)
    assert bytes_of(data, frame_table(BytesIO(data), 0, 1, (), "x.dcm")) == [b"".join(FRAMES)]


@pytest.mark.parametrize(
    ("data", "kind", "word"),
    [
        (encapsulate(FRAMES)[:-5], "truncated", "a fragment claims 30 bytes, 25 are left"),
        (encapsulate(FRAMES[:2]), "truncated", "expected 5 compressed frames, found 2"),
        (encapsulate([])[:0], "truncated", "hold no fragment"),
        (b"\1" + encapsulate(FRAMES), "unreadable", "damaged at byte 0"),
    ],
)
def test_what_is_missing_is_said(data: bytes, kind: str, word: str) -> None:
    with pytest.raises(ScanError, match=word) as caught:
        frame_table(BytesIO(data), 0, 5, (), "x.dcm")
    assert caught.value.kind == kind


def test_every_compressed_syntax_that_tests_can_write_has_a_decoder() -> None:
    compressed = [syntax for syntax in SYNTAXES.values() if syntax.is_encapsulated]
    assert len(compressed) == 7
    assert np.all([can_decode(syntax) for syntax in compressed])
