"""One case through one or several models: windows and mirrorings here, meaning in the task, files elsewhere.

`predict_grid` works on the plan's grid and serves training and prediction alike; `Predictor` goes the whole way from a
case to a `Prediction` on the scan's own grid: swept within the memory there is, where voxels are decoded one by one and nobody
wants their scores; else by way of the merged result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.data.lesions import restore_boxes
from medseg.data.preprocess import PlannedScan, Restoration, whole_restoration
from medseg.data.regions import read_planned
from medseg.data.resampling import Sliced
from medseg.errors import MachineError, MedsegError
from medseg.evaluation.box_calibration import calibrated_boxes
from medseg.evaluation.mask_calibration import calibrated_mask
from medseg.evaluation.postprocess import apply_postprocessing
from medseg.evaluation.working_point import mean_point
from medseg.inference.answers import Answers
from medseg.inference.auto_runtime import settle
from medseg.inference.boxes import BoxFinder, BoxOptions
from medseg.inference.classes import ClassReader
from medseg.inference.components import components
from medseg.inference.memory import Burden, Memory, network_bytes, route_within
from medseg.inference.runtime import Runtime
from medseg.inference.runtimes import RuntimeOptions, build_runtime
from medseg.inference.sweep import sweep
from medseg.model import Model
from medseg.planning.plan import Plan
from medseg.structures import Case, Prediction
from medseg.tasks import build_task
from medseg.tasks.base import DenseTask
from medseg.tiling.windows import cut_window, window_starts
from medseg.volume import Array, Geometry, Volume

if TYPE_CHECKING:
    from medseg.tasks.base import Task


def predict_grid(
    runtimes: Sequence[Runtime],
    array: Array,
    plan: Plan,
    task: Task,
    *,
    overlap: float = 0.5,
    mirror: bool = True,
    batch_size: int = 1,
    on_window: Callable[[int, int], None] | None = None,
) -> Any:
    """What the networks say of one preprocessed case, merged by the task, on the plan's grid.

    Each window is answered by every runtime in every mirroring over ``plan.mirror_axes``; what `Task.combine` makes of the
    answers goes into the task's merger. Where the case is smaller than the patch, it lies
    in the middle of a window of zeros, as in training.

    Args:
        runtimes: the members of an ensemble (one network: a list of one).
        array: ``(C, *S)`` float32, as `preprocess` gives it.
        overlap: what neighbouring windows share at least, 0 to below 1; nothing to do with cases that fit one window.
        mirror: whether mirrored copies are predicted too (2 to the number of ``mirror_axes`` times the work).
        batch_size: windows that go through a network at once.
        on_window: called with (windows done, all windows) after each batch, for a progress bar.

    Returns:
        Whatever ``task.merger(...).result()`` returns; segmentation: probabilities (or what the plan's conventions say is
        averaged) ``(K, *S)`` float32; detection: boxes.
    """
    answers = Answers(runtimes, task, plan.mirror_axes if mirror else ())
    return _merged(array, plan, task, answers, overlap=overlap, batch_size=batch_size, on_window=on_window)


def _merged(
    array: Array,
    plan: Plan,
    task: Task,
    answers: Answers,
    *,
    overlap: float,
    batch_size: int,
    on_window: Callable[[int, int], None] | None,
) -> Any:
    shape, patch = array.shape[1:], plan.patch_size
    starts = window_starts(shape, patch, overlap, plan.odd_padding)
    merger = task.merger(shape, patch)
    for first in range(0, len(starts), batch_size):
        lowers = starts[first : first + batch_size]
        found = answers([cut_window(array, lower, patch) for lower in lowers])
        for answer, lower in zip(found, lowers, strict=True):
            merger.add(answer, lower)
        if on_window is not None:
            on_window(first + len(lowers), len(starts))
    return merger.result()


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan on the grid of a model's plan, whole or made part by part as it is needed, and the way back.

    ``scan_bytes`` are those of the volume that it was made of.
    """

    scan: Sliced
    restoration: Restoration
    scan_bytes: int

    def array(self) -> Array:
        """``(C, *S)`` float32."""
        return (
            self.scan if isinstance(self.scan, np.ndarray) else self.scan[tuple(slice(0, n) for n in self.scan.shape)]
        )


