"""What ``medseg predict`` does with each scan: read it, predict it, write all that is wanted of it, and say how it went.

These are three steps, so that those of neighbouring cases can go on at once. A case's folder appears whole or not at all.
Which scans there are, and how a run ends, is said in `medseg.commands.predict`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from medseg.commands.failures import Failures
from medseg.commands.heat_maps import HeatMaps
from medseg.data.preprocess import restore_values
from medseg.data.regions import read_planned
from medseg.errors import MedsegError
from medseg.export.boxes import NAME as BOXES
from medseg.export.boxes import write_boxes
from medseg.export.case_folder import whole_folder
from medseg.export.classes import NAME as CLASSES
from medseg.export.classes import write_classes
from medseg.export.dicom import ValueMap, probability_maps
from medseg.export.manifest import Manifest, Record
from medseg.export.nifti import write_mask, write_probabilities, write_values
from medseg.export.origin import InputNames, content_key
from medseg.export.overlay import case_overlay
from medseg.export.preview import write_preview
from medseg.export.tables import COMPONENTS, LESIONS, figures
from medseg.inference.ahead import Read, warnings_of_this_thread
from medseg.inference.combine import combine
from medseg.inference.predictor import Outcome, Predictor, Prepared
from medseg.inference.uncertainty import entropy_of, uncertainty_of_labels
from medseg.scans.names import case_id, slug
from medseg.structures import Case
from medseg.volume import Volume

logger = logging.getLogger(__name__)
TAKEN = ("manifest.json", "predictions.csv", "report.html", "features")
"""Names of a result folder that no case's folder may bear."""
NOT_EXPLAINED = "no heat map: "
"""How the remark begins that a case could not be explained; its prediction stands."""


