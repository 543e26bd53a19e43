from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans.find import find_one
from medseg.scans.labels import class_names, found_labels, label_table, present
from medseg.structures import Source
from tests.annotation_factory import write_rtstruct, write_seg


@pytest.mark.parametrize(
    "names",
    [
        {1: "liver", 2: "tumour"},
        {"1": "liver", "2": "tumour", "0": "background"},
        {"background": 0, "liver": 1, "tumour": 2},
        ["liver", "tumour"],
        ["background", "liver", "tumour"],
    ],
)
def test_names_may_be_given_either_way_round(names: object) -> None:
    table = label_table(names)  # type: ignore[arg-type]
    assert dict(table.names) == {1: "liver", 2: "tumour"}
    assert table.exclusive


def test_names_of_several_values_are_regions_as_nnunet_writes_them() -> None:
    table = label_table({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4})
    assert dict(table.regions) == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert table.paint == (1, 2, 3)
    assert table.ignore == 4
    assert list(table.names) == [1, 2, 3]


def test_regions_beside_names_are_painted_from_whole_to_core() -> None:
    table = label_table({1: "edema", 2: "core"}, regions={"whole": [1, 2], "core": [2]})
    assert table.paint == (1, 2)
    assert label_table({1: "a", 2: "b"}, regions={"x": [1, 2]}, paint=[2]).paint == (2,)


def test_a_region_that_cannot_be_painted_is_said() -> None:
    with pytest.raises(MedsegError, match="'x' holds"):
        label_table({1: "a", 2: "b"}, regions={"x": [1, 2]})


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("liver", "expected"),
        ({"a": "b"}, "whole number and a name"),
        ({"a": 1, "b": 1}, "both have value 1"),
        (["a", "a"], "name each value once"),
        ({"background": 0}, "at least one label"),
        ({"a": [1.5, 2]}, "whole numbers"),
    ],
)
def test_what_is_no_label_table_is_said(names: object, words: str) -> None:
    with pytest.raises(MedsegError, match=words):
        label_table(names)  # type: ignore[arg-type]


def test_values_that_nobody_named_are_numbered(tmp_path: Path, write_nifti: Callable[..., Path]) -> None:
    paths = [write_nifti(tmp_path / f"{n}.nii", np.array([[[0, n]]], np.uint8)) for n in (3, 255)]
    sources = [find_one(path).source for path in paths]
    assert found_labels(sources) == {3: "label_3", 255: "label_255"}
    assert found_labels(sources, ignore=255) == {3: "label_3"}
    (tmp_path / "3.nii").write_bytes(b"")
    assert found_labels(sources) == {255: "label_255"}


def test_masks_without_any_label_and_images_in_their_place_are_said(
    tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    empty = find_one(write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8))).source
    with pytest.raises(MedsegError, match="none of the 1 masks holds a label"):
        found_labels([empty])
    image = find_one(write_nifti(tmp_path / "b.nii", np.arange(8000, dtype=np.int16).reshape(20, 20, 20))).source
    with pytest.raises(MedsegError, match="are they images"):
        found_labels([image])


def test_segments_and_regions_have_names_which_are_numbered(tmp_path: Path, write_nifti: Callable[..., Path]) -> None:
    mask, square = np.ones((4, 4, 2), bool), np.array([[0.0, 0, 0], [3, 0, 0], [3, 3, 0]])
    seg = Source("seg", (write_seg(tmp_path / "s.dcm", {"Liver": mask, "Spleen": mask}, np.eye(4)),))
    contours = Source("rtstruct", (write_rtstruct(tmp_path / "r.dcm", {"empty": [], "liver": [square]}),))
    assert found_labels([seg]) == {1: "Liver", 2: "Spleen"}
    assert found_labels([contours]) == {2: "liver"}
    assert found_labels([seg, contours]) == {1: "Liver", 2: "Spleen"}
    nothing = Source("rtstruct", (write_rtstruct(tmp_path / "n.dcm", {"empty": []}),))
    assert found_labels([nothing, contours]) == {2: "liver"}
    with pytest.raises(MedsegError, match="none of the 1 SEG or RTSTRUCT marks anything"):
        found_labels([nothing])
    values = find_one(write_nifti(tmp_path / "v.nii", np.ones((4, 4, 2), np.uint8))).source
    with pytest.raises(MedsegError, match="1 labels are SEG or RTSTRUCT, which have names, and 1 are masks of values"):
        found_labels([seg, values])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int64])
def test_present_values_are_found(dtype: type) -> None:
    values = [0, 3, 100] if dtype is np.uint8 else [-2, 0, 100]
    assert present(np.array([values, values], dtype)) == values


def test_classes_of_boxes_are_numbered_and_values_keep_their_number() -> None:
    assert class_names(["WBC", "", "RBC", "WBC"], "boxes") == {1: "WBC", 2: "RBC"}
    assert class_names(["7", "2"], "boxes") == {7: "label_7", 2: "label_2"}
    assert class_names(["0", "1"], "boxes") == {1: "0", 2: "1"}, "0 is background: these are names"
    with pytest.raises(MedsegError, match=r"boxes: no annotation names a class.*data\.label_names=\[lesion\]"):
        class_names([""], "boxes")
