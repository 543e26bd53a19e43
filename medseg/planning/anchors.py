"""From the sizes of the training boxes to the part of a plan that detection needs: which decoder levels look for lesions, and
with which anchors.

Owns the statistics of box sizes, the choice of levels, the clustering of sizes into anchors, and the honest share of lesions that
they can reach. Knows nothing of networks or of where boxes lie: only how long they are along the axes of the plan's grid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from medseg.errors import MedsegError
from medseg.structures import LesionRule
from medseg.volume import Array

logger = logging.getLogger(__name__)

Sizes = tuple[tuple[float, ...], ...]

REACHED = 0.5
"""An anchor reaches a box that it overlaps with this IoU when both have one centre."""
ENOUGH = 0.95
"""Anchors are added, up to `MOST_ANCHORS` a level, until this share of its boxes is reached; below it the plan warns."""
MOST_ANCHORS = 6
CELLS = {2: 4.0, 3: 2.0}
"""A box is looked for on the coarsest level of whose cells it spans this many along every axis that was halved. RetinaNet has 4
to 8; in 3D a level costs eight times as much as the next coarser one, and 2 cells each way already are 8 cells in the box."""
RARE = 0.05
"""This share of a class may span less than one cell of the finest level; a coarser level with less of every class is left out."""
SLACK = 0.01
"""A box this little too long or too short still fits: spacings are rounded."""


@dataclass(frozen=True, eq=False)
class BoxStatistics:
    """Lengths of the training boxes along the plan's axes.

    Args:
        voxels: ``(N, D)`` on the plan's grid.
        mm: ``(N, D)`` in mm (px for pictures of unknown spacing).
        labels: ``(N,)`` mask value of each box.
    """

    voxels: Array
    mm: Array
    labels: Array


@dataclass(frozen=True)
class BoxPlan:
    """What detection adds to a Plan; ``why`` gives the reason of each value by its name.

    Args:
        levels: decoder levels with heads, 0 the finest.
        anchors: a level → its anchors → lengths in voxels of the plan's grid.
        reach: share of the training boxes that some anchor can find (see `reached`).
        smallest, median, largest: class → length along each axis, in mm (px).
        rule: how a mask becomes lesions, where the cases have no boxes of their own.
        masks: whether every training case has a mask, so that a network may learn it beside the boxes.
    """

    levels: tuple[int, ...]
    anchors: tuple[Sizes, ...]
    reach: float
    smallest: Mapping[str, tuple[float, ...]]
    median: Mapping[str, tuple[float, ...]]
    largest: Mapping[str, tuple[float, ...]]
    rule: LesionRule = field(default_factory=LesionRule)
    masks: bool = False
    why: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        levels, axes = self.levels, {len(size) for level in self.anchors for size in level}
        if not levels or list(levels) != sorted(set(levels)) or levels[0] < 0 or len(levels) != len(self.anchors):
            raise MedsegError(
                f"plan.boxes: expected ascending levels from 0 and a list of anchors for each, found levels {list(levels)} and "
                f"{len(self.anchors)} lists"
            )
        if not all(self.anchors) or len(axes) != 1 or min(v for a in self.anchors for s in a for v in s) <= 0:
            raise MedsegError(
                f"plan.boxes.anchors: expected at least one anchor a level, of lengths above 0, found {self.anchors}"
            )
        if not 0 <= self.reach <= 1:
            raise MedsegError(f"plan.boxes.reach: expected a share between 0 and 1, found {self.reach}")

    def to_plain(self) -> dict[str, Any]:
        """Lists, numbers and words, as YAML holds them; `from_plain` gives the same value back."""
        return {
            "levels": list(self.levels),
            "anchors": [[list(size) for size in level] for level in self.anchors],
            "reach": self.reach,
            **{
                name: {label: list(size) for label, size in getattr(self, name).items()}
                for name in ("smallest", "median", "largest")
            },
            "rule": {"instances": self.rule.instances, "smallest_mm3": self.rule.smallest_mm3},
            "masks": self.masks,
            "why": dict(self.why),
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> BoxPlan:
        """Read what `to_plain` gave. Raises MedsegError that names what is missing or of the wrong type."""
        expected = {f.name for f in fields(cls)}
        odd = sorted(set(values) ^ expected) if isinstance(values, Mapping) else [type(values).__name__]
        if odd:
            raise MedsegError(f"plan.boxes: expected {sorted(expected)}; look at {odd}")
        try:
            extremes = {
                name: {str(label): _floats(size) for label, size in values[name].items()}
                for name in ("smallest", "median", "largest")
            }
            return cls(
                levels=tuple(int(level) for level in values["levels"]),
                anchors=tuple(tuple(_floats(size) for size in level) for level in values["anchors"]),
                reach=float(values["reach"]),
                **extremes,
                rule=LesionRule(bool(values["rule"]["instances"]), float(values["rule"]["smallest_mm3"])),
                masks=bool(values["masks"]),
                why={str(name): str(reason) for name, reason in values["why"].items()},
            )
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise MedsegError(f"plan.boxes: a value has the wrong type: {error}") from None


def plan_boxes(
    sizes: BoxStatistics,
    strides: Sequence[Sequence[int]],
    patch_size: Sequence[int],
    *,
    classes: Mapping[int, str],
    rule: LesionRule | None = None,
    masks: bool = False,
) -> BoxPlan:
    """Choose levels and anchors for these boxes; the same boxes, in any order, give the same plan.

    Each box belongs to the coarsest decoder level of whose cells it still spans `CELLS`. The finest level in use is the one to
    which a third of a class (its smallest tercile) belong or finer ones, finer still where more than `RARE` of a class span less
    than a cell of it; smaller boxes are looked for there too. Levels with less than `RARE` of every class give their boxes to the
    next finer one. The boxes of a level are clustered into as few anchors as reach them (`cluster_sizes`).

    Args:
        sizes: of the training boxes.
        strides: of each stage of the network into the next coarser, as in the Plan; the coarsest stage has no decoder level.
        patch_size: what the network sees at once; boxes longer than that count as if cut to it.
        classes: mask value → name, as in the label table.
        rule, masks: as in `BoxPlan`.

    Raises:
        MedsegError: a box has a label that is no class, the numbers of axes differ, or no lesion fits the plan.
    """
    patch = np.asarray(patch_size, np.float64)
    steps = np.cumprod(np.asarray(strides, np.float64), axis=0)[:-1]
    if steps.ndim != 2 or not len(steps) or steps.shape[1] != sizes.voxels.shape[1] or len(patch) != steps.shape[1]:
        raise MedsegError(
            f"boxes: expected strides of two or more stages and a patch with the {sizes.voxels.shape[1]} axes of the boxes, "
            f"found {[list(row) for row in strides]} and {list(patch_size)}"
        )
    _check_classes(sizes, classes)
    seen = np.minimum(sizes.voxels, patch)
    levels, level = _levels(seen, sizes.labels, steps)
    anchors = tuple(_anchors(seen[level == one]) for one in levels)
    found = reached(sizes.voxels, anchors, steps[list(levels)], patch)
    reach = float(found.mean())
    _report_reach(sizes, found, patch, steps[levels[0]])
    names = {value: name for value, name in classes.items() if (sizes.labels == value).any()}
    of_class = {name: sizes.mm[sizes.labels == value] for value, name in names.items()}
    return BoxPlan(
        levels=levels,
        anchors=anchors,
        reach=round(reach, 4),
        smallest={name: _short(mm.min(axis=0)) for name, mm in of_class.items()},
        median={name: _short(np.median(mm, axis=0)) for name, mm in of_class.items()},
        largest={name: _short(mm.max(axis=0)) for name, mm in of_class.items()},
        rule=rule or LesionRule(),
        masks=masks,
        why=_reasons(sizes, found, levels, level, steps, names),
    )


def reached(voxels: Array, anchors: Sequence[Sizes], strides: Array, patch: Array) -> Array:
    """``(N,)`` bool: which boxes some anchor can find.

    A box is within reach of an anchor if three things hold: it is nowhere longer than the patch; nowhere shorter than a cell of
    the anchor's level, so that wherever it lies it holds the centre of a cell, as ATSS asks of a positive anchor (Zhang et al.
    2020); and centred on it, the anchor overlaps it with an IoU of `REACHED` or more.

    Args:
        voxels: ``(N, D)`` lengths of the boxes.
        anchors: sizes of each level.
        strides: ``(L, D)`` voxels of a cell of each level.
        patch: ``(D,)``.
    """
    found = np.zeros(len(voxels), bool)
    for sizes, stride in zip(anchors, strides, strict=True):
        alike = _centred_iou(voxels, np.array(sizes)).max(axis=1) >= REACHED
        found |= alike & ~_shorter(voxels, stride)
    return found & ~_longer(voxels, patch)


def cluster_sizes(voxels: Array, count: int) -> Array:
    """``(≤ count, D)`` sizes that stand for ``voxels`` (N, D), by rising volume.

    k-means with 1 − IoU of boxes with one centre as distance (Redmon & Farhadi 2017, "YOLO9000", section 2); the mean is taken
    of the logarithms, so that a box twice as long weighs as much as one half as long. It starts from the geometric means of
    ``count`` equal parts of the boxes sorted by volume, hence without chance.
    """
    logs = np.log(voxels)
    logs = logs[np.lexsort((*logs.T, logs.sum(axis=1)))]
    centres = np.stack([part.mean(axis=0) for part in np.array_split(logs, min(count, len(logs)))])
    nearest = None
    for _ in range(100):
        before, nearest = nearest, _centred_iou(np.exp(logs), np.exp(centres)).argmax(axis=1)
        if before is not None and (before == nearest).all():
            break
        used = np.unique(nearest)
        centres = np.stack([logs[nearest == one].mean(axis=0) for one in used])
        nearest = np.searchsorted(used, nearest)
    return np.exp(centres[np.argsort(centres.sum(axis=1), kind="stable")])


def _anchors(voxels: Array) -> Sizes:
    """As few sizes as reach `ENOUGH` of the boxes of one level."""
    for count in range(1, MOST_ANCHORS + 1):
        sizes = cluster_sizes(voxels, count)
        if (_centred_iou(voxels, sizes).max(axis=1) >= REACHED).mean() >= ENOUGH:
            break
    return tuple(_short(size) for size in sizes)


def _levels(voxels: Array, labels: Array, steps: Array) -> tuple[tuple[int, ...], Array]:
    """The levels in use, and the level (N,) of each box. A rare class counts as much as a common one."""
    classes = [labels == value for value in np.unique(labels)]
    own, one_cell = _coarsest(voxels, steps, CELLS[steps.shape[1]]), _coarsest(voxels, steps, 1.0)
    finest = min(
        min(_lower_quantile(own[members], 1 / 3), _lower_quantile(one_cell[members], RARE)) for members in classes
    )
    level = np.maximum(own, finest)
    for one in range(len(steps) - 1, finest, -1):
        there = level == one
        if max(there[members].mean() for members in classes) < RARE:
            level[there] = one - 1
    return tuple(int(one) for one in np.unique(level)), level


def _coarsest(voxels: Array, steps: Array, cells: float) -> Array:
    """``(N,)``: the coarsest level of which a box spans ``cells`` along every axis that is halved there; 0 if none."""
    spans = (voxels[:, None] >= (1 - SLACK) * cells * steps) | (steps == 1)
    return (np.arange(len(steps)) * spans.all(axis=2)).max(axis=1)


def _lower_quantile(values: Array, share: float) -> int:
    return int(np.quantile(values, share, method="lower"))


def _shorter(voxels: Array, cell: Array) -> Array:
    """``(N,)`` bool: shorter than a cell along some axis."""
    return np.asarray((voxels < (1 - SLACK) * cell).any(axis=1))


def _longer(voxels: Array, patch: Array) -> Array:
    """``(N,)`` bool: longer than the patch along some axis."""
    return np.asarray((voxels > (1 + SLACK) * patch).any(axis=1))


def _centred_iou(voxels: Array, sizes: Array) -> Array:
    """``(N, A)`` IoU of boxes and anchors that share their centres."""
    shared = np.minimum(voxels[:, None], sizes).prod(axis=2)
    return np.asarray(shared / (voxels.prod(axis=1)[:, None] + sizes.prod(axis=1) - shared))


def _check_classes(sizes: BoxStatistics, classes: Mapping[int, str]) -> None:
    unknown = sorted(set(sizes.labels.tolist()) - set(classes))
    if unknown:
        raise MedsegError(
            f"boxes: labels {unknown} are not among the classes {dict(classes)}; name them or mend the boxes"
        )
    absent = [name for value, name in classes.items() if not (sizes.labels == value).any()]
    if absent:
        logger.warning("no training case has a box of %s: it cannot be learnt", ", ".join(absent))


def _report_reach(sizes: BoxStatistics, found: Array, patch: Array, finest: Array) -> None:
    """Raise where no box is reached, warn where some are not, with what keeps them out."""
    if found.mean() >= ENOUGH:
        return
    long, short = _longer(sizes.voxels, patch), _shorter(sizes.voxels, finest)
    causes = {
        f"longer than the patch {_by(patch)}": long,
        f"shorter than a cell {_by(finest)} of the finest level": short,
        "unlike every anchor of a level whose cells they hold": ~found & ~long & ~short,
    }
    reasons = "; ".join(f"{int(which.sum())} are {cause}" for cause, which in causes.items() if which.any())
    span = f"{_by(_short(sizes.voxels.min(axis=0)))} to {_by(_short(sizes.voxels.max(axis=0)))} voxels"
    if not found.any():
        raise MedsegError(
            f"boxes: no lesion fits this plan: of {len(found)} boxes ({span} of its grid) {reasons}. Choose another "
            "plan.spacing or plan.patch_size, or look whether the boxes are given in the right unit"
        )
    logger.warning(
        "the anchors reach %.0f %% of %d boxes (%s): %s. plan.spacing and plan.patch_size decide what fits",
        100 * found.mean(), len(found), span, reasons,
    )  # fmt: skip


def _reasons(
    sizes: BoxStatistics, found: Array, levels: tuple[int, ...], level: Array, steps: Array, names: Mapping[int, str]
) -> dict[str, str]:
    shares = ", ".join(f"{one} (cells of {_by(steps[one])}): {(level == one).mean():.0%}" for one in levels)
    of_class = ", ".join(f"{name} {found[sizes.labels == value].mean():.1%}" for value, name in names.items())
    return {
        "levels": (
            f"a box is looked for on the coarsest of whose cells it spans {CELLS[steps.shape[1]]:g}; share of the boxes on level "
            f"{shares}"
        ),
        "anchors": f"voxels; a level's sizes clustered by IoU, as few (at most {MOST_ANCHORS}) as reach {ENOUGH:.0%} of them",
        "reach": (
            f"share of {len(found)} boxes that fit the patch, are no shorter than a cell, and have an anchor of "
            f"IoU ≥ {REACHED:g} around the same centre: {of_class}"
        ),
        "smallest": "along each axis, in mm (pictures of unknown spacing: px)",
    }


def _floats(row: Iterable[Any]) -> tuple[float, ...]:
    return tuple(float(v) for v in row)


def _short(values: Iterable[float]) -> tuple[float, ...]:
    """Three digits: more would be invented."""
    return tuple(float(f"{value:.3g}") for value in values)


def _by(values: Iterable[float]) -> str:
    return "×".join(f"{value:g}" for value in values)
