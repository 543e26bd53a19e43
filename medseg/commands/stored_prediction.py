"""What a result folder says of a case, as the `Prediction` that it was written from. Compares and decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medseg.evaluation.box_folder import NAME as BOXES
from medseg.evaluation.box_folder import BoxFolder
from medseg.evaluation.class_folder import ClassFolder
from medseg.evaluation.mask_folder import MaskFolder
from medseg.scans import read_mask
from medseg.scans.names import case_id
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry


@dataclass(frozen=True, eq=False)
class StoredPredictions:
    """A result folder of one model.

    Args:
        folder: the result folder.
        labels: of the model's plan.
        classifies: whether the labels are classes of whole cases.
        exclusive: whether these exclude each other.
        thresholds: class → probability from which it is called; boxes state their own.
    """

    folder: Path
    labels: LabelTable
    classifies: bool = False
    exclusive: bool = True
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def read(self, case: str, geometry: Geometry) -> Prediction:
        """What was said of a case, on its scan's own grid.

        Raises:
            MedsegError: a file is missing, damaged, or of another grid.
        """
        if self.classifies:
            names = list(self.labels.names.values())
            classes = ClassFolder(self.folder).read(case, names, exclusive=self.exclusive)
            return Prediction(case, geometry, self.labels, classes=classes, thresholds=self.thresholds)
        own = self.folder / case_id(case)
        found, mask = None, None
        least: Mapping[str, float] = {}
        if (own / BOXES).is_file():
            found, least = BoxFolder(self.folder).read(case, geometry, self.labels)
        if found is None or any(own.glob("mask.*")):
            mask, _ = read_mask(MaskFolder(self.folder).source(case), geometry, self.labels)
        return Prediction(case, geometry, self.labels, mask=mask, boxes=found, thresholds=least)
