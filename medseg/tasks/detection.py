"""Detection: a box, a class and a score for every lesion, and a mask beside them where the network has learnt one.

Owns what a crop asks for, how the views of a window become boxes on the plan's grid, and which of them are kept. Where anchors
lie is the network's (`medseg.networks.anchor_grid`), which boxes are one lesion that of `medseg.tiling.fusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.data.lesions import restore_boxes, seen_in_patch
from medseg.data.preprocess import Restoration
from medseg.data.store import StoredCase
from medseg.errors import MedsegError
from medseg.evaluation.detection import MOST_BOXES, DetectedCase, score_labels
from medseg.losses_boxes import BoxLoss, Truth, focal_giou
from medseg.networks.anchor_grid import AnchorGrid, candidates
from medseg.planning.plan import Plan
from medseg.structures import Boxes, Prediction
from medseg.tasks.base import Batch, Metrics, Output, View
from medseg.tasks.segmentation import SegmentationTask
from medseg.tiling.blending import GaussianBlender
from medseg.tiling.fusion import CLUSTER, BoxMerger, Fusion
from medseg.volume import Array

SHOWN = 0.3
"""Score from which a box is drawn while a model trains; its working point is chosen at the end."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found in one window: the boxes of each view in its voxels, and the mean of their masks ``(K, *patch)``."""

    views: tuple[Boxes, ...]
    mask: Array | None


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a case, on the plan's grid: boxes by falling score, probabilities ``(K, *S)`` of the mask head."""

    boxes: Boxes
    mask: Array | None


