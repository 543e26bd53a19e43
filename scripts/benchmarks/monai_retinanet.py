"""MONAI's `RetinaNetDetector` around the outputs of medseg's RetinaNet, for the comparison in ``detectors.py``.

MONAI's are the anchors' places, the ATSS matcher, the sampler of hard negatives, the losses, the sliding window, the selection of
boxes and the NMS, with the settings of its own tutorial (Project-MONAI/tutorials, ``detection/luna16_training.py``); its code
is unchanged. medseg's are the network, the crops and everything else about training and data. In both, boxes are half-open
edges ``(i0, j0, k0, i1, j1, k1)``, channel ``a·C + c`` of a map speaks of anchor ``a``, and anchors are centred on cells wherever
a stride is even (MONAI centres those of an odd stride half a voxel lower).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from monai.apps.detection.networks import retinanet_detector
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.data.box_utils import clip_boxes_to_image
from torch import Tensor, nn

from medseg.data.lesions import restore_boxes
from medseg.data.preprocess import preprocess
from medseg.errors import MedsegError
from medseg.inference.runtime import TorchRuntime
from medseg.losses_boxes import Truth
from medseg.model import Model
from medseg.networks.anchor_grid import AnchorGrid
from medseg.scans import read_case
from medseg.structures import Boxes, Case, Prediction
from medseg.tiling.windows import cut_window
from medseg.volume import Array

NMS_IOU = 0.22
"""Of the tutorial. The other settings are its own too, but for a lower score from which boxes are kept (0.02, as medseg has it,
not 0.05): AP and FROC need the unsure ones."""

if not isinstance(retinanet_detector.Matcher, type):
    # Training asks whether the matcher is torchvision's, even with ATSS; without torchvision that name is no class.
    retinanet_detector.Matcher = type("Matcher", (), {})


class Heads(nn.Module):
    """Outputs of medseg's detection networks as MONAI's detector wants them.

    Args:
        answers: images ``(B, C, *S)`` → ``scores`` and ``deltas``, a list of levels each (`medseg.networks.retina`).
        divisor: what MONAI pads the sizes of images to multiples of.

    Raises:
        MedsegError: levels with different numbers of anchors, which MONAI's detector does not know (`evened`).
    """

    cls_key, box_reg_key = "classification", "box_regression"

    def __init__(
        self, answers: Callable[[Tensor], Mapping[str, Any]], grid: AnchorGrid, classes: int, divisor: Sequence[int]
    ) -> None:
        super().__init__()
        if len(set(grid.per_cell)) > 1:
            raise MedsegError(
                f"MONAI's detector: expected as many anchors on every level, found {list(grid.per_cell)}; set plan.boxes.anchors"
            )
        self.answers, self.size_divisible = answers, tuple(divisor)
        self.spatial_dims, self.num_classes, self.num_anchors = grid.dimensions, classes, grid.per_cell[0]

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        output = self.answers(images)
        return {self.cls_key: list(output["scores"]), self.box_reg_key: list(output["deltas"])}


class MonaiLoss:
    """The losses of MONAI's detector, as a `medseg.losses_boxes.BoxLoss`: ``loss._target_=…MonaiLoss``.

    MONAI has no lesions that are nobody's business: where less than half of one is seen in a crop, it counts as background.
    """

    def __call__(self, output: Mapping[str, Any], truth: Sequence[Truth], grid: AnchorGrid) -> dict[str, Tensor]:
        first = output["scores"][0]
        with torch.autocast(first.device.type, enabled=False):
            said = {name: [level.float() for level in output[name]] for name in ("scores", "deltas")}
            if not all(bool(level.isfinite().all()) for levels in said.values() for level in levels):
                return {Heads.cls_key: first.sum() * torch.nan}  # MONAI would raise; the training loop says it better
            window = [n * stride for n, stride in zip(first.shape[2:], grid.strides[0], strict=True)]
            detector = make_detector(lambda _: said, grid, first.shape[1] // grid.per_cell[0], [1] * grid.dimensions)
            images = first.new_zeros(()).expand(len(truth), 1, *window)  # only their size is looked at
            terms = detector(images, [{"boxes": sample.boxes.float(), "labels": sample.classes} for sample in truth])
        return {name: term.to(first.device) for name, term in terms.items()}


class MonaiFinder:
    """What MONAI's detector finds in a case with the weights of a model, on the scan's own grid.

    Its windows overlap by half as medseg's do, rounded so that each begins on a whole cell of every level, and cases smaller than
    the patch are padded at their end beforehand: MONAI pads on both sides, by parts of a cell. It has no mirroring.
    """

    def __init__(self, model: Model) -> None:
        plan = model.plan
        if plan.boxes is None:
            raise MedsegError("MONAI's detector: the plan of this model has no boxes; train it with task=detection")
        self.plan = plan
        grid = AnchorGrid.of(plan.strides, plan.boxes.levels, plan.boxes.anchors)
        self._values = np.array(list(plan.labels.names), np.int64)
        self._runtime = TorchRuntime(model.network_module())
        self._detector = make_detector(self._runtime, grid, len(self._values), plan.divisor).eval()
        steps = [max(n // 2 // divisor, 1) * divisor for n, divisor in zip(plan.patch_size, plan.divisor, strict=True)]
        overlap = [max(0.0, 1 - (step + 0.5) / n) for step, n in zip(steps, plan.patch_size, strict=True)]
        self._detector.set_sliding_window_inferer(plan.patch_size, overlap=overlap, mode="constant")

    def predict(self, case: Case) -> Prediction:
        """Raises MedsegError where the case cannot be read or does not fit the plan."""
        volume = read_case(case, self.plan.options)
        array, restoration = preprocess(volume, self.plan)
        boxes = restore_boxes(self.found(array), restoration)
        return Prediction(case.id, restoration.scan, self.plan.labels, boxes=boxes)

    def found(self, array: Array) -> Boxes:
        """A preprocessed case ``(C, *S)`` → boxes on the plan's grid, by falling score."""
        shape = array.shape[1:]
        size = [max(n, patch) for n, patch in zip(shape, self.plan.patch_size, strict=True)]
        image = torch.from_numpy(cut_window(array, (0,) * len(shape), size).astype(np.float32))[None]
        with torch.inference_mode():
            (said,) = self._detector(image.to(self._runtime.device), use_inferer=True)
            edges, kept = clip_boxes_to_image(said["boxes"], shape, remove_empty=True)
        scores = said["labels_scores"][kept].double().cpu().numpy()
        order = np.argsort(-scores, kind="stable")
        labels = self._values[said["labels"][kept].cpu().numpy()]
        return Boxes(edges.double().cpu().numpy()[order], labels[order], scores[order])


