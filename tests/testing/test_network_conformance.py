"""`check_network` passes what keeps the contract and names what breaks it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.testing import check_network


class Good(nn.Module):
    """Two levels, as a user would write it; what is wrong with a subclass is only what it overrides."""

    def __init__(
        self, dimensions: int, in_channels: int, out_channels: int, deep_supervision: bool, **others: Any
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.body, self.head = conv(in_channels, 4, 3, padding=1), conv(4, out_channels, 1)
        self.coarse = conv(4, out_channels, 2, 2) if deep_supervision else None

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.body(x))
        if self.training and self.coarse is not None:
            return [self.head(x), self.coarse(x)]
        return self.head(x)


class ListInEvaluation(Good):
    def forward(self, x: Tensor) -> Any:
        return [super().forward(x)] if not self.training else super().forward(x)


class CoarseFirst(Good):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return out[::-1] if isinstance(out, list) else out


class TooManyChannels(Good):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return torch.cat((out, out), 1) if isinstance(out, Tensor) else out


class AlwaysLevels(Good):
    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | {"deep_supervision": True}))


class Unused(Good):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.spare = nn.Linear(2, 2)


class Shared(Good):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.again = self.head


class LooksAtTheBatch(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x - x.mean(0, keepdim=True))


class DropsInEvaluation(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class WritesItsInput(Good):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.mul_(2) if self.training else x)


class NotANumber(Good):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return [level / 0 * 0 for level in out] if isinstance(out, list) else out


class Forgetful(Good):
    """Something that decides the output is not in the weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scale = float(torch.rand(()))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x * self.scale)


class Detector(nn.Module):
    """Boxes on cells of two voxels, one a cell; what is wrong with a subclass is only what it overrides."""

    def __init__(self, dimensions: int, in_channels: int, classes: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.body = conv(in_channels, 4, 2, 2)
        self.scores, self.deltas = conv(4, classes, 1), conv(4, 2 * dimensions, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.body(x))
        return {"scores": [self.scores(x)], "deltas": [self.deltas(x)]}


class OtherNames(Detector):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"logits": out["scores"], "deltas": out["deltas"]}


class NoLevels(Detector):
    def forward(self, x: Tensor) -> Any:
        return {name: levels[0] for name, levels in super().forward(x).items()}


class BoxesElsewhere(Detector):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {**out, "deltas": [level[..., 1:] for level in out["deltas"]]}


class HalfABox(Detector):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {**out, "deltas": [level[:, ::2] for level in out["deltas"]]}


class SmallMask(Detector):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {**out, "mask": out["scores"][0]}


class ScoresOfTheBatch(Detector):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {**out, "scores": [level - level.mean(0) for level in out["scores"]]}


class Classifier(nn.Module):
    """A logit a class; what is wrong with a subclass is only what it overrides."""

    def __init__(self, dimensions: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
        self.body, self.head = conv(in_channels, 4, 3, padding=1), nn.Linear(4, out_channels)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.body(x)).flatten(2).mean(2))


class OneClassMore(Classifier):
    def __init__(self, dimensions: int, in_channels: int, out_channels: int) -> None:
        super().__init__(dimensions, in_channels, out_channels + 1)


class ClassesOfTheBatch(Classifier):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return out - 0.5 * out.mean(0)


class MapsInEvaluation(Classifier):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return out if self.training else out[:, :, None, None].expand(-1, -1, *x.shape[2:])


class Blind(Classifier):
    """The mean over space of what was normalised over space is the same for every image."""

    def forward(self, x: Tensor) -> Any:
        return self.head(nn.functional.instance_norm(self.body(x)).flatten(2).mean(2).round(decimals=3))


def test_a_good_detector_and_a_good_classifier_pass() -> None:
    check_network(Detector)
    check_network(Classifier)


def test_a_good_network_passes_as_class_as_target_and_as_spec() -> None:
    check_network(Good)
    check_network("tests.testing.test_network_conformance.Good")
    check_network({"_target_": "medseg.networks.unet.plain_unet", "decoder_blocks": 1}, dimensions=(2,))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (ListInEvaluation, "evaluation mode returns one tensor; found list"),
        (CoarseFirst, "the first level in training mode has shape"),
        (TooManyChannels, r"has shape \(2, 3, .*; found \(2, 6"),
        (AlwaysLevels, "without deep supervision training returns one tensor"),
        (Unused, "a gradient reaches every parameter; found none at spare.weight, spare.bias"),
        (Shared, "safetensors"),
        (LooksAtTheBatch, "does not depend on its batch"),
        (DropsInEvaluation, "evaluation is deterministic"),
        (WritesItsInput, "the input is left as it is"),
        (NotANumber, "is finite"),
        (Forgetful, "a network with loaded weights does the same"),
        (OtherNames, r"a dictionary holds 'scores' and 'deltas' .*; found \['logits', 'deltas'\]"),
        (NoLevels, "scores and deltas are lists of levels; found"),
        (BoxesElsewhere, "scores and deltas have the same levels"),
        (HalfABox, r"deltas \(B, A·4, \*S\)"),
        (SmallMask, "the first level in training mode has shape"),
        (ScoresOfTheBatch, "does not depend on its batch"),
        (OneClassMore, r"logits are \(B, 3\); found .*2, 4"),
        (ClassesOfTheBatch, "does not depend on its batch"),
        (MapsInEvaluation, "every output is a logit a class, as the first one in training mode; found a map"),
        (Blind, "the output depends on the input; found the same"),
    ],
)
def test_each_breach_is_named(network: Any, message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        check_network(network, dimensions=(2,))


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(MedsegError, match=r"must return a torch.nn.Module, found int"):
        check_network(lambda dimensions: 3, dimensions=(3,))


def test_the_callers_random_numbers_are_not_spent() -> None:
    before = torch.random.get_rng_state()
    check_network(Good, dimensions=(2,))
    assert torch.equal(before, torch.random.get_rng_state())
