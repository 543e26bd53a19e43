"""How ``medseg evaluate`` scores masks: Dice, surfaces and lesions of every label of every case, and their means."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medseg.commands.scoring import WORST, Calibrated, Data, Key, Points, known_of, without_paths
from medseg.data.preprocess import preprocess_mask
from medseg.errors import MedsegError
from medseg.evaluation.baselines import Example, GlobalThreshold, MeanShapeAtlas
from medseg.evaluation.figures import Overlay, draw_metric, draw_overlays
from medseg.evaluation.mask_calibration import MaskForecast, mask_calibration
from medseg.evaluation.mask_folder import MaskFolder
from medseg.evaluation.segmentation import segmentation_metrics
from medseg.evaluation.summary import ScoredCase, Summary, format_table, write_evaluation
from medseg.export.nifti import write_mask
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
    """

    data: Data
    tolerance_mm: float

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"tolerance_mm": self.tolerance_mm}

    @property
    def made_by(self) -> Mapping[str, Any]:
        return {}

    def opened(self, folder: Path) -> MaskFolder:
        return MaskFolder(folder)

    def is_written(self, folder: Path) -> bool:
        return any(folder.glob("mask.*"))

    def write_prediction(self, outcome: Outcome, case: Case, folder: Path) -> None:
        """The mask, and of the probabilities some voxels with what is true of them, while there are any."""
        write_mask(outcome.prediction, folder)
        try:
            truth, _ = self._truth(case)
        except (MedsegError, OSError):
            return  # said when the case is scored
        placed = preprocess_mask(truth, outcome.restoration, outcome.plan)[0]
        MaskForecast.draw(outcome.merged, placed, self.data.labels, case.patient).save(folder / VOXELS)

    def score(self, case: Case, found: MaskFolder, fold: str) -> ScoredCase:
        truth, geometry = self._truth(case)
        return self._scored(case, self._predicted(case, found, geometry), truth, geometry, fold)

    def calibration(
        self, scored: Sequence[ScoredCase], found: Mapping[str, MaskFolder], points: Points, samples: int
    ) -> Calibrated | None:
        """Of the voxels that were kept when a model predicted."""
        kept = {(case.fold, case.id): found[case.fold].path / case_id(case.id) / VOXELS for case in scored}
        if not points or not all(path.is_file() for path in kept.values()):
            return None
        temperature = {fold: float(point.get("temperature", 1.0)) for fold, point in points.items()}
        forecasts = (
            MaskForecast.load(kept[case.fold, case.id], case.patient, temperature[case.fold]) for case in scored
        )
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
        tables = {name.replace("_", " "): format_table(theirs) for name, theirs in baselines.items()}
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
