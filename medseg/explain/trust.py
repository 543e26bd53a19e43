"""One case: every measure of how much a heat map deserves trust, for each method and for maps that know nothing.

    deletion, insertion        area under the curve, small and large are good (`faithfulness`); blank where the whole image does
                               not score above the replaced one
    energy_inside, energy_near share of the positive map in the true mask, and in it and 10 pixels around (`pointing`)
    pointing                   1 where the highest value is there too
    centre_distance            from the centre of the map to that of the mask, in pixels (the unit of ``spacing``)
    stability                  rank correlation with itself under a small shift (`stability`)
    shuffled_rank, shuffled_ssim   |rank correlation| and SSIM with the map of the wholly shuffled network (`sanity`);
                               ``shuffled_rank_<stage>`` where it was shuffled only from the output down to a stage

A blank figure is NaN. Works on arrays and callables; knows neither networks nor tasks, and gathers nothing over cases
(`medseg.explain.trust_table`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medseg.errors import all_at_once
from medseg.explain.baselines import NAMES, baseline_maps
from medseg.explain.faithfulness import STEPS, Curve, Fill, Probe, Score
from medseg.explain.pointing import REACH, centre_distance, energy, pointing_hit, surroundings
from medseg.explain.sanity import rank_correlation, structural_similarity
from medseg.explain.stability import Attribute, Moved, stability
from medseg.volume import Array


@dataclass(frozen=True)
class Method:
    """How a map is made, and how the same method makes it from shuffled weights.

    Attributes:
        shuffled: stage → the method on the network whose weights are shuffled from the output down to that stage, in this
            order; the last is the network with all weights shuffled. Empty where this is not asked.
        moved: voxels → the method asked about a target that has moved by so many; None for one that lies nowhere.
    """

    attribute: Attribute
    shuffled: Mapping[str, Attribute] = field(default_factory=dict)
    moved: Moved | None = None


@dataclass(frozen=True, eq=False)
class TrustCase:
    """What was measured of one target of one case.

    Attributes:
        values: method → measure → figure; the baselines are methods too, behind those that were asked for.
        curves: method → its deletion and insertion curve; empty where the score tells nothing.
        size: of the true mask, in voxels times their size; NaN without one.
    """

    id: str
    patient: str
    target: str
    values: Mapping[str, Mapping[str, float]]
    curves: Mapping[str, tuple[Curve, Curve]]
    size: float


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
    reach: float = REACH,
    fill: Fill = "blur",
    steps: int = STEPS,
    seed: int = 0,
) -> TrustCase:
    """Measure each method, and each baseline as far as it makes sense for it.

    A method costs three maps (one for itself, two shifted), one a stage, and 46 scores; a baseline 46 scores.

    Args:
        image: ``(C, *S)`` as the network sees it.
        methods: name → method; the first is the one in question, and the random baseline is as smooth as its map.
        score: what the maps explain: the very scalar that their method looks at.
        truth: ``(*S)``, above 0 where the map should point; the measures that need it are left out where it is empty or None.
        spacing: size of a voxel along each axis, by default 1: lengths are in its unit.
        reach: how near the truth still counts as pointing at it.
        seed: of the random baseline and of the lot among ties, together with ``id`` and ``target``.

    Raises:
        MedsegError: no method, a method called like a baseline, a truth of another shape, or maps that are not finite or not
            of the image's shape (all are named).
    """
    shape = image.shape[1:]
    _check(methods, truth, shape, f"{id} {target}")
    maps = _maps(image, methods, f"{id} {target}")
    lot = zlib.crc32(f"{seed}/{id}/{target}".encode())
    probe = Probe.of(image, score, fill=fill)
    mask = np.asarray(truth) > 0 if truth is not None else np.zeros(shape, bool)
    near = surroundings(mask, reach=reach, spacing=spacing) if mask.any() else mask

    values: dict[str, dict[str, float]] = {}
    curves: dict[str, tuple[Curve, Curve]] = {}
    for name, heat in (maps | baseline_maps(image, next(iter(maps.values())), seed=lot)).items():
        figures = values[name] = {"deletion": np.nan, "insertion": np.nan}
        if probe.is_telling:
            deletion, insertion = curves[name] = (
                probe.deletion(heat, steps=steps, seed=lot),
                probe.insertion(heat, steps=steps, seed=lot),
            )
            figures |= {"deletion": deletion.area, "insertion": insertion.area}
        if mask.any():
            figures |= {
                "energy_inside": energy(heat, mask),
                "energy_near": energy(heat, near),
                "pointing": pointing_hit(heat, near),
                "centre_distance": centre_distance(heat, mask, spacing=spacing),
            }
        if name in methods:
            method = methods[name]
            figures |= {"stability": stability(image, heat, method.attribute, method.moved)}
            figures |= _dependence(image, heat, method.shuffled)
    size = float(mask.sum() * np.prod(spacing if spacing is not None else 1.0)) if mask.any() else np.nan
    return TrustCase(id, patient, target, values, curves, size)


def _dependence(image: Array, heat: Array, shuffled: Mapping[str, Attribute]) -> dict[str, float]:
    """How alike the maps of the trained and of the shuffled networks are; the last stage has the plain names."""
    figures: dict[str, float] = {}
    for at, (stage, attribute) in enumerate(shuffled.items(), start=1):
        other = np.asarray(attribute(image))
        rank = abs(rank_correlation(heat, other))
        if at < len(shuffled):
            figures[f"shuffled_rank_{stage}"] = rank
        else:
            figures |= {"shuffled_rank": rank, "shuffled_ssim": structural_similarity(heat, other)}
    return figures


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


def _maps(image: Array, methods: Mapping[str, Method], where: str) -> dict[str, Array]:
    maps = {name: np.asarray(method.attribute(image)) for name, method in methods.items()}
    problems = []
    for name, heat in maps.items():
        if heat.shape != image.shape[1:]:
            problems.append(f"{name}: expected a map of {image.shape[1:]}, found {heat.shape}")
        elif not np.isfinite(heat).all():
            problems.append(f"{name}: expected finite values, found {int((~np.isfinite(heat)).sum())} that are not")
    if problems:
        raise all_at_once(f"trust of {where}: these maps cannot be measured:", problems)
    return maps
