"""What a file is, by its first bytes: never by its name. Of DICOM the header is read, of other formats nothing more."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import TypeAlias

from medseg.scans.headers import HEAD, Annotation, Slice, held_by
from medseg.scans.reading import ScanError
from medseg.structures import SourceKind

Content: TypeAlias = SourceKind | tuple[Slice, ...] | Annotation | ScanError | None
"""The kind of a file, what its DICOM header says, or why it cannot be read; None for what is no scan."""


def content_of(path: Path) -> Content:
    """What one file is; of DICOM what its header says. Never raises."""
    bare = False
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            kind = _kind_of(head)
            bare = kind is None and _may_be_bare_dicom(head)
            return held_by(path, head, file) if kind == "dicom" or bare else kind
    except ScanError as error:
        return None if error.kind == "unreadable" and bare else error
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ScanError(f"{path.name}: cannot be opened ({reason}); copy it again or leave it out")


def _kind_of(head: bytes) -> SourceKind | None:
    if head[:2] == b"\x1f\x8b":
        return "nifti" if _is_nifti(zlib.decompressobj(31).decompress(head[:1024], 1024)) else None
    if head[128:132] == b"DICM":
        return "dicom"
    if _is_nifti(head):
        return "nifti"
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "picture"
    if re.match(rb"\s*(ObjectType|Comment|NDims)\s*=", head) and b"NDims" in head[:1024]:
        return "metaimage"
    return None


def _is_nifti(head: bytes) -> bool:
    size = {head[:4], head[:4][::-1]}
    one = b"\x00\x00\x01\x5c" in size and head[344:348] in (b"n+1\0", b"ni1\0")
    return one or (b"\x00\x00\x02\x1c" in size and head[4:8] in (b"n+2\0", b"ni2\0"))


def _may_be_bare_dicom(head: bytes) -> bool:
    """Whether a dataset without preamble may begin here: with an element of group 0002 or 0008."""
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"):
        return False
    return head[:2] != b"\x02\x00" or head[4:6] == b"UL" or head[4:8] == b"\x04\x00\x00\x00"
