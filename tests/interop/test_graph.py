"""What a network returns is taken apart under names that say how to put it together again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.errors import MedsegError
from medseg.interop.graph import FlatNetwork, each_tensor, enough_to_trace, example_of, flatten, nest
from medseg.networks import build_network
from tests.tiny import UNET, tiny_plan


class Returns(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> object:
        return self.answer


def test_an_output_comes_back_from_its_names():
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert nest(dict(flatten(a))) is a
    output = {"scores": [a, b], "mask": c}
    assert [name for name, _ in flatten(output)] == ["scores.0", "scores.1", "mask"]
    assert nest(dict(flatten(output))) == output


def test_a_flat_network_says_which_output_is_which():
    flat = FlatNetwork(Returns({"scores": [torch.zeros(1)], "mask": torch.ones(1)}))
    assert [float(tensor) for tensor in flat(torch.zeros(1))] == [0, 1]
    assert flat.names == ("scores.0", "mask")


@pytest.mark.parametrize(
    "answer", [3, [torch.zeros(1)], {"a.b": torch.zeros(1)}, {"a": {"b": torch.zeros(1)}}, {"logits": torch.zeros(1)}]
)
def test_what_cannot_be_named_is_refused(answer):
    with pytest.raises(MedsegError, match=r"expected a tensor, or a dictionary.*runtime=torch"):
        list(flatten(answer))


def test_every_tensor_is_changed():
    changed = each_tensor({"a": [torch.zeros(1), torch.ones(1)]}, lambda tensor: tensor + 1)
    assert [float(tensor) for tensor in changed["a"]] == [1, 2]


def test_an_example_has_the_size_of_a_window_and_is_the_same_every_time():
    example = example_of(2, (3, 4), batch_size=5)
    assert example.shape == (5, 2, 3, 4) and example.abs().max() <= 1 and example.std() > 0.5
    torch.testing.assert_close(example, example_of(2, (3, 4), batch_size=5), rtol=0, atol=0)


def test_a_network_that_says_so_is_traced_on_a_corner_and_any_other_on_the_whole():
    example = example_of(1, (8, 2, 16))
    plan = tiny_plan(strides=((1, 1, 1), (2, 1, 2)))
    corner = enough_to_trace(build_network({"_target_": UNET}, plan, 3), example)
    torch.testing.assert_close(corner, example[:, :, :4, :2, :4], rtol=0, atol=0)
    assert enough_to_trace(nn.Conv3d(1, 1, 1), example) is example
