"""Entropy of voxels, and of the labels that were predicted."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.inference.uncertainty import entropy_of, uncertainty_of_labels
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry

ORGANS = LabelTable({1: "liver", 4: "lesion"})
REGIONS = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "inner": (2,)}, paint=(1, 2))


def test_a_sure_voxel_has_no_entropy_and_one_where_all_is_as_likely_has_one() -> None:
    probabilities = np.array([[[1.0, 1 / 3, 0.5]], [[0.0, 1 / 3, 0.5]], [[0.0, 1 / 3, 0.0]]])
    found = entropy_of(probabilities, ORGANS)
    assert found.shape == (1, 3)
    np.testing.assert_allclose(found[0], [0.0, 1.0, np.log(2) / np.log(3)], atol=1e-4)


def test_of_regions_the_least_sure_one_counts_in_bits() -> None:
    probabilities = np.array([[1.0, 0.5, 0.9], [0.0, 0.0, 0.25]])
    expected = [0.0, 1.0, 0.25 * 2 + 0.75 * np.log2(4 / 3)]
    np.testing.assert_allclose(entropy_of(probabilities, REGIONS), expected, atol=1e-4)


def test_each_predicted_label_has_the_mean_of_its_voxels() -> None:
    mask = np.array([[0, 1], [4, 4]], np.uint8)
    grid = Geometry.from_spacing((2, 2), (1.0, 1.0))
    found = uncertainty_of_labels(np.array([[0.9, 0.1], [0.2, 0.4]]), Prediction("a", grid, ORGANS, mask=mask))
    assert found == pytest.approx({"liver": 0.1, "lesion": 0.3})
    nothing = Prediction("a", grid, ORGANS, mask=np.zeros((2, 2), np.uint8))
    assert uncertainty_of_labels(np.zeros((2, 2)), nothing) == {}
