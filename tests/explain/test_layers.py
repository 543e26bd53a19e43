"""Layers by name: which one is taken, what is said of one that does not exist, and where maps are noted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.explain.layers import Ran, default_layer, depths_of, layer_members, run_order, watching
from medseg.networks import build_network
from medseg.planning.plan import Plan
from tests.tiny import RETINA, UNET, tiny_boxes, tiny_plan


def three_stages(dimensions: int = 2, **changes: object) -> Plan:
    return tiny_plan(
        dimensions,
        patch_size=(16,) * dimensions,
        features=(2, 4, 8),
        strides=((1,) * dimensions, (2,) * dimensions, (2,) * dimensions),
        kernel_sizes=((3,) * dimensions,) * 3,
        blocks=(1, 1, 1),
        **changes,
    )


def built(target: str, plan: Plan, outputs: int = 3, **options: object) -> tuple[nn.Module, list[Ran]]:
    network = build_network({"_target_": target, **options}, plan, outputs).eval()
    return network, run_order(network, lambda: network(torch.zeros(1, 1, *plan.patch_size)))


@pytest.mark.parametrize(
    ("target", "options", "expected"),
    [
        ("unet.plain_unet", {}, "decoder.1"),
        ("unet.residual_unet", {}, "decoder.1"),
        ("monai_nets.dynunet", {}, "upsamples.0"),
        ("monai_nets.unet", {}, "model.1"),
        ("monai_nets.segresnet", {"init_filters": 8}, "up_layers.1"),
    ],
)
def test_a_segmentation_network_is_explained_at_half_the_resolution_of_its_decoder(
    target: str, options: dict[str, object], expected: str
) -> None:
    plan = three_stages()
    _, ran = built(f"medseg.networks.{target}", plan, **options)
    assert default_layer(ran, plan.patch_size, "segmentation") == expected


def test_the_depths_of_a_network_are_the_last_layers_of_each_resolution_below_that_of_the_image() -> None:
    plan = three_stages(task="detection", boxes=tiny_boxes(2, levels=(0, 1), anchors=(((4.0, 4.0),),) * 2))
    plan = plan.changed(patch_size=(32, 32))
    _, ran = built("medseg.networks.unet.plain_unet", plan)
    assert depths_of(ran, plan.patch_size, "segmentation") == ("encoder.2", "decoder.1")
    _, ran = built(RETINA, plan)
    assert depths_of(ran, plan.patch_size, "detection") == ("trunk.encoder.2", "trunk.decoder.1")
    alike = [Ran("a", (1, 2, 32, 32), 1), Ran("b", (1, 2, 32, 32), 1), Ran("b.c", (1, 2, 32, 32), 1)]
    assert depths_of(alike, (32, 32), "classification") == ("b",)
    assert depths_of([*alike, Ran("d", (1, 2, 4, 4), 1)], (32, 32), "classification") == ("b", "d")


def test_a_detector_is_explained_at_the_maps_of_all_levels() -> None:
    plan = three_stages(task="detection", boxes=tiny_boxes(2, levels=(0, 1), anchors=(((4.0, 4.0),),) * 2))
    _, ran = built(RETINA, plan)
    assert default_layer(ran, plan.patch_size, "detection") == "head.lateral"
    assert layer_members(ran, "head.lateral", 2) == ("head.lateral.0", "head.lateral.1")
    with pytest.raises(MedsegError, match=r"layer 'head\.score_row': it runs 2 times for one window"):
        layer_members(ran, "head.score_row", 2)


def test_a_classifier_is_explained_at_its_last_map_that_is_fine_enough_to_point() -> None:
    network = nn.Sequential()
    for name, stride in (("a", 1), ("b", 2), ("c", 2), ("d", 2)):
        network.add_module(name, nn.Sequential(nn.Conv2d(1, 1, 3, stride, 1), nn.ReLU()))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    ran = run_order(network, lambda: network(torch.zeros(1, 1, 64, 32)))
    assert default_layer(ran, (64, 32), "classification") == "c"
    small = run_order(network, lambda: network(torch.zeros(1, 1, 8, 8)))
    assert default_layer(small, (8, 8), "classification") == "pool"  # none has so many cells


def test_where_no_map_is_coarser_than_the_image_it_is_the_last_before_the_output() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    ran = run_order(network, lambda: network(torch.zeros(1, 1, 4, 4)))
    assert default_layer(ran, (4, 4), "segmentation") == "1"


def test_a_layer_that_does_not_exist_is_answered_with_those_that_do() -> None:
    _, ran = built(UNET, three_stages())
    with pytest.raises(MedsegError) as error:
        layer_members(ran, "decoder.7", 2)
    said = str(error.value)
    assert "Did you mean decoder.1?" in said
    assert all(name in said for name in ("encoder.0", "encoder.2", "ups.0", "decoder.0", "heads.0"))
    with pytest.raises(MedsegError, match="does not use it when it predicts"):
        layer_members(ran, "heads.1", 2)


def test_of_very_many_layers_the_outer_ones_are_listed() -> None:
    ran = [Ran(f"block.{n}{inner}", (1, 1, 4, 4), 1) for n in range(9) for inner in ("", *(f".{i}" for i in range(20)))]
    with pytest.raises(MedsegError, match=r"block\.0, block\.1, .*block\.8; and 180 inside of them"):
        layer_members(ran, "none", 2)


def test_an_output_that_is_no_map_is_no_layer() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    ran = run_order(network, lambda: network(torch.zeros(1, 1, 4, 4)))
    with pytest.raises(MedsegError, match="its output is no feature map"):
        layer_members(ran, "1", 2)
    with pytest.raises(MedsegError, match="no layer of the network has a feature map"):
        default_layer([one for one in ran if one.name == "1"], (4, 4), "segmentation")


def test_the_graph_begins_at_the_layer_and_the_network_may_go_on_in_place() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(2, 1, 1)).requires_grad_(False)
    x = torch.randn(1, 1, 3, 3)
    expected = network(x)
    with watching(network, ["0"]) as maps:
        found = network(x)
    assert torch.equal(found, expected) and (maps["0"] < 0).any() and maps["0"].is_leaf
    (slope,) = torch.autograd.grad(found.sum(), maps["0"])
    assert slope.shape == maps["0"].shape
    assert not network[0]._forward_hooks


def test_where_only_maps_are_wanted_the_network_stops_behind_them() -> None:
    seen = []
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    network[2].register_forward_hook(lambda *_: seen.append(1))
    with watching(network, ["1"], only=True) as maps, torch.no_grad():
        network(torch.ones(1, 1, 3, 3))
    assert set(maps) == {"1"} and not seen
