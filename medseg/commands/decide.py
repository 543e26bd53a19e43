"""What a training decides when its weights are final, on ``tune`` and on nothing else: the last step before a model is saved.

Masks: post-processing, a temperature, and how components become boxes. Boxes: what makes scores probabilities, and thresholds.
Classes: a temperature, thresholds, and the level of conformal sets. How each is chosen is said in `medseg.evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medseg.data.lesions import preprocess_lesions
from medseg.data.preprocess import preprocess_mask
from medseg.data.regions import read_planned
from medseg.evaluation.box_calibration import calibrated_boxes, choose_box_calibration
from medseg.evaluation.class_calibration import calibrated, choose_calibration
from medseg.evaluation.class_point import choose_thresholds
from medseg.evaluation.detection import DetectedCase
from medseg.evaluation.mask_calibration import choose_mask_temperature
from medseg.evaluation.postprocess import choose_postprocessing
from medseg.evaluation.working_point import CALIBRATION, COMPONENTS, thresholds_at_rates
from medseg.inference.components import choose_components
from medseg.inference.predictor import Outcome, Predictor
from medseg.model import Model
from medseg.scans import read_mask
from medseg.scans.classes import true_classes
from medseg.scans.lesions import read_lesions
from medseg.structures import Case, Cohort, LabelTable, LesionRule
from medseg.volume import Array, Geometry

FP_PER_SCAN = 1.0
"""The working point of a detector unless another is asked for: false positives a scan on ``tune``."""
KEPT_BYTES = 10**9
"""What the memory may hold of predictions that are looked at more than once."""
CALIBRATED_ON = 12
"""Cases from whose voxels the temperature of masks is chosen at most: each gives thousands."""


def decided_on_tune(model: Model, cohort: Cohort, tune: Sequence[str], trust: Sequence[str] = ()) -> Model:
    """The model with its working point and post-processing.

    Args:
        tune: ids of the cases of the cohort that may decide.
        trust: targets of networks that are not built in.
    """
    by_id = {case.id: case for case in cohort.cases}
    cases = _Tune(model, Predictor([model], trust=trust), [by_id[name] for name in tune])
    return _DECIDE[str(model.task["name"])](model, cases)


@dataclass(frozen=True)
class _Tune:
    """The cases that decide, and what the model says of each."""

    model: Model
    predictor: Predictor
    cases: Sequence[Case]
    _kept: dict[str, Outcome] = field(default_factory=dict)

    @property
    def labels(self) -> LabelTable:
        return self.model.plan.labels

    def outcomes(self, most: int | None = None) -> Iterator[tuple[Case, Outcome]]:
        """One after another; as many as fit in `KEPT_BYTES` are predicted once, however often they are asked for."""
        for case in self.cases[:most]:
            found = self._kept.get(case.id)
            if found is None:
                found = self.predictor.outcome(read_planned(case, self.model.plan), case.id)
                if sum(map(_bytes, (*self._kept.values(), found))) <= KEPT_BYTES:
                    self._kept[case.id] = found
            yield case, found


def _bytes(found: Outcome) -> int:
    return sum(array.nbytes for array in (found.merged, found.prediction.mask) if isinstance(array, np.ndarray))


def _of_masks(model: Model, tune: _Tune) -> Model:
    labels = tune.labels

    def masks() -> Iterator[tuple[Array, Array, Geometry]]:
        for case, found in tune.outcomes():
            prediction = found.prediction
            if prediction.mask is not None and case.label is not None:
                yield prediction.mask, read_mask(case.label, prediction.geometry, labels)[0], prediction.geometry

    def probabilities() -> Iterator[tuple[Array, Array]]:
        for case, found in tune.outcomes(CALIBRATED_ON):
            if case.label is not None:
                truth, _ = read_mask(case.label, found.prediction.geometry, labels)
                yield found.merged, preprocess_mask(truth, found.restoration, model.plan)[0]

    point: dict[str, Any] = {"temperature": choose_mask_temperature(probabilities(), labels)}
    if model.task.get("components"):
        point[COMPONENTS] = choose_components(_with_lesions(tune), labels)
    return replace(model, postprocessing=choose_postprocessing(masks(), labels), working_point=point)


def _with_lesions(tune: _Tune) -> Iterator[tuple[Array, Any, Geometry]]:
    """Probabilities, and the true boxes on the same grid."""
    for case, found in tune.outcomes():
        lesions = read_lesions(case, found.prediction.geometry, tune.labels, LesionRule())
        placed, _ = preprocess_lesions(lesions.boxes, None, found.restoration, tune.model.plan)
        yield found.merged, placed, found.restoration.geometry


def _of_boxes(model: Model, tune: _Tune) -> Model:
    labels, rule = tune.labels, model.plan.boxes.rule if model.plan.boxes else LesionRule()
    found = []
    for case, outcome in tune.outcomes():
        prediction = outcome.prediction
        if prediction.boxes is not None:
            truth = read_lesions(case, prediction.geometry, labels, rule).boxes
            found.append(DetectedCase(case.id, prediction.boxes, truth, prediction.geometry))
    lines = choose_box_calibration(found, labels)
    honest = [replace(case, predicted=calibrated_boxes(case.predicted, labels, lines)) for case in found]
    thresholds = thresholds_at_rates(honest, labels)
    return replace(model, working_point={"fp_per_scan": FP_PER_SCAN, "thresholds": thresholds, CALIBRATION: lines})


def _of_classes(model: Model, tune: _Tune) -> Model:
    classes, several = list(tune.labels.names.values()), bool(model.task.get("multilabel", False))
    rows, shown = [], []
    for case, outcome in tune.outcomes():
        rows.append(outcome.merged)
        shown.append([name in true_classes(case, classes) for name in classes])
    logits, truth = np.stack(rows), np.array(shown)
    point = choose_calibration(logits, truth if several else truth.argmax(1), several)
    thresholds = choose_thresholds(calibrated(logits, point, several), truth, classes, exclusive=not several)
    return replace(model, working_point={**point, "thresholds": thresholds})


_DECIDE: Mapping[str, Callable[[Model, _Tune], Model]] = {
    "segmentation": _of_masks,
    "detection": _of_boxes,
    "classification": _of_classes,
}
