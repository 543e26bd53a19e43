"""Files appear whole or not at all: they are written aside, then renamed. Knows nothing of what is in them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from medseg.errors import MachineError

ASIDE = ".part-"
"""What the names of unfinished files begin with."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a name beside ``path`` to write to; it becomes ``path`` at the end, and is removed if the block raises."""
    aside = path.with_name(f"{ASIDE}{os.getpid()}-{path.name}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's content; computed once for a file that holds many cases."""
    found = path.stat()
    return _content_sha256(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=64)
def _content_sha256(path: Path, size: int, changed: int) -> str:
    del size, changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def full_disk_is_said(place: Path) -> Iterator[None]:
    """Turn a disk that fills up while writing below ``place`` into a MachineError that says how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise MachineError(
            f"{place}: the disk is full ({error.strerror}). What is complete stays; free some space and run the same "
            "command again, it goes on"
        ) from None
