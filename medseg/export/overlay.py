"""Pictures for people: three slices of a scan with the outlines of its mask and the boxes found in it, or several cases beside
what is true of them.

Slices go through where most is labelled, without a mask through the surest finding. Nothing here is meant for measuring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medseg.export.slices import LEGEND_PX, Cut, cuts, save_page
from medseg.scans.box_frames import moved
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Array, Volume, reorientation_to

Sample = tuple[Array, Array | Boxes, Array | Boxes]
"""An image ``(C, *S)``, what is true of it and what was predicted: masks ``(*S)``, or boxes in its voxel edges."""
COLOURS = (
    (230, 60, 60), (60, 190, 90), (70, 130, 240), (245, 190, 40), (200, 90, 220), (60, 200, 210),
    (250, 130, 50), (150, 210, 60), (240, 130, 180), (140, 110, 230), (190, 150, 110), (120, 190, 250),
)  # fmt: skip
_TEXT_PX = 11
_DASH_PX = 3


def case_overlay(volume: Volume, prediction: Prediction, path: Path) -> Path:
    """Draw a prediction over its scan: one row of slices (a picture: one tile), every label outlined and every finding framed,
    with its id and score; returns the path.

    Raises:
        OSError: the file cannot be written.
    """
    data, grid, mask, boxes = volume.data, volume.geometry, prediction.mask, prediction.findings
    if grid.dimensions == 3:
        turn = reorientation_to(grid, "RAS")
        stored, grid = grid, turn.apply_to_geometry(grid)
        data = turn.apply(data)
        mask = None if mask is None else turn.apply(mask)
        boxes = None if boxes is None else replace(boxes, boxes=moved(boxes.boxes, stored, grid))
    return _save([_row(data, _marks(mask, boxes), _Marks(), grid.spacing, prediction.labels)], prediction.labels, path)


def grid_overlay(
    samples: Sequence[Sample],
    labels: LabelTable,
    path: Path,
    spacing: Sequence[float] | None = None,
) -> Path:
    """Draw cases on the plan's grid, a row each; returns the path.

    The truth is filled faintly and the prediction outlined; true boxes are dashed and predicted ones framed.

    Args:
        samples: axes of a volume run along RAS+.
        spacing: of the plan's grid, for the aspect of the slices; equal along all axes unless given.
    """
    rows = [
        _row(image, _marks(predicted), _marks(truth), spacing or (1.0,) * (image.ndim - 1), labels)
        for image, truth, predicted in samples
    ]
    return _save(rows, labels, path)


@dataclass(frozen=True, eq=False)
class _Marks:
    """What is drawn over a case or a slice of it: a mask ``(*S)``, boxes with a text each, or both."""

    mask: Array | None = None
    boxes: Boxes | None = None
    texts: tuple[str, ...] = ()

    def on(self, cut: Cut) -> _Marks:
        """Those of one slice: its part of the mask, and the boxes that hold its middle or lie within it."""
        if cut.axis is None:
            return self
        mask = None if self.mask is None else cut.of(self.mask)
        if self.boxes is None:
            return _Marks(mask)
        ends = self.boxes.boxes.reshape(-1, 2, 3)
        middle, half = ends[:, :, cut.axis].mean(axis=1), np.diff(ends[:, :, cut.axis], axis=1)[:, 0] / 2
        met = np.flatnonzero(np.abs(cut.at + 0.5 - middle) <= np.maximum(half, 0.5))
        flat = Boxes(np.delete(ends, cut.axis, axis=2).reshape(-1, 4), self.boxes.labels, self.boxes.scores)
        return _Marks(mask, flat.chosen(met), tuple(self.texts[n] for n in met) if self.texts else ())


def _marks(*given: Array | Boxes | None) -> _Marks:
    """The mask and the boxes among what is given; boxes in the order of their ids, with id and score where they have one."""
    mask = next((one for one in given if isinstance(one, np.ndarray)), None)
    boxes = next((one.ranked() for one in given if isinstance(one, Boxes)), None)
    if boxes is None or boxes.scores is None:
        return _Marks(mask, boxes)
    return _Marks(mask, boxes, tuple(f"{number}: {score:.2f}" for number, score in enumerate(boxes.scores, 1)))


def _row(data: Array, found: _Marks, truth: _Marks, spacing: Sequence[float], labels: LabelTable) -> list[Image.Image]:
    """The tiles of one case: a tile for a picture; axial, coronal and sagittal for a volume."""
    place = _place(data.shape[1:], found, truth, labels) if data.ndim == 4 else ()
    return [_tile(cut, found.on(cut), truth.on(cut), labels) for cut in cuts(data, spacing, place)]


def _place(shape: tuple[int, ...], found: _Marks, truth: _Marks, labels: LabelTable) -> list[int]:
    """The voxel that slices go through: along each axis where most is labelled; else amid the largest true box, the surest
    found one, the scan."""
    shown = np.zeros(shape, bool)
    for marks in (found, truth):
        if marks.mask is not None:
            shown |= _labelled(marks.mask, labels)
    if shown.any():
        return [int(np.argmax(shown.sum(tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    for marks in (truth, found):
        if marks.boxes is not None and len(marks.boxes):
            middle = np.floor(marks.boxes.boxes[0].reshape(2, 3).mean(axis=0))
            return [int(at) for at in np.clip(middle, 0, np.array(shape) - 1)]
    return [n // 2 for n in shape]


def _tile(cut: Cut, found: _Marks, truth: _Marks, labels: LabelTable) -> Image.Image:
    """One slice with its marks."""

    def region(mask: Array, values: Sequence[int]) -> Array:
        return cut.scaled(np.isin(mask, values).astype(np.uint8), Image.Resampling.NEAREST) > 0

    canvas = cut.canvas()
    for number, values in enumerate(labels.targets.values()):
        colour = np.array(COLOURS[number % len(COLOURS)], np.float32)
        if truth.mask is not None:
            filled = region(truth.mask, values)
            canvas[filled] = 0.65 * canvas[filled] + 0.35 * colour
        if found.mask is not None:
            canvas[_outline(region(found.mask, values))] = colour
    page = Image.fromarray(canvas.astype(np.uint8))
    for marks, dashed in ((truth, True), (found, False)):
        _draw_boxes(page, marks, cut, labels, dashed=dashed)
    return cut.tile(page)


def _draw_boxes(page: Image.Image, marks: _Marks, cut: Cut, labels: LabelTable, *, dashed: bool) -> None:
    """Frame the boxes of a slice on a picture of it, in the colours of their labels, the surest on top."""
    if marks.boxes is None:
        return
    size = np.array(page.size)
    ends = marks.boxes.boxes.reshape(-1, 2, 2) * (size / cut.image.shape[:2])
    ends = ends if cut.axis is None else size - ends[:, ::-1]
    first = np.clip(np.round(ends[:, 0]), 0, size - 1)
    last = np.clip(np.round(ends[:, 1]) - 1, first, size - 1)
    frames = np.concatenate([first, last], axis=1).astype(int).tolist()
    colours = {value: COLOURS[number % len(COLOURS)] for number, value in enumerate(labels.names)}
    of_each = [colours[int(value)] for value in marks.boxes.labels]
    draw = ImageDraw.Draw(page)
    for frame, colour in zip(reversed(frames), reversed(of_each), strict=True):
        if dashed:
            _dash(draw, frame, colour)
        else:
            draw.rectangle(frame, outline=colour)
    for n in reversed(range(len(marks.texts))):
        _write(draw, marks.texts[n], frames[n], page.size, of_each[n])


def _dash(draw: ImageDraw.ImageDraw, frame: Sequence[int], colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = frame
    for x in range(left, right + 1, 2 * _DASH_PX):
        for y in (top, bottom):
            draw.line((x, y, min(x + _DASH_PX - 1, right), y), fill=colour)
    for y in range(top, bottom + 1, 2 * _DASH_PX):
        for x in (left, right):
            draw.line((x, y, x, min(y + _DASH_PX - 1, bottom)), fill=colour)


def _write(
    draw: ImageDraw.ImageDraw, text: str, frame: Sequence[int], size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """Put a text above a frame or, where a picture of ``size`` has no room, below or else inside."""
    font, (left, top, _, bottom) = ImageFont.load_default(), frame
    places = (left, top - _TEXT_PX - 1), (left, bottom + 1), (left + 2, top + 1)
    x, y = next((place for place in places if 0 <= place[1] <= size[1] - _TEXT_PX), places[-1])
    x = max(0, min(x, size[0] - 2 - math.ceil(draw.textlength(text, font=font))))
    draw.rectangle(draw.textbbox((x, y), text, font=font), fill=(0, 0, 0))
    draw.text((x, y), text, fill=colour, font=font)


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
    """Put the tiles and the names of the labels, each in its colour, into one PNG."""
    legend = Image.new("RGB", (rows[0][0].width * len(rows[0]), LEGEND_PX))
    draw, font, left = ImageDraw.Draw(legend), ImageFont.load_default(), 4.0
    for number, name in enumerate(labels.targets):
        plain = name.encode("ascii", "replace").decode()[:40]
        draw.text((left, 2), plain, fill=COLOURS[number % len(COLOURS)], font=font)
        left += draw.textlength(plain, font=font) + 10
    return save_page(rows, legend, path)
