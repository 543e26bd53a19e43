"""Several models' masks become one, later ones on top, with names that say which model."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.inference.combine import combine
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry

GRID = Geometry.from_spacing((4, 4, 4), (1, 1, 1))


def prediction(names: dict[int, str], values: dict[int, int], grid: Geometry = GRID) -> Prediction:
    """A mask whose slice ``i`` is labelled ``values[i]``."""
    mask = np.zeros(grid.shape, np.uint8)
    for i, value in values.items():
        mask[i] = value
    return Prediction("a", grid, LabelTable(names), mask=mask)


def test_labels_are_renumbered_in_the_order_of_the_models_and_later_ones_lie_on_top():
    organs = prediction({2: "liver", 5: "spleen"}, {0: 2, 1: 5, 2: 2})
    lesions = prediction({1: "lesion"}, {2: 1})
    both = combine({"organs": organs, "lesions": lesions})
    assert dict(both.labels.names) == {1: "organs/liver", 2: "organs/spleen", 3: "lesions/lesion"}
    assert [int(both.mask[i, 0, 0]) for i in range(4)] == [1, 2, 3, 0]
    assert both.mask.dtype == np.uint8


def test_masks_on_different_grids_are_refused():
    other = Geometry.from_spacing((4, 4, 4), (2, 1, 1))
    with pytest.raises(MedsegError, match="'b': expected a mask on the scan's own grid"):
        combine({"a": prediction({1: "x"}, {}), "b": prediction({1: "x"}, {}, other)})


def test_more_than_255_labels_still_fit():
    many = prediction({i: f"l{i}" for i in range(1, 201)}, {0: 200})
    both = combine({"a": many, "b": many})
    assert both.mask[0, 0, 0] == 400
