"""From a scan to the plan's grid and back: `PlannedScan`, `preprocess`, `preprocess_mask`, and their inverse `restore_mask`.

A scan is turned, cropped to where it is not zero, normalised and resampled, in that order; all that is needed to undo this
is a `Restoration`. Both ways go part by part with the halo that interpolation needs, so that neither the scan in float32 nor
the network's output, on a grid that may be ten times finer, need ever be in memory. Nothing here knows files, networks or
windows.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medseg.data.normalisation import Scale, in_order, inside_of
from medseg.data.resampling import Line, Sliced, Slices, resample_labels, resample_window
from medseg.errors import MedsegError
from medseg.planning.plan import Plan
from medseg.structures import unique_values
from medseg.volume import Array, Geometry, Reorientation, Volume, nearest_index, reorientation_to

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 26
"""What a block of scores may take that is on its way to the scan's own grid."""


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

    @property
    def kept(self) -> tuple[int, ...]:
        """Voxels of what was kept of the scan, along the plan's axes."""
        return tuple(u - low for low, u in zip(self.lower, self.upper, strict=True))

    @property
    def lines(self) -> list[Line]:
        """The way from the plan's grid to what was kept of the scan along each axis, linearly but for ``apart``."""
        sizes = zip(self.shape, self.kept, strict=True)
        return [Line(old, new, int(axis != self.apart)) for axis, (old, new) in enumerate(sizes)]

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


class PlannedScan:
    """A scan on the plan's grid, of which any part is made when it is asked for.

    It is turned, cropped, normalised and resampled. Normalisation comes before resampling, as in nnU-Net, so that statistics
    are those of measured voxels and a cubic spline does not ring at what the window clips. The same scan stored along other
    axes gives the same array, bit for bit. With ``plan.crop == "nonzero"`` a scan that is zero everywhere is kept whole: its
    prediction is background, and no error. Air stays air: where all that a voxel is made of has the scan's smallest value (or
    lies outside the head, where that is cut out), the voxel has exactly one value, as no rounding of the spline reaches it.

    Holds the volume, and of what depends on all of it the box that was kept, the statistics and the inside.

    Args:
        volume: the scan, in any number format.

    Raises:
        MedsegError: the number of channels or axes or the unit of spacing is not the plan's, or a value is not finite.
    """

    def __init__(self, volume: Volume, plan: Plan) -> None:
        data, geometry = volume.data, volume.geometry
        _check(volume, plan)
        turn = _turn(geometry, plan)
        lower, upper = _nonzero_box(data) if plan.crop == "nonzero" else ((0,) * geometry.dimensions, geometry.shape)
        self._data = turn.apply(data[(slice(None), *map(slice, lower, upper))])
        lower, upper = _turned_box(turn, geometry.shape, lower, upper)
        self.restoration = _restoration(geometry, turn, lower, upper, plan)
        spacing = turn.apply_to_geometry(geometry).spacing
        apart = None if plan.conventions is None else plan.conventions.apart(spacing, _wanted_spacing(spacing, plan))
        order = [0 if axis == apart else spline for axis, spline in enumerate(plan.image_order)]
        self._lines = [Line(*line) for line in zip(self.restoration.kept, self.restoration.shape, order, strict=True)]
        inside = plan.crop == "nonzero" and any(c.normalisation == "zscore" for c in plan.channels)
        self._inside = inside_of(self._data) if inside else None
        self._scales = [Scale.of(*pair, self._inside) for pair in zip(self._data, plan.channels, strict=True)]
        within = self._mixed and plan.conventions is not None and plan.conventions.within_range
        self._apart = apart
        self._range = self._least_and_largest() if within else None

    @property
    def shape(self) -> tuple[int, ...]:
        """``(C, *S)`` of the whole."""
        return len(self._data), *self.restoration.shape

    def __getitem__(self, window: Slices) -> Array:
        """The part within ``window``, float32: a slice of all channels, and one of the plan's grid an axis."""
        first, last = [part.start for part in window[1:]], [part.stop for part in window[1:]]
        found = resample_window(self._normalised, self._lines, first, last)
        if self._range is not None:
            np.clip(found, *(self._of_slices(end, window) for end in self._range), out=found)
        if self._mixed:
            for values, scale in zip(found, self._scales, strict=True):
                values += np.float32(scale.least)
        return np.ascontiguousarray(found)

    def whole(self) -> Array:
        """``(C, *S)`` float32."""
        return self[tuple(slice(0, n) for n in self.shape)]

    @property
    def _mixed(self) -> bool:
        """Whether a voxel is made of several; where each is one of the scan's, nothing is rounded."""
        return any(line.old != line.new and line.order for line in self._lines)

    def _least_and_largest(self) -> tuple[Array, Array]:
        """Of the normalised values of each channel, ``(C, *1)``; of each slice, where slices are resampled by themselves."""
        axis = 0 if self._apart is None else self._apart
        others = tuple(1 + other for other in range(len(self._lines)) if other != axis)
        whole = [slice(0, n) for n in self._data.shape[1:]]
        lows, highs = [], []
        for at in range(self._data.shape[1 + axis]):
            found = self._normalised((*whole[:axis], slice(at, at + 1), *whole[axis + 1 :]))
            lows.append(found.min(axis=others, keepdims=True))
            highs.append(found.max(axis=others, keepdims=True))
        low, high = (np.concatenate(ends, axis=1 + axis) for ends in (lows, highs))
        if self._apart is None:
            return low.min(axis=1, keepdims=True), high.max(axis=1, keepdims=True)
        return low, high

    def _of_slices(self, ends: Array, window: Slices) -> Array:
        """What `_least_and_largest` found, for the voxels of ``window`` along the axis that is resampled by itself."""
        if self._apart is None:
            return ends
        line, part = self._lines[self._apart], window[1 + self._apart]
        index = nearest_index(line.old, line.new)[part.start : part.stop]
        return ends.take(index, axis=1 + self._apart)

    def _normalised(self, window: Slices) -> Array:
        """Part of the turned and cropped scan; less the least value of each channel where voxels are mixed, for a mixture
        of zeros is zero without rounding."""
        # One layout for every orientation a scan is stored in: sums then run in the same order and give the same bits.
        found = in_order(self._data[(slice(None), *window)])
        inside = None if self._inside is None else self._inside[window]
        for values, scale in zip(found, self._scales, strict=True):
            scale.apply(values, inside)
            if self._mixed:
                values -= np.float32(scale.least)
        return found


