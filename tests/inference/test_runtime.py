"""A runtime runs the network it was given, in the number format asked for, and always answers in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import MachineError, MedsegError
from medseg.inference.runtime import TorchRuntime, fast_bf16, find_device


class Levels(nn.Module):
    """Returns levels in training mode, as deeply supervised networks do, and the finest in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        y = self.conv(x)
        return [y, y[..., ::2]] if self.training else y


def test_the_output_is_float32_without_gradient_in_every_precision():
    x = torch.randn(2, 1, 6, 6, 6)
    network = Levels().train()
    full = TorchRuntime(network, device="cpu", precision="float32")
    half = TorchRuntime(network, device="cpu", precision="bf16")
    a, b = full(x), half(x)
    with torch.no_grad():
        torch.testing.assert_close(a, network.eval()(x))
    assert a.dtype == b.dtype == torch.float32
    assert not a.requires_grad
    assert 0 < (a - b).abs().max() < 0.1


def test_two_dimensions_work_too():
    runtime = TorchRuntime(nn.Conv2d(3, 2, 1), device="cpu")
    assert runtime(torch.randn(1, 3, 5, 7)).shape == (1, 2, 5, 7)


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(MedsegError, match="'cuda:77'"):
        find_device("cuda:77")
    with pytest.raises(MedsegError, match="'toaster'"):
        TorchRuntime(Levels(), device="toaster")


def test_an_unknown_precision_is_named():
    with pytest.raises(MedsegError, match="'fp8': expected one of auto, bf16, float32"):
        TorchRuntime(Levels(), precision="fp8")


def test_auto_precision_follows_the_hardware():
    assert TorchRuntime(Levels(), device="cpu").bf16 == fast_bf16("cpu")
    assert isinstance(fast_bf16(torch.device("cpu")), bool)


def test_a_full_memory_is_the_machines_and_other_errors_are_bugs():
    class Starved(nn.Module):
        def __init__(self, message: str) -> None:
            super().__init__()
            self.message = message

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError(self.message)

    with pytest.raises(MachineError, match="batch_size"):
        TorchRuntime(Starved("DefaultCPUAllocator: can't allocate memory: you tried …"), device="cpu")(
            torch.zeros(1, 1, 2, 2)
        )
    with pytest.raises(RuntimeError, match="shapes"):
        TorchRuntime(Starved("shapes do not fit"), device="cpu")(torch.zeros(1, 1, 2, 2))


@pytest.mark.gpu
def test_a_gpu_answers_as_the_cpu_does():
    x = torch.randn(2, 1, 8, 8, 8)
    network = Levels()
    with torch.no_grad():
        expected = network.eval()(x)
    assert TorchRuntime(network, device="auto").device.type == "cuda"
    torch.testing.assert_close(TorchRuntime(network, precision="float32")(x).cpu(), expected, atol=1e-2, rtol=1e-2)
