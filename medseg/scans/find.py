"""Walks a path and says which volumes lie below it, from content and headers alone; no pixel is read.

What a file is, its first bytes say; its name is used only to tell a broken scan (``x.nii.gz`` that is no gzip) from a stranger
(``README.md``). Knows nothing of labels, tables or layouts.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from tqdm import tqdm

from medseg.errors import MedsegError
from medseg.scans.names import suffix, unique_ids
from medseg.scans.reading import ScanError
from medseg.structures import Fault, Source, SourceKind

NO_SCAN = "no_scan"
"""Kind of the faults of files that are no scan and claim not to be one; they are listed, and are nobody's mistake."""

PICTURES = frozenset(("CR", "DX", "MG", "US", "IO", "PX", "XA", "RF", "XC", "OP", "ES", "GM", "SM", "DG", "OT", "SC"))
"""Modalities whose single frames are pictures unless they carry a position in the patient."""

_HEAD = 1024


@dataclass(frozen=True)
class FoundSource:
    """A volume that was found.

    Args:
        id: file name without suffixes, or `names.series_id` for DICOM; unique among what was found.
        relative: the file below the path that was walked; for DICOM the folder that holds all its slices.
        patient, study: hashes that DICOM files of one patient or study share; empty for other files.
    """

    id: str
    source: Source
    relative: PurePath
    patient: str = ""
    study: str = ""


