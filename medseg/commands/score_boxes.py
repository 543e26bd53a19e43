"""How ``medseg evaluate`` scores boxes: each case's found lesions are matched with its true ones, and the figures are pooled.

All candidates that a model has are scored, as AP and FROC need them; from which score one counts is said by the working point
of the model that found it, fold by fold.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.commands.evaluation_parts import Part
from medseg.commands.scoring import WORST, Calibrated, Data, Key, Points, known_of, without_paths
from medseg.errors import MedsegError
from medseg.evaluation.box_baselines import BoxExample, BrightestComponents
from medseg.evaluation.box_calibration import FINDINGS, box_calibration
from medseg.evaluation.box_folder import NAME, BoxFolder
from medseg.evaluation.calibration import ALL, check_row_names
from medseg.evaluation.detection import FROC_IOU, DetectedCase, LabelScore, faults_of, score_labels, threshold_for
from medseg.evaluation.detection_figures import draw_froc, draw_precision_recall
from medseg.evaluation.detection_summary import curves_of, detection_metrics, write_detection
from medseg.evaluation.detection_table import format_detection
from medseg.evaluation.figures import Overlay, draw_overlays
from medseg.evaluation.summary import Summary
from medseg.evaluation.text_table import said
from medseg.evaluation.working_point import CALIBRATION, COMPONENTS
from medseg.export.boxes import write_boxes
from medseg.export.nifti import write_mask
from medseg.export.origin import content_key
from medseg.inference.boxes import BoxFinder, BoxOptions
from medseg.inference.predictor import Outcome
from medseg.scans.lesions import read_lesions
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, Case, LesionRule
from medseg.volume import Geometry

logger = logging.getLogger(__name__)
BASELINE = "brightest_components"


@dataclass(frozen=True)
class BoxScoring:
    """Reads a case's true and found boxes, checks that they may be compared, and scores all cases together.

    Args:
        data: its labels are exclusive.
        rule: what is one lesion of a true mask.
        made: how the boxes are made, as far as the caller chose it.
        fp_per_scan: the number of false positives a scan that was asked for; None for what the model chose.
        thresholds: fold → label → score from which a box counts (empty where nobody chose); a fold that is not there obeys
            what the files state.
        calibrated: whether the scores of all models were made probabilities.
    """

    data: Data
    rule: LesionRule
    made: Mapping[str, Any] = field(default_factory=dict)
    fp_per_scan: float | None = None
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibrated: bool = False

    def __post_init__(self) -> None:
        if not self.data.labels.exclusive:
            names = ", ".join(self.data.labels.regions)
            raise MedsegError(f"boxes: expected labels that exclude each other, found the regions {names}")

    @property
    def settings(self) -> Mapping[str, Any]:
        rule = {"instances": self.rule.instances, "smallest_mm3": self.rule.smallest_mm3}
        return {"task": "detection", "fp_per_scan": self.fp_per_scan, "lesions": rule}

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {"boxes": dict(self.made)}

    def opened(self, folder: Path) -> BoxFolder:
        return BoxFolder(folder)

    def key(self, case: Case) -> str:
        return content_key(case)

    def is_written(self, folder: Path) -> bool:
        return (folder / NAME).is_file()

    def write_prediction(self, outcome: Outcome, case: Case, folder: Path) -> None:
        """All candidates, and the mask where there is one."""
        prediction = outcome.prediction
        write_boxes(prediction, folder, every=True)
        if prediction.mask is not None:
            write_mask(prediction, folder)

    def score(self, case: Case, found: BoxFolder, fold: str) -> DetectedCase:
        truth, geometry = self._truth(case, say=True)
        boxes, stated = found.read(case.id, geometry, self.data.labels)
        return self._detected(case, boxes, truth, geometry, fold, self.thresholds.get(fold, stated))

    def calibration(
        self, scored: Sequence[DetectedCase], found: Mapping[str, BoxFolder], points: Points, samples: int
    ) -> Calibrated | None:
        """Of boxes whose models have lines for their scores; components of masks have none."""
        lines = [points.get(case.fold, {}).get(CALIBRATION) for case in scored]
        if self.made.get("from") == COMPONENTS or not all(lines):
            return None
        return Calibrated(box_calibration(scored, self.data.labels, [line or {} for line in lines], samples=samples))

    def title(self, scored: Sequence[DetectedCase]) -> str:
        return f"a lesion is found from IoU {_overlap(scored):g} up"

    def write(self, folder: Path, scored: Sequence[DetectedCase], samples: int) -> Summary:
        detection = detection_metrics(scored, self.data.labels, samples=samples, calibrated=self.calibrated)
        write_detection(folder, detection)
        return detection.summary

    def table(self, scored: Sequence[DetectedCase], summary: Summary) -> str:
        return format_detection({"": summary}, coco=scored[0].geometry.dimensions == 2)

    def compared(self, scored: Sequence[DetectedCase], summary: Summary, baselines: Mapping[str, Summary]) -> str:
        both = {"this": summary, **{said(name): theirs for name, theirs in baselines.items()}}
        return f"beside the baseline, fitted on fit\n{format_detection(both, coco=scored[0].geometry.dimensions == 2)}"

    def draw(
        self,
        folder: Path,
        title: str,
        scored: Sequence[DetectedCase],
        summary: Summary,
        *,
        cases: Mapping[Key, Case],
        found: Mapping[str, BoxFolder],
        baselines: Mapping[str, Sequence[DetectedCase]],
    ) -> None:
        """``froc.png``, ``precision_recall.png``, and ``worst.png`` with the cases of most errors at the working point."""
        del found  # what was scored holds its boxes
        scores, iou = score_labels(scored, self.data.labels), _overlap(scored)
        beside = {said(name): curves_of(score_labels(theirs, self.data.labels)) for name, theirs in baselines.items()}
        draw_froc(curves_of(scores), folder / "froc.png", summary=summary, beside=beside, iou=iou, title=title)
        draw_precision_recall(curves_of(scores), folder / "precision_recall.png", iou=iou, title=title)
        overlays = []
        for at in _worst(scores)[:WORST]:
            case = cases[scored[at].fold, scored[at].id]
            try:
                overlays.append(self._overlay(case, scored[at], scores, at))
            except MedsegError as error:
                logger.warning("figures: case %s is not drawn: %s", case.id, without_paths(error, case))
        if overlays:
            draw_overlays(overlays, folder / "worst.png", title=title)

    def baselines(self, fit: Sequence[Case], cases: Sequence[Case], fold: str) -> dict[str, list[DetectedCase]]:
        """A box around everything that stands out; its working point, too, is chosen on ``fit``."""
        labels, image = self.data.labels, self.data.normalised
        examples = self.data.fitting(fit, lambda case: BoxExample(image(case), self._truth(case)[0]))
        fitted = BrightestComponents.fit((example for _, example in examples), labels)

        def detected(case: Case, thresholds: Mapping[str, float]) -> DetectedCase:
            truth, geometry = self._truth(case)
            return self._detected(case, fitted.predict(image(case)), truth, geometry, fold, thresholds)

        learnt = [found for _, found in self.data.fitting(fit, lambda case: detected(case, {}))]
        point = threshold_for(learnt, labels, 1.0 if self.fp_per_scan is None else self.fp_per_scan)
        return {BASELINE: [detected(case, point) for case in cases]}

    def _truth(self, case: Case, *, say: bool = False) -> tuple[Boxes, Geometry]:
        """The true boxes on the scan's grid; ``say`` names those that are left out."""
        geometry = self.data.geometry(case)
        lesions = read_lesions(case, geometry, self.data.labels, self.rule)
        for fault in lesions.faults if say else ():
            logger.warning("%s", fault)
        return lesions.boxes, geometry

    def _detected(
        self,
        case: Case,
        found: Boxes,
        truth: Boxes,
        geometry: Geometry,
        fold: str,
        thresholds: Mapping[str, float],
    ) -> DetectedCase:
        known = case.id, found, truth, geometry, case.patient, self.data.split, fold
        made = DetectedCase(*known, thresholds, known_of(case))
        for fault in faults_of(made, self.data.labels):
            raise ScanError(fault.message, fault.kind)
        return made

    def _overlay(self, case: Case, scored: DetectedCase, scores: Sequence[LabelScore], at: int) -> Overlay:
        found, truth = scored.predicted, scored.truth
        if found.scores is not None:
            least = {value: score.thresholds[at] for value, score in zip(self.data.labels.names, scores, strict=True)}
            found = found.chosen(found.scores >= np.array([least[int(value)] for value in found.labels]))
        tp, fp = (sum(int(getattr(score, name)[at]) for score in scores) for name in ("tp", "fp"))
        title = f"{case.id}  {tp} of {len(truth)} found, {fp} false"
        return Overlay.of_boxes(title, self.data.first_channel(case), truth.boxes, found.boxes, scored.geometry)


