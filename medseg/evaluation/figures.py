"""Pictures of an evaluation: a metric of every case, and the worst cases to look at. Draws; knows no format of scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medseg.errors import MedsegError
from medseg.evaluation.lesions import bounding_box
from medseg.evaluation.summary import ScoredCase
from medseg.files import whole_file
from medseg.scans.box_frames import moved
from medseg.volume import Array, Geometry, Reorientation, reorientation_to

_TRUTH, _PREDICTED = "#17becf", "#ff7f0e"


def _no_boxes() -> Array:
    return np.zeros((0, 4))


@dataclass(frozen=True, eq=False)
class Overlay:
    """A slice to draw: ``image`` (I, J) of any range, truth and prediction, the spacing of both axes, and a title.

    Truth and prediction are masks (I, J) of labels, boxes (N, 4) in edges of the slice, or both. The first axis is drawn to the
    right, the second upwards where ``upwards`` (slices of volumes), else down (pictures).
    """

    title: str
    image: Array
    truth: Array
    predicted: Array
    spacing: tuple[float, float]
    upwards: bool = False
    true_boxes: Array = field(default_factory=_no_boxes)
    found_boxes: Array = field(default_factory=_no_boxes)

    @classmethod
    def of(cls, title: str, image: Array, truth: Array, predicted: Array, geometry: Geometry) -> Overlay:
        """The slice of ``(*S)`` arrays that holds most of truth and prediction together, cut to them with a margin.

        It lies across the axis of the coarsest spacing, turned as radiologists look at it (front or head up, the patient's
        right on the left). Only the cut is kept, so that many overlays fit in memory.
        """
        spacing, volume = geometry.spacing, image.ndim == 3
        if volume:
            turn, axis, spacing = _view(geometry)
            image, truth, predicted = (turn.apply(array) for array in (image, truth, predicted))
            others = tuple(a for a in range(3) if a != axis)
            at = int(np.argmax(((truth > 0) | (predicted > 0)).sum(axis=others)))
            image, truth, predicted = (np.take(array, at, axis=axis) for array in (image, truth, predicted))
        cut = _with_margin(bounding_box((truth > 0) | (predicted > 0)), image.shape)
        small = image[cut].astype(np.float32)
        return cls(title, small, truth[cut].copy(), predicted[cut].copy(), (spacing[0], spacing[1]), volume)

    @classmethod
    def of_boxes(cls, title: str, image: Array, true: Array, found: Array, geometry: Geometry) -> Overlay:
        """The slice of an image ``(*S)`` that most of the ``true`` boxes (N, 2·D) cross, then most of the ``found`` ones.

        Boxes that do not cross it are not drawn. Turned and cut as by `of`.
        """
        spacing, volume = geometry.spacing, image.ndim == 3
        if volume:
            turn, axis, spacing = _view(geometry)
            turned = turn.apply_to_geometry(geometry)
            image, true, found = turn.apply(image), moved(true, geometry, turned), moved(found, geometry, turned)
            count = [_crossing(boxes, axis, image.shape[axis]) for boxes in (true, found)]
            at = int(np.argmax(count[0].sum(axis=0) * (len(found) + 1) + count[1].sum(axis=0)))
            plane = [a for a in range(6) if a % 3 != axis]
            true, found = true[count[0][:, at]][:, plane], found[count[1][:, at]][:, plane]
            image = np.take(image, at, axis=axis)
        shown = np.concatenate([true, found])
        low, high = np.floor(shown[:, :2]).astype(int), np.ceil(shown[:, 2:]).astype(int)
        window = (
            tuple(slice(int(a), int(b)) for a, b in zip(low.min(0), high.max(0), strict=True)) if len(shown) else None
        )
        cut = _with_margin(window, image.shape)
        start = np.tile([part.start for part in cut], 2)
        small = image[cut].astype(np.float32)
        nothing = np.zeros(small.shape, np.uint8)
        edges = (spacing[0], spacing[1])
        return cls(title, small, nothing, nothing, edges, volume, true - start, found - start)


def _view(geometry: Geometry) -> tuple[Reorientation, int, tuple[float, ...]]:
    """How a volume is turned to be looked at, the axis (of the turned one) that slices lie across, and their spacing."""
    turn = reorientation_to(geometry, "LAS")
    spacing = turn.apply_to_geometry(geometry).spacing
    axis = 2 - int(np.argmax(spacing[::-1]))
    return turn, axis, tuple(spacing[a] for a in range(3) if a != axis)


def _with_margin(window: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A window of a slice with as much around it, ten pixels at least; the whole slice where there is none."""
    cut = []
    for part in window or [slice(0, length) for length in shape]:
        margin = max(10, part.stop - part.start)
        cut.append(slice(max(0, part.start - margin), part.stop + margin))
    return tuple(cut)


