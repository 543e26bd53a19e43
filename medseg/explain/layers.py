"""The layers of a network by name: which have a feature map that can be explained, in which order they run, which one is taken.

A layer is a module as ``named_modules`` calls it (``decoder.1``), or a list of modules (``head.lateral``), whose maps are taken
together. What a network does is seen by letting it run once; nothing here knows how one is built, or what is made of a map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from medseg.errors import MedsegError

CELLS = 12
"""Of the maps of a classifier, the last is taken that has so many cells along its longest axis: coarser ones point nowhere."""
FEWEST = 6
"""Cells along its longest axis from which a map has a part in `depths_of`."""
HEAD = "head"
SHARED_BY_LEVELS = "head.lateral"
"""The maps of our detectors that their head looks at: a box is found at one level, and no finer map has a part in it."""
_LISTED = 60


@dataclass(frozen=True)
class Ran:
    """A module that ran when the network predicted.

    Args:
        name: as ``named_modules`` has it.
        shape: of its output ``(B, K, …)``; None where that is not one tensor.
        times: how often it ran.
    """

    name: str
    shape: tuple[int, ...] | None
    times: int


def run_order(network: nn.Module, run: Callable[[], Any]) -> list[Ran]:
    """The modules of a network in the order in which they end when ``run`` lets it predict, the network itself left out."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    times: dict[str, int] = {}

    def note(name: str, output: Any) -> None:
        shapes.pop(name, None)
        shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else None
        times[name] = times.get(name, 0) + 1

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))  # type: ignore[misc]
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return [Ran(name, shape, times[name]) for name, shape in shapes.items()]


def layer_members(ran: Sequence[Ran], layer: str, dimensions: int) -> tuple[str, ...]:
    """The modules that a layer consists of: itself, or the members of a list.

    Raises:
        MedsegError: it does not exist, does not run when the network predicts, runs several times, or has no feature map.
    """
    maps = [one.name for one in _maps(ran, dimensions)]
    if layer in maps:
        return (layer,)
    one = next((one for one in ran if one.name == layer), None)
    members = tuple(name for name in maps if name.rpartition(".")[0] == layer)
    if one is None and members:
        return members
    if one is None:
        reason = "the network has no such layer, or does not use it when it predicts"
    elif one.times > 1:
        reason = f"it runs {one.times} times for one window"
    else:
        reason = "its output is no feature map"
    close = get_close_matches(layer, maps, 1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise MedsegError(f"layer {layer!r}: {reason}.{hint} Layers of this network: {_listed(maps)}")


def default_layer(ran: Sequence[Ran], patch: Sequence[int], task: str) -> str:
    """A layer fine enough to point, and deep enough to know what it points at.

    Of a classifier, the last whose map has `CELLS` cells along its longest axis. Of a detector, the maps that its head looks
    at. Of a segmentation network, the last that is coarser than the image: half the resolution of the decoder of a U-Net. Of
    several with a map of this size it is the outermost, then the last.

    Raises:
        MedsegError: no layer has a feature map.
    """
    maps = _explicable(ran, len(patch), task)
    if task == "detection" and any(one.name.startswith(f"{SHARED_BY_LEVELS}.") for one in maps):
        return SHARED_BY_LEVELS
    sizes = [one.shape[2:] for one in maps if one.shape is not None]
    if task == "classification":
        fitting = [size for size in sizes if max(size) >= CELLS]
    elif task == "detection":  # not one of ours: every box depends on the coarsest map
        fitting = [min(sizes, key=lambda size: (sum(size), size))]
    else:
        fitting = [size for size in sizes if any(n < p for n, p in zip(size, patch, strict=True))]
    size = (fitting or sizes)[-1]
    same = [one.name for one in maps if one.shape is not None and one.shape[2:] == size]
    fewest = min(name.count(".") for name in same)
    return [name for name in same if name.count(".") == fewest][-1]


def depths_of(ran: Sequence[Ran], patch: Sequence[int], task: str) -> tuple[str, ...]:
    """A layer for each resolution below that of the image, in the order in which they run: of all that have it, the last.

    Maps of fewer than `FEWEST` cells along their longest axis point nowhere. What is in the head of a detector or a classifier
    of ours is left out: most of it has no part in a given box. A network that has nothing else is seen at every resolution.

    Raises:
        MedsegError: no layer has a feature map.
    """
    last: dict[tuple[int, ...], str] = {}
    for one in _explicable(ran, len(patch), task):
        size, held = (one.shape or ())[2:], last.get((one.shape or ())[2:])
        if one.name.partition(".")[0] != HEAD and (held is None or one.name.count(".") <= held.count(".")):
            last[size] = one.name
    fitting = {
        size: name
        for size, name in last.items()
        if max(size) >= FEWEST and any(n < p for n, p in zip(size, patch, strict=True))
    }
    place = {one.name: at for at, one in enumerate(ran)}
    return tuple(sorted((fitting or last).values(), key=place.__getitem__))


def _explicable(ran: Sequence[Ran], dimensions: int, task: str) -> list[Ran]:
    """The layers with a feature map, but not the one that gives what is explained. Raises MedsegError if there is none."""
    maps = _maps(ran, dimensions)
    if not maps:
        raise MedsegError(
            "no layer of the network has a feature map; take a method that looks at the input, as gradient"
        )
    return maps[:-1] if task == "segmentation" and len(maps) > 1 else maps


@contextlib.contextmanager
def watching(network: nn.Module, layers: Sequence[str], *, only: bool = False) -> Iterator[dict[str, Tensor]]:
    """While it is entered, the maps of ``layers`` are noted as they are made, by name.

    With gradients on, a map is where the graph begins, if nothing before it asks for one: backward passes end there.

    Args:
        only: whether nothing but the maps is wanted: the network then stops behind the last of them.
    """
    maps: dict[str, Tensor] = {}

    def note(name: str, output: Tensor) -> Tensor:
        began = output.requires_grad or not torch.is_grad_enabled()
        maps[name] = output if began else output.detach().requires_grad_()
        if only and len(maps) == len(layers):
            raise _AllSeen
        return maps[name].clone()  # the network may go on in place

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: note(name, output))  # type: ignore[misc]
        for name in layers
    ]
    try:
        with contextlib.suppress(_AllSeen):
            yield maps
    finally:
        for hook in hooks:
            hook.remove()


class _AllSeen(Exception):
    """Ends a pass of which no more is wanted."""


def _maps(ran: Sequence[Ran], dimensions: int) -> list[Ran]:
    """Those with one feature map ``(B, K, *S)``."""
    return [one for one in ran if one.times == 1 and one.shape is not None and len(one.shape) == dimensions + 2]


def _listed(names: Sequence[str]) -> str:
    """All names or, of very many, those of the outer layers."""
    shown = list(names)
    while len(shown) > _LISTED and (deepest := max(name.count(".") for name in shown)) > 0:
        shown = [name for name in shown if name.count(".") < deepest]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f"; and {more} inside of them" if more else "")
