"""``medseg convert``: a model in another program's format. Knows no format: `medseg.interop` does."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from medseg.errors import MedsegError
from medseg.files import full_disk_is_said
from medseg.interop.formats import write_as
from medseg.model import load_members

logger = logging.getLogger(__name__)


def convert(*, model: Path | str, output: Path | str, to: str, trust: Sequence[str] = ()) -> Path:
    """Write a model as ``to``; the members of an ensemble side by side, ``fold_<number>``.

    Args:
        model: a model, run or experiment folder.
        output: a folder that does not exist; it appears whole or not at all.
        to: one of `medseg.interop.formats.WRITERS`.
        trust: targets of networks that are not built in.

    Returns:
        ``output``.

    Raises:
        MedsegError: ``output`` exists, or the model cannot be written so.
        MachineError: the disk is full.
    """
    output = Path(output)
    if output.exists():
        raise MedsegError(f"output {output}: exists already; choose another, or remove it")
    members = load_members(Path(model), trust)
    with full_disk_is_said(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            new = aside / "new"
            for number, member in enumerate(members):
                folder = new if len(members) == 1 else new / f"fold_{number}"
                folder.mkdir(parents=True)
                write_as(to, member, folder)
            new.replace(output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    logger.info("%s: %d model(s) as %s", output, len(members), to)
    return output
