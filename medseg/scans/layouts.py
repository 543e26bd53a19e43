"""How data sets are laid out on disk: folders of images and labels, MSD, nnU-Net raw, a CSV table → a Cohort.

A layout lists; it opens headers at most (and masks, where nobody says what their values mean). What does not fit together
becomes a fault of the Cohort and is left out of its cases, so that all faults can be mended at once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from medseg.errors import MedsegError, all_at_once
from medseg.scans.box_files import WITHOUT_ANNOTATION, box_files, case_names, paired_files
from medseg.scans.classes import classed_by_folders
from medseg.scans.cohort import cohort_of, with_table
from medseg.scans.find import LEFT_OUT, Found, FoundSource, find, find_one
from medseg.scans.inputs import Select, as_case, input_cases, read_json, selected, table_cases
from medseg.scans.labels import LabelOptions, Names
from medseg.scans.matching import Rule, examinations, is_colour, names_of, rules_of
from medseg.scans.names import case_id, stem
from medseg.scans.pairing import Choice, Paired, paired
from medseg.scans.reading import ScanError
from medseg.scans.tables import read_table
from medseg.structures import Case, Cohort, Fault

__all__ = ["folder", "input_cases", "msd", "nnunet", "table"]

logger = logging.getLogger(__name__)
Channels = Sequence[str] | Mapping[str, str]


def folder(
    images: Path | str,
    labels: Path | str | None = None,
    boxes: Path | str | None = None,
    *,
    label_names: Names | None = None,
    label_match: Mapping[str, str] | None = None,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
    channels: Channels | None = None,
    select: Select = None,
    skip: Sequence[str] = (),
    table: Path | str | None = None,
    columns: Mapping[str, str] | None = None,
    class_folders: bool = False,
    label_suffix: str = "",
    annotation_match: str | None = None,
    merge_annotations: bool = False,
    progress: bool = True,
) -> Cohort:
    """Images in one folder, labels of the same name in another (or in the same one, told apart by ``label_suffix``).

    A DICOM series takes the SEG or RTSTRUCT that refers to it, or the mask that is called like its folder (or like its id).
    Files ending in ``_0000``, ``_0001`` … are the channels of one case.

    Args:
        images, labels: folders of any depth. With ``labels=None`` and no ``boxes``, SEG and RTSTRUCT beside the images are the
            labels, and series that none refers to are left out (unless they have a class); where there are none, the data set
            has no labels.
        boxes: a folder of any depth with a file of boxes for each image: ``<id>.json`` or ``<id>/boxes.json`` (as predictions
            are written), or Pascal VOC ``<id>.xml``. They go before those of ``table``.
        label_names, ignore, regions, paint: see `medseg.scans.labels.label_table`; without names, the masks are read and
            their values numbered, or the classes of the boxes where there is no mask. A SEG or RTSTRUCT is matched by the
            names of its segments or regions.
        label_match: label → regular expression that the whole name of a segment or region matches, whatever its case; all
            other segments are left out. Without it every segment must be named.
        channels: a name a channel, or name → regular expression by which DICOM series are told apart.
        select: which volumes are wanted (`medseg.scans.select.Selection`).
        skip: ids of cases to leave out.
        table: a CSV table with a column ``id``; ``patient``, ``class``, ``boxes`` and metadata are taken from it.
        columns: our name → the name in ``table``. An empty cell of ``boxes`` says that there is no lesion.
        class_folders: whether the first folder below ``images`` is the class of a case; one named in ``table`` goes before.
        label_suffix: what the names of labels end in beside those of images (``"_seg"``).
        annotation_match: a regular expression over kind and path of SEG and RTSTRUCT (``"seg .*reader_1"``): others are left out.
        merge_annotations: whether several SEG (or RTSTRUCT) of one series are painted together; otherwise they are a fault.

    Raises:
        MedsegError: a folder is missing or empty, or no image fits any label.
    """
    images = Path(images)
    labels, boxes = (None if given is None else Path(given) for given in (labels, boxes))
    files = [] if boxes is None else _box_files(boxes)
    choice = Choice(annotation_match, merge_annotations)
    everything = _found(images, "images", progress)
    rules = None if channels is None else rules_of(channels)
    masks = Found((), (), everything.annotations)
    if labels is not None:
        everything, masks = _separate(everything, images, labels, label_suffix, progress)
    found, unwanted = selected(everything, select)
    if labels is None and (boxes is not None or not masks.annotations):
        known = set(read_table(Path(table), columns).by_id()) if table is not None else set()
        entries, faults = examinations(found, rules, known.union(*map(case_names, files)))
        names = {entry.id: entry.names for entry in entries}
        pairs = Paired([as_case(entry) for entry in entries], [*found.faults, *faults], names)
    else:
        pairs = paired(
            found,
            masks,
            rules,
            (images, labels or images),
            label_suffix=label_suffix,
            choice=choice,
            unwanted=unwanted,
            all_labelled=labels is not None,
        )
    if boxes is not None:
        pairs = _with_boxes(pairs, files, (images, boxes), unwanted)
    left_out = [fault for fault in found.unread if fault.kind == LEFT_OUT]
    cases = classed_by_folders(pairs.cases, images) if class_folders else pairs.cases
    cases, faults = with_table(cases, [*pairs.faults, *left_out], pairs.names, table, columns, pairs.bare)
    options = LabelOptions(label_names, ignore, regions, paint, label_match)
    named = [rule.name for rule in rules] if rules else None
    return cohort_of(cases, faults, options, named, skip, str(images), progress, pairs.bare)


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
    bare: dict[str, Fault] = {}
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
            cases.append(Case(name, tuple(replace(source, key=key) for key in keys), mask))
            if mask is None:
                bare[name] = Fault(name, "image_without_label", "dataset.json names no label for it")
        except ScanError as error:
            faults.append(Fault(name, error.kind, str(error)))
    cases, faults = with_table(cases, faults, {}, table, columns, bare)
    options = LabelOptions(label_names or _names(described.get("labels"), root), ignore, regions, paint)
    return cohort_of(cases, faults, options, names, skip, str(root), progress, bare)


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
    bare: dict[str, Fault] = {}
    if isinstance(entries, Mapping):
        cases, faults = _listed_cases(root, entries)
    else:
        images, labels = root / "imagesTr", root / "labelsTr"
        found, masks = _found(images, "imagesTr", progress), _found(labels, "labelsTr", progress)
        pairs = paired(found, masks, [Rule(name) for name in names], (images, labels))
        cases, faults, bare = pairs.cases, pairs.faults, pairs.bare
    cases, faults = with_table(cases, faults, {}, table, columns, bare)
    order = described.get("regions_class_order")
    given = label_names or _names(described.get("labels"), root)
    has_regions = isinstance(given, Mapping) and any(
        isinstance(v, (list, tuple)) and len(v) > 1 for v in given.values()
    )
    if paint is None and has_regions and label_names is None and isinstance(order, Sequence):
        paint = [int(value) for value in order]
    options = LabelOptions(given, ignore, regions, paint)
    return cohort_of(cases, faults, options, names, skip, str(root), progress, bare)


def table(
    file: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    label_names: Names | None = None,
    label_match: Mapping[str, str] | None = None,
    ignore: int | None = None,
    regions: Mapping[str, Sequence[int]] | None = None,
    paint: Sequence[int] | None = None,
    channels: Sequence[str] | None = None,
    select: Select = None,
    skip: Sequence[str] = (),
    progress: bool = True,
) -> Cohort:
    """A CSV table with a row a case: ``id, image[, image_2 …], label, boxes, class, patient`` and any metadata.

    Paths are relative to the table; a folder with one DICOM series is a path too, or with several of which ``select`` wants
    one. A label may be a SEG or RTSTRUCT, or a folder that holds one. A cell of ``boxes`` is ``x0,y0,x1,y1[,label];…`` in pixels
    (a volume: ``i0,j0,k0,i1,j1,k1[,label];…`` in voxel edges), ``none`` or empty where there is no lesion, or the path of a
    ``.json`` or ``.xml`` of boxes. Where other rows have a label, one without needs boxes or ``none``. See `folder` for the
    options.

    Raises:
        MedsegError: no such table, or a column is missing.
    """
    read = read_table(Path(file), columns, ("id", "image"))
    if not read.rows:
        raise MedsegError(f"{read.path}: the table has column names but no row")
    cases, faults = table_cases(read, select=select)
    count: dict[str, int] = defaultdict(int)
    for case in cases:
        count[case.id] += 1
    faults += [Fault(i, "duplicate_id", f"{n} rows have this id; give each its own") for i, n in count.items() if n > 1]
    cases = [case for case in cases if count[case.id] == 1]
    options = LabelOptions(label_names, ignore, regions, paint, label_match)
    return cohort_of(cases, faults, options, list(channels) if channels else None, skip, str(read.path), progress)


def _box_files(folder: Path) -> list[PurePath]:
    files = box_files(folder) if folder.is_dir() else []
    if not files:
        found = "none" if folder.is_dir() else f"no such folder; you stand in {Path.cwd()}"
        raise MedsegError(
            f"boxes {folder}: expected <id>.json, <id>/boxes.json or <id>.xml for each image, found {found}"
        )
    return files


def _with_boxes(
    pairs: Paired, files: Sequence[PurePath], where: tuple[Path, Path], unwanted: Sequence[FoundSource]
) -> Paired:
    """Each case with its file of boxes. ``where`` is what the folders of images and of boxes are called."""
    told = {fault.case for fault in pairs.faults}.union(pairs.bare, *(names_of(entry) for entry in unwanted))
    names = {case.id: pairs.names[case.id] for case in pairs.cases if case.id not in pairs.bare}
    owned, faults = paired_files(names, files, where, told)
    bare = pairs.bare | {fault.case: fault for fault in faults if fault.kind == WITHOUT_ANNOTATION}
    rest = [fault for fault in faults if fault.kind != WITHOUT_ANNOTATION]
    boxes, kept = {name: where[1] / file for name, file in owned.items()}, {*owned, *bare}
    cases = [replace(case, boxes=boxes.get(case.id)) for case in pairs.cases if case.id in kept]
    return Paired(cases, [*pairs.faults, *rest], pairs.names, bare)


def _found(path: Path, what: str, progress: bool) -> Found:
    if not path.exists():
        raise MedsegError(
            f"{what} {path}: no such folder; look at how it is spelt and at where you stand ({Path.cwd()})"
        )
    found = find(path, progress=progress)
    if not found.sources and not (found.annotations and what == "labels"):
        reasons = [fault.message for fault in found.unread[:10]]
        heading = f"{what} {path}: expected scans (DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF), found none"
        raise all_at_once(f"{heading}:", reasons) if reasons else MedsegError(f"{heading}: the folder is empty")
    return found


def _separate(found: Found, images: Path, labels: Path, label_suffix: str, progress: bool) -> tuple[Found, Found]:
    """Images and labels, where one folder may be the other or hold it."""
    if labels.resolve() == images.resolve():
        masks = [e for e in found.sources if e.source.kind != "dicom" and stem(e.relative.name).endswith(label_suffix)]
        masks = masks if label_suffix else []
        if not masks and not found.annotations:
            raise MedsegError(
                f"{labels}: no file name ends in {label_suffix!r}, so there is no label"
                if label_suffix
                else f"images and labels are the same folder {images}; say what labels end in with label_suffix"
            )
        rest = tuple(entry for entry in found.sources if entry not in masks)
        return Found(rest, found.unread), Found(tuple(masks), (), found.annotations)
    held = _found(labels, "labels", progress)
    if held.annotations:  # the series beside a SEG are images
        held = replace(held, sources=tuple(entry for entry in held.sources if entry.source.kind != "dicom"))
    files = {file.resolve() for entry in held.sources for file in entry.source.files}
    rest = tuple(e for e in found.sources if not files.intersection(file.resolve() for file in e.source.files))
    return Found(rest, found.unread), held


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
