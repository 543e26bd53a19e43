"""The boxes of a case: cells of a table, files of boxes and masks become `Boxes` on the scan's own grid.

What an annotation gives is taken at its word or not at all: a box that cannot be meant (no extent, outside the image,
of an unknown class) is left out and named, and the case keeps the others. Where nobody can say what lies in the image (no
annotation, a damaged file, millimetres given as voxels), the case has no boxes, which is not the same as a case without
lesions: `is_usable` tells the two apart. Knows nothing of scores' meaning, of anchors or of networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.scans.box_frames import world_extent
from medseg.scans.reading import ScanError
from medseg.scans.segments import canonical
from medseg.structures import Boxes, Case, Fault, LabelTable, unique_values
from medseg.volume import Array, Geometry

NONE = "none"
"""The cell of a case that was looked at and holds no lesion; an empty one says the same."""

NOT_ANNOTATED = "not_annotated_boxes"
"""Kind of the fault of a case that nobody marked."""

BOX_FAULTS = frozenset(
    (
        "zero_area_box",
        "inverted_box",
        "outside_image",
        "beyond_image",
        "box_without_class",
        "unknown_class",
        "not_finite",
    )
)
"""Kinds of faults of single boxes: each is left out (``beyond_image``: cut off at the border) and its case stays."""

TOLERANCE = 1.0
"""By how many voxels a box may silently reach beyond the image: inclusive edges counted from 1 do so by one."""


@dataclass(frozen=True)
class Marked:
    """A box as an annotation gives it, not looked at yet.

    Args:
        edges: ``2·D`` voxel edges of the scan's own grid; may be anything.
        label: the name or the mask value of its class; empty where it has none.
        score: only of predictions.
    """

    edges: tuple[float, ...]
    label: str = ""
    score: float | None = None


def boxes_of_case(case: Case, geometry: Geometry, table: LabelTable) -> tuple[Boxes, list[Fault]]:
    """The true boxes of a case in voxel edges of its scan's own grid, and what is wrong with its annotation.

    ``case.boxes`` is a cell ``x0,y0,x1,y1[,label];…`` (a volume: ``i0,j0,k0,i1,j1,k1[,label];…``) in half-open voxel edges,
    empty or ``none`` where there is no lesion; or the path of a ``boxes.json`` or of a Pascal VOC ``.xml``. With one label in
    the table, boxes need not name it.

    Returns:
        Boxes without scores in the order of the annotation (none at all where the faults are such that the case is of no
        use, see `is_usable`), and the faults.
    """
    if case.boxes is None:
        reason = "nobody marked boxes in it, which is not the same as none; write 'none' where there is no lesion, or "
        return no_boxes(geometry), [Fault(case.id, NOT_ANNOTATED, f"{reason}leave the case out with {_skip(case.id)}")]
    try:
        marked = _marked(case.boxes, geometry)
    except ScanError as error:
        return no_boxes(geometry), [Fault(case.id, error.kind, f"{error}; or leave the case out with {_skip(case.id)}")]
    found, faults = checked(marked, geometry, table, case.id)
    return Boxes(found.boxes, found.labels), faults


def is_usable(faults: Iterable[Fault]) -> bool:
    """Whether the boxes beside these faults of one case are what lies in its image; False where nobody can say."""
    return all(fault.kind in BOX_FAULTS for fault in faults)


def no_boxes(geometry: Geometry) -> Boxes:
    """The boxes of a case without any, on a grid of that many axes."""
    return Boxes(np.zeros((0, 2 * geometry.dimensions)), np.zeros(0, np.int64))


def read_cell(cell: str, dimensions: int) -> list[Marked]:
    """The boxes that a cell of a table lists: ``2·dimensions`` numbers and perhaps a class each, separated by ``;``.

    Raises:
        ScanError: ``malformed_boxes``, or ``wrong_dimensions`` where volumes have boxes of pictures or the reverse.
    """
    if cell.strip().lower() in ("", NONE):
        return []
    size, wanted = 2 * dimensions, "i0,j0,k0,i1,j1,k1" if dimensions == 3 else "x0,y0,x1,y1"
    found = []
    for number, text in enumerate(filter(None, map(str.strip, cell.split(";"))), 1):
        parts = text.split(",", size)
        numbers = [value for part in parts[:size] if (value := _number(part)) is not None]
        more = [_number(part) for part in parts[size].split(",")] if len(parts) > size else []
        if (size == 6 and len(numbers) in (4, 5)) or (size == 4 and len(more) > 1 and None not in more[:2]):
            raise ScanError(
                f"box {number} ({text[:60]}) is one of a {'picture' if size == 6 else 'volume'}, expected {wanted}[,label]; "
                "look at data.columns",
                "wrong_dimensions",
            )
        if len(numbers) < size:
            reason = f"box {number} of the cell is {text[:60]!r}, expected {wanted}[,label], boxes separated by ';'"
            raise ScanError(f"{reason}; mend the cell", "malformed_boxes")
        found.append(Marked(tuple(numbers), parts[size].strip() if len(parts) > size else ""))
    return found


def write_cell(boxes: Sequence[Marked]) -> str:
    """The inverse of `read_cell`. A class name must hold no ``;``."""
    return ";".join(",".join([*(f"{edge:.10g}" for edge in box.edges), *filter(None, [box.label])]) for box in boxes)


def classes_of(boxes: Path | str) -> list[str]:
    """The classes that a cell or a file names, in its order; none where it cannot be read, as `boxes_of_case` will say."""
    try:
        if isinstance(boxes, Path):
            return _classes_of_file(boxes)
        return [box.label for box in _cell_of_any(boxes) if box.label]
    except ScanError:
        return []


def checked(
    marked: Sequence[Marked], geometry: Geometry, table: LabelTable, case: str = ""
) -> tuple[Boxes, list[Fault]]:
    """Those boxes that can be meant, cut off at the border of the image, and a fault for each of the others.

    Where a box lies outside the grid but inside its world extent, or where no box is left of some, all are left out: nobody
    can say what the image holds, and it must not pass for one without lesions.

    Args:
        marked: in voxel edges of ``geometry``.
        table: boxes name one of its labels, by name or value.
    """
    kept, labels, scores, faults = [], [], [], []
    for number, box in enumerate(marked, 1):
        edges = np.asarray(box.edges, np.float64)
        try:
            _check_extent(box, edges)
            value = _class_of(box, table)
            _check_place(edges, geometry)
        except ScanError as error:
            faults.append(Fault(case, error.kind, f"{_named(number, box)} {error}"))
            continue
        limits = np.tile(geometry.shape, 2)
        inside = np.clip(edges, 0, limits)
        if np.abs(inside - edges).max() > TOLERANCE:
            reason = f"reaches beyond the image ({_grid(geometry)}); what lies outside is cut off"
            faults.append(Fault(case, "beyond_image", f"{_named(number, box)} {reason}"))
        kept.append(inside)
        labels.append(value)
        scores.append(box.score)
    if any(fault.kind not in BOX_FAULTS for fault in faults):
        return no_boxes(geometry), faults
    if marked and not kept:
        reason = f"none of its {len(marked)} box(es) can be used, so nobody can say what it holds"
        advice = f"mend them, or leave the case out with {_skip(case)}"
        return no_boxes(geometry), [*faults, Fault(case, "no_usable_box", f"{reason}; {advice}")]
    if not kept:
        return no_boxes(geometry), faults
    known = np.array(scores, np.float64) if all(score is not None for score in scores) else None
    return Boxes(np.stack(kept), np.array(labels, np.int64), known), faults


def boxes_of_mask(
    mask: Array, geometry: Geometry, table: LabelTable, *, instances: bool = False, smallest_mm3: float = 0.0
) -> tuple[Boxes, Array]:
    """One box a lesion of a mask: a component of one label with 26 (2D: 8) neighbours.

    Args:
        mask: ``(*S)`` integers on ``geometry``.
        table: exclusive labels. The ignore value is no lesion.
        instances: every value is one lesion, whether it hangs together or not; the table then has one label.
        smallest_mm3: smaller lesions are left out (a picture: mm², or px where spacing is unknown).

    Returns:
        Boxes by ascending label, then in scan order (instances: by ascending value), and ``(*S)`` int32 in which the n-th
        box, from 0, is n + 1, and lesions that were left out are 0.

    Raises:
        MedsegError: the mask does not fit the grid, or the table has regions, or several labels for instances.
        ScanError: ``unknown_label``: a value that the table does not know.
    """
    if mask.shape != geometry.shape or mask.dtype.kind not in "iu":
        raise MedsegError(f"expected an integer mask on the grid {geometry.shape}, found {mask.shape} {mask.dtype}")
    if not table.exclusive:
        names = ", ".join(table.regions)
        raise MedsegError(f"boxes of a mask: expected labels that exclude each other, found the regions {names}")
    if instances:
        check_instances(table)
    values = ndimage.find_objects(mask)  # the window of each value above 0, or None
    present = [value for value, window in enumerate(values, 1) if window is not None and value != table.ignore]
    unknown = [] if instances else unique_values(table, present)
    if unknown:
        known = ", ".join(f"{value} {name}" for value, name in table.names.items())
        raise ScanError(f"the mask holds {unknown[:5]}, which nothing names; known are {known}", "unknown_label")
    numbered = np.zeros(mask.shape, np.int32)
    boxes: list[list[int]] = []
    labels: list[int] = []
    for value in present:
        window = values[value - 1]
        region = mask[window] == value
        lesions = region.astype(np.int32) if instances else ndimage.label(region, np.ones((3,) * mask.ndim, bool))[0]
        sizes = np.bincount(lesions.ravel()) * geometry.voxel_volume
        for lesion, part in enumerate(ndimage.find_objects(lesions), 1):
            if sizes[lesion] < smallest_mm3:
                continue
            lower = [around.start for around in window]
            boxes.append(
                [low + getattr(side, end) for end in ("start", "stop") for low, side in zip(lower, part, strict=True)]
            )
            labels.append(next(iter(table.names)) if instances else value)
            numbered[window][part][lesions[part] == lesion] = len(boxes)
    if not boxes:
        return no_boxes(geometry), numbered
    return Boxes(np.array(boxes, np.float64), np.array(labels, np.int64)), numbered


def check_instances(table: LabelTable) -> None:
    """Raise MedsegError where masks number their lesions and there are several labels, or regions, that these could be."""
    if len(table.names) > 1 or not table.exclusive:
        found = ", ".join(list(table.regions or table.names.values())[:5])
        raise MedsegError(
            f"an instance mask numbers its lesions and says nothing of their class: expected one label, found {found}; name one "
            "with data.label_names={1: lesion}, or give boxes instead"
        )


def _marked(boxes: Path | str, geometry: Geometry) -> list[Marked]:
    """What a cell or a file says, in voxel edges of ``geometry``. Raises ScanError."""
    if isinstance(boxes, str):
        return read_cell(boxes, geometry.dimensions)
    if boxes.suffix.lower() == ".json":
        from medseg.scans import box_json

        return box_json.read(boxes, geometry)
    if boxes.suffix.lower() == ".xml":
        from medseg.scans import voc

        return voc.read(boxes, geometry)
    raise ScanError(f"{boxes}: expected boxes as a boxes.json or a Pascal VOC .xml; convert it", "unsupported")


def _classes_of_file(path: Path) -> list[str]:
    if path.suffix.lower() == ".json":
        from medseg.scans import box_json

        return box_json.classes(path)
    from medseg.scans import voc

    return [box.label for box in voc.parse(path).objects if box.label]


def _cell_of_any(cell: str) -> list[Marked]:
    """The boxes of a cell, of pictures or of volumes: one of the two always refuses the other's. Raises ScanError."""
    try:
        return read_cell(cell, 2)
    except ScanError:
        return read_cell(cell, 3)


