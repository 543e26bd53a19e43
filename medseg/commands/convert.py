"""``medseg convert``: a model in another program's format. Knows no format: `medseg.interop` does."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import MedsegError
from medseg.files import full_disk_is_said
from medseg.interop.formats import is_written, write_as, writer_of
from medseg.model import load_members

logger = logging.getLogger(__name__)


def convert(
    *,
    model: Path | str,
    output: Path | str,
    to: str,
    batch_size: int = 1,
    overwrite: bool = False,
    trust: Sequence[str] = (),
) -> Path:
    """Write a model as ``to``; the members of an ensemble side by side, ``fold_<number>``.

    Args:
        model: a model, run or experiment folder.
        output: a folder; it appears whole or not at all.
        to: one of `medseg.interop.formats.WRITERS`.
        batch_size: windows that are taken at once; the size of a graph is fixed.
        overwrite: whether what was converted into ``output`` before is replaced.
        trust: targets of networks that are not built in.

    Returns:
        ``output``.

    Raises:
        MedsegError: there is no such format, it is not installed, it cannot hold the model, or ``output`` is taken.
        MachineError: the disk is full.
    """
    output = Path(output)
    writer_of(to)  # what does not exist is named before any work
    if batch_size < 1:
        raise MedsegError(f"convert: expected a batch_size of 1 or more, found {batch_size}")
    _check_output(output, overwrite)
    members = load_members(Path(model), trust)
    with full_disk_is_said(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            new = aside / "new"
            for number, member in enumerate(members):
                folder = new if len(members) == 1 else new / f"fold_{number}"
                folder.mkdir(parents=True)
                write_as(to, member, folder, batch_size=batch_size, trust=trust)
            if output.exists():
                output.replace(aside / "old")
            new.replace(output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    logger.info("%s: %d model(s) as %s", output, len(members), to)
    return output


def _check_output(output: Path, overwrite: bool) -> None:
    """Raises MedsegError unless a model may be written to ``output``: only a converted model is ever replaced."""
    if not output.exists():
        return
    if not overwrite:
        raise MedsegError(f"output {output}: exists already; choose another, or say overwrite=true to replace it")
    if not is_written(output) and not is_written(output / "fold_0"):
        raise MedsegError(
            f"output {output}: holds no converted model, and overwrite=true replaces these only; choose another output"
        )
