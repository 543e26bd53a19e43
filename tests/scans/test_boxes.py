from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans.box_json import read_boxes_json
from medseg.scans.boxes import Marked, boxes_of_case, boxes_of_mask, classes_of, is_usable, read_cell, write_cell
from medseg.scans.reading import ScanError
from medseg.structures import Boxes, Case, Fault, LabelTable, Source
from medseg.volume import Geometry

CYST = LabelTable({1: "cyst"})
CELLS = LabelTable({1: "RBC", 2: "WBC", 5: "Platelets, small"})
PICTURE = Geometry.from_spacing((640, 480), (1.0, 1.0), "px")
SCAN = Geometry((40, 50, 20), np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 5.0, -600], [0, 0, 0, 1]]))


def case_with(boxes: Path | str | None) -> Case:
    return Case("p1", (Source("picture", (Path("p1.png"),)),), boxes=boxes)


def of(boxes: Path | str | None, geometry: Geometry = PICTURE, table: LabelTable = CELLS) -> tuple[Boxes, list[Fault]]:
    return boxes_of_case(case_with(boxes), geometry, table)


def kinds(faults: list[Fault]) -> list[str]:
    return [fault.kind for fault in faults]


def write(path: Path, *boxes: dict[str, Any], **body: Any) -> Path:
    path.write_text(json.dumps({**body, "boxes": boxes}))
    return path


def test_a_cell_gives_edges_and_classes_by_name_or_value() -> None:
    boxes, faults = of("131,61,155,73,WBC; 10.5,20,30,40.25,1; 1,2,3,4,Platelets, small;5,6,7,8, platelets,  SMALL")
    np.testing.assert_array_equal(boxes.boxes, [[131, 61, 155, 73], [10.5, 20, 30, 40.25], [1, 2, 3, 4], [5, 6, 7, 8]])
    assert boxes.labels.tolist() == [2, 1, 5, 5]
    assert boxes.scores is None
    assert faults == []


def test_one_class_need_not_be_named() -> None:
    boxes, faults = of("15,58,54,86;107,68,162,120", table=LabelTable({3: "lesion"}))
    assert boxes.labels.tolist() == [3, 3]
    assert faults == []


def test_a_volume_has_boxes_of_six_numbers() -> None:
    boxes, faults = of("1,2,3,11,12,13,cyst", SCAN, CYST)
    np.testing.assert_array_equal(boxes.boxes, [[1, 2, 3, 11, 12, 13]])
    assert faults == []


@pytest.mark.parametrize("cell", ["", "none", "None", "  "])
def test_none_is_a_case_without_lesion_and_no_fault(cell: str) -> None:
    boxes, faults = of(cell, SCAN)
    assert boxes.boxes.shape == (0, 6)
    assert faults == [] and is_usable(faults)


def test_a_case_that_nobody_marked_is_not_one_without_lesion() -> None:
    boxes, faults = of(None)
    assert boxes.boxes.shape == (0, 4)
    assert kinds(faults) == ["not_annotated_boxes"]
    assert not is_usable(faults)
    assert "data.skip=[p1]" in str(faults[0])


@pytest.mark.parametrize(
    ("cell", "kind", "says"),
    [
        ("504,337,504,337,WBC", "zero_area_box", "box 2 (WBC, 504,337,504,337) has no extent"),
        ("504,337,510,337,WBC", "zero_area_box", "no extent"),
        ("50,60,40,80,WBC", "inverted_box", "ends before it begins"),
        ("700,10,720,30,WBC", "outside_image", "lies outside the image (640×480)"),
        ("-20,10,5,30,WBC", "outside_image", "lies outside the image (640×480)"),
        ("10,20,30,40", "box_without_class", "there are several (RBC, WBC, Platelets, small)"),
        ("10,20,30,40,HeLa", "unknown_class", "none of RBC, WBC, Platelets, small"),
        ("10,20,30,40,3", "unknown_class", "none of RBC, WBC, Platelets, small"),
        ("10,nan,30,40,WBC", "not_finite", "no finite number"),
        ("10,20,inf,40,WBC", "not_finite", "no finite number"),
    ],
)
def test_a_box_that_cannot_be_meant_is_left_out_by_name_and_its_case_stays(cell: str, kind: str, says: str) -> None:
    boxes, faults = of(f"1,2,3,4,RBC;{cell};5,6,7,8,RBC")
    np.testing.assert_array_equal(boxes.boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])
    assert kinds(faults) == [kind]
    assert faults[0].case == "p1"
    assert faults[0].message.startswith("box 2 (") and says in faults[0].message
    assert is_usable(faults)


