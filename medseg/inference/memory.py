"""What predicting a case takes of the memory, said before it is done, and how much of it there is. Predicts nothing.

All figures are bytes of the main memory; what a GPU holds is not among them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.data.preprocess import BLOCK_BYTES, Restoration
from medseg.errors import MedsegError
from medseg.planning.plan import Plan
from medseg.tiling.route import Route, find_route

GB = 10**9
_SHARE = 0.8
"""Of the memory that is free, what is taken unless the user says how much."""
_WHOLE = 1 / 16
"""A scan on the plan's grid that takes no more than this share of the memory is made whole, ahead of its turn."""
_BLOCKS = 4
"""Blocks on their way to the scan's grid: scores, their two interpolations and what decoding makes of them."""
_VIEWS = 5
"""Scores of a window that are there together: logits, probabilities, their sum, its mean, and what is mirrored."""
_FEATURES = 6
"""Maps of the first stage that a U-Net holds at once: skip connection, what is joined with it, convolved and normalised."""


@dataclass(frozen=True)
class Memory:
    """How much memory there is.

    Args:
        total: what the process may take.
        resident: what it has taken before the first case: libraries and models.
        given: whether the user said how much, so that what does not fit is refused.
        beside: cases that are in memory beside the one that is predicted: read before their turn, or being written.
    """

    total: int
    resident: int
    given: bool
    beside: int = 0

    @classmethod
    def here(cls, memory_gb: float | None = None) -> Memory:
        """What the user grants, or most of what is free on this machine.

        Raises:
            MedsegError: ``memory_gb`` is no positive number.
        """
        resident = _resident()
        if memory_gb is None:
            return cls(resident + int(_SHARE * _free()), resident, False)
        if isinstance(memory_gb, bool) or not isinstance(memory_gb, (int, float)) or not memory_gb > 0:
            raise MedsegError(f"runtime.memory_gb={memory_gb!r}: expected a number above 0, or null for what is free")
        return cls(int(memory_gb * GB), resident, True)

    def makes_whole(self, plan: Plan, shape: Sequence[int]) -> bool:
        """Whether a scan of ``shape`` on the plan's grid is made whole, rather than in rows."""
        return 4 * len(plan.channels) * math.prod(shape) <= _WHOLE * self.total


@dataclass(frozen=True)
class Burden:
    """One case on its way through one model, in bytes.

    Args:
        scan: its values as they were read.
        mask: the result on its own grid.
        marks: what is held beside the mask while its parts are counted, cleaned and drawn.
        network: a batch of windows in the network, and what is said of them.
        sums: what `Route.bytes` says, and the whole of it on the plan's grid where that is kept.
        beside: as for `Memory`.
    """

    scan: int
    mask: int
    marks: int
    network: int
    sums: int
    beside: int = 0

    @property
    def total(self) -> int:
        """At most: the case is predicted, and then written."""
        each = self.scan + self.mask
        return (1 + self.beside) * each + max(self.network + self.sums + _BLOCKS * BLOCK_BYTES, self.marks)


def network_bytes(plan: Plan, outputs: int, batch_size: int) -> int:
    """What a batch of windows takes at most, of a network as the plan describes it (others: as a guess)."""
    voxels = batch_size * math.prod(plan.patch_size)
    return 4 * voxels * (_FEATURES * plan.features[0] + _VIEWS * outputs + 2 * len(plan.channels))


def route_within(
    restoration: Restoration, plan: Plan, outputs: int, overlap: float, memory: Memory, rest: Burden
) -> tuple[Route, Burden]:
    """The route that fits beside what a case takes anyway (``rest``, whose ``sums`` is not looked at), and the whole of it."""
    free = memory.total - memory.resident - replace(rest, sums=0).total
    route = find_route(
        restoration.lines,
        plan.patch_size,
        overlap,
        channels=len(plan.channels),
        outputs=outputs,
        budget=free,
        odd=plan.odd_padding,
    )
    whole = 4 * len(plan.channels) * math.prod(restoration.shape)
    made = whole * (1 + rest.beside) if memory.makes_whole(plan, restoration.shape) else 0
    return route, replace(rest, sums=route.bytes + made)


def said(size: float) -> str:
    """Bytes as people read them: ``3.2 GB``."""
    return f"{size / GB:.2g} GB" if size < 10 * GB else f"{size / GB:.0f} GB"


def _free() -> int:
    """Bytes that this machine, or the container, still has to give."""
    free = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))] if hasattr(os, "sysconf") else []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        most, used = (
            int((group / name).read_text(encoding="ascii").strip()) for name in ("memory.max", "memory.current")
        )
        free.append(float(most - used))
    except (OSError, ValueError):  # "max": no limit
        pass
    return int(max(0.0, min(free, default=8.0 * GB)))


def _resident() -> int:
    """Bytes that this process holds now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return GB  # libraries and a model, about
