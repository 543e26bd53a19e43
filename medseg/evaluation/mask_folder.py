"""Finds the mask of a case in a folder that any system may have written. Reads no pixel and scores nothing."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from medseg.errors import MedsegError
from medseg.scans.find import Found, find, find_one
from medseg.scans.names import case_id
from medseg.structures import Source


class MaskFolder:
    """A result folder (``<case id>/mask.…``), or a folder of label files, anywhere below it, that are named by case id.

    Raises:
        MedsegError: there is no such folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            found = "a file" if self.path.exists() else "nothing"
            raise MedsegError(f"predictions {path}: expected a folder of masks, found {found}")

    def holds(self, case: str) -> bool:
        """Whether there is a mask of ``case`` that can be read."""
        return any((self.path / case_id(case)).glob("mask.*")) or case in self._plain

    def source(self, case: str) -> Source:
        """The mask of ``case``.

        Raises:
            MedsegError: there is none, or it cannot be read.
        """
        own = sorted((self.path / case_id(case)).glob("mask.*"))
        if own:
            return find_one(own[0]).source
        if case in self._plain:
            return self._plain[case]
        if case in self._unread:
            raise MedsegError(self._unread[case])
        raise MedsegError(
            f"the predictions hold no mask of it; expected {case_id(case)}/mask.nii.gz (a picture: mask.png) or a label file "
            f"named {case}"
        )

    @cached_property
    def _plain(self) -> dict[str, Source]:
        return {entry.id: entry.source for entry in self._found.sources}

    @cached_property
    def _unread(self) -> dict[str, str]:
        return {fault.case: fault.message for fault in self._found.faults}

    @cached_property
    def _found(self) -> Found:
        return find(self.path)
