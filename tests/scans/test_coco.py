from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans import read_geometry
from medseg.scans.boxes import boxes_of_case
from medseg.scans.coco import coco
from medseg.structures import Cohort

Write = Callable[..., Path]
CATEGORIES = [{"id": 3, "name": "cell; red"}, {"id": 11, "name": "never"}, {"id": 10, "name": "cell, white"}]
Data = Callable[..., Cohort]


@pytest.fixture
def data(tmp_path: Path, write_picture: Write) -> Data:
    """A cohort of pictures ``a``, ``b``, ``sub/c`` (8 × 6 pixels), numbered 0, 1, 2, with these annotations."""

    def make(*annotations: dict[str, Any], options: dict[str, Any] | None = None, **changes: Any) -> Cohort:
        names = ["a.png", "b.png", "sub/c.png"]
        for name in names:
            write_picture(tmp_path / "images" / name, np.zeros((6, 8), np.uint8))
        body = {
            "images": [{"id": n, "file_name": name, "width": 8, "height": 6} for n, name in enumerate(names)],
            "annotations": [{"id": n, **entry} for n, entry in enumerate(annotations)],
            "categories": CATEGORIES,
            **changes,
        }
        (tmp_path / "coco.json").write_text(json.dumps(body))
        return coco(tmp_path / "images", tmp_path / "coco.json", progress=False, **(options or {}))

    return make


def ids(cohort: Cohort) -> list[str]:
    return [case.id for case in cohort.cases]


def faults(cohort: Cohort) -> set[tuple[str, str]]:
    return {(fault.case, fault.kind) for fault in cohort.faults}


def boxes_of(cohort: Cohort, number: int = 0) -> tuple[list[list[float]], list[int], list[str]]:
    case = cohort.cases[number]
    assert cohort.labels is not None
    boxes, wrong = boxes_of_case(case, read_geometry(case.images[0]), cohort.labels)
    return boxes.boxes.tolist(), boxes.labels.tolist(), [fault.kind for fault in wrong]


def box(picture: object, *edges: float, category: object = 3, **more: object) -> dict[str, Any]:
    return {"image_id": picture, "category_id": category, "bbox": list(edges), **more}


def test_boxes_are_edges_of_corner_and_size_and_a_listed_picture_without_box_has_none(data: Data) -> None:
    cohort = data(box(0, 1, 2, 3.5, 4, category=10), box("0", 0, 0, 8, 6), box(2, 5, 0, 1, 1))
    assert ids(cohort) == ["a", "b", "c"] and not cohort.faults
    assert cohort.labels is not None and dict(cohort.labels.names) == {1: "cell, red", 2: "cell, white"}
    assert boxes_of(cohort, 0) == ([[1, 2, 4.5, 6], [0, 0, 8, 6]], [2, 1], [])
    assert cohort.cases[1].boxes == "none" and boxes_of(cohort, 1) == ([], [], [])
    assert boxes_of(cohort, 2) == ([[5, 0, 6, 1]], [1], [])


def test_what_is_listed_and_not_there_or_there_and_not_listed_is_a_fault(data: Data) -> None:
    images = [{"id": 0, "file_name": "a.png"}, {"id": 9, "file_name": "gone.png"}, {"id": 2, "file_name": "c.png"}]
    cohort = data(box(0, 1, 2, 3, 4), box(9, 1, 2, 3, 4), box(2, 0, 0, 2, 2), box(77, 1, 1, 1, 1), images=images)
    assert ids(cohort) == ["a", "c"]
    assert faults(cohort) == {
        ("gone", "annotation_without_image"),
        ("", "annotation_without_image"),
        ("b", "image_without_annotation"),
    }


def test_bad_boxes_are_named_with_their_case_and_never_make_it_one_without_lesion(data: Data) -> None:
    cohort = data(
        box(0, 1, 1, 2, 2),
        box(0, 1, 1, 0, 2),
        box(0, 4, 4, -2, 2),
        box(0, 1, 1, 2, 2, category=99),
        box(1, 1, 1, 2),
        box(1, 1, 1, "x", 2),
        {"image_id": 2, "bbox": [1, 1, 2, 2]},
        box(2, 1, 1, 10**400, 2),
        options={"label_names": ["cell, red", "cell, white"]},
    )
    assert boxes_of(cohort, 0) == ([[1, 1, 3, 3]], [1], ["zero_area_box", "inverted_box", "unknown_class"])
    assert boxes_of(cohort, 1) == ([], [], ["not_finite", "not_finite", "no_usable_box"])
    assert boxes_of(cohort, 2) == ([], [], ["box_without_class", "not_finite", "no_usable_box"])


def test_crowds_are_left_out_and_a_picture_of_nothing_else_with_them(data: Data) -> None:
    cohort = data(box(0, 1, 1, 2, 2), box(0, 0, 0, 8, 6, iscrowd=1), box(1, 0, 0, 8, 6, iscrowd=1))
    assert ids(cohort) == ["a", "c"]
    assert boxes_of(cohort, 0)[0] == [[1, 1, 3, 3]]
    assert faults(cohort) == {("a", "left_out"), ("b", "left_out")}


def test_a_picture_of_another_size_than_annotated_or_listed_twice_is_a_fault(data: Data) -> None:
    images = [
        {"id": 0, "file_name": "a.png", "width": 6, "height": 8},
        {"id": 1, "file_name": "b.png"},
        {"id": 2, "file_name": "sub/c.png", "width": 8, "height": 6},
        {"id": 3, "file_name": "c.png"},
    ]
    cohort = data(box(1, 1, 1, 2, 2), images=images)
    assert ids(cohort) == ["b"], "the boxes of c may be those of either entry"
    assert faults(cohort) == {("a", "grids_differ"), ("c", "duplicate_id")}
    assert len(cohort.faults) == 2
    assert "6×8" in str(cohort.faults[0]) and "8×6" in str(cohort.faults[0])


def test_an_unreadable_picture_is_one_fault_not_two(data: Data, tmp_path: Path) -> None:
    data(box(0, 1, 1, 2, 2))
    (tmp_path / "images" / "b.png").write_bytes(b"garbage")
    cohort = coco(tmp_path / "images", tmp_path / "coco.json", progress=False)
    assert ids(cohort) == ["a", "c"]
    assert faults(cohort) == {("b", "unreadable")}


def test_a_file_that_is_no_coco_is_an_error(data: Data, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="expected COCO's list 'categories' of objects, found None"):
        data(categories=None)
    with pytest.raises(MedsegError, match="no annotation names a class"):
        data()
    (tmp_path / "coco.json").write_text("{")
    with pytest.raises(MedsegError, match="cannot be read as COCO JSON"):
        coco(tmp_path / "images", tmp_path / "coco.json", progress=False)
    with pytest.raises(MedsegError, match=r"annotations .*gone\.json: no such file"):
        coco(tmp_path / "images", tmp_path / "gone.json", progress=False)
