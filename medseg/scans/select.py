"""Which of the volumes that were found are wanted. What is left out is listed with its reason; nothing is read but headers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from medseg.errors import MedsegError
from medseg.scans.find import LEFT_OUT, Found, FoundSource
from medseg.scans.series import PLANES, plane_of
from medseg.structures import Fault


@dataclass(frozen=True)
class Selection:
    """What is asked of a volume; None asks nothing.

    What a file does not say, nobody can choose by: a NIfTI file has neither modality nor description, and is left out where
    either is asked for. Its slices lie along the axis of the largest spacing (the last one where they are equal).

    Args:
        modality: one or several of DICOM's words (``"CT"``, ``"MR"``, ``"PT"`` …), in any case.
        description: a regular expression that is found anywhere in the series description, in any case.
        orientation: ``"axial"``, ``"coronal"``, ``"sagittal"`` or ``"oblique"``; one or several.
        minimum_slices: how many slices a volume must have, so that localizers stay behind.
    """

    modality: Sequence[str] | str | None = None
    description: str | None = None
    orientation: Sequence[str] | str | None = None
    minimum_slices: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "modality", _words("modality", self.modality, str.upper))
        object.__setattr__(self, "orientation", _words("orientation", self.orientation, str.lower))
        odd = sorted(set(self.orientation or ()) - set(PLANES))
        if odd:
            raise MedsegError(f"select.orientation: no {', '.join(odd)}; a series is {', '.join(PLANES)}")
        if self.description is not None:
            try:
                re.compile(self.description)
            except (re.error, TypeError) as error:
                raise MedsegError(
                    f"select.description: expected a regular expression such as 'flair|t2', found {self.description!r} ({error})"
                ) from None
        least = self.minimum_slices
        if least is not None and (not isinstance(least, int) or isinstance(least, bool) or least < 1):
            raise MedsegError(f"select.minimum_slices: expected a whole number from 1 up, found {least!r}")

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> Selection:
        """From a configuration. Raises MedsegError for what there is not, with what there is."""
        known = [field.name for field in fields(cls)]
        odd = sorted(set(options) - set(known))
        if odd:
            raise MedsegError(f"select: no {', '.join(odd)}; a selection has {', '.join(known)}")
        return cls(**options)

    def apply(self, found: Found) -> Found:
        """What is wanted of what was found; the rest becomes faults of kind ``"left_out"`` in ``unread``."""
        kept: list[FoundSource] = []
        left: list[Fault] = []
        for entry in found.sources:
            reason = self.reason_against(entry)
            if reason:
                left.append(Fault(entry.id, LEFT_OUT, f"left out: {reason}"))
            else:
                kept.append(entry)
        return replace(found, sources=tuple(kept), unread=(*found.unread, *left))

    def reason_against(self, entry: FoundSource) -> str:
        """Why a volume is not wanted; empty where it is."""
        source = entry.source
        if self.modality and source.modality not in self.modality:
            return f"its modality is {source.modality or 'not known'}, asked for {' or '.join(self.modality)}"
        if self.description is not None and not re.search(self.description, source.description, re.IGNORECASE):
            return f"its description does not match {self.description!r}"
        if (self.orientation or self.minimum_slices) and not entry.slices:
            entry = _measured(entry)
        if self.orientation and entry.plane not in self.orientation:
            return (
                f"its slices are {entry.plane or 'of no known orientation'}, asked for {' or '.join(self.orientation)}"
            )
        if self.minimum_slices and entry.slices < self.minimum_slices:
            return f"it has {entry.slices or 'an unknown number of'} slice(s), asked for at least {self.minimum_slices}"
        return ""


def _measured(entry: FoundSource) -> FoundSource:
    """With what the header of a file that is not DICOM says of its slices; as it is where that cannot be read."""
    from medseg.scans import read_geometry

    try:
        geometry = read_geometry(entry.source)
    except MedsegError:
        return entry
    if geometry.dimensions == 2:
        return replace(entry, slices=1)
    axis = max(range(3), key=lambda axis: (round(float(geometry.spacing[axis]), 3), axis))
    return replace(entry, slices=geometry.shape[axis], plane=plane_of(geometry.affine[:3, axis]))


def _words(name: str, value: Any, as_written: Any) -> tuple[str, ...] | None:
    """One word or several, as they are compared."""
    if value is None:
        return None
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not words or not all(isinstance(word, str) and word for word in words):
        raise MedsegError(f"select.{name}: expected a word or several, found {value!r}")
    return tuple(as_written(word.strip()) for word in words)
