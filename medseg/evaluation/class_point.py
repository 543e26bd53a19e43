"""From which probability a class is called: chosen on ``tune``, stored in the model, and never looked for on ``test``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.volume import Array


def choose_thresholds(
    probabilities: Array, truth: Array, classes: Sequence[str], *, exclusive: bool = True
) -> dict[str, float]:
    """Class → probability from which it is called, at the largest sensitivity + specificity − 1 (Youden 1950).

    It lies halfway between the probabilities of two cases, so that those of other cases fall on either side by more than chance.
    Of two classes that exclude each other one threshold is enough: that of the last. Three and more of these need none, as the
    most probable one is called. A class that all or none of the cases show keeps 0.5.

    Args:
        probabilities: ``(N, K)``, calibrated.
        truth: ``(N, K)`` bool.
        exclusive: whether a case has one class.
    """
    if exclusive and len(classes) != 2:
        return {}
    columns = [1] if exclusive else range(len(classes))
    return {classes[k]: _best(probabilities[:, k], np.asarray(truth[:, k], bool)) for k in columns}


def _best(scores: Array, truth: Array) -> float:
    if truth.all() or not truth.any():
        return 0.5
    values, at = np.unique(scores, return_inverse=True)
    cuts = (values[1:] + values[:-1]) / 2
    if not len(cuts):
        return 0.5
    shares = (np.bincount(at, of, len(values)) / of.sum() for of in (truth, ~truth))
    called = [share[::-1].cumsum()[::-1][1:] for share in shares]  # of either kind, from each cut up
    gain = called[0] - called[1]
    best = cuts[gain >= gain.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