def test_a_case_whose_every_box_is_left_out_does_not_pass_for_one_without_lesion() -> None:
    boxes, faults = of("504,337,504,337,WBC")
    assert len(boxes.boxes) == 0
    assert kinds(faults) == ["zero_area_box", "no_usable_box"]
    assert not is_usable(faults)


def test_a_box_beyond_the_border_is_cut_off_and_said_from_more_than_one_pixel_on() -> None:
    boxes, faults = of("600,400,641,480.5,RBC")
    np.testing.assert_array_equal(boxes.boxes, [[600, 400, 640, 480]])
    assert faults == []
    boxes, faults = of("600,400,660,480,RBC")
    np.testing.assert_array_equal(boxes.boxes, [[600, 400, 640, 480]])
    assert kinds(faults) == ["beyond_image"]
    assert is_usable(faults)


@pytest.mark.parametrize(("sign", "frame"), [(1, "RAS+"), (-1, "LPS+")])
def test_millimetres_given_as_voxels_are_found_by_their_range(sign: int, frame: str) -> None:
    corners = [[*sorted((sign * 60, sign * 80)), *sorted((sign * -100, sign * -80)), -590, -560]]
    low_high = [corners[0][n] for n in (0, 2, 4, 1, 3, 5)]
    boxes, faults = of(f"{','.join(map(str, low_high))};1,2,3,11,12,13", SCAN, CYST)
    assert kinds(faults) == ["world_coordinates"]
    assert "box 1 (" in str(faults[0]) and frame in str(faults[0]) and "40×50×20" in str(faults[0])
    assert len(boxes.boxes) == 0, "the other box may be millimetres too, inside the grid by chance"
    assert not is_usable(faults)


def test_a_box_outside_the_grid_and_its_world_extent_is_only_outside() -> None:
    _, faults = of("1000,1000,1000,1100,1100,1100;1,2,3,11,12,13", SCAN, CYST)
    assert kinds(faults) == ["outside_image"]


@pytest.mark.parametrize(
    ("cell", "geometry", "kind"),
    [
        ("1,2,3,4", SCAN, "wrong_dimensions"),
        ("1,2,3,4,cyst", SCAN, "wrong_dimensions"),
        ("1,2,3,4,5,6", PICTURE, "wrong_dimensions"),
        ("1,2,3,4,5,6,cyst", PICTURE, "wrong_dimensions"),
        ("1,2,3", PICTURE, "malformed_boxes"),
        ("cyst,1,2,3,4", PICTURE, "malformed_boxes"),
        ("1,2,3,4,cyst;rubbish", PICTURE, "malformed_boxes"),
    ],
)
def test_a_cell_that_is_laid_out_otherwise_makes_its_case_useless(cell: str, geometry: Geometry, kind: str) -> None:
    boxes, faults = of(cell, geometry, CYST)
    assert kinds(faults) == [kind]
    assert len(boxes.boxes) == 0 and not is_usable(faults)


def test_a_cell_reads_back_as_written() -> None:
    marked = [Marked((1.5, 2.0, 640.0, 1e-3), "Platelets, small"), Marked((0.0, 1.0, 2.0, 3.0))]
    assert read_cell(write_cell(marked), 2) == marked
    assert write_cell([]) == ""


