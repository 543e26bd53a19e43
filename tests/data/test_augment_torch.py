"""What PyTorch makes of a window is what numpy and scipy make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medseg.data.augment import Parameters, Recipe, strong
from medseg.data.augment_torch import change_image
from medseg.planning.plan import Plan

from .test_augment import COARSE, ISOTROPIC, PICTURE, window

PLANS = pytest.mark.parametrize("plan", [ISOTROPIC, COARSE, PICTURE], ids=["isotropic", "coarse", "picture"])
EACH = {
    "turn": {"p_rotation": 1.0},
    "scale": {"p_scale": 1.0},
    "blur": {"p_blur": 1.0, "per_channel": 1.0},
    "brightness": {"p_brightness": 1.0},
    "contrast": {"p_contrast": 1.0},
    "resolution": {"p_resolution": 1.0},
    "inverted gamma": {"p_gamma_inverted": 1.0},
    "gamma": {"p_gamma": 1.0},
}
ALL = {name: value for options in EACH.values() for name, value in options.items()}
OFF = {f"p_{name}": 0.0 for name in ("rotation", "scale", "noise", "blur", "brightness", "contrast", "resolution")}
OFF |= {"p_gamma": 0.0, "p_gamma_inverted": 0.0}


def both(recipe: Recipe, plan: Plan, drawn: Parameters) -> tuple[np.ndarray, np.ndarray]:
    image, label = window(recipe.source_size(plan.patch_size, drawn))
    before = image.copy()
    found = change_image(recipe, torch.from_numpy(image), plan.patch_size, drawn).numpy()
    np.testing.assert_array_equal(image, before, "the window is left as it is")
    return found, recipe.apply(image, label, plan.patch_size, drawn)[0]


@PLANS
@pytest.mark.parametrize("name", EACH)
def test_each_change_equals_that_of_the_workers(plan: Plan, name: str) -> None:
    recipe = strong(plan, **(OFF | EACH[name]))
    for seed in range(4):
        found, expected = both(recipe, plan, recipe.draw(np.random.default_rng(seed), 2))
        assert not np.array_equal(expected, both(recipe, plan, Parameters())[1])
        np.testing.assert_allclose(found, expected, atol=2e-5)


@PLANS
def test_all_changes_together_equal_those_of_the_workers(plan: Plan) -> None:
    recipe = strong(plan, **(OFF | ALL))
    for seed in range(4):
        found, expected = both(recipe, plan, recipe.draw(np.random.default_rng(seed), 2))
        assert found.dtype == np.float32 and found.shape == (2, *plan.patch_size)
        np.testing.assert_allclose(found, expected, atol=2e-4)


@PLANS
def test_the_label_alone_moves_as_it_does_with_the_image(plan: Plan) -> None:
    recipe = strong(plan, p_rotation=0.7, p_scale=0.7)
    for seed in range(8):
        drawn = recipe.draw(np.random.default_rng(seed), 2)
        image, label = window(recipe.source_size(plan.patch_size, drawn))
        alone = recipe.apply_to_label(label, plan.patch_size, drawn)
        np.testing.assert_array_equal(alone, recipe.apply(image, label, plan.patch_size, drawn)[1])
        assert alone.dtype == np.int16 and alone.flags.c_contiguous


def test_noise_has_its_deviation_and_comes_again_from_its_seed() -> None:
    recipe, image = strong(ISOTROPIC), torch.zeros(2, *ISOTROPIC.patch_size)

    def noise(**drawn: Any) -> torch.Tensor:
        return change_image(recipe, image, ISOTROPIC.patch_size, Parameters(noise=(0.1, 0.3), **drawn))

    found = noise(noise_seed=7)
    assert found.std(dim=(1, 2, 3)).tolist() == pytest.approx([0.1, 0.3], rel=0.05)
    assert torch.equal(found, noise(noise_seed=7)) and not torch.equal(found, noise(noise_seed=8))


def test_gamma_leaves_a_constant_channel_alone() -> None:
    image = torch.full((1, *PICTURE.patch_size), 3.0)
    assert torch.equal(change_image(strong(PICTURE), image, PICTURE.patch_size, Parameters(gamma=(1.5,))), image)


@pytest.mark.gpu
@PLANS
def test_a_gpu_changes_images_as_workers_do(plan: Plan) -> None:
    recipe = strong(plan, **(OFF | ALL))
    drawn = recipe.draw(np.random.default_rng(0), 2)
    image, label = window(recipe.source_size(plan.patch_size, drawn))
    found = change_image(recipe, torch.from_numpy(image).cuda(), plan.patch_size, drawn).cpu().numpy()
    np.testing.assert_allclose(found, recipe.apply(image, label, plan.patch_size, drawn)[0], atol=1e-3)
