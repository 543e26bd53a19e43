"""Networks without memory for their weights: names and shapes alone, to compare with what a file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def outlined(build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` returns, on PyTorch's device ``meta``, whose tensors have a shape and no numbers.

    Raises:
        NotImplementedError, RuntimeError: the network computes with its own weights while it is built.
    """
    with torch.device("meta"), _NothingDrawn():
        return build()


class _NothingDrawn(TorchFunctionMode):
    """Leaves out initial weights where there is no memory for them; to draw them there, PyTorch imports its compiler (1 s)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        draws = getattr(func, "__module__", "") == nn.init.__name__ or getattr(func, "__name__", "") in _DRAWS
        if draws and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


_DRAWS = ("normal_", "erfinv_")
"""Beside the functions of ``torch.nn.init``."""
