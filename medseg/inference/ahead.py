"""Reads the next scans while one is predicted, and writes the last one, with a bound on how many are in memory.

Knows nothing of models: what reading and writing are is said by whoever calls.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from medseg.structures import Case

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Read(Generic[T]):
    """What came of reading a case: a value or an error, what was warned of meanwhile, and how long it took."""

    value: T | None
    error: Exception | None
    warnings: tuple[str, ...]
    seconds: float


def read_ahead(cases: Sequence[Case], read: Callable[[Case], T], ahead: int = 1) -> Iterator[tuple[Case, Read[T]]]:
    """Every case in order with what reading it gave; no error of one case ends the iteration.

    Args:
        ahead: scans that are read by threads, or wait, while the caller works on one: at most ``ahead + 1`` are in
            memory if the caller lets go of the last one. 0 reads in the caller's thread.
    """
    if ahead < 1:
        for case in cases:
            yield case, _read(case, read)
        return
    todo = deque(cases)
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="medseg-read")
    waiting: deque[tuple[Case, Future[Read[T]]]] = deque()
    try:
        while todo or waiting:
            while todo and len(waiting) < ahead:
                case = todo.popleft()
                waiting.append((case, pool.submit(_read, case, read)))
            case, future = waiting.popleft()
            result = future.result()
            if todo:  # the next one is read while the caller works on this one
                waiting.append((todo[0], pool.submit(_read, todo.popleft(), read)))
            del future
            yield case, result
            del result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def finish_behind(jobs: Iterable[Callable[[], T]], took: Callable[[T], None], *, behind: bool = True) -> None:
    """Finish every job in order, one in a thread while the iterator makes the next; hand each result to ``took`` here.

    Where anything is raised, an interruption too, the job that is being finished is still finished and handed over.

    Args:
        jobs: what is left to do of each case; making one is the work that goes on meanwhile.
        behind: False finishes each at once, in this thread.
    """
    if not behind:
        for job in jobs:
            took(job())
            del job  # and with it its scan, before the next is read
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="medseg-write")
    waiting: Future[T] | None = None
    try:
        for job in jobs:
            if waiting is not None:
                done, waiting = waiting, None
                took(done.result())
            waiting = pool.submit(job)
            del job
    finally:
        try:
            if waiting is not None:
                took(waiting.result())
        finally:
            pool.shutdown(wait=True)


def _read(case: Case, read: Callable[[Case], T]) -> Read[T]:
    started = time.monotonic()
    value, error = None, None
    with warnings_of_this_thread("medseg") as warnings:
        try:
            value = read(case)
        except Exception as found:  # whatever is wrong with one scan is told with it and leaves the others unharmed
            error = found
    return Read(value, error, tuple(warnings), time.monotonic() - started)


@contextmanager
def warnings_of_this_thread(name: str) -> Iterator[list[str]]:
    """What loggers below ``name`` warn of in this thread: how readers tell what they mended."""
    collected: list[str] = []
    me = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == me:
                collected.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield collected
    finally:
        logger.removeHandler(handler)
