"""Layers of our U-Nets whose PyTorch version wastes a fifth of the time of a training step on a CPU; the results are the same.

Measured for ``(8, 16, 40, 56, 40)`` in bfloat16, channels last, one core, forward and backward: instance norm with LeakyReLU
32 → 19 ms (PyTorch turns the layout round twice each way); transposed convolution, concatenation and the skip's gradient 73 →
34 ms (PyTorch is slow to sum for the bias, and to add a slice to a whole); average pooling 43 → 9 ms (PyTorch has it in
float32 only). Other layouts and devices, and graphs that are traced for export, take PyTorch's own operators. Compiled, what
PyTorch would hand to a kernel is written out, so that the compiler fuses it in the layout that is there (a step of nnU-Net's
network for the hippocampus on one core: 2.14 → 1.88 s). Parameters are those of PyTorch's modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medseg.networks.convolution import SafeConv2d, SafeConv3d
from medseg.networks.layout import channels_last_format

CONV: dict[int, Any] = {2: SafeConv2d, 3: SafeConv3d}
_UP = {2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
_CONV = {2: F.conv2d, 3: F.conv3d}


class InstanceNorm(nn.Module):
    """Each channel of each sample to mean 0 and deviation 1, times ``weight`` plus ``bias``, then LeakyReLU.

    The parameters are those of ``nn.InstanceNorm*d(affine=True)``. ``slope`` 1 leaves the activation out. A channel of one
    voxel becomes its bias.
    """

    def __init__(self, channels: int, *, slope: float = 0.01, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope, self.eps = slope, eps

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, slope={self.slope}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S)`` in and out, in the type of ``x``; statistics in float32."""
        if _is_ours(x):
            return _NormBySample.apply(x, self.weight, self.bias, self.eps, self.slope)  # type: ignore[no-any-return]
        x = (
            self._written_out(x)
            if _is_compiled()
            else F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        )
        return x if self.slope == 1 else F.leaky_relu_(x, self.slope)

    def _written_out(self, x: Tensor) -> Tensor:
        axes, wide = tuple(range(2, x.ndim)), x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = (p.view(-1, *[1] * len(axes)) for p in (self.weight, self.bias))
        variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
        return ((wide - mean) * (torch.rsqrt(variance + self.eps) * weight) + bias).to(x.dtype)


class UpConcat(nn.Module):
    """A transposed convolution whose kernel is its stride, and the skip concatenated behind its result.

    ``weight`` and ``bias`` are those of ``nn.ConvTranspose*d(inputs, outputs, stride, stride)``.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.weight = nn.Parameter(torch.empty(inputs, outputs, *self.stride))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, stride={self.stride}"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``x`` ``(B, inputs, *S)`` and ``skip`` ``(B, F, *S·stride)`` → ``(B, outputs + F, *S·stride)``."""
        if _is_ours(x) and _is_ours(skip):
            return _UpConcat.apply(x, skip, self.weight, self.bias, self.stride)  # type: ignore[no-any-return]
        up = _UP[len(self.stride)]
        if _is_compiled():
            y = up(x, self.weight, None, self.stride)
            return torch.cat((y + self.bias.to(y.dtype).view(-1, *[1] * len(self.stride)), skip), 1)
        return torch.cat((up(x, self.weight, self.bias, self.stride), skip), 1)


