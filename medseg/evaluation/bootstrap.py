"""How sure a mean is: percentile bootstrap over patients. Knows numbers and who they belong to, no metric and no file.

Cases of one patient are not independent, so patients are drawn, each with all cases (a cluster bootstrap; Davison & Hinkley
1997, "Bootstrap Methods and their Application", §3.8). The statistic is the mean over the drawn cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.shares import mean_present, share, with_mean
from medseg.volume import Array

FEWEST_PATIENTS = 5
"""Below this an interval would promise more than the data hold, and is left blank."""


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values with the interval from ``low`` to ``high``; NaN where there is nothing to say."""

    value: float
    low: float
    high: float
    n: int


def estimate_means(
    values: Array, patients: Sequence[str], *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[list[Estimate], Estimate]:
    """The mean of each column with its interval, and the mean of these means.

    The same patients are drawn for all columns. The result does not depend on the order of the rows.

    Args:
        values: ``(N, L)`` float, a row a case, a column a label; NaN is left out.
        patients: ``N`` keys.
        samples: draws; 0 for no interval.
        level: share of the draws that the interval holds.

    Returns:
        An estimate a column, and one of the mean over the columns that have a value; its ``n`` counts rows with a value.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) != len(patients):
        raise MedsegError(
            f"bootstrap: expected (cases, labels) and a patient a case, found {values.shape}, {len(patients)}"
        )
    if samples < 0 or not 0 < level < 1:
        raise MedsegError(f"bootstrap: expected samples ≥ 0 and a level between 0 and 1, found {samples}, {level}")
    names, owner = np.unique(np.asarray(patients, str), return_inverse=True)
    present = ~np.isnan(values)
    sums, counts = np.zeros((len(names), values.shape[1])), np.zeros((len(names), values.shape[1]))
    np.add.at(sums, owner, np.where(present, values, 0.0))
    np.add.at(counts, owner, present)
    means = share(sums.sum(0), counts.sum(0))
    low, high = np.full(len(means) + 1, np.nan), np.full(len(means) + 1, np.nan)
    if samples and len(names) >= FEWEST_PATIENTS:
        draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), samples)
        drawn = with_mean(share(draws @ sums, draws @ counts), axis=1)  # (samples, L + 1)
        enough = [*((counts > 0).sum(0) >= FEWEST_PATIENTS), (counts > 0).any(1).sum() >= FEWEST_PATIENTS]
        tail = 50 * (1 - level)
        low[enough], high[enough] = np.nanpercentile(drawn[:, enough], [tail, 100 - tail], axis=0)
    columns = [
        Estimate(float(means[i]), float(low[i]), float(high[i]), int(present[:, i].sum())) for i in range(len(means))
    ]
    overall = float(mean_present(means, axis=0))
    return columns, Estimate(overall, float(low[-1]), float(high[-1]), int(present.any(1).sum()))
