"""PNG, JPEG and TIFF pictures with Pillow: ``(C, I, J)`` with i = column (x) and j = row (y). Knows nothing of cases.

Their spacing is unknown (resolution tags describe print), so the unit of the grid is px. Pixels are taken as stored: an
orientation tag of a camera does not turn them, because boxes and masks are drawn on the stored rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from medseg.scans.reading import ScanError, decoding
from medseg.structures import Source
from medseg.volume import Array, Geometry

COLOURS = ("red", "green", "blue")
"""Names of the three channels that one colour picture fills."""

_MOST_PIXELS_A_BYTE, _MOST_BITS_A_BYTE = 2000, 50_000
"""Deflate makes one colour 1032 times smaller, LZW some 1400 times, fax codes a white line (of bits) to one bit: a header that
claims more than its file holds is wrong."""

_GREY = {"1", "L", "I", "F", "I;16", "I;16B", "I;16L"}


def read_geometry(source: Source) -> Geometry:
    """The grid from the header alone, in px. Raises ScanError as `read`."""
    with _open(source.files[0]) as image:
        return Geometry.from_spacing(image.size, (1.0, 1.0), "px")


def is_colour(path: Path) -> bool:
    """Whether the picture reads as three channels. Header only."""
    with _open(path) as image, decoding(path, "picture"):
        return not _is_grey(image)


def read(source: Source, *, as_mask: bool = False) -> tuple[Array, Geometry]:
    """Pixels ``(1, I, J)``, or ``(3, I, J)`` for colour, as stored (8 or 16 bit, or float) and their grid.

    Transparency is dropped. With ``as_mask`` a palette picture gives its indices rather than its colours.

    Raises:
        ScanError: not readable, or several pages.
    """
    path = source.files[0]
    with _open(path) as image, decoding(path, "picture"):
        if as_mask and image.mode == "P":
            array = np.asarray(image)
        elif _is_grey(image):
            array = np.asarray(image if image.mode in _GREY else image.convert("L"))
        else:
            array = np.asarray(image.convert("RGB"))
    array = array.astype(np.uint8) if array.dtype == bool else array
    rows_last = array.T if array.ndim == 2 else array.transpose(2, 1, 0)
    pixels = rows_last[None] if array.ndim == 2 else rows_last
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels, Geometry.from_spacing(pixels.shape[1:], (1.0, 1.0), "px")


def _open(path: Path) -> Image.Image:
    with decoding(path, "picture"):
        image = _opened(path)
        # A camera's JPEG may carry a preview of itself as a second picture (MPO); the first is meant.
        pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        claimed, stored = image.width * image.height, path.stat().st_size
    if pages > 1:
        image.close()
        raise ScanError(
            f"{path}: expected one picture, found {pages} pages; save each as a file of its own, or the stack as a volume "
            "(NIfTI, NRRD)",
            "not_2d",
        )
    if claimed > (_MOST_BITS_A_BYTE if image.mode == "1" else _MOST_PIXELS_A_BYTE) * stored:
        image.close()
        raise ScanError(
            f"{path}: the header claims {claimed:,} pixels, the file holds {stored:,} bytes; it is damaged or cut short: copy "
            "it again or leave it out",
            "truncated",
        )
    return image


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise ValueError("its header is not understood") from None
    except Image.DecompressionBombError:
        raise ScanError(
            f"{path}: the header claims more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; it is damaged, or too large: cut "
            "it into parts",
            "unsupported",
        ) from None


def _is_grey(image: Image.Image) -> bool:
    """Grey by its mode, or by a palette whose three colours agree."""
    if image.mode in _GREY or image.mode in ("LA", "La"):
        return True
    if image.mode != "P":
        return False
    colours = image.convert("RGB").getcolors(256) or []
    return bool(colours) and all(len(set(colour)) == 1 for _, colour in colours)  # type: ignore[arg-type]
