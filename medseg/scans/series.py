"""DICOM headers become volumes: which planes belong together, in which order, and how they are told apart. Reads no file.

A series is everything of one SeriesInstanceUID, and `medseg.scans.parts` says how one that holds several volumes is split. Planes
are ordered by where they lie along row × column, never by their number. What a volume is called depends on its headers alone:
not on the names of files, nor on their order, nor on what lies beside the series.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.scans.headers import Slice, normal
from medseg.scans.names import series_id
from medseg.scans.parts import parts
from medseg.structures import Source
from medseg.volume import Array

_LEANING = 0.8  # cosine of 37°

PLANES = ("axial", "coronal", "sagittal", "oblique")


@dataclass(frozen=True)
class SeriesVolume:
    """The planes of one volume in ascending position; ``key`` tells it from the others of its series."""

    key: str
    slices: tuple[Slice, ...]

    @property
    def id(self) -> str:
        return series_id(self.slices[0].modality, self.slices[0].series, self.key)

    @property
    def plane(self) -> str:
        """One of `PLANES`, empty where the slices lie nowhere."""
        first = self.slices[0]
        return "" if first.position is None or first.orientation is None else plane_of(normal(first.orientation))

    def source(self) -> Source:
        """Where the pixels lie: a file for each plane, and the frame that it is where files hold several."""
        first = self.slices[0]
        framed = any(entry.frame is not None for entry in self.slices)
        frames = tuple(entry.frame or 0 for entry in self.slices) if framed else ()
        files = tuple(entry.path for entry in self.slices)
        return Source("dicom", files, self.key, first.modality, first.description, frames)


@dataclass(frozen=True)
class LeftOut:
    """A file or series that no volume was made of.

    Args:
        name: the id of the series; empty for a single file.
        twin: the file that is used in place of this one, which holds the same image.
    """

    path: Path
    kind: str
    reason: str
    name: str = ""
    twin: Path | None = None


def volumes(slices: Iterable[Slice]) -> tuple[list[SeriesVolume], list[LeftOut]]:
    """Group headers into volumes, in the order of their ids; and what was left out, with the reason."""
    by_series: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for entry in slices:
        by_series[_series_of(entry)].append(entry)
    found: list[SeriesVolume] = []
    left_out: list[LeftOut] = []
    for members in by_series.values():
        scans, others = _without_copies(members)
        left_out += others
        scans, others = _without_captures(scans)
        left_out += others
        for part in parts(scans):
            volume = SeriesVolume(part.key, part.slices)
            if part.problem:
                left_out.append(LeftOut(part.slices[0].path, "duplicate_slices", part.problem, volume.id))
            else:
                found.append(volume)
    return _distinct(found), left_out


def plane_of(axis: Array) -> str:
    """Which of `PLANES` slices are whose normal (in the patient, LPS or RAS) is ``axis``: oblique if 37° off all of them."""
    leaning = np.abs(axis) / max(float(np.linalg.norm(axis)), 1e-12)
    most = int(np.argmax(leaning))
    return ("sagittal", "coronal", "axial")[most] if leaning[most] >= _LEANING else "oblique"


def _series_of(entry: Slice) -> tuple[str, ...]:
    """What the planes of one series share; where the UID was stripped, what is left of the header and the folder."""
    if entry.series:
        return (entry.series,)
    return ("", entry.study, entry.modality, entry.description, entry.frame_of_reference, str(entry.path.parent))


def _without_copies(members: Sequence[Slice]) -> tuple[list[Slice], list[LeftOut]]:
    """Each image once, and the files that hold it again."""
    seen: dict[tuple[Any, ...], Slice] = {}
    copies: dict[Path, LeftOut] = {}
    for entry in members:
        # Broken exports give all slices one SOPInstanceUID: number and position must agree too.
        identity = (entry.instance or entry.path, entry.frame, entry.number, entry.position)
        first = seen.setdefault(identity, entry)
        if first is not entry:
            reason = "the same image (SOPInstanceUID) as another file, which is used"
            copies.setdefault(entry.path, LeftOut(entry.path, "no_scan", reason, twin=first.path))
    return list(seen.values()), list(copies.values())


def _without_captures(members: Sequence[Slice]) -> tuple[list[Slice], list[LeftOut]]:
    """The scans of a series, and one remark for all pictures of a screen among them (dose reports, summaries)."""
    captures = [entry for entry in members if entry.is_capture]
    if not captures:
        return list(members), []
    first = min(captures, key=lambda entry: entry.path)
    reason = (
        f"{len(captures)} secondary capture(s), pictures of a screen that call themselves {first.modality}: they lie nowhere in "
        "the patient and are no scan"
    )
    name = series_id(first.modality, first.series, "")
    return [e for e in members if not e.is_capture], [LeftOut(first.path, "secondary_capture", reason, name)]


def _distinct(found: Sequence[SeriesVolume]) -> list[SeriesVolume]:
    """By id; volumes whose headers say the same (all UIDs were stripped) are numbered."""
    ordered = sorted(found, key=lambda volume: (volume.id, volume.slices[0].path))
    count: Counter[str] = Counter()
    for n, volume in enumerate(ordered):
        count[volume.id] += 1
        if count[volume.id] > 1:
            ordered[n] = replace(volume, key=f"{volume.key};copy={count[volume.id]}")
    return sorted(ordered, key=lambda volume: volume.id)
