"""From the statistics of the training cases to a Plan in which every value carries its reason.

Owns the rules, which are those of nnU-Net (Isensee et al. 2021, Nature Methods 18:203, "nnU-Net: a self-configuring method";
Isensee et al. 2024, "nnU-Net Revisited", for the residual encoder) with a stated memory budget. Reads no file, knows no network
beyond its kind and the divisor of its input size. What the user sets is obeyed, and what depends on it is derived again.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from medseg.errors import MedsegError
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.normalisation import plan_channels, short
from medseg.planning.overrides import check_whole, checked_overrides, positive, whole
from medseg.planning.plan import Channel, Plan
from medseg.planning.topology import (
    ANISOTROPY,
    BLOCKS,
    BYTES_PER_WEIGHT,
    LARGEST_WIDTH,
    SMALLEST_MAP,
    Encoder,
    Stages,
    activation_bytes,
    count_weights,
    plan_blocks,
    plan_features,
    plan_kernels,
    plan_strides,
    training_bytes,
)
from medseg.structures import LabelTable
from medseg.volume import Array

logger = logging.getLogger(__name__)

COARSE = 3.0
"""An axis along which slices lie this much further apart than the voxels within them is resampled on its own."""
CROP_SAVES = 0.25
"""Images are cropped to what is not zero if that saves this share of their voxels."""
WIDTHS = (32, 24, 16)
"""Features of the first stage: nnU-Net's 32, or the next that leaves room for patches."""
WEIGHTS_SHARE = 1 / 2
"""The weights may take this share of the memory budget before a narrower network is taken."""
FAIR_PATCH = {2: 256**2, 3: 64**3}
"""A patch of fewer voxels (unless cases are smaller) makes the network narrower instead."""
SEEN_BY_BATCH = 0.05
MOST_CASES = 32
"""Whole cases that a batch holds at most: more are slower and teach no more."""
FOREGROUND = 0.33
_EMPTY: Mapping[str, Any] = MappingProxyType({})
_CONFIGURED = "as configured"


def make_plan(
    fingerprint: Fingerprint,
    channels: Sequence[str],
    labels: LabelTable,
    *,
    task: str = "segmentation",
    memory_gb: float = 4.0,
    orientation: str | None = None,
    divisor: int | Sequence[int] | None = None,
    encoder: Encoder = "plain",
    batch_size: int | None = None,
    width: int | None = None,
    normalisation: str | Sequence[str] | None = None,
    match: Mapping[str, str] | None = None,
    whole_cases: bool = False,
    overrides: Mapping[str, Any] = _EMPTY,
) -> Plan:
    """Plan for these cases; the same input gives the same plan.

    Args:
        channels: a name a channel; ``CT`` decides normalisation where the files do not say the modality.
        memory_gb: what training may take for weights and activations (`topology.training_bytes`).
        orientation: ``RAS`` (default in 3D) or ``stored`` (pictures always).
        divisor: of the network's input size, where it does not follow from the plan's strides.
        encoder: of convolutions or of residual blocks: decides the blocks of each stage.
        batch_size: samples a step; by default from the memory and the size of the data set.
        width: features of the first stage; by default 32, less where the budget asks for it.
        normalisation: one for all channels or one a channel; by default from the modality.
        match: channel name → regular expression by which prediction finds its DICOM series among a patient's.
        whole_cases: whether a patch should hold all of any case, as far as the memory allows: where one answer is wanted for a
            case, not one a voxel.
        overrides: any value of a Plan by its name; what depends on it is derived from it.

    Raises:
        MedsegError: an override that a plan does not have, of the wrong form, or that contradicts another or the data.
    """
    if encoder not in get_args(Encoder):
        raise MedsegError(f"network: its encoder is {encoder!r}; expected one of {get_args(Encoder)}")
    given = checked_overrides({"batch_size": batch_size, "orientation": orientation} | _set(overrides), fingerprint)
    budget = given.get("memory_gb", positive("plan.memory_gb", memory_gb))
    why: dict[str, str] = {"memory_gb": "what training may take for weights and activations, in GB of 10⁹ bytes"}
    grids = _oriented(fingerprint, given.get("orientation"), why)
    planned_channels, why["channels"] = plan_channels(fingerprint.channels, channels, normalisation, match)
    crop = given.get("crop") or _crop(grids, planned_channels, why)
    spacing, coarse = _spacing(grids, given.get("spacing"), fingerprint.unit, why)
    shapes = (grids.crops if crop == "nonzero" else grids.shapes) * grids.spacings / spacing
    demand = _Demand(
        spacing=spacing,
        shapes=np.maximum(np.rint(shapes), 1).astype(int),
        channels=len(planned_channels),
        outputs=len(labels.outputs),
        budget=budget * 1e9,
        divisor=_divisor(divisor, len(spacing)),
        encoder=encoder,
        given=given,
        whole_cases=whole_cases,
    )
    patch, stages = _network(demand, None if width is None else whole("plan.width", width), why)
    image_order, label_order = _orders(len(spacing), coarse, why)
    why |= {
        "task": "what was asked for",
        "labels": "as the data set names them",
        "unit": "the files state their spacing" if fingerprint.unit == "mm" else "pictures of unknown spacing",
        "options": "reader options that these cases were measured with",
    }
    why["foreground"] = "a third of the crops are centred on a label, so that small ones are seen often"
    plan = Plan(
        task=task,
        orientation=grids.orientation,  # type: ignore[arg-type]
        channels=planned_channels,
        labels=labels,
        crop=crop,
        spacing=spacing,
        unit=fingerprint.unit,
        image_order=image_order,
        label_order=label_order,
        patch_size=patch,
        batch_size=_batch(demand, patch, stages, why),
        features=stages.features,
        strides=stages.strides,
        kernel_sizes=stages.kernel_sizes,
        blocks=stages.blocks,
        mirror_axes=_mirror(labels, grids, why),
        foreground=FOREGROUND,
        memory_gb=budget,
        options=dict(fingerprint.options),
        why=why,
    )
    try:
        plan = plan.changed(why=_CONFIGURED, **given)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise MedsegError(f"plan: {', '.join(f'{k}={v}' for k, v in given.items())}: wrong type ({error})") from None
    check_whole(plan, demand.divisor, fingerprint)
    return plan


