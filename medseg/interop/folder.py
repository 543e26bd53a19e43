"""A folder of exported graphs: it appears whole, one graph a model and the plan beside them. Knows no format."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from medseg.errors import MedsegError
from medseg.files import full_disk_is_said
from medseg.interop.graph import example_of
from medseg.model import Model

Write = Callable[[Model, Tensor, Path], None]
"""Writes one model, given an example of its input, to a path without its suffix."""


def write_graphs(models: Sequence[Model], output: Path, write: Write, *, batch_size: int, overwrite: bool) -> Path:
    """Write every model with ``write`` into the folder ``output``, with the plan that they share.

    Raises:
        MedsegError: there is no model, a batch size below 1, or ``output`` is taken.
        MachineError: the disk is full.
    """
    if not models or batch_size < 1:
        raise MedsegError(f"convert: expected a model and a batch_size of 1 or more, found {len(models)}, {batch_size}")
    output = Path(output)
    if output.exists() and not overwrite:
        raise MedsegError(f"output {output}: is there already; choose another, or say overwrite=true to replace it")
    if output.exists() and not (output.is_dir() and (output / "plan.yaml").is_file()):
        raise MedsegError(
            f"output {output}: expected a folder of graphs to replace, found something else; choose another output"
        )
    plan = models[0].plan
    output.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_said(output), tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as aside:
        whole = Path(aside) / "whole"
        whole.mkdir()
        example = example_of(len(plan.channels), plan.patch_size, batch_size)
        for number, model in enumerate(models):
            write(model, example, whole / ("model" if len(models) == 1 else f"model_{number}"))
        (whole / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        whole.rename(output)
    return output
