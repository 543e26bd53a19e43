"""What a model from elsewhere does its own way is part of its plan, and says nothing in plans of medseg's own."""

from __future__ import annotations

import pytest

from medseg.errors import MedsegError
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Plan
from tests.tiny import tiny_plan


def test_conventions_survive_the_file_and_plans_without_say_nothing() -> None:
    plan = tiny_plan(conventions=Conventions("logits", "after", "after", 3.0, (2,)))
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert "conventions" not in tiny_plan().to_yaml()
    assert tiny_plan().preprocessing_key() != plan.preprocessing_key()
    assert tiny_plan(conventions=None).preprocessing_key() == tiny_plan().preprocessing_key()


@pytest.mark.parametrize(
    "values", [{"averaged": "masks"}, {"odd_padding": "left"}, {"apart_beyond": 0.5}, {"colour": 1}]
)
def test_what_there_is_not_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(MedsegError, match=r"plan\.conventions"):
        Conventions.from_plain(values)


def test_the_coarse_axis_is_that_of_the_first_grid_that_has_one() -> None:
    apart = Conventions(apart_beyond=3.0).apart
    assert apart((1.0, 1.0, 4.0), (1.0, 1.0, 1.0)) == 2
    assert apart((1.0, 1.0, 1.0), (4.0, 1.0, 1.0)) == 0
    assert apart((1.0, 1.0, 4.0), (4.0, 1.0, 1.0)) == 2
    assert apart((1.0, 1.0, 3.0), (1.0, 1.0, 3.0)) is None  # more than three times, not three times
    assert apart((4.0, 1.0, 4.0), (1.0, 1.0, 1.0)) is None  # two coarse axes are none
    assert Conventions().apart((1.0, 1.0, 40.0), (1.0, 1.0, 1.0)) is None
