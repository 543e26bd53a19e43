"""What cases are called: stems of file names, ids from DICOM identifiers, and names that are safe in a path.

Nothing here opens a file. A patient's name or number goes in (to be hashed) and never comes out.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".hdr",
    ".img",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".dcm",
    ".dicom",
    ".ima",
)
"""Endings of files that hold pixels; a file that has one of them and cannot be read is a fault rather than a stranger."""

_UNSAFE = re.compile(r"[^\w.\- ]+")
_CHANNEL = re.compile(r"^(?P<stem>.+)_(?P<number>\d{4})$")


def suffix(name: str) -> str:
    """The known ending of a file name (``".nii.gz"``), empty where there is none."""
    return next((ending for ending in SUFFIXES if name.lower().endswith(ending)), "")


def stem(name: str) -> str:
    """A file name without its known ending; other dots belong to the name."""
    ending = suffix(name)
    return name[: len(name) - len(ending)] if len(name) > len(ending) else name


def channel_of(name: str) -> tuple[str, int] | None:
    """``"p1_0002"`` → ``("p1", 2)``; None where the name has no four-digit channel number."""
    found = _CHANNEL.match(name)
    return (found["stem"], int(found["number"])) if found else None


def slug(name: str) -> str:
    """A name from data (a label, an id) as one safe part of a path: no separators, no leading dot, at most 100 characters.

    ``"../liver & spleen"`` → ``"liver_spleen"``. A name of which nothing is left becomes ``"x"`` and a short hash.
    """
    plain = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))
    plain = re.sub(r"[_ ]+", "_", plain).strip("._ ")[:100].strip("._ ")
    return plain or f"x{digest(name)[:6]}"


def case_id(name: str) -> str:
    """The name itself where it is safe as a folder name on every system, else its `slug`."""
    unsafe = name in ("", ".", "..") or name[0] in ".~-" or re.search(r'[\x00-\x1f/\\:*?"<>|]', name) or len(name) > 150
    return slug(name) if unsafe or name != name.strip() else name


def unique_ids(relative: Sequence[PurePath]) -> list[str]:
    """An id for each file: its stem; where two share it, the parts of the path joined by ``__``.

    Files that differ in nothing but the ending (``a.nii.gz``, ``a.mha``) keep it as a further part.
    """
    plain = [stem(path.name) for path in relative]
    count = Counter(plain)
    joined = [name if count[name] == 1 else joined_stem(path) for name, path in zip(plain, relative, strict=True)]
    count = Counter(joined)
    full = [
        name if count[name] == 1 else "__".join([name, *suffix(path.name).split(".")[1:]])
        for name, path in zip(joined, relative, strict=True)
    ]
    return [case_id(name) for name in full]


def joined_stem(path: PurePath) -> str:
    """``sub/p1.nii.gz`` → ``sub__p1``."""
    return "__".join([*path.parent.parts, stem(path.name)])


def series_id(modality: str, series_uid: str, volume_key: str) -> str:
    """``<modality>_<12 hex of SHA-256 of SeriesInstanceUID and volume key>``: stable, and says nothing of the patient."""
    letters = re.sub(r"[^A-Z0-9]", "", modality.upper()) or "OT"
    return f"{letters}_{digest(series_uid, volume_key)}"


def patient_hash(patient_id: str, issuer: str = "") -> str:
    """A stable stand-in for a PatientID, the same on every machine, so that splits by patient can be kept in a file."""
    return f"patient_{digest('medseg patient', issuer, patient_id)}"


def study_hash(study_uid: str) -> str:
    """A stable stand-in for a StudyInstanceUID."""
    return f"study_{digest('medseg study', study_uid)}"


def series_hash(series_uid: str) -> str:
    """A stable stand-in for a SeriesInstanceUID, which all volumes of the series share; empty for none."""
    return f"series_{digest('medseg series', series_uid)}" if series_uid else ""


def frame_hash(frame_uid: str) -> str:
    """A stable stand-in for a FrameOfReferenceUID; empty for none."""
    return f"frame_{digest('medseg frame', frame_uid)}" if frame_uid else ""


def digest(*parts: str) -> str:
    """12 hex digits of a SHA-256: what a name or UID is shown as."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:12]
