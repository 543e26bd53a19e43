"""A runtime runs the network it was given, in the number format asked for, and always answers in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import medseg.inference.runtime as module
from medseg.errors import MachineError, MedsegError
from medseg.inference.runtime import TorchRuntime, fast_bf16, fast_format, find_device


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


def test_weights_are_laid_out_channels_last_and_stay_what_they_are():
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    TorchRuntime(network, device="cpu", precision="float32")
    assert network[0].weight.stride(1) == network[1].weight.stride(1) == 1
    for parameter, old in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old, rtol=0, atol=0)


def test_two_dimensions_work_too():
    runtime = TorchRuntime(nn.Conv2d(3, 2, 1), device="cpu")
    assert runtime(torch.randn(1, 3, 5, 7)).shape == (1, 2, 5, 7)


def test_a_device_that_is_not_here_is_named():
    with pytest.raises(MedsegError, match="'cuda:77'"):
        find_device("cuda:77")
    with pytest.raises(MedsegError, match="'toaster'"):
        TorchRuntime(Levels(), device="toaster")


def test_an_unknown_precision_is_named():
    with pytest.raises(MedsegError, match="'fp8': expected one of auto, bf16, fp16, float32"):
        TorchRuntime(Levels(), precision="fp8")


def test_auto_precision_follows_the_hardware():
    runtime = TorchRuntime(Levels(), device="cpu")
    assert runtime.precision == fast_format("cpu") == ("bf16" if fast_bf16("cpu") else "float32")
    assert runtime.describe() == {"runtime": "torch", "device": "cpu", "precision": runtime.precision}


def test_without_a_compiler_the_network_runs_as_it_is_and_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    runtime = TorchRuntime(Levels(), device="cpu", compile=True)
    assert runtime.describe()["runtime"] == "torch"
    assert runtime(torch.randn(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)
    assert [record.message for record in caplog.records] == [
        "runtime=compile: found no C++ compiler, so the network is not compiled"
    ]


def test_fewer_windows_than_a_compiled_network_takes_are_filled_up(monkeypatch):
    sizes = []

    def compiled(network, **options):
        return lambda x: (sizes.append(len(x)), network(x))[1]

    monkeypatch.setattr(module.torch, "compile", compiled)
    monkeypatch.setattr(module, "can_compile", lambda device: True)
    network = Levels()
    runtime = TorchRuntime(network, device="cpu", precision="float32", compile=True)
    x = torch.randn(3, 1, 4, 4, 4)
    first, rest = runtime(x), runtime(x[:1])
    assert sizes == [3, 3] and rest.shape[0] == 1
    torch.testing.assert_close(first[:1], rest)


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


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "float32"])
def test_cuda_graphs_keep_every_answer(precision):
    """Windows go up while others are computed, and no answer is written over by the next."""
    network, windows = Levels(), [torch.randn(2, 1, 8, 8, 8) for _ in range(4)]
    plain = TorchRuntime(network, device="cuda", precision="float32")
    compiled = TorchRuntime(network, device="cuda", precision=precision, compile=True)
    answers = [compiled(window) for window in windows]
    for window, answer in zip(windows, answers, strict=True):
        torch.testing.assert_close(answer, plain(window), atol=2e-2, rtol=2e-2)
