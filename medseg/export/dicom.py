"""``export=dicom``: what is written beside the mask of a case that came from DICOM, and what is said of it in the manifest.

Knows which objects there are, and nothing of how each is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.data.preprocess import Restoration, restore_scores_blocks
from medseg.errors import MedsegError
from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, DicomSource, dicom_source
from medseg.export.parametric_map import Quantity, probability_of, write_parametric_map
from medseg.export.rtstruct import write_rtstruct
from medseg.export.seg import write_segmentation
from medseg.scans.names import slug
from medseg.structures import Case, LabelTable, Prediction
from medseg.volume import Array

_FIRST_MAP = 4  # series of one source: 1 SEG, 2 RTSTRUCT, 3 SR, then the maps


@dataclass(frozen=True)
class DicomExport:
    """Which objects are written.

    Args:
        seg: ``binary``, which every viewer opens; ``labelmap``, which is small for many labels; or ``none``.
        rtstruct: whether contours are written.
        sr: whether a report of volumes and lesions is written (SR TID 1500).
        maps: whether probabilities and heat maps are written as parametric maps, where there are any. Neither they nor
            contours are written for pictures: DICOM wants a place in the patient for them.
        anatomy: a file of codes of the user's own, see ``medseg/export/anatomy.yaml``.

    Raises:
        MedsegError: no such kind of SEG, or the file of codes is not understood.
    """

    seg: Literal["binary", "labelmap", "none"] = "binary"
    rtstruct: bool = True
    sr: bool = True
    maps: bool = True
    anatomy: Path | str | None = None
    table: AnatomyTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.seg not in ("binary", "labelmap", "none"):
            raise MedsegError(f"export.seg: expected binary, labelmap or none, found {self.seg!r}")
        object.__setattr__(self, "table", AnatomyTable.load(Path(self.anatomy) if self.anatomy else None))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> DicomExport:
        """From a configuration. Raises MedsegError for what there is not, with what there is."""
        known = [entry.name for entry in fields(cls) if entry.init]
        odd = sorted(set(values) - set(known))
        if odd:
            raise MedsegError(f"export: no {', '.join(odd)}; export=dicom has {', '.join(known)}")
        return cls(**values)


@dataclass(frozen=True, eq=False)
class ValueMap:
    """Values ``geometry.shape`` on the scan's own grid, what they measure, and the name of their file without ending."""

    name: str
    quantity: Quantity
    values: Array


def export_dicom(
    prediction: Prediction,
    case: Case,
    folder: Path,
    *,
    options: DicomExport,
    plan_options: Mapping[str, Any],
    algorithm: Algorithm,
    maps: Iterable[ValueMap] = (),
) -> list[str]:
    """Write ``seg.dcm``, ``rtstruct.dcm``, ``sr.dcm`` and a file a map into ``folder``; all lie on the case's first channel.

    Args:
        prediction: on the grid of the case as it was read.
        plan_options: the reader options of the plan.
        maps: taken one at a time, so that they may be made one at a time.

    Returns:
        What the manifest says of it: what the source lacked, and where the objects lie.

    Raises:
        MedsegError: the case is not DICOM, has changed since it was read, or does not fit into an object.
    """
    source = dicom_source(case.images[0], plan_options)
    _check_grid(prediction, source)
    segmentation = None
    if prediction.mask is not None and options.seg != "none":
        segmentation = write_segmentation(
            prediction, source, folder / "seg.dcm", kind=options.seg, anatomy=options.table, algorithm=algorithm
        )
    if prediction.mask is not None and options.rtstruct and not source.is_picture:
        write_rtstruct(prediction, source, folder / "rtstruct.dcm", anatomy=options.table, algorithm=algorithm)
    if options.sr:
        from medseg.export.sr import write_report

        write_report(
            prediction,
            source,
            folder / "sr.dcm",
            segmentation=segmentation,
            anatomy=options.table,
            algorithm=algorithm,
        )
    _write_maps(maps, source, folder, _FIRST_MAP, options, algorithm)
    return [*source.completions, *_remarks(case, source, options)]


def export_maps(
    maps: Iterable[ValueMap],
    case: Case,
    folder: Path,
    *,
    options: DicomExport,
    plan_options: Mapping[str, Any],
    algorithm: Algorithm,
) -> None:
    """Write further maps of a case into ``folder``, whose probabilities, if any, are written; arguments as of `export_dicom`."""
    first = _FIRST_MAP + len(list(folder.rglob("probability_*.dcm")))
    _write_maps(maps, dicom_source(case.images[0], plan_options), folder, first, options, algorithm)


def _write_maps(
    maps: Iterable[ValueMap],
    source: DicomSource,
    folder: Path,
    first: int,
    options: DicomExport,
    algorithm: Algorithm,
) -> None:
    """Write a parametric map each, where there may be any; ``first`` is the number of their first series."""
    for number, item in enumerate(maps if options.maps and not source.is_picture else (), first):
        write_parametric_map(
            item.values,
            source,
            folder / f"{item.name}.dcm",
            quantity=item.quantity,
            algorithm=algorithm,
            anatomy=options.table,
            number=number,
        )


def check_dicom(cases: Sequence[Case]) -> None:
    """Raises MedsegError unless all scans are DICOM: objects belong to the patient and study of one."""
    others = [case.id for case in cases if case.images[0].kind != "dicom"]
    if others:
        raise MedsegError(
            f"export=dicom: expected DICOM series, found {len(others)} scan(s) of other formats: {', '.join(others[:10])}. "
            "Predict them without export=dicom, or take the DICOM series as input"
        )


def probability_maps(
    scores: Array, restoration: Restoration, labels: LabelTable, folder: str = ""
) -> Iterator[ValueMap]:
    """The probability of each label or region on the scan's own grid, one in memory at a time; background is what they leave.

    Args:
        scores: ``(K, *S)`` float on the plan's grid, as `medseg.inference.predictor.predict_grid` merges them.
        restoration: the way to the scan's own grid.
        labels: ``labels.outputs`` names the K channels.
        folder: that their files are written to, below the case's own.
    """
    for channel, name in enumerate(labels.outputs):
        if labels.exclusive and channel == 0:
            continue
        values = np.zeros(restoration.scan.shape, np.float32)
        for window, part in restore_scores_blocks(scores[channel : channel + 1], restoration):
            np.clip(part[0], 0, 1, out=values[window])
        number = channel if labels.exclusive else channel + 1
        place = f"{folder}/probability_{number}-{slug(name)}".lstrip("/")
        yield ValueMap(place, probability_of(name), values)


def _check_grid(prediction: Prediction, source: DicomSource) -> None:
    mine, its = prediction.geometry, source.geometry
    if mine.shape != its.shape or (mine.dimensions == 3 and not mine.matches(its)):
        raise MedsegError(
            f"case {prediction.case!r}: the prediction lies on {mine.describe()}, the files now hold {its.describe()}; they have "
            "changed since they were read: predict the case again"
        )


def _remarks(case: Case, source: DicomSource, options: DicomExport) -> Iterator[str]:
    """What a reader of the manifest would not expect."""
    if source.grid.resampled:
        yield "DICOM objects lie on the slices as they were scanned, the NIfTI mask on the mended grid"
    if len(case.images) > 1:
        yield f"DICOM objects lie on and refer to the first of {len(case.images)} channels"
    if source.is_picture and (options.rtstruct or options.maps):
        yield "no RTSTRUCT or parametric map was written: a picture has no place in the patient"
