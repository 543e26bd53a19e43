"""Walks a path and says which volumes lie below it, from content and headers alone; no pixel is read.

What a file is, its first bytes say; its name is used only to tell a broken scan (``x.nii.gz`` that is no gzip) from a stranger
(``README.md``). Every file is opened once. Knows nothing of tables or layouts, and of labels only which series a DICOM SEG or
RTSTRUCT refers to.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath

from tqdm import tqdm

from medseg.errors import MedsegError
from medseg.scans.dicomdir import is_dicomdir, referenced_files
from medseg.scans.headers import PICTURES as PICTURES
from medseg.scans.headers import Annotation, Slice
from medseg.scans.names import frame_hash, series_hash, suffix, unique_ids
from medseg.scans.reading import ScanError
from medseg.scans.series import SeriesVolume, volumes
from medseg.scans.sniff import Content, content_of
from medseg.structures import Fault, Source, SourceKind

NO_SCAN = "no_scan"
"""Kind of the faults of files that are no scan and claim not to be one; they are listed, and are nobody's mistake."""

LEFT_OUT = "left_out"
"""Kind of what a selection left out; listed as well, and meant."""

CAPTURE = "secondary_capture"
"""Kind of pictures of a screen that call themselves a scan, as most CT studies hold one with the dose; nobody's mistake."""

HARMLESS = frozenset((NO_SCAN, LEFT_OUT, CAPTURE))

_THREADS = 16
_CHUNK = 32
_PATIENCE_S, _WAITING = 0.1, 4.0
"""Threads look on once this much time has gone by, this many times what the processor has worked."""


@dataclass(frozen=True)
class FoundSource:
    """A volume that was found.

    Args:
        id: file name without suffixes, or `names.series_id` for DICOM; unique among what was found.
        relative: the file below the path that was walked; for DICOM the folder that holds all its slices.
        patient, study, series, frame_of_reference: hashes that DICOM files of one patient, study … share; empty for other
            files.
        plane: of DICOM slices, ``"axial"``, ``"coronal"``, ``"sagittal"`` or ``"oblique"``; empty where it is not known.
        slices: how many a DICOM volume has; 0 for other files, whose headers are not read here.
    """

    id: str
    source: Source
    relative: PurePath
    patient: str = ""
    study: str = ""
    series: str = ""
    frame_of_reference: str = ""
    plane: str = ""
    slices: int = 0


@dataclass(frozen=True)
class FoundAnnotation:
    """A DICOM SEG or RTSTRUCT. ``series`` and ``frame_of_reference`` are hashes as those of the `FoundSource` it lies on."""

    source: Source
    relative: PurePath
    series: tuple[str, ...] = ()
    frame_of_reference: str = ""


