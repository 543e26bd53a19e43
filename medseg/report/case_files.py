"""The files of one case of a result folder, read for people to look at: as far as they can be read, and why not of the rest.

Masks, boxes and heat maps lie on the scan's own grid, which the preview states; where there is none, the first file that knows
its grid does. Nothing here decides how a case is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medseg.errors import MedsegError
from medseg.export.boxes import NAME as BOXES
from medseg.export.classes import NAME as CLASSES
from medseg.export.preview import NAME as SLICES
from medseg.export.preview import Display, Preview, read_preview
from medseg.scans import nifti, picture
from medseg.scans.box_json import read as read_marked
from medseg.scans.box_json import read_working_point
from medseg.scans.reading import ScanError, decoding
from medseg.structures import Boxes, LabelTable, Prediction, as_source
from medseg.volume import Array, Geometry

MASKS = ("mask.nii.gz", "mask.png")
_MAPS = ("heatmap_*", "uncertainty.*", "*/uncertainty.*")  # one of several models has a folder of its own
_SUFFIXES = (".nii.gz", ".tif")
_HEAT_MAPS = "heatmaps.json"
_AGAIN = "predict the case again"
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CaseFiles:
    """What lies in a case's folder.

    Args:
        prediction: mask, boxes and classes; without a grid of its own (of one voxel) where only classes are kept.
        display: None where nothing says how a slice looks.
        heat_maps: title → raw values ``(*S)``.
        method: how the maps were made, where that is known.
        troubles: a line for each file that cannot be shown.
    """

    prediction: Prediction
    display: Display | None
    preview: Preview | None
    heat_maps: Mapping[str, Array]
    method: str
    troubles: Sequence[str]

    @classmethod
    def read(cls, name: str, folder: Path, labels: Mapping[int, str]) -> CaseFiles:
        """Read everything in a case's folder; ``labels`` are the manifest's."""
        troubles: list[str] = []

        def attempt(read: Callable[..., T], *given: Any) -> T | None:
            try:
                return read(*given)
            except (MedsegError, OSError) as error:
                troubles.append(str(error).replace(f"{folder}/", ""))
                return None

        classes = attempt(_classes, folder) or {}
        preview = attempt(read_preview, folder)
        maps_in = [path for kind in _MAPS for path in sorted(folder.glob(kind)) if path.name.endswith(_SUFFIXES)]
        paths = [*(folder / mask for mask in MASKS), *maps_in]
        tried = {path: attempt(_values, path) for path in paths if path.is_file()}
        read = {path: found for path, found in tried.items() if found is not None}
        grids = [preview.display.geometry] if preview is not None else [geometry for _, geometry in read.values()]
        grid = next(iter(grids), None) or attempt(_grid_of_boxes, folder)
        if grid is None:
            nothing = Geometry.from_spacing((1, 1), (1.0, 1.0), "px")
            return cls(Prediction(name, nothing, _table(labels, []), classes=classes), None, None, {}, "", troubles)
        fits: dict[Path, Array] = {}
        for path, (array, own) in read.items():
            if own.shape == grid.shape and (grid.dimensions == 2 or own.matches(grid)):
                fits[path] = array
            else:
                troubles.append(
                    f"{path.name}: lies on another grid ({own.describe()}) than the rest ({grid.describe()})"
                )
        mask = next((fits.pop(path) for path in list(fits) if path.name in MASKS), None)
        table = _table(labels, [] if mask is None else np.unique(mask).tolist())
        boxes, least = attempt(_boxes, folder, grid, table) or (None, {})
        prediction = Prediction(name, grid, table, mask, boxes, least, classes)
        display = preview.display if preview is not None else Display.of(grid, prediction)
        index = attempt(_json, folder / _HEAT_MAPS)
        maps = {_title(path.relative_to(folder), index): array for path, array in fits.items()}
        method = str(index["made"].get("method", "")) if index is not None and _lists_maps(index) else ""
        return cls(prediction, display, preview, maps, method, troubles)


def holds_results(folder: Path) -> bool:
    """Whether a folder looks like that of a case."""
    return any((folder / name).is_file() for name in (*MASKS, BOXES, CLASSES, SLICES))


def _lists_maps(index: Any) -> bool:
    """Whether this is what stands in a ``heatmaps.json``; without it, maps are called as their files are."""
    return isinstance(index, dict) and all(isinstance(index.get(name), dict) for name in ("made", "targets"))


def _title(path: Path, index: Any) -> str:
    """``heatmap_lesion-1.nii.gz`` → ``"lesion 1"``, by the list of the maps' targets where there is one."""
    plain = path.name.removesuffix(_SUFFIXES[0]).removesuffix(_SUFFIXES[1])
    if not plain.startswith("heatmap_"):
        return " ".join([*path.parent.parts, plain])
    listed = index["targets"] if _lists_maps(index) else {}
    target = next((target for target, files in listed.items() if path.name in files), plain.removeprefix("heatmap_"))
    return str(target).replace("-", " ", 1)


