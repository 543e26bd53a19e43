"""What counts as one lesion of a prediction, and how large each is: one list, with the same ids in every file and report.

A lesion is a box, or a component (26 neighbours, 8 in a picture) of a label that names something abnormal. Where a model
gives both, the voxels inside a box that bear its label are the box's, and a component that no box of its label touches is a
lesion by itself. Ids run from 1 by falling score; what has no score comes behind, by falling size. Which labels name
something abnormal is said by the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from medseg.evaluation.lesions import bounding_box, component_sizes, components
from medseg.structures import Prediction
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
    """

    id: int
    label: str
    box_vox: Array
    diameter: float
    score: float | None = None
    size: float | None = None


def lesions_of(prediction: Prediction, lesion_labels: Collection[str]) -> list[Lesion]:
    """The lesions of a prediction by id: all its boxes, and the components of ``lesion_labels`` (names of labels or regions)."""
    found = [*_of_boxes(prediction), *(one for name in lesion_labels for one in _of_mask(prediction, name))]
    volumes = [one.size or _volume(one.box_vox) * prediction.geometry.voxel_volume for one in found]
    order = sorted(range(len(found)), key=lambda n: (found[n].score is None, -(found[n].score or 0.0), -volumes[n]))
    return [replace(found[n], id=number) for number, n in enumerate(order, 1)]


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
    """A lesion a box, not numbered yet."""
    boxes = prediction.boxes
    if boxes is None:
        return
    spacing = prediction.geometry.spacing
    for number, (box, value) in enumerate(zip(boxes.boxes, boxes.labels, strict=True)):
        name = prediction.labels.names.get(int(value), str(value))
        box = np.asarray(box, np.float64)
        one = Lesion(0, name, box, float(max(_sides(box)[:2] * spacing[:2])))
        if boxes.scores is not None:
            one = replace(one, score=float(boxes.scores[number]))
        if prediction.mask is not None:
            region = prediction.mask[_window(box, prediction.mask.shape)] == value
            if region.any():
                diameter, size = _measured(region, prediction)
                one = replace(one, diameter=diameter, size=size)
        yield one


def _of_mask(prediction: Prediction, name: str) -> Iterator[Lesion]:
    """A lesion a component of a label that no box of this label touches, not numbered yet."""
    mask, values = prediction.mask, prediction.labels.targets.get(name)
    if mask is None or values is None:
        return
    region = np.isin(mask, values)
    window = bounding_box(region)
    if window is None:
        return
    labelled, count = components(region[window])
    corner = np.array([part.start for part in window])
    taken = _taken(prediction, values, labelled, corner)
    sizes = component_sizes(labelled, count)
    for number, part in enumerate(ndimage.find_objects(labelled), 1):
        if number in taken or not sizes[number - 1]:
            continue
        low, high = ([getattr(side, end) for side in part] for end in ("start", "stop"))
        box = np.concatenate([corner + low, corner + high]).astype(np.float64)
        diameter, size = _measured(labelled[part] == number, prediction)
        yield Lesion(0, name, box, diameter, size=size)


def _taken(prediction: Prediction, values: Sequence[int], labelled: Array, corner: Array) -> set[int]:
    """Components that belong to boxes; ``corner`` is where ``labelled`` begins on the grid."""
    boxes = prediction.boxes
    if boxes is None:
        return set()
    shifted = (np.asarray(box, np.float64) - np.tile(corner, 2) for box in boxes.boxes[np.isin(boxes.labels, values)])
    return {int(one) for box in shifted for one in np.unique(labelled[_window(box, labelled.shape)])}


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


def _volume(box: Array) -> float:
    return float(np.prod(_sides(box)))
