"""nnU-Net's weights under the names of medseg's U-Nets, along medseg's axes.

nnU-Net counts decoder levels from the deepest, medseg from the finest, and nnU-Net's axes run k, j, i (and as its plans say,
turned). A convolution whose kernel is turned with the image gives the turned result, so that no scan need be turned. Nothing
here knows plans or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_CONV = r"(?:conv|norm)\.(?:weight|bias)"
_RULES: tuple[tuple[str, str], ...] = (
    (rf"encoder\.stages\.(\d+)\.0\.convs\.(\d+)\.({_CONV})", r"encoder.\1.\2.\3"),
    (rf"encoder\.stem\.convs\.0\.({_CONV})", r"stem.\1"),
    (rf"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv1\.({_CONV})", r"encoder.\1.\2.first.\3"),
    (rf"encoder\.stages\.(\d+)\.blocks\.(\d+)\.conv2\.({_CONV})", r"encoder.\1.\2.second.\3"),
    (rf"encoder\.stages\.(\d+)\.blocks\.(\d+)\.skip\.(\d)\.({_CONV})", r"encoder.\1.\2.skip.\3.\4"),
)
_DECODER: tuple[tuple[str, str], ...] = (
    (r"decoder\.transpconvs\.(\d+)\.(weight|bias)", "ups.{level}.{rest}"),
    (rf"decoder\.stages\.(\d+)\.convs\.(\d+\.{_CONV})", "decoder.{level}.{rest}"),
    (r"decoder\.seg_layers\.(\d+)\.(weight|bias)", "heads.{level}.{rest}"),
)
# The same tensors under a second name: modules that nnU-Net registers twice.
_TWICE = re.compile(r"^decoder\.encoder\.|\.all_modules\.")


def renamed(weights: Mapping[str, Tensor], stages: int) -> tuple[dict[str, Tensor], list[str]]:
    """The weights by medseg's names, and the names that are neither these nor repetitions of them.

    Args:
        weights: nnU-Net's ``network_weights``.
        stages: of the encoder.
    """
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, weight in weights.items():
        if _TWICE.search(name):
            continue
        new = _new_name(name, stages)
        if new is None:
            unknown.append(name)
        else:
            found[new] = weight
    return found, unknown


def turned(weight: Tensor, order: Sequence[int], *, flat: bool) -> Tensor:
    """A kernel ``(O, I, *K)`` along medseg's axes, others (biases, norms) as they are.

    Args:
        order: medseg's axis m is nnU-Net's axis ``order[m]``.
        flat: whether a 2D kernel becomes one slice of a 3D kernel.
    """
    if weight.ndim <= 1:
        return weight.to(torch.float32).contiguous()
    kernel = weight.unsqueeze(2) if flat else weight
    return kernel.permute(0, 1, *(2 + axis for axis in order)).to(torch.float32).contiguous()


def _new_name(name: str, stages: int) -> str | None:
    for pattern, new in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new)
    for pattern, new in _DECODER:
        match = re.fullmatch(pattern, name)
        if match:
            return new.format(level=stages - 2 - int(match[1]), rest=match[2])
    return None
