"""Detectors keep the contract, stand on the trunk of the segmentation networks, and learn where a square is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.losses_boxes import Truth, focal_giou, giou, quality_giou
from medseg.networks.anchor_grid import AnchorGrid, candidates
from medseg.networks.detection_heads import PRIOR, BoxHead
from medseg.networks.retina import anchor_free, retina_unet, retinanet
from medseg.networks.unet import plain_unet
from medseg.testing import check_network

SMALL = {"head_width": 8, "head_depth": 1}
PLAIN = ("dimensions", "in_channels", "features", "strides", "kernel_sizes", "blocks")
BUILDERS = [retinanet, retina_unet, anchor_free]


def numbers(dimensions: int = 2, **changes: Any) -> dict[str, Any]:
    ones, twos = (1,) * dimensions, (2,) * dimensions
    return {
        "dimensions": dimensions,
        "in_channels": 1,
        "features": [4, 8, 8],
        "strides": [ones, twos, twos],
        "kernel_sizes": [(3,) * dimensions] * 3,
        "blocks": [1, 1, 1],
        "classes": 2,
        "levels": [1, 2],
        **SMALL,
    } | changes


def anchored(dimensions: int = 2, **changes: Any) -> dict[str, Any]:
    return numbers(dimensions, anchors=[[(4,) * dimensions, (6,) * dimensions], [(8,) * dimensions]]) | changes


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_detector_keeps_the_contract(builder: Any, dimensions: int) -> None:
    check_network(builder, dimensions=(dimensions,), options=SMALL)


def test_the_contract_holds_on_coarse_levels_residual_encoders_and_without_mask() -> None:
    check_network(retinanet, dimensions=(3,), options=SMALL | {"levels": [1, 2], "encoder": "residual"})
    check_network(anchor_free, dimensions=(2,), options=SMALL | {"mask_channels": 0, "head_depth": 0})


def test_each_level_has_as_many_channels_as_its_anchors() -> None:
    output = retinanet(**anchored())(torch.randn(1, 1, 16, 16))
    assert [tuple(level.shape) for level in output["scores"]] == [(1, 2 * 2, 8, 8), (1, 2, 4, 4)]
    assert [tuple(level.shape) for level in output["deltas"]] == [(1, 2 * 4, 8, 8), (1, 4, 4, 4)]
    assert "mask" not in output


def test_the_trunk_has_the_names_of_the_segmentation_network_and_nothing_finer_than_its_levels() -> None:
    given = anchored()
    trunk = set(retinanet(**given).trunk.state_dict())
    plain = {name: given[name] for name in PLAIN}
    whole = set(plain_unet(**plain, out_channels=2).state_dict())
    assert trunk < whole
    parts = {".".join(name.split(".")[:2]) for name in whole - trunk}
    assert parts == {"ups.0", "decoder.0", "heads.0", "heads.1"}


@pytest.mark.parametrize("training", [True, False])
def test_the_mask_is_what_the_segmentation_network_says(training: bool) -> None:
    given = anchored(mask_channels=3)
    network = retina_unet(**given).train(training)
    plain = {name: given[name] for name in PLAIN}
    alone = plain_unet(**plain, out_channels=3).train(training)
    alone.load_state_dict(network.trunk.state_dict())
    x = torch.randn(1, 1, 16, 16)
    mask, expected = network(x)["mask"], alone(x)
    assert isinstance(mask, list) == training
    for found, level in zip(mask if training else [mask], expected if training else [expected], strict=True):
        assert torch.equal(found, level)


@torch.no_grad()
def test_a_fresh_head_is_nearly_sure_of_nothing() -> None:
    torch.manual_seed(0)
    for level in retinanet(**anchored())(torch.randn(1, 1, 16, 16))["scores"]:
        assert 0.5 * PRIOR < float(level.sigmoid().mean()) < 2 * PRIOR


@torch.no_grad()
def test_a_fresh_head_says_its_anchors_or_boxes_of_four_cells() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 16, 16)
    given = anchored()
    grid = AnchorGrid.of(given["strides"], given["levels"], given["anchors"])
    places = torch.cat(grid.places([(8, 8), (4, 4)]))
    found = grid.decode(grid.rows(retinanet(**given)(x)["deltas"])[0], places)
    assert float(giou(found, places).mean()) > 0.8
    free = AnchorGrid.of(given["strides"], given["levels"])
    cells = torch.cat(free.places([(8, 8), (4, 4)]))
    found = free.decode(free.rows(anchor_free(**numbers())(x)["faces"])[0], cells)
    sides = (found[:, 2:] - found[:, :2]) / (cells[:, 2:] - cells[:, :2])
    assert float(sides.mean()) == pytest.approx(4, abs=0.3)


def test_a_level_of_a_single_cell_still_tells_inputs_apart() -> None:
    torch.manual_seed(0)
    head = BoxHead(2, [8], classes=1, per_cell=[1], width=16, depth=2)
    one, other = torch.randn(2, 1, 8, 1, 1)
    assert not torch.allclose(head([one])[0][0], head([other])[0][0], atol=1e-4)


def square(center: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """A bright square on noise, and its box."""
    image = 0.1 * torch.randn(1, 1, 32, 32)
    lower, upper = [c - size // 2 for c in center], [c + size - size // 2 for c in center]
    image[..., lower[0] : upper[0], lower[1] : upper[1]] += 1
    return image, torch.tensor([[*lower, *upper]], dtype=torch.float32)


@pytest.mark.parametrize("builder", [retinanet, anchor_free])
def test_a_detector_learns_where_a_square_is(builder: Any) -> None:
    torch.manual_seed(0)
    given = anchored(anchors=[[(8, 8)], [(12, 12)]], classes=1) if builder is retinanet else numbers(classes=1)
    grid = AnchorGrid.of(given["strides"], given["levels"], given.get("anchors"))
    network = builder(**given)
    loss = focal_giou() if builder is retinanet else quality_giou()
    images, boxes = zip(*(square(at, size) for at, size in [((8, 8), 8), ((20, 12), 10), ((14, 22), 7)]), strict=True)
    x, truth = torch.cat(images), [Truth(box, torch.zeros(1, dtype=torch.int64)) for box in boxes]
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(loss(network(x), truth, grid).values())).sum().backward()
        optimizer.step()
    with torch.no_grad():
        best = [found.boxes[:1] for found in candidates(network.eval()(x), grid)]
    assert all(len(found) for found in best)
    assert all(float(giou(found, box)) > 0.5 for found, box in zip(best, boxes, strict=True))


@pytest.mark.parametrize(
    ("builder", "changes", "message"),
    [
        (retinanet, {"encoder": "swin"}, "expected one of plain, residual"),
        (retinanet, {"levels": [0, 3]}, "ascending levels of 0…2"),
        (retinanet, {"levels": [0]}, "anchors for each of 1 levels"),
        (retinanet, {"head_width": 12}, "multiple of 8"),
        (retinanet, {"classes": 0}, "one or more classes"),
        (retinanet, {"blocks": [1]}, "one entry for each"),
    ],
)
def test_what_cannot_be_built_is_named(builder: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        builder(**(anchored() | changes))


@torch.no_grad()
def test_the_prior_is_what_the_bias_says() -> None:
    head = BoxHead(3, [4], classes=2, per_cell=[1], width=8, depth=0)
    assert float(torch.sigmoid(head.scores[0].bias).mean()) == pytest.approx(PRIOR)
    assert math.isclose(float(head.deltas[0].bias.abs().max()), 0)
