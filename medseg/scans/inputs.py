"""What ``predict`` walks: a file, a folder, a layout or a table becomes cases whose channels are those of a plan."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from medseg.errors import MedsegError
from medseg.scans.find import HARMLESS, LEFT_OUT, NO_SCAN, PICTURES, Found, FoundSource, find, find_one
from medseg.scans.matching import Examination, Rule, examinations, is_colour
from medseg.scans.names import case_id, stem
from medseg.scans.reading import ScanError
from medseg.scans.select import Selection
from medseg.scans.tables import Table, is_table, read_table
from medseg.structures import Case, Fault, Source

logger = logging.getLogger(__name__)

_LABEL_FOLDERS = ("labels", "masks", "label", "mask", "segmentations")


class ChannelRule(Protocol):
    """What is asked of a channel of a plan."""

    @property
    def name(self) -> str: ...

    @property
    def match(self) -> str: ...


class Wanted(Protocol):
    """What is asked of a plan (which this room does not import)."""

    @property
    def dimensions(self) -> int: ...

    @property
    def scan_channels(self) -> Sequence[ChannelRule]: ...


Select = Selection | Mapping[str, Any] | None
"""Which volumes are wanted: a `medseg.scans.select.Selection` or its fields; None for all."""


def input_cases(
    path: Path | str | Sequence[Path | str], plan: Wanted, *, select: Select = None
) -> tuple[list[Case], list[Fault]]:
    """The cases below ``path``, by id, and what would have been one but is not complete or not readable.

    A 4D NIfTI file becomes a case a volume (``<id>__v0001`` …) where the plan has one channel.

    Args:
        path: a scan; a folder of scans of any formats, several channels as ``_0000`` … or as DICOM series that the plan's
            channels match; a folder ``images`` beside labels; an MSD or nnU-Net folder (its ``imagesTs``, else
            ``imagesTr``); a CSV table with a column ``image``; a NumPy archive (`medseg.scans.npz`); or several of these.
        select: which volumes are wanted. What is left out is counted in the log, and is no fault.

    Raises:
        MedsegError: nothing exists at ``path``, or a table lacks its columns.
    """
    paths = [Path(path)] if isinstance(path, (str, Path)) else [Path(p) for p in path]
    if not paths:
        raise MedsegError("input: expected a file or a folder, found an empty list")
    missing = [str(p) for p in paths if not p.exists()]
    if missing:
        raise MedsegError(
            f"input {', '.join(missing)}: no such file or folder; look at how it is spelt and at where you stand"
        )
    rules = [Rule(channel.name, channel.match) for channel in plan.scan_channels]
    cases: list[Case] = []
    faults: list[Fault] = []
    for table in (p for p in paths if is_table(p)):
        more, wrong = table_cases(read_table(table, required=("image",)), len(rules), select=select)
        cases += more
        faults += wrong
    for archive in (p for p in paths if _is_archive(p)):
        from medseg.scans.npz import npz

        cases += npz(archive, keep_duplicates=True).cases
    folders = [images_of(p) for p in paths if not is_table(p) and not _is_archive(p)]
    if folders:
        found, unwanted = selected(find(folders), select)
        strangers = sum(fault.kind == NO_SCAN for fault in found.unread)
        if strangers:
            logger.info("%d files below the input are no scans and are passed over", strangers)
        for fault in found.unread:
            if fault.kind in HARMLESS - {NO_SCAN}:
                logger.info("%s", fault)
        more_examinations, wrong = examinations(found, rules)
        cases += [as_case(entry) for entry in more_examinations]
        faults += [*found.faults, *wrong]
        if not found.sources and not found.faults:
            where = ", ".join(map(str, folders))
            none = f"holds {len(unwanted)} scan(s), of which select leaves none" if unwanted else "holds no scan"
            faults.append(Fault("", "empty", f"{where}: {none} (DICOM, NIfTI, NRRD, MetaImage, picture)"))
    fitting: dict[str, Case] = {}
    if len(rules) == 1 and plan.dimensions == 3:
        cases = [part for case in cases for part in _volumes(case)]
    for case in sorted(cases, key=lambda case: case.id):
        reason = _wrong_kind(case, plan)
        if reason:
            faults.append(Fault(case.id, "wrong_dimensions", reason))
        elif case.id in fitting:
            faults.append(
                Fault(case.id, "duplicate_id", "a second scan of the input bears this id; rename one of them")
            )
        else:
            fitting[case.id] = case
    return list(fitting.values()), faults


def images_of(path: Path) -> Path:
    """Where the images of a data set lie: ``imagesTs`` or ``imagesTr`` below a ``dataset.json``, ``images`` beside labels."""
    if (path / "dataset.json").is_file():
        for name in ("imagesTs", "imagesTr"):
            if (path / name).is_dir() and any((path / name).iterdir()):
                return path / name
    if (path / "images").is_dir() and any((path / name).is_dir() for name in _LABEL_FOLDERS):
        return path / "images"
    return path


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and path.is_file()


def as_case(entry: Examination) -> Case:
    """A case without label."""
    return Case(entry.id, entry.sources, patient=entry.patient)


def selected(found: Found, select: Select) -> tuple[Found, list[FoundSource]]:
    """What is wanted of what was found, the rest as notes in its ``unread``, and the volumes that were left out."""
    if not select:
        return found, []
    selection = select if isinstance(select, Selection) else Selection.from_mapping(select)
    kept = selection.apply(found)
    ids = {entry.id for entry in kept.sources}
    return kept, [entry for entry in found.sources if entry.id not in ids]


def table_cases(table: Table, channels: int | None = None, *, select: Select = None) -> tuple[list[Case], list[Fault]]:
    """A case for each row whose files are there. Labels and boxes are taken where the table has a column for them.

    Args:
        channels: how many channels a case must have; None for as many as the table has image columns.
        select: which volumes are wanted, where a cell names a folder with several.
    """
    cases: list[Case] = []
    faults: list[Fault] = []
    for row in table.rows:
        first = row.get("image")
        name = case_id(row.get("id") or (stem(Path(first).name) if first else "") or f"line_{row.line}")
        try:
            cells = [row.get(column) for column in table.images]
            if not all(cells):
                column = table.images[cells.index("")]
                raise ScanError(f"line {row.line} of {table.path.name} has no {column}; fill it in", "missing_channel")
            found = [_one_of(table.resolve(cell), select) for cell in cells]
            sources = tuple(entry.source for entry in found)
            held = 3 * len(sources) if is_colour(sources[0]) and channels != 1 else len(sources)
            if channels not in (None, held):
                reason = f"expected {channels} image columns, found {len(sources)}: {', '.join(table.images)}"
                raise ScanError(reason, "missing_channel")
            label = _label_of(table.resolve(row.get("label")), found[0]) if row.get("label") else None
            cases.append(
                Case(
                    id=name,
                    images=sources,
                    label=label,
                    boxes=table.boxes_of(row),
                    class_name=row.get("class") or None,
                    patient=row.get("patient") or found[0].patient,
                    metadata=row.metadata,
                )
            )
        except (ScanError, OSError) as error:
            faults.append(Fault(name, error.kind if isinstance(error, ScanError) else "unreadable", str(error)))
    return cases, faults


def _one_of(path: Path, select: Select) -> FoundSource:
    """The one volume that a path names, or that is wanted of those below it. Raises ScanError."""
    if not select or not path.is_dir():
        return find_one(path)
    found, unwanted = selected(find(path), select)
    if len(found.sources) != 1 and unwanted:
        held = ", ".join(entry.id for entry in (*found.sources, *unwanted)[:5])
        reason = f"{path}: expected one volume that select wants, found {len(found.sources)} of {held}"
        raise ScanError(reason, "ambiguous" if found.sources else LEFT_OUT)
    return found.sources[0] if len(found.sources) == 1 else find_one(path)


def _label_of(path: Path, image: FoundSource) -> Source:
    """The label that a path names: a mask, or a SEG or RTSTRUCT in the frame of reference of the image. Raises ScanError."""
    annotations = find(path).annotations if path.exists() else ()
    if not annotations:
        return find_one(path).source
    if len(annotations) > 1:
        names = ", ".join(entry.relative.as_posix() for entry in annotations[:5])
        raise ScanError(f"{path}: expected one SEG or RTSTRUCT, found {names}; name one of them", "several_annotations")
    frames = (annotations[0].frame_of_reference, image.frame_of_reference)
    if all(frames) and frames[0] != frames[1]:
        raise ScanError(
            f"{path}: it lies in another frame of reference than the image, so nobody can say where; name the one that was made "
            "for this image",
            "other_frame_of_reference",
        )
    return annotations[0].source


def _volumes(case: Case) -> list[Case]:
    """A case for each volume of a 4D NIfTI file; any other case as it is."""
    if len(case.images) != 1 or case.images[0].kind != "nifti" or case.images[0].key:
        return [case]
    from medseg.scans import nifti

    try:
        count = nifti.volume_count(case.images[0].files[0])
    except ScanError:
        return [case]  # said when it is read
    if count < 2:
        return [case]
    names = [f"{case.id}__v{number:04d}" for number in range(1, count + 1)]
    logger.info("%s: a 4D file; its %d volumes are cases of their own: %s …", case.id, count, names[0])
    source = case.images[0]
    return [replace(case, id=name, images=(replace(source, key=str(k)),)) for k, name in enumerate(names)]


def read_json(path: Path) -> dict[str, object]:
    """A JSON object. Raises MedsegError where there is none."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MedsegError(f"{path}: no such file; expected the dataset.json of the data set") from None
    except (OSError, ValueError) as error:
        raise MedsegError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(body, dict):
        raise MedsegError(f"{path}: expected a JSON object, found a {type(body).__name__}")
    return body


def is_flat(source: Source) -> bool:
    """Whether a source is a picture, as far as its kind and modality say; of an archive, as its array says."""
    if source.kind == "npz":
        from medseg.scans import npz

        return npz.read_geometry(source).dimensions == 2
    return source.kind == "picture" or (source.kind == "dicom" and source.modality in PICTURES)


def _wrong_kind(case: Case, plan: Wanted) -> str:
    flat = [is_flat(source) for source in case.images]
    if plan.dimensions == 3 and any(flat) and case.images[flat.index(True)].kind in ("picture", "npz"):
        return f"{case.images[flat.index(True)].files[0].name} is a picture, the model expects volumes (3D)"
    if plan.dimensions == 2 and not all(flat):
        return f"{case.images[flat.index(False)].files[0].name} is a volume, the model expects pictures (2D)"
    return ""
