"""Models become OpenVINO graphs. The only door to the package: it is opened with telemetry off, and nothing here runs a graph.

Importing ``openvino`` reports to its makers over the network through the package ``openvino_telemetry``. Where that cannot be
imported, OpenVINO falls back to a stub of its own that sends nothing: `openvino_library` sees to it that it cannot.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.files import write_text
from medseg.interop.description import PREFIX, description_of
from medseg.interop.graph import INPUT, FlatNetwork, enough_to_trace, example_of
from medseg.interop.onnx import not_exported
from medseg.model import Model


def openvino_library() -> Any:
    """The package ``openvino``, which opens no connection. Raises MedsegError where it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it now fails, as is meant
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MedsegError(f"OpenVINO is not installed ({error}); pip install 'medseg[openvino]'") from None


def write_openvino(model: Model, folder: Path, *, batch_size: int = 1, trust: Sequence[str] = ()) -> None:
    """Write the graph as ``model.xml`` and ``model.bin`` into ``folder``; see `onnx.write_onnx`.

    The description lies in the graph's ``rt_info`` under ``medseg``.

    Raises:
        MedsegError: OpenVINO is not installed, or has no operator for something in the network.
    """
    library = openvino_library()
    example = example_of(len(model.plan.channels), model.plan.patch_size, batch_size)
    graph = openvino_graph(FlatNetwork(model.network_module(trust)), example)
    for name, text in description_of(model).items():
        graph.set_rt_info(text, ["medseg", name.removeprefix(PREFIX)])
    library.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)
    write_text(folder / "plan.yaml", model.plan.to_yaml())


def openvino_graph(network: FlatNetwork, example: Tensor) -> Any:
    """The ``openvino.Model`` of a network, its input as large as ``example``.

    Raises:
        MedsegError: OpenVINO is not installed, or has no operator for something in the network.
    """
    openvino_library()
    from openvino.frontend import FrontEndManager, GeneralFailure, OpConversionFailure, OpValidationFailure
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network is traced for one size, as is meant
        traced = torch.jit.trace(network, enough_to_trace(network.network, example), check_trace=False)
        frontend = FrontEndManager().load_by_framework("pytorch")
        # The frontend only borrows the decoder, and the graph must outlive the network: its numbers are copied.
        decoder = TorchScriptPythonDecoder(traced, shared_memory=False)
        try:
            graph = frontend.convert(frontend.load(decoder))
        except (RuntimeError, GeneralFailure, OpConversionFailure, OpValidationFailure) as error:
            raise not_exported("OpenVINO", network.network, error) from None
    graph.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(graph.outputs, network.names, strict=True):
        output.get_tensor().set_names({name})
    graph.reshape({INPUT: list(example.shape)})
    return graph