@dataclass(frozen=True)
class Wanted:
    """What is written of a case beside what its task yields."""

    every_box: bool
    probabilities: bool
    uncertainty: bool
    overlays: bool
    slices: bool

    @property
    def scores(self) -> bool:
        """Whether anything is made of the scores of voxels beside the mask."""
        return self.probabilities or self.uncertainty


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan, and on the grid of each model what it begins with."""

    volume: Volume
    prepared: Mapping[str, Prepared]


@dataclass(frozen=True)
class CaseWork:
    """What is done with each case: predict, write, say how it went; ``failures`` gathers what went wrong."""

    predictors: Mapping[str, Predictor]
    output: Path
    names: InputNames
    wanted: Wanted
    write_objects: Callable[..., list[str]] | None
    heat_maps: HeatMaps | None
    failures: Failures

    def folder(self, case: Case) -> Path:
        """The case's folder: its id, where that is safe in a path."""
        name = case_id(case.id)
        return self.output / (f"{name}_" if name in TAKEN else name)

    def is_done(self, case: Case, manifest: Manifest) -> bool:
        """Whether the same files were predicted before and the result is still there."""
        record = manifest.cases.get(case.id)
        if record is None or record.status != "done" or not _is_there(self.folder(case), record):
            return False
        tried = any(remark.startswith(NOT_EXPLAINED) for remark in record.mended)
        if self.heat_maps is not None and not tried and not self.heat_maps.is_done(self.folder(case)):
            return False
        try:
            return record.key == self._key(case)
        except OSError:
            return False  # reading it says what is wrong

    def _key(self, case: Case) -> str:
        """Of the mask, too, where a model looks at what it marks."""
        plans = [predictor.plan.classes for predictor in self.predictors.values()]
        return content_key(case, with_label=any(classes is not None and classes.region for classes in plans))

    def read(self, case: Case) -> Ready:
        """The scan, and what each model begins with. Raises MedsegError as reading and `Predictor.prepare` do."""
        plan = next(iter(self.predictors.values())).plan
        volume = read_planned(case, plan, stored=True)
        return Ready(volume, {name: predictor.prepare(volume) for name, predictor in self.predictors.items()})

    def predict(
        self, case: Case, read: Read[Ready], on_window: Callable[[int, int], None]
    ) -> Callable[[], tuple[str, Record]]:
        """Predict one case; what is returned writes it, and says its id and how it went.

        What is wrong with it ends up in the record; a full disk is raised.
        """
        started = time.monotonic() - read.seconds
        mended = [self.names.without_paths(warning, case) for warning in read.warnings]
        record = Record("failed", sources=self.names.sources(case), mended=mended)
        try:
            if read.error is not None or read.value is None:
                raise read.error or MedsegError(f"case {case.id!r}: was not read")
            key = self._key(case)
            with warnings_of_this_thread("medseg") as notes:
                outcomes = {
                    name: predictor.outcome(read.value.prepared[name], case.id, on_window, scores=self.wanted.scores)
                    for name, predictor in self.predictors.items()
                }
        except Exception as error:
            reason = self.failures.note(case, error)
            failed = replace(record, seconds=time.monotonic() - started, reason=reason)
            return lambda: (case.id, failed)
        record = replace(record, seconds=time.monotonic() - started, key=key, mended=[*mended, *notes])
        return partial(self._finish, case, read.value.volume, outcomes, record)

    def _finish(
        self, case: Case, volume: Volume, outcomes: Mapping[str, Outcome], record: Record
    ) -> tuple[str, Record]:
        """Write one case."""
        started = time.monotonic()
        try:
            with warnings_of_this_thread("medseg") as notes:
                found, completed = self._write(case, volume, outcomes)
        except Exception as error:
            return case.id, replace(record, key="", reason=self.failures.note(case, error))
        return case.id, replace(
            record,
            status="done",
            seconds=record.seconds + time.monotonic() - started,
            folder=self.folder(case).name,
            mended=[*record.mended, *notes, *completed],
            figures=found,
            windows={kind: sum(one.windows.get(kind, 0) for one in outcomes.values()) for kind in ("asked", "spared")},
        )

    def _write(self, case: Case, volume: Volume, outcomes: Mapping[str, Outcome]) -> tuple[dict[str, float], list[str]]:
        """Write the case's folder; returns its figures, and what DICOM objects needed that the source lacks."""
        predictions = {name: outcome.prediction for name, outcome in outcomes.items()}
        found: dict[str, float] = {}
        maps: list[Iterator[ValueMap]] = []
        with whole_folder(self.folder(case)) as folder:
            for name, outcome in outcomes.items():
                prefix = f"{name}/" if name else ""
                found |= figures(outcome.prediction, prefix)
                place = folder / slug(name) if name else folder
                place.mkdir(exist_ok=True)
                if self.wanted.uncertainty:
                    found |= {f"{prefix}{label}": value for label, value in _write_uncertainty(outcome, place).items()}
                if self.wanted.probabilities:
                    merged = (outcome.probabilities(), outcome.restoration, outcome.prediction.labels)
                    write_probabilities(*merged, place)
                    if self.write_objects is not None:
                        maps.append(probability_maps(*merged, folder=slug(name) if name else ""))
                if name and not any(place.iterdir()):
                    place.rmdir()
            prediction = predictions[""] if "" in predictions else combine(predictions)
            if prediction.mask is not None:
                write_mask(prediction, folder)
            if prediction.boxes is not None:
                write_boxes(prediction, folder, every=self.wanted.every_box)
            if prediction.classes:
                write_classes(prediction, folder)
            if self.wanted.overlays:
                case_overlay(volume, prediction, folder / "overlay.png")
            if self.wanted.slices:
                write_preview(volume, prediction, folder)
            completed = self.write_objects(prediction, case, folder, maps=chain(*maps)) if self.write_objects else []
            if self.heat_maps is not None:
                try:
                    self.heat_maps.write(volume, prediction, case, folder)
                except MedsegError as error:
                    completed = [*completed, f"{NOT_EXPLAINED}{error}"]
        return found, completed


def _write_uncertainty(outcome: Outcome, folder: Path) -> dict[str, float]:
    """Write ``uncertainty.nii.gz`` (a picture: ``.tif``); returns the figures of the labels."""
    entropy = entropy_of(outcome.probabilities(), outcome.prediction.labels)
    restored = restore_values(entropy, outcome.restoration)
    write_values(restored, outcome.prediction.geometry, folder / "uncertainty")
    of_labels = uncertainty_of_labels(restored, outcome.prediction)
    return {f"{label}_uncertainty": round(value, 6) for label, value in of_labels.items()}


def _is_there(folder: Path, record: Record) -> bool:
    """Whether the mask, the boxes or else the classes that a record's figures are made from still lie in the case's folder."""
    of_mask, of_boxes = (any(name.endswith(end) for name in record.figures) for end in (COMPONENTS, LESIONS))
    if not of_mask and not of_boxes:
        return (folder / CLASSES).is_file()
    return (any(folder.glob("mask.*")) or not of_mask) and ((folder / BOXES).is_file() or not of_boxes)
