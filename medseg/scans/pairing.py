"""Which label belongs to which image: masks by their names, DICOM SEG and RTSTRUCT by what they refer to.

What stays alone on either side, or could belong to several, becomes a fault. Reads headers where a reference alone does not
settle it, and no pixels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg.errors import MedsegError
from medseg.scans import read_geometry
from medseg.scans.find import LEFT_OUT, Found, FoundAnnotation, FoundSource
from medseg.scans.headers import read_annotation, read_headers
from medseg.scans.inputs import as_case
from medseg.scans.matching import Examination, Rule, examinations, label_names, match_one, names_of
from medseg.scans.names import unique_ids
from medseg.scans.reading import ScanError
from medseg.structures import Case, Fault, Source

NOT_ANNOTATED = "not_annotated"
"""Kind of the faults of series that nothing refers to among others that have a SEG or RTSTRUCT; nobody's mistake."""


@dataclass(frozen=True)
class Choice:
    """Which SEG and RTSTRUCT count where there are several.

    Args:
        match: a regular expression that is found in kind and path (``"seg sub/liver.dcm"``), in any case; what does not fit
            is left out.
        merge: whether several of one series are painted together; otherwise they are a fault.

    Raises:
        MedsegError: ``match`` is no regular expression.
    """

    match: str | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.match or "")
        except (re.error, TypeError) as error:
            raise MedsegError(f"annotation_match: {self.match!r} is no regular expression ({error})") from None

    def apply(self, annotations: Sequence[FoundAnnotation]) -> tuple[list[FoundAnnotation], list[Fault]]:
        """Those that count, and a note for each of the others."""
        kept, left = [], []
        for entry, name in zip(annotations, unique_ids([a.relative for a in annotations]), strict=True):
            if self.match is None or re.search(self.match, f"{entry.source.kind} {_path(entry)}", re.IGNORECASE):
                kept.append(entry)
            else:
                left.append(Fault(name, LEFT_OUT, f"{_path(entry)}: left out: it does not match {self.match!r}"))
        return kept, left


@dataclass(frozen=True)
class Paired:
    """Images with their labels, what is wrong, and the names of each case, under which a table may have its row.

    ``bare`` are the cases that nobody marked: id → why it is left out, unless it has a class.
    """

    cases: list[Case]
    faults: list[Fault]
    names: dict[str, tuple[str, ...]]
    bare: dict[str, Fault] = field(default_factory=dict)


def paired(
    found: Found,
    masks: Found,
    rules: Sequence[Rule] | None,
    where: tuple[Path, Path],
    *,
    label_suffix: str = "",
    choice: Choice | None = None,
    unwanted: Sequence[FoundSource] = (),
    all_labelled: bool = True,
) -> Paired:
    """Give each image its label.

    Args:
        rules: the channels; None where file names tell their number.
        where: what the folders of images and labels are called.
        label_suffix: what the names of masks end in.
        choice: which SEG and RTSTRUCT count.
        unwanted: volumes that a selection left out: their labels are left out with them.
        all_labelled: whether an image without label is a fault; otherwise it is a note. It is left out, unless it has a class.

    Raises:
        MedsegError: no image has a mask of its name.
    """
    index: dict[str, list[FoundSource]] = defaultdict(list)
    for mask in masks.sources:
        for name in label_names(mask, label_suffix):
            index[name].append(mask)
    entries, faults = examinations(found, rules, index)
    broken = {fault.case for fault in (*found.faults, *masks.faults, *faults)}
    labels, by_name = _by_name(entries, masks, index, label_suffix, where, broken, unwanted)
    referred, by_reference = _by_reference(entries, [*found.sources, *unwanted], masks, choice or Choice(), where[0])
    for name in sorted(set(labels) & set(referred)):
        reason = f"it has a mask ({labels.pop(name).files[0].name}) and a {referred.pop(name).kind.upper()}; keep one of them"
        faults.append(Fault(name, "several_annotations", reason))
    labels |= referred
    said = broken | {fault.case for fault in (*faults, *by_name, *by_reference)}
    bare: dict[str, Fault] = {}
    for entry in (
        entry for entry in entries if entry.id not in labels and not said.intersection((entry.id, *entry.names))
    ):
        if not all_labelled:
            reason = f"no SEG or RTSTRUCT in {where[1]} refers to it; it is left out"
            bare[entry.id] = Fault(entry.id, NOT_ANNOTATED, reason)
            continue
        like = f"a label called {entry.names[-1] if len(entry.names) < 3 else entry.names[1]}{label_suffix}"
        dicom = entry.sources[0].kind == "dicom" and masks.annotations
        expected = "a SEG or RTSTRUCT that refers to it" if dicom else like
        reason = f"no label for this image: expected {expected} in {where[1]}"
        bare[entry.id] = Fault(entry.id, "image_without_label", reason)
    if masks.sources and not masks.annotations and not labels and not any(f.kind == "ambiguous_label" for f in by_name):
        raise MedsegError(
            f"no image in {where[0]} has a label of its name in {where[1]}: images such as "
            f"{', '.join(e.relative.as_posix() for e in found.sources[:2])}, labels such as "
            f"{', '.join(m.relative.as_posix() for m in masks.sources[:2])}. Rename them, or say label_suffix"
        )
    everything = [*found.faults, *masks.faults, *faults, *by_name, *by_reference]
    kept = {*labels, *bare}
    cases = [replace(as_case(entry), label=labels.get(entry.id)) for entry in entries if entry.id in kept]
    return Paired(cases, everything, {entry.id: entry.names for entry in entries}, bare)


