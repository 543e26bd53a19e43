from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.audit import Audit, permuted, run_audit, step_down
from medseg.evaluation.audit_cases import AuditCases, Measured
from medseg.evaluation.audit_groups import Column
from medseg.evaluation.audit_metrics import figures_of
from medseg.testing.shortcut import ShortcutCase, make_shortcut, shortcut_found


def column(name: str, groups: str) -> Column:
    names = tuple(dict.fromkeys(groups))
    return Column(name, names, np.array([names.index(group) for group in groups]))


def dice_of(values: Sequence[float], patients: Sequence[str] = ()) -> AuditCases:
    once = np.ones(len(values))
    measured = {("dice", "tumour"): Measured(np.asarray(values, float), once, once)}
    return AuditCases(tuple(patients or map(str, range(len(values)))), {}, measured)


def audited(cases: AuditCases, *columns: Column, metrics: Sequence[str] | None = None, **options: Any) -> Audit:
    options = {"permutations": 400, "samples": 0} | options
    return run_audit(cases.patients, columns, figures_of(cases, metrics), **options)


def test_values_counts_and_gap_are_known_by_hand() -> None:
    values = [0.6] * 6 + [0.9] * 5 + [0.5] + [0.1] * 2
    found = audited(dice_of(values), column("site", "A" * 6 + "B" * 6 + "C" * 2), smallest=5, samples=200)
    cells = {cell.group: cell for cell in found.cells}
    assert cells["A"].value == pytest.approx(0.6) and cells["B"].value == pytest.approx(5 / 6)
    assert (cells["A"].low, cells["A"].high) == pytest.approx((0.6, 0.6))
    assert 0.5 < cells["B"].low < 5 / 6 < cells["B"].high <= 0.9
    assert [cells[g].n_patients for g in "ABC"] == [6, 6, 2] and [cells[g].judged for g in "ABC"] == [True, True, False]
    assert np.isnan(cells["C"].low)
    assert found.overall[0].value == pytest.approx(sum(values) / 14)
    (verdict,) = found.verdicts
    assert (verdict.highest, verdict.lowest, verdict.too_small) == ("B", "A", ("C",))
    assert verdict.gap == pytest.approx(5 / 6 - 0.6)


def test_cases_in_no_group_change_nothing_but_their_number() -> None:
    values = [0.6, 0.7, 0.8, 0.5, 0.9, 0.3, 0.2, 0.4, 0.1, 0.35]
    known = audited(dice_of(values), column("site", "A" * 5 + "B" * 5), smallest=5)
    sites = Column("site", ("A", "B"), np.array([0] * 5 + [1] * 5 + [-1] * 3))
    found = audited(dice_of([*values, 1.0, 1.0, 1.0]), sites, smallest=5)
    assert (found.unknown, found.n_cases) == ({"site": 3}, 13)
    assert [(c.group, c.value, c.n_cases) for c in found.cells] == [(c.group, c.value, c.n_cases) for c in known.cells]
    assert found.verdicts[0].gap == known.verdicts[0].gap
    assert found.verdicts[0].p == pytest.approx(known.verdicts[0].p, abs=0.02)


def test_the_p_value_is_that_of_all_arrangements() -> None:
    """5 + 5 cases, of which the highest five are one group: 2 of the 252 arrangements lie as far apart."""
    found = audited(dice_of(np.arange(10) / 10), column("site", "A" * 5 + "B" * 5), smallest=5, permutations=20000)
    (verdict,) = found.verdicts
    assert verdict.p == pytest.approx(2 / 252, abs=0.002)
    assert verdict.p_corrected == verdict.p and verdict.differs


def test_a_group_that_stands_out_is_named_and_not_the_noisiest() -> None:
    random = np.random.default_rng(1)
    values = random.normal(0.8, 0.05, 130)
    values[60:90] -= 0.12  # the third of four sites; the last is small and scatters as all do
    verdict = audited(dice_of(values), column("site", "A" * 30 + "B" * 30 + "C" * 30 + "D" * 30 + "E" * 10)).verdicts[0]
    assert verdict.outlier == "C" and verdict.differs
    assert verdict.value is not None and verdict.others is not None
    assert verdict.others - verdict.value == pytest.approx(0.12, abs=0.03)


