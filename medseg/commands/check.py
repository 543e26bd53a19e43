"""``medseg check``: is the data set sound? Lists every fault at once and says what the data set holds."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medseg.errors import all_at_once
from medseg.planning.annotated import unmarked
from medseg.planning.classification import CLASSIFICATION, class_faults, seen_cohort
from medseg.scans.classes import named_classes
from medseg.scans.faults import NOTES, Seen, compare, examine
from medseg.structures import Cohort, Fault

logger = logging.getLogger(__name__)

_HEADINGS = {
    "image_without_label": "images without label",
    "label_without_image": "labels without image",
    "source_absent": "SEG or RTSTRUCT of series that are not there",
    "other_frame_of_reference": "SEG or RTSTRUCT in another frame of reference",
    "several_annotations": "several SEG or RTSTRUCT of one series",
    "ambiguous_label": "labels that may belong to several images",
    "image_without_annotation": "images that nobody marked",
    "annotation_without_image": "annotations without image",
    "ambiguous_annotation": "files of boxes that may belong to several images",
    "missing_channel": "missing channels",
    "missing_file": "missing files",
    "missing_row": "cases without a row in the table",
    "duplicate_id": "ids that several scans share",
    "unreadable": "files that cannot be read",
    "truncated": "files that were cut short",
    "not_3d": "4D where 3D is expected",
    "wrong_dimensions": "pictures and volumes in one data set",
    "channels": "other numbers of channels",
    "grids_differ": "grids that differ",
    "not_finite": "NaN or infinite values",
    "blank_image": "blank images",
    "spacing": "absurd spacing",
    "non_integer": "labels that are not whole numbers",
    "unknown_label": "labels that nothing names",
    "empty_annotation": "RTSTRUCT without contours",
    "outside_image": "labels and boxes that lie beyond their image",
    "not_annotated_boxes": "cases that nobody marked",
    "malformed_boxes": "boxes that are laid out otherwise",
    "world_coordinates": "millimetres given as voxels",
    "zero_area_box": "boxes without extent",
    "inverted_box": "boxes that end before they begin",
    "beyond_image": "boxes that reach beyond their image",
    "box_without_class": "boxes without a class",
    "unknown_class": "boxes of a class that nothing names",
    "no_usable_box": "cases of which no box can be used",
    "boxes_against_mask": "boxes and masks that contradict each other",
    "empty_label": "labels that mark nothing",
    "not_annotated": "series that no SEG or RTSTRUCT refers to",
    "left_out": "left out by select or data.annotation_match",
    "classes": "the classes together",
    "case_without_class": "cases of which nobody says the class",
    "several_classes": "cases of several classes",
    "duplicate": "the same scan twice",
    "near_duplicate": "nearly the same scan twice",
}


def check(
    cohort: Cohort,
    *,
    dimensions: int | None = None,
    options: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Fault]:
    """Read the whole data set, log what it holds, and list all of its faults.

    Args:
        dimensions: 2 for pictures, 3 for volumes; None for what most cases are.
        options: of the readers, as `medseg.scans.read_volume` takes them.
        task: spec of the task that the data are for: masks for segmentation, masks (that may number their lesions:
            ``instances``) or boxes for detection, classes for classification; None for what the data hold.

    Returns:
        The notes: kinds of faults that stop nobody (`medseg.scans.faults.NOTES`).

    Raises:
        MedsegError: there are faults; its message lists all of them, by kind.
    """
    task = task or {}
    if task.get("name") == CLASSIFICATION:
        unusable, cohort = class_faults(cohort, task), seen_cohort(cohort, task)
    else:
        unusable = unmarked(cohort.cases, str(task.get("name")))
    seen = examine(cohort, options=options, instances=bool(task.get("instances")), progress=progress)
    found = [*compare(cohort, seen, dimensions, options=options), *unusable]
    for line in summary(cohort, seen):
        logger.info("%s", line)
    notes = [fault for fault in found if fault.kind in NOTES]
    faults = [fault for fault in found if fault.kind not in NOTES]
    for line in by_kind(notes, at_most=10):
        logger.info("note: %s", line)
    if faults:
        faulty = {fault.case for fault in faults if fault.case}
        whole = faulty.union(case.id for case in cohort.cases)
        heading = f"check: {len(faults)} fault(s) in {len(faulty)} of {len(whole)} cases or files"
        raise all_at_once(f"{heading} (data.skip=[<id>, …] leaves cases out):", by_kind(faults))
    logger.info("no faults")
    return notes


def summary(cohort: Cohort, seen: Sequence[Seen]) -> list[str]:
    """What the data set holds, a line each: cases, channels, labels, shapes, spacings."""
    lines = [f"{len(cohort.cases)} cases of {len({case.patient for case in cohort.cases})} patients"]
    modalities = sorted({entry.modality for entry in seen if entry.modality})
    lines.append(f"channels: {', '.join(cohort.channels)}" + (f" ({', '.join(modalities)})" if modalities else ""))
    grids = [entry.geometry for entry in seen if entry.geometry is not None]
    for count in sorted({grid.dimensions for grid in grids}):
        of_kind = [grid for grid in grids if grid.dimensions == count]
        shapes = _range(np.array([grid.shape for grid in of_kind]))
        spacings = _range(np.array([grid.spacing for grid in of_kind]))
        units = "/".join(sorted({grid.unit for grid in of_kind}))
        stored = f", stored {', '.join(sorted({grid.axis_codes for grid in of_kind}))}" if count == 3 else ""
        lines.append(f"{len(of_kind)} in {count}D: shape {shapes}, spacing {spacings} {units}{stored}")
    if cohort.labels is not None:
        held: Counter[int] = Counter()
        for entry in seen:
            held.update({*entry.voxels, *(entry.boxes or ())})
        names = cohort.labels.names.items()
        lines.append("labels: " + ", ".join(f"{value} {name} (in {held[value]} cases)" for value, name in names))
        if cohort.labels.regions:
            lines.append(f"regions: {', '.join(f'{n} {list(v)}' for n, v in cohort.labels.regions.items())}")
        bare = sum(case.label is None and case.boxes is None for case in cohort.cases)
        if bare:
            lines.append(f"{bare} cases have neither a mask nor boxes")
    if cohort.classes:
        shown = Counter(name for case in cohort.cases for name in named_classes(case.class_name) or ())
        lines.append(f"classes: {', '.join(f'{name} (in {shown[name]} cases)' for name in cohort.classes)}")
    marked = [sum(entry.boxes.values()) for entry in seen if entry.boxes is not None]
    if marked:
        lines.append(
            f"boxes: {sum(marked)} in {np.count_nonzero(marked)} cases, at most {max(marked)} in one; "
            f"{marked.count(0)} cases have none"
        )
    return lines


def by_kind(faults: Iterable[Fault], at_most: int | None = None) -> list[str]:
    """The faults under a heading for each kind; a message that many cases share is one line with (``at_most`` of) their ids."""
    kinds: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.kind].append(fault)
    lines = []
    for kind in sorted(
        kinds, key=lambda kind: (list(_HEADINGS).index(kind) if kind in _HEADINGS else len(_HEADINGS), kind)
    ):
        found = kinds[kind]
        heading = f"{_HEADINGS.get(kind, kind.replace('_', ' '))} ({len(found)}): "
        if len({fault.message for fault in found}) == 1 and len(found) > 1:
            rest = f" … and {len(found) - at_most} more" if at_most and len(found) > at_most else ""
            lines.append(f"{heading}{found[0].message}: {', '.join(fault.case for fault in found[:at_most])}{rest}")
        elif len(found) == 1:
            lines.append(f"{heading}{found[0]}")
        else:
            lines.append(heading + "".join(f"\n      {fault}" for fault in found))
    return lines


def _range(rows: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    """Smallest to largest along each axis: ``31–43 × 40–59 × 24–47``."""
    low, high = rows.min(0), rows.max(0)
    return " × ".join(
        f"{a:.4g}" if f"{a:.4g}" == f"{b:.4g}" else f"{a:.4g}–{b:.4g}" for a, b in zip(low, high, strict=True)
    )
