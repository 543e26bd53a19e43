"""The draws of a bootstrap over patients, for figures that are no means. Knows who a case belongs to, and no figure.

Patients are drawn with all their cases (a cluster bootstrap; Davison & Hinkley 1997, §3.8), the same ones for the same seed
whatever is measured: two predictors that are measured on the same draws are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from medseg.volume import Array

_NUMBERS = 4_000_000
"""Of a block of weights: 32 MB, so that a large cohort needs no more memory than a small one."""


def case_weights(owner: Array, samples: int, seed: int = 0) -> Iterator[Array]:
    """Blocks ``(S, N)`` of whole numbers, how often each case counts in a draw; ``samples`` rows in all, none without a case.

    Args:
        owner: ``(N,)`` as of `owners`.
    """
    if not len(owner):
        return
    patients, rows = int(owner.max()) + 1, max(1, _NUMBERS // len(owner))
    random, shares = np.random.default_rng(seed), np.full(patients, 1 / patients)
    for first in range(0, samples, rows):
        yield random.multinomial(patients, shares, min(rows, samples - first))[:, owner]


def owners(patients: Sequence[str]) -> Array:
    """``(N,)`` the position of each case's patient among all patients by name: draws do not depend on the order of cases."""
    return np.unique(np.asarray(patients, str), return_inverse=True)[1].ravel()
