"""Which runtime a run should use, given what is ahead and what is known of each. Measures nothing and loads nothing.

A runtime costs some seconds before its first window (compiling, converting) and some for each. A candidate that nobody has
measured is tried only where it would repay that even if it were half as fast as such runtimes have been: most runs are short.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

PLAIN = "torch"
"""What needs no set-up and is always there."""
FEW_WINDOWS = 24
"""Windows that are predicted without ado: measuring costs about a tenth of them."""


@dataclass(frozen=True)
class Timing:
    """What is known of a runtime: ``setup_s`` seconds before the first window of a network, ``window_s`` for each window."""

    setup_s: float
    window_s: float

    def total_s(self, windows: int, networks: int = 1) -> float:
        """Seconds of a run in which each of ``networks`` answers ``windows``."""
        return networks * (self.setup_s + windows * self.window_s)


@dataclass(frozen=True)
class Choice:
    """The runtime that was chosen, and why, in words for a manifest."""

    name: str
    why: str


_EXPECTED = {"openvino": (20.0, 3.0), "compile": (90.0, 1.8), "onnx": (60.0, 1.3)}
"""Seconds of set-up, and how many times as fast as plain PyTorch at best: a 5-level U-Net on 96³, CPUs with bf16 (DESIGN.md)."""


def worth_trying(plain: Timing, windows: int, candidates: Collection[str], networks: int = 1) -> list[str]:
    """Those of ``candidates`` whose set-up would be repaid if they were half as much faster as they may be, best first."""
    gains = {}
    for name in candidates:
        setup_s, speedup = _EXPECTED[name]
        likely = Timing(setup_s, plain.window_s / (1 + (speedup - 1) / 2))
        gains[name] = plain.total_s(windows, networks) - likely.total_s(windows, networks)
    return sorted((name for name, gain in gains.items() if gain > 0), key=lambda name: -gains[name])


def choose(timings: Mapping[str, Timing], windows: int, networks: int = 1, ready: Collection[str] = ()) -> Choice:
    """The runtime that is done first.

    Args:
        timings: of every runtime that can be chosen; not empty.
        windows: that are ahead, mirrorings counted.
        networks: members of an ensemble.
        ready: runtimes whose set-up is behind one network already.
    """

    def total_s(name: str) -> float:
        return timings[name].total_s(windows, networks) - (timings[name].setup_s if name in ready else 0.0)

    best = min(timings, key=lambda name: (total_s(name), name != PLAIN))
    known = ", ".join(
        f"{name} {timing.window_s:.3g} s a window" + (f" after {timing.setup_s:.0f} s" if timing.setup_s >= 1 else "")
        for name, timing in timings.items()
    )
    return Choice(best, f"{windows} windows ahead; {known}")
