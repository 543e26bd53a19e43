"""COCO: a folder of pictures and one JSON file with the boxes of all of them → a Cohort.

``bbox`` is ``[x, y, width, height]`` in pixels, the left upper corner of the picture being ``0, 0``: its edges become a cell of
a table. A picture that the file lists without a box has none; a picture that the file does not list is not annotated.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from medseg.errors import MedsegError
from medseg.scans import read_geometry
from medseg.scans.box_cohort import box_cohort, existing, pictures_below
from medseg.scans.boxes import NONE, Marked, write_cell
from medseg.scans.find import LEFT_OUT, Found, FoundSource
from medseg.scans.labels import Names
from medseg.scans.names import case_id, stem
from medseg.scans.reading import ScanError, decoding
from medseg.structures import Case, Cohort, Fault

_Entry = Mapping[str, Any]


def coco(
    images: Path | str,
    annotations: Path | str,
    *,
    label_names: Names | None = None,
    channels: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Cohort:
    """A data set of pictures with boxes in COCO's format.

    Boxes of crowds (``iscrowd``) stand for many objects at once; they are left out, with a note each.

    Args:
        images: the folder that ``file_name`` is relative to; where nothing lies there, the name alone decides.
        annotations: the JSON file.
        label_names: the classes; None for the categories that occur, by their id.
        channels, skip, table, columns: see `medseg.scans.box_cohort.box_cohort`.

    Raises:
        MedsegError: folder or file is missing, the file is not laid out so, no picture is listed, or no class is known.
    """
    file = existing(Path(annotations), "annotations")
    body = _body(file)
    found = pictures_below(Path(images), progress)
    names = {_key(entry, "id"): _class_name(entry) for entry in body["categories"]}
    sources, faults = _listed(body["images"], found, Path(images))
    listed = {_key(entry, "id") for entry in body["images"]}
    marked, used, more = _marked(body["annotations"], sources, listed, names)
    cases = [
        Case(
            sources[number].id,
            (sources[number].source,),
            boxes=write_cell(boxes) or NONE,
            patient=sources[number].patient,
        )
        for number, boxes in marked.items()
    ]
    faults += more
    classes = [names[number] for number in sorted(names, key=lambda number: number.zfill(12)) if number in used]
    return box_cohort(
        cases,
        faults,
        classes,
        where=file,
        label_names=label_names,
        channels=channels,
        skip=skip,
        table=table,
        columns=columns,
    )


def _listed(entries: Sequence[_Entry], found: Found, folder: Path) -> tuple[dict[str, FoundSource], list[Fault]]:
    """COCO's id of each picture → the picture, of those that are there, once, and in the size that the file states."""
    by_path = {entry.relative: entry for entry in found.sources}
    by_name: dict[str, list[FoundSource]] = defaultdict(list)
    for source in found.sources:
        by_name[source.relative.name].append(source)
    faults = list(found.faults)
    unreadable = {fault.case for fault in faults}
    there: list[tuple[_Entry, FoundSource]] = []
    for entry in entries:
        path = PurePath(str(entry.get("file_name", "")))
        alike = by_name.get(path.name, [])
        picture = by_path.get(path) or (alike[0] if len(alike) == 1 else None)
        name = case_id(stem(path.name))
        if picture is not None:
            there.append((entry, picture))
        elif name not in unreadable:
            reason = (
                f"the annotations list {str(path)!r}, which is not in {folder}; add the picture or take the entry out"
            )
            faults.append(Fault(name, "annotation_without_image", reason))
    claims = Counter(picture.id for _, picture in there)
    keys = Counter(_key(entry, "id") for entry, _ in there)
    pictures: dict[str, FoundSource] = {}
    for entry, picture in there:
        key = _key(entry, "id")
        try:
            if claims[picture.id] > 1 or keys[key] > 1:
                reason = "the annotations list this picture, or its id, more than once; keep one entry"
                raise ScanError(reason, "duplicate_id")
            _check_size(entry, picture)
            pictures[key] = picture
        except ScanError as error:
            faults.append(Fault(picture.id, error.kind, str(error)))
    for source in found.sources:
        if source.id not in claims:
            reason = (
                "the annotations do not list it, which is not the same as listing it without a box; add it to 'images'"
            )
            faults.append(Fault(source.id, "image_without_annotation", f"{reason}, or leave the picture out"))
    return pictures, list(dict.fromkeys(faults))