class Predictor:
    """An ensemble of models that share one plan, ready to say what it sees in a case.

    Args:
        models: the members; a single model is a list of one.
        runtime: values of `medseg.inference.runtimes.RuntimeOptions`; ``auto`` is plain PyTorch until `settle_runtime`.
        overlap, mirror, batch_size: see `predict_grid`.
        boxes: where boxes come from, and which of them count; a mapping is read as `BoxOptions.from_mapping` does.
        memory_gb: what the process may take of the main memory; None for what is free.
        trust: targets of networks that are not built in.

    Attributes:
        memory: how much there is, by which each scan is swept.

    Raises:
        MedsegError: no model; members whose plans preprocess differently; an option that does not exist; boxes that a
            model cannot give.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        runtime: Mapping[str, Any] | None = None,
        overlap: float = 0.5,
        mirror: bool = True,
        batch_size: int = 1,
        boxes: BoxOptions | Mapping[str, Any] | None = None,
        memory_gb: float | None = None,
        trust: Sequence[str] = (),
    ) -> None:
        if not models:
            raise MedsegError("predict: expected at least one model, found none")
        self.model = models[0]
        self.plan = self.model.plan
        for other in models[1:]:
            check_member(self.model, other)
        self._models, self._trust, self._batch_size = tuple(models), tuple(trust), batch_size
        self.runtime = RuntimeOptions.from_mapping(runtime or {})
        self._why = ""
        self._runtimes = self._built("torch" if self.runtime.name == "auto" else self.runtime.name)
        self.finder = BoxFinder.of(
            models, boxes if isinstance(boxes, BoxOptions) else BoxOptions.from_mapping(boxes or {})
        )
        self.task = build_task(self.finder.task, self.plan)
        point = mean_point([model.working_point for model in models])
        self._temperature = float(point.get("temperature", 1.0))
        self._reader = ClassReader.of(models) if self.plan.classes is not None else None
        self.members = tuple(m.sha256 for m in models)
        self.postprocessing = _agreed([m.postprocessing for m in models])
        window_starts((1,), (1,), overlap)  # an impossible overlap is named before any work
        self._overlap = overlap
        self._mirror_axes = self.plan.mirror_axes if mirror else ()
        self.memory = Memory.here(memory_gb)

    @property
    def sha256(self) -> str:
        """The hash of the model, or of all members together."""
        return self.members[0] if len(self.members) == 1 else hashlib.sha256("".join(self.members).encode()).hexdigest()

    def runtime_description(self) -> dict[str, str]:
        """Runtime, device and number format, and why ``auto`` chose them, for a manifest."""
        return {**self._runtimes[0].describe(), **({"why": self._why} if self._why else {})}

    def settle_runtime(self, windows: int) -> None:
        """Let ``runtime=auto`` choose, with so many windows ahead of each member, mirrorings not counted."""
        flips = 2 ** len(self._mirror_axes)
        how: dict[str, Any] = {"batch_size": self._batch_size, "trust": self._trust}
        self._runtimes, choice = settle(self._models, self.runtime, windows * flips, plain=self._runtimes, **how)
        self._why = choice.why

    def keep_runtime(self, name: str) -> None:
        """Go on with the runtime that ``auto`` chose before. Raises MedsegError where it cannot be had any more."""
        self._runtimes = self._built(name)

    def windows_of(self, scan: Geometry) -> int:
        """About how many windows a scan has (what is cropped away is counted); 0 where it does not fit the plan."""
        if scan.dimensions != self.plan.dimensions:
            return 0
        return len(window_starts(whole_restoration(scan, self.plan).shape, self.plan.patch_size, self._overlap))

    def _built(self, name: str) -> list[Runtime]:
        how: dict[str, Any] = {"batch_size": self._batch_size, "trust": self._trust}
        return [build_runtime(name, model, self.runtime, **how) for model in self._models]

    def predict(self, case: Case) -> Prediction:
        """Read the case's channels and say what is in it.

        Raises:
            MedsegError: a channel cannot be read, or the scan does not fit the plan.
        """
        return self.predict_volume(read_planned(case, self.plan), case.id)

    def predict_volume(self, volume: Volume, case: str) -> Prediction:
        """`predict` of a volume that is read already (`read_planned`); ``case`` is the id that the prediction bears."""
        return self.outcome(volume, case, scores=False).prediction

    def prepare(self, volume: Volume) -> Prepared:
        """What `outcome` begins with, so that it can be done ahead of its turn. Raises MedsegError as it does."""
        scan = PlannedScan(volume, self.plan)
        whole = self.memory.makes_whole(self.plan, scan.restoration.shape)
        return Prepared(scan.whole() if whole else scan, scan.restoration, volume.data.nbytes)

    def sweeps(self, scores: bool) -> bool:
        """Whether a case is swept; its scores are not whole in memory then, so nobody may want them."""
        wanted = scores or self._reader is not None or self.finder.components is not None
        return not wanted and isinstance(self.task, DenseTask)

    def burden(self, restoration: Restoration, scan_bytes: int, memory: Memory, *, scores: bool) -> Burden:
        """What a case takes of ``memory``.

        Args:
            restoration: of the case.
            scan_bytes: of its volume.
            scores: as for `outcome`.
        """
        rest = self._rest(restoration, scan_bytes, memory)
        if self.sweeps(scores):
            return route_within(restoration, self.plan, self._outputs, self._overlap, memory, rest)[1]
        merged = 2 * self._outputs if self.plan.classes is None else 0  # what is merged, and calibrated
        numbers = len(self.plan.channels) * (1 + memory.beside) + merged
        return replace(rest, sums=4 * math.prod(restoration.shape) * numbers)

    @property
    def _outputs(self) -> int:
        return len(self.plan.labels.outputs)

    def _rest(self, restoration: Restoration, scan_bytes: int, memory: Memory) -> Burden:
        """What a case takes beside its sums."""
        voxels = math.prod(restoration.scan.shape)
        mask = voxels * (1 if max(self.plan.labels.names) < 256 else 2)
        # Two marks a voxel; of post-processing one a label, and the numbers of components.
        marks = voxels * (6 + len(self.plan.labels.targets) if self.postprocessing else 2)
        network = network_bytes(self.plan, self._outputs, self._batch_size)
        return Burden(scan_bytes, mask, marks, network, 0, memory.beside)

    def outcome(
        self,
        volume: Volume | Prepared,
        case: str,
        on_window: Callable[[int, int], None] | None = None,
        *,
        scores: bool = True,
    ) -> Outcome:
        """A prediction with what it was decided from.

        Args:
            volume: the scan, or what `prepare` made of it.
            case: the id that the prediction bears.
            on_window: as for `predict_grid`.
            scores: whether the merged output is wanted too; without it, masks are made within the `memory`.

        Raises:
            MedsegError: the volume does not fit the plan.
            MachineError: the memory does not hold the result.
        """
        ready = volume if isinstance(volume, Prepared) else self.prepare(volume)
        answers = Answers(self._runtimes, self.task, self._mirror_axes)
        try:
            prediction, merged = self._decided(ready, case, answers, on_window, scores)
        except MemoryError as error:
            shape = ready.restoration.shape
            raise MachineError(
                f"case {case!r}: the memory does not hold its result on the plan's grid {shape}: {error}"
            ) from None
        prediction = self._refined(prediction, merged, ready.restoration)
        windows = {"asked": answers.asked, "spared": answers.spared}
        return Outcome(prediction, merged, ready.restoration, self.plan, self._temperature, windows)

    def _decided(
        self,
        ready: Prepared,
        case: str,
        answers: Answers,
        on_window: Callable[[int, int], None] | None,
        scores: bool,
    ) -> tuple[Prediction, Any]:
        """What the task says of a case, and the merged output where a case is not swept: of masks, probabilities."""
        restoration, size = ready.restoration, self._batch_size
        if isinstance(self.task, DenseTask) and self.sweeps(scores):
            rest = self._rest(restoration, ready.scan_bytes, self.memory)
            route, _ = route_within(restoration, self.plan, self._outputs, self._overlap, self.memory, rest)
            patch = self.plan.patch_size
            mask = sweep(
                ready.scan, restoration, self.task, answers, route, patch=patch, batch_size=size, on_window=on_window
            )
            return Prediction(case, restoration.scan, self.task.labels, mask=mask), None
        merged = _merged(
            ready.array(), self.plan, self.task, answers, overlap=self._overlap, batch_size=size, on_window=on_window
        )
        prediction = self.task.decode(case, merged, restoration, self.finder.thresholds)
        # A mask is decided by what was averaged; whoever else asks, asks for probabilities.
        return prediction, self.task.probabilities(merged) if isinstance(self.task, DenseTask) else merged

    def _refined(self, prediction: Prediction, merged: Any, restoration: Restoration) -> Prediction:
        """With what a model knows beside its task: classes and boxes, calibration, post-processing."""
        if self._reader is not None:
            prediction = self._reader.read(prediction, merged)
        if prediction.boxes is not None:
            found = calibrated_boxes(prediction.boxes, prediction.labels, self.finder.calibration)
            prediction = replace(prediction, boxes=found)
        if self.finder.components is not None:
            found = components(merged, restoration.geometry, prediction.labels, **self.finder.components)
            boxes, thresholds = restore_boxes(found, restoration), self.finder.thresholds
            prediction = replace(prediction, boxes=boxes, thresholds=thresholds)
        if prediction.mask is not None and self.postprocessing:
            # On the plan's axes, so that of two equally large components the same one stays however the scan is stored.
            turn, scan = restoration.turn, prediction.geometry
            turned, geometry = turn.apply(prediction.mask), turn.apply_to_geometry(scan)
            kept = apply_postprocessing(turned, geometry, prediction.labels, self.postprocessing)
            prediction = replace(prediction, mask=turn.inverse().apply(kept))
        return prediction


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prediction on the scan's own grid, the merged output on the grid of ``plan``, and the way from one to the other.

    Args:
        merged: of masks probabilities, whatever windows and members were averaged by; None where it was not wanted.
        temperature: makes the probabilities of masks honest; other tasks have their own calibration and do not look at it.
        windows: how many were ``asked`` of the networks, and how many ``spared``, as they hold nothing but air.
    """

    prediction: Prediction
    merged: Any
    restoration: Restoration
    plan: Plan
    temperature: float = 1.0
    windows: Mapping[str, int] = field(default_factory=dict)

    def probabilities(self) -> Array:
        """``(K, *S)`` float32 calibrated, on the plan's grid, of a segmentation, in the order of ``labels.outputs``."""
        return calibrated_mask(self.merged, self.prediction.labels, self.temperature)


def _agreed(options: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The post-processing that every member of an ensemble would do: a label's gentlest rule, none if one has none."""
    agreed: dict[str, dict[str, Any]] = {}
    for name in set(options[0]).intersection(*options[1:]):
        rules = [member[name] for member in options]
        if len({rule.get("unit") for rule in rules}) == 1:
            largest = all(rule.get("largest", False) for rule in rules)
            smallest = min(rule.get("smallest", 0.0) for rule in rules)
            agreed[name] = {**rules[0], "largest": largest, "smallest": smallest}
    return agreed


def check_member(first: Model, other: Model) -> None:
    """Raises MedsegError unless both may be averaged: one preprocessing, patch, task and set of labels."""
    for name, a, b in (
        ("preprocessing", first.plan.preprocessing_key(), other.plan.preprocessing_key()),
        ("labels", dict(first.plan.labels.names), dict(other.plan.labels.names)),
        ("patch_size", first.plan.patch_size, other.plan.patch_size),
        ("task", dict(first.task), dict(other.task)),
    ):
        if a != b:
            raise MedsegError(
                f"these models are no ensemble, as their {name} differs ({a} and {b}): folds share one plan. "
                "Predict with each, or name them: model={a: …, b: …}"
            )
