"""How slices of a scan are shown to people: cut through one voxel, in grey, in true proportions, the patient's right on the left,
anterior and superior up. What is drawn over them is decided elsewhere, and nothing here is meant for measuring.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medseg.files import whole_file
from medseg.volume import Array

TILE_PX = 256
"""Edge of the square into which a slice is fitted; a picture has twice as much."""
LEGEND_PX = 18


@dataclass(frozen=True, eq=False)
class Cut:
    """One slice of a case as it lies in a square tile.

    Args:
        image: ``(I, J)`` or, in colour, ``(I, J, 3)``, of any range.
        spacing: of both axes.
        axis, at: which slice of a volume it is, whose axes run along RAS+; the axis of a picture is None.
    """

    image: Array
    spacing: tuple[float, float]
    axis: int | None = None
    at: int = 0

    @property
    def edge(self) -> int:
        """Of the tile, in px."""
        return 2 * TILE_PX if self.axis is None else TILE_PX

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px that the slice takes of its tile."""
        lengths = [n * s for n, s in zip(self.image.shape[:2], self.spacing, strict=True)]
        return tuple(max(1, round(self.edge * length / max(lengths))) for length in lengths)  # type: ignore[return-value]

    def of(self, values: Array) -> Array:
        """The same slice ``(I, J)`` of other values ``(*S)`` of the case."""
        return values if self.axis is None else values[(slice(None),) * self.axis + (self.at,)]

    def scaled(self, values: Array, how: Image.Resampling) -> Array:
        """Values ``(I, J[, 3])`` of the slice as pixels ``(height, width[, 3])``; a volume's are flipped along both axes."""
        rows = np.swapaxes(values, 0, 1)
        rows = rows if self.axis is None else rows[::-1, ::-1]
        return np.asarray(Image.fromarray(np.ascontiguousarray(rows)).resize(self.size, how))

    def canvas(self) -> Array:
        """The slice in grey, or in its colours, ``(height, width, 3)`` float32 from 0 to 255, to be drawn upon."""
        low, high = np.percentile(self.image, (0.5, 99.5)) if self.image.size else (0.0, 1.0)
        grey = np.clip((self.image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        base = self.scaled(grey, Image.Resampling.BILINEAR).astype(np.float32)
        return np.repeat(base[..., None], 3, axis=-1) if base.ndim == 2 else base

    def tile(self, shown: Image.Image) -> Image.Image:
        """A picture of the slice, of its `size`, in the middle of a black square."""
        tile = Image.new("RGB", (self.edge, self.edge))
        tile.paste(shown, ((self.edge - self.size[0]) // 2, (self.edge - self.size[1]) // 2))
        return tile


def cuts(data: Array, spacing: Sequence[float], place: Sequence[int]) -> list[Cut]:
    """The slices that are shown of ``(C, *S)``: a picture itself; of a volume (its first channel) the axial, coronal and sagittal
    one through the voxel ``place``."""
    if data.ndim == 3:
        image = np.moveaxis(data, 0, -1) if len(data) == 3 else data[0]
        return [Cut(image, (spacing[0], spacing[1]))]
    found = []
    for axis in (2, 1, 0):
        first, second = (a for a in range(3) if a != axis)
        image = data[0][(slice(None),) * axis + (place[axis],)]
        found.append(Cut(image, (spacing[first], spacing[second]), axis, place[axis]))
    return found


def save_page(rows: Sequence[Sequence[Image.Image]], legend: Image.Image, path: Path) -> Path:
    """Put tiles of one size, a row each, and a legend below them into one PNG: whole or not at all; returns the path."""
    edge = rows[0][0].width
    page = Image.new("RGB", (edge * len(rows[0]), edge * len(rows) + legend.height))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            page.paste(tile, (x * edge, y * edge))
    page.paste(legend, (0, edge * len(rows)))
    png = io.BytesIO()  # Pillow says "encoder error" of a full disk; bytes make it an OSError that says so
    page.save(png, format="PNG")
    with whole_file(path) as aside:
        aside.write_bytes(png.getvalue())
    return path
