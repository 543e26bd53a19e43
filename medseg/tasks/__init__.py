"""What is asked of a scan. A task's spec is plain data, so that a model folder can hold it and nothing foreign is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError
from medseg.structures import LabelTable

if TYPE_CHECKING:
    from medseg.losses import Loss
    from medseg.tasks.base import Task

TASKS = ("segmentation",)


def build_task(spec: Mapping[str, Any], labels: LabelTable, loss: Loss | None = None) -> Task:
    """The task that ``spec`` names (``{"name": "segmentation"}``). Raises MedsegError for one that does not exist."""
    from medseg.tasks.segmentation import SegmentationTask

    if spec.get("name") != "segmentation":
        raise MedsegError(f"task {spec.get('name')!r}: expected one of {', '.join(TASKS)}")
    options = sorted(set(spec) - {"name"})
    if options:
        raise MedsegError(f"task segmentation has no option {', '.join(options)}")
    return SegmentationTask(labels, loss)
