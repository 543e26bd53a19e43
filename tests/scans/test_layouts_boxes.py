"""Data sets whose cases have boxes, by folder and by table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans import read_case
from medseg.scans.boxes import boxes_of_case, is_usable
from medseg.scans.layouts import folder, table
from medseg.structures import Cohort

Write = Callable[..., Path]
IMAGE = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
MASK = (IMAGE > 12).astype(np.uint8)


@pytest.fixture
def pair(tmp_path: Path, write_nifti: Write) -> Callable[..., None]:
    """Writes ``images/<name>`` and ``labels/<name>``."""

    def write(*names: str) -> None:
        for name in names:
            write_nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE)
            write_nifti(tmp_path / "labels" / f"{name}.nii.gz", MASK)

    return write


def ids(cohort: Cohort) -> list[str]:
    return [case.id for case in cohort.cases]


def faults(cohort: Cohort) -> set[tuple[str, str]]:
    return {(fault.case, fault.kind) for fault in cohort.faults}


def boxes_of(cohort: Cohort, name: str) -> tuple[list[list[float]], list[int]]:
    (case,) = (case for case in cohort.cases if case.id == name)
    assert cohort.labels is not None
    found, wrong = boxes_of_case(case, read_case(case).geometry, cohort.labels)
    assert is_usable(wrong), wrong
    return found.boxes.tolist(), found.labels.tolist()


def test_a_table_may_hold_boxes_and_no_mask(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "i.nii.gz", IMAGE)
    (tmp_path / "p3.json").write_text('{"boxes": [{"label": "cyst", "box_vox": [0, 0, 0, 1, 1, 1]}]}')
    (tmp_path / "t.csv").write_text(
        "id,image,marked\n"
        'p1,i.nii.gz,"0,0,0,2,2,2,tumour;0,1,1,1,2,2,cyst"\n'
        "p2,i.nii.gz,\n"
        "p3,i.nii.gz,p3.json\n"
        "p4,i.nii.gz,none\n"
        "p5,i.nii.gz\n"
    )
    cohort = table(tmp_path / "t.csv", columns={"boxes": "marked"}, progress=False)
    assert ids(cohort) == ["p1", "p2", "p3", "p4"], "a line without the cell was not annotated"
    assert faults(cohort) == {("p5", "image_without_annotation")}
    assert "write 'none' as its boxes where there is no lesion" in str(cohort.faults[0])
    assert cohort.labels is not None and dict(cohort.labels.names) == {1: "cyst", 2: "tumour"}
    assert boxes_of(cohort, "p1") == ([[0, 0, 0, 2, 2, 2], [0, 1, 1, 1, 2, 2]], [2, 1])
    assert boxes_of(cohort, "p3") == ([[0, 0, 0, 1, 1, 1]], [1])
    assert boxes_of(cohort, "p2") == boxes_of(cohort, "p4") == ([], [])
    named = table(tmp_path / "t.csv", columns={"boxes": "marked"}, label_names={4: "tumour", 2: "cyst"}, progress=False)
    assert boxes_of(named, "p1")[1] == [4, 2]


def test_boxes_without_any_class_need_a_name_for_it(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "i.nii.gz", IMAGE)
    (tmp_path / "t.csv").write_text('id,image,boxes\np1,i.nii.gz,"0,0,0,2,2,2"\n')
    with pytest.raises(MedsegError, match=r"no annotation names a class; .*data\.label_names=\[lesion\]"):
        table(tmp_path / "t.csv", progress=False)
    assert boxes_of(table(tmp_path / "t.csv", label_names=["lesion"], progress=False), "p1")[1] == [1]


def test_some_cases_may_have_a_mask_and_others_boxes_but_none_may_have_neither(
    tmp_path: Path, write_nifti: Write
) -> None:
    write_nifti(tmp_path / "i.nii.gz", IMAGE)
    write_nifti(tmp_path / "m.nii.gz", MASK)
    (tmp_path / "t.csv").write_text(
        'id,image,label,boxes\np1,i.nii.gz,m.nii.gz,\np2,i.nii.gz,,"0,0,0,2,2,2"\np3,i.nii.gz,,none\np4,i.nii.gz,,\n'
    )
    cohort = table(tmp_path / "t.csv", progress=False)
    assert ids(cohort) == ["p1", "p2", "p3"], "two empty cells say nothing"
    assert faults(cohort) == {("p4", "image_without_label")}
    assert cohort.labels is not None and dict(cohort.labels.names) == {1: "label_1"}


def test_a_table_beside_masks_gives_boxes_and_an_empty_cell_is_one_without_lesion(
    tmp_path: Path, pair: Callable[..., None]
) -> None:
    pair("p1", "p2", "p3")
    (tmp_path / "t.csv").write_text('id,boxes_xyxy\np1,"0,0,0,2,2,2"\np2,\np3,sub/b.xml\n')
    cohort = folder(tmp_path / "images", tmp_path / "labels", table=tmp_path / "t.csv", columns={"boxes": "boxes_xyxy"})
    assert [case.boxes for case in cohort.cases] == ["0,0,0,2,2,2", "", tmp_path / "sub" / "b.xml"]
    plain = folder(tmp_path / "images", tmp_path / "labels", table=tmp_path / "t.csv")
    assert [case.boxes for case in plain.cases] == [None] * 3


def marked(path: Path, *labels: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"boxes": [{"label": name, "box_vox": [0, 0, 0, 1, 2, 3]} for name in labels]}))


def test_a_folder_of_boxes_pairs_with_images_by_name(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p1", "sub/p2", "p3_0000", "p4", "p5"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE)
    marked(tmp_path / "boxes" / "p1" / "boxes.json", "tumour")
    marked(tmp_path / "boxes" / "sub" / "p2" / "boxes.json")
    marked(tmp_path / "boxes" / "p3" / "boxes.json", "cyst")
    marked(tmp_path / "boxes" / "p9" / "boxes.json", "cyst")
    (tmp_path / "boxes" / "manifest.json").write_text("{}")
    (tmp_path / "images" / "p4.nii.gz").write_bytes(b"garbage")
    marked(tmp_path / "boxes" / "p4" / "boxes.json")
    cohort = folder(tmp_path / "images", boxes=tmp_path / "boxes", progress=False)
    assert ids(cohort) == ["p1", "p2", "p3"]
    assert faults(cohort) == {
        ("p4", "unreadable"),
        ("p5", "image_without_annotation"),
        ("p9", "annotation_without_image"),
    }
    assert cohort.labels is not None and dict(cohort.labels.names) == {1: "cyst", 2: "tumour"}
    assert boxes_of(cohort, "p1") == ([[0, 0, 0, 1, 2, 3]], [2])
    assert boxes_of(cohort, "p2") == ([], [])


def test_a_folder_may_give_masks_and_boxes_of_its_images(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "p2")
    marked(tmp_path / "boxes" / "p1.json", "1")
    marked(tmp_path / "boxes" / "p2.json")
    (tmp_path / "t.csv").write_text("id,boxes\np1,none\np2,none\n")
    cohort = folder(tmp_path / "images", tmp_path / "labels", tmp_path / "boxes", table=tmp_path / "t.csv")
    assert all(case.label is not None for case in cohort.cases)
    assert [case.boxes for case in cohort.cases] == [tmp_path / "boxes" / "p1.json", tmp_path / "boxes" / "p2.json"]
    assert boxes_of(cohort, "p1")[1] == [1]


def test_numbered_images_with_files_of_boxes_are_no_channels(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("img_0000", "img_0001"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", IMAGE)
        marked(tmp_path / "boxes" / f"{name}.json", "cyst")
    assert ids(folder(tmp_path / "images", boxes=tmp_path / "boxes", progress=False)) == ["img_0000", "img_0001"]


def test_a_folder_of_boxes_that_is_not_there_or_holds_none_is_an_error(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "images" / "p1.nii.gz", IMAGE)
    with pytest.raises(MedsegError, match=r"boxes .*gone: .*no such folder"):
        folder(tmp_path / "images", boxes=tmp_path / "gone")
    with pytest.raises(MedsegError, match=r"boxes .*images: expected <id>\.json.*found none"):
        folder(tmp_path / "images", boxes=tmp_path / "images")


@pytest.mark.shared_data
def test_normal_pictures_are_without_lesion_by_mask_and_by_table(shared_data: Path) -> None:
    root = shared_data / "breast_ultrasound"
    given = {"table": root / "index.csv", "label_names": ["lesion"], "progress": False}
    cohort = folder(root / "images", root / "masks", columns={"boxes": "boxes_xyxy"}, **given)  # type: ignore[arg-type]
    assert sum(case.boxes == "" for case in cohort.cases) == sum(case.class_name == "normal" for case in cohort.cases)
    assert all(case.boxes is not None for case in cohort.cases)
    assert {case.class_name for case in cohort.cases if case.boxes == ""} == {"normal"}
