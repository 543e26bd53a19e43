"""How far stated probabilities can be believed: calibration error, reliability diagram, proper scores. Knows no task and no file.

A *forecast* is a set of events, each with the probability that was stated for it and whether it came true: the likeliest class
was the right one, a class was there, a box was a lesion, a voxel had a label.

- *Expected calibration error* (ECE; Guo et al. 2017, "On Calibration of Modern Neural Networks", §2): mean distance between
  stated probability and observed frequency, over bins of equal width, or of equally many events.
- *ECE if perfect*: frequencies scatter, so that the ECE of few events is above 0 whatever the model. Outcomes are drawn from the
  stated probabilities themselves, event by event; the mean and the central 95 % say what an ECE has to be compared with.
- The *interval of the ECE* is the basic bootstrap over patients (Davison & Hinkley 1997, §5.2), cut at 0: a draw is as far above
  its own sample as the sample is above the truth. In simulations with 400 events and a true ECE of 0.058 it held the truth in
  94 % of samples, the percentiles of the draws (as for means) in 18 %. It takes that bias away and so may end below the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import FEWEST_PATIENTS, Estimate
from medseg.evaluation.shares import share
from medseg.evaluation.temperature import logits_of, surprise
from medseg.volume import Array

ALL = "all"
"""The row of all classes, labels or boxes together."""
BINS = 15
_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Forecast:
    """Events with the probability stated for each, and how good the statements are as a whole.

    Args:
        confidence: ``(N,)`` from 0 to 1.
        correct: ``(N,)`` whether it came true.
        patients: ``(N,)`` whose event it is.
        brier: mean squared distance from what came true (Brier 1950: summed over the classes of a softmax).
        nll: mean negative logarithm of the probability of what came true, in nats.
    """

    confidence: Array
    correct: Array
    patients: Array
    brier: float
    nll: float

    @classmethod
    def of_likeliest(cls, probabilities: Array, truth: Array, patients: Sequence[str] | Array) -> Forecast:
        """Whether the likeliest of exclusive classes was right: probabilities ``(N, K)``, truth ``(N,)`` class indices."""
        probabilities, truth = np.asarray(probabilities, np.float64), np.asarray(truth, np.int64)
        if not len(truth):
            return cls(np.zeros(0), np.zeros(0, bool), np.zeros(0, str), _NAN, _NAN)
        distance = probabilities - (truth[:, None] == np.arange(probabilities.shape[1]))
        nll = surprise(logits_of(probabilities, multilabel=False), truth, multilabel=False)
        right = probabilities.argmax(1) == truth
        return cls(
            probabilities.max(1), right, np.asarray(patients), float((distance**2).sum(1).mean()), float(nll.mean())
        )

    @classmethod
    def of_events(cls, probabilities: Array, happened: Array, patients: Sequence[str] | Array) -> Forecast:
        """Yes or no: probabilities and what happened ``(N,)``, or ``(N, K)`` for K questions of each case, pooled."""
        probabilities, happened = np.asarray(probabilities, np.float64), np.asarray(happened, bool)
        owners = np.repeat(np.asarray(patients), probabilities.shape[1] if probabilities.ndim == 2 else 1)
        p, y = probabilities.ravel(), happened.ravel()
        if not len(y):
            return cls(p, y, owners, _NAN, _NAN)
        nll = surprise(logits_of(p, multilabel=True), y, multilabel=True)
        return cls(p, y, owners, float(((p - y) ** 2).mean()), float(nll.mean()))


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: B bins of confidence, open below and closed above, the first one closed on both sides.

    ``edges`` (B + 1,), ``counts`` (B,), mean ``confidence`` (B,) and ``accuracy`` (B,): NaN in empty bins.
    """

    edges: Array
    counts: Array
    confidence: Array
    accuracy: Array

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over the events of |confidence − accuracy| of their bin; NaN without any."""
        used = self.counts > 0
        gaps = np.abs(self.confidence - self.accuracy)[used]
        return float(np.average(gaps, weights=self.counts[used])) if used.any() else _NAN


def reliability(confidence: Array, correct: Array, bins: int = BINS, *, equal_mass: bool = False) -> Reliability:
    """Sort events into bins of confidence.

    Args:
        confidence: ``(N,)`` from 0 to 1.
        correct: ``(N,)`` whether each came true.
        bins: how many, at least 1.
        equal_mass: bins of about equally many events instead of equal width; equal confidences stay together, so that there
            may be fewer of them.

    Raises:
        MedsegError: shapes or numbers make no sense.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or bins < 1:
        found = f"{confidence.shape}, {correct.shape} and {bins} bins"
        raise MedsegError(
            f"reliability: expected a confidence and an outcome an event (N,), and bins ≥ 1; found {found}"
        )
    if len(confidence) and not (confidence.min() >= 0 and confidence.max() <= 1):
        span = f"{confidence.min():g} to {confidence.max():g}"
        raise MedsegError(
            f"reliability: expected confidences from 0 to 1, found {span}; give probabilities, not logits"
        )
    edges = np.linspace(0.0, 1.0, bins + 1)
    if equal_mass and len(confidence):
        inner = np.quantile(confidence, edges[1:-1], method="inverted_cdf")  # an edge is a confidence that was stated
        edges = np.unique([0.0, *inner, 1.0])
    at = bin_of(confidence, edges)
    counts = np.bincount(at, minlength=len(edges) - 1)
    means = [share(np.bincount(at, values, len(counts)), counts) for values in (confidence, correct)]
    return Reliability(edges, counts, *means)


