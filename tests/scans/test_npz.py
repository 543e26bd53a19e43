"""NumPy archives of small images, as MedMNIST publishes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans import read_case, read_geometry
from medseg.scans.npz import npz

RNG = np.random.default_rng(0)


def archive(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def grey(count: int = 3) -> np.ndarray:
    return RNG.integers(0, 255, (count, 6, 4), np.uint8)


def test_every_image_is_a_case_with_its_class(tmp_path: Path) -> None:
    images = grey()
    file = archive(tmp_path, train_images=images, train_labels=np.array([[0], [1], [0]]), val_images=grey(1))
    cohort = npz(file, class_names=["normal", "ill"])
    assert [case.id for case in cohort.cases] == ["train_000000", "train_000001", "train_000002", "val_000000"]
    assert [case.class_name for case in cohort.cases] == ["normal", "ill", "normal", None]
    assert cohort.classes == ("ill", "normal")


def test_pixels_are_turned_to_columns_and_rows(tmp_path: Path) -> None:
    images = grey()
    cohort = npz(archive(tmp_path, train_images=images))
    volume = read_case(cohort.cases[1])
    assert volume.geometry.shape == (4, 6)
    assert volume.geometry.unit == "px"
    np.testing.assert_array_equal(volume.data[0], images[1].T)
    assert read_geometry(cohort.cases[1].images[0]).shape == (4, 6)


def test_colours_are_channels_and_volumes_have_three_axes(tmp_path: Path) -> None:
    colour = RNG.integers(0, 255, (2, 6, 4, 3), np.uint8)
    cohort = npz(archive(tmp_path, train_images=colour))
    assert cohort.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(read_case(cohort.cases[0]).data, colour[0].transpose(2, 1, 0))
    deep = RNG.integers(0, 255, (2, 5, 6, 4), np.uint8)
    volume = read_case(npz(archive(tmp_path, test_images=deep)).cases[0])
    np.testing.assert_array_equal(volume.data[0], deep[0].transpose(2, 1, 0))


def test_images_with_the_same_pixels_stay_once(tmp_path: Path) -> None:
    images = np.stack([(image := grey(1)[0]), grey(1)[0], image])
    file = archive(tmp_path, train_images=images, train_labels=np.array([[0], [1], [0]]))
    cohort = npz(file)
    assert [case.id for case in cohort.cases] == ["train_000000", "train_000001"]
    assert [(fault.case, fault.kind) for fault in cohort.faults] == [("train_000002", "duplicate")]
    assert len(npz(file, keep_duplicates=True).cases) == 3


def test_twins_of_different_classes_are_all_left_out(tmp_path: Path) -> None:
    images = np.stack([(image := grey(1)[0]), grey(1)[0], image])
    cohort = npz(archive(tmp_path, train_images=images, train_labels=np.array([[0], [1], [1]])))
    assert [case.id for case in cohort.cases] == ["train_000001"]
    assert {fault.case for fault in cohort.faults} == {"train_000000", "train_000002"}


def test_rows_of_zeros_and_ones_are_several_classes(tmp_path: Path) -> None:
    rows = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    cohort = npz(archive(tmp_path, train_images=grey(), train_labels=rows), class_names={0: "a", 1: "b", 2: "c"})
    assert [case.class_name for case in cohort.cases] == ["a;c", "none", "b"]


def test_a_part_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"expected images of val, found train"):
        npz(archive(tmp_path, train_images=grey()), parts=["val"])


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="train_labels of 3 whole numbers"):
        npz(archive(tmp_path, train_images=grey(), train_labels=np.zeros((2, 1), int)))
    with pytest.raises(MedsegError, match=r"class \[1\] has no name"):
        npz(archive(tmp_path, train_images=grey(), train_labels=np.ones((3, 1), int)), class_names=["normal"])


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(MedsegError, match="not readable as a NumPy archive"):
        npz(tmp_path / "x.npz")
    with pytest.raises(MedsegError, match="no such file"):
        npz(tmp_path / "y.npz")
