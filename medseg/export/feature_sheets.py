"""Sheets of what a network has learned: a tile a filter, a channel or an input, each with its title, in one PNG.

Volumes are shown by the slice in the middle of their third axis, as they lie on the plan's grid: of scans that were turned to RAS
it is axial, the patient's right on the left and anterior up; of scans as they are stored it is whatever lies along that axis.
What is on a sheet is decided elsewhere; nothing here is meant for measuring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from medseg.errors import MedsegError
from medseg.evaluation.figures import save_figure
from medseg.volume import Array

MOST_TILES = 64
_COLUMNS = 8
_INCH = 1.5


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a sheet: ``values`` ``(I, J)`` or ``(I, J, 3)``; grey from its lowest to its highest value or, where
    ``signed``, blue below 0 and red above."""

    title: str
    values: Array
    signed: bool = False


def filter_tiles(weights: Array) -> list[Tile]:
    """A tile a filter and input channel of weights ``(K, C, *kernel)``, at most `MOST_TILES`: as many filters as fit whole."""
    filters, channels = weights.shape[:2]
    shown = max(1, min(filters, MOST_TILES // channels))
    several = channels > 1
    return [
        Tile(f"{k}, input {c}" if several else str(k), central_slice(weights[k, c]), signed=True)
        for k in range(shown)
        for c in range(channels)
    ]


def activation_tiles(image: Array, answers: Array, channels: Sequence[int]) -> list[Tile]:
    """The image ``(C, *S)`` and then what the ``channels`` of a layer answer to it, ``(K, *s)``."""
    tiles = [Tile("input", _as_picture(image))]
    return [*tiles, *(Tile(f"channel {k}", central_slice(answers[k]), signed=True) for k in channels[: MOST_TILES - 1])]


def input_tiles(inputs: dict[int, Array]) -> list[Tile]:
    """Channel → the input ``(C, *S)`` that excites it most, a tile each."""
    return [Tile(f"channel {k}", _as_picture(image)) for k, image in inputs.items()]


def draw_sheet(tiles: Sequence[Tile], path: Path, *, title: str) -> Path:
    """Put tiles into one PNG, below each other in rows of eight: whole or not at all; returns the path.

    Raises:
        MedsegError: there is nothing to draw.
    """
    if not tiles:
        raise MedsegError("sheet: expected at least one tile to draw")
    columns = min(len(tiles), _COLUMNS)
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(max(_INCH * columns, 4.0), (_INCH + 0.25) * rows + 0.5), layout="constrained")
    for at, tile in enumerate(tiles, start=1):
        axes = figure.add_subplot(rows, columns, at)
        values = np.swapaxes(tile.values, 0, 1)
        if tile.signed:
            limit = float(np.abs(values).max()) or 1.0
            axes.imshow(values, cmap="coolwarm", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_title(f"{tile.title}\n±{limit:.2g}", fontsize=7, parse_math=False)
        else:
            low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
            shown = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"{tile.title}\n{low:.2g} to {high:.2g}", fontsize=7, parse_math=False)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=8, parse_math=False)
    save_figure(figure, path)
    return path


def central_slice(values: Array) -> Array:
    """``(I, J)`` of ``(I, J)`` or, from the middle of K and turned as RAS+ is looked at, of ``(I, J, K)``."""
    return values if values.ndim == 2 else values[::-1, ::-1, values.shape[2] // 2]


def _as_picture(image: Array) -> Array:
    """The central slice of ``(C, *S)``: in colour where there are three channels of a picture, else of the first."""
    if len(image) == 3 and image.ndim == 3:
        return np.moveaxis(image, 0, -1)
    return central_slice(image[0])
