"""A classifier of regions sees a field of one size around what a mask marks, on the scan's own voxels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data.preprocess import preprocess
from medseg.data.regions import cut_region, read_planned, region_window
from medseg.data.store import prepare
from medseg.planning.classes import ClassPlan, Region
from medseg.planning.classification import with_classes
from medseg.scans.find import find_one
from medseg.scans.reading import ScanError
from medseg.structures import Case, LabelTable
from medseg.volume import Geometry, Volume
from tests.tiny import tiny_plan

MARKS = LabelTable({1: "nodule"})
CLASSES = LabelTable({1: "benign", 2: "malignant"})


def volume_of(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Volume:
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return Volume(data, Geometry.from_spacing(shape, spacing))


def test_the_field_has_its_length_in_mm_and_lies_around_the_middle_of_the_mark() -> None:
    volume = volume_of((40, 30, 20), (0.5, 1.0, 2.0))
    marked = np.zeros((40, 30, 20), bool)
    marked[18:22, 10:16, 8:10] = True
    found = cut_region(volume, marked, Region(MARKS, (8.0, 10.0, 8.0)), "RAS")
    assert found.geometry.shape == (16, 10, 4)
    np.testing.assert_array_equal(found.data[0], volume.data[0, 12:28, 8:18, 7:11])
    np.testing.assert_allclose(found.geometry.to_world((0, 0, 0)), volume.geometry.to_world((12, 8, 7)))


def test_beyond_the_scan_it_is_mirrored() -> None:
    volume = volume_of((6, 6, 6), (1.0, 1.0, 1.0))
    marked = np.zeros((6, 6, 6), bool)
    marked[0, 5, 3] = True
    found = cut_region(volume, marked, Region(MARKS, (5.0, 5.0, 3.0)), "RAS")
    assert found.geometry.shape == (5, 5, 3)
    np.testing.assert_array_equal(found.data[0, :, 2, 1], volume.data[0, [1, 0, 0, 1, 2], 5, 3])
    np.testing.assert_array_equal(found.data[0, 2, :, 1], volume.data[0, 0, [3, 4, 5, 5, 4], 3])


def test_a_field_larger_than_twice_the_scan_is_mirrored_again_and_again() -> None:
    volume = volume_of((2, 2, 2), (1.0, 1.0, 1.0))
    found = cut_region(volume, np.ones((2, 2, 2), bool), Region(MARKS, (12.0, 2.0, 2.0)), "RAS")
    assert found.data.shape == (1, 12, 2, 2)
    assert set(found.data[0, :, 0, 0]) == set(volume.data[0, :, 0, 0])


def test_lengths_follow_the_axes_of_the_plan_however_the_scan_is_stored() -> None:
    turned = np.array([[0, 0, 1.0, 0], [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1]])  # i grows to A, j to S, k to R
    geometry = Geometry((10, 10, 10), turned)
    marked = np.zeros((10, 10, 10), bool)
    marked[5, 5, 5] = True
    region = Region(MARKS, (2.0, 4.0, 6.0))  # R, A, S
    lower, upper = region_window(geometry, marked, region, "RAS")
    assert tuple(np.subtract(upper, lower)) == (4, 6, 2)
    lower, upper = region_window(geometry, marked, region, "stored")
    assert tuple(np.subtract(upper, lower)) == (2, 4, 6)


def _case(folder: Path, mask: np.ndarray | None) -> Case:
    image = np.random.default_rng(0).normal(size=(12, 12, 12)).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "a.nii.gz")
    label = None
    if mask is not None:
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / "m.nii.gz")
        label = find_one(folder / "m.nii.gz").source
    return Case("a", (find_one(folder / "a.nii.gz").source,), label, class_name="malignant")


def _plan(region: Region | None = None):
    return tiny_plan(task="classification", labels=CLASSES, classes=ClassPlan((0.5, 0.5), False, region))


def test_a_stored_case_is_the_region_with_its_class_and_a_mended_class_is_seen(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[4:6, 4:6, 4:6] = 1
    case, plan = _case(tmp_path, mask), _plan(Region(MARKS, (8.0, 6.0, 4.0)))
    stored = prepare([case], plan, tmp_path / "cache", progress=False).case("a")
    assert stored.shape == (8, 6, 4)
    assert stored.classes == (1,)
    assert not stored.has_label
    mended = prepare([replace(case, class_name="benign")], plan, tmp_path / "cache", progress=False).case("a")
    assert mended.classes == (0,)
    assert mended.file == stored.file


def test_of_two_marks_that_lie_apart_the_larger_is_in_the_middle(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[10, 10, 10] = 1
    found = read_planned(_case(tmp_path, mask), _plan(Region(MARKS, (3.0, 3.0, 3.0))))
    np.testing.assert_allclose(found.geometry.to_world((0, 0, 0)), (1.0, 1.0, 1.0))


def test_without_region_the_whole_scan_is_read(tmp_path: Path) -> None:
    assert read_planned(_case(tmp_path, None), _plan()).geometry.shape == (12, 12, 12)


def test_a_case_without_mask_or_with_an_empty_one_is_refused(tmp_path: Path) -> None:
    plan = _plan(Region(MARKS, (4.0, 4.0, 4.0)))
    with pytest.raises(ScanError, match="has no mask; give a table"):
        read_planned(_case(tmp_path, None), plan)
    with pytest.raises(ScanError, match="its mask marks nothing"):
        read_planned(_case(tmp_path, np.zeros((12, 12, 12), np.uint8)), plan)


def test_where_the_plan_wants_to_see_it_the_mask_is_the_last_channel(tmp_path: Path) -> None:
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[4:6, 4:6, 4:6] = 1
    mask[5, 5, 7] = 1  # a speck moves the field nowhere, but is part of the mask
    case = _case(tmp_path, mask)
    classes = ClassPlan((0.5, 0.5), region=Region(MARKS, (4.0, 4.0, 6.0), mask_channel=True))
    plan = with_classes(tiny_plan(task="classification", labels=CLASSES, why={"channels": "MRI zscore"}), classes)
    assert [channel.name for channel in plan.channels] == ["MRI", "mask"]
    assert plan.scan_channels == plan.channels[:1]
    seen = read_planned(case, plan)
    without = read_planned(
        case, replace(plan, channels=plan.channels[:1], classes=_plan(Region(MARKS, (4.0, 4.0, 6.0))).classes)
    )
    np.testing.assert_array_equal(seen.data[:1], without.data)
    np.testing.assert_array_equal(seen.data[1], mask[3:7, 3:7, 2:8])
    np.testing.assert_array_equal(np.unique(preprocess(seen, plan)[0][1]), [0.0, 1.0])
    assert ClassPlan.from_plain(classes.to_plain()) == classes
