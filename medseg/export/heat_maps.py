"""Heat maps as files: raw float32 values on the scan's own grid, a picture of them over the scan, and what DICOM says of them.

No value is scaled, smoothed or cut off in a file; the picture says in its legend which raw values its colours stand for. How a
map is made, and whether it deserves trust, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medseg.errors import MedsegError
from medseg.export.dicom import ValueMap
from medseg.export.nifti import write_values
from medseg.export.parametric_map import attribution_by
from medseg.export.slices import LEGEND_PX, Cut, cuts, save_page
from medseg.scans.names import digest, slug
from medseg.structures import HeatMap
from medseg.volume import Array, Volume, reorientation_to

_SHOWN = 99.9
"""Percentile of the magnitudes at which colours end: gradients have single voxels far beyond all others."""
_OPACITY = 0.75
_BAR_PX = 128
_ONE_SIGN, _TWO_SIGNS = "inferno", "coolwarm"


def stems(targets: Iterable[str]) -> dict[str, str]:
    """Target → ``heatmap_<target>``, the name of its files without ending; two that would be called alike get a hash."""
    found: dict[str, str] = {}
    for target in targets:
        name = f"heatmap_{slug(target)}"
        found[target] = f"{name}_{digest(target)[:6]}" if name in found.values() else name
    return found


def write_heat_map(heat_map: HeatMap, stem: Path) -> Path:
    """Write the raw values as ``<stem>.nii.gz``, those of a picture as ``<stem>.tif``; returns the path.

    Raises:
        MedsegError: a value is not finite.
    """
    if not np.isfinite(heat_map.values).all():
        raise MedsegError(
            f"case {heat_map.case!r}: the heat map of {heat_map.target} by {heat_map.method} holds NaN or infinite values; "
            "choose another method or layer"
        )
    return write_values(heat_map.values, heat_map.geometry, stem)


def value_map(heat_map: HeatMap, name: str) -> ValueMap:
    """The map as `medseg.export.dicom` takes it; ``name`` is that of its file without ending."""
    return ValueMap(name, attribution_by(heat_map.method, heat_map.target), heat_map.values)


def heat_overlay(volume: Volume, heat_map: HeatMap, path: Path) -> Path:
    """Draw a map over its scan: three slices through its strongest voxel (a picture: one tile); returns the path.

    The stronger a value, the more opaque its colour. Colours are symmetric about 0 where the map has both signs.

    Raises:
        OSError: the file cannot be written.
    """
    data, values, grid = volume.data, heat_map.values, volume.geometry
    if grid.dimensions == 3:
        turn = reorientation_to(grid, "RAS")
        data, values, grid = turn.apply(data), turn.apply(values), turn.apply_to_geometry(grid)
    magnitude = np.abs(values)
    peak = np.unravel_index(int(np.argmax(magnitude)), magnitude.shape)
    limit = float(np.percentile(magnitude, _SHOWN)) or float(magnitude.max())
    signed = bool(values.min() < 0)
    tiles = [_tile(cut, values, limit, signed) for cut in cuts(data, grid.spacing, [int(at) for at in peak])]
    title = f"{heat_map.target}, {heat_map.method}"
    return save_page([tiles], _legend(title, limit, float(magnitude.max()), signed, tiles[0].width * len(tiles)), path)


def _tile(cut: Cut, values: Array, limit: float, signed: bool) -> Image.Image:
    """One slice with the values over it."""
    share = cut.scaled((cut.of(values) / (limit or 1.0)).astype(np.float32), Image.Resampling.BILINEAR)
    opacity = _OPACITY * np.clip(np.abs(share), 0, 1)[..., None]
    shown = (1 - opacity) * cut.canvas() + opacity * _colours(share, signed)
    return cut.tile(Image.fromarray(shown.astype(np.uint8)))


def _colours(share: Array, signed: bool) -> Array:
    """``(…, 3)`` from 0 to 255 of values as a share of the largest one that is told apart."""
    from matplotlib import colormaps  # late: predicting without heat maps does without it

    ramp = colormaps[_TWO_SIGNS if signed else _ONE_SIGN]
    colours: Array = np.asarray(ramp((share + 1) / 2 if signed else share))[..., :3]
    return 255 * colours


def _legend(title: str, limit: float, largest: float, signed: bool, width: int) -> Image.Image:
    """What is shown, and a bar of the colours between the raw values that they end at."""
    legend, font = Image.new("RGB", (width, LEGEND_PX)), ImageFont.load_default()
    draw = ImageDraw.Draw(legend)
    beyond = "+" if largest > limit else ""
    low, high = f"-{limit:.3g}{beyond}" if signed else "0", f"{limit:.3g}{beyond}"
    right = width - 4 - int(draw.textlength(high, font=font))
    draw.text((right, 2), high, font=font)
    left = right - 4 - _BAR_PX
    bar = _colours(np.linspace(-1.0 if signed else 0.0, 1.0, _BAR_PX), signed).astype(np.uint8)
    legend.paste(Image.fromarray(np.repeat(bar[None], LEGEND_PX - 6, axis=0)), (left, 3))
    start = left - 4 - int(draw.textlength(low, font=font))
    draw.text((start, 2), low, font=font)
    plain = title.encode("ascii", "replace").decode()
    while plain and 4 + draw.textlength(plain, font=font) > start - 8:
        plain = plain[:-1]
    draw.text((4, 2), plain, font=font)
    return legend