@dataclass(frozen=True)
class Found:
    """What lies below a path: volumes by id, DICOM labels, and files that were not read, each with its reason."""

    sources: tuple[FoundSource, ...]
    unread: tuple[Fault, ...] = ()
    annotations: tuple[FoundAnnotation, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The unread files that claim to be scans."""
        return tuple(fault for fault in self.unread if fault.kind not in HARMLESS)


def find(path: Path | Sequence[Path], *, progress: bool = False) -> Found:
    """Every volume below ``path`` (a folder, a file, a DICOMDIR with what it refers to, or several of these), sorted by id.

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
    unread: list[_Unread] = []
    files = dict.fromkeys(file for start in starts for file in _files_of(start, root, unread))
    plain: list[tuple[Path, SourceKind]] = []
    slices: list[Slice] = []
    annotations: list[Annotation] = []
    for file, seen in zip(files, _contents(list(files), progress), strict=True):
        if isinstance(seen, tuple):
            slices += seen
        elif isinstance(seen, Annotation):
            annotations.append(seen)
        elif isinstance(seen, ScanError):
            relative = file.relative_to(root)
            unread.append(_Unread(relative, seen.kind, str(seen).removeprefix(f"{file.name}: ")))
        elif seen is not None:
            plain.append((file, seen))
        elif not _is_partner(file):
            unread.append(_stranger(file.relative_to(root)))
    made, left_out = volumes(slices)
    for out in left_out:
        reason = f"series {out.name}: {out.reason}" if out.name else out.reason
        reason += f": {out.twin.relative_to(root).as_posix()}" if out.twin else ""
        unread.append(_Unread(out.path.relative_to(root), out.kind, reason, out.name))
    names = unique_ids([file.relative_to(root) for file, _ in plain])
    found = [
        FoundSource(name, Source(kind, (file,)), file.relative_to(root))
        for name, (file, kind) in zip(names, plain, strict=True)
    ]
    found += [_found_series(volume, root) for volume in made]
    labels = tuple(_found_annotation(one, slices, root) for one in annotations)
    return Found(tuple(sorted(found, key=lambda f: f.id)), _as_faults(unread), labels)


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


def _contents(files: Sequence[Path], progress: bool) -> Iterator[Content]:
    """What each file is, in order: in threads as soon as looking is mostly waiting, for a slow disk or the network.

    Where files come faster than Python looks at them, threads only wait for each other: ten thousand headers took 0.75 s one
    after the other and 1.5 s in eight threads.
    """
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    bar = tqdm(desc="finding scans", total=len(files), unit="file", disable=not progress, leave=False, delay=1)
    with bar:
        for seen in _in_turn(chunks):
            bar.update(len(seen))
            yield from seen


def _in_turn(chunks: Sequence[Sequence[Path]]) -> Iterator[list[Content]]:
    wall = worked = 0.0
    done = 0
    while done < len(chunks) and (wall < _PATIENCE_S or wall < _WAITING * worked):
        started, work = time.perf_counter(), time.thread_time()
        seen = [content_of(file) for file in chunks[done]]
        wall, worked, done = wall + time.perf_counter() - started, worked + time.thread_time() - work, done + 1
        yield seen
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(lambda chunk: [content_of(file) for file in chunk], chunks[done:])


def _files_of(start: Path, root: Path, unread: list[_Unread]) -> Iterator[Path]:
    """The files that a start stands for; what an index names in vain is added to ``unread``."""
    if start.is_dir():
        yield from _walk(start, root, unread)
    elif not is_dicomdir(start):
        yield start
    else:
        relative = start.relative_to(root)
        try:
            there, missing = referenced_files(start)
        except ScanError as error:
            unread.append(_Unread(relative, error.kind, str(error).removeprefix(f"{start.name}: ")))
            return
        yield from there
        if missing:
            reason = (
                f"names {len(missing)} file(s) that are not there (first: {missing[0]}); copy the disc again, whole"
            )
            unread.append(_Unread(relative, "missing_file", reason))


def _walk(folder: Path, root: Path, unread: list[_Unread]) -> Iterator[Path]:
    """Every file below ``folder`` in a fixed order; hidden ones and what macOS leaves behind are passed over."""
    waiting, seen = [str(folder)], set()
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:  # a link to a folder above itself
            continue
        seen.add(real)
        try:
            with os.scandir(here) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            unread.append(_Unread(Path(here).relative_to(root), "unreadable", f"cannot be opened ({error.strerror})"))
            continue
        waiting += [e.path for e in reversed(entries) if e.is_dir() and e.name != "__MACOSX"]
        for entry in entries:
            if entry.is_file():
                yield Path(entry.path)
            elif entry.is_symlink() and not entry.is_dir():
                relative = Path(entry.path).relative_to(root)
                unread.append(_Unread(relative, "missing_file", "a link to a file that is not there"))


@dataclass(frozen=True)
class _Unread:
    """A file that was not read; ``name`` is the id of its series."""

    relative: PurePath
    kind: str
    reason: str
    name: str = ""


def _as_faults(unread: Sequence[_Unread]) -> tuple[Fault, ...]:
    """A fault each, under the id that the file would have had; strangers have none."""
    own = [entry for entry in unread if entry.kind != NO_SCAN and not entry.name]
    ids = dict(zip([entry.relative for entry in own], unique_ids([entry.relative for entry in own]), strict=True))
    return tuple(
        Fault(
            "" if entry.kind == NO_SCAN else entry.name or ids[entry.relative],
            entry.kind,
            f"{entry.relative.as_posix()}: {entry.reason}",
        )
        for entry in sorted(unread, key=lambda entry: entry.relative)
    )


def _stranger(relative: PurePath) -> _Unread:
    ending = suffix(relative.name)
    if ending:
        reason = f"is named {ending}, but its content is none of NIfTI, DICOM, NRRD, MetaImage, PNG, JPEG, TIFF"
        return _Unread(relative, "unreadable", f"{reason}; it is damaged or misnamed: copy it again or leave it out")
    return _Unread(relative, NO_SCAN, "no scan by its content")


def _is_partner(file: Path) -> bool:
    """Whether the file holds the pixels of a header beside it (.img of .hdr)."""
    return file.suffix.lower() == ".img" and file.with_suffix(".hdr").exists()


def _found_series(volume: SeriesVolume, root: Path) -> FoundSource:
    first, folders = volume.slices[0], {str(entry.path.parent) for entry in volume.slices}
    folder = Path(os.path.commonpath(folders))
    return FoundSource(
        id=volume.id,
        source=volume.source(),
        relative=folder.relative_to(root) if folder.is_relative_to(root) else Path(),
        patient=first.patient,
        study=first.study,
        series=series_hash(first.series),
        frame_of_reference=frame_hash(first.frame_of_reference),
        plane=volume.plane,
        slices=len(volume.slices),
    )


def _found_annotation(annotation: Annotation, slices: Sequence[Slice], root: Path) -> FoundAnnotation:
    """With the series it names; where it names images alone, with the series that hold these."""
    series = annotation.series
    if not series and annotation.instances:
        series = tuple(sorted({entry.series for entry in slices if entry.instance in annotation.instances}))
    source = Source(annotation.kind, (annotation.path,), modality=annotation.kind.upper())
    hashes = tuple(filter(None, map(series_hash, series)))
    return FoundAnnotation(source, annotation.path.relative_to(root), hashes, frame_hash(annotation.frame_of_reference))
