from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.export.boxes import write_boxes, write_boxes_json
from medseg.export.lesions import lesions_of
from medseg.scans.box_json import read_boxes_json, read_working_point
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, LabelTable, Prediction
from medseg.volume import Geometry

TABLE = LabelTable({1: "cyst", 4: "Tumör"})
SCAN = Geometry((40, 50, 20), np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 5.0, -600], [0, 0, 0, 1]]))
PICTURE = Geometry.from_spacing((64, 48), (1.0, 1.0), "px")
FOUND = Boxes(
    np.array([[5, 0, 0, 6, 2, 2], [1.25, 2, 3, 11, 12.5, 13], [20, 20, 5, 24, 24, 9], [30, 0, 0, 31, 1, 1]]),
    np.array([1, 4, 1, 1]),
    np.array([0.25, 0.9, 0.25, 0.125], np.float32),
)


def test_ids_run_by_falling_score_then_size_as_those_of_lesions_do(tmp_path: Path) -> None:
    body = json.loads(write_boxes_json(FOUND, SCAN, TABLE, tmp_path / "boxes.json").read_text("utf-8"))
    assert list(body) == ["frame", "shape", "affine", "boxes"]
    assert body["frame"] == "RAS+" and body["shape"] == [40, 50, 20] and body["affine"] == SCAN.affine.tolist()
    assert [(b["id"], b["label"]) for b in body["boxes"]] == [(1, "Tumör"), (2, "cyst"), (3, "cyst"), (4, "cyst")]
    assert [b["box_vox"][0] for b in body["boxes"]] == [1.25, 20, 5, 30]
    assert [b["score"] for b in body["boxes"]] == pytest.approx([0.9, 0.25, 0.25, 0.125])
    lesions = lesions_of(Prediction("p", SCAN, TABLE, boxes=FOUND), ["cyst"])
    assert [lesion.box_vox.tolist() for lesion in lesions] == [b["box_vox"] for b in body["boxes"]]


def test_millimetres_are_those_of_the_outer_edges(tmp_path: Path) -> None:
    body = json.loads(write_boxes_json(FOUND, SCAN, TABLE, tmp_path / "boxes.json").read_text("utf-8"))
    # Voxel 5 along i has its centre at 90 − 2·5 = 80 mm and its edges at 81 and 79 mm.
    assert body["boxes"][2]["box_mm"] == [79, -121, -602.5, 81, -117, -592.5]


@pytest.mark.parametrize("without", ["box_vox", "box_mm", "affine"])
def test_boxes_come_back_as_they_were_written(tmp_path: Path, without: str) -> None:
    path = write_boxes_json(FOUND, SCAN, TABLE, tmp_path / "boxes.json")
    body = json.loads(path.read_text("utf-8"))
    body.pop(without, None)
    for entry in body["boxes"]:
        entry.pop(without, None)
    path.write_text(json.dumps(body))
    boxes, faults = read_boxes_json(path, SCAN, TABLE)
    order = [1, 2, 0, 3]
    assert faults == []
    np.testing.assert_array_equal(boxes.boxes, FOUND.boxes[order])
    np.testing.assert_array_equal(boxes.labels, FOUND.labels[order])
    assert FOUND.scores is not None
    np.testing.assert_array_equal(boxes.scores, FOUND.scores[order])


def test_a_picture_has_pixels_alone(tmp_path: Path) -> None:
    boxes = Boxes(np.array([[1, 2, 3, 4.5]]), np.array([4]))
    path = write_boxes_json(boxes, PICTURE, TABLE, tmp_path / "boxes.json")
    body = json.loads(path.read_text("utf-8"))
    assert body == {
        "shape": [64, 48],
        "boxes": [{"id": 1, "label": "Tumör", "score": None, "box_px": [1, 2, 3, 4.5]}],
    }
    read, _ = read_boxes_json(path, PICTURE, TABLE)
    assert read.boxes.tolist() == [[1, 2, 3, 4.5]] and read.scores is None


