"""Convolutions whose gradients can be trusted: a way around a fault of oneDNN.

On CPUs with AVX-512, oneDNN (3.12, in PyTorch 2.13) computes the gradient of a convolution's weights from memory that it never
wrote, or writes where it must not, where it pads a map that is no longer than the kernel:

- in 3D along the first axis: 2 voxels for a kernel of 3 in bfloat16, as the deepest stage of a U-Net easily has; 5 to 7 voxels
  for a kernel of 7 and a stride of 2 in float32 too;
- in 2D and 3D along an axis with a stride, in bfloat16: one voxel for a kernel of 3, as classifiers leave of small images.

The loss then turns NaN at random, or the process dies. What is padded beforehand oneDNN gets right, and such maps are tiny.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SafeConv2d(nn.Conv2d):
    """``nn.Conv2d`` that pads by itself where oneDNN's padding is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_at_risk(self, x, x.shape[2:]):
            return super().forward(x)
        return F.conv2d(_padded(self, x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SafeConv3d(nn.Conv3d):
    """``nn.Conv3d`` that pads by itself where oneDNN's padding is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_at_risk(self, x, x.shape[2:]):
            return super().forward(x)
        return F.conv3d(_padded(self, x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SafeConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` that cuts its result by itself where oneDNN is wrong: there the result is the short map."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _is_at_risk(self, x, _lengths(self, x)):
            return super().forward(x, output_size)
        options = (self.stride, 0, self.output_padding, self.groups, self.dilation)
        return _cut(self, F.conv_transpose2d(x, self.weight, self.bias, *options))


class SafeConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that cuts its result by itself where oneDNN is wrong: there the result is the short map."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None or not _is_at_risk(self, x, _lengths(self, x)):
            return super().forward(x, output_size)
        options = (self.stride, 0, self.output_padding, self.groups, self.dilation)
        return _cut(self, F.conv_transpose3d(x, self.weight, self.bias, *options))


_SAFE: dict[type[nn.Module], Any] = {
    nn.Conv2d: SafeConv2d,
    nn.Conv3d: SafeConv3d,
    nn.ConvTranspose2d: SafeConvTranspose2d,
    nn.ConvTranspose3d: SafeConvTranspose3d,
}


def make_safe(network: nn.Module) -> nn.Module:
    """Let every padded convolution of ``network`` be a safe one, in place; weights and their names stay."""
    for module in network.modules():
        if type(module) in _SAFE and module.padding_mode == "zeros" and any(_padding(module)):
            module.__class__ = _SAFE[type(module)]
    return network


def _is_at_risk(layer: Any, x: Tensor, lengths: Sequence[int]) -> bool:
    """Whether oneDNN would pad a map of ``lengths`` for a gradient that it gets wrong."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    rows = zip(lengths, layer.kernel_size, layer.stride, _padding(layer), strict=True)
    return any(
        padding > 0 and length <= kernel and (stride > 1 or (axis == 0 and len(lengths) == 3))
        for axis, (length, kernel, stride, padding) in enumerate(rows)
    )


def _padding(layer: Any) -> list[int]:
    """Zeros on each side of each axis; those named in words (``"same"``) are left to PyTorch."""
    return [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else [int(p) for p in layer.padding]


def _padded(layer: Any, x: Tensor) -> Tensor:
    return F.pad(x, [padding for padding in reversed(_padding(layer)) for _ in range(2)])


def _cut(layer: Any, y: Tensor) -> Tensor:
    """Without the voxels beyond the padding."""
    for axis, padding in enumerate(_padding(layer), 2):
        y = y.narrow(axis, padding, y.shape[axis] - 2 * padding)
    return y


def _lengths(layer: Any, x: Tensor) -> list[int]:
    """The size of what a transposed convolution without dilation makes of ``x``."""
    rows = zip(x.shape[2:], layer.kernel_size, layer.stride, _padding(layer), layer.output_padding, strict=True)
    return [(n - 1) * stride - 2 * padding + kernel + extra for n, kernel, stride, padding, extra in rows]
