"""Everything that is wrong with a data set, at once: each case is read as training would read it, and compared with the others.

Kinds of faults: those of `reading.ScanError` (``unreadable``, ``truncated``, ``not_3d``, ``grids_differ``, ``non_integer`` …),
those of the layout (``image_without_label``, ``label_without_image``, ``missing_channel`` …; of SEG and RTSTRUCT
``source_absent``, ``other_frame_of_reference``, ``several_annotations`` …), those of boxes (`medseg.scans.boxes`: single boxes
that are left out by name, and what makes a case of no use to a detector), and here ``wrong_dimensions``, ``channels``,
``not_finite``, ``blank_image``, ``spacing``, ``unknown_label``, ``empty_label``, ``boxes_against_mask``, ``duplicate``,
``near_duplicate``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg.scans import read_case, read_mask
from medseg.scans.boxes import boxes_of_case, check_instances, is_usable
from medseg.scans.duplicates import Print, duplicates, print_of
from medseg.scans.find import HARMLESS
from medseg.scans.labels import NAMED
from medseg.scans.pairing import NOT_ANNOTATED
from medseg.scans.reading import ScanError
from medseg.structures import Case, Cohort, Fault, unique_values
from medseg.volume import Array, Geometry

_Say = Callable[[str, str], None]

NOTES = frozenset(("empty_label", *HARMLESS, NOT_ANNOTATED))
"""Kinds that are listed and stop nobody: a scan without anything to find is as good a case as any, and what was left out was
meant to be."""

LEAST_SPACING_MM, MOST_SPACING_MM, MOST_ANISOTROPY = 0.01, 50.0, 100.0


@dataclass(frozen=True, eq=False)
class Seen:
    """What was seen of one case: nothing but faults where it could not be read.

    ``voxels`` is the number of voxels of each value above 0 of its mask, ``boxes`` the number of boxes of each label; None
    where nobody can say which there are.
    """

    case: Case
    geometry: Geometry | None = None
    channels: int = 0
    modality: str = ""
    voxels: Mapping[int, int] = field(default_factory=dict)
    boxes: Mapping[int, int] | None = None
    print: Print | None = None
    faults: tuple[Fault, ...] = ()


def faults(
    cohort: Cohort,
    dimensions: int | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    instances: bool = False,
    progress: bool = True,
    workers: int = 2,
) -> list[Fault]:
    """All faults of a data set, those of its layout first, then case by case, then those of several cases.

    Args:
        dimensions: 2 for pictures, 3 for volumes; None for what most cases are.
        options: of the readers, as `medseg.scans.read_volume` takes them.
        instances: masks number their lesions, all of the one label that there is.
    """
    seen = examine(cohort, options=options, instances=instances, progress=progress, workers=workers)
    return compare(cohort, seen, dimensions, options=options)


def examine(
    cohort: Cohort,
    *,
    options: Mapping[str, Any] | None = None,
    instances: bool = False,
    progress: bool = True,
    workers: int = 2,
) -> list[Seen]:
    """Read every case once, by ``workers`` threads (decompressing and numpy leave the interpreter to the others).

    Raises:
        MedsegError: ``instances`` are of several labels.
    """
    if instances and cohort.labels is not None:
        check_instances(cohort.labels)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results = pool.map(lambda case: _examine(case, cohort, options or {}, instances), cohort.cases)
        return list(tqdm(results, total=len(cohort.cases), desc="checking", unit="case", disable=not progress))


def compare(
    cohort: Cohort, seen: Sequence[Seen], dimensions: int | None = None, *, options: Mapping[str, Any] | None = None
) -> list[Fault]:
    """The faults of the layout and of each case, and what only shows when cases are compared."""
    found = [*cohort.faults, *(fault for entry in seen for fault in entry.faults)]
    usual = Counter(entry.geometry.dimensions for entry in seen if entry.geometry).most_common(1)
    expected = dimensions or (usual[0][0] if usual else 3)
    for entry in seen:
        if entry.geometry and entry.geometry.dimensions != expected:
            what, wanted = ("a picture", "a volume (3D)") if expected == 3 else ("a volume", "a picture (2D)")
            reason = f"{entry.case.images[0].files[0].name} is {what} ({entry.geometry.describe()}) where {wanted} is expected"
            found.append(
                Fault(entry.case.id, "wrong_dimensions", f"{reason}; leave the case out with {_skip(entry.case)}")
            )
    return [*found, *_duplicate_faults(seen, options or {})]


def duplicate_groups(
    cohort: Cohort, *, options: Mapping[str, Any] | None = None, progress: bool = True, workers: int = 2
) -> dict[str, str]:
    """Case id → the first id of its group, for cases that are the same or nearly the same as another patient's.

    A split that keeps groups on one side does not test on what it was fitted on.
    """
    seen = examine(cohort, options=options, progress=progress, workers=workers)
    exact, near = _duplicates(seen, options or {})
    return {case: group[0] for group in (*near, *exact) for case in group}


def _examine(case: Case, cohort: Cohort, options: Mapping[str, Any], instances: bool) -> Seen:
    found: list[Fault] = []

    def say(kind: str, reason: str) -> None:
        found.append(Fault(case.id, kind, reason.removeprefix(f"case {case.id!r}: ")))

    geometry, modality, channels, print_ = None, "", 0, None
    try:
        volume = read_case(case, options)
        geometry, modality, channels = volume.geometry, volume.modality, len(volume.data)
        if channels != len(cohort.channels):
            names = ", ".join(cohort.channels)
            say(
                "channels",
                f"expected {len(cohort.channels)} channel(s) ({names}), found {channels}; convert it, or {_skip(case)}",
            )
        _check_values(volume.data, cohort.channels, say)
        _check_spacing(geometry, say)
        print_ = print_of(case.id, case.patient, volume.data)
    except (ScanError, OSError) as error:
        say(error.kind if isinstance(error, ScanError) else "unreadable", str(error))
    voxels: dict[int, int] | None = None
    if case.label is not None and (geometry is not None or case.label.kind not in NAMED):
        try:
            mask, _ = read_mask(case.label, geometry, cohort.labels)
            voxels = _check_mask(_of_one_label(mask, cohort) if instances else mask, cohort, say)
        except (ScanError, OSError) as error:
            kind = error.kind if isinstance(error, ScanError) else "unreadable"
            say(kind, f"{error} with {_skip(case)}" if kind == "grids_differ" else str(error))
    boxes = _check_boxes(case, cohort, geometry, say) if geometry is not None else None
    if voxels is not None and boxes is not None:
        _check_agreement(_marks(voxels, cohort), sum(boxes.values()), say)
    return Seen(case, geometry, channels, modality, voxels or {}, boxes, print_, tuple(found))


def _check_values(image: Array, names: Sequence[str], say: _Say) -> None:
    for number, channel in enumerate(image):
        name = f"channel {number} ({names[number]})" if len(image) == len(names) > 1 else "the image"
        finite = np.isfinite(channel)
        if not finite.all():
            nan, lost = int(np.isnan(channel).sum()), int((~finite).sum())
            say(
                "not_finite", f"{name} holds {nan} NaN and {lost - nan} infinite of {channel.size} values; replace them"
            )
        elif channel.min() == channel.max():
            say("blank_image", f"{name} holds one value everywhere ({float(channel.min()):g}); was it exported whole?")


def _check_spacing(geometry: Geometry, say: _Say) -> None:
    if geometry.unit != "mm":
        return
    low, high = min(geometry.spacing), max(geometry.spacing)
    if low < LEAST_SPACING_MM or high > MOST_SPACING_MM or high / low > MOST_ANISOTROPY:
        expected = f"{LEAST_SPACING_MM} to {MOST_SPACING_MM:g} mm, at most 1:{MOST_ANISOTROPY:g}"
        say("spacing", f"absurd spacing: {geometry.describe()}; expected {expected}. Mend the header")


def _check_mask(mask: Array, cohort: Cohort, say: _Say) -> dict[int, int]:
    values, counts = np.unique(mask, return_counts=True)
    voxels = {int(v): int(n) for v, n in zip(values, counts, strict=True) if v != 0}
    if cohort.labels is not None:
        unknown = unique_values(cohort.labels, list(voxels))
        if unknown:
            listed = ", ".join(f"{value} ({voxels[value]} voxels)" for value in unknown[:5])
            known = ", ".join(f"{value} {name}" for value, name in cohort.labels.names.items())
            say(
                "unknown_label",
                f"the label holds {listed}, which nothing names; known are {known}. Name it or mend the label",
            )
    if not _marks(voxels, cohort):
        say("empty_label", "the label marks nothing")
    return voxels


def _of_one_label(mask: Array, cohort: Cohort) -> Array:
    """A mask that numbers its lesions as one of their label."""
    if cohort.labels is None:
        return mask
    (label,) = cohort.labels.names
    return np.where((mask == 0) | (mask == cohort.labels.ignore), mask, label)


def _marks(voxels: Mapping[int, int], cohort: Cohort) -> bool:
    """Whether a mask with these values marks more than what shall be ignored."""
    return bool(set(voxels) - {cohort.labels.ignore if cohort.labels is not None else None})


def _check_boxes(case: Case, cohort: Cohort, geometry: Geometry, say: _Say) -> dict[int, int] | None:
    """Number of boxes of each label; None where nobody can say which there are, or nobody was asked."""
    marked = case.boxes is not None
    asked = marked or (case.label is None and any(other.boxes is not None for other in cohort.cases))
    if not asked or cohort.labels is None:
        return None
    boxes, wrong = boxes_of_case(case, geometry, cohort.labels)
    for fault in wrong:
        say(fault.kind, fault.message)
    return dict(Counter(boxes.labels.tolist())) if is_usable(wrong) else None


def _check_agreement(mask: bool, boxes: int, say: _Say) -> None:
    """A case that has a mask and boxes is one without lesion in both or in neither."""
    if mask != bool(boxes):
        found = f"{boxes} box(es), and its mask marks nothing" if boxes else "no box, and its mask marks something"
        say("boxes_against_mask", f"it has {found}; mend one of them (a detector believes the boxes)")


def _duplicates(
    seen: Sequence[Seen], options: Mapping[str, Any]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    cases = {entry.case.id: entry.case for entry in seen}
    prints = [entry.print for entry in seen if entry.print is not None]
    return duplicates(prints, lambda case: read_case(cases[case], options).data[0])


def _duplicate_faults(seen: Sequence[Seen], options: Mapping[str, Any]) -> list[Fault]:
    exact, near = _duplicates(seen, options)
    advice = "keep one, or give them one patient in the table"
    found = []
    for kind, groups, what in (
        ("duplicate", exact, "the same pixels as"),
        ("near_duplicate", near, "nearly the same as"),
    ):
        for first, *others in groups:
            listed = ", ".join(others[:8]) + (" …" if len(others) > 8 else "")
            found.append(Fault(first, kind, f"{what} {listed}, of another patient; {advice}"))
    return found


def _skip(case: Case) -> str:
    return f"data.skip=[{case.id}]"