def _values(path: Path) -> tuple[Array, Geometry]:
    """Values ``(*S)`` of a mask or a map, and their grid. Raises ScanError."""
    is_mask = path.name in MASKS
    if path.name.endswith(".nii.gz"):
        array, geometry = nifti.read(as_source("nifti", path))
    else:
        array, geometry = picture.read(as_source("picture", path), as_mask=is_mask)
    if len(array) != 1 or not np.isfinite(array).all():
        raise ScanError(f"{path.name}: expected one finite value a voxel, found {len(array)}, or NaN; {_AGAIN}")
    if is_mask and array.dtype.kind not in "iu":
        raise ScanError(f"{path.name}: expected whole numbers, found {array.dtype}; {_AGAIN}")
    return array[0], geometry


def _grid_of_boxes(folder: Path) -> Geometry | None:
    """The grid that ``boxes.json`` states; None where it states none. Raises ScanError or MedsegError."""
    body = _json(folder / BOXES)
    if not isinstance(body, dict) or not body.get("shape"):
        return None
    with decoding(folder / BOXES, BOXES, BOXES):
        if "affine" in body:
            return Geometry(tuple(body["shape"]), np.array(body["affine"], np.float64))
        return Geometry.from_spacing(body["shape"], (1.0, 1.0), "px")


def _boxes(folder: Path, grid: Geometry, table: LabelTable) -> tuple[Boxes, dict[str, float]] | None:
    """The boxes of a case in the order of their ids, and the scores from which they count. Raises ScanError."""
    path = folder / BOXES
    if not path.is_file():
        return None
    marked = read_marked(path, grid)
    values = {name: value for value, name in table.names.items()}
    unknown = sorted({one.label for one in marked} - set(values))
    if unknown:
        raise ScanError(f"{BOXES}: boxes of {', '.join(unknown)}, which the manifest does not name; {_AGAIN}")
    edges = np.array([one.edges for one in marked], np.float64).reshape(len(marked), 2 * grid.dimensions)
    scores = [one.score for one in marked if one.score is not None]
    known = np.array(scores) if len(scores) == len(marked) else None
    spread = np.array([entry.get("spread") for entry in _json(path)["boxes"]], np.float64)
    return Boxes(edges, np.array([values[one.label] for one in marked], int), known, spread), read_working_point(path)


def _classes(folder: Path) -> dict[str, float]:
    """Class → probability, empty where there are none. Raises ScanError."""
    body = _json(folder / CLASSES)
    if body is None:
        return {}
    if not isinstance(body, dict) or not all(isinstance(p, (int, float)) and math.isfinite(p) for p in body.values()):
        raise ScanError(f"{CLASSES}: expected a probability a class, found {repr(body)[:60]}; {_AGAIN}")
    return {str(name): float(share) for name, share in body.items()}


def _table(labels: Mapping[int, str], values: Sequence[int]) -> LabelTable:
    """The manifest's names, and one for each value of a mask that it does not name."""
    names = {**labels, **{value: f"label {value}" for value in values if value > 0 and value not in labels}}
    return LabelTable(names or {1: "label 1"})


def _json(path: Path) -> Any:
    """What a file holds, None where there is none. Raises ScanError."""
    if not path.is_file():
        return None
    with decoding(path, "JSON", path.name):
        return json.loads(path.read_text(encoding="utf-8"))
