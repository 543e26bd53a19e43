"""The one number, or the two, that make a network's probabilities believable: temperature scaling. Knows arrays only.

Logits are divided by a temperature T that is chosen by likelihood (Guo et al. 2017, "On Calibration of Modern Neural Networks",
§4.2). Above 1 it takes confidence away; the order of the classes never changes. Scores of boxes have a bias b beside it,
sigmoid(logit / T + b): the line of Platt (1999). Both are held by a weak prior, so that a `tune` without a single error does not
end in T = 0.
"""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from medseg.errors import all_at_once
from medseg.volume import Array

SMALLEST = 1e-7
"""The nearest to 0 and 1 that a probability is taken to be: what float32 still tells apart from 1."""
_FURTHEST = 3.0
"""The natural logarithm of T is sought between minus this and this (T from 1/20 to 20)."""
_BIAS_SPREAD = 3.0
"""Standard deviation of the prior of b: no hit among n boxes then reads as about 1 in n, near to Platt's smoothed targets."""


def probabilities_of(
    logits: Array, *, multilabel: bool, temperature: Array | float = 1.0, bias: Array | float = 0.0
) -> Array:
    """Softmax over the last axis of ``logits / temperature``, or the sigmoid of each plus ``bias`` (``multilabel``); float64.

    Args:
        logits: ``(…, K)``.
        temperature: above 0, one or as many as broadcast.
        bias: on the scale of logits; only a sigmoid feels it.
    """
    scaled = np.asarray(logits, np.float64) / temperature + bias
    return special.expit(scaled) if multilabel else special.softmax(scaled, axis=-1)


def logits_of(probabilities: Array, *, multilabel: bool) -> Array:
    """Logits ``(…, K)`` that have these probabilities, the inverse of `probabilities_of`; of a softmax those without offset.

    Probabilities are taken to be `SMALLEST` away from 0 and 1 at least.
    """
    inside = np.clip(np.asarray(probabilities, np.float64), SMALLEST, 1 - SMALLEST)
    return special.logit(inside) if multilabel else np.log(inside)


def fit_temperature(logits: Array, truth: Array, *, multilabel: bool = False) -> float:
    """The T by which logits are divided so that ``truth`` is likeliest, ln T having the prior N(0, 1).

    Args:
        logits: ``(N, K)``.
        truth: ``(N,)`` index of the class, or ``(N, K)`` 0 or 1 (``multilabel``).

    Returns:
        T > 0; 1 where there is nothing to fit.

    Raises:
        MedsegError: shapes, classes or numbers make no sense.
    """
    logits, truth = _checked(logits, truth, multilabel)
    if not logits.size:
        return 1.0

    def cost(log_t: float) -> float:
        return float(surprise(logits / np.exp(log_t), truth, multilabel=multilabel).sum()) + log_t**2 / 2

    found = optimize.minimize_scalar(cost, bounds=(-_FURTHEST, _FURTHEST), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def fit_line(logits: Array, happened: Array) -> tuple[float, float]:
    """T and b of sigmoid(logit / T + b), so that what happened is likeliest (Platt 1999, "Probabilistic Outputs for SVMs").

    ln T has the prior N(0, 1), b N(0, 3²) in place of Platt's smoothed targets. T is positive, so that scores keep their order.

    Args:
        logits: ``(N,)``.
        happened: ``(N,)`` 0 or 1.

    Raises:
        MedsegError: shapes or numbers make no sense.
    """
    logits, happened = _checked(np.asarray(logits)[:, None], np.asarray(happened)[:, None], True)
    if not logits.size:
        return 1.0, 0.0

    def cost(line: Array) -> float:
        scaled = logits / np.exp(line[0]) + line[1]
        prior = line[0] ** 2 / 2 + (line[1] / _BIAS_SPREAD) ** 2 / 2
        return float(surprise(scaled, happened, multilabel=True).sum() + prior)

    limits = [(-_FURTHEST, _FURTHEST), (None, None)]
    found = optimize.minimize(cost, np.zeros(2), method="L-BFGS-B", bounds=limits)
    return float(np.exp(found.x[0])), float(found.x[1])


def surprise(logits: Array, truth: Array, *, multilabel: bool) -> Array:
    """Negative logarithm of the probability of what is true: ``(N,)``, or ``(N, K)`` of every class (``multilabel``)."""
    if multilabel:
        return np.logaddexp(0.0, logits) - truth * logits
    return special.logsumexp(logits, axis=1) - logits[np.arange(len(truth)), truth]


def _checked(logits: Array, truth: Array, multilabel: bool) -> tuple[Array, Array]:
    logits, truth = np.asarray(logits, np.float64), np.asarray(truth)
    problems = []
    if logits.ndim != 2 or truth.shape != (logits.shape if multilabel else logits.shape[:1]):
        wanted = "(N, K), one 0 or 1 a class" if multilabel else "(N,), the index of a class a case"
        problems.append(f"expected logits (N, K) and a truth {wanted}; found {logits.shape} and {truth.shape}")
    elif len(truth) and not (truth.min() >= 0 and truth.max() <= (highest := 1 if multilabel else logits.shape[1] - 1)):
        problems.append(f"expected a truth of whole numbers from 0 to {highest}, found {truth.min()} to {truth.max()}")
    if not np.isfinite(logits).all():
        problems.append(f"{int((~np.isfinite(logits)).sum())} of {logits.size} logits are not finite")
    if problems:
        raise all_at_once("calibration: these outputs and truths cannot be compared; mend what was given:", problems)
    return logits, truth.astype(np.float64 if multilabel else np.int64)
