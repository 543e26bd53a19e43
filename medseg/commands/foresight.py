"""What a run of ``medseg predict`` will take of the memory, said before the first case and refused where it cannot be.

It is known from headers alone; no pixel is read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from medseg.data.preprocess import Restoration, whole_restoration
from medseg.errors import MedsegError
from medseg.inference.memory import GB, Memory, said
from medseg.inference.predictor import Predictor
from medseg.planning.plan import Plan
from medseg.scans import read_geometry, value_bytes
from medseg.structures import Case

logger = logging.getLogger(__name__)
_LOOKED_AT = 16
"""Cases whose headers are looked at: those with the largest files."""


def foresee(
    predictors: Mapping[str, Predictor], cases: Sequence[Case], memory: Memory, *, scores: bool, workers: int
) -> Memory:
    """Say in one line what the largest case will take.

    Returns:
        The memory, with the number of cases that can be read and written beside the one that is predicted.

    Args:
        scores: whether the scores of voxels are kept (`Predictor.outcome`).
        workers: scans that would be read ahead; with 0 nothing is read or written beside the case that is predicted.

    Raises:
        MedsegError: the memory that the user grants is too small for one case; says the smallest that works.
    """
    plan = next(iter(predictors.values())).plan
    found = list(_largest(cases, plan))
    if not found:
        return memory  # reading says what is wrong with them
    for beside in (workers + 1, 0) if workers else (0,):
        memory = replace(memory, beside=beside)
        needs = [(_need(predictors, way, size, memory, scores), case, way.scan) for case, way, size in found]
        need, case, geometry = max(needs, key=lambda entry: entry[0])
        if need <= memory.total:
            break
    one_by_one = "" if memory.beside else "; cases are read, predicted and written one after another"
    room = f"{said(memory.total)} {'granted' if memory.given else 'free'}{one_by_one}"
    logger.info("memory: %s at most, expected for %s (%s); %s", said(need), case, geometry.describe(), room)
    if need > memory.total and memory.given:
        raise MedsegError(
            f"runtime.memory_gb={memory.total / GB:g}: case {case!r} ({geometry.describe()}) takes {said(need)}. "
            f"The smallest that works is runtime.memory_gb={math.ceil(1.02 * need / GB * 10) / 10:g}"
        )
    if need > memory.total:
        logger.warning("memory: %s may not fit into what is free", case)
    return memory


def _need(predictors: Mapping[str, Predictor], way: Restoration, scan_bytes: int, memory: Memory, scores: bool) -> int:
    """Bytes that the process will have: the masks of all models are there together, their sums one after another."""
    burdens = [
        predictor.burden(whole_restoration(way.scan, predictor.plan), scan_bytes, memory, scores=scores)
        for predictor in predictors.values()
    ]
    masks = (len(burdens) - 1) * burdens[0].mask
    return memory.resident + max(burden.total for burden in burdens) + masks


def _largest(cases: Sequence[Case], plan: Plan) -> Iterator[tuple[str, Restoration, int]]:
    """Of the cases with the largest files: id, grid, and bytes of all channels once they are read."""

    def stored(case: Case) -> int:
        try:
            return sum(file.stat().st_size for source in case.images for file in source.distinct_files)
        except OSError:
            return 0

    for case in sorted(cases, key=stored, reverse=True)[:_LOOKED_AT]:
        try:
            geometry = read_geometry(case.images[0], plan.options)
            size = math.prod(geometry.shape) * sum(value_bytes(source) for source in case.images)
            yield case.id, whole_restoration(geometry, plan), size
        except (MedsegError, OSError):
            continue  # reading it says what is wrong
