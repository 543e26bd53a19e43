"""What a classifier must beat: logistic regressions on what needs no network, fitted on `fit` and scored as a model is.

They show how much of a figure comes for free: from how common a class is, from a number in the table, from the size of the
crop or of the lesion, or from a thumbnail of the picture. Nothing here reads a file: a feature asks its case for what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from medseg.errors import MedsegError
from medseg.evaluation.bands import number_in
from medseg.scans.names import slug
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry, product_along

SIDE = 28
"""Pixels along each edge of a thumbnail."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A case as features see it; pixels are read only by those that ask.

    Args:
        image: gives ``(C, *S)``.
        mask: gives ``(*S)`` labels; None where the case has no mask.
        labels: what the mask's values mean.
    """

    geometry: Geometry
    metadata: Mapping[str, str]
    image: Callable[[], Array]
    mask: Callable[[], Array] | None
    labels: LabelTable


Feature = Callable[[Seen], Array | None]
"""A case → ``(F,)`` numbers, NaN where one is not known, or None where such a case has none."""


def prior(case: Seen) -> Array:
    """No number: what is left is how common each class is in `fit`."""
    del case
    return np.zeros(0)


def image_extent(case: Seen) -> Array:
    """``(D,)`` logarithm of the edges of the image in mm (px where spacing is unknown): crops are cut around what they show."""
    return np.log(np.array(case.geometry.shape) * np.array(case.geometry.spacing))


def mask_volume(case: Seen) -> Array | None:
    """Logarithm of 1 + mm³ (mm², px) of each label of the true mask; None without a mask."""
    if case.mask is None:
        return None
    mask, targets = case.mask(), case.labels.targets.values()
    counts = [np.count_nonzero(np.isin(mask, values)) for values in targets]
    return np.log1p(np.array(counts) * case.geometry.voxel_volume)


def pixels(case: Seen) -> Array | None:
    """``(C · 28 · 28,)`` means of the pixels of a picture in 28 × 28 fields; None of a volume."""
    if case.geometry.dimensions != 2:
        return None
    image = case.image()
    for axis in (1, 2):
        image = product_along(np.ascontiguousarray(image), _means(image.shape[axis], SIDE), axis)
    return image.ravel()


def column(name: str, case: Seen) -> Array:
    """``(1,)`` the number in a column of the table."""
    return np.array([number_in(case.metadata.get(name, ""))])


FEATURES: Mapping[str, Feature] = MappingProxyType(
    {"prior": prior, "image_extent": image_extent, "mask_volume": mask_volume, "pixels": pixels}
)
"""Name of a baseline → what it looks at; those of single columns are called ``column_<name>``."""


def features_of(columns: Sequence[str]) -> dict[str, Feature]:
    """Every baseline, with those of columns of the table."""
    return {**FEATURES, **{f"column_{slug(name)}": partial(column, name) for name in columns}}


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """Probabilities from numbers: a softmax over classes that exclude each other, or a sigmoid for each of those that do not.

    Numbers are brought to mean 0 and deviation 1 of `fit`; one that is not known counts as the mean.

    Args:
        mean, scale: ``(F,)`` of the numbers of `fit`.
        weights: ``(F + 1, K)``; the last row is the intercept.
    """

    mean: Array
    scale: Array
    weights: Array
    exclusive: bool

    @classmethod
    def fit(cls, features: Array, truth: Array, *, exclusive: bool, penalty: float = 1.0) -> LogisticRegression:
        """Maximise the likelihood of all cases, less ``penalty / 2`` times the squared weights (Hastie et al. 2009, §4.4).

        Args:
            features: ``(N, F)``; NaN where a number is not known.
            truth: ``(N, K)`` bool; one a row where ``exclusive``.
            penalty: on standardised numbers; the intercept is free.

        Raises:
            MedsegError: there is no case.
        """
        if not len(features):
            raise MedsegError("baseline: expected at least one case in fit, found none")
        known = ~np.isnan(features)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, features, 0.0).sum(axis=0) / count
        scale = np.sqrt((np.where(known, features - mean, 0.0) ** 2).sum(axis=0) / count)
        scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, 1.0)
        inputs, target = _standardised(features, mean, scale), truth.astype(np.float64)
        shape = (inputs.shape[1], truth.shape[1])

        def loss(flat: Array) -> tuple[float, Array]:
            weights = flat.reshape(shape)
            logits = inputs @ weights
            if exclusive:
                surprise, probabilities = -(target * log_softmax(logits, axis=1)).sum(), softmax(logits, axis=1)
            else:
                surprise, probabilities = (np.logaddexp(0, logits) - target * logits).sum(), expit(logits)
            held = weights.copy()
            held[-1] = 0.0
            slope = inputs.T @ (probabilities - target) + penalty * held
            return float(surprise + penalty / 2 * (held**2).sum()), slope.ravel()

        found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
        return cls(mean, scale, found.x.reshape(shape), exclusive)

    def predict(self, features: Array) -> Array:
        """``(N, K)`` probabilities."""
        logits = _standardised(features, self.mean, self.scale) @ self.weights
        return np.asarray(softmax(logits, axis=1) if self.exclusive else expit(logits))


def _standardised(features: Array, mean: Array, scale: Array) -> Array:
    """``(N, F + 1)`` with a column of ones for the intercept."""
    inputs = np.nan_to_num((features - mean) / scale)
    return np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)


def _means(old: int, new: int) -> Array:
    """``(new, old)`` float32: how much of each of ``old`` pixels lies in each of ``new`` fields, as a share of the field."""
    edges = np.arange(new + 1)[:, None] * old / new
    covered = np.clip(edges - np.arange(old), 0, 1)
    return (np.diff(covered, axis=0) * new / old).astype(np.float32)