@pytest.mark.parametrize(
    ("cell", "classes"),
    [
        ("1,2,3,4,WBC;5,6,7,8,Platelets, small;5,6,7,8", ["WBC", "Platelets, small"]),
        ("1,2,3,4,5,6,cyst;1,2,3,4,5,6", ["cyst"]),
        ("1,2,3,4,2", ["2"]),
        ("1,2,3,4,5,6,2", ["2"]),
        ("1,2,3,4,5,6", []),
        ("4,4,4,4,WBC", ["WBC"]),
        ("none", []),
        ("rubbish", []),
    ],
)
def test_classes_are_told_without_the_image(cell: str, classes: list[str]) -> None:
    assert classes_of(cell) == classes


def test_a_file_names_its_classes_and_a_broken_one_none(tmp_path: Path) -> None:
    boxes = [{"label": "cyst", "box_mm": [1, 2, 3, 4, 5, 6]}, {"box_mm": [1]}, {"label": 2}, {"label": ""}]
    assert classes_of(write(tmp_path / "boxes.json", *boxes)) == ["cyst", "2"]
    (tmp_path / "p.xml").write_text("<annotation><object><name>WBC</name></object><object/></annotation>")
    assert classes_of(tmp_path / "p.xml") == ["WBC"]
    (tmp_path / "boxes.json").write_text("[]")
    (tmp_path / "p.xml").write_text("<html>")
    assert classes_of(tmp_path / "boxes.json") == classes_of(tmp_path / "p.xml") == []
    assert classes_of(tmp_path / "gone.json") == classes_of(tmp_path / "gone.txt") == []


def test_box_vox_of_the_same_grid_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "boxes.json", {"label": "cyst", "score": 0.5, "box_vox": [1, 2, 3, 11.5, 12, 13]})
    boxes, faults = of(path, SCAN, CYST)
    np.testing.assert_array_equal(boxes.boxes, [[1, 2, 3, 11.5, 12, 13]])
    assert boxes.scores is None, "a label has no score"
    assert faults == []


def test_box_mm_becomes_voxel_edges(tmp_path: Path) -> None:
    # Voxel 5 along i has its centre at 90 − 2·5 = 80 mm and its edges at 81 and 79 mm.
    path = write(tmp_path / "boxes.json", {"box_mm": [79, -121, -602.5, 81, -117, -592.5]})
    boxes, _ = of(path, SCAN, CYST)
    np.testing.assert_allclose(boxes.boxes, [[5, 0, 0, 6, 2, 2]])