class DetectionTask:
    """Boxes from anchors (or without), one fused set a case.

    Args:
        plan: gives labels, levels, anchors, and whether there is a mask to learn.
        loss: how outputs are compared with boxes; focal loss and GIoU unless given.
        fusion: how boxes that several views found of one lesion become one.
        iou: boxes that overlap by more are taken for one lesion; by default 0.1 in volumes, 0.4 in pictures, where lesions
            may touch.
        cluster: boxes of several views that overlap by more are averaged (`BoxMerger`).
        candidates: boxes of a view that are looked at, at most.
        floor: score below which a box of a view is not looked at.
        mask_weight: of the mask's Dice and cross-entropy in the sum of the losses.
        instances, smallest_mm3: how a mask becomes lesions; the plan was made with them and holds them (`BoxPlan.rule`).

    Raises:
        MedsegError: the plan has no boxes, or its labels are regions.
    """

    name = "detection"

    def __init__(
        self,
        plan: Plan,
        loss: BoxLoss | None = None,
        *,
        fusion: Fusion = "wbc",
        iou: float | None = None,
        cluster: float = CLUSTER,
        candidates: int = 500,
        floor: float = 0.02,
        mask_weight: float = 1.0,
        instances: bool = False,
        smallest_mm3: float = 0.0,
    ) -> None:
        if plan.boxes is None:
            raise MedsegError("task detection: the plan has no boxes; make one with medseg plan task=detection")
        if not plan.labels.exclusive:
            raise MedsegError(
                f"task detection: expected labels that exclude each other, found the regions {', '.join(plan.labels.regions)}"
            )
        del instances, smallest_mm3
        self.labels = plan.labels
        self._values = np.array(list(plan.labels.names), np.int64)
        self._class_of = {int(value): number for number, value in enumerate(self._values)}
        self._loss = focal_giou() if loss is None else loss
        self._grids = [
            AnchorGrid.of(plan.strides, plan.boxes.levels, anchors) for anchors in (plan.boxes.anchors, None)
        ]
        self._mask = SegmentationTask(plan.labels) if plan.boxes.masks else None
        self._mask_weight = mask_weight
        self._fusion: Fusion = fusion
        self._overlaps = {"iou": {2: 0.4, 3: 0.1}[plan.dimensions] if iou is None else iou, "cluster": cluster}
        self._candidates, self._floor = candidates, floor
        self.box_merger(plan.patch_size)  # an impossible fusion is named before any work

    @property
    def out_channels(self) -> int:
        return len(self.labels.names)

    def wants(self, case: StoredCase, rng: np.random.Generator) -> bool:
        return True

    def crop(
        self, case: StoredCase, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Uniform over the case, or anywhere about a lesion so that the crop holds all of it, or as much as it can.

        Labels take turns by chance, and of one label every lesion is as likely as any other, whatever its size.
        """
        room = np.array([n - p for n, p in zip(case.shape, patch_size, strict=True)])
        uniform = rng.random(len(room))
        least, most = np.where(room > 0, 0, room // 2), np.where(room > 0, room, room // 2)
        low, high = least, most
        if foreground and case.lesions is not None and len(case.lesions):
            present = np.unique(case.lesions.labels)
            of_label = np.flatnonzero(case.lesions.labels == present[int(rng.integers(len(present)))])
            first, last = np.split(case.lesions.boxes[of_label[int(rng.integers(len(of_label)))]], 2)
            # Of a lesion longer than the patch, the patch lies inside it.
            ends = np.sort([np.ceil(last) - patch_size, np.floor(first)], axis=0).astype(int)
            low, high = np.clip(ends, least, most)
        return tuple(int(a + np.floor(u * (b - a + 1))) for a, b, u in zip(low, high, uniform, strict=True))

    def target(
        self, case: StoredCase, label: Array | None, patch_size: Sequence[int], placed: Callable[[Array], Array]
    ) -> dict[str, Any]:
        """``truth``: the lesions that the crop shows (`medseg.data.lesions.seen_in_patch`); ``label``: their mask."""
        if case.lesions is None:
            raise MedsegError(
                f"case {case.id!r}: was not prepared for detection; prepare it with a plan that has boxes"
            )
        numbered = None if label is None else label[0]
        seen = seen_in_patch(placed(case.lesions.boxes), numbered, patch_size)
        classes = [self._class_of[int(value)] for value in case.lesions.labels[seen.numbers]]
        truth = Truth(
            torch.from_numpy(seen.boxes.astype(np.float32)),
            torch.tensor(classes, dtype=torch.int64),
            torch.from_numpy(seen.cut.astype(np.float32)),
        )
        if self._mask is None or label is None:
            return {"truth": truth}
        value_of = np.concatenate([[0], case.lesions.labels]).astype(np.int16)
        return {"truth": truth, "label": torch.from_numpy(value_of[label])}

    def loss(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of the box loss, and those of the mask as ``mask_…`` where the network gives one."""
        output = _named(output)
        terms = dict(self._loss(output, batch["truth"], self._grid(output)))
        if self._mask is not None and "mask" in output:
            masks = self._mask.loss(output["mask"], batch)
            terms |= {f"mask_{name}": self._mask_weight * value for name, value in masks.items()}
        return terms

    def combine(self, views: Iterable[View]) -> list[Answer]:
        found: list[list[Boxes]] = []
        total, count = None, 0
        for output, axes in views:
            output = _named(output)
            size = self._size(output)
            boxes = [self._mirrored(one, size, axes) for one in self._candidates_of(output)]
            found = found or [[] for _ in boxes]
            for window, one in zip(found, boxes, strict=True):
                window.append(one)
            if self._mask is not None and "mask" in output:
                mask = self._mask.activate(output["mask"])
                mask = mask.flip(axes) if axes else mask
                total = mask if total is None else total.add_(mask.to(total.device))
            count += 1
        masks = [None] * len(found) if total is None else list((total / count).cpu().numpy())
        return [Answer(tuple(window), mask) for window, mask in zip(found, masks, strict=True)]

    def box_merger(self, shape: Sequence[int]) -> BoxMerger:
        """A fresh merger of boxes alone, for a case of ``shape`` on the plan's grid."""
        return BoxMerger(shape, fusion=self._fusion, **self._overlaps)

    def merger(self, shape: Sequence[int], patch_size: Sequence[int]) -> _Merger:
        return _Merger(self, shape, patch_size)

    def shown(self, merged: Found, case: StoredCase) -> tuple[Boxes, Boxes]:
        boxes, scores = merged.boxes, merged.boxes.scores
        sure = np.zeros(0, bool) if scores is None else scores >= SHOWN
        return case.lesions or boxes.chosen(np.zeros(0, int)), boxes.chosen(sure)

    def metrics(self) -> Metrics:
        return _PrecisionOnGrid(self)

    def decode(self, case: str, merged: Found, restoration: Restoration, thresholds: Mapping[str, float]) -> Prediction:
        boxes, mask = restore_boxes(merged.boxes, restoration), None
        if self._mask is not None and merged.mask is not None:
            mask = self._mask.decode(case, merged.mask, restoration, {}).mask
        return Prediction(case, restoration.scan, self.labels, mask=mask, boxes=boxes, thresholds=thresholds)

    def score(self, output: Output, target: str, region: Tensor | None = None) -> Tensor:
        """The highest logit of ``target`` among the places that are centred in ``region`` (B, 1, *S): that of the box there."""
        output = _named(output)
        names = list(self.labels.names.values())
        if target not in names:
            raise MedsegError(f"the model has no target {target!r}; it has {', '.join(names)}")
        grid = self._grid(output)
        logits = grid.rows(output["scores"])[..., names.index(target)]
        if region is None:
            return logits.amax(1)
        shapes = [level.shape[2:] for level in output["scores"]]
        places = torch.cat(grid.places(shapes, logits.device))
        low, high = places.chunk(2, -1)
        voxel = tuple(((low + high) / 2).long().T)
        inside = region[(slice(None), 0, *voxel)] > 0
        lowest = torch.finfo(logits.dtype).min
        # Where the region holds no centre, the mean over all places keeps a gradient that says nothing in particular.
        best = logits.masked_fill(~inside, lowest).amax(1)
        return torch.where(inside.any(1), best, logits.mean(1))

    def _grid(self, output: Mapping[str, Any]) -> AnchorGrid:
        return next(grid for grid in self._grids if grid.codes in output)

    def _size(self, output: Mapping[str, Any]) -> list[int]:
        """Voxels of the window that an output speaks of."""
        strides = self._grid(output).strides[0]
        return [n * stride for n, stride in zip(output["scores"][0].shape[2:], strides, strict=True)]

    def _candidates_of(self, output: Mapping[str, Any]) -> list[Boxes]:
        """The best boxes of each window of a batch, in its voxels as the network saw them."""
        if not all(bool(level.isfinite().all()) for level in output["scores"]):
            raise MedsegError(
                "the network's scores are NaN or infinite: its weights are broken, or its number format is too narrow; try "
                "runtime.precision=float32"
            )
        found = candidates(output, self._grid(output), keep=self._candidates, above=self._floor)
        return [
            Boxes(
                one.boxes.double().cpu().numpy(),
                self._values[one.classes.cpu().numpy()],
                one.scores.double().cpu().numpy(),
            )
            for one in found
        ]

    def _mirrored(self, boxes: Boxes, size: Sequence[int], axes: Sequence[int]) -> Boxes:
        """Boxes of a mirrored window as they lie in the window itself; ``axes`` are those of the batch."""
        edges, half = boxes.boxes.copy(), len(size)
        for axis in (axis - 2 for axis in axes):
            low, high = boxes.boxes[:, axis], boxes.boxes[:, axis + half]
            edges[:, axis], edges[:, axis + half] = size[axis] - high, size[axis] - low
        return Boxes(edges, boxes.labels, boxes.scores)


class _Merger:
    """Fuses boxes and blends masks; keeps the `MOST_BOXES` surest boxes of each label."""

    def __init__(self, task: DetectionTask, shape: Sequence[int], patch_size: Sequence[int]) -> None:
        self._patch = tuple(patch_size)
        self._boxes = task.box_merger(shape)
        self._blender = None if task._mask is None else GaussianBlender(shape, task._mask.out_channels, self._patch)
        self._masks = 0

    def add(self, answer: Answer, lower: Sequence[int]) -> None:
        for boxes in answer.views:
            self._boxes.add(boxes, lower, self._patch)
        if self._blender is not None and answer.mask is not None:
            self._blender.add(answer.mask, lower)
            self._masks += 1

    def result(self) -> Found:
        boxes = self._boxes.result()
        rank = np.zeros(len(boxes), int)
        for value in np.unique(boxes.labels):
            rank[boxes.labels == value] = np.arange((boxes.labels == value).sum())
        mask = self._blender.result() if self._blender is not None and self._masks else None
        return Found(boxes.chosen(rank < MOST_BOXES), mask)


class _PrecisionOnGrid:
    """Average precision of each label on the plan's grid, pooled over the cases; the score is its mean over IoU 0.1 to 0.5."""

    def __init__(self, task: DetectionTask) -> None:
        self._task = task
        self._cases: list[DetectedCase] = []

    def update(self, merged: Found, case: StoredCase) -> None:
        if case.lesions is not None:
            self._cases.append(DetectedCase(case.id, merged.boxes, case.lesions, case.restoration.geometry))

    def compute(self) -> dict[str, float]:
        if not self._cases:
            return {"score": 0.0}
        figures: dict[str, float] = {}
        means = []
        for label in score_labels(self._cases, self._task.labels):
            values = dict(zip(label.metrics, label.measure(np.ones(len(self._cases))), strict=True))
            shown = {name: values[name] for name in ("ap_10", "ap_50", "cpm") if np.isfinite(values[name])}
            figures |= {f"{name}/{label.name}": float(value) for name, value in shown.items()}
            precisions = [values[f"ap_{share}"] for share in (10, 20, 30, 40, 50)]
            if np.isfinite(precisions).all():
                means.append(float(np.mean(precisions)))
        return {**figures, "score": float(np.mean(means)) if means else 0.0}


def _named(output: Output) -> dict[str, Any]:
    if not isinstance(output, dict):
        raise MedsegError(
            f"detection expects named outputs (scores, deltas or faces), found {type(output).__name__}; choose "
            "network=retina_unet, retinanet or anchor_free"
        )
    return output