@dataclass(frozen=True, eq=False)
class _Grids:
    """Every case's grid along the plan's axes, ``(N, D)`` each; ``side`` is the axis from left to right."""

    orientation: str
    shapes: Array
    crops: Array
    spacings: Array
    side: int


@dataclass(frozen=True, eq=False)
class _Demand:
    """What the network is planned for; ``shapes`` (N, D) are the cases on the plan's grid, ``budget`` is in bytes."""

    spacing: tuple[float, ...]
    shapes: Array
    channels: int
    outputs: int
    budget: float
    divisor: tuple[int, ...]
    encoder: Encoder
    given: Mapping[str, Any]
    whole_cases: bool = False

    @property
    def wanted(self) -> tuple[int, ...]:
        """What a patch should cover: the median case, or every case."""
        covered = self.shapes.max(axis=0) if self.whole_cases else np.median(self.shapes, axis=0)
        return tuple(math.ceil(n) for n in covered)

    @property
    def wanted_name(self) -> str:
        return "the largest case along each axis" if self.whole_cases else "the median case"

    @property
    def least_batch(self) -> int:
        return int(self.given.get("batch_size", 2))

    def bytes(self, patch: Sequence[int], batch: int, stages: Stages) -> int:
        return training_bytes(patch, batch, stages, self.channels, self.outputs)


def _oriented(fingerprint: Fingerprint, orientation: str | None, why: dict[str, str]) -> _Grids:
    dimensions = fingerprint.dimensions
    if dimensions == 2:
        if orientation not in (None, "stored"):
            raise MedsegError(
                f"plan.orientation {orientation!r}: pictures keep the orientation in which they are stored"
            )
        why["orientation"] = "pictures have no orientation in the patient"
    elif orientation not in (None, "RAS", "stored"):
        raise MedsegError(f"plan.orientation {orientation!r}: expected RAS or stored")
    else:
        why["orientation"] = "scans are turned to RAS, so that the same anatomy always lies along the same axes"
    stored = dimensions == 2 or orientation == "stored"
    rows, sides = [], []
    for case in fingerprint.cases:
        order = np.argsort(case.stored) if stored else np.arange(dimensions)
        rows.append(np.array([case.shape, case.crop, case.spacing], float)[:, order])
        sides.append(int(np.flatnonzero(order == 0)[0]))
    table = np.stack(rows, 1)
    return _Grids("stored" if stored else "RAS", table[0], table[1], table[2], max(set(sides), key=sides.count))


