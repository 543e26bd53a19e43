"""What ``predict`` walks: a file, a folder, a layout or a table becomes cases whose channels are those of a plan."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from medseg.errors import MedsegError
from medseg.scans.find import NO_SCAN, PICTURES, find, find_one
from medseg.scans.matching import Examination, Rule, examinations, is_colour
from medseg.scans.names import case_id, stem
from medseg.scans.reading import ScanError
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
    def channels(self) -> Sequence[ChannelRule]: ...


def input_cases(path: Path | str | Sequence[Path | str], plan: Wanted) -> tuple[list[Case], list[Fault]]:
    """The cases below ``path``, by id, and what would have been one but is not complete or not readable.

    Args:
        path: a scan; a folder of scans of any formats, several channels as ``_0000`` … or as DICOM series that the plan's
            channels match; a folder ``images`` beside labels; an MSD or nnU-Net folder (its ``imagesTs``, else
            ``imagesTr``); a CSV table with a column ``image``; or several of these.

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
    rules = [Rule(channel.name, channel.match) for channel in plan.channels]
    cases: list[Case] = []
    faults: list[Fault] = []
    for table in (p for p in paths if is_table(p)):
        more, wrong = table_cases(read_table(table, required=("image",)), len(rules))
        cases += more
        faults += wrong
    folders = [images_of(p) for p in paths if not is_table(p)]
    if folders:
        found = find(folders)
        strangers = sum(fault.kind == NO_SCAN for fault in found.unread)
        if strangers:
            logger.info("%d files below the input are no scans and are passed over", strangers)
        more_examinations, wrong = examinations(found, rules)
        cases += [as_case(entry) for entry in more_examinations]
        faults += [*found.faults, *wrong]
        if not found.sources and not found.faults:
            where = ", ".join(map(str, folders))
            faults.append(Fault("", "empty", f"{where}: holds no scan (DICOM, NIfTI, NRRD, MetaImage, picture)"))
    fitting: dict[str, Case] = {}
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


def as_case(entry: Examination) -> Case:
    """A case without label."""
    return Case(entry.id, entry.sources, patient=entry.patient)


def table_cases(table: Table, channels: int | None = None) -> tuple[list[Case], list[Fault]]:
    """A case for each row whose files are there. Labels are taken where the table has a column for them.

    Args:
        channels: how many channels a case must have; None for as many as the table has image columns.
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
            found = [find_one(table.resolve(cell)) for cell in cells]
            sources = tuple(entry.source for entry in found)
            held = 3 * len(sources) if is_colour(sources[0]) and channels != 1 else len(sources)
            if channels not in (None, held):
                reason = f"expected {channels} image columns, found {len(sources)}: {', '.join(table.images)}"
                raise ScanError(reason, "missing_channel")
            label = find_one(table.resolve(row.get("label"))).source if row.get("label") else None
            boxes = row.get("boxes")
            beside = table.resolve(boxes) if boxes.endswith(".json") else None
            cases.append(
                Case(
                    id=name,
                    images=sources,
                    label=label,
                    boxes=(beside or boxes) or None,
                    class_name=row.get("class") or None,
                    patient=row.get("patient") or found[0].patient,
                    metadata=row.metadata,
                )
            )
        except (ScanError, OSError) as error:
            faults.append(Fault(name, error.kind if isinstance(error, ScanError) else "unreadable", str(error)))
    return cases, faults


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
    """Whether a source is a picture, as far as its kind and modality say."""
    return source.kind == "picture" or (source.kind == "dicom" and source.modality in PICTURES)


def _wrong_kind(case: Case, plan: Wanted) -> str:
    flat = [is_flat(source) for source in case.images]
    if plan.dimensions == 3 and any(flat) and case.images[flat.index(True)].kind == "picture":
        return f"{case.images[flat.index(True)].files[0].name} is a picture, the model expects volumes (3D)"
    if plan.dimensions == 2 and not all(flat):
        return f"{case.images[flat.index(False)].files[0].name} is a volume, the model expects pictures (2D)"
    return ""
