"""``medseg convert``: a model becomes what other programs run. Knows which formats there are, and nothing of any of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from medseg.errors import MedsegError
from medseg.interop.onnx import convert_to_onnx
from medseg.interop.openvino import convert_to_openvino
from medseg.model import load_members

logger = logging.getLogger(__name__)
FORMATS: Mapping[str, Callable[..., Path]] = {"onnx": convert_to_onnx, "openvino": convert_to_openvino}
"""Name → ``(models, output, *, batch_size, overwrite, trust) → output``."""


def convert(
    *,
    model: Path,
    to: str,
    output: Path,
    batch_size: int = 1,
    overwrite: bool = False,
    trust: Sequence[str] = (),
) -> Path:
    """Write the model, or the members of an ensemble, in the format ``to`` into the folder ``output``.

    Args:
        model: a model, run or experiment folder.
        to: a key of `FORMATS`.
        batch_size: windows that a graph takes at once.
        overwrite: whether an earlier conversion in ``output`` is replaced.
        trust: targets of networks that are not built in.

    Raises:
        MedsegError: there is no such format, it is not installed, it cannot hold the network, or ``output`` is taken.
        MachineError: the disk is full.
    """
    if to not in FORMATS:
        raise MedsegError(f"to={to}: expected one of {', '.join(FORMATS)}")
    members = load_members(Path(model), trust)
    written = FORMATS[to](members, Path(output), batch_size=batch_size, overwrite=overwrite, trust=trust)
    logger.info("%s", written)
    return written
