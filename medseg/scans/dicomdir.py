"""A DICOMDIR is the index of a disc: which files it refers to. What these hold, their own headers say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medseg.scans.reading import decoding

_STORAGE = b"1.2.840.10008.1.3.10"  # Media Storage Directory Storage
_NOWHERE = Path(os.devnull)  # neither a folder nor a file of its own


def is_dicomdir(path: Path) -> bool:
    """Whether a file is such an index, by its content."""
    try:
        with path.open("rb") as file:
            return begins_dicomdir(file.read(512))
    except OSError:
        return False


def begins_dicomdir(head: bytes) -> bool:
    """Whether these are the first bytes of such an index: its meta information names its class."""
    return head[128:132] == b"DICM" and _STORAGE in head[132:512]


def referenced_files(path: Path) -> tuple[list[Path], list[str]]:
    """The files that an index refers to, in its order, and the names of those that are not there.

    Discs write capitals, and copies of them often do not: where no file has the name as written, its case is passed over.
    A name never leads out of the folder of the index.

    Raises:
        ScanError: ``"unreadable"`` where the index is damaged.
    """
    import pydicom

    with decoding(path, "DICOMDIR", path.name):
        records = pydicom.dcmread(path).get("DirectoryRecordSequence") or ()
        named = [_parts(record.get("ReferencedFileID")) for record in records if record.get("RecordInUseFlag") != 0]
    there: dict[Path, None] = {}
    missing: list[str] = []
    listings: dict[Path, dict[str, Path]] = {}
    for parts in filter(None, named):
        file = path.parent
        for part in parts:
            if file not in listings:
                listings[file] = _listing(file)
            file = listings[file].get(part) or listings[file].get(part.lower()) or _NOWHERE
        if file.is_file():
            there[file] = None
        else:
            missing.append("/".join(parts))
    return list(there), missing


def _parts(value: object) -> list[str]:
    """``ReferencedFileID`` as the parts of a path; the version that ISO 9660 appends (``IM1;1``) is no part of a name."""
    values = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return [str(part).strip(" \0").partition(";")[0] for part in values]


def _listing(folder: Path) -> dict[str, Path]:
    """What lies in a folder, under its name and under its name in small letters."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return {}
    return {entry.name.lower(): entry for entry in entries} | {entry.name: entry for entry in entries}
