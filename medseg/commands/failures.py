"""How a walk over cases ends: what fails leaves the others unharmed, is named with its reason, and decides the exit status."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import MachineError, MedsegError, SomeFailed, all_at_once
from medseg.export.origin import InputNames
from medseg.files import NO_SPACE
from medseg.structures import Case

logger = logging.getLogger(__name__)


class Failures:
    """The cases that failed so far.

    Args:
        names: how files of the input are called in messages.
    """

    def __init__(self, names: InputNames) -> None:
        self._names = names
        self.reasons: dict[str, str] = {}
        self.starved: list[str] = []

    def note(self, case: Case, error: Exception) -> str:
        """Why a case failed, in words without paths; a bug is logged with its traceback, a full disk is raised again."""
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise error
        if isinstance(error, (MachineError, MemoryError)):
            self.starved.append(case.id)
        elif not isinstance(error, (MedsegError, OSError)):
            logger.error("case %s: this is a bug of medseg", case.id, exc_info=error)
        reason = str(error) if isinstance(error, MedsegError) else f"{type(error).__name__}: {error}"
        reason = self._names.without_paths(reason, case).removeprefix(f"case {case.id!r}: ")
        self.reasons[case.id] = reason
        return reason

    def raise_if_any(self, ids: Sequence[str], output: Path, done: str) -> None:
        """Say what failed of the cases ``ids``.

        Args:
            done: what was to be done with each, such as ``predicted``.

        Raises:
            MachineError: the memory did not hold a case.
            MedsegError: nothing came out.
            SomeFailed: the other cases are whole.
        """
        failed = [f"{name!r}: {self.reasons[name]}" for name in ids if name in self.reasons]
        if self.starved:
            heading = f"the memory did not hold {len(self.starved)} of {len(ids)} cases; close other programs, take workers=0 or "
            heading += "a machine with more memory, and run the same command again, it goes on:"
            raise MachineError(str(all_at_once(heading, failed)))
        if failed and len(failed) == len(ids):
            raise all_at_once(f"none of the {len(ids)} cases could be {done}:", failed)
        if failed:
            listed = all_at_once(f"{len(failed)} of {len(ids)} cases failed, the others are in {output}:", failed)
            raise SomeFailed(str(listed))
