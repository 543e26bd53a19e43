"""Processes that share the work on many cases: light ones, which leave nothing behind however the caller ends.

Written over ``concurrent.futures``, whose workers import the caller's main module, use a thread a core in each, and stay
when the caller is killed. Knows nothing of what the work is.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, TypeVar

from medseg.errors import MachineError

T = TypeVar("T")


def work_off(
    function: Callable[..., T], items: Sequence[Any], *arguments: Any, workers: int
) -> Iterator[tuple[Any, T]]:
    """``function(item, *arguments)`` of every item in ``workers`` processes.

    What a call raises is raised here; then, and when the caller stops or is interrupted, running calls are ended and the
    rest is not begun. ``function`` must be importable: one that is defined in the main module is not.

    Yields:
        an item and its result, in the order in which they are done.

    Raises:
        MachineError: a worker was killed from outside.
    """
    context = _Workers()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    done = False
    try:
        waiting = {pool.submit(function, item, *arguments): item for item in items}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
        done = True
    except BrokenProcessPool:
        raise MachineError(
            f"one of {workers} worker processes was killed, most likely because memory ran out; use fewer, and run again"
        ) from None
    finally:
        if not done:
            for process in context.started:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker(SpawnProcess):
    """A process that does not import the caller's main module, and calculates with one thread.

    Otherwise a script without ``if __name__ == "__main__"`` would begin anew in each worker, and one that imports torch
    would have every worker import it.
    """

    def start(self) -> None:
        with _stand_in_main(), _environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"):
            super().start()


class _Workers(SpawnContext):
    """Starts `_Worker` and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Worker] = []

    def Process(self, *args: Any, **options: Any) -> _Worker:  # type: ignore[override]
        self.started.append(_Worker(*args, **options))
        return self.started[-1]


@contextmanager
def _stand_in_main() -> Iterator[None]:
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin() -> None:
    """In a worker: leave Ctrl-C to the caller, and end when the caller has ended, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