def bin_of(confidence: Array, edges: Array) -> Array:
    """``(N,)`` the bin of `Reliability` that each confidence lies in."""
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


@dataclass(frozen=True, eq=False)
class Measured:
    """How well a forecast is calibrated.

    Args:
        ece: over bins of equal width, with its 95 % interval over patients (see the module).
        ece_equal_mass: over bins of equally many events.
        brier, nll: of `Forecast`.
        patients: how many there are.
        bins: the reliability diagram, bins of equal width.
    """

    ece: Estimate
    ece_equal_mass: float
    brier: float
    nll: float
    patients: int
    bins: Reliability


def measure(forecast: Forecast, *, samples: int = 1000, seed: int = 0) -> Measured:
    """ECE with its interval, and proper scores.

    Args:
        samples: draws of patients; 0 for none. No interval below five patients.
    """
    confidence, correct = forecast.confidence, forecast.correct
    diagram = reliability(confidence, correct)
    names, owner = np.unique(forecast.patients, return_inverse=True)
    return Measured(
        ece=_ece_with_interval(forecast, diagram, owner, samples, seed),
        ece_equal_mass=reliability(confidence, correct, equal_mass=True).ece,
        brier=forecast.brier,
        nll=forecast.nll,
        patients=len(names),
        bins=diagram,
    )


def _ece_with_interval(forecast: Forecast, diagram: Reliability, owner: Array, samples: int, seed: int) -> Estimate:
    """``owner`` (N,): index of the patient of each event."""
    value, patients = diagram.ece, int(owner.max(initial=-1)) + 1
    if not samples or patients < FEWEST_PATIENTS:
        return Estimate(value, _NAN, _NAN, len(owner))
    gaps = np.zeros((patients, len(diagram.counts)))  # what each adds to Σ (confidence − outcome) of each bin
    np.add.at(gaps, (owner, bin_of(forecast.confidence, diagram.edges)), forecast.confidence - forecast.correct)
    draws = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), samples)
    drawn = np.abs(draws @ gaps).sum(1) / (draws @ np.bincount(owner))
    low, high = (max(0.0, 2 * value - float(end)) for end in np.percentile(drawn, [97.5, 2.5]))
    return Estimate(value, low, high, len(owner))


def ece_if_perfect(confidence: Array, *, samples: int = 1000, seed: int = 0) -> Estimate:
    """Mean and central 95 % of the ECE (bins of equal width) if every stated probability ``(N,)`` were true.

    Args:
        samples: draws of outcomes; 0 for none.
    """
    count = len(confidence)
    if not samples or not count:
        return Estimate(_NAN, _NAN, _NAN, count)
    random, at = np.random.default_rng(seed), bin_of(confidence, np.linspace(0.0, 1.0, BINS + 1))
    likely = confidence.astype(np.float32)
    stated, drawn = np.bincount(at, confidence, BINS), np.empty(samples)
    for draw in range(samples):  # one by one: all draws of many voxels together would not fit in memory
        happened = random.random(count, np.float32) < likely
        drawn[draw] = np.abs(stated - np.bincount(at[happened], minlength=BINS)).sum() / count
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(drawn.mean()), float(low), float(high), count)


@dataclass(frozen=True, eq=False)
class Calibration:
    """The same events as the network stated them and as the model states them.

    Args:
        if_perfect: the ECE that ``after`` has to be compared with: mean and central 95 % if it stated the truth.
        scalings: the (T, b) of each model that had a part in them, each once: one, or one a fold.
        note: what has to be known to read the figures.
    """

    before: Measured
    after: Measured
    if_perfect: Estimate
    scalings: tuple[tuple[float, float], ...]
    note: str = ""

    @property
    def temperature(self) -> float:
        """The mean over the models."""
        return float(np.mean([temperature for temperature, _ in self.scalings])) if self.scalings else 1.0

    @property
    def bias(self) -> float:
        """The mean over the models."""
        return float(np.mean([bias for _, bias in self.scalings])) if self.scalings else 0.0


def compare(
    before: Forecast,
    after: Forecast,
    scalings: Iterable[tuple[float, float]],
    *,
    note: str = "",
    samples: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Measure the same events before and after; ``scalings`` are the (T, b) of the models, in any order, also repeated."""
    first, second = (measure(forecast, samples=samples, seed=seed) for forecast in (before, after))
    perfect = ece_if_perfect(after.confidence, samples=samples, seed=seed)
    return Calibration(first, second, perfect, tuple(sorted(set(scalings))), note)


def check_row_names(names: Iterable[str], own: Sequence[str] = (ALL,)) -> None:
    """Raises MedsegError where a label or class is called like a row that the calibration needs itself."""
    taken = sorted(set(names) & set(own))
    if taken:
        raise MedsegError(
            f"calibration: {', '.join(map(repr, taken))} names a row of calibration.json itself; give the label another name"
        )
