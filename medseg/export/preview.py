"""The preview of a scan, ``slices.png``: few slices in 8-bit grey, and in which way a person looks at them.

A `Display` says which slices are shown and how they lie on the screen, so that masks, boxes and heat maps can be brought to
the same frames later, from their own files. Volumes are seen as a radiologist expects them, in the plane in which they were
taken: axial and coronal slices with the patient's left on the right of the screen, sagittal ones with anterior on the left.
Nothing here is meant for measuring, and nothing of a patient but pixels is kept.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.evaluation.lesions import components
from medseg.files import whole_file
from medseg.scans.box_frames import moved
from medseg.scans.reading import ScanError, decoding
from medseg.structures import Prediction
from medseg.volume import Array, Geometry, Reorientation, Volume, nearest_index, reorientation_to

NAME = "slices.png"
FORMAT = 1
MOST_SLICES = 64
VOLUME_PX, PICTURE_PX = 256, 768
"""The longest side of a frame: a picture is one frame, a volume has many."""
VIEWS = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
"""Plane → where the columns, the rows and the slices of the screen grow to."""
THICK = 1.5
"""Slices so many times farther apart than axial ones were taken across another axis, and are shown as they were taken."""
_POOLED = 128
_KEYWORD = "medseg"
_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))


@dataclass(frozen=True, eq=False)
class Display:
    """How a case is shown: frames ``(N, height, width)`` of square pixels, each a slice of the scan.

    Args:
        geometry: the scan's own grid.
        view: three letters of `VIEWS`, empty for a picture, which is shown as it is stored.
        slices: which slices across the third axis of the view, ascending; ``(0,)`` for a picture.
        size: width and height of a frame.
    """

    geometry: Geometry
    view: str
    slices: tuple[int, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, geometry: Geometry, prediction: Prediction | None = None) -> Display:
        """Slices spread evenly, among them those through the middle of everything that was found."""
        view = _view(geometry)
        whole = cls(geometry, view, (0,), _size(geometry, view))
        marked = whole.marked(prediction) if view and prediction is not None else ()
        return cls(geometry, view, chosen_slices(whole.depth, marked), whole.size)

    @cached_property
    def turn(self) -> Reorientation:
        """The way from the scan's own axes to columns, rows and slices (a picture: columns and rows)."""
        if self.view:
            return reorientation_to(self.geometry, self.view)
        return Reorientation((0, 1), (False, False))

    @cached_property
    def grid(self) -> Geometry:
        """The scan's voxels along columns, rows and slices."""
        return self.turn.apply_to_geometry(self.geometry)

    @property
    def depth(self) -> int:
        """How many slices the scan has."""
        return self.grid.shape[2] if self.view else 1

    @property
    def edges(self) -> dict[str, str]:
        """Side of the screen → the letter of the patient's side that lies there; empty for a picture."""
        if not self.view:
            return {}
        right, bottom = self.view[0], self.view[1]
        return {"left": _OPPOSITE[right], "right": right, "top": _OPPOSITE[bottom], "bottom": bottom}

    def captions(self) -> list[tuple[int, str]]:
        """For each frame its voxel index on the scan's own grid, and where its centre lies (``"S 12.5 mm"``)."""
        if not self.view:
            return [(0, "")]
        towards, count = self.view[2], self.depth
        axis, sign = "RAS".find(towards), 1
        if axis < 0:
            axis, sign = "LPI".find(towards), -1
        found = []
        for at in self.slices:
            middle = [(n - 1) / 2 for n in self.grid.shape[:2]]
            place = sign * float(self.grid.to_world([*middle, at])[axis])
            letter = towards if place >= 0 else _OPPOSITE[towards]
            found.append(
                (count - 1 - at if self.turn.flip[2] else at, f"{letter} {abs(place):.1f} {self.geometry.unit}")
            )
        return found

    def frames(self, array: Array, *, smooth: bool) -> Array:
        """``geometry.shape`` values as frames ``(N, height, width)``: the nearest voxel's, or ``smooth`` ones in float32."""
        turned = self.turn.apply(array)
        stack = np.moveaxis(turned[:, :, list(self.slices)] if self.view else turned[..., None], (2, 1), (0, 1))
        width, height = self.size
        if not smooth:
            rows, columns = (nearest_index(stack.shape[n], length) for n, length in ((1, height), (2, width)))
            return np.ascontiguousarray(stack[:, rows][:, :, columns])
        pages = (Image.fromarray(np.ascontiguousarray(page, np.float32)) for page in stack)
        return np.stack([np.asarray(page.resize(self.size, Image.Resampling.BILINEAR)) for page in pages])

    def boxes(self, edges: Array) -> Array:
        """Boxes ``(N, 2·D)`` in voxel edges of the scan's own grid → ``(N, 6)``: left, top, right and bottom as shares of a
        frame, then the first and last edge across the slices (0 and 1 in a picture)."""
        if not self.view:
            flat = edges / np.tile(self.geometry.shape, 2)
            return np.concatenate([flat, np.tile([0.0, 1.0], (len(flat), 1))], axis=1)
        ends = moved(edges, self.geometry, self.grid).reshape(-1, 2, 3)
        flat = ends[:, :, :2] / self.grid.shape[:2]
        return np.concatenate([flat.reshape(-1, 4), ends[:, :, 2]], axis=1)

    def nearest_frame(self, first: float, last: float) -> int:
        """The frame that shows the middle of what reaches from one edge across the slices to another."""
        return int(np.argmin(np.abs(np.array(self.slices) + 0.5 - (first + last) / 2)))

    def marked(self, prediction: Prediction) -> Iterator[int]:
        """The slices through the middle of every finding and of every connected part of a label."""
        if prediction.findings is not None and len(prediction.findings):
            yield from np.floor(self.boxes(prediction.findings.boxes)[:, 4:].mean(axis=1)).astype(int).tolist()
        if prediction.mask is None:
            return
        mask = self.turn.apply(prediction.mask)
        for value, box in enumerate(ndimage.find_objects(mask), start=1):
            if box is not None and value in prediction.labels.names:
                labelled, _ = components(_pooled(mask[box] == value))
                parts = (part[2] for part in ndimage.find_objects(labelled))
                yield from (box[2].start + (part.start + part.stop - 1) // 2 for part in parts)

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        grid = {"shape": list(self.geometry.shape), "affine": self.geometry.affine.tolist(), "unit": self.geometry.unit}
        return {"grid": grid, "view": self.view, "slices": list(self.slices), "frame": list(self.size)}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Display:
        """Raises KeyError, TypeError, ValueError or MedsegError for what is no `as_dict`."""
        geometry = Geometry(tuple(body["grid"]["shape"]), np.array(body["grid"]["affine"]), body["grid"]["unit"])
        width, height = (int(n) for n in body["frame"])
        view, slices = str(body["view"]), tuple(int(n) for n in body["slices"])
        found = cls(geometry, view, slices, (width, height))
        if view not in (VIEWS.values() if geometry.dimensions == 3 else ("",)):
            raise ValueError(f"no view {view!r} of {geometry.dimensions} axes")
        if not slices or sorted(set(slices)) != list(slices) or slices[0] < 0 or slices[-1] >= found.depth:
            raise ValueError(f"no slices {slices[:5]} of {found.depth}")
        return found


@dataclass(frozen=True, eq=False)
class Preview:
    """Frames ``(N, height, width)`` uint8; 0 and 255 are the two values of ``window`` in the units of the scan."""

    display: Display
    frames: Array
    window: tuple[float, float]


def chosen_slices(count: int, marked: Iterable[int] = ()) -> tuple[int, ...]:
    """At most `MOST_SLICES` of ``count`` slices, spread evenly; each marked one takes the place of the nearest other.

    Where more are marked than fit, they are thinned out evenly.
    """
    if count <= MOST_SLICES:
        return tuple(range(count))
    wanted = sorted({min(max(at, 0), count - 1) for at in marked})
    if len(wanted) > MOST_SLICES:
        wanted = [wanted[n] for n in _spread(len(wanted))]
    slices = np.array(_spread(count))
    free = np.ones(len(slices), bool)
    for at in wanted:
        nearest = int(np.argmin(np.where(free, np.abs(slices - at), count)))
        slices[nearest], free[nearest] = at, False
    return tuple(sorted({int(at) for at in slices}))


def write_preview(volume: Volume, prediction: Prediction, folder: Path) -> Path:
    """Write ``slices.png`` of the first channel (of a colour picture: its mean), frames stacked from top to bottom; returns
    the path.

    Raises:
        OSError: the file cannot be written.
    """
    display = Display.of(volume.geometry, prediction)
    colour = volume.geometry.dimensions == 2 and len(volume.data) == 3
    frames = display.frames(volume.data.mean(axis=0) if colour else volume.data[0], smooth=True)
    finite = frames[np.isfinite(frames)]
    low, high = (float(value) for value in np.percentile(finite, (0.5, 99.5))) if finite.size else (0.0, 1.0)
    shares = np.nan_to_num((frames - low) / max(high - low, 1e-6), nan=0.0, posinf=1.0, neginf=0.0)
    grey = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
    known = PngInfo()
    known.add_text(_KEYWORD, json.dumps({"format": FORMAT, **display.as_dict(), "window": [low, high]}))
    png = io.BytesIO()  # Pillow says "encoder error" of a full disk; bytes make it an OSError that says so
    Image.fromarray(grey.reshape(-1, display.size[0])).save(png, format="PNG", pnginfo=known)
    path = folder / NAME
    with whole_file(path) as aside:
        aside.write_bytes(png.getvalue())
    return path


def read_preview(folder: Path) -> Preview | None:
    """The preview in a case's folder; None if there is none.

    Raises:
        ScanError: the file is damaged or none of medseg's.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    with decoding(path, "picture", NAME), Image.open(path) as image:
        text = image.info.get(_KEYWORD)  # ahead of the pixels
        sheet = np.asarray(image)
    try:
        body = json.loads(text or "null")
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}")
        display, (low, high) = Display.from_dict(body), body["window"]
        width, height = display.size
        frames = sheet.reshape(len(display.slices), height, width)
        return Preview(display, frames, (float(low), float(high)))
    except (KeyError, TypeError, ValueError, MedsegError) as error:
        raise ScanError(
            f"{NAME}: expected frames as medseg writes them ({type(error).__name__}: {error}); predict it again"
        ) from None


def _view(geometry: Geometry) -> str:
    """The plane in which a volume was taken, where its slices are thick; else axial."""
    if geometry.dimensions == 2:
        return ""
    spacing = reorientation_to(geometry, "LPS").apply_to_geometry(geometry).spacing
    coarsest = int(np.argmax(spacing))
    plane = ("sagittal", "coronal", "axial")[coarsest] if spacing[coarsest] > THICK * spacing[2] else "axial"
    return VIEWS[plane]


def _size(geometry: Geometry, view: str) -> tuple[int, int]:
    """Width and height of a frame whose pixels are square and no finer than the scan's."""
    grid = reorientation_to(geometry, view).apply_to_geometry(geometry) if view else geometry
    lengths = [n * s for n, s in zip(grid.shape[:2], grid.spacing[:2], strict=True)]
    pixel = max(max(lengths) / (VOLUME_PX if view else PICTURE_PX), min(grid.spacing[:2]))
    width, height = (max(1, round(length / pixel)) for length in lengths)
    return width, height


def _pooled(region: Array) -> Array:
    """A mask in which one voxel stands for several along columns and rows, marked where any of them is: what lies next to each
    other merges, nothing is lost, and its parts are found in a fraction of the time."""
    for axis in (0, 1):
        step = -(-region.shape[axis] // _POOLED)
        region = np.logical_or.reduceat(region, range(0, region.shape[axis], step), axis=axis)
    return region


def _spread(count: int) -> list[int]:
    """`MOST_SLICES` of ``count``, which are more, from the first to the last."""
    return [int(n) for n in np.linspace(0, count - 1, MOST_SLICES).round()]