def _crop(grids: _Grids, channels: Sequence[Channel], why: dict[str, str]) -> Literal["nonzero", "none"]:
    saved = 1 - float(np.median(grids.crops.prod(1) / grids.shapes.prod(1)))
    found = f"the box around the non-zero voxels is {saved:.0%} smaller than the image (median)"
    if any(channel.normalisation == "ct" for channel in channels):
        why["crop"] = "0 HU is water, not emptiness"
        return "none"
    if saved >= CROP_SAVES:
        why["crop"] = (
            f"{found}; from {CROP_SAVES:.0%} on images are cropped to it and normalised within the non-zero voxels"
        )
        return "nonzero"
    why["crop"] = f"{found}, less than {CROP_SAVES:.0%}"
    return "none"


def _spacing(
    grids: _Grids, given: Sequence[float] | None, unit: str, why: dict[str, str]
) -> tuple[tuple[float, ...], int | None]:
    """The target spacing, and the axis along which the slices lie so far apart that it is resampled on its own."""
    median = np.median(grids.spacings, axis=0)
    size = np.median(grids.shapes, axis=0)
    count = f"{len(grids.shapes)} cases ({_span(grids.spacings)} {unit})"
    target, coarse = median.copy(), None
    why["spacing"] = f"median of {count}"
    if len(median) == 3:
        axis = int(np.argmax(median))
        others = np.delete(median, axis)
        if median[axis] > COARSE * others.max() and size[axis] * COARSE < np.delete(size, axis).min():
            coarse = axis
            tenth = float(np.percentile(grids.spacings[:, axis], 10))
            target[axis] = max(tenth, others.max())
            why["spacing"] = (
                f"median of {count}; along axis {axis} slices lie more than {COARSE:g}× further apart "
                f"({median[axis]:.4g}) than the voxels within them ({others.max():.4g}) and are few ({size[axis]:g}), so the "
                f"10th percentile {tenth:.4g} is taken there to lose less of the finer scans"
            )
    if given is not None:
        return tuple(given), coarse
    return tuple(short(s) for s in target), coarse


