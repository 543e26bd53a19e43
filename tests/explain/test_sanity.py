"""The sanity check compares maps where they say something, and finds of networks what is known of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from medseg.explain.baselines import edge_map
from medseg.explain.explainer import Explainer
from medseg.explain.sanity import (
    DEPENDS,
    SAME_WITHOUT_WEIGHTS,
    UNRELIABLE,
    dependence,
    flags_of,
    rank_correlation,
    structural_similarity,
)
from medseg.explain.stability import shifted, stability
from medseg.model import Model
from medseg.planning.plan import Channel
from medseg.volume import Array
from tests.explain.nets import ONE
from tests.tiny import tiny_model, tiny_plan

NOISE = np.random.default_rng(0)


def test_a_common_background_does_not_make_maps_alike() -> None:
    """Random within a tenth of the image, 0 elsewhere: over the whole of it their rank correlation would be 0.996."""
    first, second = np.zeros((2, 60, 60))
    inside = slice(10, 29), slice(30, 49)
    first[inside], second[inside] = 1 + NOISE.random((2, 19, 19))
    assert np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1] > 0.99
    assert abs(rank_correlation(first, second)) < 0.15
    assert structural_similarity(first, second) < 0.3 < 0.9 < structural_similarity(first, first)


def test_rectified_maps_that_are_unlike_are_not_taken_for_opposites() -> None:
    first, second = np.clip(np.random.default_rng(4).standard_normal((2, 60, 60)), 0, None)
    assert abs(rank_correlation(first, second)) < 0.1


def test_a_single_shuffled_network_has_no_floor_and_none_no_figures() -> None:
    heat, one, other = np.random.default_rng(5).random((3, 40, 40))
    assert dependence(heat, []) == {}
    assert set(dependence(heat, [one])) == {"shuffled_rank", "shuffled_ssim"}
    found = dependence(heat, [heat, -heat, one, other])
    assert found["shuffled_rank"] == pytest.approx(0.5, abs=0.05)
    assert found["shuffled_floor"] == pytest.approx(1 / 6, abs=0.05)  # one pair of six is the same map


def test_ranks_see_order_alone() -> None:
    heat = NOISE.random((7, 9))
    assert rank_correlation(heat, np.exp(5 * heat)) == pytest.approx(1)
    assert rank_correlation(heat, -heat) == pytest.approx(-1)
    # ranks 1 2 3 4 against 2 1 4 3: 1 − 6·4 / (4·15)
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 9, 5])) == pytest.approx(0.6)


def test_a_constant_map_is_like_another_constant_map_only() -> None:
    heat, flat = NOISE.random((4, 4, 4)), np.zeros((4, 4, 4))
    assert rank_correlation(flat, flat + 3) == 1
    assert rank_correlation(flat, heat) == 0 == rank_correlation(heat, flat)


@pytest.mark.parametrize("shape", [(40, 50), (16, 17, 18)])
def test_structure_that_is_the_same_unlike_or_turned_over(shape: tuple[int, ...]) -> None:
    heat = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 3)
    other = ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(shape), 3)
    assert structural_similarity(heat, heat) == pytest.approx(1)
    assert structural_similarity(heat, 7 * heat - 2) == pytest.approx(1)  # brought to one range
    grainy = structural_similarity(heat, heat + 0.1 * heat.std() * NOISE.standard_normal(shape))
    assert abs(structural_similarity(heat, other)) < grainy < 1
    assert structural_similarity(heat, -heat) < 0


def test_one_hot_voxel_does_not_make_maps_alike() -> None:
    heat, other = np.random.default_rng(3).random((2, 40, 40))
    heat[5, 5] = other[5, 5] = 1e6
    assert structural_similarity(heat, other) < 0.3


def test_constant_maps_have_the_same_structure() -> None:
    assert structural_similarity(np.zeros((8, 8)), np.full((8, 8), 2.0)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("shuffled_rank", "stability", "flags"),
    [
        (0.65, 0.95, ()),
        (0.70, 0.95, (SAME_WITHOUT_WEIGHTS,)),
        (0.45, 0.60, (SAME_WITHOUT_WEIGHTS,)),  # little, but most of what the map reproduces at all
        (0.01, 0.02, (UNRELIABLE,)),  # noise is not dependence on the weights
        (np.nan, 0.9, ()),
        (0.9, np.nan, ()),
    ],
)
def test_flags_follow_the_rule(shuffled_rank: float, stability: float, flags: tuple[str, ...]) -> None:
    assert DEPENDS == 0.7
    assert flags_of(shuffled_rank, stability) == flags


SIDE = 32


def picture(seed: int) -> tuple[Array, Array]:
    """A bright square, which is marked, and two half as bright that are not, at random places in noise."""
    dice = np.random.default_rng(seed)
    image, mask = 0.3 * dice.standard_normal((SIDE, SIDE)), np.zeros((SIDE, SIDE), bool)
    for bright in (2.0, 2.0, 4.0):
        i, j = dice.integers(2, SIDE - 9, 2)
        image[i : i + 7, j : j + 7], mask[i : i + 7, j : j + 7] = bright, bright == 4.0
    return image[None].astype(np.float32), mask


def untrained() -> Model:
    """A U-Net with random weights."""
    return tiny_model(0, tiny_plan(2, patch_size=(SIDE, SIDE), labels=ONE, channels=(Channel("MRI", "none"),)))


@cache
def trained() -> Model:
    """The same when it has learned to mark what is marked."""
    model = untrained()
    network = model.network_module().train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for step in range(60):
        images, masks = zip(*(picture(1000 + 8 * step + n) for n in range(8)), strict=True)
        levels = network(torch.from_numpy(np.stack(images)))
        logits = levels[0] if isinstance(levels, (list, tuple)) else levels
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(np.stack(masks)).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return replace(model, weights=network.state_dict())


def checked(model: Model, method: str) -> dict[str, float]:
    """Means over three pictures, each asked about the square that is marked."""
    one = Explainer([model], method=method, device="cpu", precision="float32")
    others = [one.with_shuffled_weights(lot) for lot in range(3)]
    found = []
    for seed in range(3):
        image, mask = picture(seed)
        ask = partial(one.on_grid, name="lesion", region=mask)
        heat = ask(image)
        figures = dependence(heat, [other.on_grid(image, "lesion", mask) for other in others])
        figures["stability"] = stability(
            image,
            heat,
            ask,
            lambda shift, mask=mask: partial(one.on_grid, name="lesion", region=shifted(mask, shift)),  # type: ignore[misc]
        )
        found.append(figures)
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


@pytest.mark.parametrize("method", ["layer_cam", "gradient", "integrated_gradients"])
@pytest.mark.parametrize("model", [trained, untrained])
def test_a_method_that_looks_into_a_network_passes_whether_it_is_trained_or_not(model, method) -> None:
    """Of an untrained network the map depends on the weights too: it is one more shuffled one, as like as these are."""
    found = checked(model(), method)
    assert flags_of(found["shuffled_rank"], found["stability"]) == ()
    assert found["shuffled_rank"] < 0.65 * found["stability"]
    assert found["shuffled_rank"] == pytest.approx(found["shuffled_floor"], abs=0.2)


def test_maps_of_a_layer_share_the_place_of_the_target_and_gradients_do_not() -> None:
    assert checked(untrained(), "layer_cam")["shuffled_floor"] > 0.25
    assert checked(untrained(), "gradient")["shuffled_floor"] < 0.15


def test_edges_of_the_image_are_flagged_though_they_are_all_floor() -> None:
    image, _ = picture(0)
    heat = edge_map(image)
    found = dependence(heat, [edge_map(image), 2 * heat, heat**2])
    assert found["shuffled_rank"] == pytest.approx(1) and found["shuffled_floor"] == pytest.approx(1)
    assert flags_of(found["shuffled_rank"], stability(image, heat, edge_map)) == (SAME_WITHOUT_WEIGHTS,)
