from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import estimate_means


def test_the_interval_of_a_normal_sample_is_that_of_theory() -> None:
    values = np.random.default_rng(1).normal(0.8, 0.1, (400, 1))
    (estimate,), _ = estimate_means(values, [str(i) for i in range(400)], samples=4000)
    half = 1.96 * values.std() / 20
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert estimate.high == pytest.approx(values.mean() + half, abs=half * 0.1)


def test_copies_of_a_patients_case_do_not_make_the_mean_surer() -> None:
    values = np.random.default_rng(2).normal(0.8, 0.1, (40, 1))
    patients = [str(i) for i in range(40)]
    (once,), _ = estimate_means(values, patients)
    (often,), _ = estimate_means(np.repeat(values, 5, axis=0), list(np.repeat(patients, 5)))
    assert (often.low, often.high) == (pytest.approx(once.low), pytest.approx(once.high))
    (naive,), _ = estimate_means(np.repeat(values, 5, axis=0), [str(i) for i in range(200)])
    assert naive.high - naive.low < 0.6 * (once.high - once.low)


def test_the_vectorised_draw_equals_drawing_patients_one_by_one() -> None:
    random = np.random.default_rng(3)
    owners = [f"p{i}" for i in random.integers(0, 12, 50)]
    values = random.random((50, 2))
    values[random.random((50, 2)) < 0.2] = np.nan
    columns, overall = estimate_means(values, owners, samples=300, seed=7)
    names = sorted(set(owners))
    draws = np.random.default_rng(7).multinomial(len(names), np.full(len(names), 1 / len(names)), 300)
    means = []
    for draw in draws:
        rows = [
            i
            for name, times in zip(names, draw, strict=True)
            for _ in range(times)
            for i in range(50)
            if owners[i] == name
        ]
        means.append(np.nanmean(values[rows], axis=0))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    assert [c.low for c in columns] == pytest.approx(list(low))
    assert [c.high for c in columns] == pytest.approx(list(high))
    assert (overall.low, overall.high) == pytest.approx(tuple(np.percentile(np.mean(means, axis=1), [2.5, 97.5])))


def test_the_same_seed_gives_the_same_interval_in_any_order() -> None:
    values, patients = np.random.default_rng(4).random((30, 2)), [f"p{i // 2}" for i in range(30)]
    order = np.random.default_rng(5).permutation(30)
    one, two = estimate_means(values, patients), estimate_means(values[order], [patients[i] for i in order])
    assert one[1].low == pytest.approx(two[1].low, abs=1e-12)
    assert estimate_means(values, patients) == one
    assert estimate_means(values, patients, seed=1)[1].low != one[1].low


def test_few_patients_have_a_mean_but_no_interval() -> None:
    (estimate,), overall = estimate_means(np.full((40, 1), 0.5), [f"p{i % 4}" for i in range(40)])
    assert estimate.value == 0.5 and estimate.n == 40
    assert np.isnan([estimate.low, estimate.high, overall.low, overall.high]).all()


def test_blanks_are_left_out_and_an_empty_column_stays_blank() -> None:
    values = np.array([[0.2, np.nan], [0.4, np.nan], [np.nan, np.nan]])
    (first, second), overall = estimate_means(values, ["a", "b", "c"])
    assert first.value == pytest.approx(0.3) and first.n == 2
    assert np.isnan(second.value) and second.n == 0
    assert overall.value == pytest.approx(0.3) and overall.n == 2


def test_no_draws_give_no_interval() -> None:
    (estimate,), _ = estimate_means(np.random.default_rng(0).random((20, 1)), [str(i) for i in range(20)], samples=0)
    assert np.isnan(estimate.low) and not np.isnan(estimate.value)


def test_values_without_owner_are_refused() -> None:
    with pytest.raises(MedsegError, match="a patient a case"):
        estimate_means(np.zeros((3, 1)), ["a"])
    with pytest.raises(MedsegError, match="samples"):
        estimate_means(np.zeros((1, 1)), ["a"], samples=-1)
