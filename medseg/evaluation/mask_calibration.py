"""Calibration of a segmentation: one temperature for the probabilities of voxels, chosen on `tune`, measured on `test`.

Cases are read one by one and only a few voxels of each are kept, drawn uniformly and without replacement from

- the whole scan (``all``), almost all of it background that nobody doubts: its ECE is small for any model;
- the surroundings of the lesion (``around``): the true and the predicted foreground and all voxels within five of them. There the
  temperature is fitted, and labels are measured one by one.

No voxel of a place is likelier to be drawn than another of it, so that neither figure is tilted towards borders. Each case
counts by its voxels drawn, whatever its size. Voxels of a case are alike: intervals are over patients, but the ECE of a
perfect model is drawn voxel by voxel and is the least that can be expected. The mask does not change with the temperature.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.evaluation.calibration import ALL, Calibration, Forecast, check_row_names, compare, reliability
from medseg.evaluation.temperature import SMALLEST, fit_temperature, logits_of
from medseg.files import whole_file
from medseg.structures import LabelTable
from medseg.volume import Array

logger = logging.getLogger(__name__)
AROUND = "around"
"""The row of the surroundings of the lesion."""
MARGIN = 5
"""Voxels along each axis by which the foreground is grown to its surroundings."""
VOXELS = 2000
"""Voxels that are drawn from each place of a case."""
_PAIR = ("probabilities", "truth")
_PLACES = {
    ALL: "voxels of the whole scan",
    AROUND: f"voxels within {MARGIN} of the true or predicted foreground",
}


Drawn = Mapping[str, tuple[Array, Array]]
"""Place → probabilities ``(K, n)`` of the voxels drawn from it, and the true output ``(n,)`` of each, or regions ``(n, K)``."""


@dataclass(frozen=True, eq=False)
class MaskForecast:
    """What was stated of some voxels of a case before calibration, what is true, and the temperature of the model."""

    drawn: Drawn
    patient: str
    temperature: float = 1.0

    @classmethod
    def draw(
        cls,
        probabilities: Array,
        truth: Array,
        labels: LabelTable,
        patient: str,
        temperature: float = 1.0,
        *,
        voxels: int = VOXELS,
        seed: int = 0,
    ) -> MaskForecast:
        """Draw from every place.

        Args:
            probabilities: ``(K, *S)`` a label table's outputs: softmax with background first, or one sigmoid a region.
            truth: ``(*S)`` mask values.
            voxels: drawn from each place.

        Raises:
            MedsegError: shapes or mask values do not fit the labels.
        """
        return cls(_drawn(probabilities, truth, labels, voxels, np.random.default_rng(seed)), patient, temperature)

    def save(self, path: Path) -> None:
        """Write the voxels, whole or not at all."""
        arrays = {
            f"{place}_{what}": a for place, pair in self.drawn.items() for what, a in zip(_PAIR, pair, strict=True)
        }
        with whole_file(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, patient: str, temperature: float = 1.0) -> MaskForecast:
        """Read what `save` wrote. Raises MedsegError where it is not there or damaged."""
        try:
            with np.load(path, allow_pickle=False) as held:
                drawn = {place: (held[f"{place}_{_PAIR[0]}"], held[f"{place}_{_PAIR[1]}"]) for place in _PLACES}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise MedsegError(f"{path.name}: cannot be read ({error}); delete it and evaluate again") from None
        return cls(drawn, patient, temperature)

    def errors(self, labels: LabelTable) -> dict[str, float]:
        """Label → ECE of its calibrated probability around the lesions of this case alone; NaN where there is no lesion.

        What errs to one side in one case and to the other in the next adds up here and not in `mask_calibration`.
        """
        stated, truth = self.drawn[AROUND]
        after = calibrated_mask(stated, labels, self.temperature)
        return {name: reliability(after[at], _shown(truth, labels, at)).ece for name, at in _outputs(labels).items()}


def calibrated_mask(probabilities: Array, labels: LabelTable, temperature: float) -> Array:
    """Probabilities ``(K, …)`` with their logits divided by ``temperature``: p^(1/T), brought back to a sum of 1; float32."""
    p = np.clip(np.asarray(probabilities, np.float32), SMALLEST, 1 - SMALLEST)
    power = p ** np.float32(1 / temperature)
    rest = 0.0 if labels.exclusive else (1 - p) ** np.float32(1 / temperature)
    return power / (power.sum(0) if labels.exclusive else power + rest)


def choose_mask_temperature(
    examples: Iterable[tuple[Array, Array]], labels: LabelTable, *, voxels: int = VOXELS, seed: int = 0
) -> float:
    """The temperature that makes the labels around the lesions of the cases of `tune` likeliest; 1 where there is no lesion.

    Args:
        examples: probabilities ``(K, *S)`` and mask values ``(*S)`` of each case, read one by one. Their logarithms (regions:
            their log-odds) are the logits, also where views and folds were averaged.
        voxels: drawn from each case.

    Raises:
        MedsegError: shapes or mask values do not fit the labels.
    """
    random = np.random.default_rng(seed)
    drawn = [_drawn(p, t, labels, voxels, random, places=(AROUND,))[AROUND] for p, t in examples]
    if not sum(len(truth) for _, truth in drawn):
        logger.warning("calibration: no case of tune has any foreground, true or predicted; the temperature stays 1")
        return 1.0
    probabilities = np.concatenate([p for p, _ in drawn], axis=1)
    logits = logits_of(probabilities.T, multilabel=not labels.exclusive)
    return fit_temperature(logits, np.concatenate([truth for _, truth in drawn]), multilabel=not labels.exclusive)


def mask_calibration(
    forecasts: Iterable[MaskForecast],
    labels: LabelTable,
    *,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Calibration]:
    """Calibration before and after: ``all`` voxels, those ``around`` the lesion, and there each label as a yes or no.

    ``all`` and ``around`` are of the likeliest label, or of all regions pooled where they overlap.

    Args:
        forecasts: read one by one.

    Raises:
        MedsegError: there is none, or a label is called ``all`` or ``around``.
    """
    check_row_names(labels.targets, tuple(_PLACES))
    found: dict[str, list[_Voxels]] = {place: [] for place in _PLACES}
    numbers: dict[str, int] = {}  # of the patients: names of a million voxels take long to sort
    scalings = []
    for one in forecasts:
        patient = numbers.setdefault(one.patient, len(numbers))
        for place, (p, truth) in one.drawn.items():
            # At T = 1 too, as averaged windows may leave a hair more than 1.
            before, after = (calibrated_mask(p, labels, temperature).T for temperature in (1.0, one.temperature))
            found[place].append(_Voxels(before, after, truth, np.full(len(truth), patient)))
        scalings.append((one.temperature, 0.0))
    if not scalings:
        raise MedsegError("calibration: expected at least one case to measure, found none")
    pooled = {
        place: _Voxels(*(np.concatenate(of) for of in zip(*parts, strict=True))) for place, parts in found.items()
    }

    def row(place: str, output: int | None = None) -> Calibration:
        before, after = pooled[place].forecasts(labels, output)
        return compare(before, after, scalings, note=_PLACES[place], samples=samples, seed=seed)

    each = {name: row(AROUND, output) for name, output in _outputs(labels).items()}
    return {**{place: row(place) for place in _PLACES}, **each}


def _outputs(labels: LabelTable) -> dict[str, int]:
    """Label or region → position of its probability."""
    return {name: at for at, name in enumerate(labels.targets, start=int(labels.exclusive))}


def _shown(truth: Array, labels: LabelTable, output: int) -> Array:
    """``(n,)`` bool: which voxels have an output, from their truth as of `_drawn`."""
    shown: Array = truth == output if labels.exclusive else truth[:, output]
    return shown


class _Voxels(NamedTuple):
    """Voxels as stated before and after ``(n, K)``, their truth as of `_drawn`, and numbers of their patients ``(n,)``."""

    before: Array
    after: Array
    truth: Array
    patients: Array

    def forecasts(self, labels: LabelTable, output: int | None) -> list[Forecast]:
        """Before and after, of one output as a yes or no, else of all together."""
        stated = (self.before, self.after)
        if output is not None:
            shown = _shown(self.truth, labels, output)
            return [Forecast.of_events(p[:, output], shown, self.patients) for p in stated]
        kind = Forecast.of_likeliest if labels.exclusive else Forecast.of_events
        return [kind(p, self.truth, self.patients) for p in stated]


def _drawn(
    probabilities: Array,
    truth: Array,
    labels: LabelTable,
    voxels: int,
    random: np.random.Generator,
    places: Iterable[str] = tuple(_PLACES),
) -> dict[str, tuple[Array, Array]]:
    """Voxels drawn from each place: probabilities ``(K, n)``, and the true output ``(n,)`` or regions ``(n, K)``."""
    _check(probabilities, truth, labels)
    counts = np.ones(truth.shape, bool) if labels.ignore is None else truth != labels.ignore
    flat, values = probabilities.reshape(len(probabilities), -1), truth.reshape(-1)
    drawn = {}
    for place in places:
        open_to_it = counts & _around(probabilities, truth, labels) if place == AROUND else counts
        # Positions of all voxels of a large scan would take a gigabyte.
        pool: Any = open_to_it.size if open_to_it.all() else np.flatnonzero(open_to_it)
        at = random.choice(pool, min(voxels, int(np.count_nonzero(open_to_it))), replace=False)
        drawn[place] = flat[:, at].astype(np.float32), _outputs_of(values[at], labels)
    return drawn


def _around(probabilities: Array, truth: Array, labels: LabelTable) -> Array:
    """``(*S)`` whether a voxel is near to foreground, true or predicted."""
    predicted = probabilities[1:].max(0) > probabilities[0] if labels.exclusive else (probabilities > 0.5).any(0)
    shown = predicted | np.isin(truth, list(labels.names))
    return ndimage.maximum_filter(shown.view(np.uint8), size=2 * MARGIN + 1, mode="constant").view(bool)


def _outputs_of(values: Array, labels: LabelTable) -> Array:
    """Mask values ``(n,)`` as the network's outputs: an index each, or ``(n, K)`` whether each region holds them."""
    if labels.exclusive:
        return np.searchsorted([0, *labels.names], values)
    return np.stack([np.isin(values, of_region) for of_region in labels.regions.values()], axis=1)


def _check(probabilities: Array, truth: Array, labels: LabelTable) -> None:
    if probabilities.shape != (len(labels.outputs), *truth.shape):
        found = f"{probabilities.shape} and {truth.shape}"
        raise MedsegError(
            f"calibration: expected probabilities (K, *S) of {', '.join(labels.outputs)} and a mask (*S), found {found}"
        )
    known = {0, *labels.names} | ({labels.ignore} if labels.ignore is not None else set())
    unknown = sorted(set(np.unique(truth).tolist()) - known)
    if unknown:
        raise MedsegError(f"calibration: the true mask has values {unknown}; expected {sorted(known)}")