def _by_name(
    entries: Sequence[Examination],
    masks: Found,
    index: Mapping[str, Sequence[FoundSource]],
    label_suffix: str,
    where: tuple[Path, Path],
    broken: set[str],
    unwanted: Sequence[FoundSource],
) -> tuple[dict[str, Source], list[Fault]]:
    """The mask of each image that one is called like."""
    pairs = {entry.id: match_one(entry.names, index) for entry in entries}
    claims: dict[str, list[str]] = defaultdict(list)
    for name, claimed in pairs.items():
        if claimed is not None:
            claims[claimed.id].append(name)
    labels: dict[str, Source] = {}
    faults: list[Fault] = []
    for name, mask in pairs.items():
        if mask is not None and len(claims[mask.id]) == 1:
            labels[name] = mask.source
        elif mask is not None:
            others = ", ".join(other for other in claims[mask.id] if other != name)
            reason = f"its label {_path(mask)} would also be that of {others}; give each image its own"
            faults.append(Fault(name, "ambiguous_label", reason))
    meant = broken.union(*(names_of(entry) for entry in unwanted))
    for mask in masks.sources:
        names = label_names(mask, label_suffix)
        if mask.id not in claims and not meant.intersection(names):
            reason = f"label {_path(mask)} belongs to no image in {where[0]}; rename it or take it away"
            faults.append(Fault(names[0], "label_without_image", reason))
    return labels, faults


def _by_reference(
    entries: Sequence[Examination], volumes: Sequence[FoundSource], masks: Found, choice: Choice, where: Path
) -> tuple[dict[str, Source], list[Fault]]:
    """The SEG or RTSTRUCT of each image that one refers to, through any of its channels."""
    taken, faults = choice.apply(masks.annotations)
    holder = {source: entry.id for entry in entries for source in entry.sources}
    series = [volume for volume in volumes if volume.source.kind == "dicom"]
    owner = {volume.id: holder[volume.source] for volume in series if volume.source in holder}
    claims: dict[str, list[FoundAnnotation]] = defaultdict(list)
    for annotation, name in zip(taken, unique_ids([a.relative for a in taken]), strict=True):
        try:
            volume = _volume_of(annotation, series, owner, where)
            if volume.id in owner:
                claims[owner[volume.id]].append(annotation)
            else:
                reason = f"left out: it belongs to {volume.id}, which is no case"
                faults.append(Fault(name, LEFT_OUT, f"{_path(annotation)}: {reason}"))
        except ScanError as error:
            faults.append(Fault(name, error.kind, f"{_path(annotation)}: {error}"))
    labels: dict[str, Source] = {}
    for name, claimed in claims.items():
        kinds = {annotation.source.kind for annotation in claimed}
        if len(claimed) == 1 or (choice.merge and len(kinds) == 1):
            files = tuple(file for annotation in claimed for file in annotation.source.files)
            labels[name] = replace(claimed[0].source, files=files)
            continue
        listed = ", ".join(map(_path, claimed))
        advice = "say which with data.annotation_match" + ("" if len(kinds) > 1 else ", or data.merge_annotations=true")
        reason = f"{len(claimed)} SEG or RTSTRUCT refer to it: {listed}; {advice}"
        faults.append(Fault(name, "several_annotations", reason))
    return labels, faults


