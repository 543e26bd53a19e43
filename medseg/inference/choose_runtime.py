"""Which runtime a run should use, given what is ahead and what is known of each. Measures nothing and loads nothing.

A runtime costs some seconds before its first window (compiling, converting) and some for each. A candidate that nobody has
measured is tried only where it would repay that even if it were half as fast as such runtimes have been: most runs are short.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

PLAIN = "torch"
"""What needs no set-up and is always there."""
FEW_WINDOWS = 8
"""Windows below which nothing is measured: that takes one, or some where they are short."""


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


_EXPECTED = {"openvino": (1.0, 1.0, 2.0), "compile": (90.0, 2.0, 1.8), "onnx": (30.0, 10.0, 1.3)}
"""Set-up in seconds and in windows of plain PyTorch, and how many times as fast as that at best: U-Nets on CPUs with bf16."""


def worth_trying(
    timings: Mapping[str, Timing],
    windows: int,
    candidates: Collection[str],
    networks: int = 1,
    ready: Collection[str] = (),
) -> str | None:
    """That of ``candidates`` which would gain most if it were half as much faster than plain PyTorch as it may be.

    None where no set-up would be repaid, measured against the best of ``timings``. Arguments are those of `choose`.
    """
    plain = timings[PLAIN]
    best = min(_total_s(name, timings, windows, networks, ready) for name in timings)
    gains = {}
    for name in sorted(candidates):
        setup_s, setup_windows, speedup = _EXPECTED[name]
        likely = Timing(setup_s + setup_windows * plain.window_s, plain.window_s / (1 + (speedup - 1) / 2))
        gains[name] = best - likely.total_s(windows, networks)
    found = max(gains, key=lambda name: gains[name], default=None)
    return found if found is not None and gains[found] > 0 else None


def choose(timings: Mapping[str, Timing], windows: int, networks: int = 1, ready: Collection[str] = ()) -> Choice:
    """The runtime that is done first.

    Args:
        timings: of every runtime that can be chosen; not empty.
        windows: that are ahead, mirrorings counted.
        networks: members of an ensemble.
        ready: runtimes whose set-up is behind one network already.
    """
    best = min(timings, key=lambda name: (_total_s(name, timings, windows, networks, ready), name != PLAIN))
    known = ", ".join(
        f"{name} {timing.window_s:.3g} s a window" + (f" after {timing.setup_s:.0f} s" if timing.setup_s >= 1 else "")
        for name, timing in timings.items()
    )
    return Choice(best, f"{windows} windows ahead; {known}")


def _total_s(name: str, timings: Mapping[str, Timing], windows: int, networks: int, ready: Collection[str]) -> float:
    """Seconds that are left of a run."""
    return timings[name].total_s(windows, networks) - (timings[name].setup_s if name in ready else 0.0)
