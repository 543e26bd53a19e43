"""The gate: which targets are resolved, with which arguments; and every built-in network keeps the contract."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.networks import BUILDERS, build_network, divisor_of, resolve_builder
from medseg.testing import check_network
from tests.tiny import tiny_plan

PLAIN = "medseg.networks.unet.plain_unet"
HERE = "tests.networks.test_networks"
SMALL: dict[str, dict[str, Any]] = {
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4},
    "segresnet": {"init_filters": 8},
    "densenet": {"width": 8, "growth": 8},
    "resnet": {"depth": 10, "width": 8},
}


def pointwise(dimensions: int, in_channels: int, out_channels: int, width: int = 4) -> nn.Module:
    conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
    return nn.Sequential(conv(in_channels, width, 1), conv(width, out_channels, 1))


def curious(**given: Any) -> nn.Module:
    network = nn.Identity()
    network.given = given
    return network


def demanding(dimensions: int, temperature: float) -> nn.Module:
    return nn.Identity()


def refusing(dimensions: int, width: int = 3) -> nn.Module:
    raise ValueError("width must be even")


@pytest.mark.parametrize("target", BUILDERS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_network_keeps_the_contract(target: str, dimensions: int) -> None:
    check_network({"_target_": target, **SMALL.get(target.rpartition(".")[2], {})}, dimensions=(dimensions,))


def test_a_foreign_target_is_refused_and_the_message_says_how_to_trust_it() -> None:
    with pytest.raises(MedsegError, match=rf"{HERE}.pointwise.*trust=\[{HERE}.pointwise\]"):
        resolve_builder(f"{HERE}.pointwise")
    with pytest.raises(MedsegError, match="trust="):
        resolve_builder("os.system", trust=[f"{HERE}.pointwise", "os"])


def test_the_very_same_target_may_be_trusted() -> None:
    assert resolve_builder(f"{HERE}.pointwise", trust=[f"{HERE}.pointwise"]).__name__ == "pointwise"
    network = build_network({"_target_": f"{HERE}.pointwise", "width": 6}, tiny_plan(), 3, trust=[f"{HERE}.pointwise"])
    assert network[0].out_channels == 6


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no.such.module", "there is no module 'no'"),
        (f"{HERE}.absent", "has no 'absent'"),
        (f"{HERE}.SMALL", "cannot be called"),
    ],
)
def test_a_trusted_target_that_does_not_exist_is_named(target: str, message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        resolve_builder(target, trust=[target])


def test_the_plan_sizes_the_network_and_options_go_before_it() -> None:
    network = build_network({"_target_": PLAIN}, tiny_plan(), 3)
    assert network.encoder[0][0].conv.weight.shape == (4, 1, 3, 3, 3)
    wide = build_network({"_target_": PLAIN, "features": [6, 8]}, tiny_plan(), 3, in_channels=2)
    assert wide.encoder[0][0].conv.weight.shape == (6, 2, 3, 3, 3)


def test_a_builder_with_keyword_dictionary_gets_all_that_the_plan_gives() -> None:
    network = build_network(
        {"_target_": f"{HERE}.curious", "temperature": 2}, tiny_plan(), 3, trust=[f"{HERE}.curious"]
    )
    assert set(network.given) == {
        *("dimensions", "in_channels", "out_channels", "patch_size", "deep_supervision"),
        *("features", "strides", "kernel_sizes", "blocks", "temperature"),
    }


def test_deep_supervision_is_on_only_if_asked_for_and_not_turned_off() -> None:
    x = torch.randn(1, 1, 8, 8, 8)
    deep = tiny_plan(
        features=(4, 4, 8), strides=((1,) * 3, (2,) * 3, (2,) * 3), kernel_sizes=((3,) * 3,) * 3, blocks=(1, 1, 1)
    )
    assert isinstance(build_network({"_target_": PLAIN}, deep, 3)(x), list)
    assert isinstance(build_network({"_target_": PLAIN, "deep_supervision": False}, deep, 3)(x), Tensor)
    spec = {"_target_": PLAIN, "deep_supervision": True}
    assert isinstance(build_network(spec, deep, 3, deep_supervision=False)(x), Tensor)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": PLAIN, "chanels": 3}, r"plain_unet\(\) has no argument 'chanels'; it accepts features, strides,"),
        ({"_target_": PLAIN, "in_channels": 3}, "in_channels of .* follow from plan and labels"),
        ({"_target_": PLAIN, "dropout": object()}, "option 'dropout' .* must be plain .* found object"),
        ({"_target_": PLAIN, "features": [4, {"a": nn.ReLU()}]}, "found ReLU"),
        ({"_target_": PLAIN, "strides": [[1, 1, 1], [3, 3, 3]]}, r"multiples of \[3, 3, 3\].*patch is \[8, 8, 8\]"),
        ({"_target_": PLAIN, "features": [4, 8, 16]}, "one entry for each"),
        ({"_target_": "medseg.networks.monai_nets.swin_unetr"}, r"multiples of \[32, 32, 32\]"),
        ({"_target_": f"{HERE}.demanding"}, r"demanding\(\) needs 'temperature'; .* set network.temperature="),
        ({"_target_": f"{HERE}.refusing"}, "refuses what it was given: width must be even"),
        ({"features": [4]}, "expected {_target_: package.module.name"),
        ("plain_unet", "expected {_target_"),
    ],
)
def test_what_does_not_fit_is_one_clear_message(spec: Any, message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        build_network(spec, tiny_plan(), 3, trust=[f"{HERE}.demanding", f"{HERE}.refusing"])


def test_divisors_are_known_without_building() -> None:
    names = {target.rpartition(".")[2]: divisor_of({"_target_": target}) for target in BUILDERS}
    assert names["swin_unetr"] == 32 and names["segresnet"] == 8
    assert (names["densenet"], names["resnet"], names["efficientnet"]) == (32, 1, 1)
    planned = ("plain_unet", "residual_unet", "dynunet", "unet", "attention_unet", "encoder_classifier")
    assert all(names[name] is None for name in planned)


@pytest.mark.parametrize("divisor", [0, "eight", [8, 1.5]])
def test_a_divisor_that_is_no_number_is_refused(divisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__].pointwise, "divisor", divisor, raising=False)
    with pytest.raises(MedsegError, match="divisor: expected a whole number"):
        divisor_of({"_target_": f"{HERE}.pointwise"}, trust=[f"{HERE}.pointwise"])


def test_importing_the_gate_imports_nothing_heavy() -> None:
    code = "import sys, medseg.networks; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
