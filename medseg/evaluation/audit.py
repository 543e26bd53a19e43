"""For whom is it wrong? Every figure in every group of cases, and whether a group stands out beyond chance.

**Values** are of the cases of a group, with bootstrap intervals over its patients. A group is judged where `smallest`
patients hold what the figure is measured on, and five of them each thing that it cannot do without (AUROC: diseased, and others);
smaller ones are listed and left out of what follows.

**The test** asks whether the name of the group says anything about a case, and gives the names to other patients at random.
For each group the figure is compared with that of the other judged groups together (their mean, weighted by what they rest on),

    z = (value − others) · √(s · S / (s + S)),   s, S: what the group and the others rest on,

brought to mean 0 and deviation 1 over the permutations. The statistic of a column is its largest |z|. Unlike the largest gap
between two groups it is not ruled by the noise of the smallest ones, unlike a sum of squares over groups it says which of them
stands out and loses little where only one does, and the mean over permutations takes off the bias of figures such as ECE that
are higher in small groups.

**All comparisons together**: the same permutations serve all columns and figures, and p-values are corrected by the step-down
max-T procedure (Westfall & Young 1993, "Resampling-Based Multiple Testing", §2.6), which keeps what figures have in common.

**A patient's cases stay together**: all of them are given the name of another patient. A patient with cases in several groups
counts with each case in its own, and shuffles the names among its own cases.

Reads and draws nothing; `medseg.evaluation.audit_words` says it in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.audit_groups import NOWHERE, Column
from medseg.evaluation.audit_metrics import Figure
from medseg.evaluation.bootstrap import FEWEST_PATIENTS
from medseg.evaluation.draws import case_weights, owners
from medseg.volume import Array

LEVEL = 0.05
"""A corrected p below it is a difference: the chance of a single false alarm in a whole audit without any difference."""

SAMPLES = 1000
_FEWEST_PERMUTATIONS = 99  # so that p can fall below LEVEL at all
_ROUNDING = 1e-9
_AT_ONCE = 100_000
"""Weights of cases that are looked at together."""


@dataclass(frozen=True)
class Cell:
    """A figure of a group. ``n_cases`` and ``n_patients`` count those that hold something of what it is measured on."""

    column: str
    group: str
    metric: str
    label: str
    value: float
    low: float
    high: float
    n_cases: int
    n_patients: int
    judged: bool


@dataclass(frozen=True)
class Verdict:
    """Whether the groups of a column differ in a figure; with fewer than two judged groups only the names are given.

    Args:
        judged, too_small: names of groups.
        highest, lowest: the judged groups with these values; ``gap`` lies between them.
        outlier: the judged group that stands out most; ``value`` is its own and ``others`` that of the rest.
        p, p_corrected: of this question alone, and with all others that were asked.
        differs: whether ``p_corrected`` is below `LEVEL`; None where nothing could be judged.
        detectable: judged group → how far it would have had to lie from the others to be found.
    """

    column: str
    metric: str
    label: str
    judged: tuple[str, ...]
    too_small: tuple[str, ...]
    highest: str | None = None
    lowest: str | None = None
    gap: float | None = None
    outlier: str | None = None
    value: float | None = None
    others: float | None = None
    p: float | None = None
    p_corrected: float | None = None
    differs: bool | None = None
    detectable: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Audit:
    """What was found: ``overall`` a cell a figure, ``cells`` a cell a figure and group, ``verdicts`` one a column and figure.

    ``mixed`` counts for each column the patients with cases in several of its groups, ``unknown`` the cases that are in none;
    ``biased`` names the metrics that are higher in smaller groups by themselves. ``folds`` have a model each.
    """

    overall: tuple[Cell, ...]
    cells: tuple[Cell, ...]
    verdicts: tuple[Verdict, ...]
    mixed: Mapping[str, int]
    n_cases: int
    n_patients: int
    smallest: int
    permutations: int
    seed: int
    biased: tuple[str, ...] = ()
    unknown: Mapping[str, int] = field(default_factory=dict)
    folds: int = 1

    @property
    def differences(self) -> list[Verdict]:
        """The verdicts that say that groups differ, the surest first."""
        return sorted((v for v in self.verdicts if v.differs), key=lambda v: (v.p_corrected, v.p))


def run_audit(
    patients: Sequence[str],
    columns: Sequence[Column],
    figures: Sequence[Figure],
    *,
    smallest: int = 10,
    permutations: int = 2000,
    samples: int = SAMPLES,
    seed: int = 0,
    folds: int = 1,
) -> Audit:
    """Measure every figure in every group and test every column.

    Args:
        patients: the patient of each of the ``N`` cases that ``columns`` and ``figures`` are about.
        smallest: patients that a group needs to be judged.
        samples: bootstrap draws; 0 for no intervals.
        folds: how many models the cases were predicted by, each its own.

    Raises:
        MedsegError: options make no sense.
    """
    if smallest < FEWEST_PATIENTS or permutations < _FEWEST_PERMUTATIONS or samples < 0:
        raise MedsegError(
            f"audit: expected smallest ≥ {FEWEST_PATIENTS} patients, permutations ≥ {_FEWEST_PERMUTATIONS} and draws ≥ 0; found "
            f"{smallest}, {permutations} and {samples}"
        )
    owner = owners(patients)
    count = int(owner.max()) + 1
    random = np.random.default_rng(seed)
    # The same random numbers for all columns, so that what columns have in common is kept.
    keys = random.random((permutations, count)), random.random((permutations, len(owner)))
    how = (owner, smallest, samples, seed)
    overall = [cell for row in _cells(Column.everything(len(owner)), figures, *how) for cell in row]
    cells: list[Cell] = []
    tests: list[_Test] = []
    for column in columns:
        of_column = _cells(column, figures, *how)
        cells += [cell for row in of_column for cell in row]
        judged = np.array([any(cell.judged for cell in of_group) for of_group in zip(*of_column, strict=True)])
        of_case = np.where(
            np.append(judged, False)[column.of_case], column.of_case, NOWHERE
        )  # the last is that of none
        given = permuted(of_case, owner, *keys)
        tests += [_test(column, figure, row, given) for figure, row in zip(figures, of_column, strict=True)]
    return Audit(
        tuple(overall),
        tuple(cells),
        tuple(_verdicts(tests)),
        {column.name: int(_is_mixed(column.of_case, owner).sum()) for column in columns},
        len(owner),
        count,
        smallest,
        permutations,
        seed,
        tuple(dict.fromkeys(figure.metric for figure in figures if figure.biased)),
        {column.name: column.unknown for column in columns},
        folds,
    )


def permuted(of_case: Array, owner: Array, patient_keys: Array, case_keys: Array) -> Array:
    """``(R + 1, N)`` groups of the cases: as they are, then given to others at random.

    Args:
        of_case: ``(N,)`` group of each case, −1 for one that stays out.
        owner: ``(N,)`` index of its patient.
        patient_keys, case_keys: ``(R, patients)`` and ``(R, N)`` random numbers from 0 to below 1, whose order is what is drawn.
    """
    given = np.tile(of_case, (len(patient_keys) + 1, 1))
    in_test = of_case >= 0
    mixed = _is_mixed(of_case, owner)
    whole = np.flatnonzero(in_test & ~mixed[owner])
    if len(whole):
        who, first, place = np.unique(owner[whole], return_index=True, return_inverse=True)
        given[1:, whole] = of_case[whole][first][np.argsort(patient_keys[:, who], axis=1)][:, place]
    own = np.flatnonzero(in_test & mixed[owner])
    own = own[np.argsort(owner[own], kind="stable")]  # then sorting by owner + key shuffles within each owner
    if len(own):
        given[1:, own] = of_case[own][np.argsort(owner[own] + case_keys[:, own], axis=1)]
    return given


def step_down(statistics: Array) -> Array:
    """``(K,)`` p-values corrected for ``K`` comparisons.

    Args:
        statistics: ``(K, R + 1)`` the observed one first, then those of the permutations, the same in every row.
    """
    order = np.argsort(-statistics[:, 0], kind="stable")
    largest = np.maximum.accumulate(statistics[order][::-1], axis=0)[::-1]  # over this comparison and all weaker ones
    corrected = np.empty(len(statistics))
    corrected[order] = np.maximum.accumulate(_p_values(largest, statistics[order, :1]))
    return corrected


def _p_values(statistics: Array, observed: Array) -> Array:
    """The share of ``(K, R + 1)`` that reaches ``observed`` ``(K, 1)``, which is among them."""
    share: Array = (statistics >= observed - _ROUNDING).mean(axis=1)
    return share


def _is_mixed(of_case: Array, owner: Array) -> Array:
    """``(patients,)`` whether a patient has cases in several groups; −1 is none."""
    there = np.zeros((owner.max() + 1, of_case.max() + 2), bool)
    there[owner, of_case] = True  # −1 is the last column
    mixed: Array = there[:, :-1].sum(axis=1) > 1
    return mixed


def _cells(
    column: Column, figures: Sequence[Figure], owner: Array, smallest: int, samples: int, seed: int
) -> list[list[Cell]]:
    """A row a figure, a cell a group; the patients of a group are drawn, each with all cases that it has there."""
    rows: list[list[Cell]] = [[] for _ in figures]
    for at, group in enumerate(column.groups):
        member = column.of_case == at
        place = np.unique(owner[member], return_inverse=True)[1]
        draws = list(case_weights(place, samples, seed))
        for row, figure in zip(rows, figures, strict=True):
            own = figure.only(member)
            evidence = own.evidence
            some = evidence.any(axis=1)
            n_patients = len(np.unique(place[some]))
            firm = min(len(np.unique(place[kind])) for kind in evidence.T) >= FEWEST_PATIENTS
            value = float(own.measure(np.ones((1, len(place))))[0][0])
            interval = _interval(own, value, draws) if draws and firm else (math.nan, math.nan)
            names = (column.name, group, figure.metric, figure.label)
            row.append(Cell(*names, value, *interval, int(some.sum()), n_patients, firm and n_patients >= smallest))
    return rows


def _interval(figure: Figure, value: float, draws: Sequence[Array]) -> tuple[float, float]:
    """95 %: the percentiles of the draws, or (`medseg.evaluation.calibration` says why) the basic interval, cut at 0."""
    low, high = np.nanpercentile(np.concatenate([figure.measure(block)[0] for block in draws]), [2.5, 97.5])
    return (max(0.0, 2 * value - high), max(0.0, 2 * value - low)) if figure.biased else (float(low), float(high))


@dataclass(frozen=True, eq=False)
class _Test:
    """One column and figure: what is known without the other tests, the statistic, and how far one z reaches."""

    verdict: Verdict
    statistic: Array | None = None  # (R + 1,)
    reach: Array | None = None  # (judged groups,)


def _test(column: Column, figure: Figure, cells: Sequence[Cell], given: Array) -> _Test:
    judged = [group for group, cell in enumerate(cells) if cell.judged]
    too_small = tuple(cell.group for cell in cells if not cell.judged)
    names = tuple(cells[group].group for group in judged)
    heard = (column.name, figure.metric, figure.label, names, too_small)
    if len(judged) < 2:
        return _Test(Verdict(*heard))
    values, rests = np.stack([_measured(figure, given, group) for group in judged], axis=1)  # (groups, R + 1) each
    others, scale = _others(values, rests)
    z = (values - others) * scale
    mean, deviation = np.nanmean(z, axis=1, keepdims=True), np.nanstd(z, axis=1, keepdims=True)
    firm = deviation > _ROUNDING * (1 + np.abs(mean))
    z = np.nan_to_num(np.divide(z - mean, deviation, out=np.zeros_like(z), where=firm))
    at, high, low = int(np.abs(z[:, 0]).argmax()), int(values[:, 0].argmax()), int(values[:, 0].argmin())
    verdict = Verdict(
        *heard,
        highest=names[high],
        lowest=names[low],
        gap=float(values[high, 0] - values[low, 0]),
        outlier=names[at],
        value=float(values[at, 0]),
        others=float(others[at, 0]),
    )
    return _Test(verdict, np.abs(z).max(axis=0), deviation[:, 0] / scale[:, 0])


def _measured(figure: Figure, given: Array, group: int) -> Array:
    """``(2, R + 1)`` the figure of a group and what it rests on, a few permutations at a time: they fit in the cache."""
    parts = np.array_split(given, -(-given.size // _AT_ONCE))
    return np.concatenate([figure.measure((part == group).astype(float)) for part in parts], axis=1)


def _others(values: Array, rests: Array) -> tuple[Array, Array]:
    """``(G, R)`` the mean of the other groups, weighted by what they rest on, and the scale of a difference from it.

    NaN where either side has nothing to measure.
    """
    rests = np.where(np.isnan(values), 0.0, rests)
    product = np.where(rests > 0, values, 0.0) * rests
    beside = rests.sum(0) - rests
    both = np.where((rests > 0) & (beside > _ROUNDING), rests * beside / np.maximum(rests + beside, _ROUNDING), np.nan)
    return (product.sum(0) - product) / np.where(beside > _ROUNDING, beside, np.nan), np.sqrt(both)


def _verdicts(tests: Sequence[_Test]) -> list[Verdict]:
    """Each with its p-values, corrected for all tests together."""
    made = [(test.statistic, test.reach) for test in tests if test.statistic is not None and test.reach is not None]
    if not made:
        return [test.verdict for test in tests]
    statistics = np.stack([statistic for statistic, _ in made])
    alone, corrected = _p_values(statistics, statistics[:, :1]), step_down(statistics)
    critical = float(np.quantile(statistics.max(axis=0), 1 - LEVEL))
    results = iter(zip(alone, corrected, (reach for _, reach in made), strict=True))
    verdicts = []
    for test in tests:
        if test.statistic is None:
            verdicts.append(test.verdict)
            continue
        p, p_corrected, reach = next(results)
        verdicts.append(_concluded(test.verdict, float(p), float(p_corrected), critical * reach))
    return verdicts


def _concluded(verdict: Verdict, p: float, p_corrected: float, far: Array) -> Verdict:
    detectable = {name: float(gap) for name, gap in zip(verdict.judged, far, strict=True)}
    return replace(verdict, p=p, p_corrected=p_corrected, differs=p_corrected < LEVEL, detectable=detectable)
