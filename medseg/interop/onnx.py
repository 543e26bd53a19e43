"""Models become ONNX graphs. Knows how they are exported and described, and nothing of how a graph is run.

The graph has one input of fixed size, `graph.INPUT` (B, C, *S) float32, and the outputs that `graph.flatten` names; its
metadata say the rest (`description`). Needs the extra ``onnx``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.files import write_text
from medseg.interop.description import description_of
from medseg.interop.graph import INPUT, FlatNetwork, example_of
from medseg.model import Model

_PACKAGES = ("onnx", "onnxscript")


def write_onnx(model: Model, folder: Path, *, batch_size: int = 1, trust: Sequence[str] = ()) -> None:
    """Write the graph as ``model.onnx`` into ``folder``, with ``plan.yaml``.

    Args:
        batch_size: windows that the graph takes at once; its size is fixed.
        trust: targets of networks that are not built in.

    Raises:
        MedsegError: ONNX is not installed, or has no operator for something in the network.
    """
    check_onnx()
    example = example_of(len(model.plan.channels), model.plan.patch_size, batch_size)
    program = export_onnx(FlatNetwork(model.network_module(trust)), example)
    program.model.metadata_props.update(description_of(model))
    program.save(str(folder / "model.onnx"))
    write_text(folder / "plan.yaml", model.plan.to_yaml())


def onnx_bytes(network: FlatNetwork, example: Tensor) -> bytes:
    """A network as an ONNX graph in memory, without a description.

    Raises:
        MedsegError: as `write_onnx`.
    """
    check_onnx()
    return bytes(export_onnx(network, example).model_proto.SerializeToString())


def export_onnx(network: FlatNetwork, example: Tensor) -> Any:
    """The ``torch.onnx.ONNXProgram`` of a network. Raises MedsegError for what ONNX has no operator for."""
    with _quiet(), torch.no_grad():
        network(example)  # its names are asked for before it is exported
        try:
            return torch.onnx.export(
                network, (example,), dynamo=True, input_names=[INPUT], output_names=list(network.names), verbose=False
            )
        except (torch.onnx.errors.OnnxExporterError, torch.onnx.OnnxExporterError) as error:
            raise not_exported("ONNX", network.network, error) from None


def not_exported(kind: str, network: nn.Module, error: BaseException) -> MedsegError:
    """What to say where a format cannot hold a network: the operators that it lacks, or the first line of the reason."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause))
        cause = cause.__cause__
    said = " ".join(reasons).split("No conversion rule found for operations:")[
        -1
    ]  # OpenVINO lists other operators before
    operators = sorted(set(re.findall(r"\b(?:aten|prims|torchvision|quantized)(?:::|\.)\w+", said)))
    lines = [line.strip() for line in reasons[-1].splitlines() if line.strip()]
    found = f"operators {', '.join(operators)}" if operators else (lines[0] if lines else type(error).__name__)
    return MedsegError(
        f"convert: {kind} cannot express the network {type(network).__name__}: expected operators that it has, found {found}. "
        "Use another network, or predict with runtime=torch or runtime=compile"
    )


def check_onnx() -> None:
    """Raises MedsegError where the packages that export are not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MedsegError(f"ONNX: {' and '.join(missing)} not installed; pip install 'medseg[onnx]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells programmers: it writes on stdout and warns of torch's own ways."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [log.level for log in loggers]
    try:
        for log in loggers:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