def make_detector(
    answers: Callable[[Tensor], Mapping[str, Any]], grid: AnchorGrid, classes: int, divisor: Sequence[int]
) -> RetinaNetDetector:
    """MONAI's detector of ``answers`` (see `Heads`) with the anchors of ``grid``, set up as in MONAI's tutorial."""
    detector = RetinaNetDetector(Heads(answers, grid, classes, divisor), anchors_of(grid))
    detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
    detector.set_hard_negative_sampler(batch_size_per_image=64, positive_fraction=0.3, pool_size=20, min_neg=16)
    detector.set_box_selector_parameters(
        score_thresh=0.02, topk_candidates_per_level=1000, nms_thresh=NMS_IOU, detections_per_img=100
    )
    return detector


def anchors_of(grid: AnchorGrid) -> AnchorGeneratorWithAnchorShape:
    """MONAI's generator with the anchors of ``grid``, whose sizes it is kept from rounding to even numbers of voxels."""
    if grid.anchors is None:
        raise MedsegError("MONAI's detector: needs anchors, found a grid without")
    generator = AnchorGeneratorWithAnchorShape([1] * len(grid.anchors), grid.anchors[0])
    halves = [torch.tensor(level) / 2 for level in grid.anchors]
    generator.cell_anchors = [torch.cat((-half, half), 1) for half in halves]
    return generator


def evened(anchors: Sequence[Sequence[Sequence[float]]]) -> list[list[list[float]]]:
    """The same anchors, those of a level repeated in turn until every level has as many as MONAI's detector expects."""
    most = max(map(len, anchors))
    return [[list(size) for size in islice(cycle(level), most)] for level in anchors]