def whole_restoration(geometry: Geometry, plan: Plan) -> Restoration:
    """The way back to a scan of which all is kept: what a header tells before anything is read."""
    turn = _turn(geometry, plan)
    turned = turn.apply_to_geometry(geometry)
    return _restoration(geometry, turn, (0,) * geometry.dimensions, turned.shape, plan)


def preprocess(volume: Volume, plan: Plan) -> tuple[Array, Restoration]:
    """The whole of a `PlannedScan`, ``(C, *S)`` float32, and the way back. Raises MedsegError as it does."""
    scan = PlannedScan(volume, plan)
    return scan.whole(), scan.restoration


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


class MaskOnScan:
    """A mask on the scan's own grid that is painted part by part from scores on the plan's grid.

    Args:
        decode: ``(K, *block)`` float32 scores, resampled linearly → ``(*block)`` labels from 0 up. It must look at each voxel
            by itself.
        block: the edge of a block in voxels of the scan, at most; None for what `BLOCK_BYTES` hold.
    """

    def __init__(self, restoration: Restoration, decode: Callable[[Array], Array], block: int | None = None) -> None:
        self.restoration = restoration
        self.mask: Array = np.zeros(restoration.scan.shape, np.uint8)
        self._decode, self._block = decode, block
        self._back = restoration.turn.inverse()

    def paint(self, scores: Sliced, first: Sequence[int], last: Sequence[int]) -> None:
        """Decode the voxels ``[first, last)`` of what was kept of the scan, along the plan's axes."""
        for window, part in _blocks(scores, self.restoration, self._block, first, last):
            # Decoded before it is turned: labels are turned instead of K scores, and scores lie as decoding likes it.
            labels = self._decode(part)
            needed = np.min_scalar_type(labels.max())
            if needed.itemsize > self.mask.itemsize:
                self.mask = self.mask.astype(needed)
            self.mask[window] = self._back.apply(labels)


