"""Unique identifiers that stay the same whenever the same thing is written: hashes of what they stand for, never random."""

from __future__ import annotations

import hashlib
from uuid import UUID

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID


def uid(*parts: str | bytes) -> UID:
    """A UID for what ``parts`` say, from their SHA-256: the same parts give the same UID on every machine.

    It has the form of PS3.5 B.2, ``2.25.`` and the decimal value of a UUID.
    """
    digest = hashlib.sha256()
    for part in parts:
        body = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(body).to_bytes(8, "little") + body)
    return UID(f"2.25.{UUID(bytes=digest.digest()[:16], version=5).int}")


def identify(dataset: Dataset, *content: str | bytes) -> None:
    """Give an object that is otherwise complete the UIDs of its series and of itself: hashes of all that it says.

    So the same input gives the same object under the same UID, and another mask, model or version never the UID of
    something else.

    Args:
        content: stands for what the dataset does not hold yet, such as a hash of its pixels.
    """
    said = encoded(dataset)
    dataset.SeriesInstanceUID = uid("series", said, *content)
    dataset.SOPInstanceUID = uid("instance", said, *content)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def encoded(dataset: Dataset) -> bytes:
    """The elements of a dataset as bytes (explicit VR, little endian), without file meta information."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())
