"""Several models' predictions of one scan become one: their labels side by side, in one mask and one list of boxes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medseg.errors import MedsegError
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Array


def combined_labels(tables: Mapping[str, LabelTable]) -> LabelTable:
    """One table of all labels, called ``<model>/<label>`` and numbered from 1 up in the order of the models."""
    names = [f"{model}/{name}" for model, table in tables.items() for name in table.names.values()]
    return LabelTable(dict(enumerate(names, start=1)))


def combine(predictions: Mapping[str, Prediction]) -> Prediction:
    """What several models say of one scan: masks painted into one, a later model over an earlier one, and all boxes by score.

    Args:
        predictions: model name → what it says of the same scan; a mask, boxes, classes, or several of these.

    Returns:
        A prediction with the labels of `combined_labels`. Each label of a model with boxes has a threshold, which tells it
        from those that only a mask knows; classes have those of their models. It holds no mask, boxes or classes where no model
        has any, and a set of classes where all models with classes have one.

    Raises:
        MedsegError: there is none, one holds nothing, or they lie on different grids.
    """
    if not predictions:
        raise MedsegError("expected the prediction of at least one model, found none")
    first = next(iter(predictions.values()))
    for name, prediction in predictions.items():
        if prediction.mask is None and prediction.boxes is None and not prediction.classes:
            raise MedsegError(f"model {name!r}: expected a mask, boxes or classes, found nothing")
        if not prediction.geometry.matches(first.geometry):
            raise MedsegError(
                f"model {name!r}: expected its result on the scan's own grid {first.geometry.describe()}, found "
                f"{prediction.geometry.describe()}"
            )
    labels = combined_labels({name: prediction.labels for name, prediction in predictions.items()})
    values = _new_values(predictions, labels)
    thresholds = {
        f"{name}/{label}": prediction.thresholds.get(label, 0.0)
        for name, prediction in predictions.items()
        if prediction.boxes is not None
        for label in prediction.labels.names.values()
    }
    mask, boxes = _painted(predictions, values), _ranked(predictions, values)
    of_classes = {name: found for name, found in predictions.items() if found.classes}
    thresholds |= {f"{name}/{label}": t for name, found in of_classes.items() for label, t in found.thresholds.items()}
    classes = {f"{name}/{label}": p for name, found in of_classes.items() for label, p in found.classes.items()}
    sets = [(name, found.class_set) for name, found in of_classes.items() if found.class_set is not None]
    inside = tuple(f"{name}/{label}" for name, held in sets for label in held)
    return Prediction(
        first.case,
        first.geometry,
        labels,
        mask=mask,
        boxes=boxes,
        thresholds=thresholds,
        classes=classes,
        class_set=inside if sets and len(sets) == len(of_classes) else None,
    )


def _new_values(predictions: Mapping[str, Prediction], labels: LabelTable) -> dict[str, Array]:
    """Model name → for each of its label values the value in the table of all; background stays 0."""
    found, before = {}, 0
    for name, prediction in predictions.items():
        old = list(prediction.labels.names)
        values = np.zeros(max(old) + 1, np.min_scalar_type(max(labels.names)))
        values[old] = before + 1 + np.arange(len(old))
        found[name], before = values, before + len(old)
    return found


def _painted(predictions: Mapping[str, Prediction], values: Mapping[str, Array]) -> Array | None:
    """One mask of all, or None where there is none."""
    mask: Array | None = None
    for name, prediction in predictions.items():
        if prediction.mask is None:
            continue
        painted = values[name][prediction.mask]
        if mask is None:
            mask = painted
        else:
            np.copyto(mask, painted, where=painted > 0)
    return mask


def _ranked(predictions: Mapping[str, Prediction], values: Mapping[str, Array]) -> Boxes | None:
    """All candidates by falling score (a box without one is sure), or None where no model looks for boxes."""
    found = {name: prediction.boxes for name, prediction in predictions.items() if prediction.boxes is not None}
    if not found:
        return None
    edges = np.concatenate([boxes.boxes for boxes in found.values()])
    labels = np.concatenate([values[name][boxes.labels] for name, boxes in found.items()]).astype(np.int64)
    scores = np.concatenate([np.ones(len(b)) if b.scores is None else b.scores for b in found.values()])
    return Boxes(edges, labels, scores).chosen(np.argsort(-scores, kind="stable"))