def _orders(dimensions: int, coarse: int | None, why: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if coarse is None:
        why["image_order"], why["label_order"] = "cubic", "linear on each label, the largest wins: smooth borders"
    else:
        why["image_order"] = (
            f"cubic within the slices; nearest along axis {coarse}, where slices are too far apart to blend"
        )
        why["label_order"] = f"linear within the slices, nearest along axis {coarse}, as for images"
    image = tuple(0 if axis == coarse else 3 for axis in range(dimensions))
    return image, tuple(min(order, 1) for order in image)


def _network(demand: _Demand, width: int | None, why: dict[str, str]) -> tuple[tuple[int, ...], Stages]:
    """Patch and stages: the largest patch within the budget, at the widest network that leaves room for a fair patch."""
    given = demand.given
    dimensions = len(demand.spacing)
    fixed_width = given["features"][0] if "features" in given else width
    if fixed_width is not None and fixed_width < 1:
        raise MedsegError(f"plan.width={fixed_width}: expected 1 or more")
    fair = min(FAIR_PATCH[dimensions], math.prod(demand.wanted))
    reasons = []
    for candidate in (fixed_width,) if fixed_width is not None else WIDTHS:
        patch, stages = _patch(demand, candidate)
        weights = BYTES_PER_WEIGHT * count_weights(stages, demand.channels, demand.outputs)
        if weights > WEIGHTS_SHARE * demand.budget:
            reasons.append(f"with {candidate} the weights alone take {weights / 1e9:.2g} GB, over half of the budget")
        elif math.prod(patch) < fair or demand.bytes(patch, demand.least_batch, stages) > demand.budget:
            reasons.append(f"with {candidate} the budget leaves a patch of {_by(patch)} only")
        else:
            break
    if fixed_width is not None:
        reasons = [_CONFIGURED]
    why["features"] = (
        f"{stages.features[0]} in the first stage, doubled in each up to {LARGEST_WIDTH[dimensions]}"
        f" ({'; '.join(reasons) or 'the width that nnU-Net uses; the budget allows it'})"
    )
    _explain_network(demand, patch, stages, why)
    return patch, stages


def _patch(demand: _Demand, width: int) -> tuple[tuple[int, ...], Stages]:
    """Shrink the axis that covers most of what is wanted until a training step fits in the budget."""
    if "patch_size" in demand.given:
        return _given_patch(demand, width)
    wanted, least = demand.wanted, 2 * SMALLEST_MAP
    # A network needs something to halve: cases smaller than that are padded.
    wish = [max(n, least) for n in wanted] if max(wanted) < least else list(wanted)
    floor = [min(n, least) for n in wish]
    while True:
        stages = _stages(demand, wish, width)
        step = _common(stages.divisor, demand.divisor)
        patch = _rounded_up(wish, step)
        if demand.bytes(patch, demand.least_batch, stages) <= demand.budget:
            return patch, stages
        can = [a for a, n in enumerate(patch) if n - step[a] >= max(floor[a], 2 * step[a] if step[a] > 1 else 1)]
        if not can:
            return patch, stages
        axis = max(can, key=lambda a: (patch[a] / wanted[a], patch[a], -a))
        wish[axis] = patch[axis] - step[axis]


def _given_patch(demand: _Demand, width: int) -> tuple[tuple[int, ...], Stages]:
    patch: tuple[int, ...] = demand.given["patch_size"]
    stages = _stages(demand, patch, width)
    step = _common(stages.divisor, demand.divisor)
    if any(n % s for n, s in zip(patch, step, strict=True)):
        near = [sorted({max(n // s, 1) * s, -(-n // s) * s}) for n, s in zip(patch, step, strict=True)]
        raise MedsegError(
            f"plan.patch_size={list(patch)}: with {len(stages.strides)} stages it must be multiples of {list(step)}; nearest: "
            f"{', '.join(' or '.join(map(str, choice)) for choice in near)}"
        )
    return patch, stages


def _stages(demand: _Demand, patch: Sequence[int], width: int) -> Stages:
    """Stages for ``patch``: those that the user set, the rest from the rules, as many as the user's."""
    given = demand.given
    lengths = {name: len(given[name]) for name in ("features", "strides", "kernel_sizes", "blocks") if name in given}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"plan.{name} {n}" for name, n in lengths.items())
        raise MedsegError(f"one entry a stage is expected, found {found}; give them the same length or leave some out")
    wanted = next(iter(lengths.values()), None)
    strides = given["strides"] if "strides" in given else plan_strides(patch, demand.spacing, wanted)
    if wanted is not None and len(strides) < wanted:
        raise MedsegError(
            f"plan.{next(iter(lengths))} has {wanted} stages, but a patch of {_by(patch)} can be halved into "
            f"{len(strides)} at most; give fewer stages or a larger plan.patch_size"
        )
    count = len(strides)
    return Stages(
        encoder=demand.encoder,
        features=given["features"] if "features" in given else plan_features(width, count, len(demand.spacing)),
        strides=strides,
        kernel_sizes=given["kernel_sizes"] if "kernel_sizes" in given else plan_kernels(patch, demand.spacing, strides),
        blocks=given["blocks"] if "blocks" in given else plan_blocks(BLOCKS[demand.encoder], count),
    )


def _explain_network(demand: _Demand, patch: Sequence[int], stages: Stages, why: dict[str, str]) -> None:
    batch = demand.least_batch
    needed = demand.bytes(patch, batch, stages)
    fits = needed <= demand.budget
    smaller = any(p < n for p, n in zip(patch, demand.wanted, strict=True))
    why["patch_size"] = (
        f"{demand.wanted_name} is {_by(demand.wanted)} on this grid, "
        f"{'made smaller to fit the budget' if smaller else 'rounded up'}, in multiples of "
        f"{_by(_common(stages.divisor, demand.divisor))}; training on {batch} of them takes about "
        f"{needed / 1e9:.2g} GB, {'within' if fits else 'more than'} {demand.budget / 1e9:g} GB"
    )
    if not fits:
        logger.warning(
            "training on %d patches of %s takes about %.2g GB, more than plan.memory_gb=%g; it may not fit",
            batch, _by(patch), needed / 1e9, demand.budget / 1e9,
        )  # fmt: skip
    deepest = [n // d for n, d in zip(patch, stages.divisor, strict=True)]
    why["strides"] = (
        f"an axis is halved while it has {2 * SMALLEST_MAP} voxels or more and is not {ANISOTROPY:g}× as coarse as another "
        f"such axis: {len(stages.strides)} stages, {_by(patch)} becomes {_by(deepest)}"
    )
    thin = [axis for axis, kernel in enumerate(stages.kernel_sizes[0]) if kernel == 1]
    why["kernel_sizes"] = (
        f"3 along every axis; 1 along axis {thin[0]} while its spacing is {ANISOTROPY:g}× or more the finest"
        if thin
        else f"3 along every axis: no spacing is {ANISOTROPY:g}× the finest or more"
    )
    millions = count_weights(stages, demand.channels, demand.outputs) / 1e6
    kind = "residual blocks" if demand.encoder == "residual" else "convolutions"
    why["blocks"] = f"{kind} of each stage of the encoder, as in nnU-Net; {millions:.3g} million weights in all"


def _batch(demand: _Demand, patch: Sequence[int], stages: Stages, why: dict[str, str]) -> int:
    """As many samples as fit in the budget, but fewer than show 5 % of all voxels at once; two at least."""
    weights = BYTES_PER_WEIGHT * count_weights(stages, demand.channels, demand.outputs)
    sample = activation_bytes(patch, stages, demand.channels, demand.outputs)
    by_memory = int((demand.budget - weights) // sample)
    seen = math.prod(min(p, n) for p, n in zip(patch, demand.wanted, strict=True))
    voxels = float(demand.shapes.prod(1, dtype=float).sum())
    by_data = max(math.ceil(SEEN_BY_BATCH * voxels / seen) - 1, 0)
    if demand.whole_cases:
        by_data = min(by_data, MOST_CASES)
    batch = int(demand.given.get("batch_size", max(2, min(by_memory, by_data))))
    why["batch_size"] = (
        f"{max(by_memory, 0)} fit in {demand.budget / 1e9:g} GB ({sample / 1e9:.2g} GB each beside {weights / 1e9:.2g} GB for "
        f"the weights), and up to {by_data} show less than {SEEN_BY_BATCH:.0%} of the data set's {voxels / 1e6:.3g} million "
        f"voxels at once{f' ({MOST_CASES} at most)' if demand.whole_cases else ''}; the smaller of the two, but at least 2"
    )
    return batch


def _mirror(labels: LabelTable, grids: _Grids, why: dict[str, str]) -> tuple[int, ...]:
    axes = range(grids.shapes.shape[1])
    sided = [name for name in labels.targets if re.search(r"(?<![a-z])(left|right)(?![a-z])", name.lower())]
    if sided:
        why["mirror_axes"] = f"all but axis {grids.side}: a mirrored {sided[0]!r} would be one of the other side"
        return tuple(axis for axis in axes if axis != grids.side)
    why["mirror_axes"] = "all axes: no label tells left from right"
    return tuple(axes)


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _divisor(divisor: int | Sequence[int] | None, dimensions: int) -> tuple[int, ...]:
    if divisor is None or isinstance(divisor, int):
        return (divisor or 1,) * dimensions
    if len(divisor) != dimensions:
        raise MedsegError(f"network: its divisor {list(divisor)} has {len(divisor)} axes, the data {dimensions}")
    return tuple(int(d) for d in divisor)


def _common(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.lcm(a, b) for a, b in zip(one, other, strict=True))


def _rounded_up(shape: Sequence[int], step: Sequence[int]) -> tuple[int, ...]:
    """The next multiples of ``step``; twice the step along the longest axis where else one voxel would be left."""
    patch = [-(-n // s) * s for n, s in zip(shape, step, strict=True)]
    if patch == list(step):
        patch[max(range(len(patch)), key=lambda axis: shape[axis])] *= 2
    return tuple(patch)


def _by(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def _span(spacings: Array) -> str:
    low, high = spacings.min(0), spacings.max(0)
    text = "×".join(f"{s:.4g}" for s in low)
    return f"all {text}" if np.allclose(low, high, rtol=1e-3) else f"{text} to {'×'.join(f'{s:.4g}' for s in high)}"
