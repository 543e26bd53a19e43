"""What counts as one lesion of a prediction, and how large each is: one list, with the same ids in every file and report.

Where a model answers with boxes, its findings are the lesions, and nothing else is: a component of its mask that no finding
holds is one that the working point turned down. The voxels of its label inside a finding say how large that is. Of a label
that no model answers with boxes, a lesion is a component (26 neighbours, 8 in a picture), if the label names something
abnormal; which ones do is said by the caller. Ids run from 1: findings by falling score, as in ``boxes.json``, then
components by falling size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from medseg.evaluation.lesions import component_slabs, label_windows
from medseg.structures import Prediction, marked
from medseg.volume import Array


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion of a prediction; lengths are in the unit of the scan's own grid (mm, or px where spacing is unknown).

    Args:
        id: from 1.
        label: name of its label or region.
        box_vox: ``(2·D,)`` half-open voxel edges; of the model's box, else of the voxels.
        diameter: its longest extent within one slice, planes of the axes i and j: the longest distance between two corners
            of its voxels, or, of a box without voxels, its longer side.
        score: None where the model gives none.
        size: mm³ of its voxels (mm² of a picture, px); None for a box without voxels.
        is_box: whether it is a box of the model's, rather than a component of its mask.
    """

    id: int
    label: str
    box_vox: Array
    diameter: float
    score: float | None = None
    size: float | None = None
    is_box: bool = False


def lesions_of(prediction: Prediction, lesion_labels: Collection[str]) -> list[Lesion]:
    """The lesions of a prediction by id: its findings, and the components of ``lesion_labels`` (names of labels or regions)
    that it does not answer with boxes."""
    boxed = boxed_labels(prediction)
    ours = [name for name in lesion_labels if name not in boxed]
    windows = label_windows(prediction.mask, prediction.labels) if ours and prediction.mask is not None else {}
    parts = [one for name in ours if name in windows for one in _of_mask(prediction, name, windows[name])]
    parts.sort(key=lambda one: -(one.size or 0.0))
    return [replace(one, id=number) for number, one in enumerate([*_of_boxes(prediction), *parts], 1)]


def boxed_labels(prediction: Prediction) -> set[str]:
    """Labels that the prediction answers with boxes, whether or not it holds one: those that have a working point (all where
    none is set, as in a prediction of one model), and those of any candidate."""
    if prediction.boxes is None:
        return set()
    names = prediction.labels.names
    pointed = set(prediction.thresholds) - set(prediction.classes)
    return {*(pointed or names.values()), *(names[int(value)] for value in prediction.boxes.labels)}


def longest_diameter(region: Array, spacing: tuple[float, ...]) -> float:
    """The longest distance between two corners of the voxels of ``region`` (*S, bool) that lie in one slice (i, j)."""
    longest = 0.0
    for plane in np.moveaxis(region, 2, 0) if region.ndim == 3 else region[None]:
        lines = np.flatnonzero(plane.any(axis=1))
        if not len(lines):
            continue
        first = plane[lines].argmax(axis=1)
        last = plane.shape[1] - plane[lines, ::-1].argmax(axis=1)
        corners = [(lines + i, j) for i in (0, 1) for j in (first, last)]
        points = np.concatenate([np.stack(corner, axis=1) for corner in corners]) * spacing[:2]
        if np.linalg.norm(np.ptp(points, axis=0)) > longest:
            longest = max(longest, float(pdist(points[ConvexHull(points).vertices]).max()))
    return longest


def _of_boxes(prediction: Prediction) -> Iterator[Lesion]:
    """A lesion a finding by falling score, not numbered yet."""
    if prediction.findings is None:
        return
    boxes, spacing = prediction.findings.ranked(), prediction.geometry.spacing
    for number, (edges, value) in enumerate(zip(boxes.boxes, boxes.labels, strict=True)):
        box = np.asarray(edges, np.float64)
        score = None if boxes.scores is None else float(boxes.scores[number])
        diameter = float(max(_sides(box)[:2] * spacing[:2]))
        one = Lesion(0, prediction.labels.names[int(value)], box, diameter, score, is_box=True)
        if prediction.mask is not None:
            region = prediction.mask[_window(box, prediction.mask.shape)] == value
            if region.any():
                diameter, size = _measured(region, prediction)
                one = replace(one, diameter=diameter, size=size)
        yield one


def _of_mask(prediction: Prediction, name: str, window: tuple[slice, ...]) -> Iterator[Lesion]:
    """A lesion a component of a label, which lies in ``window``, not numbered yet."""
    if prediction.mask is None:
        return
    corner = np.array([part.start for part in window])
    found: dict[int, Lesion] = {}
    # A plane lies in one slab, whole: diameters within it are those of the component.
    for first, labelled in component_slabs(marked(prediction.mask[window], prediction.labels.targets[name])):
        corner[-1] = window[-1].start + first
        for number, part in enumerate(ndimage.find_objects(labelled), 1):
            if part is not None:
                low, high = (corner + [getattr(side, end) for side in part] for end in ("start", "stop"))
                diameter, size = _measured(labelled[part] == number, prediction)
                here = Lesion(0, name, np.concatenate([low, high]).astype(np.float64), diameter, size=size)
                found[number] = _together(found[number], here) if number in found else here
    yield from found.values()


def _together(one: Lesion, other: Lesion) -> Lesion:
    """Two parts of a component that share no plane of the axes i and j."""
    half = len(one.box_vox) // 2
    low = np.minimum(one.box_vox[:half], other.box_vox[:half])
    high = np.maximum(one.box_vox[half:], other.box_vox[half:])
    size = (one.size or 0.0) + (other.size or 0.0)
    return replace(one, box_vox=np.concatenate([low, high]), diameter=max(one.diameter, other.diameter), size=size)


def _measured(region: Array, prediction: Prediction) -> tuple[float, float]:
    """Diameter and size of the voxels of a lesion."""
    geometry = prediction.geometry
    size = int(np.count_nonzero(region)) * geometry.voxel_volume
    return longest_diameter(region, geometry.spacing), size


def _window(box: Array, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The voxels whose centres lie in a box."""
    edges = np.clip(np.ceil(box - 0.5), 0, np.tile(shape, 2)).astype(int)
    return tuple(slice(int(low), int(high)) for low, high in edges.reshape(2, -1).T)


def _sides(box: Array) -> Array:
    """How many voxels a box is wide along each axis."""
    return np.asarray(box[len(box) // 2 :] - box[: len(box) // 2])
