"""What a model must beat: the best global threshold and the mean shape, both fitted on `fit` and scored as a model is.

They show how much of a figure comes for free, from brightness alone or from position alone. Images come in as
`normalised` gives them, on the scan's own grid; nothing here reads a file or knows a network. Cases are taken from an
iterable one by one; what is kept of each is a histogram's worth or a packed small grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry, Reorientation, Volume, reorientation_to, resample_array

_BINS = 512
_HU = (-1024.0, 3072.0)  # 8 HU a bin
_DEVIATIONS = (-5.0, 15.0)  # 0.04 standard deviations a bin
_GRID = {2: 128, 3: 64}
_LEVELS = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True, eq=False)
class Example:
    """A case as baselines see it: ``image`` (C, *S) normalised, or None where only shape counts; ``truth`` (*S) labels."""

    geometry: Geometry
    image: Array | None = None
    truth: Array | None = None


def normalised(volume: Volume, ct: Sequence[bool]) -> Array:
    """``(C, *S)`` values in which a threshold means the same in every case.

    Channels of CT stay HU; any other becomes deviations from the mean of the case's own non-zero voxels. Both are scaled
    so that 0…1 is the range that is searched (−1024…3072 HU, −5…15 deviations).

    Args:
        ct: for each channel, whether it is CT.
    """
    data = volume.data.astype(np.float32)
    for channel, is_ct in zip(data, ct, strict=True):
        inside = channel[channel != 0]
        if not is_ct and len(inside):
            channel -= inside.mean(dtype=np.float64)
            channel /= max(float(inside.std(dtype=np.float64)), 1e-8)
        low, high = _HU if is_ct else _DEVIATIONS
        channel -= low
        channel /= high - low
    return data


@dataclass(frozen=True)
class Interval:
    """A label is where ``low ≤ channel < high``; ``dice`` is its mean over `fit`. Infinite ends make a plain threshold."""

    channel: int
    low: float
    high: float
    dice: float


@dataclass(frozen=True)
class GlobalThreshold:
    """For each label the one interval of intensity, the same in all cases, that has the highest mean Dice on `fit`.

    An interval contains both plain thresholds (brighter than, darker than) as special cases. Where intervals of exclusive
    labels overlap, the one with the higher Dice on `fit` wins; regions are painted in their order.
    """

    labels: LabelTable
    intervals: dict[str, Interval]

    @classmethod
    def fit(cls, cases: Iterable[Example], labels: LabelTable) -> GlobalThreshold:
        """Search every interval between bins of the intensity (512 of them), in every channel.

        Raises:
            MedsegError: no case, or a case without image or truth.
        """
        total: dict[str, Array] = {}
        number = dict.fromkeys(labels.targets, 0)
        for case in cases:
            image, truth = _both(case)
            counted = truth != labels.ignore if labels.ignore is not None else np.ones(truth.shape, bool)
            bins = [_bin(channel[counted]) for channel in image]
            everything = np.stack([_cumulated(channel) for channel in bins])
            for name, values in labels.targets.items():
                true = np.isin(truth[counted], values)
                if true.any():
                    hits = np.stack([_cumulated(channel[true]) for channel in bins])
                    number[name] += 1
                    total[name] = total.get(name, 0.0) + _dice_of_intervals(hits, everything, int(true.sum()))
        if not total:
            raise MedsegError("baseline: expected at least one case with a label in fit, found none")
        intervals = {}
        for name, dice in total.items():
            channel, low, high = (int(i) for i in np.unravel_index(int(dice.argmax()), dice.shape))
            intervals[name] = Interval(
                channel,
                low=low / _BINS if low else -np.inf,
                high=high / _BINS if high < _BINS else np.inf,
                dice=float(dice.max()) / number[name],
            )
        return cls(labels, intervals)

    def predict(self, case: Example) -> Array:
        """``(*S)`` labels."""
        if case.image is None:
            raise MedsegError("baseline: a threshold needs the image")
        inside = {
            name: (case.image[rule.channel] >= rule.low) & (case.image[rule.channel] < rule.high)
            for name, rule in self.intervals.items()
        }
        return _paint(inside, {name: rule.dice for name, rule in self.intervals.items()}, self.labels, case.geometry)


@dataclass(frozen=True, eq=False)
class MeanShapeAtlas:
    """How often each place of the field of view holds each label on `fit`; a label is where that is often enough.

    Fields of view are laid on each other, edges on edges (3D in RAS+ order), on a small common grid. How often is enough is
    the level with the highest mean Dice on `fit`, measured on the common grid. Ignored voxels count as background.
    """

    labels: LabelTable
    shares: dict[str, Array]
    levels: dict[str, float]
    dice: dict[str, float]

    @classmethod
    def fit(cls, cases: Iterable[Example], labels: LabelTable) -> MeanShapeAtlas:
        """Average the label maps. Raises MedsegError if there is no case, or one without truth or of another dimension."""
        packed: dict[str, list[Array]] = {name: [] for name in labels.targets}
        sums: dict[str, Array] = {}
        number = 0
        shape: tuple[int, ...] = ()
        for case in cases:
            if case.truth is None:
                raise MedsegError("baseline: an atlas needs the truth of every case of fit")
            if shape and len(shape) != case.truth.ndim:
                raise MedsegError("baseline: an atlas needs either pictures or volumes, found both in fit")
            shape = (_GRID[case.truth.ndim],) * case.truth.ndim
            number += 1
            truth = _turn(case.geometry).apply(case.truth)
            for name, values in labels.targets.items():
                share = resample_array(np.isin(truth, values).astype(np.float32), shape, 1)
                sums[name] = sums.get(name, 0.0) + share
                packed[name].append(np.packbits(share >= 0.5))
        if not number:
            raise MedsegError("baseline: expected at least one case in fit, found none")
        shares = {name: total / number for name, total in sums.items()}
        levels, dice = {}, {}
        for name, share in shares.items():
            at = share.ravel()[:, None] >= _LEVELS  # (voxels, levels)
            seen = [np.unpackbits(bits, count=share.size).astype(bool) for bits in packed[name]]
            scores = [2 * at[truth].sum(0) / (at.sum(0) + truth.sum()) for truth in seen if truth.any()]
            mean = np.mean(scores, axis=0) if scores else np.zeros(len(_LEVELS))
            levels[name], dice[name] = float(_LEVELS[int(mean.argmax())]), float(mean.max())
        return cls(labels, shares, levels, dice)

    def predict(self, case: Example) -> Array:
        """``(*S)`` labels; the image is not looked at. Exclusive labels compete by share over level."""
        turn = _turn(case.geometry)
        shape = turn.apply_to_geometry(case.geometry).shape
        if len(shape) != next(iter(self.shares.values())).ndim:
            raise MedsegError(f"baseline: the atlas was fitted on other dimensions than {case.geometry.describe()}")
        back = turn.inverse()
        margin = {n: back.apply(resample_array(s, shape, 1)) / self.levels[n] for n, s in self.shares.items()}
        if self.labels.exclusive:
            names = list(margin)
            stacked = np.stack([margin[name] for name in names])
            best, enough = stacked.argmax(0), stacked.max(0) >= 1
            inside = {name: enough & (best == i) for i, name in enumerate(names)}
        else:
            inside = {name: values >= 1 for name, values in margin.items()}
        return _paint(inside, self.dice, self.labels, case.geometry)


def _both(case: Example) -> tuple[Array, Array]:
    if case.image is None or case.truth is None:
        raise MedsegError("baseline: a threshold needs image and truth of every case of fit")
    return case.image, case.truth


def _bin(values: Array) -> Array:
    return np.clip(np.floor(values * _BINS), 0, _BINS - 1).astype(np.int64)


def _cumulated(bins: Array) -> Array:
    """How many values lie below each of the ``_BINS + 1`` edges."""
    return np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=_BINS))]).astype(np.float64)


def _dice_of_intervals(hits: Array, everything: Array, true: int) -> Array:
    """``(C, edges, edges)`` Dice of the interval between two edges; 0 where the upper is not above the lower."""
    inside = hits[:, None, :] - hits[:, :, None]
    size = everything[:, None, :] - everything[:, :, None]
    return np.where(size > 0, 2 * inside / np.maximum(size + true, 1), 0.0)


def _turn(geometry: Geometry) -> Reorientation:
    if geometry.dimensions == 2:
        return Reorientation((0, 1), (False, False))
    return reorientation_to(geometry, "RAS")


def _paint(inside: dict[str, Array], dice: dict[str, float], labels: LabelTable, geometry: Geometry) -> Array:
    """Masks by name → one mask; of exclusive labels the surer is painted last, regions go in their order."""
    values: dict[str, Any] = (
        dict(zip(labels.regions, labels.paint, strict=True))
        if labels.regions
        else {name: value for value, name in labels.names.items()}
    )
    order = list(labels.regions) if labels.regions else sorted(inside, key=lambda name: dice[name])
    mask = np.zeros(geometry.shape, np.uint8 if max(labels.names) < 256 else np.uint16)
    for name in order:
        if name in inside:
            mask[inside[name]] = values[name]
    return mask
