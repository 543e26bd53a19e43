"""UIDs are hashes: the same on every machine, and never those of something else."""

from __future__ import annotations

import hashlib

from pydicom.dataset import Dataset, FileMetaDataset

from medseg.export.uids import identify, uid


def test_a_uid_says_what_its_parts_say() -> None:
    assert uid("a", "b") == uid("a", b"b")
    assert len({uid("a", "b"), uid("ab"), uid("a", "b", ""), uid("b", "a"), uid("aa", "b")}) == 5
    assert all(uid(str(n)).is_valid for n in range(100))


def test_a_uid_keeps_its_value() -> None:
    # Written out from RFC 9562: a second run, of a later version too, must find the objects of the first.
    known = hashlib.sha256(b"\x01" + bytes(7) + b"a").digest()[:16]
    bits = int.from_bytes(known) & ~(0xF << 76) & ~(0x3 << 62) | 5 << 76 | 2 << 62
    assert uid("a") == f"2.25.{bits}"


def test_an_object_is_identified_by_all_that_it_says() -> None:
    def made(name: str, content: bytes = b"") -> Dataset:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.SeriesDescription = name
        identify(dataset, content)
        return dataset

    one = made("one")
    assert one.SOPInstanceUID == made("one").SOPInstanceUID == one.file_meta.MediaStorageSOPInstanceUID
    uids = {entry.SOPInstanceUID for entry in (one, made("two"), made("one", b"pixels"))}
    assert len(uids | {one.SeriesInstanceUID}) == 4
