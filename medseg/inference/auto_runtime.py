"""Finds the fastest runtime for what is ahead by measuring on this machine, and remembers what it measured.

The decision is made by `choose_runtime`; here candidates are built, timed on windows as large as the model's own, and compared
with plain PyTorch: one whose answer differs is dropped. What was measured lies in a file of the user's, by machine, versions and
network, so that the next run measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import MachineError, MedsegError
from medseg.files import write_text
from medseg.inference.choose_runtime import FEW_WINDOWS, PLAIN, Choice, Timing, choose, worth_trying
from medseg.inference.runtime import Runtime, find_device
from medseg.inference.runtimes import RuntimeOptions, build_runtime, candidates, versions_of_runtimes
from medseg.interop.graph import example_of, flatten
from medseg.model import Model

logger = logging.getLogger(__name__)
_MEASURE_S = 1.0
"""Seconds after which no further window is timed. A first one that takes longer counts; else it only warms up."""
_MOST_RUNS = 3
_TOLERANCE = 0.1
"""Largest difference from plain PyTorch, as a share of the root mean square; two orders of bf16 differ by some hundredths."""


def settle(
    models: Sequence[Model],
    options: RuntimeOptions,
    windows: int,
    *,
    plain: Sequence[Runtime],
    batch_size: int = 1,
    trust: Sequence[str] = (),
) -> tuple[list[Runtime], Choice]:
    """Runtimes for the members of an ensemble, all of one kind, and why that kind.

    Args:
        windows: that each member has ahead, mirrorings counted.
        plain: the members behind plain PyTorch.
    """
    found = sorted(candidates(options))
    if windows < FEW_WINDOWS or not found:
        why = f"{windows} windows ahead: too few to measure" if found else "no other runtime is installed"
        return list(plain), Choice(PLAIN, why)
    model, networks = models[0], len(models)
    memory = _Memory(options.cache, _key(model, options, batch_size))
    plan = model.plan
    example = example_of(len(plan.channels), plan.patch_size, batch_size)
    expected = None
    if PLAIN not in memory.timings:
        seconds, expected = measured(plain[0], example)
        memory.keep(PLAIN, Timing(0.0, seconds))
    timings = {name: timing for name, timing in memory.timings.items() if name in (PLAIN, *found)}
    ready: dict[str, Runtime] = {}
    untried = {name for name in found if name not in timings}
    while name := worth_trying(timings, windows, untried, networks, set(ready)):
        untried.remove(name)
        logger.info("runtime=auto: trying %s", name)
        expected = plain[0](example) if expected is None else expected
        started = time.monotonic()
        try:
            ready[name] = build_runtime(name, model, options, batch_size=batch_size, trust=trust)
            answer = ready[name](example)
            setup_s = time.monotonic() - started
            if difference(answer, expected) > _TOLERANCE:
                logger.warning("runtime=auto: %s is left out: it answers otherwise than PyTorch", name)
                del ready[name]
                continue
            timings[name] = Timing(setup_s, measured(ready[name], example)[0])
        except MachineError:
            raise
        except MedsegError as error:
            logger.info("runtime=auto: %s is left out: %s", name, error)
            continue
        memory.keep(name, timings[name])
    choice = choose(timings, windows, networks, set(ready))
    if choice.name == PLAIN:
        return list(plain), choice
    first = ready.get(choice.name)
    rest = models if first is None else models[1:]
    others = [build_runtime(choice.name, model, options, batch_size=batch_size, trust=trust) for model in rest]
    return ([] if first is None else [first]) + others, choice


def measured(runtime: Runtime, example: Tensor) -> tuple[float, Any]:
    """The least seconds a window of some runs, and the answer."""
    first, answer = _timed(runtime, example)
    if first >= _MEASURE_S:
        return first / len(example), answer
    times: list[float] = []
    while len(times) < _MOST_RUNS and sum(times) < _MEASURE_S:
        times.append(_timed(runtime, example)[0])
    return min(times) / len(example), answer


def _timed(runtime: Runtime, example: Tensor) -> tuple[float, Any]:
    started = time.perf_counter()
    answer = runtime(example)
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - started, answer


def difference(answer: Any, expected: Any) -> float:
    """The root mean square of what differs, as a share of that of ``expected``, of the tensor that differs most."""
    worst = 0.0
    for (_, a), (_, b) in zip(flatten(answer), flatten(expected), strict=True):
        b = b.cpu()
        share = (a.cpu() - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-6)
        worst = max(worst, float(share.nan_to_num(nan=torch.inf)))
    return worst


class _Memory:
    """What was measured of one network on this machine; a file that cannot be read or written is as good as none."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path, self._key = None if folder is None else folder / "runtimes.json", key
        self.timings: dict[str, Timing] = {}
        try:
            self.timings = {name: Timing(**entry) for name, entry in self._read().get(key, {}).items()}
        except (TypeError, AttributeError):
            logger.debug("%s: not understood", self._path)

    def keep(self, name: str, timing: Timing) -> None:
        self.timings[name] = timing
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            body = {**self._read(), self._key: {name: asdict(timing) for name, timing in self.timings.items()}}
            write_text(self._path, json.dumps(body, indent=1) + "\n")
        except OSError as error:
            logger.debug("%s: %s", self._path, error)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            body = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return body if isinstance(body, dict) else {}


def _key(model: Model, options: RuntimeOptions, batch_size: int) -> str:
    """Of machine, versions and network: its target and the shapes of its weights, not what it learned."""
    device = find_device(options.device)
    about: Mapping[str, Any] = {
        "machine": [platform.node(), _processor(), torch.get_num_threads()],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": versions_of_runtimes(),
        "network": [dict(model.network), [[name, list(w.shape)] for name, w in sorted(model.weights.items())]],
        "window": [batch_size, len(model.plan.channels), *model.plan.patch_size],
        "precision": options.precision,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
