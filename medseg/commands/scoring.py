"""What ``medseg evaluate`` asks of a kind of result, masks, boxes or classes, and what all kinds need to know of a case.

The order of the steps is in `medseg.commands.evaluate`; how each kind is read, measured and drawn is in `score_masks`,
`score_boxes` and `score_classes`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from medseg.errors import MedsegError
from medseg.evaluation.baselines import normalised
from medseg.evaluation.calibration import Calibration
from medseg.evaluation.conformal import Coverage
from medseg.evaluation.summary import Summary
from medseg.export.origin import InputNames
from medseg.inference.predictor import Outcome
from medseg.scans import read_case, read_geometry
from medseg.structures import Case, LabelTable
from medseg.volume import Array, Geometry

logger = logging.getLogger(__name__)
Points = Mapping[str, Mapping[str, Any]]
Key = tuple[str, str]
"""Fold and id of a case: folds may share cases."""
WORST = 6


class Scored(Protocol):
    """What became of one case."""

    @property
    def id(self) -> str: ...

    @property
    def patient(self) -> str: ...

    @property
    def fold(self) -> str: ...


S = TypeVar("S", bound=Scored)
F = TypeVar("F")
T = TypeVar("T")


@dataclass(frozen=True)
class Calibrated:
    """A row of `medseg.evaluation.calibration_summary` by its name; of classes also what their conformal sets hold."""

    rows: Mapping[str, Calibration]
    coverage: Coverage | None = None
    held: tuple[float, float] | None = None


class Scoring(Protocol[S, F]):
    """One kind of result, from what a model says of a case to the figures of all; ``F`` is a folder of predictions."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the figures depend on, beside the predictions, the cases and the bootstrap: plain values."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """What the predictions of models depend on that masks do not know: plain values."""

    def opened(self, folder: Path) -> F:
        """A folder of predictions. Raises MedsegError where there is none."""

    def key(self, case: Case) -> str:
        """What changes when `write_prediction` would write something else of a case. Raises OSError where a file is not there."""

    def is_written(self, folder: Path) -> bool:
        """Whether a case's folder holds what `write_prediction` writes."""

    def write_prediction(self, outcome: Outcome, case: Case, folder: Path) -> None:
        """Write into a case's folder all that is scored. Raises MedsegError where the prediction lacks it."""

    def score(self, case: Case, found: F, fold: str) -> S:
        """Compare a case with its prediction. Raises MedsegError where that cannot be."""

    def title(self, scored: Sequence[S]) -> str:
        """In a few words, what the figures depend on."""

    def write(self, folder: Path, scored: Sequence[S], samples: int) -> Summary:
        """Write ``cases.csv`` and ``summary.json``, with ``samples`` draws for the intervals; returns the summary."""

    def table(self, scored: Sequence[S], summary: Summary) -> str:
        """The summary as people read it."""

    def compared(self, scored: Sequence[S], summary: Summary, baselines: Mapping[str, Summary]) -> str:
        """The summaries of the baselines, beside that of what was scored where that helps."""

    def draw(
        self,
        folder: Path,
        title: str,
        scored: Sequence[S],
        summary: Summary,
        *,
        cases: Mapping[Key, Case],
        found: Mapping[str, F],
        baselines: Mapping[str, Sequence[S]],
    ) -> None:
        """Write pictures of the figures and of the worst cases; ``found`` are the predictions of each fold."""

    def calibration(
        self, scored: Sequence[S], found: Mapping[str, F], points: Points, samples: int
    ) -> Calibrated | None:
        """How honest the stated probabilities are, before and after calibration; None where none are stated.

        Args:
            points: fold → the working point of the models that predicted it; empty for predictions without a model.
        """

    def baselines(self, fit: Sequence[Case], cases: Sequence[Case], fold: str) -> dict[str, list[S]]:
        """What each baseline, fitted on ``fit``, scores on ``cases``, all of which can be scored."""


@dataclass(frozen=True)
class Data:
    """The cases as an evaluation reads them.

    Args:
        labels: of the cohort.
        channels: their names, which tell CT where the files do not.
        split: what the cases are, for ``cases.csv``.
        reader: options of the readers.
        progress: whether baselines show theirs.
    """

    labels: LabelTable
    channels: tuple[str, ...]
    split: str
    reader: Mapping[str, Any]
    progress: bool = False

    def geometry(self, case: Case) -> Geometry:
        """The scan's own grid."""
        return read_geometry(case.images[0], self.reader)

    def first_channel(self, case: Case) -> Array:
        """``(*S)``: what is drawn."""
        return read_case(replace(case, images=case.images[:1]), self.reader).data[0]

    def normalised(self, case: Case) -> Array:
        """``(C, *S)``: what baselines see."""
        volume = read_case(case, self.reader)
        names = self.channels if len(self.channels) == len(case.images) else ("",) * len(case.images)
        ct = [
            source.modality == "CT"
            or (not source.modality and re.search(r"(?<![a-z])ct(?![a-z])", name.lower()) is not None)
            for source, name in zip(case.images, names, strict=True)
        ]
        return normalised(volume, ct if len(ct) == len(volume.data) else [False] * len(volume.data))

    def fitting(self, cases: Sequence[Case], read: Callable[[Case], T]) -> Iterator[tuple[Case, T]]:
        """Cases with what ``read`` makes of each, for a baseline to learn from; one that cannot be read is left out and said."""
        for case in tqdm(cases, desc="fitting a baseline", unit="case", disable=not self.progress):
            try:
                known = read(case)
            except MedsegError as error:
                logger.warning("baseline: case %s left out: %s", case.id, without_paths(error, case))
                continue
            yield case, known


def known_of(case: Case) -> dict[str, str]:
    """What the cohort knows of a case, for the columns of ``cases.csv``."""
    return {**({"class": case.class_name} if case.class_name else {}), **case.metadata}


def without_paths(error: Exception, case: Case) -> str:
    """The message of an error with names of files in the place of their paths, and without the case, which is said before."""
    text = str(error) if isinstance(error, MedsegError) else f"{type(error).__name__}: {error}"
    sources = [*case.images, *([case.label] if case.label is not None else [])]
    files = [file for source in sources for file in source.files]
    files += [case.boxes] if isinstance(case.boxes, Path) else []
    text = InputNames.of(files).without_paths(text, case)
    return text.removeprefix(f"case {case.id!r}: ")
