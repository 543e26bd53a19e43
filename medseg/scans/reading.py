"""How a file that cannot be read is said: one error with a kind, made of whatever a decoder raises. Opens nothing itself."""

from __future__ import annotations

import bz2
import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import MedsegError

logger = logging.getLogger(__name__)

COMPRESSION_LIMIT = 1100
"""gzip makes zeros at most 1032 times smaller: a header that claims more than that of its file is wrong."""


class ScanError(MedsegError):
    """A scan that cannot be used as it is. ``kind`` is the short stable word under which `check` lists it."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def decoding(path: Path, family: str, name: str = "") -> Iterator[None]:
    """Turn whatever a decoder raises on broken bytes into a `ScanError` that names the file (by ``name``, if given).

    Decoders of foreign bytes raise nearly anything (struct.error, zlib.error, KeyError …), hence the broad clause; wrap
    the decoder's call alone in it.
    """
    name = name or str(path)
    try:
        yield
    except MedsegError:
        raise
    except FileNotFoundError:
        raise ScanError(f"{name}: no such file", "missing_file") from None
    except MemoryError:
        raise ScanError(
            f"{name}: the {family} header claims more pixels than memory holds; the file is damaged"
        ) from None
    except EOFError as error:
        raise ScanError(
            f"{name}: truncated: cannot be read as {family} to its end ({error}); the file is damaged or cut short: copy it "
            "again or leave it out",
            "truncated",
        ) from None
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a decoder in Rust is no Exception
        logger.debug("%s: %s", path.name, error, exc_info=True)
        raise ScanError(
            f"{name}: cannot be read as {family} ({_reason(error, family)}); the file is damaged or cut short: copy it again or "
            "leave it out"
        ) from None


def _reason(error: BaseException, family: str) -> str:
    """What a decoder says in a line, without what it quotes of a DICOM header: that may be a patient's name."""
    if isinstance(error, AttributeError) and error.name:
        return f"it has no {error.name}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, KeyError):
        said = f"{said} is missing or not known"
    if "DICOM" in family:
        said = re.sub(r"""b?'[^']*('|$)|b?"[^"]*("|$)""", "…", said)
    return said[:200]


def check_claim(path: Path, family: str, claimed_bytes: int, stored_bytes: int, compressed: bool) -> None:
    """Refuse a header that claims more pixels than the file can hold, before memory is taken for them."""
    most = stored_bytes * (COMPRESSION_LIMIT if compressed else 1) + (4096 if compressed else 0)
    if claimed_bytes > most:
        raise ScanError(
            f"{path}: the {family} header claims {claimed_bytes:,} bytes of pixels, the file holds {stored_bytes:,}; "
            "it is damaged or cut short: copy it again or leave it out",
            "truncated",
        )


def decompressed(stored: bytes, encoding: str, size: int) -> bytes:
    """The first ``size`` bytes of what is stored, and no more: what comes behind them is not unpacked.

    Memory grows with what is there, never with what is claimed. Wrap the call in `decoding`.

    Args:
        encoding: ``"gzip"`` (or zlib), or ``"bzip2"``.

    Raises:
        EOFError: the stream ends before, or without its checksum.
    """
    unpacker = bz2.BZ2Decompressor() if encoding == "bzip2" else zlib.decompressobj(47)
    found = unpacker.decompress(
        stored, size + 1
    )  # one more, so that a stream of just this size is followed to its checksum
    if len(found) < size or not (unpacker.eof or len(found) > size):
        raise EOFError(f"expected {size:,} bytes of pixels, found {len(found):,}")
    return found[:size]
