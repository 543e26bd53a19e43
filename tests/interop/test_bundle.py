"""MONAI bundles become models and models become bundles: names are read as data, and MONAI itself runs what is written."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import AttentionUnet, DynUNet, SegResNet, UNet
from torch import nn

from medseg.errors import MedsegError
from medseg.interop.bundle import read_bundle
from medseg.interop.bundle_out import write_bundle
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Channel
from medseg.structures import LabelTable
from tests.tiny import tiny_model, tiny_plan

NETS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "UNet": (UNet, {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1, "norm": "batch"}),
    "AttentionUnet": (AttentionUnet, {"channels": [4, 8, 8], "strides": [2, 2]}),
    "SegResNet": (SegResNet, {"init_filters": 8, "blocks_down": [1, 1, 1, 1], "dropout_prob": 0.2, "act": "RELU"}),
    "DynUNet": (
        DynUNet,
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
            "deep_supervision": True,
        },
    ),
}
TRANSFORMS: list[dict[str, Any]] = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
    {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim", "mode": "bilinear"},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": -100,
        "a_max": 300,
        "b_min": 0,
        "b_max": 1,
        "clip": True,
    },
    {"_target_": "EnsureTyped", "keys": "image"},
]
AFTER = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
]


def make_bundle(folder: Path, name: str = "UNet", **changes: Any) -> tuple[Path, nn.Module]:
    kind, arguments = NETS[name]
    torch.manual_seed(0)
    module = kind(spatial_dims=3, in_channels=1, out_channels=3, **arguments).eval()
    for part in ("configs", "models"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    described = {"channel_def": {"0": "background", "1": "spleen", "2": "lesion"}}
    metadata = {"name": "tiny", "network_data_format": {"outputs": {"pred": described}}}
    config = {
        "pixdim": [1.5, 1.5, 2.0],
        "imports": ["$import os", "$os.mkdir('it-ran')"],
        "network_def": {"_target_": name, "spatial_dims": 3, "in_channels": 1, "out_channels": 3, **arguments},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": TRANSFORMS},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25},
        "postprocessing": {"_target_": "Compose", "transforms": AFTER},
    } | changes
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(module.state_dict(), folder / "models" / "model.pt")
    return folder, module


@pytest.mark.parametrize("name", NETS)
def test_an_imported_network_computes_what_monai_computes(tmp_path: Path, name: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, module = make_bundle(tmp_path / "bundle", name)
    model = read_bundle(folder)
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(model.network_module()(x), module(x), atol=1e-6)
    assert not (tmp_path / "it-ran").exists()


def test_the_plan_says_what_the_transforms_do(tmp_path: Path) -> None:
    plan = read_bundle(make_bundle(tmp_path)[0]).plan
    assert (plan.orientation, plan.spacing, plan.image_order) == ("RAS", (1.5, 1.5, 2.0), (1, 1, 1))
    assert (plan.patch_size, plan.mirror_axes) == ((16, 16, 16), ())
    (channel,) = plan.channels
    assert (channel.normalisation, channel.low, channel.high, channel.mean, channel.std) == ("ct", -100, 300, -100, 400)
    assert dict(plan.labels.names) == {1: "spleen", 2: "lesion"}
    assert plan.conventions == Conventions("logits", "after")


@pytest.mark.parametrize(
    ("transform", "expected", "crop"),
    [
        ({"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}, "zscore", "nonzero"),
        ({"_target_": "NormalizeIntensityd"}, "zscore_all", "none"),
        ({"_target_": "NormalizeIntensityd", "subtrahend": 10, "divisor": 4}, "rescale", "none"),
        ({"_target_": "ScaleIntensityd"}, "minmax", "none"),
        ({"_target_": "monai.transforms.ScaleIntensityd", "_disabled_": True}, "none", "none"),
    ],
)
def test_other_normalisations_are_understood(
    tmp_path: Path, transform: dict[str, Any], expected: str, crop: str
) -> None:
    folder, _ = make_bundle(tmp_path, preprocessing={"_target_": "Compose", "transforms": [transform]})
    plan = read_bundle(folder).plan
    assert (plan.channels[0].normalisation, plan.crop) == (expected, crop)
    assert plan.orientation == "stored"
    assert plan.conventions is not None and plan.conventions.kept_axes == (0, 1, 2)


def test_scans_are_turned_as_the_bundle_turns_them(tmp_path: Path) -> None:
    turn = {"_target_": "Orientationd", "keys": "image", "axcodes": "LPS"}
    folder, _ = make_bundle(tmp_path, preprocessing={"_target_": "Compose", "transforms": [turn]})
    assert read_bundle(folder).plan.orientation == "LPS"


def test_what_has_no_like_is_named_all_at_once(tmp_path: Path) -> None:
    transforms = [{"_target_": "Orientationd", "axcodes": "LPX"}, {"_target_": "scripts.mine.Magic"}]
    folder, _ = make_bundle(
        tmp_path,
        preprocessing={"_target_": "Compose", "transforms": transforms},
        inferer={"_target_": "SimpleInferer"},
        network_def={
            "_target_": "UNet",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": "$@number",
            "channels": [4, 8],
            "strides": [2],
        },
    )
    with pytest.raises(MedsegError) as error:
        read_bundle(folder)
    for part in ("LPX", "scripts.mine.Magic", "SimpleInferer", "out_channels is not given"):
        assert part in str(error.value)


def test_a_foreign_network_is_named_and_never_imported(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="network os.mkdir; supported are UNet"):
        read_bundle(make_bundle(tmp_path, network_def={"_target_": "os.mkdir", "path": str(tmp_path / "it-ran")})[0])
    assert not (tmp_path / "it-ran").exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    folder, _ = make_bundle(tmp_path)
    (folder / "models" / "model.pt").unlink()
    torch.jit.save(torch.jit.script(nn.ReLU()), folder / "models" / "model.ts")
    with pytest.raises(MedsegError, match="model.ts is TorchScript"):
        read_bundle(folder)
    (folder / "models" / "model.ts").rename(folder / "models" / "model.pt")
    with pytest.raises(MedsegError, match="is TorchScript"):
        read_bundle(folder)


def test_weights_that_run_code_are_refused_and_did_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "it-ran"),)

    folder, _ = make_bundle(tmp_path / "bundle")
    torch.save({"model": Harm()}, folder / "models" / "model.pt")
    with pytest.raises(MedsegError, match="refused.*mkdir"):
        read_bundle(folder)
    assert not (tmp_path / "it-ran").exists()


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    folder, module = make_bundle(tmp_path)
    state = module.state_dict()
    state.pop(next(iter(state)))
    torch.save({"model": state}, folder / "models" / "model.pt")
    with pytest.raises(MedsegError, match="is missing"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["UNet", "SegResNet"])
def test_a_model_comes_back_from_the_bundle_that_it_was_written_as(tmp_path: Path, name: str) -> None:
    model = read_bundle(make_bundle(tmp_path / "first", name)[0])
    model = replace(model, plan=model.plan.changed(labels=LabelTable({1: "spleen", 4: "lesion"})))
    write_bundle(model, tmp_path / "second")
    again = read_bundle(tmp_path / "second")
    assert replace(again.plan, why=model.plan.why) == model.plan
    assert again.network == model.network
    assert all(torch.equal(again.weights[key], model.weights[key]) for key in model.weights)


@pytest.mark.parametrize(
    "target",
    ["medseg.networks.unet.plain_unet", "medseg.networks.monai_nets.dynunet", "medseg.networks.monai_nets.unet"],
)
def test_monai_builds_the_written_network_and_it_computes_the_same(tmp_path: Path, target: str) -> None:
    stages = {
        "features": (4, 8, 8),
        "strides": ((1,) * 3, (2,) * 3, (2,) * 3),
        "kernel_sizes": ((3,) * 3,) * 3,
        "blocks": (1, 2, 2),
    }
    model = tiny_model(plan=tiny_plan(**stages), target=target)
    write_bundle(model, tmp_path)
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "configs" / "inference.json"))
    parser.read_meta(str(tmp_path / "configs" / "metadata.json"))
    module = parser.get_parsed_content("network_def").eval()
    module.load_state_dict(torch.load(tmp_path / "models" / "model.pt", weights_only=True))
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert torch.allclose(module(x), model.network_module()(x), atol=1e-6)
    assert len(parser.get_parsed_content("preprocessing").transforms) == 6
    assert parser.get_parsed_content("inferer").roi_size == [8, 8, 8]


def test_a_model_that_a_bundle_cannot_say_is_refused_with_all_reasons(tmp_path: Path) -> None:
    channels = (Channel("CT", "ct", 0.0, 1.0, -1.0, 1.0), Channel("PET", "zscore"))
    model = replace(tiny_model(), plan=tiny_plan(channels=channels, image_order=(3, 3, 0)))
    with pytest.raises(MedsegError, match="each its own way") as error:
        write_bundle(model, tmp_path / "bundle")
    assert "image_order" in str(error.value)
    assert not (tmp_path / "bundle").exists()
