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


@pytest.mark.parametrize("target", [name for name in BUILDERS if name.endswith(("_unet", "dynunet", "segresnet"))])
def test_an_outline_has_the_names_and_shapes_of_the_network(target):
    plan = tiny_plan() if "retina" not in target else None
    if plan is None:
        pytest.skip("needs a plan with boxes")
    size = {"patch_size": (32, 32, 32)}
    made = {
        how: {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for how, network in {
            "outline": outlined(lambda: build_network({"_target_": target}, tiny_plan(**size), 3)),
            "network": build_network({"_target_": target}, tiny_plan(**size), 3),
        }.items()
    }
    assert made["outline"] == made["network"] != {}


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