def _check_extent(box: Marked, edges: Array) -> None:
    """Raise ScanError for what is no box anywhere."""
    if not np.isfinite(edges).all():
        raise ScanError("has an edge that is missing or no finite number; left out: mend it", "not_finite")
    if box.score is not None and not math.isfinite(box.score):
        raise ScanError(f"has the score {box.score}; left out", "not_finite")
    low, high = edges.reshape(2, -1)
    if (high < low).any():
        raise ScanError(
            "ends before it begins; left out: are the edges in the order of lower, then upper?", "inverted_box"
        )
    if (high == low).any():
        raise ScanError("has no extent along some axis; left out: draw it again or delete it", "zero_area_box")


def _class_of(box: Marked, table: LabelTable) -> int:
    """The mask value that a box's class stands for. Raises ScanError."""
    known = ", ".join(table.names.values())
    if not box.label:
        if len(table.names) == 1:
            return next(iter(table.names))
        raise ScanError(f"has no class, and there are several ({known}); left out: name one", "box_without_class")
    by_name = {canonical(name): value for value, name in table.names.items()} | {n: v for v, n in table.names.items()}
    value = by_name.get(box.label, by_name.get(canonical(box.label)))
    if value is None and box.label.isdecimal() and int(box.label) in table.names:
        value = int(box.label)
    if value is None:
        reason = f"is of a class that is none of {known}; left out: name the class in data.label_names, or mend the box"
        raise ScanError(reason, "unknown_class")
    return value


