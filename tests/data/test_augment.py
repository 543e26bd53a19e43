"""Random changes: replayed exactly, labels untouched in value, and every point where geometry says it should be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medseg.data.augment import Parameters, Recipe, light, none, strong
from medseg.errors import MedsegError
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable

BUILDERS = pytest.mark.parametrize("build", [none, light, strong])


def plan_of(
    patch_size: tuple[int, ...], spacing: tuple[float, ...], mirror_axes: tuple[int, ...] | None = None
) -> Plan:
    dimensions = len(patch_size)
    return Plan(
        task="segmentation",
        orientation="RAS",
        channels=(Channel("T1", "zscore"), Channel("T2", "zscore")),
        labels=LabelTable({1: "organ", 7: "lesion"}),
        crop="none",
        spacing=spacing,
        unit="mm",
        image_order=(3,) * dimensions,
        label_order=(1,) * dimensions,
        patch_size=patch_size,
        batch_size=2,
        features=(8,),
        strides=((1,) * dimensions,),
        kernel_sizes=((3,) * dimensions,),
        blocks=(2,),
        mirror_axes=tuple(range(dimensions)) if mirror_axes is None else mirror_axes,
        foreground=0.33,
        memory_gb=1.0,
    )


ISOTROPIC = plan_of((16, 20, 12), (1.0, 1.0, 1.0))
COARSE = plan_of((8, 24, 24), (6.0, 1.0, 1.2))
PICTURE = plan_of((24, 32), (1.0, 1.0))
PLANS = pytest.mark.parametrize("plan", [ISOTROPIC, COARSE, PICTURE], ids=["isotropic", "coarse", "picture"])


def window(size: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *size)).astype(np.float32)
    return image, rng.choice(np.array([0, 1, 7, -300], np.int16), size=(1, *size))


def changed(recipe: Recipe, plan: Plan, drawn: Parameters, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return recipe.apply(*window(recipe.source_size(plan.patch_size, drawn), seed), plan.patch_size, drawn)


def point(size: tuple[int, ...], offset: tuple[float, ...], radius: float = 1.6) -> np.ndarray:
    """A blob at ``offset`` voxels from the centre of a window."""
    axes = (np.arange(n) - (n - 1) / 2 - o for n, o in zip(size, offset, strict=True))
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    return np.exp(-(grid**2).sum(0) / (2 * radius**2)).astype(np.float32)


def centre_of_mass(image: np.ndarray) -> np.ndarray:
    """Offset from the centre of the window."""
    axes = (np.arange(n) - (n - 1) / 2 for n in image.shape)
    return np.array([(g * image).sum() / image.sum() for g in np.meshgrid(*axes, indexing="ij")])


def moved(recipe: Recipe, patch: tuple[int, ...], offset: tuple[float, ...], **drawn: Any) -> np.ndarray:
    parameters = Parameters(**drawn)
    size = recipe.source_size(patch, parameters)
    label = (point(size, offset) > 0.5).astype(np.int16)[None]
    image, label = recipe.apply(point(size, offset)[None], label, patch, parameters)
    np.testing.assert_allclose(centre_of_mass(label[0]), centre_of_mass(image[0]), atol=0.6)
    return centre_of_mass(image[0])


@BUILDERS
@PLANS
def test_the_same_generator_gives_the_same_patch(build: Any, plan: Plan) -> None:
    recipe = build(plan)
    for seed in range(20):
        first, second = (recipe.draw(np.random.default_rng(seed), 2) for _ in range(2))
        assert first == second
        for a, b in zip(changed(recipe, plan, first), changed(recipe, plan, second), strict=True):
            np.testing.assert_array_equal(a, b)


@BUILDERS
@PLANS
def test_a_patch_has_its_size_and_labels_keep_their_values(build: Any, plan: Plan) -> None:
    recipe = build(plan, p_rotation=0.5, p_scale=0.5)
    for seed in range(20):
        image, label = changed(recipe, plan, recipe.draw(np.random.default_rng(seed), 2))
        assert image.shape == (2, *plan.patch_size)
        assert image.dtype == np.float32
        assert image.flags.c_contiguous
        assert np.isfinite(image).all()
        assert label.shape == (1, *plan.patch_size)
        assert label.dtype == np.int16
        assert set(np.unique(label)) <= {0, 1, 7, -300}


@PLANS
def test_the_arguments_stay_as_they_are(plan: Plan) -> None:
    recipe = strong(plan, **{f"p_{n}": 1.0 for n in ("noise", "blur", "brightness", "contrast", "resolution", "gamma")})
    image, label = window(plan.patch_size)
    before = image.copy()
    drawn = replace(recipe.draw(np.random.default_rng(0), 2), angles_deg=(), scale=1.0)
    out, _ = recipe.apply(image, label, plan.patch_size, drawn)
    np.testing.assert_array_equal(image, before)
    assert not np.array_equal(out, before)


@PLANS
def test_without_a_turn_or_scale_the_patch_is_the_window(plan: Plan) -> None:
    recipe = strong(plan)
    assert recipe.source_size(plan.patch_size, Parameters()) == plan.patch_size
    image, label = window(plan.patch_size)
    out = recipe.apply(image, label, plan.patch_size, Parameters(brightness=(1.0, 1.0)))
    np.testing.assert_array_equal(out[0], image)
    np.testing.assert_array_equal(out[1], label)


@PLANS
def test_no_augmentation_never_changes_anything(plan: Plan) -> None:
    rng = np.random.default_rng(0)
    assert {none(plan).draw(rng, 2) for _ in range(50)} == {Parameters()}


@PLANS
def test_what_is_drawn_follows_the_published_probabilities(plan: Plan) -> None:
    rng, recipe = np.random.default_rng(0), strong(plan)
    drawn = [recipe.draw(rng, 2) for _ in range(4000)]
    expected = {"angles_deg": 0.2, "noise": 0.1, "blur": 0.2, "brightness": 0.15, "contrast": 0.15, "resolution": 0.25}
    for name, probability in (expected | {"gamma_inverted": 0.1, "gamma": 0.3}).items():
        assert np.mean([bool(getattr(p, name)) for p in drawn]) == pytest.approx(probability, abs=0.03), name
    assert np.mean([p.scale != 1 for p in drawn]) == pytest.approx(0.2, abs=0.03)
    for axis in range(plan.dimensions):
        assert np.mean([axis in p.mirrored for p in drawn]) == pytest.approx(0.5, abs=0.03)
    scales = [p.scale for p in drawn if p.scale != 1]
    assert 0.7 <= min(scales) < 0.75
    assert 1.35 < max(scales) <= 1.4


def test_volumes_turn_about_every_axis_and_coarse_ones_in_their_fine_plane() -> None:
    assert (strong(ISOTROPIC).plane, strong(ISOTROPIC).rotation_deg) == ((0, 1, 2), 30)
    assert (strong(COARSE).plane, strong(COARSE).rotation_deg) == ((1, 2), 180)
    assert (strong(PICTURE).plane, strong(PICTURE).rotation_deg) == ((0, 1), 180)
    assert strong(plan_of((16, 64), (1.0, 1.0))).rotation_deg == 15
    assert strong(plan_of((48, 48, 8), (1.0, 1.0, 2.5))).plane == (0, 1)
    one_sided = plan_of((24, 32), (1.0, 1.0), mirror_axes=(0,))
    assert strong(one_sided).rotation_deg == 15, "half a turn would also be the mirroring that the plan forbids"


@PLANS
def test_only_the_axes_of_the_plan_are_mirrored(plan: Plan) -> None:
    recipe = strong(replace(plan, mirror_axes=(1,)))
    assert {p for seed in range(50) for p in recipe.draw(np.random.default_rng(seed), 1).mirrored} == {1}


@PLANS
def test_image_and_label_are_mirrored_together(plan: Plan) -> None:
    image, label = window(plan.patch_size)
    mirrored = strong(plan).apply(image, label, plan.patch_size, Parameters(mirrored=(0, 1)))
    np.testing.assert_array_equal(mirrored[0], image[:, ::-1, ::-1])
    np.testing.assert_array_equal(mirrored[1], label[:, ::-1, ::-1])


def test_a_quarter_turn_moves_a_point_by_a_quarter_turn() -> None:
    # The patch at offset o shows the source at R·o, so that what lies at s is seen at R⁻¹·s: (i, j) → (j, −i).
    np.testing.assert_allclose(moved(strong(PICTURE), (41, 41), (6.0, 2.0), angles_deg=(90.0,)), [2, -6], atol=0.05)
    cube = moved(strong(ISOTROPIC), (25, 25, 25), (5.0, 2.0, -3.0), angles_deg=(0.0, 0.0, 90.0))
    np.testing.assert_allclose(cube, [2, -5, -3], atol=0.05)
    cube = moved(strong(ISOTROPIC), (25, 25, 25), (5.0, 2.0, -3.0), angles_deg=(90.0, 0.0, 0.0))
    np.testing.assert_allclose(cube, [5, -3, -2], atol=0.05)
    slab = moved(strong(COARSE), (15, 41, 41), (1.0, 6.0, 2.5), angles_deg=(90.0,))
    np.testing.assert_allclose(slab, [1, 2.5 * 1.2, -6 / 1.2], atol=0.05)


def test_any_turn_and_scale_moves_a_point_as_their_matrix_says() -> None:
    recipe = strong(ISOTROPIC)
    drawn = {"angles_deg": (20.0, -10.0, 25.0), "scale": 1.2}
    offset = np.array([5.0, 2.0, -3.0])
    expected = np.linalg.solve(recipe.matrix(Parameters(**drawn)), offset)
    assert np.linalg.norm(expected) == pytest.approx(np.linalg.norm(offset) / 1.2)
    np.testing.assert_allclose(moved(recipe, (31, 31, 31), tuple(offset), **drawn), expected, atol=0.1)


def test_turns_are_turns_in_millimetres() -> None:
    matrix = strong(plan_of((32, 32, 32), (1.0, 1.5, 2.0))).matrix(Parameters(angles_deg=(20.0, -10.0, 25.0)))
    in_mm = np.diag([1.0, 1.5, 2.0]) @ matrix @ np.diag([1.0, 1 / 1.5, 1 / 2.0])
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(in_mm) == pytest.approx(1)


@PLANS
def test_the_window_is_as_large_as_the_turn_needs_and_no_larger(plan: Plan) -> None:
    recipe = strong(plan)
    for seed in range(200):
        drawn = recipe.draw(np.random.default_rng(seed), 1)
        size = np.array(recipe.source_size(plan.patch_size, drawn))
        reach = np.abs(recipe.matrix(drawn)) @ (np.array(plan.patch_size) - 1)
        assert (size - 1 >= reach - 1e-5).all()
        assert (size - 3 < reach + 1e-5).all()
        assert not ((size - np.array(plan.patch_size)) % 2).any()


def test_a_window_of_another_size_is_refused_with_the_size_expected() -> None:
    with pytest.raises(MedsegError, match=r"expected a window of \[16, 20, 12\].*found image \[16, 20, 13\]"):
        strong(ISOTROPIC).apply(*window((16, 20, 13)), ISOTROPIC.patch_size, Parameters())


@PLANS
@pytest.mark.parametrize("name", ["gamma", "gamma_inverted"])
def test_gamma_keeps_mean_and_deviation(plan: Plan, name: str) -> None:
    image, label = window(plan.patch_size)
    out, _ = strong(plan).apply(image, label, plan.patch_size, Parameters(**{name: (1.5, 0.7)}))
    assert not np.allclose(out, image, atol=0.05)
    for c in range(2):
        assert out[c].mean() == pytest.approx(image[c].mean(), abs=1e-4)
        assert out[c].std() == pytest.approx(image[c].std(), rel=1e-3)
        assert (np.diff(out[c].ravel()[np.argsort(image[c], axis=None)]) > -1e-6).all(), "the order of values is kept"


def test_gamma_and_its_inverse_stretch_opposite_ends() -> None:
    image = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(1, 24, 32)
    label = np.zeros(image.shape, np.int16)
    plain, _ = strong(PICTURE).apply(image, label, (24, 32), Parameters(gamma=(1.5,)))
    inverted, _ = strong(PICTURE).apply(image, label, (24, 32), Parameters(gamma_inverted=(1.5,)))
    np.testing.assert_allclose(inverted, 1 - plain[:, ::-1, ::-1], atol=1e-4)


@PLANS
def test_contrast_stays_within_the_range_that_was_there(plan: Plan) -> None:
    image, label = window(plan.patch_size)
    out, _ = strong(plan).apply(image, label, plan.patch_size, Parameters(contrast=(1.25, 0.75)))
    assert (out.max(), out.min()) <= (image.max(), image.min())
    assert out[0].std() > image[0].std()
    assert out[1].std() == pytest.approx(0.75 * image[1].std(), rel=1e-4)


def test_blur_and_lost_resolution_leave_constants_and_the_other_channel_alone() -> None:
    image, label = window(ISOTROPIC.patch_size)
    image[1] = 3.0
    for drawn in (Parameters(blur=((0.8, 0.6, 1.0),) * 2), Parameters(resolution=(0.5, 0.7))):
        out, _ = strong(ISOTROPIC).apply(image, label, ISOTROPIC.patch_size, drawn)
        assert out[0].std() < 0.9 * image[0].std()
        np.testing.assert_allclose(out[1], 3.0, rtol=1e-5)
    out, _ = strong(ISOTROPIC).apply(image, label, ISOTROPIC.patch_size, Parameters(resolution=(1.0, 0.7)))
    np.testing.assert_array_equal(out[0], image[0])


def test_a_coarse_axis_keeps_its_resolution() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, :, None, None], (1, 8, 24, 24)).copy()
    out, _ = strong(COARSE).apply(ramp, np.zeros(ramp.shape, np.int16), (8, 24, 24), Parameters(resolution=(0.5,)))
    np.testing.assert_allclose(out, ramp, atol=1e-5)


def test_the_number_of_threads_changes_nothing() -> None:
    plan = plan_of((40, 40, 40), (1.0, 1.0, 1.0))
    recipe = strong(plan, **{f"p_{n}": 1.0 for n in ("rotation", "scale", "noise", "blur", "resolution", "gamma")})
    drawn = recipe.draw(np.random.default_rng(1), 2)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(changed(recipe, plan, drawn))
    finally:
        torch.set_num_threads(before)
    for image, label in found[1:]:
        np.testing.assert_array_equal(image, found[0][0])
        np.testing.assert_array_equal(label, found[0][1])


def test_options_change_the_recipe_and_mistakes_are_named() -> None:
    assert strong(PICTURE, rotation_deg=10, scale=[0.9, 1.1]).scale == (0.9, 1.1)
    with pytest.raises(MedsegError, match=r"strong\(\) has no argument 'rotate'; it accepts plane, mirror_axes, rot"):
        strong(PICTURE, rotate=3)
    with pytest.raises(MedsegError, match="p_noise: expected a probability between 0 and 1, found 3"):
        light(PICTURE, p_noise=3)
    with pytest.raises(MedsegError, match=r"gamma: expected \[low, high\]"):
        light(PICTURE, gamma=[2.0, 1.0])
    with pytest.raises(MedsegError, match="mirror_axes: expected different axes below 2"):
        none(PICTURE, mirror_axes=[2])


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (25.0, -10.0, 170.0)])
@pytest.mark.parametrize("mirrored", [(), (0, 2)])
def test_a_box_moves_as_the_ellipsoid_in_it_does(angles: tuple[float, ...], mirrored: tuple[int, ...]) -> None:
    recipe = Recipe((1.0, 0.8, 1.5), (0, 1, 2))
    parameters = Parameters(angles_deg=angles, scale=0.8, mirrored=mirrored)
    patch = (40, 40, 28)
    source = recipe.source_size(patch, parameters)
    centre, half = np.array(source) / 2 + (3, -4, 2), np.array([7.0, 5.0, 4.0])
    at = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in source), indexing="ij"), -1)
    label = ((((at - centre) / half) ** 2).sum(-1) <= 1).astype(np.int16)[None]
    _, moved = recipe.apply(label.astype(np.float32), label, patch, parameters)
    inside = np.argwhere(moved[0])
    expected = np.concatenate([inside.min(0), inside.max(0) + 1])
    (found,) = recipe.move(np.concatenate([centre - half, centre + half])[None], patch, parameters)
    assert np.abs(found - expected).max() < 1.0


def test_boxes_that_do_not_move_are_only_mirrored() -> None:
    recipe, boxes = Recipe((1.0, 1.0), (0, 1)), np.array([[1.25, 2, 3, 5]])
    assert recipe.move(boxes, (8, 8), Parameters()).tolist() == boxes.tolist()
    assert recipe.move(boxes, (8, 8), Parameters(mirrored=(0,))).tolist() == [[5, 2, 6.75, 5]]
    assert recipe.move(np.zeros((0, 4)), (8, 8), Parameters(angles_deg=(10,))).shape == (0, 4)
    assert boxes.tolist() == [[1.25, 2, 3, 5]]
