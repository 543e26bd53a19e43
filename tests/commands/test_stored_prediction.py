"""What a result folder says of a case is read back as it was written."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.commands.stored_prediction import StoredPredictions
from medseg.errors import MedsegError
from medseg.export.boxes import write_boxes
from medseg.export.classes import write_classes
from medseg.export.nifti import write_mask
from medseg.structures import Boxes, Prediction
from medseg.volume import Geometry
from tests.tiny import LABELS

GRID = Geometry.from_spacing((8, 6, 5), (0.7, 0.8, 2.0))


def test_masks_and_boxes_come_back_with_the_working_point(tmp_path):
    mask = np.zeros(GRID.shape, np.uint8)
    mask[2:4, 1:3, 1:4] = 3
    boxes = Boxes(np.array([[2, 1, 1, 4, 3, 4], [0, 0, 0, 2, 2, 2.5]]), np.array([3, 1]), np.array([0.9, 0.4]))
    made = Prediction("p", GRID, LABELS, mask=mask, boxes=boxes, thresholds={"liver": 0.5, "lesion": 0.5})
    (tmp_path / "p").mkdir()
    write_mask(made, tmp_path / "p")
    write_boxes(made, tmp_path / "p", every=True)
    found = StoredPredictions(tmp_path, LABELS).read("p", GRID)
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_allclose(found.boxes.boxes, boxes.boxes)
    assert len(found.findings) == 1
    assert found.thresholds == made.thresholds


def test_a_segmentation_without_boxes_has_none(tmp_path):
    (tmp_path / "p").mkdir()
    write_mask(Prediction("p", GRID, LABELS, mask=np.ones(GRID.shape, np.uint8)), tmp_path / "p")
    assert StoredPredictions(tmp_path, LABELS).read("p", GRID).boxes is None


def test_classes_come_back_with_the_thresholds_of_the_model(tmp_path):
    shares = {"liver": 0.25, "lesion": 0.75}
    (tmp_path / "p").mkdir()
    write_classes(Prediction("p", GRID, LABELS, classes=shares), tmp_path / "p")
    found = StoredPredictions(tmp_path, LABELS, classifies=True, thresholds={"lesion": 0.6}).read("p", GRID)
    assert found.classes == shares
    assert found.thresholds == {"lesion": 0.6}
    assert found.geometry is GRID


def test_a_case_of_another_grid_or_without_files_is_refused(tmp_path):
    (tmp_path / "p").mkdir()
    write_mask(Prediction("p", GRID, LABELS, mask=np.ones(GRID.shape, np.uint8)), tmp_path / "p")
    stored = StoredPredictions(tmp_path, LABELS)
    with pytest.raises(MedsegError, match="grid"):
        stored.read("p", Geometry.from_spacing((8, 6, 4), (0.7, 0.8, 2.0)))
    with pytest.raises(MedsegError, match="hold no mask"):
        stored.read("q", GRID)