def test_boxes_of_another_orientation_of_the_scan_are_carried_over(tmp_path: Path) -> None:
    turned = Geometry(
        (20, 40, 50), SCAN.affine @ np.array([[0, -1.0, 0, 39], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    )
    body = {"shape": list(turned.shape), "affine": turned.affine.tolist()}
    path = write(tmp_path / "boxes.json", {"box_vox": [3, 1, 2, 13, 11, 12]}, **body)
    boxes, _ = of(path, SCAN, CYST)
    np.testing.assert_array_equal(boxes.boxes, [[29, 2, 3, 39, 12, 13]])


def test_a_picture_has_box_px_and_a_size(tmp_path: Path) -> None:
    path = write(tmp_path / "boxes.json", {"label": "WBC", "box_px": [1, 2, 3, 4]}, shape=[640, 480])
    assert of(path)[0].boxes.tolist() == [[1, 2, 3, 4]]
    _, faults = of(path, Geometry.from_spacing((480, 640), (1, 1), "px"))
    assert kinds(faults) == ["grids_differ"]
    assert "640×480" in str(faults[0]) and "480×640" in str(faults[0])


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("{", "unreadable"),
        ("[]", "malformed_boxes"),
        ('{"boxes": 3}', "malformed_boxes"),
        ('{"boxes": [{"label": "cyst"}]}', "malformed_boxes"),
        ('{"boxes": [{"box_vox": [1, 2, "x", 4, 5, 6]}]}', "malformed_boxes"),
        ('{"boxes": [{"box_vox": [1, 2, 3, 4, 5, 6], "score": "high"}]}', "malformed_boxes"),
        ('{"boxes": [{"box_vox": [1, 2, 3, 4]}]}', "wrong_dimensions"),
        ('{"frame": "LPS+", "boxes": []}', "malformed_boxes"),
        ('{"affine": [[1, 2], [3]], "boxes": []}', "malformed_boxes"),
        ('{"shape": [3, 4], "boxes": []}', "wrong_dimensions"),
        ('{"shape": [3, 4, 5], "boxes": []}', "grids_differ"),
    ],
)
def test_a_file_that_is_laid_out_otherwise_is_one_fault(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(text)
    _, faults = of(path, SCAN, CYST)
    assert kinds(faults) == [kind]
    assert "boxes.json" in str(faults[0])


def test_missing_and_strange_files_are_said(tmp_path: Path) -> None:
    assert kinds(of(tmp_path / "boxes.json")[1]) == ["missing_file"]
    assert kinds(of(tmp_path / "boxes.txt")[1]) == ["unsupported"]


def test_a_predicted_box_with_a_nan_score_is_left_out_by_name(tmp_path: Path) -> None:
    good = {"label": "cyst", "score": 0.25, "box_vox": [1, 2, 3, 11, 12, 13]}
    path = write(tmp_path / "boxes.json", good, {**good, "score": float("nan")})
    boxes, faults = read_boxes_json(path, SCAN, CYST, "p1")
    assert boxes.scores is not None and boxes.scores.tolist() == [0.25]
    assert kinds(faults) == ["not_finite"]
    assert "box 2 (" in faults[0].message and "score nan" in faults[0].message


def test_a_mask_gives_one_box_a_component_of_each_label() -> None:
    mask = np.zeros((40, 50, 20), np.uint8)
    mask[2:5, 3:6, 4:6] = 1
    mask[5, 6, 6] = 1  # touches by a corner: 26 neighbours
    mask[30:33, 3:6, 4:6] = 1
    mask[10:20, 10:20, 10:12] = 2
    mask[20:22, 10:20, 10:12] = 9
    boxes, numbered = boxes_of_mask(mask, SCAN, LabelTable({1: "cyst", 2: "tumour"}, ignore=9))
    np.testing.assert_array_equal(boxes.boxes, [[2, 3, 4, 6, 7, 7], [30, 3, 4, 33, 6, 6], [10, 10, 10, 20, 20, 12]])
    assert boxes.labels.tolist() == [1, 1, 2]
    assert numbered.dtype == np.int32
    assert np.bincount(numbered.ravel())[1:].tolist() == [19, 18, 200]
    for number, (lower, upper) in enumerate(boxes.boxes.astype(int).reshape(-1, 2, 3), 1):
        at = np.argwhere(numbered == number)
        assert at.min(0).tolist() == lower.tolist() and (at.max(0) + 1).tolist() == upper.tolist()


def test_touching_lesions_of_two_labels_are_two_and_diagonal_pixels_are_one() -> None:
    mask = np.zeros((6, 6), np.int16)
    mask[1, 1] = mask[2, 2] = 1
    mask[3, 3] = 2
    boxes, _ = boxes_of_mask(mask, Geometry.from_spacing((6, 6), (1, 1), "px"), LabelTable({1: "a", 2: "b"}))
    np.testing.assert_array_equal(boxes.boxes, [[1, 1, 3, 3], [3, 3, 4, 4]])
    assert boxes.labels.tolist() == [1, 2]


def test_an_instance_is_one_box_though_it_lies_in_parts_and_touches_others() -> None:
    mask = np.zeros((40, 50, 20), np.uint16)
    mask[1:3, 1:3, 1:3] = 7
    mask[8:9, 1:3, 1:3] = 7
    mask[3:5, 1:3, 1:3] = 300
    boxes, numbered = boxes_of_mask(mask, SCAN, LabelTable({4: "nodule"}), instances=True)
    np.testing.assert_array_equal(boxes.boxes, [[1, 1, 1, 9, 3, 3], [3, 1, 1, 5, 3, 3]])
    assert boxes.labels.tolist() == [4, 4]
    np.testing.assert_array_equal(numbered, np.select([mask == 7, mask == 300], [1, 2]))


@pytest.mark.parametrize(("smallest", "count"), [(0.0, 2), (160.0, 2), (160.5, 1), (1e6, 0)])
def test_lesions_below_a_smallest_size_are_left_out(smallest: float, count: int) -> None:
    mask = np.zeros((40, 50, 20), np.uint8)
    mask[1:3, 1:3, 1:3] = 1  # 8 voxels of 20 mm³
    mask[10:20, 1:3, 1:3] = 1
    boxes, numbered = boxes_of_mask(mask, SCAN, CYST, smallest_mm3=smallest)
    assert boxes.boxes.shape == (count, 6)
    assert numbered.max() == count


def test_an_empty_mask_has_no_box() -> None:
    boxes, numbered = boxes_of_mask(np.zeros(SCAN.shape, np.uint8), SCAN, CYST)
    assert boxes.boxes.shape == (0, 6) and boxes.labels.shape == (0,)
    assert not numbered.any()


def test_masks_that_say_nothing_about_boxes_are_refused() -> None:
    mask = np.ones(SCAN.shape, np.uint8)
    with pytest.raises(ScanError, match=r"holds \[1\], which nothing names; known are 2 tumour"):
        boxes_of_mask(mask, SCAN, LabelTable({2: "tumour"}))
    with pytest.raises(MedsegError, match="expected one label, found cyst, tumour"):
        boxes_of_mask(mask, SCAN, LabelTable({1: "cyst", 2: "tumour"}), instances=True)
    with pytest.raises(MedsegError, match="found the regions whole"):
        boxes_of_mask(mask, SCAN, LabelTable({1: "cyst"}, regions={"whole": (1,)}, paint=(1,)))
    with pytest.raises(MedsegError, match="expected an integer mask on the grid"):
        boxes_of_mask(mask[1:], SCAN, CYST)


@pytest.mark.shared_data
def test_boxes_of_masks_are_those_that_the_table_of_real_pictures_lists(shared_data: Path) -> None:
    from medseg.scans import read_mask
    from medseg.scans.find import find_one
    from medseg.scans.tables import read_table

    folder = shared_data / "breast_ultrasound"
    for row in read_table(folder / "index.csv", {"boxes": "boxes_xyxy"}).rows[::40]:
        mask, geometry = read_mask(find_one(folder / "masks" / f"{row.get('id')}.png").source)
        listed, faults = of(row.get("boxes"), geometry, LabelTable({1: "lesion"}))
        found, _ = boxes_of_mask((mask > 0).astype(np.uint8), geometry, LabelTable({1: "lesion"}))
        assert faults == []
        assert sorted(found.boxes.tolist()) == sorted(listed.boxes.tolist()), row.get("id")


@pytest.mark.shared_data
@pytest.mark.parametrize(("folder", "most"), [("sarcoma_pet", 1), ("lgg_flair", 4)])
def test_real_masks_have_the_lesions_that_are_known_of_them(shared_data: Path, folder: str, most: int) -> None:
    from medseg.scans import read_mask
    from medseg.scans.find import find_one

    for path in sorted((shared_data / folder / "masks").iterdir())[:5]:
        mask, geometry = read_mask(find_one(path).source)
        boxes, numbered = boxes_of_mask((mask > 0).astype(np.uint8), geometry, CYST)
        assert 1 <= len(boxes.boxes) <= most, path.name
        np.testing.assert_array_equal(numbered > 0, mask > 0)
