"""For those who extend medseg: phantoms with known answers, and conformance tests of networks and tasks.

Each check raises MedsegError that says what the contract expects and what was found, so that one line proves an extension:
``check_network(my_network)``. Nothing heavy is imported before a check is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.testing.network_conformance import check_network
    from medseg.testing.task_conformance import check_task

__all__ = ["check_network", "check_task"]


def __getattr__(name: str) -> Any:
    if name == "check_network":
        from medseg.testing.network_conformance import check_network

        return check_network
    if name == "check_task":
        from medseg.testing.task_conformance import check_task

        return check_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
