"""Windows of one value are asked once; all others each time, in their order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError
from medseg.inference.answers import Answers
from medseg.tasks import build_task
from tests.tiny import noise, tiny_plan

PLAN = tiny_plan()
TASK = build_task({"name": "segmentation"}, PLAN)


class Counting:
    """A network that gives the window back as logits of three labels, and notes how many it saw."""

    device = torch.device("cpu")

    def __init__(self, own_threads: bool = False) -> None:
        self.own_threads = own_threads
        self.seen: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, batch: torch.Tensor) -> Any:
        self.seen.append(len(batch))
        self.threads.add(torch.get_num_threads())
        return torch.cat([batch[:, :1], -batch[:, :1], torch.zeros_like(batch[:, :1])], 1)


def flat(value: float) -> np.ndarray:
    return np.full((1, 8, 8, 8), value, np.float32)


def test_windows_of_the_same_single_value_get_the_answer_of_the_first() -> None:
    network, other = Counting(), noise((8, 8, 8))[None] / 100
    answers = Answers([network], TASK, ())
    found = answers([flat(-1), other, flat(-1)]) + answers([flat(-1)])
    assert sum(network.seen) == answers.asked == 2
    assert answers.spared == 2
    for one in (found[2], found[3]):
        np.testing.assert_array_equal(one, found[0])
    alone = Answers([Counting()], TASK, ())
    np.testing.assert_array_equal(found[1], alone([other])[0])
    np.testing.assert_allclose(found[0][0], torch.softmax(torch.tensor([-1.0, 1, 0]), 0)[0].item(), rtol=1e-6)


def test_another_value_or_one_voxel_that_differs_is_asked_anew() -> None:
    network, spoilt = Counting(), flat(-1)
    spoilt[0, 7, 0, 3] = -0.999
    answers = Answers([network], TASK, ())
    answers([flat(-1), flat(0), spoilt])
    assert answers.asked == 3 and answers.spared == 0


def test_a_single_value_in_one_channel_alone_is_not_enough() -> None:
    two = np.concatenate([flat(0), noise((8, 8, 8))[None]])
    answers = Answers([Counting()], TASK, ())
    answers([two, two])
    assert answers.asked == 2


def test_every_mirroring_is_asked_of_every_member() -> None:
    members = [Counting(), Counting()]
    Answers(members, TASK, (0, 2))([noise((8, 8, 8))[None]])
    assert [sum(member.seen) for member in members] == [4, 4]


def test_pytorch_leaves_the_cores_to_a_runtime_with_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        plain, graph = Counting(), Counting(own_threads=True)
        for network in (plain, graph):
            Answers([network], TASK, ())([noise((8, 8, 8))[None]])
        assert (plain.threads, graph.threads, torch.get_num_threads()) == ({2}, {1}, 2)
    finally:
        torch.set_num_threads(before)


def test_without_a_member_there_is_no_answer() -> None:
    with pytest.raises(MedsegError, match="at least one model"):
        Answers([], TASK, ())
