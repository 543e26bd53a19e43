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
from typing import Any, get_args

import numpy as np

from medseg.errors import MedsegError
from medseg.planning.fingerprint import Fingerprint
from medseg.planning.grids import Grids, oriented, plan_crop, plan_orders, plan_spacing
from medseg.planning.normalisation import plan_channels
from medseg.planning.overrides import check_whole, checked_overrides, positive, whole
from medseg.planning.plan import Plan
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
        divisor: of the network's input size, where it does not follow from the plan's strides; of such a network nobody knows
            the memory, and the plan is made, and says so, as for a U-Net.
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
    grids = oriented(fingerprint, given.get("orientation"), why)
    planned_channels, why["channels"] = plan_channels(fingerprint.channels, channels, normalisation, match)
    crop = given.get("crop") or plan_crop(grids, planned_channels, why)
    spacing, coarse = plan_spacing(grids, given.get("spacing"), fingerprint.unit, why)
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
        foreign=divisor is not None,
    )
    patch, stages = _network(demand, None if width is None else whole("plan.width", width), why)
    image_order, label_order = plan_orders(len(spacing), coarse, why)
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
class _Demand:
    """What the network is planned for; ``shapes`` (N, D) are the cases on the plan's grid, ``budget`` is in bytes.

    ``foreign``: the network does not obey the plan's stages, so that what it takes can only be guessed from a U-Net of them.
    """

    spacing: tuple[float, ...]
    shapes: Array
    channels: int
    outputs: int
    budget: float
    divisor: tuple[int, ...]
    encoder: Encoder
    given: Mapping[str, Any]
    whole_cases: bool = False
    foreign: bool = False

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
        f"{needed / 1e9:.2g} GB, {'within' if fits else 'more than'} {demand.budget / 1e9:g} GB{_guessed(demand)}"
    )
    if not fits:
        logger.warning(
            "training on %d patches of %s takes about %.2g GB, more than plan.memory_gb=%g; it may not fit%s",
            batch, _by(patch), needed / 1e9, demand.budget / 1e9, _guessed(demand),
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
        f"{_guessed(demand)}"
    )
    return batch


def _guessed(demand: _Demand) -> str:
    """What has to be known of numbers of bytes that are those of another network."""
    return "; memory is that of a U-Net of these stages, as nobody knows that of this network" if demand.foreign else ""


def _mirror(labels: LabelTable, grids: Grids, why: dict[str, str]) -> tuple[int, ...]:
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
