"""From the options of the group ``runtime`` to runtimes that are ready. How each runs is said in the modules it comes from."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from medseg.errors import MedsegError
from medseg.inference.graph_runtimes import OnnxRuntime, OpenVinoRuntime
from medseg.inference.runtime import Runtime, RuntimePrecision, TorchRuntime, can_compile, find_device
from medseg.model import Model

Name = Literal["auto", "torch", "compile", "openvino", "onnx"]
_PACKAGES = {"openvino": ("openvino",), "onnx": ("onnxruntime", "onnx", "onnxscript")}


@dataclass(frozen=True)
class RuntimeOptions:
    """Values of the group ``runtime``.

    Args:
        name: ``auto`` measures on this machine what is worth measuring (`medseg.inference.auto_runtime`).
        device: ``auto`` (CUDA, where there is one), ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``auto``, ``bf16``, ``fp16`` or ``float32``.
        cache: the folder in which ``auto`` keeps what it measured; None for nowhere.
    """

    name: Name = "torch"
    device: str = "auto"
    precision: RuntimePrecision = "auto"
    cache: Path | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RuntimeOptions:
        """Raises MedsegError for an option or a runtime that does not exist."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise MedsegError(f"runtime has no {', '.join(map(repr, unknown))}; it accepts {', '.join(known)}")
        cache = values.get("cache")
        options = cls(**{**values, "cache": None if cache is None else Path(cache).expanduser()})
        for option, given, kinds in (("", options.name, Name), (".precision", options.precision, RuntimePrecision)):
            if given not in get_args(kinds):
                raise MedsegError(f"runtime{option}={given}: expected one of {', '.join(get_args(kinds))}")
        return options


def build_runtime(
    name: str, model: Model, options: RuntimeOptions, *, batch_size: int = 1, trust: Sequence[str] = ()
) -> Runtime:
    """A model behind the runtime called ``name`` (not ``auto``), of the device and precision of ``options``.

    Raises:
        MedsegError: it is not installed (the extra is named), or cannot do what the options ask for.
    """
    network = model.network_module(trust)
    how: dict[str, Any] = {"device": options.device, "precision": options.precision}
    if name in ("torch", "compile"):
        return TorchRuntime(network, compile=name == "compile", **how)
    size = (batch_size, len(model.plan.channels), *model.plan.patch_size)
    return OpenVinoRuntime(network, size, **how) if name == "openvino" else OnnxRuntime(network, size, **how)


def candidates(options: RuntimeOptions) -> list[str]:
    """The runtimes beside plain PyTorch that can be had here for these options, without trying them."""
    device = find_device(options.device)
    found = ["compile"] if can_compile(device) else []
    if device.type == "cpu" and options.precision != "fp16" and _installed("openvino"):
        found.append("openvino")
    if device.type == "cpu" and options.precision in ("auto", "float32") and _installed("onnx"):
        found.append("onnx")
    return found


def versions_of_runtimes() -> dict[str, str]:
    """Versions of what computes."""
    from importlib.metadata import version

    names = [name for packages in _PACKAGES.values() for name in packages[:1] if importlib.util.find_spec(name)]
    return {"torch": torch.__version__, **{name: version(name) for name in names}}


def _installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in _PACKAGES[name])
