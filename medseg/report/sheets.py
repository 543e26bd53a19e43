"""Frames ``(N, height, width)`` as data URIs: one picture a layer, its frames stacked from top to bottom.

What is encoded here is looked at, not measured: grey values and the 8 bits that are left of heat maps are compressed as
photographs are. Labels are kept as they are.
Knows neither files nor cases.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from medseg.volume import Array

THUMB_PX = 96
_JPEG_QUALITY = 75
_FAR_LARGER = 2.0
"""A PNG that was written in haste gets smaller with care (ten times the time, seconds of a CT), but not by this much."""
_SHOWN = 99.9
"""Percentile of the magnitudes of a heat map at which its colours end, as in its overlay."""
_HEAT_PIXELS = 1 << 20
"""Of all frames of a heat map together; finer ones are made coarser, as they are smooth and there may be many."""


def grey_sheet(frames: Array) -> str:
    """uint8 frames, as JPEG or, where that is smaller, as PNG."""
    image = Image.fromarray(_stacked(frames))
    jpeg = _uri(image, "JPEG", quality=_JPEG_QUALITY)
    if len(_uri(image, "PNG", compress_level=1)) > _FAR_LARGER * len(jpeg):
        return jpeg
    return min((jpeg, _uri(image, "PNG", optimize=True)), key=len)


def label_sheet(frames: Array) -> str:
    """Whole numbers up to 255, lossless."""
    return _uri(Image.fromarray(_stacked(frames.astype(np.uint8))), "PNG", optimize=True)


def heat_sheet(frames: Array) -> dict[str, Any]:
    """Raw values in 8 bits: from 0 to the limit or, of a map with both signs, from −limit (1) over 0 (128) to the limit (255).

    Returns:
        ``sheet``, its frame size ``width`` and ``height``, ``signed``, and the raw values ``limit`` and ``largest``.
    """
    size = frames.shape[2], frames.shape[1]
    shrink = math.sqrt(max(1.0, frames.size / _HEAT_PIXELS))
    width, height = (max(1, round(length / shrink)) for length in size)
    if (width, height) != size:
        pages = (Image.fromarray(page).resize((width, height), Image.Resampling.BILINEAR) for page in frames)
        frames = np.stack([np.asarray(page) for page in pages])
    magnitude = np.abs(frames)
    largest, signed = float(magnitude.max()), bool(frames.min() < 0)
    limit = float(np.percentile(magnitude, _SHOWN)) or largest
    shares = np.clip(frames / (limit or 1.0), -1, 1)
    steps = 128 + 127 * shares if signed else 255 * shares
    return {
        **{"sheet": grey_sheet(np.rint(steps).astype(np.uint8)), "width": width, "height": height},
        **{"signed": signed, "limit": limit, "largest": largest},
    }


def thumbnail(
    frame: Array, labelled: Array | None, colours: Array, boxes: Sequence[tuple[Sequence[float], Sequence[int]]] = ()
) -> str:
    """One frame ``(height, width)`` uint8 with its labels (whole numbers, 0 for none) tinted in ``colours`` ``(n, 3)``.

    Args:
        boxes: left, top, right and bottom as shares of the frame, and the colour of each box that is drawn.
    """
    canvas = np.repeat(frame[..., None], 3, axis=-1).astype(np.float32)
    if labelled is not None:
        found = labelled > 0
        canvas[found] = 0.45 * canvas[found] + 0.55 * colours[labelled[found] - 1]
    image = Image.fromarray(canvas.astype(np.uint8))
    image.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for place, colour in boxes:
        edges = [round(share * length) for share, length in zip(place, 2 * image.size, strict=True)]
        draw.rectangle(edges, outline=tuple(colour), width=2)
    return _uri(image, "JPEG", quality=75)


def picture(png: bytes) -> str:
    """A PNG file as it is."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _stacked(frames: Array) -> Array:
    return np.ascontiguousarray(frames.reshape(-1, frames.shape[2]))


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    encoded = io.BytesIO()
    image.save(encoded, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded.getvalue()).decode()}"
