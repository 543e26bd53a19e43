"""What networks say of windows: every member in every mirroring, made one answer by the task. Knows no grid and no scan.

A window that holds a single value in each channel, as air does, is asked once; the next one that holds the very same is given
the same answer, which is exactly what the networks would say again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.inference.runtime import Runtime
from medseg.volume import Array

if TYPE_CHECKING:
    from medseg.tasks.base import Task, View


class Answers:
    """Answers to the windows of one case.

    Args:
        runtimes: the members of an ensemble (one network: a list of one).
        mirror_axes: spatial axes over which mirrored copies are asked too.

    Attributes:
        asked: windows that went through the networks.
        spared: windows that were given the answer of one that holds the same single value.
    """

    def __init__(self, runtimes: Sequence[Runtime], task: Task, mirror_axes: Sequence[int]) -> None:
        if not runtimes:
            raise MedsegError("predict: expected at least one model, found none")
        self._runtimes, self._task = runtimes, task
        self._flips = list(_mirrorings(mirror_axes))
        self._flat: tuple[bytes, Any] | None = None
        self.asked = self.spared = 0

    def __call__(self, windows: Sequence[Array]) -> list[Any]:
        """What `Task.combine` makes of the answers to ``windows``, each ``(C, *patch)``: one for `Merger.add` a window."""
        values = [_single_value(window) for window in windows]
        varied = [window for window, value in zip(windows, values, strict=True) if value is None]
        found = iter(self._ask(varied) if varied else ())
        return [
            next(found) if value is None else self._of_flat(window, value)
            for window, value in zip(windows, values, strict=True)
        ]

    def _of_flat(self, window: Array, value: bytes) -> Any:
        if self._flat is None or self._flat[0] != value:
            self._flat = value, self._ask([window])[0]
        else:
            self.spared += 1
        return self._flat[1]

    def _ask(self, windows: Sequence[Array]) -> list[Any]:
        self.asked += len(windows)
        batch = torch.from_numpy(np.stack(windows).astype(np.float32, copy=False))
        with torch.inference_mode(), _one_thread(any(runtime.own_threads for runtime in self._runtimes)):
            return list(self._task.combine(self._views(batch)))

    def _views(self, batch: Tensor) -> Iterator[View]:
        for runtime in self._runtimes:
            for axes in self._flips:
                yield runtime(batch.flip(axes) if axes else batch), axes


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """PyTorch in one thread: others that it wakes spin for a while, on the cores that a runtime's own threads need."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if wanted else threads)
        yield
    finally:
        torch.set_num_threads(threads)


def _single_value(window: Array) -> bytes | None:
    """The value of each channel of ``(C, *patch)``; None where one has several."""
    corner = window[(slice(None), *(slice(0, 1),) * (window.ndim - 1))]
    middle = window[(slice(None), *(slice(n // 2, n // 2 + 1) for n in window.shape[1:]))]
    if not np.array_equal(middle, corner) or not (window == corner).all():
        return None
    return corner.tobytes()


def _mirrorings(axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every subset of the spatial ``axes``, as axes of a batch ``(B, C, *S)``; the first is none of them."""
    for count in range(len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            yield tuple(axis + 2 for axis in chosen)
