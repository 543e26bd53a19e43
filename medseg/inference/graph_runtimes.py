"""Runs a network as a graph by another hand: OpenVINO on CPUs, onnxruntime on CPUs and CUDA. Each is an extra.

A graph has one size, ``(batch_size, C, *patch)``: fewer windows are filled up with empty ones, and others are refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.inference.runtime import RuntimePrecision, fast_bf16, filled_up, find_device, full_memory_is_said
from medseg.interop.graph import INPUT, FlatNetwork, example_of, nest
from medseg.interop.onnx import onnx_bytes
from medseg.interop.openvino import openvino_graph, openvino_library


class OpenVinoRuntime:
    """A network that OpenVINO runs on the CPU, with as many threads as PyTorch would use.

    Args:
        network: on the CPU; it is not needed afterwards.
        size: ``(batch_size, C, *patch)`` of what it will be asked.
        device: ``"auto"`` or ``"cpu"``.
        precision: ``"bf16"`` or ``"float32"``; ``"auto"`` is bf16 where the CPU is fast at it.

    Raises:
        MedsegError: OpenVINO is not installed or lacks an operator, or another device or precision is asked for.
    """

    own_threads = True

    def __init__(
        self, network: nn.Module, size: Sequence[int], *, device: str = "auto", precision: RuntimePrecision = "auto"
    ) -> None:
        if device not in ("auto", "cpu"):
            raise MedsegError(
                f"runtime=openvino: runs on the CPU, found runtime.device={device}; take runtime=torch there"
            )
        self.device = torch.device("cpu")
        if precision == "auto":
            precision = "bf16" if fast_bf16(self.device) else "float32"
        _check_precision("openvino", precision, ("bf16", "float32"))
        self.precision = precision
        library = openvino_library()
        flat, example = _flat(network, size)
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        self._compiled = library.Core().compile_model(openvino_graph(flat, example), "CPU", options)
        self._size, self._names = tuple(size), flat.names

    def __call__(self, batch: Tensor) -> Any:
        values = _fitting(batch, self._size)
        with full_memory_is_said(self.device, batch):
            found = self._compiled({INPUT: values})
        return _nested({name: found[name] for name in self._names}, len(batch))

    def describe(self) -> dict[str, str]:
        return {"runtime": "openvino", "device": "cpu", "precision": self.precision}


class OnnxRuntime:
    """A network that onnxruntime runs in float32.

    Args:
        network, size: as for `OpenVinoRuntime`.
        device: ``"cuda"`` needs the package onnxruntime-gpu; ``"auto"`` takes CUDA where that is installed.
        precision: ``"auto"`` or ``"float32"``.

    Raises:
        MedsegError: onnxruntime or what exports is not installed, an operator is lacking, or another device or precision is asked
            for.
    """

    own_threads = True

    def __init__(
        self, network: nn.Module, size: Sequence[int], *, device: str = "auto", precision: RuntimePrecision = "auto"
    ) -> None:
        _check_precision("onnx", "float32" if precision == "auto" else precision, ("float32",))
        library = _onnxruntime()
        wanted, on_cuda = find_device(device), "CUDAExecutionProvider" in library.get_available_providers()
        if wanted.type == "cuda" and not on_cuda and device != "auto":
            raise MedsegError(
                f"runtime=onnx: this onnxruntime cannot use runtime.device={device}; pip install onnxruntime-gpu in its place, "
                "or say runtime.device=cpu"
            )
        self.device = wanted if on_cuda else torch.device("cpu")
        flat, example = _flat(network, size)
        options = library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        cuda = [("CUDAExecutionProvider", {"device_id": self.device.index or 0})] if self.device.type == "cuda" else []
        providers = [*cuda, "CPUExecutionProvider"]
        self._session = library.InferenceSession(onnx_bytes(flat, example), options, providers=providers)
        self._size, self._names = tuple(size), flat.names

    def __call__(self, batch: Tensor) -> Any:
        values = _fitting(batch, self._size)
        with full_memory_is_said(self.device, batch):
            found = self._session.run(list(self._names), {INPUT: values})
        return _nested(dict(zip(self._names, found, strict=True)), len(batch))

    def describe(self) -> dict[str, str]:
        return {"runtime": "onnx", "device": self.device.type, "precision": "float32"}


def _onnxruntime() -> Any:
    try:
        library = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MedsegError(f"runtime=onnx: onnxruntime is not installed ({error}); pip install 'medseg[onnx]'") from None
    library.disable_telemetry_events()
    return library


def _check_precision(name: str, precision: str, known: Sequence[str]) -> None:
    if precision not in known:
        raise MedsegError(f"runtime={name}: runtime.precision {precision!r}; expected auto, {' or '.join(known)}")


def _flat(network: nn.Module, size: Sequence[int]) -> tuple[FlatNetwork, Tensor]:
    example = example_of(size[1], size[2:], size[0])
    return FlatNetwork(network.cpu()), example


def _fitting(batch: Tensor, size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """``batch`` as the array that the graph takes. Raises MedsegError where it is not of the size it was made for."""
    if len(batch) > size[0] or tuple(batch.shape[1:]) != size[1:]:
        raise MedsegError(
            f"runtime: this graph takes up to {size[0]} windows {size[1:]}, found {len(batch)} of {tuple(batch.shape[1:])}; "
            "use runtime=torch for windows of any size"
        )
    return filled_up(batch.cpu(), size[0]).contiguous().numpy()


def _nested(found: Mapping[str, Any], count: int) -> Any:
    return nest({name: torch.from_numpy(np.array(values[:count], np.float32)) for name, values in found.items()})