def restore_mask(
    scores: Sliced, restoration: Restoration, decode: Callable[[Array], Array], block: int | None = None
) -> Array:
    """Labels on the scan's own grid from scores on the plan's grid, decoded block by block.

    Args:
        scores: ``(K, *S)`` float; anything that is sliced like an array will do.
        decode, block: as for `MaskOnScan`.

    Returns:
        ``restoration.scan.shape`` uint8 (uint16 where labels go beyond 255), 0 outside what was kept of the scan.
    """
    canvas = MaskOnScan(restoration, decode, block)
    canvas.paint(scores, (0,) * len(restoration.shape), restoration.kept)
    return canvas.mask


def restore_scores_blocks(
    scores: Array, restoration: Restoration, block: int | None = None
) -> Iterator[tuple[Slices, Array]]:
    """Scores resampled linearly onto the scan's own grid, a block at a time.

    Blocks do not overlap and cover what was kept of the scan; outside of it is background by definition and nothing is
    yielded.

    Yields:
        where the block lies in the scan's own axes, and its ``(K, *block)`` float32 scores in these axes.
    """
    back = restoration.turn.inverse()
    for window, part in _blocks(scores, restoration, block, (0,) * len(restoration.shape), restoration.kept):
        yield window, back.apply(part)


def restore_values(values: Array, restoration: Restoration) -> Array:
    """Numbers ``(*S)`` of the plan's grid → float32 on the scan's own grid, linearly; 0 outside what was kept of the scan."""
    restored = np.zeros(restoration.scan.shape, np.float32)
    for window, part in restore_scores_blocks(values[None], restoration):
        restored[window] = part[0]
    return restored


def _blocks(
    scores: Sliced, restoration: Restoration, block: int | None, first: Sequence[int], last: Sequence[int]
) -> Iterator[tuple[Slices, Array]]:
    """Of the box ``[first, last)`` of what was kept of the scan: where a block lies in the scan's own axes, and its scores
    along the plan's axes."""
    if tuple(scores.shape[1:]) != restoration.shape:
        raise MedsegError(f"expected scores (K, {restoration.shape}) on the plan's grid, found {tuple(scores.shape)}")
    edge = block or block_edge(scores.shape[0], len(restoration.shape))
    back = restoration.turn.inverse()
    turned = tuple(restoration.scan.shape[axis] for axis in restoration.turn.order)
    for low in itertools.product(*(range(f, n, edge) for f, n in zip(first, last, strict=True))):
        high = [min(f + edge, n) for f, n in zip(low, last, strict=True)]
        part = resample_window(lambda window: scores[(slice(None), *window)], restoration.lines, low, high)
        box = ([f + skipped for f, skipped in zip(end, restoration.lower, strict=True)] for end in (low, high))
        yield tuple(map(slice, *_turned_box(back, turned, *box))), part


def block_edge(channels: int, dimensions: int) -> int:
    """The edge in voxels of a block of ``channels`` scores that `BLOCK_BYTES` hold, 128 at most."""
    return max(1, min(128, int((BLOCK_BYTES / 4 / channels) ** (1 / dimensions))))


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


def _restoration(
    geometry: Geometry, turn: Reorientation, lower: tuple[int, ...], upper: tuple[int, ...], plan: Plan
) -> Restoration:
    """The way back from the plan's spacing, the field of view kept; pictures without spacing stay as they are."""
    spacing = turn.apply_to_geometry(geometry).spacing
    wanted = _wanted_spacing(spacing, plan)
    shape = tuple(u - low for low, u in zip(lower, upper, strict=True))
    if plan.unit != "px":
        shape = tuple(max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, wanted, strict=True))
    apart = None if plan.conventions is None else plan.conventions.apart(wanted, spacing)
    return Restoration(geometry, turn, lower, upper, shape, apart)


def _wanted_spacing(spacing: Sequence[float], plan: Plan) -> tuple[float, ...]:
    """The plan's spacing, and the scan's own along axes that are not resampled."""
    kept = plan.conventions.kept_axes if plan.conventions is not None else ()
    return tuple(spacing[axis] if axis in kept else wanted for axis, wanted in enumerate(plan.spacing))
