"""How data sets are laid out on disk: folders of images and labels, MSD, nnU-Net raw, a CSV table → a Cohort.

A layout lists; it opens headers at most (and masks, where nobody says what their values mean). What does not fit together
becomes a fault of the Cohort and is left out of its cases, so that all faults can be mended at once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError, all_at_once
from medseg.scans.find import Found, FoundSource, find, find_one
from medseg.scans.inputs import as_case, input_cases, read_json, table_cases
from medseg.scans.labels import Names, found_labels, label_table
from medseg.scans.matching import Examination, Rule, examinations, is_colour, match_one, rules_of
from medseg.scans.matching import label_names as names_of_label
from medseg.scans.names import case_id, stem
from medseg.scans.reading import ScanError
from medseg.scans.tables import read_table
from medseg.structures import Case, Cohort, Fault, LabelTable, Source

__all__ = ["folder", "input_cases", "msd", "nnunet", "table"]

logger = logging.getLogger(__name__)
Channels = Sequence[str] | Mapping[str, str]


def folder(
    images: Path | str,
    labels: Path | str | None = None,
    *,
    label_names: Names | None = None,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
    channels: Channels | None = None,
    skip: Sequence[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    label_suffix: str = "",
    progress: bool = True,
) -> Cohort:
    """Images in one folder, labels of the same name in another (or in the same one, told apart by ``label_suffix``).

    A DICOM series takes the label that is called like its folder (or like its id). Files ending in ``_0000``, ``_0001`` …
    are the channels of one case.

    Args:
        images, labels: folders of any depth; ``labels=None`` for a data set without masks.
        label_names, ignore, regions, paint: see `medseg.scans.labels.label_table`; without names, the masks are read and
            their values numbered.
        channels: a name a channel, or name → regular expression by which DICOM series are told apart.
        skip: ids of cases to leave out.
        table: a CSV table with a column ``id``; ``patient``, ``class``, ``boxes`` and metadata are taken from it.
        columns: our name → the name in ``table``.
        label_suffix: what the names of labels end in beside those of images (``"_seg"``).

    Raises:
        MedsegError: a folder is missing or empty, or no image fits any label.
    """
    images = Path(images)
    found = _found(images, "images", progress)
    rules = None if channels is None else rules_of(channels)
    known_rows = set(read_table(Path(table), columns).by_id()) if table is not None else set()
    if labels is None:
        entries, faults = examinations(found, rules, known_rows)
        cases = [as_case(entry) for entry in entries]
        faults = [*found.faults, *faults]
        names = {entry.id: entry.names for entry in entries}
    else:
        found, masks = _separate(found, images, Path(labels), label_suffix, progress)
        cases, faults, names = _paired(found, masks, rules, label_suffix, (images, Path(labels)))
    cases, faults = _with_table(cases, faults, names, table, columns)
    labels_given = _LabelOptions(label_names, ignore, regions, paint)
    return _cohort(
        cases, faults, labels_given, [rule.name for rule in rules] if rules else None, skip, str(images), progress
    )


def msd(
    root: Path | str,
    *,
    label_names: Names | None = None,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
    channels: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Cohort:
    """A task of the Medical Segmentation Decathlon: the ``training`` list of its ``dataset.json``.

    Several modalities are the volumes of one 4D file. The options override what ``dataset.json`` says; see `folder`.

    Raises:
        MedsegError: no ``dataset.json`` there, or it lists no training case.
    """
    root = Path(root)
    described = read_json(_root_file(root))
    listed = described.get("training")
    if not isinstance(listed, list) or not listed:
        raise MedsegError(
            f"{root / 'dataset.json'}: expected a list 'training' of image and label; found {_shown(listed)}"
        )
    modality = described.get("modality")
    names = list(channels) if channels else _in_order(modality) or ["image"]
    cases: list[Case] = []
    faults: list[Fault] = []
    for entry in listed:
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, Mapping) else (entry, None)
        if not isinstance(image, str):
            faults.append(Fault("", "missing_file", f"dataset.json lists {_shown(entry)}, expected image and label"))
            continue
        name = case_id(stem(Path(image).name))
        try:
            source = find_one(root / image).source
            keys = [str(k) for k in range(len(names))] if len(names) > 1 and not is_colour(source) else [source.key]
            mask = find_one(root / label).source if isinstance(label, str) else None
            if mask is None:
                faults.append(Fault(name, "image_without_label", "dataset.json names no label for it"))
            else:
                cases.append(Case(name, tuple(replace(source, key=key) for key in keys), mask))
        except ScanError as error:
            faults.append(Fault(name, error.kind, str(error)))
    cases, faults = _with_table(cases, faults, {}, table, columns)
    options = _LabelOptions(label_names or _names(described.get("labels"), root), ignore, regions, paint)
    return _cohort(cases, faults, options, names, skip, str(root), progress)


def nnunet(
    root: Path | str,
    *,
    label_names: Names | None = None,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
    channels: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Cohort:
    """A data set in the raw format of nnU-Net (version 2): ``imagesTr/<id>_0000…``, ``labelsTr/<id>…``, ``dataset.json``.

    Labels that are lists of values are regions, painted with ``regions_class_order``; a label called ``ignore`` is left out
    of loss and metrics. Where ``dataset.json`` has an entry ``dataset``, its paths are taken. See `folder` for the options.

    Raises:
        MedsegError: no ``dataset.json`` there, or no image fits any label.
    """
    root = Path(root)
    described = read_json(_root_file(root))
    names = (
        list(channels)
        if channels
        else _in_order(described.get("channel_names", described.get("modality"))) or ["image"]
    )
    entries = described.get("dataset")
    if isinstance(entries, Mapping):
        cases, faults = _listed_cases(root, entries)
    else:
        images, labels = root / "imagesTr", root / "labelsTr"
        found, masks = _found(images, "imagesTr", progress), _found(labels, "labelsTr", progress)
        cases, faults, _ = _paired(found, masks, [Rule(name) for name in names], "", (images, labels))
    cases, faults = _with_table(cases, faults, {}, table, columns)
    order = described.get("regions_class_order")
    given = label_names or _names(described.get("labels"), root)
    has_regions = isinstance(given, Mapping) and any(
        isinstance(v, (list, tuple)) and len(v) > 1 for v in given.values()
    )
    if paint is None and has_regions and label_names is None and isinstance(order, Sequence):
        paint = [int(value) for value in order]
    return _cohort(cases, faults, _LabelOptions(given, ignore, regions, paint), names, skip, str(root), progress)


def table(
    file: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    label_names: Names | None = None,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
    channels: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    progress: bool = True,
) -> Cohort:
    """A CSV table with a row a case: ``id, image[, image_2 …], label, boxes, class, patient`` and any metadata.

    Paths are relative to the table; a folder with one DICOM series is a path too. See `folder` for the options.

    Raises:
        MedsegError: no such table, or a column is missing.
    """
    read = read_table(Path(file), columns, ("id", "image"))
    if not read.rows:
        raise MedsegError(f"{read.path}: the table has column names but no row")
    cases, faults = table_cases(read)
    if any(case.label for case in cases):
        faults += [Fault(c.id, "image_without_label", "its row names no label") for c in cases if c.label is None]
        cases = [case for case in cases if case.label]
    count: dict[str, int] = defaultdict(int)
    for case in cases:
        count[case.id] += 1
    faults += [Fault(i, "duplicate_id", f"{n} rows have this id; give each its own") for i, n in count.items() if n > 1]
    cases = [case for case in cases if count[case.id] == 1]
    options = _LabelOptions(label_names, ignore, regions, paint)
    return _cohort(cases, faults, options, list(channels) if channels else None, skip, str(read.path), progress)


class _LabelOptions:
    """What a user says of the labels."""

    def __init__(
        self,
        names: Names | None,
        ignore: int | None,
        regions: Mapping[str, Sequence[int]] | None,
        paint: Sequence[int] | None,
    ) -> None:
        self.names, self.ignore, self.regions, self.paint = names, ignore, regions, paint

    def table(self, masks: Sequence[Source], progress: bool) -> LabelTable | None:
        if not masks:
            return None
        names = self.names or found_labels(masks, ignore=self.ignore, progress=progress)
        return label_table(names, ignore=self.ignore, regions=self.regions, paint=self.paint)


def _cohort(
    cases: Sequence[Case],
    faults: Sequence[Fault],
    labels: _LabelOptions,
    channels: Sequence[str] | None,
    skip: Sequence[str],
    where: str,
    progress: bool,
) -> Cohort:
    """Leave out what shall be skipped, and find out what was not said."""
    skipped = {str(name) for name in skip}
    unknown = sorted(skipped - {case.id for case in cases} - {fault.case for fault in faults})
    if unknown:
        raise MedsegError(f"skip: {where} has no case {', '.join(map(repr, unknown[:5]))}; look at how it is spelt")
    kept = sorted((case for case in cases if case.id not in skipped), key=lambda case: case.id)
    rest = tuple(fault for fault in faults if fault.case not in skipped)
    if not kept:
        raise all_at_once(
            f"{where}: no case is left to work with:", map(str, rest[:20]) if rest else ["all were skipped"]
        )
    table = labels.table([case.label for case in kept if case.label], progress)
    return Cohort(tuple(kept), tuple(channels or _channel_names(kept[0])), table, rest)


def _channel_names(case: Case) -> list[str]:
    """Names of channels that nobody named: the modality, the colours of a picture, or a number."""
    if len(case.images) > 1:
        return [f"channel_{number}" for number in range(len(case.images))]
    if is_colour(case.images[0]):
        from medseg.scans.picture import COLOURS

        return list(COLOURS)
    return [case.images[0].modality or "image"]


def _found(path: Path, what: str, progress: bool) -> Found:
    if not path.exists():
        raise MedsegError(
            f"{what} {path}: no such folder; look at how it is spelt and at where you stand ({Path.cwd()})"
        )
    found = find(path, progress=progress)
    if not found.sources:
        reasons = [fault.message for fault in found.unread[:10]]
        heading = f"{what} {path}: expected scans (DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF), found none"
        raise all_at_once(f"{heading}:", reasons) if reasons else MedsegError(f"{heading}: the folder is empty")
    return found


def _separate(found: Found, images: Path, labels: Path, label_suffix: str, progress: bool) -> tuple[Found, Found]:
    """Images and labels, where one folder may be the other or hold it."""
    same = labels.resolve() == images.resolve()
    if same:
        if not label_suffix:
            raise MedsegError(
                f"images and labels are the same folder {images}; say what labels end in with label_suffix"
            )
        is_label = {
            e.id for e in found.sources if e.source.kind != "dicom" and stem(e.relative.name).endswith(label_suffix)
        }
        masks = Found(tuple(e for e in found.sources if e.id in is_label))
        if not masks.sources:
            raise MedsegError(f"{labels}: no file name ends in {label_suffix!r}, so there is no label")
        return Found(tuple(e for e in found.sources if e.id not in is_label), found.unread), masks
    masks = _found(labels, "labels", progress)
    files = {file.resolve() for entry in masks.sources for file in entry.source.files}
    rest = tuple(e for e in found.sources if not files.intersection(file.resolve() for file in e.source.files))
    return Found(rest, found.unread), masks


def _paired(
    found: Found, masks: Found, rules: Sequence[Rule] | None, label_suffix: str, where: tuple[Path, Path]
) -> tuple[list[Case], list[Fault], dict[str, tuple[str, ...]]]:
    """Give each image its label; what stays alone on either side is a fault."""
    index: dict[str, list[FoundSource]] = defaultdict(list)
    for mask in masks.sources:
        for name in names_of_label(mask, label_suffix):
            index[name].append(mask)
    entries, faults = examinations(found, rules, index)
    pairs = {entry.id: match_one(entry.names, index) for entry in entries}
    claims: dict[str, list[Examination]] = defaultdict(list)
    for entry in entries:
        claimed = pairs[entry.id]
        if claimed is not None:
            claims[claimed.id].append(entry)
    broken = {fault.case for fault in (*found.faults, *masks.faults, *faults)}
    cases: list[Case] = []
    for entry in entries:
        found_mask = pairs[entry.id]
        if found_mask is None:
            if not broken.intersection((entry.id, *entry.names)):
                expected = f"expected a label called {entry.names[-1] if len(entry.names) < 3 else entry.names[1]}{label_suffix}"
                faults.append(
                    Fault(entry.id, "image_without_label", f"no label for this image: {expected} in {where[1]}")
                )
        elif len(claims[found_mask.id]) > 1:
            others = ", ".join(e.id for e in claims[found_mask.id] if e is not entry)
            reason = (
                f"its label {found_mask.relative.as_posix()} would also be that of {others}; give each image its own"
            )
            faults.append(Fault(entry.id, "ambiguous_label", reason))
        else:
            cases.append(replace(as_case(entry), label=found_mask.source))
    for mask in masks.sources:
        if mask.id not in claims and not broken.intersection(names_of_label(mask, label_suffix)):
            reason = f"label {mask.relative.as_posix()} belongs to no image in {where[0]}; rename it or take it away"
            faults.append(Fault(names_of_label(mask, label_suffix)[0], "label_without_image", reason))
    if not cases and not claims:
        raise MedsegError(
            f"no image in {where[0]} has a label of its name in {where[1]}: images such as "
            f"{', '.join(e.relative.as_posix() for e in found.sources[:2])}, labels such as "
            f"{', '.join(m.relative.as_posix() for m in masks.sources[:2])}. Rename them, or say label_suffix"
        )
    return cases, [*found.faults, *masks.faults, *faults], {entry.id: entry.names for entry in entries}


def _listed_cases(root: Path, entries: Mapping[str, Any]) -> tuple[list[Case], list[Fault]]:
    """The cases of the ``dataset`` entry of an nnU-Net data set."""
    cases: list[Case] = []
    faults: list[Fault] = []
    for name, entry in sorted(entries.items()):
        try:
            sources = tuple(find_one(root / str(image)).source for image in entry["images"])
            cases.append(Case(case_id(str(name)), sources, find_one(root / str(entry["label"])).source))
        except ScanError as error:
            faults.append(Fault(case_id(str(name)), error.kind, str(error)))
        except (KeyError, TypeError):
            faults.append(
                Fault(case_id(str(name)), "missing_file", f"dataset.json gives no images and label: {_shown(entry)}")
            )
    return cases, faults


def _with_table(
    cases: Sequence[Case],
    faults: Sequence[Fault],
    names: Mapping[str, tuple[str, ...]],
    table: Path | str | None,
    columns: Mapping[str, str] | None,
) -> tuple[list[Case], list[Fault]]:
    """Join patient, class, boxes and metadata by id; a case without a row is a fault, a row without a case is not."""
    if table is None:
        return list(cases), list(faults)
    read = read_table(Path(table), columns)
    rows = read.by_id()
    joined: list[Case] = []
    missing: list[Fault] = []
    for case in cases:
        row = next((rows[name] for name in (case.id, *names.get(case.id, ())) if name in rows), None)
        if row is None:
            missing.append(
                Fault(case.id, "missing_row", f"{read.path} has no row with this id; add it or leave the case out")
            )
            continue
        boxes = row.get("boxes")
        joined.append(
            replace(
                case,
                patient=row.get("patient") or case.patient,
                class_name=row.get("class") or None,
                boxes=(read.resolve(boxes) if boxes.endswith(".json") else boxes) or None,
                metadata=row.metadata,
            )
        )
    if not joined and cases:
        raise MedsegError(
            f"{read.path}: no row has the id of a case; ids such as {', '.join(list(rows)[:2])}, cases such as "
            f"{', '.join(case.id for case in cases[:2])}"
        )
    return joined, [*faults, *missing]


def _root_file(root: Path) -> Path:
    if not root.is_dir():
        raise MedsegError(f"root {root}: no such folder; look at how it is spelt and at where you stand ({Path.cwd()})")
    return root / "dataset.json"


def _in_order(numbered: object) -> list[str]:
    """``{"0": "T1", "1": "T2"}`` → ``["T1", "T2"]``."""
    if isinstance(numbered, Mapping) and all(str(key).isdigit() for key in numbered):
        return [str(numbered[key]) for key in sorted(numbered, key=lambda key: int(str(key)))]
    return [str(name) for name in numbered] if isinstance(numbered, list) else []


def _names(labels: object, root: Path) -> Names | None:
    if labels is None:
        return None
    if not isinstance(labels, (Mapping, list)):
        raise MedsegError(f"{root / 'dataset.json'}: expected labels as names and values, found {_shown(labels)}")
    return labels


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)[:80]
