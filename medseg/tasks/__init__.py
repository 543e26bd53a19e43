"""What is asked of a scan. A task's spec is plain data, so that a model folder can hold it and nothing foreign is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError

if TYPE_CHECKING:
    from medseg.planning.plan import Plan
    from medseg.tasks.base import Task

TASKS = ("segmentation", "detection")


def build_task(spec: Mapping[str, Any], plan: Plan, loss: Callable[..., Any] | None = None) -> Task:
    """The task that ``spec`` (``{"name": "segmentation", **options}``) names, for the labels and boxes of ``plan``.

    Args:
        loss: builder of the task's loss with its options bound; the task's own choice unless given.

    Raises:
        MedsegError: a task or an option that does not exist, or a plan that was made for another task.
    """
    from medseg.tasks.detection import DetectionTask
    from medseg.tasks.segmentation import SegmentationTask

    name, options = spec.get("name"), {str(key): value for key, value in spec.items() if key != "name"}
    if name not in TASKS:
        raise MedsegError(f"task {name!r}: expected one of {', '.join(TASKS)}")
    if plan.task != name:
        raise MedsegError(f"task {name}: the plan was made for {plan.task}; make one with medseg plan task={name}")
    kind = DetectionTask if name == "detection" else SegmentationTask
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise MedsegError(f"task {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    check_loss(spec, loss)
    if name == "detection":
        return DetectionTask(plan, None if loss is None else loss(), **options)
    return SegmentationTask(plan.labels, None if loss is None else loss(exclusive=plan.labels.exclusive))


def check_loss(spec: Mapping[str, Any], loss: Callable[..., Any] | None) -> None:
    """Raises MedsegError for a loss of another task: one of masks is told whether labels exclude each other, one of boxes not."""
    if loss is None:
        return
    parameters = inspect.signature(loss).parameters
    of_masks = "exclusive" in parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    name = getattr(getattr(loss, "func", loss), "__name__", repr(loss))
    if spec.get("name") == "detection" and of_masks:
        raise MedsegError(
            f"loss: {name}() compares masks, task=detection compares boxes; expected loss=focal_giou, hard_negative_giou or "
            "quality_giou"
        )
    if spec.get("name") == "segmentation" and not of_masks and not takes_all:
        raise MedsegError(
            f"loss: {name}() takes no 'exclusive' and so compares no masks, as task=segmentation does; expected loss=dice_ce, "
            "dice_focal, tversky or generalized_dice, or say task=detection"
        )
