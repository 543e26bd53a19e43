"""What ``medseg convert`` can write: a name, and the function that is imported when it is asked for.

A writer takes a model and a folder that exists and is empty, and writes what it makes there. Another format is a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from medseg.errors import MedsegError
from medseg.model import Model


class Writer(NamedTuple):
    """``target``: the function, ``(model, folder, *, batch_size, trust)``; ``sign``: a file that is in every folder it wrote."""

    target: str
    sign: str


WRITERS: dict[str, Writer] = {
    "onnx": Writer("medseg.interop.onnx.write_onnx", "model.onnx"),
    "openvino": Writer("medseg.interop.openvino.write_openvino", "model.xml"),
    "bundle": Writer("medseg.interop.bundle_out.write_bundle", "configs/inference.json"),
}


def writer_of(kind: str) -> Callable[..., None]:
    """The function that writes ``kind``. Raises MedsegError where there is no such kind."""
    if kind not in WRITERS:
        raise MedsegError(f"convert: to={kind}; expected one of {', '.join(WRITERS)}")
    module, _, name = WRITERS[kind].target.rpartition(".")
    writer: Callable[..., None] = getattr(importlib.import_module(module), name)
    return writer


def write_as(kind: str, model: Model, folder: Path, *, batch_size: int = 1, trust: Sequence[str] = ()) -> None:
    """Write ``model`` as ``kind`` into the empty ``folder``.

    Args:
        batch_size: windows that are taken at once.
        trust: targets of networks that are not built in.

    Raises:
        MedsegError: there is no such kind, or the model cannot be written so.
    """
    writer_of(kind)(model, folder, batch_size=batch_size, trust=trust)


def is_written(folder: Path) -> bool:
    """Whether a writer wrote this folder."""
    return any((folder / writer.sign).is_file() for writer in WRITERS.values())
