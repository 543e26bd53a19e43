"""Runs a network on a batch of windows: device, number format and memory layout, and nothing of what the numbers mean.

A runtime is any callable ``(B, C, *S) → output`` in float32 with a ``device``; this one is PyTorch's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from medseg.errors import MachineError, MedsegError

logger = logging.getLogger(__name__)
Precision = Literal["auto", "bf16", "float32"]


class Runtime(Protocol):
    """What `predict_grid` needs of a network."""

    def __call__(self, batch: Tensor) -> Any:
        """``(B, C, *S)`` float32 on any device → the network's output in float32: the finest level ``(B, K, *S)``, or a
        dictionary of named tensors or lists of levels."""


class TorchRuntime:
    """A PyTorch network ready to predict.

    The network itself is used, not a copy: it is put into evaluation mode and onto the device; its weights stay.

    Args:
        network: ``forward(x) → (B, K, *S)``, or a dictionary.
        device: ``"auto"`` (CUDA, where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        precision: ``"bf16"`` computes under autocast, ``"auto"`` does so where `fast_bf16`; the output is float32.
        compile: whether the network is compiled first (1–2 minutes on a CPU; repays many or large scans).

    Raises:
        MedsegError: the device does not exist here, or the precision is unknown.
    """

    def __init__(
        self, network: nn.Module, *, device: str = "auto", precision: Precision = "auto", compile: bool = False
    ) -> None:
        if precision not in get_args(Precision):
            raise MedsegError(f"runtime.precision {precision!r}: expected one of {', '.join(get_args(Precision))}")
        self.device = find_device(device)
        self.bf16 = precision == "bf16" or (precision == "auto" and fast_bf16(self.device))
        network.eval()
        network.to(self.device)
        self._forward: Callable[[Tensor], Any] = torch.compile(network, dynamic=False) if compile else network
        logger.debug("network on %s, %s", self.device, "bf16" if self.bf16 else "float32")

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Any:
        return self.forward(batch)

    def forward(self, batch: Tensor) -> Any:
        """The same, in whatever mode of differentiation the caller is."""
        layout = torch.channels_last_3d if batch.ndim == 5 else torch.channels_last
        batch = batch.to(self.device, non_blocking=True).contiguous(memory_format=layout)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                output = self._forward(batch)
        except RuntimeError as error:
            # PyTorch has an error of its own for a full GPU, but none for a full main memory.
            if isinstance(error, torch.cuda.OutOfMemoryError) or "allocate memory" in str(error):
                raise MachineError(
                    f"the memory of {self.device} does not hold what the network needs for a batch {tuple(batch.shape)}; "
                    f"predict with a smaller batch_size, or on another device (runtime.device=cpu): {error}"
                ) from None
            raise
        return _as_float(output[0] if isinstance(output, (list, tuple)) else output)


def _as_float(output: Any) -> Any:
    """Every tensor of an output in float32."""
    if isinstance(output, dict):
        return {name: _as_float(value) for name, value in output.items()}
    return [_as_float(level) for level in output] if isinstance(output, (list, tuple)) else output.float()


def find_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        MedsegError: it is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else "not available"
        raise MedsegError(
            f"runtime.device {name!r} cannot be used here ({reason}); expected auto, cpu or cuda"
        ) from None
    return device


def fast_bf16(device: torch.device | str) -> bool:
    """Whether bf16 is faster than float32 here: CUDA from capability 8 (Ampere), CPUs with AVX512-BF16 or AMX."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and _cpu_has_bf16()


@lru_cache(maxsize=1)
def _cpu_has_bf16() -> bool:
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11; the kernel's list before
    if "avx512_bf16" in known or "amx_bf16" in known:
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