@dataclass(frozen=True)
class Found:
    """What lies below a path: volumes by id, and files that were not read, each with its reason."""

    sources: tuple[FoundSource, ...]
    unread: tuple[Fault, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The unread files that claim to be scans."""
        return tuple(fault for fault in self.unread if fault.kind != NO_SCAN)


def find(path: Path | Sequence[Path], *, progress: bool = False) -> Found:
    """Every volume below ``path`` (a folder, a file, or several of these), sorted by id.

    Raises:
        MedsegError: nothing exists at ``path``.
    """
    starts = [Path(path)] if isinstance(path, (str, Path)) else [Path(p) for p in path]
    missing = [str(start) for start in starts if not start.exists()]
    if missing:
        raise MedsegError(
            f"{', '.join(missing)}: no such file or folder; look at how it is spelt and at where you stand"
        )
    root = Path(os.path.commonpath([start if start.is_dir() else start.parent for start in starts]))
    files = list(dict.fromkeys(file for start in starts for file in (_walk(start) if start.is_dir() else [start])))
    plain: list[tuple[Path, SourceKind]] = []
    dicom: list[Path] = []
    unread: list[_Unread] = []
    for file in tqdm(files, desc="finding scans", unit="file", disable=not progress, leave=False, delay=1):
        relative = file.relative_to(root)
        try:
            kind = sniff(file)
        except (OSError, EOFError, zlib.error) as error:
            reason = f"{relative.as_posix()}: cannot be opened ({error}); copy it again or leave it out"
            unread.append(_Unread(relative, "unreadable", reason))
            continue
        if kind == "dicom":
            dicom.append(file)
        elif kind is not None:
            plain.append((file, kind))
        elif not _is_partner(file):
            unread.append(_stranger(relative))
    found = [
        FoundSource(name, Source(kind, (file,)), file.relative_to(root))
        for name, (file, kind) in zip(unique_ids([f.relative_to(root) for f, _ in plain]), plain, strict=True)
    ]
    series, left_out = _dicom_sources(dicom, root, progress)
    return Found(tuple(sorted([*found, *series], key=lambda f: f.id)), _as_faults([*unread, *left_out]))


def find_one(path: Path) -> FoundSource:
    """The one volume that a path names: a file, or a folder that holds one DICOM series.

    Raises:
        ScanError: nothing there (``missing_file``), no volume (``unreadable``) or several (``ambiguous``).
    """
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder", "missing_file")
    found = find(path)
    if len(found.sources) == 1:
        return found.sources[0]
    if not found.sources:
        reasons = "; ".join(fault.message for fault in (found.faults or found.unread)[:3]) or "it is empty"
        raise ScanError(f"{path}: expected a scan, found none: {reasons}")
    names = ", ".join(entry.id for entry in found.sources[:5])
    raise ScanError(f"{path}: expected one volume, found {len(found.sources)}: {names}; name one of them", "ambiguous")


def sniff(path: Path) -> SourceKind | None:
    """What a file's first bytes say it is; None for what is no scan.

    Raises:
        OSError, zlib.error: the file cannot be opened, or is a broken gzip.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[:2] == b"\x1f\x8b":
        head = zlib.decompressobj(31).decompress(head, _HEAD)
        return "nifti" if _is_nifti(head) else None
    if head[128:132] == b"DICM":
        return "dicom"
    if _is_nifti(head):
        return "nifti"
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "picture"
    if re.match(rb"\s*(ObjectType|Comment|NDims)\s*=", head) and b"NDims" in head:
        return "metaimage"
    return "dicom" if _is_bare_dicom(head, path) else None


def _is_nifti(head: bytes) -> bool:
    size = {head[:4], head[:4][::-1]}
    one = b"\x00\x00\x01\x5c" in size and head[344:348] in (b"n+1\0", b"ni1\0")
    return one or (b"\x00\x00\x02\x1c" in size and head[4:8] in (b"n+2\0", b"ni2\0"))


def _is_bare_dicom(head: bytes, path: Path) -> bool:
    """A dataset without preamble: it starts with an element of group 0002 or 0008 of plausible length, and parses."""
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08"):
        return False
    if head[:2] == b"\x02\x00" and head[4:6] != b"UL" and head[4:8] != b"\x04\x00\x00\x00":
        return False
    from medseg.scans import series

    try:
        series.read_header(path)
    except ScanError as error:
        return error.kind != "unreadable"
    return True


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below ``folder`` in a fixed order; hidden ones and what macOS leaves behind are passed over."""
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(files):
            if not name.startswith(".") and (Path(here) / name).is_file():
                yield Path(here) / name


@dataclass(frozen=True)
class _Unread:
    relative: PurePath
    kind: str
    reason: str
    name: str = ""


def _as_faults(unread: Sequence[_Unread]) -> tuple[Fault, ...]:
    """A fault each, under the id that the file would have had; strangers have none."""
    own = [entry for entry in unread if entry.kind != NO_SCAN and not entry.name]
    ids = dict(zip([entry.relative for entry in own], unique_ids([entry.relative for entry in own]), strict=True))
    return tuple(
        Fault("" if entry.kind == NO_SCAN else entry.name or ids[entry.relative], entry.kind, entry.reason)
        for entry in sorted(unread, key=lambda entry: entry.relative)
    )


def _stranger(relative: PurePath) -> _Unread:
    ending = suffix(relative.name)
    if ending:
        reason = f"is named {ending}, but its content is none of NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG, TIFF"
        message = f"{relative.as_posix()}: {reason}; it is damaged or misnamed: copy it again or leave it out"
        return _Unread(relative, "unreadable", message)
    return _Unread(relative, NO_SCAN, f"{relative.as_posix()}: no scan by its content")


def _is_partner(file: Path) -> bool:
    """Whether the file holds the pixels of a header beside it (.img of .hdr)."""
    return file.suffix.lower() == ".img" and file.with_suffix(".hdr").exists()


def _dicom_sources(files: Sequence[Path], root: Path, progress: bool) -> tuple[list[FoundSource], list[_Unread]]:
    if not files:
        return [], []
    from medseg.scans import series

    slices, unread = [], []
    for file in tqdm(files, desc="reading DICOM headers", unit="file", disable=not progress, leave=False, delay=1):
        relative = file.relative_to(root)
        try:
            slices.append(series.read_header(file))
        except ScanError as error:
            unread.append(_Unread(relative, error.kind, f"{_folder(relative)}{error}"))
    volumes, left_out = series.volumes(slices)
    for out in left_out:
        relative = out.path.relative_to(root)
        unread.append(
            _Unread(relative, out.kind, out.reason if out.name else f"{_folder(relative)}{out.reason}", out.name)
        )
    found = []
    for volume in volumes:
        first = volume.slices[0]
        paths = tuple(entry.path for entry in volume.slices)
        folder = Path(os.path.commonpath([path.parent for path in paths]))
        relative = folder.relative_to(root) if folder.is_relative_to(root) else Path()
        source = Source("dicom", paths, volume.key, first.modality, first.description)
        found.append(FoundSource(volume.id, source, relative, first.patient, first.study))
    return found, unread


def _folder(relative: PurePath) -> str:
    return "" if len(relative.parts) == 1 else f"{relative.parent.as_posix()}/"
