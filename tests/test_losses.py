"""Losses against values computed by hand, with ignored voxels, regions, labels that are missing, and reduced precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.losses import Loss, dice_ce, dice_focal, generalized_dice, tversky

BUILDERS: list[Callable[..., Loss]] = [dice_ce, dice_focal, tversky, generalized_dice]
every = pytest.mark.parametrize("builder", BUILDERS)
exclusive_or_not = pytest.mark.parametrize("exclusive", [True, False], ids=["exclusive", "regions"])


def logits_of(*probabilities: list[float]) -> Tensor:
    """``(1, K, N)``: logits whose softmax is ``probabilities``, a list a class over N voxels."""
    return torch.tensor([probabilities]).log()


def drawn(exclusive: bool, seed: int = 0, shape: tuple[int, ...] = (2, 3, 4, 6, 5)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator)
    if exclusive:
        return logits, torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    return logits, torch.randint(0, 2, shape, generator=generator).float()


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def test_dice_and_cross_entropy_by_hand() -> None:
    # Four voxels, truth 0 0 1 1. Foreground p = .2 .4 .6 .8: tp = 1.4, Σp = 2, Σt = 2, Dice = 2·1.4 / 4 = 0.7.
    logits = logits_of([0.8, 0.6, 0.4, 0.2], [0.2, 0.4, 0.6, 0.8])
    terms = dice_ce(True, smooth=0)(logits, torch.tensor([[[0, 0, 1, 1]]]), None)
    assert terms["dice"].item() == pytest.approx(1 - 0.7, abs=1e-6)
    assert terms["ce"].item() == pytest.approx(-(2 * math.log(0.8) + 2 * math.log(0.6)) / 4, abs=1e-6)


def test_batch_dice_pools_samples_and_sample_dice_averages_them() -> None:
    # Sample 1: p = 1 on its one true voxel of two. Sample 2: p = 0.5 everywhere, both voxels true.
    logits = torch.cat([logits_of([1e-9, 1], [1, 1e-9]), logits_of([0.5, 0.5], [0.5, 0.5])])
    target = torch.tensor([[[1, 0]], [[1, 1]]])
    pooled = dice_ce(True, smooth=0)(logits, target)["dice"].item()
    assert pooled == pytest.approx(1 - 2 * 2 / (1 + 1 + 1 + 2), abs=1e-6)
    averaged = dice_ce(True, smooth=0, batch=False)(logits, target)["dice"].item()
    assert averaged == pytest.approx(1 - (1 + 2 / 3) / 2, abs=1e-6)


def test_background_counts_where_it_is_included() -> None:
    # Background p = .8 .6 .4 .2 against truth 1 1 0 0 has Dice 0.7 too; with a voxel more on one side they differ.
    logits = logits_of([0.8, 0.6, 0.4], [0.2, 0.4, 0.6])
    target = torch.tensor([[[0, 0, 1]]])
    foreground, background = 2 * 0.6 / (1.2 + 1), 2 * 1.4 / (1.8 + 2)
    found = dice_ce(True, smooth=0, include_background=True)(logits, target)["dice"].item()
    assert found == pytest.approx(1 - (foreground + background) / 2, abs=1e-6)


def test_focal_by_hand() -> None:
    logits = logits_of([0.8, 0.4], [0.2, 0.6])
    terms = dice_focal(True, gamma=2)(logits, torch.tensor([[[0, 1]]]))
    expected = -(0.2**2 * math.log(0.8) + 0.4**2 * math.log(0.6)) / 2
    assert terms["focal"].item() == pytest.approx(expected, abs=1e-6)


def test_tversky_by_hand() -> None:
    # tp = 1.4, false positives .2 + .4, false negatives .4 + .2.
    logits = logits_of([0.8, 0.6, 0.4, 0.2], [0.2, 0.4, 0.6, 0.8])
    terms = tversky(True, alpha=0.3, beta=0.7, smooth=0)(logits, torch.tensor([[[0, 0, 1, 1]]]))
    assert list(terms) == ["tversky"]
    assert terms["tversky"].item() == pytest.approx(1 - 1.4 / (1.4 + 0.3 * 0.6 + 0.7 * 0.6), abs=1e-6)


def test_generalized_dice_by_hand() -> None:
    # Volumes 3 and 1, weights 1/9 and 1: numerator 2(2.1/9 + .7), denominator (2.4 + 3)/9 + 1.6 + 1.
    logits = logits_of([0.8, 0.7, 0.6, 0.3], [0.2, 0.3, 0.4, 0.7])
    terms = generalized_dice(True, smooth=0)(logits, torch.tensor([[[0, 0, 0, 1]]]))
    expected = 1 - 2 * (2.1 / 9 + 0.7) / ((2.4 + 3) / 9 + 1.6 + 1)
    assert terms["generalized_dice"].item() == pytest.approx(expected, abs=1e-6)


def test_regions_by_hand() -> None:
    """Two regions that overlap, each with its own sigmoid: binary entropy, Dice of each."""
    p = torch.tensor([[[0.9, 0.2], [0.6, 0.5]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    terms = dice_ce(False, smooth=0)(torch.logit(p), target)
    assert terms["ce"].item() == pytest.approx(-math.log(0.9 * 0.8 * 0.6 * 0.5) / 4, abs=1e-6)
    assert terms["dice"].item() == pytest.approx(1 - (2 * 0.9 / 2.1 + 2 * 1.1 / 3.1) / 2, abs=1e-6)


def test_class_weights_are_those_of_pytorch() -> None:
    logits, target = drawn(True)
    weights = [0.2, 1.0, 3.0]
    found = dice_ce(True, class_weights=weights)(logits, target)["ce"]
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, target[:, 0], torch.tensor(weights)))


@every
@exclusive_or_not
def test_a_perfect_prediction_loses_nothing(builder: Callable[..., Loss], exclusive: bool) -> None:
    logits, target = drawn(exclusive)
    truth = torch.zeros_like(logits).scatter_(1, target, 1.0) if exclusive else target
    assert total(builder(exclusive)(truth * 40 - 20, target)).item() == pytest.approx(0, abs=1e-4)


@every
@exclusive_or_not
def test_ignored_voxels_have_neither_value_nor_gradient(builder: Callable[..., Loss], exclusive: bool) -> None:
    logits, target = drawn(exclusive)
    valid = torch.rand(2, 1, 4, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    options: dict[str, Any] = {"ce_weight": 1.0} if builder in (tversky, generalized_dice) else {}
    loss = builder(exclusive, **options)
    logits.requires_grad_()
    value = total(loss(logits, target, valid))
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient * ~valid).abs().max() == 0 and gradient.abs().max() > 0
    other = torch.where(valid, target, torch.zeros_like(target))
    torch.testing.assert_close(total(loss(torch.where(valid, logits, -logits), other, valid)), value)


@every
@exclusive_or_not
def test_leaving_voxels_out_is_not_having_them(builder: Callable[..., Loss], exclusive: bool) -> None:
    logits, target = drawn(exclusive)
    valid = torch.ones(2, 1, 4, 6, 5, dtype=torch.bool)
    valid[..., 3:] = False
    expected = builder(exclusive)(logits[..., :3], target[..., :3])
    found = builder(exclusive)(logits, target, valid)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@every
@exclusive_or_not
def test_a_batch_without_a_valid_voxel_gives_no_gradient(builder: Callable[..., Loss], exclusive: bool) -> None:
    logits, target = drawn(exclusive)
    logits.requires_grad_()
    value = total(builder(exclusive)(logits, target, torch.zeros(2, 1, 4, 6, 5, dtype=torch.bool)))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.abs().max() == 0


@every
@pytest.mark.parametrize("batch", [True, False])
def test_a_label_that_a_batch_lacks_is_no_trouble(builder: Callable[..., Loss], batch: bool) -> None:
    logits, _ = drawn(True)
    logits.requires_grad_()
    for value in (0, 1):  # nothing but background; nothing but the first label
        target = torch.full((2, 1, 4, 6, 5), value)
        lost = total(builder(True, batch=batch)(logits, target))
        (gradient,) = torch.autograd.grad(lost, logits)
        assert lost.isfinite() and gradient.isfinite().all()


@every
@exclusive_or_not
def test_scores_are_float32_and_gradients_finite_inside_bfloat16_autocast(
    builder: Callable[..., Loss], exclusive: bool
) -> None:
    logits, target = drawn(exclusive)
    low = (30 * logits).bfloat16().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        terms = builder(exclusive)(low, target)
    total(terms).backward()
    assert all(value.dtype == torch.float32 and value.ndim == 0 and value.isfinite() for value in terms.values())
    assert low.grad is not None and low.grad.isfinite().all()
    torch.testing.assert_close(total(terms), total(builder(exclusive)(low.detach().float(), target)))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_focal_has_a_gradient_where_the_network_is_certain(gamma: float) -> None:
    logits = torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]], requires_grad=True)
    total(dice_focal(True, gamma=gamma)(logits, torch.tensor([[[0, 0]]]))).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@every
@exclusive_or_not
def test_gradients_are_those_of_finite_differences(builder: Callable[..., Loss], exclusive: bool) -> None:
    """In float32, along random directions: double precision is not kept on purpose."""
    logits, target = drawn(exclusive, shape=(2, 3, 4, 4))
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(total(builder(exclusive)(logits, target)), logits)
    for seed in range(3):
        step = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            up, down = (total(builder(exclusive)(logits + sign * 1e-2 * step, target)) for sign in (1, -1))
        assert float((up - down) / 2e-2) == pytest.approx(float((gradient * step).sum()), abs=3e-3)


def test_terms_are_named_and_weighted() -> None:
    logits, target = drawn(True)
    once, twice = dice_ce(True)(logits, target), dice_ce(True, dice_weight=2, ce_weight=0.5)(logits, target)
    torch.testing.assert_close(twice["dice"], 2 * once["dice"])
    torch.testing.assert_close(twice["ce"], 0.5 * once["ce"])
    assert list(dice_ce(True, ce_weight=0)(logits, target)) == ["dice"]
    assert set(tversky(True, ce_weight=1)(logits, target)) == {"tversky", "ce"}


def test_mistakes_are_named() -> None:
    with pytest.raises(MedsegError, match="must not be negative nor all zero"):
        dice_ce(True, dice_weight=0, ce_weight=0)
    with pytest.raises(MedsegError, match="expected 'square', 'simple' or 'uniform'"):
        generalized_dice(True, weighting="cubic")
    with pytest.raises(MedsegError, match="class_weights for 3 output channels"):
        dice_ce(True, class_weights=[1, 2])(*drawn(True))


def test_losses_can_be_sent_to_another_process() -> None:
    import pickle

    logits, target = drawn(True)
    for builder, exclusive in itertools.product(BUILDERS, (True, False)):
        loss = builder(exclusive)
        again = pickle.loads(pickle.dumps(loss))
        if exclusive:
            torch.testing.assert_close(total(again(logits, target)), total(loss(logits, target)))