def test_what_would_have_been_found_is_found_and_half_of_it_is_not() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0.8, 0.05, 60)
    values[:30] += values[30:].mean() - values[:30].mean()  # no gap at all
    sites = column("site", "A" * 30 + "B" * 30)
    detectable = (audited(dice_of(values), sites).verdicts[0].detectable or {})["A"]
    assert detectable == pytest.approx(1.96 * 0.05 * np.sqrt(2 / 30), rel=0.25)  # two standard errors
    for times, differs in ((1.3, True), (0.5, False)):
        shifted = values + np.repeat([times * detectable, 0], 30)
        assert audited(dice_of(shifted), sites).verdicts[0].differs is differs


def test_groups_of_one_patient_are_listed_and_nothing_is_claimed() -> None:
    found = audited(dice_of(np.linspace(0, 1, 21)), column("site", "A" * 20 + "B"))
    assert [(cell.group, cell.judged, cell.n_patients) for cell in found.cells] == [("A", True, 20), ("B", False, 1)]
    (verdict,) = found.verdicts
    assert verdict.differs is None and verdict.p is None and verdict.too_small == ("B",)
    assert found.differences == []


def test_ten_cases_of_one_patient_are_one_patient() -> None:
    patients = [f"p{i}" for i in range(20)] + ["many"] * 10
    cases = dice_of([0.8] * 20 + [0.1] * 10, patients)
    cells = audited(cases, column("site", "A" * 20 + "B" * 10)).cells
    assert (cells[1].n_cases, cells[1].n_patients, cells[1].judged) == (10, 1, False)


def test_ranking_is_judged_where_both_kinds_of_patients_are_enough() -> None:
    random = np.random.default_rng(0)
    truth = np.array([1] * 4 + [0] * 20 + [1] * 5 + [0] * 19)
    probability = np.clip(random.normal(0.4 + 0.2 * truth, 0.1), 0, 1)
    measured = {("probability", "ill"): Measured(probability, truth.astype(float), (probability > 0.5).astype(float))}
    cases = AuditCases(tuple(map(str, range(48))), {}, measured)
    found = audited(cases, column("site", "A" * 24 + "B" * 24), metrics=["auroc", "ece"])
    assert [(cell.metric, cell.group, cell.judged) for cell in found.cells] == [
        *(("auroc", "A", False), ("auroc", "B", True), ("ece", "A", True), ("ece", "B", True))
    ]