def _crossing(boxes: Array, axis: int, length: int) -> Array:
    """``(N, length)`` whether each box (N, 6) holds a part of each slice across ``axis``."""
    slices = np.arange(length)
    return (boxes[:, axis, None] < slices + 1) & (boxes[:, axis + 3, None] > slices)


def draw_metric(cases: Sequence[ScoredCase], path: Path, *, metric: str = "dice", title: str = "") -> None:
    """A box over a strip of points, a column a label; blank values are left out and the count stands below."""
    labels = list(dict.fromkeys(row.label for case in cases for row in case.rows))
    columns = [
        [row.value for case in cases for row in case.rows if row.label == label and row.metric == metric]
        for label in labels
    ]
    columns = [[value for value in column if not np.isnan(value)] for column in columns]
    figure = Figure(figsize=(max(5.0, 1.2 * len(labels) + 1.5), 4), layout="constrained")
    axes = figure.add_subplot()
    jitter = np.random.default_rng(0)
    for at, column in enumerate(columns, start=1):
        axes.plot(at + jitter.uniform(-0.12, 0.12, len(column)), column, "o", ms=3, alpha=0.5, color="#1f77b4", mew=0)
        if column:
            axes.boxplot([column], positions=[at], widths=0.5, showfliers=False, medianprops={"color": "black"})
    names = [f"{n}\nn = {len(c)}" for n, c in zip(labels, columns, strict=True)]
    axes.set_xticks(range(1, len(labels) + 1), names, parse_math=False)
    axes.set_xlim(0.4, len(labels) + 0.6)
    axes.set_ylabel(metric)
    if metric in ("dice", "iou", "nsd"):
        axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=8, parse_math=False)
    save_figure(figure, path)


def draw_overlays(overlays: Sequence[Overlay], path: Path, *, title: str = "") -> None:
    """Slices with the outlines of every label, and the boxes, in truth and prediction.

    Raises:
        MedsegError: there is nothing to draw.
    """
    if not overlays:
        raise MedsegError("figure: expected at least one case to draw")
    columns = min(len(overlays), 3)
    rows = -(-len(overlays) // columns)
    figure = Figure(figsize=(3.2 * columns, 3.4 * rows + 0.5), layout="constrained")
    for at, overlay in enumerate(overlays, start=1):
        axes = figure.add_subplot(rows, columns, at)
        low, high = np.percentile(overlay.image, (1, 99))
        aspect = overlay.spacing[1] / overlay.spacing[0]
        axes.imshow(overlay.image.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        if overlay.upwards:
            axes.invert_yaxis()
        for mask, colour in ((overlay.truth, _TRUTH), (overlay.predicted, _PREDICTED)):
            for label in np.unique(mask[mask > 0]) if min(mask.shape) > 1 else ():
                axes.contour((mask == label).T.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)
        for boxes, colour in ((overlay.true_boxes, _TRUTH), (overlay.found_boxes, _PREDICTED)):
            for i0, j0, i1, j1 in boxes:  # edges; imshow counts from the centre of the first pixel
                corner = (i0 - 0.5, j0 - 0.5)
                axes.add_patch(Rectangle(corner, i1 - i0, j1 - j0, fill=False, edgecolor=colour, linewidth=1.2))
        axes.set_title(overlay.title, fontsize=8, parse_math=False)
        axes.set_axis_off()
    figure.suptitle(f"{title}\ntruth: blue, prediction: orange".strip(), fontsize=9)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; no global state of pyplot is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120)
