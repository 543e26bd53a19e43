"""A network as a graph that exporters take: one input of fixed size, outputs that are a row of named tensors.

Knows no file format. What a network returns (`medseg.networks`) is flattened under names that say where each tensor came from,
and nested again by them, so that whoever runs the graph elsewhere needs no code of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import MedsegError

INPUT = "image"
OUTPUT = "logits"
"""The name of the output of a network that returns one tensor."""


class FlatNetwork(nn.Module):
    """``network`` in evaluation mode, returning a tuple of tensors; ``names`` says which is which, once it has answered.

    Args:
        network: on the CPU.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.names: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Raises MedsegError where what the network returns cannot be named."""
        flat = list(flatten(self.network(x)))
        if not torch.compiler.is_compiling():
            self.names = tuple(name for name, _ in flat)
        return tuple(tensor for _, tensor in flat)


def example_of(channels: int, shape: Sequence[int], batch_size: int = 1) -> Tensor:
    """``(batch_size, channels, *shape)`` of smooth small numbers, the same every time, as normalised scans have them."""
    count = batch_size * channels
    for n in shape:
        count *= n
    return torch.sin(torch.arange(count, dtype=torch.float32) * 0.37).reshape(batch_size, channels, *shape)


def enough_to_trace(network: nn.Module, example: Tensor) -> Tensor:
    """A corner of ``example`` in which a network shows all its operations: two voxels of its deepest stage along each axis.

    All of it where the network has no ``any_multiple_of`` that says so (`medseg.networks.unet.UNet`).
    """
    divisor = getattr(network, "any_multiple_of", None)
    if divisor is None:
        return example
    window = (slice(0, min(n, 2 * d)) for n, d in zip(example.shape[2:], divisor, strict=True))
    return example[(slice(None), slice(None), *window)].contiguous()


def flatten(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a network's output by name: ``logits``, or ``scores.0`` for the first of the levels ``scores``.

    Raises:
        MedsegError: it is neither a tensor nor a dictionary of tensors and lists of tensors.
    """
    if isinstance(output, Tensor):
        yield OUTPUT, output
        return
    if not isinstance(output, Mapping):
        raise MedsegError(_unnamed(type(output).__name__))
    for name, value in output.items():
        levels = value if isinstance(value, (list, tuple)) else None
        for index, tensor in enumerate([value] if levels is None else levels):
            if not isinstance(tensor, Tensor) or "." in str(name) or str(name) == OUTPUT:
                raise MedsegError(_unnamed(f"{type(tensor).__name__} under {name!r}"))
            yield (str(name) if levels is None else f"{name}.{index}"), tensor


def nest(flat: Mapping[str, Tensor]) -> Any:
    """The output that `flatten` took apart."""
    if set(flat) == {OUTPUT}:
        return flat[OUTPUT]
    nested: dict[str, Any] = {}
    for name, tensor in flat.items():
        key, dot, _ = name.partition(".")
        if dot:
            nested.setdefault(key, []).append(tensor)
        else:
            nested[key] = tensor
    return nested


def each_tensor(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The output with every tensor changed."""
    if isinstance(output, Mapping):
        return {name: each_tensor(value, change) for name, value in output.items()}
    return [each_tensor(value, change) for value in output] if isinstance(output, (list, tuple)) else change(output)


def _unnamed(found: str) -> str:
    return (
        f"network: expected a tensor, or a dictionary of tensors and lists of tensors whose names are neither {OUTPUT!r} nor "
        f"hold a dot; found {found}. Such an output cannot be written as a graph; use runtime=torch"
    )
