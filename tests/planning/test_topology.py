"""Stages of U-Nets whose depth is known, and the estimate of memory against what torch really keeps."""

from __future__ import annotations

import math

import pytest

from medseg.planning.topology import (
    Encoder,
    Stages,
    activation_bytes,
    count_weights,
    plan_blocks,
    plan_features,
    plan_kernels,
    plan_strides,
)


def stages_for(patch: tuple[int, ...], encoder: Encoder, width: int = 32) -> Stages:
    spacing = (1.0,) * len(patch)
    strides = plan_strides(patch, spacing)
    count = len(strides)
    pattern = (1, 3, 4, 6) if encoder == "residual" else (2,)
    return Stages(
        encoder,
        plan_features(width, count, len(patch)),
        strides,
        plan_kernels(patch, spacing, strides),
        plan_blocks(pattern, count),
    )


def test_an_axis_is_halved_until_its_map_has_four_to_seven_voxels() -> None:
    for size in range(8, 300):
        strides = plan_strides((size, size, size), (1.0, 1.0, 1.0))
        left = math.ceil(size / 2 ** (len(strides) - 1))
        assert 4 <= left < 8


def test_a_coarse_axis_waits_until_the_others_have_caught_up() -> None:
    # Slices 5 mm apart, 1 mm within: 1 → 2 → 4 mm, and only then is 5 mm less than twice as coarse.
    strides = plan_strides((128, 128, 32), (1.0, 1.0, 5.0))
    assert strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    kernels = plan_kernels((128, 128, 32), (1.0, 1.0, 5.0), strides)
    assert kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert all(row == (3, 3, 3) for row in kernels[2:])


def test_a_thin_axis_is_neither_halved_nor_convolved_along() -> None:
    strides = plan_strides((64, 64, 1), (1.0, 1.0, 1.0))
    assert all(row[2] == 1 for row in strides)
    assert all(row[2] == 1 for row in plan_kernels((64, 64, 1), (1.0, 1.0, 1.0), strides))


def test_asked_for_stages_are_reached_by_smaller_maps_or_not_at_all() -> None:
    assert len(plan_strides((40, 56, 40), (1.0,) * 3, 3)) == 3
    assert len(plan_strides((40, 56, 40), (1.0,) * 3, 5)) == 5
    assert len(plan_strides((8, 8, 8), (1.0,) * 3, 9)) < 9


@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize("patch", [(16, 24, 16), (64, 48)])
def test_the_estimates_are_what_torch_keeps(encoder: Encoder, patch: tuple[int, ...]) -> None:
    """Weights within 2 %; what is kept for the backward pass not above it, but for 15 % at this small size."""
    import torch

    from medseg.networks import unet

    stages = stages_for(patch, encoder, width=8)
    build = unet.residual_unet if encoder == "residual" else unet.plain_unet
    network = build(
        dimensions=len(patch),
        in_channels=2,
        out_channels=3,
        features=stages.features,
        strides=stages.strides,
        kernel_sizes=stages.kernel_sizes,
        blocks=stages.blocks,
    ).train()
    assert count_weights(stages, 2, 3) == pytest.approx(sum(p.numel() for p in network.parameters()), rel=0.02)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = 2
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        levels = network(torch.randn(batch, 2, *patch))
        sum(level.softmax(1).log().mean() for level in levels).backward()
    estimate = batch * activation_bytes(patch, stages, 2, 3)
    assert 0.5 * estimate < sum(kept.values()) < 1.15 * estimate