@pytest.mark.parametrize("geometry", [SCAN, PICTURE])
def test_a_case_without_lesion_reads_back_as_one(tmp_path: Path, geometry: Geometry) -> None:
    none = Boxes(np.zeros((0, 2 * geometry.dimensions)), np.zeros(0, int), np.zeros(0))
    path = write_boxes_json(none, geometry, TABLE, tmp_path / "boxes.json")
    boxes, faults = read_boxes_json(path, geometry, TABLE)
    assert boxes.boxes.shape == none.boxes.shape and faults == []


def test_the_file_of_a_prediction_states_its_working_point(tmp_path: Path) -> None:
    prediction = Prediction("p", SCAN, TABLE, boxes=FOUND, thresholds={"cyst": 0.2, "Tumör": 0.5})
    path = write_boxes(prediction, tmp_path)
    body = json.loads(path.read_text("utf-8"))
    assert path.name == "boxes.json" and list(body) == ["frame", "shape", "affine", "working_point", "boxes"]
    assert [b["score"] for b in body["boxes"]] == pytest.approx([0.9, 0.25, 0.25])
    assert read_working_point(path) == {"cyst": 0.2, "Tumör": 0.5}
    boxes, faults = read_boxes_json(path, SCAN, TABLE)
    assert len(boxes) == 3 and faults == []


def test_findings_bear_the_same_ids_where_all_boxes_are_listed(tmp_path: Path) -> None:
    prediction = Prediction("p", SCAN, TABLE, boxes=FOUND, thresholds={"cyst": 0.25, "Tumör": 0.95})
    few = json.loads(write_boxes(prediction, tmp_path).read_text("utf-8"))["boxes"]
    every = json.loads(write_boxes(prediction, tmp_path, every=True).read_text("utf-8"))["boxes"]
    assert [(b["id"], b["label"]) for b in few] == [(1, "cyst"), (2, "cyst")]
    assert every[:2] == few
    assert [(b["id"], b["score"]) for b in every[2:]] == [(3, pytest.approx(0.9)), (4, 0.125)]
    assert [lesion.box_vox.tolist() for lesion in lesions_of(prediction, [])] == [b["box_vox"] for b in few]


def test_a_file_without_working_point_holds_findings_alone(tmp_path: Path) -> None:
    assert read_working_point(write_boxes(Prediction("p", SCAN, TABLE, boxes=FOUND), tmp_path)) == {}


@pytest.mark.parametrize("stated", ["0.5", '{"cyst": "high"}', '{"cyst": NaN}', "[0.5]"])
def test_a_working_point_that_is_none_is_named(tmp_path: Path, stated: str) -> None:
    (tmp_path / "boxes.json").write_text(f'{{"working_point": {stated}, "boxes": []}}')
    with pytest.raises(ScanError, match=r"boxes\.json: expected the working_point as a score a label") as caught:
        read_working_point(tmp_path / "boxes.json")
    assert caught.value.kind == "malformed_boxes"


def test_a_prediction_without_boxes_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="case 'p': the prediction holds no boxes to write"):
        write_boxes(Prediction("p", SCAN, TABLE), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    one = np.array([[1.0, 2, 3, 4]])
    for score, thresholds in ((np.nan, {}), (0.5, {"cyst": np.inf})):
        boxes = Boxes(one, np.array([1]), np.array([score]))
        with pytest.raises(MedsegError, match="expected finite edges, scores and thresholds"):
            write_boxes_json(boxes, PICTURE, TABLE, path, thresholds=thresholds)
    with pytest.raises(MedsegError, match=r"labels \[3\], which nothing names"):
        write_boxes_json(Boxes(one, np.array([3])), PICTURE, TABLE, path)
    with pytest.raises(MedsegError, match=r"expected boxes \(N, 6\)"):
        write_boxes_json(Boxes(one, np.array([1])), SCAN, TABLE, path)
    assert not path.exists()
