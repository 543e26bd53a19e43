"""3D convolutions whose gradients can be trusted: a way around a fault of oneDNN.

In bfloat16 on CPUs with AVX-512-BF16, oneDNN (3.12, in PyTorch 2.13) computes the gradient of a 3D convolution's weights from
memory it never wrote, where the first axis is longer than one voxel but shorter than the kernel: 2 voxels for a kernel of 3,
which the deepest stage of a U-Net easily has. The loss then turns NaN at random. float32, 2D, the other axes and longer first
axes are right, so such maps, which are tiny, are convolved in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SafeConv3d(nn.Conv3d):
    """``nn.Conv3d`` that trains in float32 where oneDNN's bfloat16 is wrong."""

    def forward(self, x: Tensor) -> Tensor:
        if not _is_at_risk(x, x.shape[2], self.kernel_size[0]):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias).to(dtype)


class SafeConvTranspose3d(nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` that trains in float32 where oneDNN's bfloat16 is wrong: there the result is the short map."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        length = self._length(x.shape[2])
        if output_size is not None or not _is_at_risk(x, length, self.kernel_size[0]):
            return super().forward(x, output_size)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        padding = [int(p) for p in self.padding]
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            y = F.conv_transpose3d(
                x.float(),
                self.weight.float(),
                bias,
                self.stride,
                padding,
                self.output_padding,
                self.groups,
                self.dilation,
            )
        return y.to(dtype)

    def _length(self, length: int) -> int:
        """What the first axis becomes (without dilation)."""
        return (length - 1) * self.stride[0] - 2 * int(self.padding[0]) + self.kernel_size[0] + self.output_padding[0]


_SAFE: dict[type[nn.Module], Any] = {nn.Conv3d: SafeConv3d, nn.ConvTranspose3d: SafeConvTranspose3d}


def make_safe(network: nn.Module) -> nn.Module:
    """Let every 3D convolution of ``network`` be a safe one, in place; weights and their names stay."""
    for module in network.modules():
        if type(module) in _SAFE and module.kernel_size[0] > 2:  # type: ignore[operator,index]
            module.__class__ = _SAFE[type(module)]
    return network


def _is_at_risk(x: Tensor, length: int, kernel: int) -> bool:
    """Whether oneDNN would compute a gradient in bfloat16 along a first axis of ``length`` below ``kernel``."""
    if not 1 < length < kernel or x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return autocast or x.dtype == torch.bfloat16