def box_scoring(
    data: Data, parts: Sequence[Part], boxes: BoxOptions, lesions: Mapping[str, Any] | None = None
) -> BoxScoring:
    """How the boxes of these models, or of a folder where there are none, are scored.

    Args:
        lesions: values of `LesionRule`, for models that were not trained to find lesions and for a folder of predictions.

    Raises:
        MedsegError: the labels are regions, a label of a model is called like a row of the calibration, or there is no working
            point for the rate that was asked for.
    """
    models = [model for part in parts for model in part.models]
    lines = [CALIBRATION in model.working_point for model in models]
    if any(lines):
        check_row_names(data.labels.names.values(), (ALL, FINDINGS))
    thresholds = {part.fold: BoxFinder.of(part.models, boxes).thresholds for part in parts if part.models}
    if not all(thresholds.values()):
        logger.warning(
            "the model has no working point for these boxes: its figures at the working point are at 1 false positive a scan of "
            "these very cases, NOT TO BE REPORTED; AP, FROC and CPM need none"
        )
    planned = models[0].plan.boxes if models else None
    rule = LesionRule(**(lesions or {})) if planned is None else planned.rule
    made = {"from": boxes.origin, "fusion": boxes.fusion, "iou": boxes.iou} if models else {}
    calibrated = bool(lines) and all(lines) and boxes.origin != COMPONENTS
    return BoxScoring(data, rule, made, boxes.fp_per_scan, thresholds, calibrated)


def _worst(scores: Sequence[LabelScore]) -> list[int]:
    """Cases by rising F1 of all labels at the working point, then by falling number of errors; none without any box."""
    tp, fp, lesions = (sum(getattr(score, name) for score in scores) for name in ("tp", "fp", "lesions"))
    boxes, errors = tp + fp, fp + lesions - tp
    known = [at for at in range(len(tp)) if lesions[at] + boxes[at]]
    return sorted(known, key=lambda at: (2 * tp[at] / (lesions[at] + boxes[at]), -errors[at], at))


def _overlap(scored: Sequence[DetectedCase]) -> float:
    return FROC_IOU[scored[0].geometry.dimensions]
