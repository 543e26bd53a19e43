"""Reads the next scans while one is predicted, with a bound on how many are in memory. Knows nothing of models."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from medseg.structures import Case
from medseg.volume import Volume


@dataclass(frozen=True, eq=False)
class Read:
    """What came of reading a case: its volume or an error, what the readers warned of, and how long it took."""

    volume: Volume | None
    error: Exception | None
    warnings: tuple[str, ...]
    seconds: float


def read_ahead(cases: Sequence[Case], read: Callable[[Case], Volume], ahead: int = 1) -> Iterator[tuple[Case, Read]]:
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
    waiting: deque[tuple[Case, Future[Read]]] = deque()
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


def _read(case: Case, read: Callable[[Case], Volume]) -> Read:
    started = time.monotonic()
    volume, error = None, None
    with warnings_of_this_thread("medseg.scans") as warnings:
        try:
            volume = read(case)
        except Exception as found:  # whatever is wrong with one scan is told with it and leaves the others unharmed
            error = found
    return Read(volume, error, tuple(warnings), time.monotonic() - started)


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
