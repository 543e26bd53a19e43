"""Pictures for people: three slices of a scan with the outlines of its mask, or several cases beside their true labels.

Slices go through where most is labelled and are shown as a radiologist expects them: the patient's right on the left,
anterior and superior up. Nothing here is meant for measuring.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medseg.files import whole_file
from medseg.structures import LabelTable, Prediction
from medseg.volume import Array, Volume, reorientation_to

TILE_PX = 256
"""Edge of the square into which a slice is fitted."""
COLOURS = (
    (230, 60, 60), (60, 190, 90), (70, 130, 240), (245, 190, 40), (200, 90, 220), (60, 200, 210),
    (250, 130, 50), (150, 210, 60), (240, 130, 180), (140, 110, 230), (190, 150, 110), (120, 190, 250),
)  # fmt: skip
_LEGEND_PX = 18


def case_overlay(volume: Volume, prediction: Prediction, path: Path) -> Path:
    """Draw a prediction over its scan: one row of slices (a picture: one tile), every label outlined; returns the path.

    Raises:
        OSError: the file cannot be written.
    """
    data, mask, spacing = volume.data, prediction.mask, volume.geometry.spacing
    if mask is None:
        mask = np.zeros(volume.geometry.shape, np.uint8)
    if volume.geometry.dimensions == 3:
        turn = reorientation_to(volume.geometry, "RAS")
        data, mask = turn.apply(data), turn.apply(mask)
        spacing = tuple(spacing[axis] for axis in turn.order)
    return _save([_row(data, mask, None, spacing, prediction.labels)], prediction.labels, path)


def grid_overlay(
    samples: Sequence[tuple[Array, Array, Array]],
    labels: LabelTable,
    path: Path,
    spacing: Sequence[float] | None = None,
) -> Path:
    """Draw cases on the plan's grid, a row each: the truth filled faintly, the prediction outlined; returns the path.

    Args:
        samples: ``(image (C, *S), label (*S), predicted (*S))``; axes of a volume run along RAS+.
        spacing: of the plan's grid, for the aspect of the slices; equal along all axes unless given.
    """
    rows = [
        _row(image, predicted, label, spacing or (1.0,) * label.ndim, labels) for image, label, predicted in samples
    ]
    return _save(rows, labels, path)


def _row(
    data: Array, mask: Array, truth: Array | None, spacing: Sequence[float], labels: LabelTable
) -> list[Image.Image]:
    """The tiles of one case: a tile for a picture; axial, coronal and sagittal for a volume."""
    if mask.ndim == 2:
        colour = len(data) == 3
        image = np.moveaxis(data, 0, -1) if colour else data[0]
        return [_tile(image, mask, truth, spacing, labels, flipped=False)]
    shown = mask > 0 if truth is None else (mask > 0) | _labelled(truth, labels)
    tiles = []
    for axis in (2, 1, 0):
        others = tuple(a for a in range(3) if a != axis)
        counts = shown.sum(others)
        at = int(np.argmax(counts)) if counts.any() else mask.shape[axis] // 2
        cut = (slice(None),) * axis + (at,)
        pair = tuple(spacing[a] for a in others)
        tiles.append(_tile(data[0][cut], mask[cut], None if truth is None else truth[cut], pair, labels, flipped=True))
    return tiles


def _tile(
    image: Array, mask: Array, truth: Array | None, spacing: Sequence[float], labels: LabelTable, *, flipped: bool
) -> Image.Image:
    """One slice ``(I, J[, 3])`` with its labels in true proportions; a volume's slice is flipped along both axes."""
    low, high = np.percentile(image, (0.5, 99.5)) if image.size else (0.0, 1.0)
    grey = np.clip((image - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
    lengths = [n * s for n, s in zip(mask.shape, spacing, strict=True)]
    size = (
        max(1, round(TILE_PX * lengths[0] / max(lengths))),
        max(1, round(TILE_PX * lengths[1] / max(lengths))),
    )

    def scaled(values: Array, how: Image.Resampling) -> Array:
        rows = np.swapaxes(values, 0, 1)
        rows = rows[::-1, ::-1] if flipped else rows
        return np.asarray(Image.fromarray(np.ascontiguousarray(rows)).resize(size, how))

    base = scaled(grey, Image.Resampling.BILINEAR).astype(np.float32)
    canvas = np.repeat(base[..., None], 3, axis=-1) if base.ndim == 2 else base.copy()
    for number, values in enumerate(labels.targets.values()):
        colour = np.array(COLOURS[number % len(COLOURS)], np.float32)
        if truth is not None:
            filled = scaled(np.isin(truth, values).astype(np.uint8), Image.Resampling.NEAREST) > 0
            canvas[filled] = 0.65 * canvas[filled] + 0.35 * colour
        canvas[_outline(scaled(np.isin(mask, values).astype(np.uint8), Image.Resampling.NEAREST) > 0)] = colour
    tile = Image.new("RGB", (TILE_PX, TILE_PX))
    tile.paste(Image.fromarray(canvas.astype(np.uint8)), ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    return tile


def _labelled(truth: Array, labels: LabelTable) -> Array:
    """Where the truth holds a label: neither background nor the ignore value."""
    return (truth > 0) if labels.ignore is None else (truth > 0) & (truth != labels.ignore)


def _outline(region: Array) -> Array:
    """The pixels of a region that have one of their four neighbours outside it."""
    inner = region.copy()
    inner[1:] &= region[:-1]
    inner[:-1] &= region[1:]
    inner[:, 1:] &= region[:, :-1]
    inner[:, :-1] &= region[:, 1:]
    return region & ~inner


def _save(rows: Sequence[Sequence[Image.Image]], labels: LabelTable, path: Path) -> Path:
    """Put the tiles and a legend into one PNG: whole or not at all."""
    width = TILE_PX * max(len(row) for row in rows)
    page = Image.new("RGB", (width, TILE_PX * len(rows) + _LEGEND_PX))
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            page.paste(tile, (x * TILE_PX, y * TILE_PX))
    draw, font, left = ImageDraw.Draw(page), ImageFont.load_default(), 4.0
    for number, name in enumerate(labels.targets):
        plain = name.encode("ascii", "replace").decode()[:40]
        draw.text((left, page.height - _LEGEND_PX + 2), plain, fill=COLOURS[number % len(COLOURS)], font=font)
        left += draw.textlength(plain, font=font) + 10
    png = io.BytesIO()  # Pillow says "encoder error" of a full disk; bytes make it an OSError that says so
    page.save(png, format="PNG")
    with whole_file(path) as aside:
        aside.write_bytes(png.getvalue())
    return path