def _check_size(entry: _Entry, picture: FoundSource) -> None:
    """Raise ScanError where a picture does not have the size for which its boxes were drawn."""
    stated = (entry.get("width"), entry.get("height"))
    shape = read_geometry(picture.source).shape
    if all(isinstance(length, int) and length > 0 for length in stated) and stated != shape:
        made, has = ("×".join(map(str, size)) for size in (stated, shape))
        raise ScanError(
            f"annotated as a picture of {made} pixels, found {has}; was it turned or resized since? Mark it again, or mend its "
            "width and height in the annotations",
            "grids_differ",
        )


def _marked(
    entries: Sequence[_Entry], pictures: Mapping[str, FoundSource], listed: Collection[str], names: Mapping[str, str]
) -> tuple[dict[str, list[Marked]], set[str], list[Fault]]:
    """The boxes of each picture by COCO's id of it, the categories they use, and what was left out."""
    boxes: dict[str, list[Marked]] = {number: [] for number in pictures}
    used: set[str] = set()
    crowded: set[str] = set()
    faults: list[Fault] = []
    for entry in entries:
        number, which = _key(entry, "image_id"), f"annotation {entry.get('id')!r}"
        if number not in listed:
            reason = f"{which} is of the picture {number!r}, which the file does not list; add it to 'images'"
            faults.append(Fault("", "annotation_without_image", reason))
        elif number in pictures and entry.get("iscrowd"):
            crowded.add(number)
            faults.append(Fault(pictures[number].id, LEFT_OUT, f"{which} marks a crowd; left out"))
        elif number in pictures:
            category = _key(entry, "category_id")
            used.add(category)
            label = names.get(category, f"category {category}") if "category_id" in entry else ""
            boxes[number].append(Marked(_edges(entry.get("bbox")), label))
    for number in crowded:
        if not boxes[number]:
            del boxes[number]
            reason = "nothing but crowds is marked in it, so nobody can say where its objects lie; left out"
            faults.append(Fault(pictures[number].id, LEFT_OUT, reason))
    return boxes, used, faults


def _edges(box: object) -> tuple[float, ...]:
    """``[x, y, width, height]`` as edges; NaN of what is no box, so that it is found and named like all others."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return (math.nan,) * 4
    x, y, width, height = map(float, box)
    return (x, y, x + width, y + height)


def _body(file: Path) -> dict[str, list[_Entry]]:
    """The three lists of a COCO file. Raises MedsegError."""
    with decoding(file, "COCO JSON"):
        body = json.loads(file.read_text(encoding="utf-8"))
    lists: dict[str, list[_Entry]] = {}
    for name in ("images", "annotations", "categories"):
        held = body.get(name) if isinstance(body, dict) else None
        if not isinstance(held, list) or not all(isinstance(entry, dict) for entry in held):
            raise MedsegError(f"{file}: expected COCO's list {name!r} of objects, found {repr(held)[:60]}")
        lists[name] = held
    return lists


def _class_name(category: _Entry) -> str:
    """What a category is called; ``;`` would end a box in a cell."""
    return str(category.get("name") or f"category {category.get('id')}").replace(";", ",").strip()


def _key(entry: _Entry, name: str) -> str:
    """An id as it is compared: some files write the same one as a number and as text."""
    return str(entry.get(name))


def _is_number(value: object) -> bool:
    """Whether JSON gave a number that a float holds."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
