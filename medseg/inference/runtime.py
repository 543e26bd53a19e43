"""Runs a network on a batch of windows: device, number format and memory layout, and nothing of what the numbers mean.

A runtime is any callable ``(B, C, *S) → output`` in float32 with a ``device`` and a description; this one is PyTorch's, the
others are in `medseg.inference.graph_runtimes`.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.errors import MachineError, MedsegError
from medseg.interop.graph import each_tensor
from medseg.networks.layout import channels_last

logger = logging.getLogger(__name__)
Precision = Literal["auto", "bf16", "float32"]
"""Number formats of training."""
RuntimePrecision = Literal["auto", "bf16", "fp16", "float32"]
"""Number formats of prediction, where nothing has to be scaled."""


class Runtime(Protocol):
    """What `predict_grid` needs of a network."""

    device: torch.device
    own_threads: bool
    """Whether it computes on the CPU by other threads than PyTorch's."""

    def __call__(self, batch: Tensor) -> Any:
        """``(B, C, *S)`` float32 on any device → the network's output in float32: the finest level ``(B, K, *S)``, or a
        dictionary of named tensors or lists of levels."""

    def describe(self) -> dict[str, str]:
        """``runtime``, ``device`` and ``precision``, for a manifest."""


class TorchRuntime:
    """A PyTorch network ready to predict.

    The network itself is used, not a copy: it is put into evaluation mode and onto the device; its weights stay.

    Args:
        network: ``forward(x) → (B, K, *S)``, or a dictionary.
        device: ``"auto"`` (CUDA, where there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        precision: ``"bf16"`` and ``"fp16"`` compute under autocast, ``"auto"`` takes what the hardware is fast at
            (`fast_format`); the output is float32.
        compile: whether the network is compiled first (1–2 minutes on a CPU; repays many or large scans), on CUDA into CUDA
            graphs. All batches are then as large as the first: smaller ones are filled up. Without a compiler it is not
            compiled, and one line says so.

    Raises:
        MedsegError: the device does not exist here, or the precision is unknown.
    """

    own_threads = False

    def __init__(
        self, network: nn.Module, *, device: str = "auto", precision: RuntimePrecision = "auto", compile: bool = False
    ) -> None:
        if precision not in get_args(RuntimePrecision):
            raise MedsegError(
                f"runtime.precision {precision!r}: expected one of {', '.join(get_args(RuntimePrecision))}"
            )
        self.device = find_device(device)
        self.precision = fast_format(self.device) if precision == "auto" else precision
        self.compiled = compile and can_compile(self.device)
        if compile and not self.compiled:
            logger.warning("runtime=compile: found no %s, so the network is not compiled", compiler_of(self.device))
        network.eval()
        network.to(self.device)
        _turn_weights(network)
        self._forward: Callable[[Tensor], Any] = network
        if self.compiled:
            graphs = "reduce-overhead" if self.device.type == "cuda" else None
            self._forward = torch.compile(network, dynamic=False, mode=graphs)
        self._batch_size = 0
        self._upload = _Upload(self.device) if self.device.type == "cuda" else None
        logger.debug("network on %s, %s", self.device, self.precision)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Any:
        return self.forward(batch)

    def forward(self, batch: Tensor) -> Any:
        """The same, in whatever mode of differentiation the caller is."""
        batch = channels_last(self._upload(batch) if self._upload else batch)
        count = len(batch)
        if self.compiled:  # another size would be compiled anew
            self._batch_size = max(self._batch_size, count)
            batch = filled_up(batch, self._batch_size)
            torch.compiler.cudagraph_mark_step_begin()
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with (
            full_memory_is_said(self.device, batch),
            torch.autocast(self.device.type, half or torch.bfloat16, enabled=half is not None),
        ):
            output = self._forward(batch)
        output = output[0] if isinstance(output, (list, tuple)) else output
        if not self.compiled:
            return each_tensor(output, lambda tensor: tensor.float())
        # CUDA graphs write every answer to the same place, so it is copied away.
        return each_tensor(output, lambda tensor: tensor[:count].to(torch.float32, copy=True))

    def describe(self) -> dict[str, str]:
        name = "compile" if self.compiled else "torch"
        return {"runtime": name, "device": self.device.type, "precision": self.precision}


def _turn_weights(network: nn.Module) -> None:
    """Lay out the weights of convolutions channels last: by them PyTorch goes, where one channel says nothing of a layout."""
    for parameter in network.parameters():
        if parameter.ndim in (4, 5):
            parameter.data = channels_last(parameter.data)


class _Upload:
    """Brings windows to a GPU beside what it computes: through pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, batch: Tensor) -> Tensor:
        if batch.device.type == "cuda":
            return batch.to(self._device)
        now = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            moved = batch.pin_memory().to(self._device, non_blocking=True)
        now.wait_stream(self._stream)
        moved.record_stream(now)  # its memory is not given to the next window while this one is computed
        return moved


def filled_up(batch: Tensor, size: int) -> Tensor:
    """``batch`` with empty windows behind it, so that there are ``size``."""
    missing = size - len(batch)
    return F.pad(batch, (0, 0) * (batch.ndim - 1) + (0, missing)) if missing > 0 else batch


@contextmanager
def full_memory_is_said(device: torch.device, batch: Tensor) -> Iterator[None]:
    """Turn a memory that is full into a MachineError that says what to do about it."""
    try:
        yield
    except RuntimeError as error:
        # PyTorch has an error of its own for a full GPU, but none for a full main memory.
        said = str(error)
        full = "allocate memory" in said or "bad_alloc" in said
        if not full and not isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise MachineError(
            f"the memory of {device} does not hold what the network needs for a batch {tuple(batch.shape)}; "
            f"predict with a smaller batch_size, or on another device (runtime.device=cpu): {error}"
        ) from None


def can_compile(device: torch.device) -> bool:
    """Whether PyTorch finds what it compiles with: Triton for CUDA, a C++ compiler for the CPU."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))


def compiler_of(device: torch.device) -> str:
    """What `can_compile` looks for."""
    return "Triton" if device.type == "cuda" else "C++ compiler"


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


def fast_format(device: torch.device | str) -> RuntimePrecision:
    """The number format that this device is fast at: bf16, else fp16 on GPUs that have it (capability 7), else float32."""
    device = torch.device(device)
    if fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 7 else "float32"


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
