"""Pascal VOC: pictures in one folder, an XML file of boxes for each in another → a Cohort.

``xmin, ymin, xmax, ymax`` are taken as half-open edges in pixels, as written; objects that are marked difficult or truncated
count like all others. A file without any object says that there is none; a picture without a file says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from medseg.scans.box_cohort import box_cohort, existing, pictures_below
from medseg.scans.box_files import box_files, paired_files
from medseg.scans.boxes import Marked
from medseg.scans.labels import Names
from medseg.scans.names import joined_stem
from medseg.scans.reading import ScanError, decoding
from medseg.structures import Case, Cohort, Fault
from medseg.volume import Geometry

_EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotation:
    """What one file holds: its objects, and the size of the picture (columns, rows) where it states one."""

    objects: tuple[Marked, ...]
    size: tuple[int, int] | None = None


def voc(
    root: Path | str,
    *,
    images: Path | str = "JPEGImages",
    annotations: Path | str = "Annotations",
    label_names: Names | None = None,
    channels: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Cohort:
    """A data set as Pascal VOC lays it out. ``boxes`` of a case is the path of its file.

    Pictures and files belong together by their path below their folder without suffix, else by their name alone. A picture
    without file and a file without picture are faults.

    Args:
        root: the folder that holds both.
        images, annotations: below ``root``, of any depth.
        label_names: the classes; None for those in the files, by alphabet.
        channels, skip, table, columns: see `medseg.scans.box_cohort.box_cohort`.

    Raises:
        MedsegError: a folder is missing or without pictures, no picture has a file, or no class is known.
    """
    root = existing(Path(root), "root")
    places = root / images, existing(root / annotations, "annotations")
    found = pictures_below(places[0], progress)
    names = {entry.id: (joined_stem(entry.relative), entry.relative.stem, entry.id) for entry in found.sources}
    unread = {fault.case for fault in found.faults}
    pairs, faults = paired_files(names, box_files(places[1], (".xml",)), places, unread)
    cases: list[Case] = []
    classes: set[str] = set()
    for entry in found.sources:
        if entry.id not in pairs:
            continue
        path = places[1] / pairs[entry.id]
        try:
            classes |= {box.label for box in parse(path).objects}
            cases.append(Case(entry.id, (entry.source,), boxes=path, patient=entry.patient))
        except ScanError as error:
            faults.append(Fault(entry.id, error.kind, str(error)))
    return box_cohort(
        cases,
        [*found.faults, *faults],
        sorted(classes),
        where=root,
        label_names=label_names,
        channels=channels,
        skip=skip,
        table=table,
        columns=columns,
    )


def read(path: Path, geometry: Geometry) -> list[Marked]:
    """The boxes of one file, in edges of the picture's grid.

    Raises:
        ScanError: as `parse`; ``wrong_dimensions`` for a volume; ``grids_differ`` where the file states another size.
    """
    annotation = parse(path)
    if geometry.dimensions != 2:
        raise ScanError(f"{path.name}: boxes of a picture, the scan is a volume; name its own file", "wrong_dimensions")
    if annotation.size not in (None, geometry.shape):
        stated, found = ("×".join(map(str, size or ())) for size in (annotation.size, geometry.shape))
        raise ScanError(
            f"{path.name}: made for a picture of {stated} pixels, found {found}; was the picture turned or resized since? "
            "Mark it again, or mend the size in the file",
            "grids_differ",
        )
    return list(annotation.objects)


def parse(path: Path) -> Annotation:
    """What one file says. An edge that is missing or no number is NaN.

    Raises:
        ScanError: ``missing_file``, ``unreadable``, or ``malformed_boxes`` for XML that is no Pascal VOC.
    """
    with decoding(path, "Pascal VOC XML"):
        body = ET.fromstring(path.read_bytes())
    if body.tag != "annotation":
        raise ScanError(
            f"{path.name}: expected the element <annotation> of Pascal VOC, found <{body.tag}>; convert it",
            "malformed_boxes",
        )
    size = tuple(_number(body.findtext(f"size/{name}")) for name in ("width", "height"))
    known = all(math.isfinite(length) and length > 0 for length in size)
    objects = (
        Marked(
            tuple(_number(entry.findtext(f"bndbox/{edge}")) for edge in _EDGES), (entry.findtext("name") or "").strip()
        )
        for entry in body.findall("object")
    )
    return Annotation(tuple(objects), (int(size[0]), int(size[1])) if known else None)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
