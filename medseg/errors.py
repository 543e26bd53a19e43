"""What a user can mend. Anything else that is raised is a bug of medseg and ends with a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class MedsegError(Exception):
    """A mistake in the request, the data or the model: says what was expected, what was found, where, what to do.

    ``exit_status`` is what the command line ends with: 2 means that nothing was done.
    """

    exit_status = 2


class SomeFailed(MedsegError):
    """Some cases or jobs failed; the rest are complete and the message names the failed ones."""

    exit_status = 3


class MachineError(MedsegError):
    """Stopped by the machine (disk full, out of memory, NaN loss); running the same command again goes on."""

    exit_status = 4


def all_at_once(heading: str, problems: Iterable[str]) -> MedsegError:
    """One error that lists every problem, a line each, so that a user can mend them together."""
    lines = list(problems)
    return MedsegError("\n".join([heading, *(f"  - {line}" for line in lines)]))
