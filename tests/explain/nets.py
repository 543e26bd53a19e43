"""Networks so small that their attributions are known by hand, and the score of a case by one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.explain.evidence import CaseScore, Evidence
from medseg.explain.stitching import Stitching
from medseg.model import Model
from medseg.networks import build_network
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.volume import Array
from tests.tiny import tiny_plan

ONE = LabelTable({1: "lesion"})
CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
CONVOLUTIONS = "tests.explain.nets.convolutions"
POOLED = "tests.explain.nets.pooled"


def plan_2d(size: int = 4, channels: int = 1, **changes: Any) -> Plan:
    """A plan for pictures of one label whose windows are ``size`` wide and whose values are taken as they are."""
    values: dict[str, Any] = {
        "patch_size": (size,) * 2,
        "labels": ONE,
        "channels": (Channel("MRI", "none"),) * channels,
    }
    return tiny_plan(2, **(values | changes))


def score_of(
    network: nn.Module, array: Array, plan: Plan | None = None, region: Array | None = None, **options: Any
) -> CaseScore:
    """The score of the lesion by a segmentation network that gives background and lesion, in float32."""
    plan = plan_2d() if plan is None else plan
    evidence = Evidence(network, build_task({"name": "segmentation"}, plan), device="cpu", precision="float32")
    stitching = Stitching(plan, array.shape[1:], options.get("overlap", 0.5))
    return CaseScore(evidence, stitching, "lesion", tuple(stitching.shares("segmentation", region)))


def weighted(*layers: nn.Module, weights: Sequence[Any]) -> nn.Sequential:
    """A row of layers; every convolution among them has the next of ``weights`` (any nested list) and no bias."""
    network = nn.Sequential(*layers)
    given = iter(weights)
    for module in network:
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            values = torch.tensor(next(given), dtype=torch.float32)
            module.weight.data = values.reshape(module.weight.shape)
            if module.bias is not None:
                module.bias.data.zero_()
    return network


def convolutions(dimensions: int, in_channels: int, out_channels: int) -> nn.Module:
    """A network that treats every place alike, but at the border of its window."""
    conv = CONV[dimensions]
    return nn.Sequential(
        conv(in_channels, 4, 3, padding=1),
        nn.ReLU(),
        conv(4, 4, 3, padding=1),
        nn.LeakyReLU(0.1),
        conv(4, out_channels, 1),
    )


class Pooled(nn.Module):
    """Two features, the mean of each over the window, a weight for each and class."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(CONV[dimensions](in_channels, 2, 1), nn.ReLU())
        self.last = nn.Linear(2, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.features(x).flatten(2).mean(2))
        return logits


def pooled(dimensions: int, in_channels: int, out_channels: int) -> nn.Module:
    return Pooled(dimensions, in_channels, out_channels)


class Functional(nn.Module):
    """A rectifier that no module tells of, applied in place."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(F.leaky_relu_(self.first(x), 0.1))
        return out


class HiddenRectifier(torch.autograd.Function):
    """ReLU with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (ctx.saved_tensors[0] > 0)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(F.relu(HiddenRectifier.apply(x)))
        return out


def model_of(
    target: str, plan: Plan, task: str = "segmentation", seed: int = 0, weights: dict[str, Any] | None = None
) -> Model:
    """A model of a network of this module, with random weights but for those that are given."""
    spec = {"_target_": target}
    outputs = build_task({"name": task}, plan).out_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = build_network(spec, plan, outputs, trust=[target]).state_dict()
    model = Model(plan=plan, task={"name": task}, network=spec, weights=state)
    if weights is None:
        return model
    return replace(
        model, weights={**state, **{n: torch.tensor(v).float().reshape(state[n].shape) for n, v in weights.items()}}
    )


def random_array(shape: Sequence[int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=tuple(shape)).astype(np.float32)
