"""From a scan to the plan's grid and back: `preprocess`, `preprocess_mask`, and their inverse `restore_mask`.

A scan is turned, cropped to where it is not zero, normalised and resampled, in that order; all that is needed to undo this
is a `Restoration`. Going back is done block by block with the halo that interpolation needs, so that the network's output is
never in memory on the scan's own grid, which may be ten times finer. Nothing here knows files, networks or windows.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.planning.plan import Channel, Plan
from medseg.structures import unique_values
from medseg.volume import (
    Array,
    Geometry,
    Reorientation,
    Volume,
    nearest_index,
    product_along,
    reorientation_to,
    resample_array,
    resampling_matrix,
)

logger = logging.getLogger(__name__)

Slices = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Restoration:
    """How a preprocessed case goes back to its scan.

    Args:
        scan: the scan's own grid.
        turn: from the scan's axes to the plan's.
        lower, upper: what was kept of the turned scan, ``[lower, upper)`` in its voxels.
        shape: voxels of the plan's grid, which covers exactly what was kept.
        apart: axis of the plan along which scores go back to the nearest instead of linearly; None for none.
    """

    scan: Geometry
    turn: Reorientation
    lower: tuple[int, ...]
    upper: tuple[int, ...]
    shape: tuple[int, ...]
    apart: int | None = None

    @property
    def geometry(self) -> Geometry:
        """The plan's grid of this case, in the world."""
        return self.turn.apply_to_geometry(self.scan).cropped(self.lower, self.upper).reshaped(self.shape)

    def to_json(self) -> str:
        return json.dumps(
            {
                "scan": {"shape": self.scan.shape, "affine": self.scan.affine.tolist(), "unit": self.scan.unit},
                "turn": {"order": self.turn.order, "flip": self.turn.flip},
                "lower": self.lower,
                "upper": self.upper,
                "shape": self.shape,
                "apart": self.apart,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Restoration:
        """Read what `to_json` wrote; every number comes back as it was."""
        v = json.loads(text)
        scan = Geometry(tuple(v["scan"]["shape"]), np.array(v["scan"]["affine"]), v["scan"]["unit"])
        turn = Reorientation(tuple(v["turn"]["order"]), tuple(v["turn"]["flip"]))
        return cls(scan, turn, tuple(v["lower"]), tuple(v["upper"]), tuple(v["shape"]), v.get("apart"))


def preprocess(volume: Volume, plan: Plan) -> tuple[Array, Restoration]:
    """Turn, crop, normalise and resample a scan as the plan says.

    Normalisation comes before resampling, as in nnU-Net, so that statistics are those of measured voxels and a cubic spline
    does not ring at what the window clips. The same scan stored along other axes gives the same array, bit for bit. With
    ``plan.crop == "nonzero"`` a scan that is zero everywhere is kept whole: its prediction is background, and no error.

    Returns:
        ``(C, *S)`` float32 on the plan's grid, and the way back.

    Raises:
        MedsegError: the number of channels or axes or the unit of spacing is not the plan's, or a value is not finite.
    """
    data, geometry = volume.data, volume.geometry
    _check(volume, plan)
    turn = _turn(geometry, plan)
    lower, upper = _nonzero_box(data) if plan.crop == "nonzero" else ((0,) * geometry.dimensions, geometry.shape)
    data = data[(slice(None), *(slice(low, u) for low, u in zip(lower, upper, strict=True)))]
    # One layout for every orientation a scan is stored in: sums then run in the same order and give the same bits.
    data = _in_order(turn.apply(data))
    lower, upper = _turned_box(turn, geometry.shape, lower, upper)
    region = (
        _inside(data) if plan.crop == "nonzero" and any(c.normalisation == "zscore" for c in plan.channels) else None
    )
    for values, channel in zip(data, plan.channels, strict=True):
        _normalise(values, channel, region)
    spacing = turn.apply_to_geometry(geometry).spacing
    wanted = _wanted_spacing(spacing, plan)
    shape = _plan_shape(spacing, data.shape[1:], wanted, plan)
    there, back = (None, None) if plan.conventions is None else (
        plan.conventions.apart(spacing, wanted), plan.conventions.apart(wanted, spacing)
    )  # fmt: skip
    if shape != data.shape[1:]:
        data = resample_array(data, shape, [0 if axis == there else o for axis, o in enumerate(plan.image_order)])
    return data, Restoration(geometry, turn, lower, upper, shape, back)


def preprocess_mask(mask: Array, restoration: Restoration, plan: Plan) -> Array:
    """Bring a mask of the scan's own grid onto the plan's grid.

    Linear axes of ``plan.label_order`` resample each label by itself and take the largest, so that borders stay smooth and
    no value is invented; a voxel that is half label and half background is the label's, which keeps what is one voxel thin.

    Args:
        mask: ``restoration.scan.shape`` integers.

    Returns:
        ``(1, *S)`` int16.

    Raises:
        MedsegError: the shape differs from the scan's, or a value is unknown to ``plan.labels``.
    """
    if mask.shape != restoration.scan.shape:
        raise MedsegError(
            f"the mask has {'×'.join(map(str, mask.shape))} voxels, its image {restoration.scan.describe()}; resample the mask"
        )
    if mask.dtype.kind not in "iu":
        raise MedsegError(f"expected a mask of whole numbers, found {mask.dtype}")
    kept = tuple(slice(low, u) for low, u in zip(restoration.lower, restoration.upper, strict=True))
    if mask.min() < 0 or mask.max() > np.iinfo(np.int16).max:
        raise MedsegError(f"mask values run from {mask.min()} to {mask.max()}; expected 0…{np.iinfo(np.int16).max}")
    labels = np.ascontiguousarray(restoration.turn.apply(mask)[kept], dtype=np.int16)
    boxes = ndimage.find_objects(labels)
    unknown = unique_values(plan.labels, [value for value, box in enumerate(boxes, 1) if box is not None])
    if unknown:
        raise MedsegError(
            f"the mask holds {unknown}, which are not among the labels {dict(plan.labels.names)}"
            + (f" (ignore: {plan.labels.ignore})" if plan.labels.ignore is not None else "")
            + "; correct the mask, or name the values in data.labels"
        )
    if restoration.shape != labels.shape:
        labels = resample_labels(labels, boxes, restoration.shape, plan.label_order)
    return labels[None]


def restore_mask(
    scores: Array,
    restoration: Restoration,
    decode: Callable[[Array], Array],
    block: int = 128,
) -> Array:
    """Labels on the scan's own grid from scores on the plan's grid, decoded block by block.

    Args:
        scores: ``(K, *S)`` float; anything that is sliced like an array will do.
        decode: ``(K, *block)`` float32 scores, resampled linearly → ``(*block)`` labels from 0 up. It must look at each voxel
            by itself.
        block: the edge of a block in voxels of the scan.

    Returns:
        ``restoration.scan.shape`` uint8 (uint16 where labels go beyond 255), 0 outside what was kept of the scan.
    """
    mask = np.zeros(restoration.scan.shape, np.uint8)
    back = restoration.turn.inverse()
    for window, part in _blocks(scores, restoration, block):
        # Decoded before it is turned: labels are turned instead of K scores, and scores lie in memory as decoding likes it.
        labels = decode(part)
        needed = np.min_scalar_type(labels.max())
        if needed.itemsize > mask.itemsize:
            mask = mask.astype(needed)
        mask[window] = back.apply(labels)
    return mask


def restore_scores_blocks(scores: Array, restoration: Restoration, block: int = 128) -> Iterator[tuple[Slices, Array]]:
    """Scores resampled linearly onto the scan's own grid, a block at a time.

    Blocks do not overlap and cover what was kept of the scan; outside of it is background by definition and nothing is
    yielded.

    Yields:
        where the block lies in the scan's own axes, and its ``(K, *block)`` float32 scores in these axes.
    """
    back = restoration.turn.inverse()
    for window, part in _blocks(scores, restoration, block):
        yield window, back.apply(part)


def restore_values(values: Array, restoration: Restoration) -> Array:
    """Numbers ``(*S)`` of the plan's grid → float32 on the scan's own grid, linearly; 0 outside what was kept of the scan."""
    restored = np.zeros(restoration.scan.shape, np.float32)
    for window, part in restore_scores_blocks(values[None], restoration):
        restored[window] = part[0]
    return restored


def _blocks(scores: Array, restoration: Restoration, block: int) -> Iterator[tuple[Slices, Array]]:
    """Where a block lies in the scan's own axes, and its scores along the plan's axes."""
    if tuple(scores.shape[1:]) != restoration.shape:
        raise MedsegError(f"expected scores (K, {restoration.shape}) on the plan's grid, found {tuple(scores.shape)}")
    kept = tuple(u - low for low, u in zip(restoration.lower, restoration.upper, strict=True))
    back = restoration.turn.inverse()
    turned = tuple(restoration.scan.shape[axis] for axis in restoration.turn.order)
    sizes = zip(restoration.shape, kept, strict=True)
    axes = [_Line(old, new, int(axis != restoration.apart)) for axis, (old, new) in enumerate(sizes)]
    for first in itertools.product(*(range(0, n, block) for n in kept)):
        last = tuple(min(f + block, n) for f, n in zip(first, kept, strict=True))
        part = _resample_window(lambda window: scores[(slice(None), *window)], axes, first, last)
        lower = [f + low for f, low in zip(first, restoration.lower, strict=True)]
        upper = [u + low for u, low in zip(last, restoration.lower, strict=True)]
        spans = zip(*_turned_box(back, turned, lower, upper), strict=True)
        yield tuple(slice(low, u) for low, u in spans), part


def _check(volume: Volume, plan: Plan) -> None:
    names = [channel.name for channel in plan.channels]
    geometry = volume.geometry
    if geometry.dimensions != plan.dimensions:
        raise MedsegError(f"the plan is for {plan.dimensions}D scans, this one has {geometry.describe()}")
    if len(volume.data) != len(names):
        raise MedsegError(
            f"expected {len(names)} channels {names}, found {len(volume.data)}; give one image a channel, in this order"
        )
    if geometry.unit != plan.unit:
        hint = (
            "state the spacing in the file"
            if geometry.unit == "px"
            else "give pictures without spacing, as in training"
        )
        raise MedsegError(
            f"the plan's spacing is in {plan.unit}, this scan's ({geometry.describe()}) in {geometry.unit}; "
            f"{hint}, or make another plan"
        )
    if not np.isfinite(volume.data.sum(dtype=np.float64)):
        raise MedsegError("the scan holds values that are NaN or infinite; replace them, or leave the case out")


def _turn(geometry: Geometry, plan: Plan) -> Reorientation:
    if plan.orientation == "stored" or geometry.dimensions == 2:
        return Reorientation(tuple(range(geometry.dimensions)), (False,) * geometry.dimensions)
    return reorientation_to(geometry, plan.orientation)


def _turned_box(
    turn: Reorientation, shape: Sequence[int], lower: Sequence[int], upper: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the box ``[lower, upper)`` of an array of ``shape`` lies in the turned array."""
    pairs = [
        (shape[axis] - upper[axis], shape[axis] - lower[axis]) if flipped else (lower[axis], upper[axis])
        for axis, flipped in zip(turn.order, turn.flip, strict=True)
    ]
    return tuple(int(low) for low, _ in pairs), tuple(int(u) for _, u in pairs)


def _nonzero_box(data: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The smallest box around what is not zero in any channel of ``(C, *S)``; the whole where everything is zero."""
    nonzero: Array = np.asarray(data.any(axis=0))
    lower, upper = [], []
    for axis in range(nonzero.ndim):
        line = np.flatnonzero(nonzero.any(axis=tuple(a for a in range(nonzero.ndim) if a != axis)))
        if not len(line):
            logger.warning("a scan is zero everywhere; it is kept whole")
            return (0,) * nonzero.ndim, nonzero.shape
        lower.append(int(line[0]))
        upper.append(int(line[-1]) + 1)
    return tuple(lower), tuple(upper)


def _in_order(array: Array, tile: int = 32) -> Array:
    """A C-ordered float32 copy, made tile by tile: scans lie in Fortran order, and turning one at once is four times slower."""
    out = np.empty(array.shape, np.float32)
    for first in range(0, array.shape[1], tile):
        for last in range(0, array.shape[-1], tile):
            window = (slice(None), slice(first, first + tile), ..., slice(last, last + tile))
            out[window] = array[window]
    return out


def _inside(data: Array) -> Array | None:
    """``(*S)`` bool: not zero in some channel, or a hole enclosed by such voxels; None where that is everywhere.

    Holes count as inside, for a dark ventricle of exactly 0 is tissue and must not become the mean.
    """
    zero = ~data.any(axis=0)
    if not zero.any() or zero.all():
        return None
    parts, count = ndimage.label(zero)
    reaches_border = np.zeros(count + 1, bool)
    for axis in range(parts.ndim):
        for end in (0, -1):
            reaches_border[parts.take(end, axis=axis)] = True
    reaches_border[0] = False
    return ~reaches_border[parts]


def _normalise(values: Array, channel: Channel, region: Array | None) -> None:
    """Normalise one channel ``(*S)`` float32 in place.

    ``region`` is where ``zscore`` takes its statistics; outside of it the result is 0, the value that crops are padded with.
    """
    if channel.normalisation in ("zscore", "zscore_all"):
        region = region if channel.normalisation == "zscore" else None
        mean, std = _mean_std(values if region is None else values[region])
        values -= np.float32(mean)
        # A constant scan has no contrast to scale; without this, rounding errors would become the picture.
        if std > 1e-6 * abs(mean) and std > 0:
            values /= np.float32(std)
        if region is not None:
            values[~region] = 0
    elif channel.normalisation == "ct":
        np.clip(values, channel.low, channel.high, out=values)
        values -= np.float32(channel.mean)
        values /= np.float32(max(channel.std, 1e-8))
    elif channel.normalisation == "rescale":
        if channel.high <= channel.low:
            raise MedsegError(
                f"channel {channel.name!r}: rescale needs low < high in the plan, found {channel.low}…{channel.high}"
            )
        values -= np.float32(channel.low)
        values /= np.float32(channel.high - channel.low)
    elif channel.normalisation == "minmax":
        values -= values.min()
        values /= max(values.max(), np.float32(1e-8))


def _mean_std(values: Array) -> tuple[float, float]:
    """Mean and standard deviation in float64, a slab at a time so that no float64 copy of a scan is made."""
    mean = float(values.mean(dtype=np.float64))
    squares = sum(float(np.square(slab - np.float32(mean), dtype=np.float64).sum()) for slab in _slabs(values))
    return mean, float(np.sqrt(squares / values.size))


def _slabs(values: Array, size: int = 1 << 20) -> Iterator[Array]:
    flat = values.reshape(-1)
    return (flat[first : first + size] for first in range(0, flat.size, size))


def _wanted_spacing(spacing: Sequence[float], plan: Plan) -> tuple[float, ...]:
    """The plan's spacing, and the scan's own along axes that are not resampled."""
    kept = plan.conventions.kept_axes if plan.conventions is not None else ()
    return tuple(spacing[axis] if axis in kept else wanted for axis, wanted in enumerate(plan.spacing))


def _plan_shape(spacing: Sequence[float], shape: Sequence[int], wanted: Sequence[float], plan: Plan) -> tuple[int, ...]:
    """Voxels along each axis at the wanted spacing, the field of view kept; pictures without spacing stay as they are."""
    if plan.unit == "px":
        return tuple(shape)
    return tuple(max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, wanted, strict=True))


@dataclass(frozen=True)
class _Line:
    """Resampling along one axis, ``old`` voxels → ``new``, of which any part can be asked for."""

    old: int
    new: int
    order: int

    def touched(self, first: int, last: int) -> tuple[int, int]:
        """The old voxels that the new voxels ``[first, last)`` are made of."""
        if self.old == self.new:
            return first, last
        if self.order == 0:
            index = nearest_index(self.old, self.new)[first:last]
            return int(index[0]), int(index[-1]) + 1
        columns = np.flatnonzero(resampling_matrix(self.old, self.new, self.order)[first:last].any(axis=0))
        return int(columns[0]), int(columns[-1]) + 1

    def reached(self, first: int, last: int) -> tuple[int, int]:
        """The new voxels in which the old voxels ``[first, last)`` have a part; empty where they fall between."""
        if self.old == self.new:
            return first, last
        if self.order == 0:
            index = nearest_index(self.old, self.new)
            return int(np.searchsorted(index, first)), int(np.searchsorted(index, last))
        rows = np.flatnonzero(resampling_matrix(self.old, self.new, self.order)[:, first:last].any(axis=1))
        return (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)

    def apply(self, array: Array, axis: int, first: int, last: int) -> Array:
        """``array`` holds the `touched` voxels along ``axis``; make the new voxels ``[first, last)`` of them."""
        if self.old == self.new:
            return array
        low, high = self.touched(first, last)
        if self.order == 0:
            return array.take(nearest_index(self.old, self.new)[first:last] - low, axis=axis)
        return product_along(array, resampling_matrix(self.old, self.new, self.order)[first:last, low:high], axis)


def _resample_window(
    read: Callable[[Slices], Any], axes: Sequence[_Line], first: Sequence[int], last: Sequence[int]
) -> Array:
    """The part ``[first, last)`` of a resampled array, float32, from the part that ``read`` gives of the old one."""
    touched = [line.touched(low, u) for line, low, u in zip(axes, first, last, strict=True)]
    part = np.asarray(read(tuple(slice(low, u) for low, u in touched)), np.float32)
    leading = part.ndim - len(axes)
    # The axes that grow least go first, so that the rest have less to do.
    for axis in sorted(range(len(axes)), key=lambda a: (last[a] - first[a]) / part.shape[leading + a]):
        part = axes[axis].apply(part, leading + axis, first[axis], last[axis])
    return part


def resample_labels(
    labels: Array, boxes: Sequence[Slices | None], shape: tuple[int, ...], order: Sequence[int]
) -> Array:
    """``(*S)`` int16 labels → ``shape``: the label with the largest share of each new voxel.

    Each label is looked at only where it reaches, so that a hundred organs cost little more than one. ``boxes`` are those of
    ``scipy.ndimage.find_objects``.
    """
    if not any(order):
        return resample_array(labels, shape, 0)
    axes = [_Line(old, new, o) for old, new, o in zip(labels.shape, shape, order, strict=True)]
    result = np.zeros(shape, np.int16)
    best = np.zeros(shape, np.float32)
    taken = np.zeros(shape, np.float32)
    for value, box in enumerate(boxes, 1):
        if box is None:
            continue
        spans = [line.reached(s.start, s.stop) for line, s in zip(axes, box, strict=True)]
        first, last = [low for low, _ in spans], [u for _, u in spans]
        if any(low >= u for low, u in spans):
            continue
        window = tuple(slice(low, u) for low, u in spans)
        share = _resample_window(lambda part, v=value: labels[part] == v, axes, first, last)  # type: ignore[misc]
        better = share > best[window] + 1e-6
        result[window][better] = value
        np.maximum(best[window], share, out=best[window])
        taken[window] += share
    # Shares sum to one, so what the labels leave is background's.
    result[best < 1 - taken - 1e-6] = 0
    return result
