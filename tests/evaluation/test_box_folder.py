from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.box_folder import BoxFolder
from medseg.export.boxes import write_boxes_json
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, LabelTable
from medseg.volume import Geometry

LABELS = LabelTable({1: "mass", 2: "cyst"})
GRID = Geometry.from_spacing((20, 30), (1.0, 1.0), "px")


def entry(*edges: float, label: str = "mass", score: Any = 0.5) -> dict[str, Any]:
    return {"label": label, "score": score, "box_px": list(edges)}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"boxes": list(entries)}))
    return path


def test_result_folders_and_plain_files_are_found_anywhere(tmp_path: Path) -> None:
    files = {"a": "a/boxes.json", "b": "b.json", "c": "deep/c.json", "d": "deep/d/boxes.json"}
    for name in files.values():
        write(tmp_path / name)
    folder = BoxFolder(tmp_path)
    assert {case: folder.file(case).relative_to(tmp_path).as_posix() for case in files} == files
    assert not folder.holds("e") and folder.holds("a")
    with pytest.raises(MedsegError, match=r"no boxes of it; expected e/boxes\.json or e\.json"):
        folder.file("e")


def test_two_files_that_may_be_meant_are_named(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.json")
    write(tmp_path / "two" / "a.json")
    with pytest.raises(MedsegError, match=r"several files .*one/a\.json, two/a\.json"):
        BoxFolder(tmp_path).file("a")


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="expected a folder of boxes, found nothing"):
        BoxFolder(tmp_path / "nowhere")


def test_what_is_written_is_read_with_its_scores_and_its_working_point(tmp_path: Path) -> None:
    boxes = Boxes(np.array([[1, 2, 5, 9], [3.5, 4, 6, 8]]), np.array([2, 1]), np.array([0.7, 1 / 3]))
    (tmp_path / "a").mkdir()
    write_boxes_json(boxes, GRID, LABELS, tmp_path / "a" / "boxes.json", thresholds={"mass": 0.4})
    read, point = BoxFolder(tmp_path).read("a", GRID, LABELS)
    assert np.array_equal(read.boxes, boxes.boxes) and read.labels.tolist() == [2, 1] and point == {"mass": 0.4}
    assert read.scores is not None and read.scores.tolist() == [0.7, 1 / 3]


@pytest.mark.parametrize(
    ("entries", "kind", "message"),
    [
        ([entry(1, 1, 4, 4), entry(5, 5, 9, 9, score=None)], "no_scores", "1 of its 2 found boxes have no score"),
        ([entry(1, 1, 4, 4, score=float("nan"))], "nan_score", "1 of its 1 found boxes have a score that is NaN"),
        ([entry(1, 1, 4, 4, label="bone")], "no_usable_box", "none of its 1 box"),
        (
            [entry(1, 1, 4, 4, label="bone"), entry(1, 1, 4, 4)],
            "unknown_class",
            "is of a class that is none of mass, cyst",
        ),
        ([entry(1, 1, 4, float("inf")), entry(1, 1, 4, 4)], "not_finite", "no finite number"),
    ],
)
def test_boxes_that_cannot_be_ranked_make_their_case_unusable(
    entries: list[dict[str, Any]], kind: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.json", *entries)
    with pytest.raises(ScanError, match=message) as error:
        BoxFolder(tmp_path).read("a", GRID, LABELS)
    assert error.value.kind == kind


def test_boxes_that_are_none_on_the_grid_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.json", entry(1, 1, 4, 4), entry(5, 5, 5, 9), entry(40, 40, 50, 50), entry(10, 10, 14, 60))
    boxes, _ = BoxFolder(tmp_path).read("a", GRID, LABELS)
    assert boxes.boxes.tolist() == [[1, 1, 4, 4]]
    assert "1 zero_area_box, 2 outside_image" in caplog.text


def test_a_case_in_which_nothing_was_found_has_no_boxes(tmp_path: Path) -> None:
    write(tmp_path / "a.json")
    boxes, point = BoxFolder(tmp_path).read("a", GRID, LABELS)
    assert boxes.boxes.shape == (0, 4) and point == {}
