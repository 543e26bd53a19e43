"""Several models' predictions of one scan become one: their labels side by side in one mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medseg.errors import MedsegError
from medseg.structures import LabelTable, Prediction


def combined_labels(tables: Mapping[str, LabelTable]) -> LabelTable:
    """One table of all labels, called ``<model>/<label>`` and numbered from 1 up in the order of the models."""
    names = [f"{model}/{name}" for model, table in tables.items() for name in table.names.values()]
    return LabelTable(dict(enumerate(names, start=1)))


def combine(predictions: Mapping[str, Prediction]) -> Prediction:
    """Paint the masks of several models into one, a later model over an earlier one.

    Args:
        predictions: model name → what it says of the same scan.

    Returns:
        A prediction with the labels of `combined_labels`.

    Raises:
        MedsegError: there is none, one holds no mask, or they lie on different grids.
    """
    if not predictions:
        raise MedsegError("expected the prediction of at least one model, found none")
    first = next(iter(predictions.values()))
    labels = combined_labels({name: prediction.labels for name, prediction in predictions.items()})
    mask = np.zeros(first.geometry.shape, np.min_scalar_type(max(labels.names)))
    before = 0
    for name, prediction in predictions.items():
        if prediction.mask is None or not prediction.geometry.matches(first.geometry):
            raise MedsegError(f"model {name!r}: expected a mask on the scan's own grid {first.geometry.describe()}")
        new_values = np.zeros(max(prediction.labels.names) + 1, mask.dtype)
        new_values[list(prediction.labels.names)] = before + 1 + np.arange(len(prediction.labels.names))
        painted = new_values[prediction.mask]
        np.copyto(mask, painted, where=painted > 0)
        before += len(prediction.labels.names)
    return Prediction(first.case, first.geometry, labels, mask=mask)
