from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.explain.pointing import REACH, centre_distance, energy, pointing_hit, surroundings

MASK = np.zeros((20, 30), bool)
MASK[5:9, 10:20] = True


def test_a_map_equal_to_the_mask_has_all_its_energy_there() -> None:
    assert energy(MASK.astype(float), MASK) == 1
    assert energy(MASK * 2.5, surroundings(MASK)) == 1
    assert energy(1.0 - MASK, MASK) == 0
    assert centre_distance(MASK.astype(float), MASK) == 0


def test_a_uniform_map_has_the_share_of_the_area() -> None:
    assert energy(np.ones(MASK.shape), MASK) == pytest.approx(40 / 600)
    assert pointing_hit(np.ones(MASK.shape), MASK) == pytest.approx(40 / 600)


def test_only_the_positive_part_counts() -> None:
    heat = np.where(MASK, 1.0, -5.0)
    heat[0, 0] = 40
    assert energy(heat, MASK) == pytest.approx(0.5)


def test_near_is_a_distance_in_the_unit_of_the_spacing() -> None:
    dot = np.zeros((9, 9, 9), bool)
    dot[4, 4, 4] = True
    assert surroundings(dot, spacing=(REACH,) * 3).sum() == 7
    assert surroundings(dot, spacing=(REACH, REACH, 2 * REACH)).sum() == 5
    assert surroundings(dot, spacing=(2 * REACH,) * 3).sum() == 1


def test_the_highest_value_hits_or_misses() -> None:
    heat = np.zeros(MASK.shape)
    heat[3, 9] = 2
    assert pointing_hit(heat, MASK) == 0 and pointing_hit(heat, surroundings(MASK, spacing=(REACH / 3,) * 2)) == 1
    heat[6, 12] = 2  # one of two highest values
    assert pointing_hit(heat, MASK) == 0.5


def test_centres_are_apart_by_a_length() -> None:
    heat = np.zeros((20, 30))
    heat[9, 18] = 1
    one = np.zeros((20, 30), bool)
    one[6, 14] = True
    assert centre_distance(heat, one) == pytest.approx(5)
    assert centre_distance(heat, one, spacing=(2, 0.5)) == pytest.approx(np.hypot(6, 2))


def test_a_map_that_points_nowhere_gains_nothing() -> None:
    for heat in (np.zeros(MASK.shape), -np.ones(MASK.shape)):
        assert energy(heat, MASK) == 0 and pointing_hit(heat, MASK) == 0
        assert np.isnan(centre_distance(heat, MASK))


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(MedsegError, match="found an empty one"):
        surroundings(np.zeros((3, 3), bool))
