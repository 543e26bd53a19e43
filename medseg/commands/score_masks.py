"""How ``medseg evaluate`` scores masks: Dice, surfaces and lesions of every label of every case, and their means.

Of a model there is also ``ece``: how far the calibrated probabilities around the lesions of a case are from what is true there.
It is of each case by itself, so that it can be audited by group; what all cases pooled show is in ``calibration.json``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medseg.commands.evaluation_parts import Part
from medseg.commands.scoring import WORST, Calibrated, Data, Key, Points, known_of, without_paths
from medseg.data.preprocess import preprocess_mask
from medseg.errors import MedsegError
from medseg.evaluation.baselines import Example, GlobalThreshold, MeanShapeAtlas
from medseg.evaluation.calibration import ALL, check_row_names
from medseg.evaluation.figures import Overlay, draw_metric, draw_overlays
from medseg.evaluation.mask_calibration import AROUND, MaskForecast, mask_calibration
from medseg.evaluation.mask_folder import MaskFolder
from medseg.evaluation.segmentation import Row, segmentation_metrics
from medseg.evaluation.summary import ScoredCase, Summary, format_table, write_evaluation
from medseg.evaluation.text_table import said
from medseg.evaluation.working_point import mean_point
from medseg.export.nifti import write_mask
from medseg.export.origin import content_key
from medseg.inference.predictor import Outcome
from medseg.scans import difference, read_mask, same_grid
from medseg.scans.labels import present
from medseg.scans.names import case_id
from medseg.structures import Case, unique_values
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
VOXELS = "voxels.npz"
"""Some voxels of a case with their probabilities and what is true of them, beside its predicted mask."""


class _Baseline(Protocol):
    def predict(self, case: Example) -> Array: ...


@dataclass(frozen=True)
class MaskScoring:
    """Reads a case's true and predicted mask, checks that they may be compared, and scores them.

    Args:
        tolerance_mm: of the normalised surface Dice (px in pictures without spacing).
        temperatures: fold → the temperature of its models; empty for predictions without a model.
    """

    data: Data
    tolerance_mm: float
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"tolerance_mm": self.tolerance_mm}

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {}

    def opened(self, folder: Path) -> MaskFolder:
        return MaskFolder(folder)

    def key(self, case: Case) -> str:
        """Of its label, too: the voxels that are kept hold what is true of them."""
        return content_key(case, with_label=True)

    def is_written(self, folder: Path) -> bool:
        return any(folder.glob("mask.*")) and (folder / VOXELS).is_file()

    def write_prediction(self, outcome: Outcome, case: Case, folder: Path) -> None:
        """The mask, and of the probabilities some voxels with what is true of them, while there are any."""
        truth, _ = self._truth(case)  # a case without truth is not scored, and is tried again when its label is mended
        write_mask(outcome.prediction, folder)
        placed = preprocess_mask(truth, outcome.restoration, outcome.plan)[0]
        theirs, mine = outcome.prediction.labels.outputs, self.data.labels.outputs
        stated = outcome.merged  # the data may list the regions in another order than the model
        stated = stated if theirs == mine else stated[[theirs.index(name) for name in mine]]
        MaskForecast.draw(stated, placed, self.data.labels, case.patient).save(folder / VOXELS)

    def score(self, case: Case, found: MaskFolder, fold: str) -> ScoredCase:
        truth, geometry = self._truth(case)
        scored = self._scored(case, self._predicted(case, found, geometry), truth, geometry, fold)
        return replace(scored, rows=(*scored.rows, *self._calibration_errors(scored, found)))

    def calibration(
        self, scored: Sequence[ScoredCase], found: Mapping[str, MaskFolder], points: Points, samples: int
    ) -> Calibrated | None:
        """Of the voxels that were kept when a model predicted."""
        if not points:
            return None
        forecasts = (self._forecast(case, found[case.fold]) for case in scored)
        return Calibrated(mask_calibration(forecasts, self.data.labels, samples=samples))

    def title(self, scored: Sequence[ScoredCase]) -> str:
        unit = "px" if any(row.metric == "hd95_px" for case in scored for row in case.rows) else "mm"
        return f"NSD at {self.tolerance_mm:g} {unit}"

    def write(self, folder: Path, scored: Sequence[ScoredCase], samples: int) -> Summary:
        return write_evaluation(folder, scored, samples=samples)

    def table(self, scored: Sequence[ScoredCase], summary: Summary) -> str:
        del scored
        return format_table(summary)

    def compared(self, scored: Sequence[ScoredCase], summary: Summary, baselines: Mapping[str, Summary]) -> str:
        del scored, summary
        tables = {said(name): format_table(theirs) for name, theirs in baselines.items()}
        return "\n".join(f"baseline {name}, fitted on fit\n{table}" for name, table in tables.items())

    def draw(
        self,
        folder: Path,
        title: str,
        scored: Sequence[ScoredCase],
        summary: Summary,
        *,
        cases: Mapping[Key, Case],
        found: Mapping[str, MaskFolder],
        baselines: Mapping[str, Sequence[ScoredCase]],
    ) -> None:
        """``dice.png``, and ``worst.png`` with the cases of lowest mean Dice."""
        del summary, baselines
        draw_metric(scored, folder / "dice.png", title=title)
        dice: dict[Key, float] = {}
        for entry in scored:
            values = [row.value for row in entry.rows if row.metric == "dice" and not math.isnan(row.value)]
            if values:
                dice[entry.fold, entry.id] = sum(values) / len(values)
        overlays = []
        for key in sorted(dice, key=lambda k: (dice[k], k))[:WORST]:
            case = cases[key]
            try:
                truth, geometry = self._truth(case)
                predicted = self._predicted(case, found[key[0]], geometry)
                image = self.data.first_channel(case)
            except MedsegError as error:
                logger.warning("figures: case %s is not drawn: %s", case.id, without_paths(error, case))
                continue
            labelled = np.where(np.isin(truth, list(self.data.labels.names)), truth, 0)  # without what is ignored
            overlays.append(Overlay.of(f"{case.id}  Dice {dice[key]:.3f}", image, labelled, predicted, geometry))
        if overlays:
            draw_overlays(overlays, folder / "worst.png", title=title)

    def baselines(self, fit: Sequence[Case], cases: Sequence[Case], fold: str) -> dict[str, list[ScoredCase]]:
        """The best global threshold and the mean shape."""
        fitted: dict[str, _Baseline] = {
            "global_threshold": GlobalThreshold.fit(self._examples(fit, image=True), self.data.labels),
            "mean_shape_atlas": MeanShapeAtlas.fit(self._examples(fit, image=False), self.data.labels),
        }
        scored: dict[str, list[ScoredCase]] = {name: [] for name in fitted}
        for case in cases:
            truth, geometry = self._truth(case)
            example = Example(geometry, self.data.normalised(case))
            for name, baseline in fitted.items():
                scored[name].append(self._scored(case, baseline.predict(example), truth, geometry, fold))
        return scored

    def _examples(self, cases: Sequence[Case], *, image: bool) -> Iterator[Example]:
        def example(case: Case) -> Example:
            truth, geometry = self._truth(case)
            return Example(geometry, self.data.normalised(case) if image else None, truth)

        return (found for _, found in self.data.fitting(cases, example))

    def _forecast(self, case: ScoredCase, found: MaskFolder) -> MaskForecast:
        """The voxels of a case that were kept when a model predicted it."""
        return MaskForecast.load(found.path / case_id(case.id) / VOXELS, case.patient, self.temperatures[case.fold])

    def _calibration_errors(self, case: ScoredCase, found: MaskFolder) -> Iterator[Row]:
        """A row ``ece`` a label; blank for one that is neither there nor predicted."""
        if case.fold not in self.temperatures:
            return
        errors = self._forecast(case, found).errors(self.data.labels)
        for row in (row for row in case.rows if row.metric == "dice"):
            yield replace(row, metric="ece", value=errors[row.label] if row.n_gt or row.n_pred else math.nan)

    def _truth(self, case: Case) -> tuple[Array, Geometry]:
        """The true mask on the scan's grid."""
        if case.label is None:
            raise MedsegError("it has no label to compare with")
        mask, geometry = read_mask(case.label, self.data.geometry(case), self.data.labels)
        self._check_values(mask, "label")
        return mask, geometry

    def _predicted(self, case: Case, found: MaskFolder, geometry: Geometry) -> Array:
        """The predicted mask, which must lie on the scan's grid."""
        mask, grid = read_mask(found.source(case.id))
        if not same_grid(geometry, grid):
            raise MedsegError(
                f"prediction and scan lie on different grids ({difference(grid, geometry, 'prediction', 'scan')}). Bring the "
                "prediction back to the scan's grid"
            )
        self._check_values(mask, "prediction")
        return mask

    def _scored(self, case: Case, predicted: Array, truth: Array, geometry: Geometry, fold: str) -> ScoredCase:
        rows = segmentation_metrics(predicted, truth, geometry, self.data.labels, tolerance_mm=self.tolerance_mm)
        return ScoredCase(case.id, case.patient, self.data.split, tuple(rows), fold, known_of(case))

    def _check_values(self, mask: Array, name: str) -> None:
        unknown = unique_values(self.data.labels, present(mask))
        if unknown:
            raise MedsegError(
                f"its {name} holds the values {unknown[:10]}; expected 0 and {dict(self.data.labels.names)}"
            )


def mask_scoring(data: Data, parts: Sequence[Part], tolerance_mm: float) -> MaskScoring:
    """How the masks of these models, or of a folder where there are none, are scored.

    Raises:
        MedsegError: a label of a model is called like a row of the calibration.
    """
    points = {part.fold: mean_point([model.working_point for model in part.models]) for part in parts if part.models}
    if points:
        check_row_names(data.labels.targets, (ALL, AROUND))
    return MaskScoring(
        data, tolerance_mm, {fold: float(point.get("temperature", 1.0)) for fold, point in points.items()}
    )
