"""What there is of memory is read from the machine or granted; what a case takes grows with what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medseg.data.preprocess import whole_restoration
from medseg.errors import MedsegError
from medseg.inference.memory import GB, Burden, Memory, network_bytes, said
from medseg.inference.predictor import Predictor
from medseg.structures import LabelTable
from medseg.volume import Geometry
from tests.tiny import tiny_model, tiny_plan


def test_what_the_user_grants_is_taken_and_else_most_of_what_is_free():
    granted, free = Memory.here(3.5), Memory.here()
    assert (granted.total, granted.given) == (3.5 * GB, True)
    assert free.given is False
    assert free.total > free.resident > 10**7
    assert 0 < granted.resident < 100 * GB


@pytest.mark.parametrize("wrong", [0, -1, "8", True])
def test_a_grant_that_is_no_size_is_refused(wrong):
    with pytest.raises(MedsegError, match=r"runtime\.memory_gb=.*above 0"):
        Memory.here(wrong)


def test_a_burden_is_the_larger_of_predicting_and_writing_and_grows_with_the_cases_beside_it():
    burden = Burden(scan=100, mask=50, marks=10**12, network=7, sums=9)
    assert burden.total == 150 + 10**12
    assert replace(burden, beside=2).total == 3 * 150 + 10**12
    assert replace(burden, marks=0, sums=10**12).total == 150 + 10**12 + 7 + 4 * (1 << 26)


def test_more_labels_windows_or_larger_ones_take_more():
    plan = tiny_plan()
    assert network_bytes(plan, 3, 2) == 2 * network_bytes(plan, 3, 1)
    assert network_bytes(plan, 100, 1) > 5 * network_bytes(plan, 3, 1)


def test_sums_of_a_swept_case_are_bounded_and_kept_scores_are_not():
    labels = LabelTable({value: f"l{value}" for value in range(1, 40)})
    predictor = Predictor([tiny_model(0, tiny_plan(labels=labels))])
    predictor.memory = Memory(total=3 * GB, resident=GB, given=True)
    found = {}
    for n in (200, 600):
        grid = Geometry.from_spacing((n, n, n), (1.0, 1.0, 1.0))
        way = whole_restoration(grid, predictor.plan)
        found[n] = [predictor.burden(way, 2 * n**3, predictor.memory, scores=scores) for scores in (False, True)]
    assert GB + found[600][0].total <= 3 * GB
    assert found[600][1].sums > 25 * found[200][1].sums
    assert found[600][1].total > 60 * GB > found[600][0].total


def test_sizes_are_said_in_gigabytes():
    assert [said(size) for size in (123e6, 3.24e9, 41.9e9)] == ["0.12 GB", "3.2 GB", "42 GB"]