def _volume_of(
    annotation: FoundAnnotation, series: Sequence[FoundSource], wanted: Collection[str], where: Path
) -> FoundSource:
    """The one volume that an annotation lies on.

    Its references to series decide; without any, all series of its frame of reference are meant. Where that leaves several
    volumes (time points of one series), those that are wanted (by id) come first, then those whose images it names, then those on
    whose voxels it lies.

    Raises:
        ScanError: ``source_absent``, ``other_frame_of_reference`` or ``ambiguous_label``.
    """
    kind, frame = annotation.source.kind.upper(), annotation.frame_of_reference
    if annotation.series:
        named = [volume for volume in series if volume.series in annotation.series]
        if not named:
            raise ScanError(
                f"a {kind} of a series that is not in {where}; add the series, or leave the file out", "source_absent"
            )
        fitting = [v for v in named if not frame or not v.frame_of_reference or v.frame_of_reference == frame]
        if not fitting:
            raise ScanError(
                f"a {kind} that refers to {named[0].id} and lies in another frame of reference: nobody can say where it lies in "
                "the image; export both again, or leave it out",
                "other_frame_of_reference",
            )
    else:
        fitting = [volume for volume in series if frame and volume.frame_of_reference == frame]
        if not fitting:
            kind_of_fault = "other_frame_of_reference" if frame else "source_absent"
            reason = (
                f"a {kind} that names no series, and whose frame of reference is that of none in {where}; leave it out"
            )
            raise ScanError(reason, kind_of_fault)
    fitting = [volume for volume in fitting if volume.id in wanted] or fitting
    if len(fitting) > 1:
        fitting = _most_named(annotation, fitting)
    if len(fitting) > 1:
        fitting = [volume for volume in fitting if _lies_on(annotation, volume)] or fitting
    if len(fitting) > 1:
        listed = ", ".join(volume.id for volume in fitting[:5])
        raise ScanError(
            f"a {kind} that may belong to any of {listed}; say with select or channels which are meant, or leave it out",
            "ambiguous_label",
        )
    return fitting[0]


def _most_named(annotation: FoundAnnotation, volumes: Sequence[FoundSource]) -> list[FoundSource]:
    """The volumes of which the annotation names most images."""
    named = read_annotation(annotation.source.files[0]).instances
    counts = []
    for volume in volumes:
        held = {entry.instance for file in volume.source.distinct_files for entry in read_headers(file)}
        counts.append(len(held & named))
    return [volume for volume, count in zip(volumes, counts, strict=True) if count == max(counts)]


def _lies_on(annotation: FoundAnnotation, volume: FoundSource) -> bool:
    """Whether every plane of the annotation is one of the volume."""
    path = annotation.source.files[0]
    try:
        geometry = read_geometry(volume.source)
        if annotation.source.kind == "rtstruct":
            from medseg.scans import rtstruct

            return rtstruct.lies_on(path, geometry)
        from medseg.scans import planes, seg

        return geometry.dimensions == 3 and planes.fits(seg.planes(path), geometry)
    except ScanError:
        return False


def _path(entry: FoundSource | FoundAnnotation) -> str:
    return entry.relative.as_posix()
