"""Losses of classification: against values by hand and PyTorch's own, and weights that mean the same in any batch."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from medseg.errors import MedsegError
from medseg.losses_classes import ClassLoss, cross_entropy, focal

BUILDERS: list[Callable[..., ClassLoss]] = [cross_entropy, focal]
every = pytest.mark.parametrize("builder", BUILDERS)
ONE = torch.tensor([0, 2, 1, 0])
SEVERAL = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def test_the_entropy_of_even_odds_is_known() -> None:
    zeros = torch.zeros(4, 3)
    assert cross_entropy(False)(zeros, ONE)["ce"] == pytest.approx(math.log(3))
    assert cross_entropy(True)(zeros, SEVERAL)["ce"] == pytest.approx(math.log(2))
    assert focal(False, gamma=2.0)(zeros, ONE)["focal"] == pytest.approx((2 / 3) ** 2 * math.log(3))
    assert focal(True, gamma=3.0)(zeros, SEVERAL)["focal"] == pytest.approx(0.5**3 * math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_weights_it_is_that_of_pytorch(smoothing: float) -> None:
    x = logits()
    expected = F.cross_entropy(x, ONE, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(False, label_smoothing=smoothing)(x, ONE)["ce"], expected)
    soft = SEVERAL * (1 - smoothing) + smoothing / 2
    expected = F.binary_cross_entropy_with_logits(x, soft)
    torch.testing.assert_close(cross_entropy(True, label_smoothing=smoothing)(x, SEVERAL)["ce"], expected)


@every
def test_weights_do_not_cancel_in_a_batch_of_one_class(builder: Callable[..., ClassLoss]) -> None:
    """PyTorch's mean divides by the weights in the batch."""
    x, target = logits(), torch.full((4,), 2)
    (plain,) = builder(False)(x, target).values()
    (weighted,) = builder(False, class_weights=[1.0, 1.0, 5.0])(x, target).values()
    torch.testing.assert_close(weighted, 5 * plain)


@every
def test_a_weight_multiplies_what_is_there_and_not_what_is_absent(builder: Callable[..., ClassLoss]) -> None:
    x = logits()
    (plain,) = builder(True)(x, torch.zeros(4, 3)).values()
    (weighted,) = builder(True, class_weights=[7.0, 7.0, 7.0])(x, torch.zeros(4, 3)).values()
    torch.testing.assert_close(weighted, plain)
    (plain,) = builder(True)(x, torch.ones(4, 3)).values()
    (weighted,) = builder(True, class_weights=[7.0, 7.0, 7.0])(x, torch.ones(4, 3)).values()
    torch.testing.assert_close(weighted, 7 * plain)


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    target = torch.tensor([0] * 6 + [1] * 3 + [2])
    loss = cross_entropy(False, shares=[0.6, 0.3, 0.1], class_weights="balanced")
    zeros = torch.zeros(10, 3)
    parts = [float(loss(zeros[target == k], target[target == k])["ce"]) * int((target == k).sum()) for k in range(3)]
    assert parts == pytest.approx([parts[0]] * 3)
    assert loss(zeros, target)["ce"] == pytest.approx(math.log(3)), "and leave the size of the loss as it is"
    loss = cross_entropy(True, shares=[0.25], class_weights="balanced")
    at = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    score = torch.zeros(4, 1, requires_grad=True)
    loss(score, at)["ce"].backward()
    assert score.grad is not None and float(score.grad.sum()) == pytest.approx(0.0), (
        "those with it weigh as those without"
    )


@every
@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_are_finite_in_bfloat16_and_however_sure_the_network_is(
    builder: Callable[..., ClassLoss], multilabel: bool, scale: float
) -> None:
    x = (logits().detach() * scale).bfloat16().requires_grad_()
    options: dict[str, Any] = {"gamma": 0.5} if builder is focal else {"label_smoothing": 0.1}
    loss = builder(multilabel, class_weights=[1.0, 2.0, 0.0], **options)
    with torch.autocast("cpu", torch.bfloat16):
        (value,) = loss(x, SEVERAL if multilabel else ONE).values()
    value.backward()
    assert value.dtype == torch.float32 and value.ndim == 0 and torch.isfinite(value)
    assert x.grad is not None and x.grad.isfinite().all() and (scale > 1 or bool(x.grad.any()))


@every
def test_a_loss_can_be_sent_to_another_process(builder: Callable[..., ClassLoss]) -> None:
    loss = builder(True, class_weights=[1.0, 2.0, 3.0])
    assert pickle.loads(pickle.dumps(loss))(logits(), SEVERAL) == loss(logits(), SEVERAL)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(cross_entropy, label_smoothing=1.0), "label_smoothing from 0 to below 1.*found 1.0"),
        (partial(focal, gamma=-1.0), "gamma of 0 or more.*-1.0"),
        (partial(cross_entropy, class_weights=[1.0, -1.0, 1.0]), "must not be negative"),
        (
            partial(cross_entropy, class_weights="inverse"),
            "'inverse'; expected a number for each class, balanced, or null",
        ),
        (partial(focal, class_weights="balanced"), "needs training cases of every class; found the shares None"),
        (partial(focal, class_weights="balanced", shares=[1.0, 0.0]), r"found the shares \[1.0, 0.0\]"),
    ],
)
def test_what_cannot_be_meant_is_refused(build: Callable[..., ClassLoss], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        build(False)


def test_weights_for_another_number_of_classes_are_named() -> None:
    with pytest.raises(MedsegError, match=r"expected class_weights for 3 classes, found 2: \[1.0, 2.0\]"):
        cross_entropy(False, class_weights=[1.0, 2.0])(logits(), ONE)