def test_all_cases_of_a_patient_get_the_name_of_one_other() -> None:
    owner = np.array([0, 0, 0, 1, 2, 2, 3])
    given = permuted(np.array([0, 0, 0, 0, 1, 1, 1]), owner, *_keys(300, 4, 7))
    assert given[0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert (
        (given[:, 0] == given[:, 1]).all() and (given[:, 0] == given[:, 2]).all() and (given[:, 4] == given[:, 5]).all()
    )
    assert (given[:, [0, 3, 4, 6]].sum(axis=1) == 2).all()  # two patients of each group
    assert given[1:, 0].mean() == pytest.approx(0.5, abs=0.1)


def test_a_patient_of_several_groups_shuffles_its_own_cases() -> None:
    of_case, owner = np.array([0, 1, 1, 0, 1, -1]), np.array([0, 0, 0, 1, 2, 0])
    given = permuted(of_case, owner, *_keys(300, 3, 6))
    assert (np.sort(given[:, :3], axis=1) == [0, 1, 1]).all()
    assert (given[1:, 0] == 0).mean() == pytest.approx(1 / 3, abs=0.1)
    assert (given[:, 3] + given[:, 4] == 1).all() and 0.3 < (given[1:, 3] == 0).mean() < 0.7
    assert (given[:, 5] == -1).all()


def test_patients_with_cases_in_several_groups_are_counted() -> None:
    patients = [f"p{i // 2}" for i in range(40)]
    found = audited(
        dice_of(np.tile([0.9, 0.5], 20), patients), column("scanner", "AB" * 20), column("site", "C" * 20 + "D" * 20)
    )
    assert found.mixed == {"scanner": 20, "site": 0}
    scanner, site = found.verdicts
    assert scanner.differs and scanner.p == pytest.approx(1 / 401)  # within every patient
    assert site.differs is False and site.gap == pytest.approx(0)


def test_correction_is_by_the_largest_statistic_of_each_permutation() -> None:
    """Three comparisons, four permutations beside the observed row; by hand, step by step."""
    statistics = np.array([[2.0, 1.0, 3.0, 0.0, 0.0], [5.0, 1.0, 1.0, 1.0, 6.0], [0.5, 4.0, 0.0, 0.0, 0.0]])
    # the strongest against the largest of all three, the next against the largest of the other two, the last alone
    assert step_down(statistics) == pytest.approx([3 / 5, 2 / 5, 3 / 5])


def test_questions_that_are_one_cost_nothing_and_different_ones_do() -> None:
    random = np.random.default_rng(3)
    values = random.normal(0, 1, 60)
    sites = column("site", "A" * 30 + "B" * 30)
    twice = Column("centre", sites.groups, sites.of_case)
    others = [Column(f"c{i}", ("x", "y"), random.integers(0, 2, 60)) for i in range(6)]
    alone, copied, many = (
        audited(dice_of(values), *columns).verdicts[0] for columns in ([sites], [sites, twice], [sites, *others])
    )
    assert alone.p == copied.p == many.p
    assert copied.p_corrected == alone.p_corrected < (many.p_corrected or 0)


def test_the_same_seed_gives_the_same_audit_whatever_the_order_of_the_cases() -> None:
    random = np.random.default_rng(0)
    values, sites, turn = random.random(40), column("site", "AB" * 20), random.permutation(40)
    cases = dice_of(values)
    turned = dice_of(values[turn], [cases.patients[at] for at in turn])
    one = audited(cases, sites, samples=100)
    other = audited(turned, Column("site", sites.groups, sites.of_case[turn]), samples=100)
    for cell, again in zip(one.cells, other.cells, strict=True):
        assert (cell.value, cell.low, cell.high) == pytest.approx((again.value, again.low, again.high))
    assert one.verdicts[0].p_corrected == other.verdicts[0].p_corrected
    assert audited(cases, sites, samples=100) == one


def test_equal_values_everywhere_are_no_difference() -> None:
    (verdict,) = audited(dice_of([1 / 3] * 40), column("site", "AB" * 20)).verdicts
    assert verdict.differs is False and verdict.p == 1


@pytest.mark.parametrize("options", [{"smallest": 1}, {"permutations": 10}, {"samples": -1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(MedsegError, match="expected smallest ≥ 5"):
        audited(dice_of([1.0]), column("site", "A"), **options)


def of_network(shown: Sequence[ShortcutCase], seed: int, *, shortcut: bool) -> tuple[AuditCases, Column]:
    """Probabilities as of a network that measures the spot and, where it learned it, trusts the marker."""
    random = np.random.default_rng([seed, 1])
    spot, truth = np.array([case.contrast for case in shown]), np.array([case.diseased for case in shown])
    marked = np.array([case.marked and shortcut for case in shown])
    logit = 0.119 * (spot - 46) + random.normal(0, 0.3, len(shown))
    probability = 1 / (1 + np.exp(-np.where(marked, 5 + logit, logit)))
    called = (probability >= 0.5).astype(float)
    rows = {
        ("probability", "diseased"): Measured(probability, truth.astype(float), called),
        ("probability", "healthy"): Measured(1 - probability, 1.0 - truth, 1 - called),
    }
    cases = AuditCases(tuple(case.patient for case in shown), {}, rows)
    return cases, column("site", "".join(case.site for case in shown))


def test_the_planted_shortcut_is_found_and_its_absence_is_no_alarm() -> None:
    found, alarms = 0, 0
    for seed in range(12):
        shown = [make_shortcut(seed, index) for index in range(120)]
        for shortcut in (True, False):
            cases, sites = of_network(shown, seed, shortcut=shortcut)
            alarm = shortcut_found(audited(cases, sites, permutations=199))
            found, alarms = found + (alarm and shortcut), alarms + (alarm and not shortcut)
    assert found >= 11
    assert alarms <= 2  # three or more of twelve at a level of 0.05 happen in 2 % of runs


def _keys(count: int, patients: int, cases: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.random((count, patients)), random.random((count, cases))
