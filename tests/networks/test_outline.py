"""Networks without memory: names and shapes of every built-in network, and nothing drawn."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from medseg.networks import BUILDERS, build_network
from medseg.networks.outline import outlined
from tests.tiny import UNET, tiny_plan


@pytest.mark.parametrize("name", ["plain_unet", "residual_unet", "segresnet", "dynunet"])
def test_an_outline_has_the_names_and_shapes_of_the_network(name):
    target = next(target for target in BUILDERS if target.endswith(f".{name}"))
    stages = {"strides": ((1,) * 3, (2,) * 3, (2,) * 3), "kernel_sizes": ((3,) * 3,) * 3, "blocks": (1, 1, 1)}
    plan = tiny_plan(patch_size=(32, 32, 32), features=(4, 8, 8), **stages)

    def build() -> nn.Module:
        return build_network({"_target_": target}, plan, 3)

    outline, network = (
        {key: value.shape for key, value in made.state_dict().items()} for made in (outlined(build), build())
    )
    assert outline == network


def test_an_outline_takes_no_memory_and_draws_no_random_number():
    before = torch.random.get_rng_state()
    network = outlined(lambda: build_network({"_target_": UNET}, tiny_plan(), 3))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)


def test_what_is_made_beside_an_outline_is_drawn():
    def build() -> nn.Module:
        network = nn.Conv3d(1, 1, 1)
        network.scale = torch.empty(100, device="cpu").normal_()
        return network

    assert 0.5 < float(outlined(build).scale.std()) < 2


def test_an_outline_does_without_the_compiler_of_pytorch():
    code = (
        "import sys; from medseg.networks import build_network; from medseg.networks.outline import outlined\n"
        "from tests.tiny import UNET, tiny_plan\n"
        "outlined(lambda: build_network({'_target_': UNET}, tiny_plan(), 3)); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
