"""Class activation maps by hand, against Captum where it has the method, and over windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from medseg.errors import MedsegError
from medseg.explain import grad_cam as module
from medseg.explain.grad_cam import depth_cam, grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from medseg.explain.gradients import gradient, integrated_gradients
from tests.explain.nets import convolutions, plan_2d, random_array, score_of, weighted
from tests.tiny import tiny_plan

CAMS = [grad_cam, grad_cam_plus_plus, layer_cam, hires_cam]


def signs(first: float = 2.0, second: float = 1.0) -> nn.Sequential:
    """Feature 1 is the positive part of the image, feature 2 the negative; the lesion is a weighted sum of them."""
    return weighted(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), weights=[[1.0, -1.0], [[0.0, 0.0], [first, second]]]
    )


def parts(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(array[0], 0), np.maximum(-array[0], 0)


def test_grad_cam_by_hand() -> None:
    """The score is the mean of 2·A₁ + A₂ over 16 voxels: each cell's gradient is 2/16 and 1/16, and so are their means."""
    array = random_array((1, 4, 4))
    positive, negative = parts(array)
    found = grad_cam(score_of(signs(), array), array, layers=["1"])
    np.testing.assert_allclose(found, (2 * positive + negative) / 16, atol=1e-6)


def test_what_speaks_against_the_target_is_cut_off_last() -> None:
    array = random_array((1, 4, 4))
    positive, negative = parts(array)
    found = grad_cam(score_of(signs(2.0, -1.0), array), array, layers=["1"])
    np.testing.assert_allclose(found, np.maximum(2 * positive - negative, 0) / 16, atol=1e-6)


def test_grad_cam_plus_plus_by_hand() -> None:
    """Every cell has α = 1 / (2 + ΣA · g), so that channel k weighs 16 · g / (2 + ΣA · g) with g = 2/16 or 1/16."""
    array = random_array((1, 4, 4))
    positive, negative = parts(array)
    weights = [16 * g / (2 + part.sum() * g) for part, g in ((positive, 2 / 16), (negative, 1 / 16))]
    found = grad_cam_plus_plus(score_of(signs(), array), array, layers=["1"])
    np.testing.assert_allclose(found, weights[0] * positive + weights[1] * negative, rtol=1e-4, atol=1e-6)


def test_layer_cam_by_hand() -> None:
    """Each cell's own gradient: 2/8 and 1/8 inside a region of 8 voxels, nothing outside; a negative one counts nothing."""
    array, region = random_array((1, 4, 4)), np.repeat([[1], [0]], 2, 0).repeat(4, 1)
    positive, negative = parts(array)
    found = layer_cam(score_of(signs(), array, region=region), array, layers=["1"])
    np.testing.assert_allclose(found, (2 * positive + negative) / 8 * region, atol=1e-6)
    found = layer_cam(score_of(signs(2.0, -1.0), array, region=region), array, layers=["1"])
    np.testing.assert_allclose(found, 2 * positive / 8 * region, atol=1e-6)


def test_hires_cam_by_hand_is_what_each_place_adds_to_the_score() -> None:
    """Gradients 2/8 and −1/8 inside a region of 8 voxels: what speaks against the target lowers the map, and is cut off last."""
    array, region = random_array((1, 4, 4)), np.repeat([[1], [0]], 2, 0).repeat(4, 1)
    positive, negative = parts(array)
    found = hires_cam(score_of(signs(2.0, -1.0), array, region=region), array, layers=["1"])
    np.testing.assert_allclose(found, np.maximum(2 * positive - negative, 0) / 8 * region, atol=1e-6)


def test_depth_cam_by_hand_is_the_geometric_mean_over_depths() -> None:
    """Two ReLU layers: A = 2·I⁺ and then B = 3·A + (3·A's copy cut to one row by weights); the score is the mean of B."""
    network = weighted(
        nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1),
        weights=[[2.0], [3.0, -1.0], [[0.0, 0.0], [1.0, 5.0]]],
    )  # fmt: skip
    array = random_array((1, 4, 4))
    positive = 2 * np.maximum(array[0], 0)
    score = score_of(network, array)
    first, second = (hires_cam(score, array, layers=[layer]) for layer in "13")
    np.testing.assert_allclose(first, 3 * positive / 16, atol=1e-6)
    np.testing.assert_allclose(second, 3 * positive / 16, atol=1e-6)
    np.testing.assert_allclose(depth_cam(score, array, depths=["0", "3"]), 3 * positive / 16, atol=1e-6)
    blurred = nn.Sequential(nn.AvgPool2d(3, 1, 1), *network)
    score = score_of(blurred, array)
    maps = [hires_cam(score, array, layers=[layer]) for layer in ("0", "2", "4")]
    np.testing.assert_allclose(
        depth_cam(score, array, depths=["0", "2", "4"]), np.prod(maps, 0, dtype=np.float64) ** (1 / 3), atol=1e-6
    )