def _check_place(edges: Array, geometry: Geometry) -> None:
    """Raise ScanError where the centre of a box lies outside the grid, and say in which frame it would lie inside."""
    limits, (low, high) = np.array(geometry.shape), edges.reshape(2, -1)
    centre = (low + high) / 2
    if (centre > 0).all() and (centre < limits).all():
        return
    beyond = (low < -TOLERANCE).any() or (high > limits + TOLERANCE).any()
    for frame, flip in (("RAS+", 1.0), ("LPS+, as ITK and DICOM write it", -1.0)):
        turned = edges.reshape(2, -1) * ([flip, flip, 1.0] if geometry.dimensions == 3 else 1.0)
        least, most = world_extent(geometry).reshape(2, -1)
        if beyond and geometry.unit == "mm" and (turned.min(0) >= least).all() and (turned.max(0) <= most).all():
            span = ", ".join(f"{a:.4g}…{b:.4g}" for a, b in zip(least, most, strict=True))
            raise ScanError(
                f"lies outside the grid ({_grid(geometry)}) but inside its world extent ({span} mm, {frame}): millimetres "
                "given as voxels? Write voxel edges, or a boxes.json with box_mm",
                "world_coordinates",
            )
    raise ScanError(f"lies outside the image ({_grid(geometry)}); left out: mend or delete it", "outside_image")


def _named(number: int, box: Marked) -> str:
    edges = ",".join(f"{edge:.6g}" for edge in box.edges)
    return f"box {number} ({', '.join(filter(None, [box.label, edges]))})"


def _grid(geometry: Geometry) -> str:
    return "×".join(map(str, geometry.shape))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _skip(case: str) -> str:
    return f"data.skip=[{case}]"
