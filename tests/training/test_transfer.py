"""What arrives of another model's weights: with other labels and channels, and from one task to another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.networks import build_network
from medseg.training.transfer import Transferred, transfer
from tests.tiny import tiny_boxes, tiny_plan

BUILDER = "medseg.networks.{}".format
SEGMENTATION = {kind: {"_target_": BUILDER(f"unet.{kind}_unet")} for kind in ("plain", "residual")}
DETECTION = {kind: {"_target_": BUILDER("retina.retina_unet"), "encoder": kind} for kind in SEGMENTATION}
CLASSES = {kind: {"_target_": BUILDER("classifier.encoder_classifier"), "encoder": kind} for kind in SEGMENTATION}
kinds = pytest.mark.parametrize("kind", list(SEGMENTATION))


class Net(nn.Module):
    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(channels, 8, 3)
        self.body = nn.Conv3d(8, 8, 3)
        self.head = nn.Conv3d(8, outputs, 1)


def _transfer(
    old: Net, new: Net, outputs: list[str], old_outputs: list[str], channels: list[str], old_channels: list[str]
):
    return transfer(
        new,
        old.state_dict(),
        outputs=outputs,
        old_outputs=old_outputs,
        channels=channels,
        old_channels=old_channels,
    )


def test_the_same_labels_and_channels_take_everything():
    old, new = Net(1, 3), Net(1, 3)
    names = ["background", "a", "b"]
    taken = _transfer(old, new, names, names, ["MR"], ["MR"])
    assert not taken.left and not taken.adapted
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))


def test_outputs_are_taken_by_name_and_new_ones_stay_fresh():
    old, new = Net(1, 3), Net(1, 3)
    fresh = new.head.weight.detach().clone()
    taken = _transfer(old, new, ["background", "c", "a"], ["background", "a", "b"], ["MR"], ["MR"])
    assert torch.equal(new.head.weight[0], old.head.weight[0])
    assert torch.equal(new.head.weight[2], old.head.weight[1])
    assert torch.equal(new.head.weight[1], fresh[1])
    assert set(taken.adapted) == {"head.weight", "head.bias"}


def test_new_channels_start_from_the_mean_of_the_old_ones():
    old, new = Net(2, 2), Net(3, 2)
    names = ["background", "a"]
    _transfer(old, new, names, names, ["T2", "FLAIR", "T1"], ["T1", "T2"])
    assert torch.allclose(new.stem.weight[:, 0], old.stem.weight[:, 1] * 2 / 3)
    assert torch.allclose(new.stem.weight[:, 1], old.stem.weight.mean(1) * 2 / 3)
    assert torch.equal(new.body.weight, old.body.weight)


def _network(spec: dict[str, Any], seed: int, dimensions: int = 2, masks: bool = True) -> nn.Module:
    """Two stages of downsampling, boxes on the middle level, three labels or classes."""
    boxes = tiny_boxes(dimensions, levels=(1,), masks=masks) if "retina" in spec["_target_"] else None
    rows = ((3,) * dimensions,) * 3
    strides = ((1,) * dimensions, (2,) * dimensions, (2,) * dimensions)
    plan = tiny_plan(
        dimensions, boxes=boxes, features=(4, 6, 8), blocks=(1, 1, 1), kernel_sizes=rows, strides=strides,
    )  # fmt: skip
    options = {"decoder_blocks": 1} if "classifier" not in spec["_target_"] else {}
    torch.manual_seed(seed)
    return build_network(spec | options, plan, 3)


def _moved(old: nn.Module, new: nn.Module, outputs: tuple[str, ...] = ("background", "liver", "lesion")) -> Transferred:
    names = ("background", "liver", "lesion")
    return transfer(new, old.state_dict(), outputs=outputs, old_outputs=names, channels=["MRI"], old_channels=["MRI"])


def _arrived(old: nn.Module, new: nn.Module, at: str = "") -> dict[str, bool]:
    """Whether each tensor of ``new`` is that of ``old`` under ``at``-less names."""
    theirs: dict[str, Tensor] = {name.removeprefix("trunk."): value for name, value in old.state_dict().items()}
    own = {name.removeprefix("trunk."): value for name, value in new.state_dict().items() if name.startswith(at)}
    return {name: name in theirs and torch.equal(value, theirs[name]) for name, value in own.items()}


@kinds
@pytest.mark.parametrize("old", ["segmentation", "detection"])
def test_a_classifier_takes_the_encoder_of_a_segmentation_and_of_a_detection(kind: str, old: str) -> None:
    source = _network({"segmentation": SEGMENTATION, "detection": DETECTION}[old][kind], 0)
    network = _network(CLASSES[kind], 1)
    fresh = network.head.linear.weight.clone()
    taken = _moved(source, network, ("benign", "malignant", "normal"))
    arrived = _arrived(source, network)
    assert {name.partition(".")[0] for name, here in arrived.items() if here} == {"encoder"} | (
        {"stem"} if kind == "residual" else set()
    )
    assert (
        set(taken.left) == {"head.linear.weight", "head.linear.bias"} == {n for n, here in arrived.items() if not here}
    )
    assert torch.equal(network.head.linear.weight, fresh)
    count = len(taken.whole) - len([name for name in taken.whole if name.startswith("stem")])
    assert f"encoder {count} of {count}" in str(taken) and "head 0 of 2" in str(taken)


@kinds
def test_a_segmentation_takes_the_encoder_of_a_classifier(kind: str) -> None:
    source, network = _network(CLASSES[kind], 0), _network(SEGMENTATION[kind], 1)
    taken = _moved(source, network)
    arrived = _arrived(source, network)
    assert all(here for name, here in arrived.items() if name.startswith(("encoder", "stem")))
    assert {name.partition(".")[0] for name in taken.left} == {"ups", "decoder", "heads"}


@kinds
def test_a_detector_takes_all_but_its_head_from_a_segmentation(kind: str) -> None:
    source, network = _network(SEGMENTATION[kind], 0), _network(DETECTION[kind], 1)
    taken = _moved(source, network)
    arrived = _arrived(source, network, "trunk.")
    assert arrived and all(arrived.values())
    assert taken.left and all(name.startswith("head.") for name in taken.left)
    assert set(arrived) == {name.removeprefix("trunk.") for name in source.state_dict()}


def test_a_detector_without_masks_takes_the_levels_that_it_has() -> None:
    source = _network(SEGMENTATION["plain"], 0)
    network = _network({"_target_": BUILDER("retina.retinanet")}, 1, masks=False)
    _moved(source, network)
    arrived = _arrived(source, network, "trunk.")
    assert all(arrived.values()) and any(name.startswith("decoder.1.") for name in arrived)
    assert not any(name.startswith("decoder.0.") for name in arrived)


@kinds
def test_a_segmentation_takes_everything_from_a_detector_with_masks(kind: str) -> None:
    source, network = _network(DETECTION[kind], 0), _network(SEGMENTATION[kind], 1)
    taken = _moved(source, network)
    assert not taken.left and all(_arrived(source, network).values())


def test_a_mask_of_other_labels_is_adapted_across_tasks() -> None:
    source, network = _network(DETECTION["plain"], 0), _network(SEGMENTATION["plain"], 1)
    taken = _moved(source, network, ("background", "lesion", "spleen"))
    assert {name.partition(".")[0] for name in taken.adapted} == {"heads"} and not taken.left
    head, old = network.heads[0].weight, source.trunk.heads[0].weight
    assert torch.equal(head[1], old[2]) and torch.equal(head[0], old[0]) and not torch.equal(head[2], old[2])
    assert "4 of them adapted to other labels or channels" in str(taken)


def test_a_stage_with_as_many_channels_as_there_are_labels_is_no_head() -> None:
    source = _network(SEGMENTATION["plain"] | {"features": [3, 6, 8]}, 0)
    network = _network(SEGMENTATION["plain"] | {"features": [3, 6, 8]}, 1)
    taken = _moved(source, network, ("background", "lesion", "spleen"))
    assert {name.partition(".")[0] for name in taken.adapted} == {"heads"}
    assert all(here for name, here in _arrived(source, network).items() if not name.startswith("heads"))


def test_a_head_without_a_label_in_common_stays_fresh() -> None:
    old, new = Net(1, 2), Net(1, 2)
    taken = _transfer(old, new, ["benign", "malignant"], ["cat", "dog"], ["MR"], ["MR"])
    assert set(taken.left) == {"head.weight", "head.bias"} and not taken.adapted


def test_nothing_is_taken_where_only_the_norms_would_fit() -> None:
    """Norms of 2D and 3D have the same shape; without their kernels they are worth nothing."""
    source, network = _network(SEGMENTATION["plain"], 0, dimensions=3), _network(CLASSES["plain"], 1)
    nn.init.constant_(source.encoder[0][0].norm.weight, 5.0)
    taken = _moved(source, network)
    assert not taken.whole and not taken.adapted and str(taken).startswith("0 of ")
    assert torch.equal(network.encoder[0][0].norm.weight, torch.ones(4))
