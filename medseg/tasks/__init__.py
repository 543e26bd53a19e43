"""What is asked of a scan. A task's spec is plain data, so that a model folder can hold it and nothing foreign is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError

if TYPE_CHECKING:
    from medseg.planning.plan import Plan
    from medseg.tasks.base import Task

TASKS = ("segmentation", "detection", "classification")


def build_task(spec: Mapping[str, Any], plan: Plan, loss: Callable[..., Any] | None = None) -> Task:
    """The task that ``spec`` (``{"name": "segmentation", **options}``) names, for the labels and boxes of ``plan``.

    Args:
        loss: builder of the task's loss with its options bound; the task's own choice unless given.

    Raises:
        MedsegError: a task or an option that does not exist, or a plan that was made for another task.
    """
    from medseg.tasks.classification import ClassificationTask
    from medseg.tasks.detection import DetectionTask
    from medseg.tasks.segmentation import SegmentationTask

    name, options = spec.get("name"), {str(key): value for key, value in spec.items() if key != "name"}
    if name not in TASKS:
        raise MedsegError(f"task {name!r}: expected one of {', '.join(TASKS)}")
    if plan.task != name:
        raise MedsegError(f"task {name}: the plan was made for {plan.task}; make one with medseg plan task={name}")
    kind = {"detection": DetectionTask, "classification": ClassificationTask}.get(str(name), SegmentationTask)
    known = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise MedsegError(f"task {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    check_loss(spec, loss)
    if name == "detection":
        return DetectionTask(plan, None if loss is None else loss(), **options)
    if name == "classification":
        shares = () if plan.classes is None else plan.classes.shares
        several = bool(options.get("multilabel", False))
        return ClassificationTask(plan, None if loss is None else loss(multilabel=several, shares=shares), **options)
    chosen = None if loss is None else loss(exclusive=plan.labels.exclusive)
    return SegmentationTask(plan.labels, chosen, plan.conventions)


_TOLD = {"segmentation": "exclusive", "classification": "multilabel"}
"""What the builder of a loss is told, and by which it is known which task it is for; one of boxes is told nothing."""
_COMPARES = {"segmentation": "masks", "detection": "boxes", "classification": "classes"}
_LOSSES = {
    "segmentation": "dice_ce, dice_focal, tversky or generalized_dice",
    "detection": "focal_giou, hard_negative_giou or quality_giou",
    "classification": "cross_entropy or focal_classes",
}


def check_loss(spec: Mapping[str, Any], loss: Callable[..., Any] | None) -> None:
    """Raises MedsegError for a loss of another task."""
    if loss is None:
        return
    parameters = inspect.signature(loss).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    task = str(spec.get("name"))
    of = next((name for name, word in _TOLD.items() if word in parameters), "detection")
    name = getattr(getattr(loss, "func", loss), "__name__", repr(loss))
    if task in _COMPARES and of != task:
        told = f" (its builder takes no '{_TOLD[task]}')" if task in _TOLD else ""
        raise MedsegError(
            f"loss: {name}() compares {_COMPARES[of]}, task={task} compares {_COMPARES[task]}{told}; expected "
            f"loss={_LOSSES[task]}"
        )