def test_a_depth_that_the_score_does_not_depend_on_has_no_say_and_one_that_denies_has_the_last_word() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.ModuleList([signs(), signs()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.rows[1](x)
            output: torch.Tensor = self.rows[0](x)
            return output

    array = random_array((1, 4, 4))
    score = score_of(Two(), array)
    alone = hires_cam(score, array, layers=["rows.0.1"])
    np.testing.assert_allclose(depth_cam(score, array, depths=["rows.0.1", "rows.1.1"]), alone, atol=1e-6)
    against = score_of(signs(-1.0, -1.0), array)
    assert not depth_cam(against, array, depths=["1"]).any()


def test_grad_cam_of_one_window_is_captums() -> None:
    torch.manual_seed(0)
    network, array = convolutions(2, 1, 2), random_array((1, 4, 4))
    expected = LayerGradCam(lambda x: network(x)[:, 1].mean((1, 2)), network[3]).attribute(
        torch.from_numpy(array)[None], relu_attributions=True
    )
    found = grad_cam(score_of(network, array), array, layers=["3"])
    np.testing.assert_allclose(found, expected.detach()[0, 0].numpy(), atol=1e-6)
    assert found.max() > 0


@pytest.mark.parametrize("cam", CAMS)
def test_a_coarse_layer_is_enlarged_to_voxels(cam: Any) -> None:
    network = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 2, 1), nn.Upsample(scale_factor=2))
    torch.nn.init.ones_(network[1].weight)
    array = np.ones((1, 4, 4), np.float32)
    array[:, :2] = 3
    found = cam(score_of(network, array), array, layers=["0"])
    np.testing.assert_allclose(found[0], 3 * found[3], rtol=1e-5)
    np.testing.assert_allclose(found[1], 2.5 * found[3], rtol=1e-5)  # a quarter of the way from cell to cell


def interior(shape: tuple[int, ...], border: int) -> tuple[slice, ...]:
    return tuple(slice(border, n - border) for n in shape)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    "name",
    ["grad_cam", "layer_cam", "hires_cam", "depth_cam", "grad_cam_plus_plus", "gradient", "integrated_gradients"],
)
def test_windows_of_a_case_agree_with_the_whole_case_in_one_window(name: str, dimensions: int) -> None:
    """A network that treats every place alike; windows differ from the whole only at their rims, which weigh little."""
    size, patch = {2: (32, 16), 3: (18, 12)}[dimensions]
    shape = (size,) * dimensions
    method = {
        "grad_cam": lambda s, a: grad_cam(s, a, layers=["3"]),
        "grad_cam_plus_plus": lambda s, a: grad_cam_plus_plus(s, a, layers=["3"]),
        "layer_cam": lambda s, a: layer_cam(s, a, layers=["3"]),
        "hires_cam": lambda s, a: hires_cam(s, a, layers=["3"]),
        "depth_cam": lambda s, a: depth_cam(s, a, depths=["1", "3"]),
        "gradient": gradient,
        "integrated_gradients": lambda s, a: integrated_gradients(s, a, steps=2),
    }[name]
    torch.manual_seed(0)
    network, array = convolutions(dimensions, 1, 2), random_array((1, *shape))
    region = np.zeros(shape, bool)
    region[interior(shape, size // 4)] = True
    plans = [tiny_plan(dimensions, patch_size=(edge,) * dimensions, labels=plan_2d().labels) for edge in (size, patch)]
    whole, stitched = (method(score_of(network, array, plan, region), array) for plan in plans)
    inside = interior(shape, 3)
    assert np.abs(stitched - whole)[inside].max() < 0.05 * np.abs(whole).max()
    assert np.abs(whole).max() > 0


def test_a_map_of_channels_does_not_end_at_the_region_and_a_map_of_cells_does() -> None:
    array = np.full((1, 16, 4), -1.0, np.float32)
    array[:, 1:3, 1:3] = array[:, 13:15, 1:3] = 4
    region = np.zeros((16, 4), bool)
    region[:4] = True
    score = score_of(signs(1.0, 0.0), array, region=region)
    assert len(score.shares) < len(score.stitching.starts)
    of_channels = grad_cam(score, array, layers=["1"])
    assert of_channels[14, 1] == pytest.approx(of_channels[2, 1]) and of_channels[2, 1] > 0
    of_cells = layer_cam(score, array, layers=["1"])
    assert of_cells[2, 1] > 0 and (of_cells[8:] == 0).all()


@pytest.mark.parametrize("cam", CAMS)
def test_maps_that_are_not_kept_are_made_again(cam: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    array = random_array((1, 9, 7))
    score = score_of(convolutions(2, 1, 2), array)
    kept = cam(score, array, layers=["3"])
    monkeypatch.setattr(module, "KEPT", 300)
    np.testing.assert_allclose(cam(score, array, layers=["3"]), kept, atol=1e-6)


@pytest.mark.parametrize("cam", CAMS)
def test_a_case_smaller_than_the_window_is_cut_back(cam: Any) -> None:
    array = np.abs(random_array((1, 3, 2))) + 0.1
    found = cam(score_of(signs(), array), array, layers=["1"])
    assert found.shape == (3, 2)
    assert np.argmax(found) == np.argmax(array[0]) and (found > 0).all()


def test_a_group_of_layers_is_a_sum_of_their_maps() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.ModuleList([signs(), signs(1.0, 3.0)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rows[0](x) + self.rows[1](x)

    array = random_array((1, 6, 5))
    score = score_of(Two(), array)
    for cam in (grad_cam, layer_cam):
        alone = [cam(score, array, layers=[f"rows.{n}.1"]) for n in range(2)]
        together = cam(score, array, layers=["rows.0.1", "rows.1.1"])
        np.testing.assert_allclose(together, alone[0] + alone[1], atol=1e-6)


def test_a_layer_that_the_score_does_not_depend_on_is_named() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row, self.aside = signs(), nn.Conv2d(1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.aside(x)
            return self.row(x)

    array = random_array((1, 4, 4))
    with pytest.raises(MedsegError, match="layer aside: the score of 'lesion' does not depend on it"):
        grad_cam(score_of(Aside(), array), array, layers=["aside"])
