"""From the logits of a case to what is said of it: honest probabilities, classes that are called, a set that holds the truth.

What was chosen on ``tune`` lies in the working points of the models; nothing is chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medseg.evaluation.class_calibration import calibrated, class_set
from medseg.evaluation.working_point import mean_point
from medseg.model import Model
from medseg.structures import Prediction
from medseg.volume import Array


@dataclass(frozen=True)
class ClassReader:
    """How the logits of models, averaged, are read.

    Args:
        point: their working points, averaged: ``temperature``, ``thresholds``, ``conformal``; what a member lacks is left out.
        multilabel: whether a case may show several classes.
    """

    point: Mapping[str, Any]
    multilabel: bool = False

    @classmethod
    def of(cls, models: Sequence[Model]) -> ClassReader:
        """What the members of an ensemble agree on."""
        return cls(mean_point([model.working_point for model in models]), bool(models[0].task.get("multilabel", False)))

    def read(self, prediction: Prediction, logits: Array) -> Prediction:
        """The prediction with calibrated probabilities, thresholds and the conformal set.

        Args:
            logits: ``(K,)`` of the case, in the order of ``prediction.classes``.
        """
        names = tuple(prediction.classes)
        probabilities = calibrated(logits, self.point, self.multilabel)
        return replace(
            prediction,
            classes=dict(zip(names, map(float, probabilities), strict=True)),
            thresholds=dict(self.point.get("thresholds", {})),
            class_set=class_set(probabilities, self.point, names, self.multilabel),
        )
