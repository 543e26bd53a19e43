from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans import read_geometry
from medseg.scans.boxes import boxes_of_case, is_usable
from medseg.scans.voc import voc
from medseg.structures import Cohort

Write = Callable[..., Path]
Object = tuple[str, Sequence[object]]
Picture = Callable[..., None]


def xml(*objects: Object, size: tuple[int, int] | None = (8, 6)) -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    boxes = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
        + "".join(
            f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
        )
        + "</bndbox></object>"
        for name, edges in objects
    )
    return f"<annotation><filename>x.jpg</filename>{stated}{boxes}</annotation>"


@pytest.fixture
def picture(tmp_path: Path, write_picture: Write) -> Picture:
    """Writes a picture of 8 × 6 pixels and, where given, its file of boxes."""

    def write(name: str, text: str | None = None) -> None:
        write_picture(tmp_path / "JPEGImages" / f"{name}.png", np.zeros((6, 8), np.uint8))
        path = tmp_path / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)

    return write


def ids(cohort: Cohort) -> list[str]:
    return [case.id for case in cohort.cases]


def faults(cohort: Cohort) -> set[tuple[str, str]]:
    return {(fault.case, fault.kind) for fault in cohort.faults}


def boxes_of(cohort: Cohort, number: int = 0) -> tuple[list[list[float]], list[int], list[str]]:
    case = cohort.cases[number]
    assert cohort.labels is not None
    boxes, wrong = boxes_of_case(case, read_geometry(case.images[0]), cohort.labels)
    return boxes.boxes.tolist(), boxes.labels.tolist(), [fault.kind for fault in wrong]


def test_pictures_have_the_boxes_of_their_files_as_written(tmp_path: Path, picture: Picture) -> None:
    picture("a", xml(("WBC", (1, 2, 5, 6)), ("RBC", (0, 0, 8, 6))))
    picture("b", xml())
    cohort = voc(tmp_path, progress=False)
    assert ids(cohort) == ["a", "b"] and not cohort.faults
    assert cohort.labels is not None and dict(cohort.labels.names) == {1: "RBC", 2: "WBC"}
    assert cohort.channels == ("image",)
    assert all(case.label is None for case in cohort.cases)
    assert boxes_of(cohort) == ([[1, 2, 5, 6], [0, 0, 8, 6]], [2, 1], [])
    assert boxes_of(cohort, 1) == ([], [], [])


