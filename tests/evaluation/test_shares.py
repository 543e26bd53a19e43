"""Ratios and means that are blank where there is nothing to divide by."""

from __future__ import annotations

import numpy as np

from medseg.evaluation.shares import mean_present, share, with_mean

NAN = float("nan")
TABLE = np.array([[1.0, NAN, 3.0], [NAN, NAN, 5.0]])


def test_a_share_of_nothing_is_blank_or_what_is_asked_for() -> None:
    np.testing.assert_array_equal(share(np.array([1, 0, 2]), np.array([2, 0, 4])), [0.5, NAN, 0.5])
    np.testing.assert_array_equal(share(np.array([0.0]), np.array([0.0]), empty=0.0), [0.0])


def test_a_mean_is_over_what_has_a_value() -> None:
    np.testing.assert_array_equal(mean_present(TABLE, 0), [1, NAN, 4])
    np.testing.assert_array_equal(mean_present(TABLE, 1), [2, 5])


def test_a_mean_stands_behind_the_last_entry_of_its_axis() -> None:
    np.testing.assert_array_equal(with_mean(TABLE, 0), [*TABLE, [1, NAN, 4]])
    np.testing.assert_array_equal(with_mean(TABLE, 1)[:, -1], [2, 5])
