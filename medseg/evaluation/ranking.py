"""The found boxes of all cases in one line by falling score, and what can be read off it: average precision and FROC.

Every figure takes a weight a case, so that a bootstrap draw is a vector of whole numbers and nothing is matched again. Nothing
here knows a grid, a file or a patient.

- *Average precision*: the mean over 101 recalls 0, 0.01 … 1 of the highest precision at that recall or above (COCO; equal to
  `pycocotools` in 2D). Boxes of equal score count in the order of the cases, as there.
- *FROC*: sensitivity against false positives a scan as the threshold falls; boxes of equal score fall together. At a given rate
  the sensitivity is that of the lowest threshold that keeps to the rate: a step, nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.volume import Array

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class Matched:
    """The boxes of one label in one case: ``scores`` (P,) falling, ``partners`` (T, P) true box or -1, ``true`` boxes."""

    scores: Array
    partners: Array
    true: int


@dataclass(frozen=True, eq=False)
class Ranking:
    """The boxes of one label in all cases.

    Args:
        scores: ``(B,)`` falling.
        cases: ``(B,)`` index of the case that each box is in.
        hits: ``(T, B)`` whether it is a true lesion, at each of T overlaps.
        lesions: ``(N,)`` true lesions of each case.
    """

    scores: Array
    cases: Array
    hits: Array
    lesions: Array

    @classmethod
    def of(cls, matched: Sequence[Matched]) -> Ranking:
        """Pool at least one case."""
        scores = np.concatenate([m.scores for m in matched])
        order = np.argsort(-scores, kind="stable")
        cases = np.repeat(np.arange(len(matched)), [len(m.scores) for m in matched])
        hits = np.concatenate([m.partners >= 0 for m in matched], axis=1)
        return cls(scores[order], cases[order], hits[:, order], np.array([m.true for m in matched]))

    @property
    def every_case_once(self) -> Array:
        """The weights that are no draw."""
        return np.ones(len(self.lesions), np.int64)

    def average_precisions(self, weights: Array) -> Array:
        """``(T,)`` average precision at each overlap; NaN where there is no lesion.

        Args:
            weights: ``(N,)`` how often each case counts.
        """
        lesions = int(weights @ self.lesions)
        if not lesions:
            return np.full(len(self.hits), np.nan)
        counts = weights[self.cases]
        found = np.cumsum(counts)
        values = np.zeros(len(self.hits))
        for t, hits in enumerate(self.hits):
            at = np.flatnonzero(hits & (counts > 0))  # precision falls everywhere else
            if len(at):
                true = np.cumsum(counts[at])
                highest = np.maximum.accumulate((true / found[at])[::-1])[::-1]
                reached = np.searchsorted(true / lesions, RECALLS)
                values[t] = np.append(highest, 0.0)[reached].mean()
        return values

    def froc(self, overlap: int, weights: Array) -> tuple[Array, Array]:
        """False positives a scan and sensitivity, both from 0 and rising, at each distinct score, after the point of no box.

        Args:
            overlap: which of the T overlaps.
            weights: ``(N,)`` how often each case counts; cases without lesion are scans too.
        """
        counts, hits = weights[self.cases], self.hits[overlap]
        ends = np.flatnonzero(np.diff(self.scores, append=-np.inf))
        false = np.append(0, np.cumsum(counts * ~hits)[ends]) / max(int(weights.sum()), 1)
        lesions = int(weights @ self.lesions)
        true = np.append(0, np.cumsum(counts * hits)[ends])
        return false, true / lesions if lesions else np.full(len(true), np.nan)

    def sensitivities(self, overlap: int, rates: Sequence[float], weights: Array) -> Array:
        """``(R,)`` sensitivity at each number of false positives a scan; NaN where there is no lesion."""
        false, sensitivity = self.froc(overlap, weights)
        return sensitivity[np.searchsorted(false, rates, side="right") - 1]

    def threshold(self, overlap: int, rate: float) -> float:
        """The lowest score that keeps to ``rate`` false positives a scan; above every score if none does.

        Where all boxes together keep to it this is the lowest score that was seen, and 0 where there was no box.
        """
        false, _ = self.froc(overlap, self.every_case_once)
        last = int(np.searchsorted(false, rate, side="right")) - 1
        if not len(self.scores):
            return 0.0
        distinct = self.scores[np.flatnonzero(np.diff(self.scores, append=-np.inf))]
        return float(distinct[last - 1]) if last else float(np.nextafter(self.scores[0], np.inf))

    def precision_recall(self, overlap: int) -> tuple[Array, Array]:
        """Recall and precision at each distinct score."""
        ends = np.flatnonzero(np.diff(self.scores, append=-np.inf))
        true = np.cumsum(self.hits[overlap])[ends]
        lesions = int(self.lesions.sum())
        return true / lesions if lesions else np.full(len(true), np.nan), true / (ends + 1)
