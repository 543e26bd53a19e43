"""Pictures of an evaluation: a metric of every case, and the worst cases to look at. Draws; knows no format of scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg.errors import MedsegError
from medseg.evaluation.lesions import bounding_box
from medseg.evaluation.summary import ScoredCase
from medseg.files import whole_file
from medseg.volume import Array, Geometry, reorientation_to

_TRUTH, _PREDICTED = "#17becf", "#ff7f0e"


@dataclass(frozen=True, eq=False)
class Overlay:
    """A slice to draw: ``image`` (I, J) of any range, masks (I, J) of labels, the spacing of both axes, and a title.

    The first axis is drawn to the right, the second upwards where ``upwards`` (slices of volumes), else down (pictures).
    """

    title: str
    image: Array
    truth: Array
    predicted: Array
    spacing: tuple[float, float]
    upwards: bool = False

    @classmethod
    def of(cls, title: str, image: Array, truth: Array, predicted: Array, geometry: Geometry) -> Overlay:
        """The slice of ``(*S)`` arrays that holds most of truth and prediction together, cut to them with a margin.

        It lies across the axis of the coarsest spacing, turned as radiologists look at it (front or head up, the patient's
        right on the left). Only the cut is kept, so that many overlays fit in memory.
        """
        spacing, volume = geometry.spacing, image.ndim == 3
        if volume:
            turn = reorientation_to(geometry, "LAS")
            spacing = turn.apply_to_geometry(geometry).spacing
            image, truth, predicted = (turn.apply(array) for array in (image, truth, predicted))
            axis = 2 - int(np.argmax(spacing[::-1]))
            others = tuple(a for a in range(3) if a != axis)
            at = int(np.argmax(((truth > 0) | (predicted > 0)).sum(axis=others)))
            image, truth, predicted = (np.take(array, at, axis=axis) for array in (image, truth, predicted))
            spacing = tuple(spacing[a] for a in others)
        window = bounding_box((truth > 0) | (predicted > 0)) or (slice(0, None), slice(0, None))
        cut = []
        for part, length in zip(window, image.shape, strict=True):
            margin = max(10, (part.stop or length) - part.start)
            cut.append(slice(max(0, part.start - margin), (part.stop or length) + margin))
        at_cut = tuple(cut)
        small = image[at_cut].astype(np.float32)
        return cls(title, small, truth[at_cut].copy(), predicted[at_cut].copy(), (spacing[0], spacing[1]), volume)


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
    _save(figure, path)


def draw_overlays(overlays: Sequence[Overlay], path: Path, *, title: str = "") -> None:
    """Slices with the outlines of every label in truth and prediction.

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
        axes.set_title(overlay.title, fontsize=8, parse_math=False)
        axes.set_axis_off()
    figure.suptitle(f"{title}\ntruth: blue, prediction: orange".strip(), fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Whole or not at all; no global state of pyplot is touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=120)
