"""Statistics of the training cases that planning needs: grids, non-zero crops, foreground intensities, volumes of the labels.

Owns how these are measured, in parallel and the same whatever the order of the cases, and how they are kept as JSON. Knows
nothing of patches or networks, and decides nothing: that is the planner's.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from tqdm import tqdm

from medseg import scans
from medseg.errors import MedsegError, all_at_once
from medseg.files import content_sha256
from medseg.scans.lesions import read_lesions
from medseg.structures import Boxes, Case, Cohort, LabelTable, LesionRule, Source, unique_values
from medseg.volume import Array, Geometry, Unit, reorientation_to

FORMAT = 1
SAMPLES_PER_CASE = 10_000
SAMPLES_IN_ALL = 4_000_000
_T = TypeVar("_T")


@dataclass(frozen=True)
class CaseStatistics:
    """One case, along RAS axes (pictures: as stored).

    Args:
        shape: voxels along each axis.
        spacing: in ``unit``.
        crop: shape of the smallest box that holds every voxel that is not zero in some channel.
        stored: which axis of the file each of these axes is.
        sizes: label or region → volume in ml (pictures: area in ``unit``²); empty without a mask.
        lesions: label → lengths of the box of each of its lesions along each axis, in ``unit``; measured for detection only.
    """

    id: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: Unit
    crop: tuple[int, ...]
    stored: tuple[int, ...]
    sizes: Mapping[str, float]
    lesions: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ChannelStatistics:
    """Values of one channel, pooled over the cases. ``minimum`` and ``maximum`` are of every voxel, the rest of the foreground.

    ``low`` and ``high`` are the 0.5 and 99.5 percentiles. The foreground is what carries a label (ignored voxels do not);
    where a case has no mask, its voxels that are not zero.
    """

    modality: str
    mean: float
    std: float
    median: float
    low: float
    high: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Fingerprint:
    """What planning knows of the training cases. ``cases`` are sorted by id; ``options`` are those of the reader."""

    cases: tuple[CaseStatistics, ...]
    channels: tuple[ChannelStatistics, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dimensions(self) -> int:
        return len(self.cases[0].shape)

    @property
    def unit(self) -> Unit:
        return self.cases[0].unit

    def presence(self) -> dict[str, str]:
        """Case id → the labels that occur in it, joined by ``+``: a stratum for `medseg.data.splits`."""
        return {
            case.id: "+".join(sorted(n for n, v in (case.lesions or case.sizes).items() if v)) or "none"
            for case in self.cases
        }

    def to_json(self) -> str:
        """JSON with one case a line; `from_json` gives the same value back, to the last bit."""
        cases = ",\n  ".join(json.dumps(asdict(case)) for case in self.cases)
        rest = ",\n ".join(
            f"{json.dumps(name)}: {json.dumps(value)}"
            for name, value in (
                ("format", FORMAT),
                ("options", dict(self.options)),
                ("channels", [asdict(channel) for channel in self.channels]),
            )
        )
        return f'{{{rest},\n "cases": [\n  {cases}\n]}}\n'

    @classmethod
    def from_json(cls, text: str, origin: str = "fingerprint.json") -> Fingerprint:
        """Read what `to_json` wrote. Raises MedsegError that names ``origin``."""
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise ValueError(f"format {body['format']}, expected {FORMAT}")
            return cls(
                tuple(CaseStatistics(**{k: _tuples(v) for k, v in case.items()}) for case in body["cases"]),
                tuple(ChannelStatistics(**channel) for channel in body["channels"]),
                body["options"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MedsegError(
                f"{origin}: not a fingerprint of this version ({error}); delete it and plan again"
            ) from None


def fingerprint(
    cohort: Cohort,
    options: Mapping[str, Any] | None = None,
    *,
    lesions: LesionRule | None = None,
    workers: int = 2,
    progress: bool = True,
) -> Fingerprint:
    """Measure every case of ``cohort``, with ``workers`` threads (decompressing and arithmetic release Python's lock).

    Args:
        options: reader options, as in the plan.
        lesions: for detection, how a mask becomes lesions; the foreground is then what lies in their boxes or masks.

    Raises:
        MedsegError: some cases cannot be read or do not fit together; all of them are listed.
    """
    if not cohort.cases:
        raise MedsegError("the data set has no case: look at the folders it was read from, or run medseg check")
    options = dict(options or {})
    cases = sorted(cohort.cases, key=lambda case: case.id)
    samples = max(100, min(SAMPLES_PER_CASE, SAMPLES_IN_ALL // len(cases)))

    def measure(case: Case) -> _Measured | str:
        try:
            return _measure(case, cohort.labels, options, samples, lesions)
        except (MedsegError, OSError) as error:
            text = str(error)
            return text if repr(case.id) in text else f"case {case.id!r}: {text}"

    results = _in_parallel(measure, cases, workers, "fingerprint" if progress else "")
    failed = [result for result in results if isinstance(result, str)]
    if failed:
        raise all_at_once(
            f"{len(failed)} of {len(cases)} cases cannot be planned with; mend them or leave them out "
            "(data.skip=[<id>, …]; medseg check lists every fault):",
            failed,
        )
    measured = [cast(_Measured, result) for result in results]
    _check_alike(measured)
    if lesions is None and cohort.labels is not None and not any(any(m.case.sizes.values()) for m in measured):
        raise MedsegError(
            f"no mask holds any of the labels {dict(cohort.labels.names)}; is data.labels the right folder?"
        )
    return Fingerprint(tuple(m.case for m in measured), _pooled(measured), options)


def content_key(
    cohort: Cohort,
    options: Mapping[str, Any] | None = None,
    *,
    lesions: LesionRule | None = None,
    workers: int = 2,
    progress: bool = True,
) -> str:
    """A hash of everything that `fingerprint` depends on: the bytes of all files, ids, channels, labels, boxes and options.

    Neither the folder, the order of the cases nor the files' dates matter.
    """

    def digest(case: Case) -> list[Any]:
        try:
            known = [case.id, [_identity(source) for source in case.images], case.label and _identity(case.label)]
            if lesions is not None:
                boxes = case.boxes
                known.append(hashlib.sha256(boxes.read_bytes()).hexdigest() if isinstance(boxes, Path) else boxes)
            return known
        except OSError as error:
            raise MedsegError(f"case {case.id!r}: cannot read {error.filename}: {error.strerror}") from None

    table = cohort.labels
    labels = None if table is None else [
        dict(table.names), table.ignore, {k: list(v) for k, v in table.regions.items()}, list(table.paint)
    ]  # fmt: skip
    cases = sorted(cohort.cases, key=lambda case: case.id)
    rows = _in_parallel(digest, cases, workers, "content" if progress else "")
    known = [FORMAT, list(cohort.channels), labels, dict(options or {}), rows]
    if lesions is not None:
        known.append(asdict(lesions))
    text = json.dumps(known, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class _Measured:
    """A case and what is pooled afterwards: ``values`` (C, N) float32 of the foreground, ``span`` (C, 2) of every voxel."""

    case: CaseStatistics
    values: Array
    span: Array
    modalities: tuple[str, ...]


def _measure(
    case: Case, labels: LabelTable | None, options: Mapping[str, Any], samples: int, rule: LesionRule | None
) -> _Measured:
    volume = scans.read_case(case, options)
    data, geometry = volume.data, volume.geometry
    axes = tuple(range(1, data.ndim))
    span = np.stack([data.min(axes), data.max(axes)], 1).astype(np.float64)
    if not np.isfinite(span).all():
        raise MedsegError(f"case {case.id!r}: the image holds NaN or infinite values; mend the file")
    present = (data != 0).any(0)
    three = geometry.dimensions == 3
    order = reorientation_to(geometry, "RAS").order if three else tuple(range(geometry.dimensions))
    sizes: dict[str, float] = {}
    lengths: dict[str, tuple[tuple[float, ...], ...]] = {}
    if rule is not None and labels is not None:
        found = read_lesions(case, geometry, labels, rule)
        marked = _filled(found.boxes, geometry.shape) if found.numbered is None else found.numbered > 0
        # Without any lesion the values of the whole scan stand for what lesions are looked for in.
        foreground = marked if marked.any() else present
        lengths = _lengths(found.boxes, geometry, labels, order)
    elif case.label is not None and labels is not None:
        mask, _ = scans.read_mask(case.label, geometry, labels)
        foreground, sizes = _labelled(mask, geometry, labels, case.id)
    else:
        foreground = present
    where = _drawn(foreground, samples, case.id)
    crop = [part.stop - part.start for part in _box(present)]
    return _Measured(
        CaseStatistics(
            id=case.id,
            shape=tuple(geometry.shape[axis] for axis in order),
            # Six digits: headers hold float32, in which 0.7 is 0.699999988.
            spacing=tuple(float(f"{geometry.spacing[axis]:.6g}") for axis in order),
            unit=geometry.unit,
            crop=tuple(crop[axis] for axis in order),
            stored=order,
            sizes=sizes,
            lesions=lengths,
        ),
        values=np.stack([channel[where] for channel in data]).astype(np.float32),
        span=span,
        modalities=_modalities(case, volume.modality, len(data)),
    )


def _labelled(mask: Array, geometry: Geometry, labels: LabelTable, case: str) -> tuple[Array, dict[str, float]]:
    """Where ``mask`` holds a label, and the volume of each label or region."""
    values, counts = np.unique(mask.ravel(order="K"), return_counts=True)
    unknown = unique_values(labels, [int(v) for v in values])
    if unknown:
        raise MedsegError(
            f"case {case!r}: the mask holds {unknown}, which the labels {dict(labels.names)} do not name; name them or mend it"
        )
    voxels = {int(v): int(n) for v, n in zip(values, counts, strict=True)}
    unit = geometry.voxel_volume / (1000.0 if geometry.dimensions == 3 else 1.0)
    sizes = {name: sum(voxels.get(v, 0) for v in group) * unit for name, group in labels.targets.items()}
    foreground = mask != 0
    if labels.ignore is not None:
        foreground &= mask != labels.ignore
    return foreground, sizes


def _filled(boxes: Boxes, shape: Sequence[int]) -> Array:
    """``shape`` bool: what lies in any of the boxes."""
    inside = np.zeros(shape, bool)
    for box in boxes.boxes:
        low, high = np.floor(box[: len(shape)]).astype(int), np.ceil(box[len(shape) :]).astype(int)
        inside[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))] = True
    return inside


def _lengths(
    boxes: Boxes, geometry: Geometry, labels: LabelTable, order: Sequence[int]
) -> dict[str, tuple[tuple[float, ...], ...]]:
    """Label → the lengths of its boxes along the axes ``order`` of the scan, in its unit."""
    half = geometry.dimensions
    sides = ((boxes.boxes[:, half:] - boxes.boxes[:, :half]) * geometry.spacing)[:, list(order)]
    return {
        name: tuple(tuple(float(f"{side:.6g}") for side in row) for row in sides[boxes.labels == value])
        for value, name in labels.names.items()
    }


def _drawn(foreground: Array, samples: int, name: str) -> tuple[Array, ...]:
    """The indices of the true voxels along each axis; of more than ``samples`` as many, drawn always alike by ``name``.

    They are looked for in their box: a scan lies in Fortran order, and to go through all of it in another takes longest.
    """
    box = _box(foreground)
    inside = foreground[box]
    where = np.flatnonzero(inside)
    if len(where) > samples:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
        rng = np.random.Generator(np.random.Philox(key=seed))
        where = where[np.sort(rng.integers(len(where), size=samples))]
    return tuple(at + part.start for at, part in zip(np.unravel_index(where, inside.shape), box, strict=True))


def _box(present: Array) -> tuple[slice, ...]:
    """The smallest box around the true voxels; the whole where there is none."""
    if not present.any():
        return tuple(slice(0, n) for n in present.shape)
    box = []
    for axis in range(present.ndim):
        found = np.flatnonzero(present.any(tuple(a for a in range(present.ndim) if a != axis)))
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _modalities(case: Case, modality: str, channels: int) -> tuple[str, ...]:
    """The DICOM modality of each channel, as its source or the volume says; the channels of a colour picture share one."""
    named = [source.modality or modality for source in case.images]
    return tuple(named) if len(named) == channels else tuple([modality] * channels)


def _check_alike(measured: Sequence[_Measured]) -> None:
    """Dimensions, units and channels must be those of the first case."""
    for what, of in (
        ("dimensions", lambda m: len(m.case.shape)),
        ("channels", lambda m: len(m.values)),
        ("unit of spacing", lambda m: m.case.unit),
    ):
        found = Counter(of(m) for m in measured)
        if len(found) > 1:
            usual = found.most_common(1)[0][0]
            odd = [m.case.id for m in measured if of(m) != usual]
            raise MedsegError(
                f"all cases need the same {what}; found {', '.join(f'{v} in {n} cases' for v, n in found.items())}. "
                f"Mend or leave out (data.skip=[…]) {', '.join(odd[:10])}{' …' if len(odd) > 10 else ''}"
            )


def _pooled(measured: Sequence[_Measured]) -> tuple[ChannelStatistics, ...]:
    channels = []
    for index, rows in enumerate(zip(*(m.values for m in measured), strict=True)):
        values = np.concatenate(rows).astype(np.float64)
        if not len(values):
            raise MedsegError("every image is zero throughout; there is nothing to learn from")
        named = Counter(m.modalities[index] for m in measured if m.modalities[index])
        low, median, high = np.percentile(values, [0.5, 50.0, 99.5])
        channels.append(
            ChannelStatistics(
                modality=min(named, key=lambda name: (-named[name], name), default=""),
                mean=float(values.mean()),
                std=float(values.std()),
                median=float(median),
                low=float(low),
                high=float(high),
                minimum=float(min(m.span[index, 0] for m in measured)),
                maximum=float(max(m.span[index, 1] for m in measured)),
            )
        )
    return tuple(channels)


def _identity(source: Source) -> list[Any]:
    digests = [content_sha256(path) for path in source.distinct_files]
    return [source.kind, source.key, source.modality, list(source.frames), digests]


def _in_parallel(work: Callable[[Case], _T], cases: Sequence[Case], workers: int, title: str) -> list[_T]:
    """``work`` of each case, in order; a progress bar where there is a title."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        results: Iterable[_T] = pool.map(work, cases)
        return list(tqdm(results, total=len(cases), desc=title, unit="case", disable=not title))


def _tuples(value: Any) -> Any:
    """Lists of JSON as tuples, however deep."""
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
