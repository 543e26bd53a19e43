"""One case: every measure of how much a heat map deserves trust, for each method and for maps that know nothing.

    deletion, insertion        area under the curve, small and large are good (`faithfulness`); blank where the whole image does
                               not score above the replaced one
    energy_inside, energy_near share of the positive map in the true mask, and in it and 10 pixels around (`pointing`)
    pointing                   1 where the highest value is there too
    centre_distance            from the centre of the map to that of the mask, in pixels (the unit of ``spacing``)
    stability                  rank correlation with itself under a small shift (`stability`)
    shuffled_rank, shuffled_ssim   |rank correlation| and SSIM with the maps of shuffled networks (`sanity`)
    shuffled_floor             |rank correlation| of these with each other

A blank figure is NaN. A method that fails has none, and leaves the others theirs. Works on arrays and callables; knows neither
networks nor tasks, and gathers nothing over cases (`medseg.explain.trust_table`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medseg.errors import MachineError, MedsegError, all_at_once
from medseg.explain.baselines import NAMES, baseline_maps
from medseg.explain.faithfulness import Curve, Probe, Score
from medseg.explain.pointing import centre_distance, energy, pointing_hit, surroundings
from medseg.explain.sanity import dependence
from medseg.explain.stability import Attribute, Moved, stability
from medseg.volume import Array


@dataclass(frozen=True)
class Method:
    """How a map is made, and how the same method makes it from shuffled weights.

    Attributes:
        shuffled: the method on networks whose weights are shuffled, each by a lot of its own; empty where this is not asked.
        moved: voxels → the method asked about a target that has moved by so many; None for one that lies nowhere.
    """

    attribute: Attribute
    shuffled: Sequence[Attribute] = ()
    moved: Moved | None = None


@dataclass(frozen=True, eq=False)
class TrustCase:
    """What was measured of one target of one case.

    Attributes:
        values: method → measure → figure; the baselines are methods too, behind those that were asked for.
        curves: method → its deletion and insertion curve; empty where the score tells nothing.
        size: of the true mask, in voxels times their size; NaN without one.
        failed: method → why it has no figures.
    """

    id: str
    patient: str
    target: str
    values: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, tuple[Curve, Curve]]
    size: float
    failed: Mapping[str, str] = field(default_factory=dict)


def reason_of(method: str, error: Exception) -> str:
    """Why a method failed, in words. What is a bug, or the machine's fault, is raised again: no figure of the case stands."""
    del method
    if isinstance(error, MachineError) or not isinstance(error, MedsegError):
        raise error
    return str(error)


def measure(
    image: Array,
    methods: Mapping[str, Method],
    score: Score,
    *,
    id: str,
    patient: str,
    target: str,
    truth: Array | None = None,
    spacing: Sequence[float] | None = None,
    seed: int = 0,
    why: Callable[[str, Exception], str] = reason_of,
) -> TrustCase:
    """Measure each method, and each baseline as far as it makes sense for it.

    A method costs three maps (one for itself, two shifted), one a shuffled network, and 46 scores; a baseline 46 scores.

    Args:
        image: ``(C, *S)`` as the network sees it.
        methods: name → method; the first is the one in question, and the random baseline is as smooth as its map.
        score: what the maps explain: the very scalar that their method looks at.
        truth: ``(*S)``, above 0 where the map should point; the measures that need it are left out where it is empty or None.
        spacing: size of a voxel along each axis, by default 1: lengths are in its unit.
        seed: of the random baseline and of the lot among ties, together with ``id`` and ``target``.
        why: puts into words what a method, by its name, raises; or raises it again.

    Raises:
        MedsegError: no method, a method called like a baseline, a truth of another shape, or no method that can be measured
            (all are named).
    """
    where, shape = f"{id} {target}", image.shape[1:]
    _check(methods, truth, shape, where)
    maps: dict[str, Array] = {}
    known: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for name, method in methods.items():
        try:
            heat = _map(image, method)
            alike = {"stability": stability(image, heat, method.attribute, method.moved)}
            known[name] = alike | dependence(heat, [np.asarray(attribute(image)) for attribute in method.shuffled])
            maps[name] = heat
        except Exception as error:
            failed[name] = why(name, error)
    if not maps:
        raise all_at_once(f"trust of {where}: no map can be measured:", map(": ".join, failed.items()))

    lot = zlib.crc32(f"{seed}/{id}/{target}".encode())
    probe = Probe.of(image, score)
    mask = np.asarray(truth) > 0 if truth is not None else np.zeros(shape, bool)
    near = surroundings(mask, spacing=spacing) if mask.any() else mask
    values: dict[str, dict[str, float]] = {}
    curves: dict[str, tuple[Curve, Curve]] = {}
    for name, heat in (maps | baseline_maps(image, next(iter(maps.values())), seed=lot)).items():
        figures = values[name] = {"deletion": np.nan, "insertion": np.nan}
        if probe.is_telling:
            deletion, insertion = curves[name] = probe.deletion(heat, seed=lot), probe.insertion(heat, seed=lot)
            figures |= {"deletion": deletion.area, "insertion": insertion.area}
        if mask.any():
            figures |= {
                "energy_inside": energy(heat, mask),
                "energy_near": energy(heat, near),
                "pointing": pointing_hit(heat, near),
                "centre_distance": centre_distance(heat, mask, spacing=spacing),
            }
        figures |= known.get(name, {})
    size = float(mask.sum() * np.prod(spacing if spacing is not None else 1.0)) if mask.any() else np.nan
    return TrustCase(id, patient, target, values, curves, size, failed)


def _check(methods: Mapping[str, Method], truth: Array | None, shape: tuple[int, ...], where: str) -> None:
    problems = [
        f"a method is called {name!r}, which is a baseline; give it another name" for name in methods if name in NAMES
    ]
    if not methods:
        problems.append("expected at least one method, found none")
    if truth is not None and truth.shape != shape:
        problems.append(f"the truth lies on another grid: expected {shape}, found {truth.shape}; resample it")
    if problems:
        raise all_at_once(f"trust of {where}:", problems)


def _map(image: Array, method: Method) -> Array:
    heat = np.asarray(method.attribute(image))
    if heat.shape != image.shape[1:]:
        raise MedsegError(f"expected a map of {image.shape[1:]}, found {heat.shape}")
    if not np.isfinite(heat).all():
        raise MedsegError(f"expected finite values, found {int((~np.isfinite(heat)).sum())} that are not")
    return heat