def test_a_picture_without_file_and_a_file_without_picture_are_faults(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b", "c"):
        picture(name, xml(("WBC", (1, 2, 5, 6))))
    (tmp_path / "Annotations" / "b.xml").unlink()
    (tmp_path / "JPEGImages" / "c.png").unlink()
    cohort = voc(tmp_path, progress=False)
    assert ids(cohort) == ["a"]
    assert faults(cohort) == {("b", "image_without_annotation"), ("c", "annotation_without_image")}


def test_what_cannot_be_read_is_one_fault_not_two(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b", "c", "d"):
        picture(name, xml(("WBC", (1, 2, 5, 6))))
    (tmp_path / "JPEGImages" / "b.png").write_bytes(b"garbage")
    (tmp_path / "Annotations" / "c.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations" / "d.xml").write_text("<html></html>")
    cohort = voc(tmp_path, progress=False)
    assert ids(cohort) == ["a"]
    assert faults(cohort) == {("b", "unreadable"), ("c", "unreadable"), ("d", "malformed_boxes")}


def test_equal_names_in_two_folders_pair_by_path(tmp_path: Path, picture: Picture) -> None:
    picture("a/x", xml(("WBC", (1, 2, 5, 6))))
    picture("b/x", xml(("WBC", (0, 0, 3, 3))))
    cohort = voc(tmp_path, progress=False)
    assert ids(cohort) == ["a__x", "b__x"]
    assert boxes_of(cohort, 1)[0] == [[0, 0, 3, 3]]
    (tmp_path / "Annotations" / "b" / "x.xml").unlink()
    cohort = voc(tmp_path, progress=False)
    assert ids(cohort) == ["a__x"]
    assert faults(cohort) == {("b__x", "image_without_annotation")}


def test_files_in_another_folder_are_found_by_their_name_unless_two_pictures_bear_it(
    tmp_path: Path, picture: Picture
) -> None:
    for name in ("a/x", "b/x", "b/y"):
        picture(name)
    for name in ("x", "y"):
        (tmp_path / "Annotations" / f"{name}.xml").write_text(xml(("WBC", (1, 2, 5, 6))))
    cohort = voc(tmp_path, progress=False)
    assert ids(cohort) == ["y"]
    assert faults(cohort) == {("a__x", "ambiguous_annotation"), ("b__x", "ambiguous_annotation")}


def test_a_bad_box_is_named_and_its_case_stays(tmp_path: Path, picture: Picture) -> None:
    picture("a", xml(("WBC", (1, 2, 5, 6)), ("WBC", (4, 4, 4, 4)), ("WBC", ("x", 1, 2, 3)), ("", (1, 1, 2, 2))))
    picture("b", xml(("RBC", (1, 2, 5, 6))))
    cohort = voc(tmp_path, progress=False)
    assert not cohort.faults
    assert boxes_of(cohort) == ([[1, 2, 5, 6]], [2], ["zero_area_box", "not_finite", "box_without_class"])


def test_classes_that_the_user_does_not_name_are_faults_of_their_boxes(tmp_path: Path, picture: Picture) -> None:
    picture("a", xml(("WBC", (1, 2, 5, 6)), ("RBC", (0, 0, 8, 6))))
    cohort = voc(tmp_path, label_names={7: "RBC"}, progress=False)
    assert boxes_of(cohort) == ([[0, 0, 8, 6]], [7], ["unknown_class"])


def test_a_file_for_a_picture_of_another_size_is_not_believed(tmp_path: Path, picture: Picture) -> None:
    picture("a", xml(("WBC", (1, 2, 5, 6)), size=(6, 8)))
    picture("b", xml(("WBC", (1, 2, 5, 6)), size=None))
    picture("c", xml(("WBC", (1, 2, 5, 6)), size=(0, 0)))
    cohort = voc(tmp_path, progress=False)
    assert boxes_of(cohort)[2] == ["grids_differ"]
    assert boxes_of(cohort, 1)[2] == boxes_of(cohort, 2)[2] == []


def test_a_table_gives_the_patient_of_a_picture(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b", "c"):
        picture(name, xml(("WBC", (1, 2, 5, 6))))
    table = tmp_path / "cases.csv"
    table.write_text("name,patient,stain\na,p1,blue\nb,p1,red\n")
    cohort = voc(tmp_path, table=table, columns={"id": "name"}, progress=False)
    assert [(case.id, case.patient, dict(case.metadata)) for case in cohort.cases] == [
        ("a", "p1", {"stain": "blue"}),
        ("b", "p1", {"stain": "red"}),
    ]
    assert faults(cohort) == {("c", "missing_row")}


def test_a_table_gives_the_class_of_a_picture(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        picture(name, xml(("WBC", (1, 2, 5, 6))))
    (tmp_path / "cases.csv").write_text("id,class\na,malaria\nb,healthy\n")
    cohort = voc(tmp_path, table=tmp_path / "cases.csv", progress=False)
    assert cohort.classes == ("healthy", "malaria")
    assert cohort.labels is not None and list(cohort.labels.names.values()) == ["WBC"]


def test_folders_names_and_skips_are_the_users(tmp_path: Path, picture: Picture) -> None:
    picture("a", xml(("WBC", (1, 2, 5, 6))))
    picture("b", xml())
    (tmp_path / "JPEGImages").rename(tmp_path / "pictures")
    (tmp_path / "Annotations").rename(tmp_path / "boxes")
    cohort = voc(tmp_path, images="pictures", annotations=tmp_path / "boxes", skip=["b"], progress=False)
    assert ids(cohort) == ["a"] and not cohort.faults
    with pytest.raises(MedsegError, match="skip: .* has no case 'z'"):
        voc(tmp_path, images="pictures", annotations="boxes", skip=["z"], progress=False)
    with pytest.raises(MedsegError, match=r"images .*JPEGImages: no such file or folder"):
        voc(tmp_path, annotations="boxes", progress=False)
    with pytest.raises(MedsegError, match=r"annotations .*Annotations: no such file or folder"):
        voc(tmp_path, images="pictures", progress=False)
    with pytest.raises(MedsegError, match="no case is left"):
        voc(tmp_path, images="pictures", annotations="boxes", skip=["a", "b"], progress=False)
    (tmp_path / "boxes" / "a.xml").write_text(xml())
    with pytest.raises(MedsegError, match=r"no annotation names a class.*data\.label_names"):
        voc(tmp_path, images="pictures", annotations="boxes", progress=False)


@pytest.mark.shared_data
def test_real_blood_cells_keep_all_but_two_boxes_of_no_area(shared_data: Path) -> None:
    cohort = voc(shared_data / "blood_cells", progress=False)
    assert len(cohort.cases) == 292 and not cohort.faults
    assert cohort.labels is not None and list(cohort.labels.names.values()) == ["Platelets", "RBC", "WBC"]
    assert cohort.channels == ("red", "green", "blue")
    found = [boxes_of_case(case, read_geometry(case.images[0]), cohort.labels) for case in cohort.cases]
    wrong = [fault for _, some in found for fault in some]
    assert [(fault.case, fault.kind) for fault in wrong] == [
        ("BloodImage_00338", "zero_area_box"),
        ("BloodImage_00343", "zero_area_box"),
    ]
    assert is_usable(wrong)
    assert sum(len(boxes.boxes) for boxes, _ in found) == 3943 - 2
