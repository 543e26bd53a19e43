"""How ``medseg evaluate`` scores classes: each case's probabilities beside what it shows, and the figures of all pooled.

From which probability a class is called is said by the working point of the model that gave it, fold by fold. Folders of
predictions state none: there the most probable class is called, or each from 0.5 where a case may show several.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.commands.evaluation_parts import Part
from medseg.commands.scoring import Calibrated, Data, Key, Points, known_of
from medseg.errors import MedsegError
from medseg.evaluation.bands import Band, check_columns
from medseg.evaluation.calibration import check_row_names
from medseg.evaluation.class_calibration import class_calibration
from medseg.evaluation.class_folder import NAME, ClassFolder
from medseg.evaluation.classification import (
    Answers,
    ClassifiedCase,
    called_classes,
    precision_recall_curve,
    roc_curve,
)
from medseg.evaluation.classification_baselines import LogisticRegression, Seen, features_of
from medseg.evaluation.classification_figures import Curve, draw_confusion, draw_precision_recall, draw_roc
from medseg.evaluation.classification_summary import auroc_differences, classification_metrics, write_classification
from medseg.evaluation.classification_table import format_classification, format_comparison
from medseg.evaluation.conformal import coverage_of, coverage_over_splits, in_sets
from medseg.evaluation.summary import Summary, check_label_names
from medseg.evaluation.text_table import said
from medseg.export.classes import write_classes
from medseg.export.origin import content_key
from medseg.inference.classes import ClassReader
from medseg.inference.predictor import Outcome
from medseg.model import Model
from medseg.scans import read_case, read_mask
from medseg.scans.classes import named_classes, true_classes
from medseg.structures import Case, Cohort
from medseg.volume import Array

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassScoring:
    """Reads what a case shows and what is said of it, and scores all cases together.

    Args:
        classes: in the order of the network's outputs.
        exclusive: whether a case shows one class and no other.
        thresholds: fold → class → probability from which it is called.
        bands: cases that are looked at apart, too.
        columns: of the table, a baseline each.
    """

    data: Data
    classes: tuple[str, ...]
    exclusive: bool
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bands: tuple[Band, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def settings(self) -> Mapping[str, Any]:
        known = {
            "classes": list(self.classes),
            "exclusive": self.exclusive,
            "bands": [str(band) for band in self.bands],
        }
        return {"task": "classification", **known}

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {}

    def opened(self, folder: Path) -> ClassFolder:
        return ClassFolder(folder)

    def key(self, case: Case) -> str:
        return content_key(case, with_label=True)

    def is_written(self, folder: Path) -> bool:
        return (folder / NAME).is_file()

    def write_prediction(self, outcome: Outcome, case: Case, folder: Path) -> None:
        del case
        write_classes(outcome.prediction, folder)

    def score(self, case: Case, found: ClassFolder, fold: str) -> ClassifiedCase:
        probabilities = found.read(case.id, self.classes, exclusive=self.exclusive)
        return self._classified(case, probabilities, fold, self.thresholds.get(fold, {}))

    def calibration(
        self, scored: Sequence[ClassifiedCase], found: Mapping[str, ClassFolder], points: Points, samples: int
    ) -> Calibrated | None:
        """Of all cases, and what their conformal sets hold: those of the models, and of random halves of these cases."""
        if not points:
            return None
        several, answers = not self.exclusive, self._answers(scored)
        patients, probabilities = [case.patient for case in scored], answers.probabilities
        truth = answers.truth if several else answers.truth.argmax(1)
        mine = [points[case.fold] for case in scored]
        rows = class_calibration(
            probabilities, truth, patients, self.classes, mine, multilabel=several, samples=samples
        )
        if len(set(patients)) < 2 or not all(point.get("conformal") for point in mine):
            return Calibrated(rows)
        inside = np.concatenate(
            [
                in_sets(row[None], point["conformal"], multilabel=several)
                for row, point in zip(probabilities, mine, strict=True)
            ]
        )
        alpha = float(mine[0]["conformal"]["alpha"])
        coverage = coverage_over_splits(probabilities, truth, patients, alpha, multilabel=several)
        return Calibrated(rows, coverage, coverage_of(inside, truth, multilabel=several))

    def title(self, scored: Sequence[ClassifiedCase]) -> str:
        called = "the most probable class is called" if self.exclusive else "classes are called from 0.5 up"
        if any(self.thresholds.values()):
            called = "classes are called at the model's working point"
        folds = len({case.fold for case in scored})
        return called if folds == 1 else f"{called}; AUROC and AUPRC rank the cases of {folds} models together"

    def write(self, folder: Path, scored: Sequence[ClassifiedCase], samples: int) -> Summary:
        summary = classification_metrics(
            scored, self.classes, exclusive=self.exclusive, bands=self.bands, samples=samples
        )
        write_classification(folder, scored, summary)
        return summary

    def with_differences(
        self,
        folder: Path,
        scored: Sequence[ClassifiedCase],
        summary: Summary,
        baselines: Mapping[str, Sequence[ClassifiedCase]],
        samples: int,
    ) -> Summary:
        """The summary with the differences in AUROC from each baseline, in pairs; ``summary.json`` is written anew."""
        how: dict[str, Any] = {"exclusive": self.exclusive, "bands": self.bands, "samples": samples}
        both = {**summary, **auroc_differences(scored, baselines, self.classes, **how)}
        write_classification(folder, scored, both)
        return both

    def table(self, scored: Sequence[ClassifiedCase], summary: Summary) -> str:
        return format_classification(summary, self._answers(scored).confusion())

    def compared(self, scored: Sequence[ClassifiedCase], summary: Summary, baselines: Mapping[str, Summary]) -> str:
        del scored
        return f"beside the baselines, fitted on fit\n{format_comparison(summary, baselines)}"

    def draw(
        self,
        folder: Path,
        title: str,
        scored: Sequence[ClassifiedCase],
        summary: Summary,
        *,
        cases: Mapping[Key, Case],
        found: Mapping[str, ClassFolder],
        baselines: Mapping[str, Sequence[ClassifiedCase]],
    ) -> None:
        """``roc.png`` and ``precision_recall.png`` with the baselines where one class says it all, and ``confusion.png``."""
        del cases, found
        answers, shown = self._answers(scored), self._telling()
        beside = {name: self._answers(theirs) for name, theirs in baselines.items()} if len(shown) == 1 else {}
        for name, draw, curve, metric in (
            ("roc", draw_roc, roc_curve, "auroc"),
            ("precision_recall", draw_precision_recall, precision_recall_curve, "auprc"),
        ):
            mine = {_with_value(self.classes[at], summary[metric]): _drawn(curve, answers, at) for at in shown}
            others = {said(other): _drawn(curve, theirs, shown[0]) for other, theirs in beside.items()}
            draw(mine, folder / f"{name}.png", beside=others, title=title)
        draw_confusion(*answers.confusion(), folder / "confusion.png", title=title)

    def baselines(self, fit: Sequence[Case], cases: Sequence[Case], fold: str) -> dict[str, list[ClassifiedCase]]:
        """A logistic regression on each feature that every case has and that is not the same in all of ``fit``."""
        features = features_of(self.columns)

        def look(case: Case) -> tuple[Array, dict[str, Array | None]]:
            shown, seen = self._truth(case), self._seen(case)
            truth = np.array([name in shown for name in self.classes])
            return truth, {name: feature(seen) for name, feature in features.items()}

        learnt = [found for _, found in self.data.fitting(fit, look)]
        asked = [look(case)[1] for case in cases]
        if not learnt:
            raise MedsegError("baselines=true: none of the cases of fit can be read, so nothing can be fitted")
        truth = np.stack([shown for shown, _ in learnt])
        scored: dict[str, list[ClassifiedCase]] = {}
        for name in features:
            known, wanted = [found[name] for _, found in learnt], [found[name] for found in asked]
            try:
                numbers, asked_of = _together(known, wanted)
            except MedsegError as error:
                logger.info("baseline %s is left out: %s", said(name), error)
                continue
            rows = LogisticRegression.fit(numbers, truth, exclusive=self.exclusive).predict(asked_of)
            scored[name] = [
                self._classified(case, dict(zip(self.classes, map(float, row), strict=True)), fold, {})
                for case, row in zip(cases, rows, strict=True)
            ]
        return scored

    def _seen(self, case: Case) -> Seen:
        geometry, labels = self.data.geometry(case), self.data.labels
        source = case.label
        return Seen(
            geometry,
            case.metadata,
            lambda: read_case(case, self.data.reader).data,
            None if source is None else lambda: read_mask(source, geometry, labels)[0],
            labels,
        )

    def _classified(
        self, case: Case, probabilities: Mapping[str, float], fold: str, thresholds: Mapping[str, float]
    ) -> ClassifiedCase:
        called = called_classes(probabilities, thresholds, exclusive=self.exclusive)
        known = case.patient, self.data.split, fold, known_of(case)
        return ClassifiedCase(case.id, self._truth(case), probabilities, called, *known)

    def _truth(self, case: Case) -> tuple[str, ...]:
        truth = true_classes(case, self.classes)
        if self.exclusive and len(truth) != 1:
            raise MedsegError(f"expected one class, found {case.class_name!r}; the model's classes exclude each other")
        return truth

    def _answers(self, scored: Sequence[ClassifiedCase]) -> Answers:
        return Answers.of(scored, self.classes, exclusive=self.exclusive)

    def _telling(self) -> list[int]:
        """Positions of the classes whose curves are drawn: of two that exclude each other one says it all."""
        if not (self.exclusive and len(self.classes) == 2):
            return list(range(len(self.classes)))
        positive = next((name for of_fold in self.thresholds.values() for name in of_fold), self.classes[1])
        return [self.classes.index(positive)]


def class_scoring(
    data: Data,
    parts: Sequence[Part],
    cohort: Cohort,
    bands: Sequence[Mapping[str, Any]] = (),
    columns: Sequence[str] = (),
) -> ClassScoring:
    """How the classes of these models, or of a folder where there are none, are scored.

    Without a model the classes are those of the cohort, and they exclude each other where every case shows one.

    Args:
        bands: values of `Band` each.
        columns: of the table, for baselines.

    Raises:
        MedsegError: there are no classes, folds know different ones, one is called as figures of all are, or a column is not
            there or holds words.
    """
    kinds = {_kind_of_model(model) for part in parts for model in part.models} or {_kind_of_data(cohort)}
    if len(kinds) > 1:
        found = " and ".join(", ".join(classes) for classes, _ in sorted(kinds))
        raise MedsegError(f"model: expected folds of the same classes, found {found}; evaluate them apart")
    ((classes, exclusive),) = kinds
    check_label_names(classes)
    if any(part.models for part in parts):
        check_row_names(classes)
    chosen = tuple(Band.from_mapping(band) for band in bands)
    cases = [case for part in parts for case in part.cases]
    check_columns([band.column for band in chosen], cases, "bands")
    check_columns(columns, cases, "baseline_columns")
    thresholds = {part.fold: ClassReader.of(part.models).point.get("thresholds", {}) for part in parts if part.models}
    return ClassScoring(data, classes, exclusive, thresholds, chosen, tuple(columns))


def _kind_of_model(model: Model) -> tuple[tuple[str, ...], bool]:
    """The classes, and whether they exclude each other."""
    return tuple(model.plan.labels.names.values()), not model.task.get("multilabel", False)


def _kind_of_data(cohort: Cohort) -> tuple[tuple[str, ...], bool]:
    """As of `_kind_of_model`, from what the cases show."""
    shown = [names for case in cohort.cases if (names := named_classes(case.class_name)) is not None]
    return cohort.classes, len(cohort.classes) > 1 and all(len(names) == 1 for names in shown)


def _together(known: Sequence[Array | None], wanted: Sequence[Array | None]) -> tuple[Array, Array]:
    """A feature of the cases of ``fit`` and of those that are scored, a row each. Raises MedsegError where it is no baseline."""
    found = [values for values in (*known, *wanted) if values is not None]
    count = len(known) + len(wanted)
    if len(found) < count:
        raise MedsegError(f"{count - len(found)} of {count} cases have none")
    if len({values.shape for values in found}) > 1:
        raise MedsegError("the cases are of different kinds")
    learnt, asked = np.stack(found[: len(known)]), np.stack(found[len(known) :])
    if learnt.size and not any(len(np.unique(numbers[~np.isnan(numbers)])) > 1 for numbers in learnt.T):
        raise MedsegError("it is the same in all cases of fit")
    return learnt, asked


def _drawn(curve: Callable[[Array, Array], Curve], answers: Answers, at: int) -> Curve:
    return curve(answers.probabilities[:, at], answers.truth[:, at])


def _with_value(name: str, entries: Mapping[str, Mapping[str, Any]]) -> str:
    value = entries[name]["value"]
    return name if value is None else f"{name} {value:.3f}"
