"""What is written is read back by others as it was: values, type, and where every voxel lies."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg.data.preprocess import preprocess
from medseg.errors import MedsegError
from medseg.export.nifti import write_mask, write_probabilities
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry, Volume
from tests.tiny import noise, tiny_plan

LABELS = LabelTable({1: "liver", 3: "../../lesion"})
AFFINE = np.array([[0.0, 0.8, 0.0, -4], [-0.7, 0.0, 0.0, 9], [0, 0, 2.5, 1], [0, 0, 0, 1]])


@pytest.mark.parametrize(("top", "kind"), [(3, np.uint8), (300, np.uint16), (70_000, np.uint32)])
def test_a_mask_keeps_its_values_its_place_and_the_smallest_type(tmp_path, top, kind):
    geometry = Geometry((5, 4, 3), AFFINE)
    mask = np.zeros(geometry.shape, np.int64)
    mask[1, 2, 0], mask[4, 3, 2] = 1, top
    path = write_mask(Prediction("a", geometry, LabelTable({1: "a", top: "b"}), mask=mask), tmp_path)
    assert path == tmp_path / "mask.nii.gz"
    image = nib.load(path)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), mask)
    assert image.get_data_dtype() == kind
    np.testing.assert_allclose(image.get_sform(coded=True)[0], AFFINE, atol=1e-6)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], AFFINE, atol=1e-5)
    assert image.get_sform(coded=True)[1] == image.get_qform(coded=True)[1] == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [p.name for p in tmp_path.iterdir()] == ["mask.nii.gz"]


@pytest.mark.parametrize("top", [3, 300])
def test_the_mask_of_a_picture_is_a_png_whose_columns_are_i(tmp_path, top):
    mask = np.zeros((7, 4), np.uint16)
    mask[6, 1] = top
    geometry = Geometry.from_spacing(mask.shape, (1, 1), "px")
    path = write_mask(Prediction("a", geometry, LabelTable({1: "a", top: "b"}), mask=mask), tmp_path)
    assert path == tmp_path / "mask.png"
    picture = Image.open(path)
    assert picture.size == (7, 4)
    np.testing.assert_array_equal(np.asarray(picture).T, mask)


def test_probabilities_return_to_the_scan_grid_within_a_65535th(tmp_path):
    geometry = Geometry((9, 8, 6), AFFINE)
    plan = tiny_plan(labels=LABELS, spacing=(0.8, 0.7, 2.5))
    _, restoration = preprocess(Volume(noise(geometry.shape)[None], geometry), plan)
    rng = np.random.default_rng(0)
    scores = rng.random((3, *restoration.shape), dtype=np.float32)
    scores /= scores.sum(0)
    paths = write_probabilities(scores, restoration, LABELS, tmp_path, block=4)
    assert [p.name for p in paths] == ["probability_1-liver.nii.gz", "probability_2-lesion.nii.gz"]
    assert {p.parent for p in paths} == {tmp_path}
    image = nib.load(paths[1])
    assert image.get_data_dtype() == np.uint16
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-6)
    expected = restoration.turn.inverse().apply(scores[2])
    np.testing.assert_allclose(image.get_fdata(), expected, atol=1 / 65535)


def test_probabilities_of_a_picture_and_of_regions_are_written_too(tmp_path):
    labels = LabelTable({1: "a", 2: "b"}, regions={"all": (1, 2), "b only": (2,)}, paint=(1, 2))
    plan = tiny_plan(2, labels=labels)
    geometry = Geometry.from_spacing((7, 4), (1, 1), "px")
    _, restoration = preprocess(Volume(noise((7, 4))[None], geometry), plan)
    scores = np.full((2, 7, 4), 0.25, np.float32)
    scores[1, 6, 0] = 1
    paths = write_probabilities(scores, restoration, labels, tmp_path)
    assert [p.name for p in paths] == ["probability_1-all.png", "probability_2-b_only.png"]
    values = np.asarray(Image.open(paths[1])).astype(float).T / 65535
    assert values[6, 0] == 1
    assert values[0, 0] == pytest.approx(0.25, abs=1e-4)


def test_a_prediction_without_mask_is_refused(tmp_path):
    geometry = Geometry.from_spacing((4, 4), (1, 1))
    with pytest.raises(MedsegError, match="'a': the prediction holds no mask"):
        write_mask(Prediction("a", geometry, LABELS), tmp_path)


def test_a_writer_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    geometry = Geometry((2, 2, 2), np.eye(4))
    with pytest.raises(OSError, match="No space"):
        write_mask(Prediction("a", geometry, LABELS, mask=np.zeros((2, 2, 2), np.uint8)), tmp_path)
    assert list(tmp_path.iterdir()) == []