class AveragePool(nn.Module):
    """The mean of blocks of ``stride`` voxels; sizes are multiples of it."""

    def __init__(self, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, *S)`` → ``(B, C, *S/stride)`` in the type of ``x``."""
        if _is_ours(x):
            return _Pool.apply(x, self.stride)  # type: ignore[no-any-return]
        # On a CPU PyTorch pools 3D in float32 or wider.
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) if x.device.type == "cpu" else x
        y: Tensor = _POOL[len(self.stride)](wide, self.stride, self.stride)
        return y.to(x.dtype)


def add_leaky_relu(x: Tensor, skip: Tensor, slope: float) -> Tensor:
    """``LeakyReLU(x + skip)``; ``x`` is overwritten."""
    return F.leaky_relu_(x.add_(skip), slope)


class _NormBySample(torch.autograd.Function):
    """Batch norm over one sample has the statistics of instance norm, works channels last, and finds the sample cached."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        y = torch.empty_like(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        ctx.types, weight, bias = (weight.dtype, bias.dtype), weight.to(dtype), bias.to(dtype)
        mean, inverse = (torch.empty(x.shape[:2], dtype=dtype) for _ in range(2))
        for i in range(len(x)):
            out = y[i : i + 1], mean[i], inverse[i]
            torch.native_batch_norm(x[i : i + 1], weight, bias, None, None, True, 0.0, eps, out=out)
            if slope != 1:
                F.leaky_relu_(out[0], slope)
        # Without activation y is not needed, and whoever adds to it in place must be free to.
        ctx.save_for_backward(x, weight, mean, inverse, *([y] if slope != 1 else []))
        ctx.eps, ctx.slope = eps, slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, *activated = ctx.saved_tensors
        grad = grad.contiguous(memory_format=channels_last_format(x.ndim - 2))
        parts = []
        for i in range(len(x)):
            g = grad[i : i + 1]
            for y in activated:
                g = torch.ops.aten.leaky_relu_backward(g, y[i : i + 1], ctx.slope, True)
            parts.append(
                torch.ops.aten.native_batch_norm_backward(
                    g, x[i : i + 1], weight, None, None, mean[i], inverse[i], True, ctx.eps, [True, True, True]
                )
            )
        by_input, by_weight, by_bias = zip(*parts, strict=True)
        own = [torch.stack(p).sum(0).to(t) for p, t in zip((by_weight, by_bias), ctx.types, strict=True)]
        return torch.cat(by_input), *own, None, None


class _UpConcat(torch.autograd.Function):
    """Sums the bias's gradient apart, and hands back both halves of the gradient in a layout that adds fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...]) -> Tensor:
        y = _UP[len(stride)](x, weight, bias, stride)
        ctx.save_for_backward(x.to(y.dtype), weight.to(y.dtype))
        ctx.stride, ctx.types = stride, (x.dtype, skip.dtype, weight.dtype, bias.dtype)
        return torch.cat((y, skip), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dimensions, outputs = len(ctx.stride), weight.shape[1]
        types, layout = ctx.types, channels_last_format(x.ndim - 2)
        by_up = grad[:, :outputs].to(x.dtype).contiguous(memory_format=layout)
        by_skip = grad[:, outputs:].contiguous(memory_format=layout).to(types[1])
        zeros, ones = [0] * dimensions, [1] * dimensions
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            by_up, x, weight, [outputs], ctx.stride, zeros, ones, True, zeros, 1, [True, True, False]
        )
        by_bias = by_up.sum((0, *range(2, dimensions + 2)))
        return by_x.to(types[0]), by_skip, by_weight.to(types[2]), by_bias.to(types[3]), None


class _Pool(torch.autograd.Function):
    """A depthwise convolution with equal weights forward, and the gradient spread evenly over each block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: tuple[int, ...]) -> Tensor:
        channels = x.shape[1]
        ctx.stride, ctx.shape, ctx.dtype = stride, x.shape, x.dtype
        weight = torch.full((channels, 1, *stride), 1 / math.prod(stride), dtype=x.dtype)
        with torch.autocast("cpu", enabled=False):
            return _CONV[len(stride)](x, weight, None, stride, groups=channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        batch, channels, *shape = ctx.shape
        rows = (grad / math.prod(ctx.stride)).movedim(1, -1)
        spread: list[int] = [batch]
        for axis, step in enumerate(ctx.stride):
            rows = rows.unsqueeze(2 * axis + 2)
            spread += [shape[axis] // step, step]
        return rows.expand(*spread, channels).reshape(batch, *shape, channels).movedim(-1, 1), None


def _is_compiled() -> bool:
    """Whether this is being compiled, not exported: other programs know the operators that are written out for the compiler."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _is_ours(x: Tensor) -> bool:
    """Whether ``x`` is channels last on a CPU, in a graph that is run as it is written."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    if x.device.type != "cpu" or x.shape[1] == 1 or traced:
        return False
    return x.is_contiguous(memory_format=channels_last_format(x.ndim - 2))
