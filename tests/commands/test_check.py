from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medseg import cli
from medseg.commands.check import by_kind, check
from medseg.errors import MedsegError
from medseg.scans.layouts import folder
from medseg.structures import Cohort, Fault


def cohort(tmp_path: Path, cases: int = 3) -> Cohort:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(cases):
        rng = np.random.default_rng(number)
        mask = np.zeros((10, 11, 12 + number), np.uint8)
        mask[2:5, 2:5, 2:5] = number > 0
        nib.save(
            nib.Nifti1Image(rng.normal(size=mask.shape).astype(np.float32), np.diag([1, 1, 2, 1])),
            tmp_path / f"images/p{number}.nii.gz",
        )
        nib.save(nib.Nifti1Image(mask, np.diag([1, 1, 2, 1])), tmp_path / f"labels/p{number}.nii.gz")
    return folder(tmp_path / "images", tmp_path / "labels", label_names={1: "organ"}, channels=["MR"])


def test_a_sound_data_set_is_summed_up_and_its_notes_returned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        notes = check(cohort(tmp_path), progress=False)
    assert [(note.case, note.kind) for note in notes] == [("p0", "empty_label")]
    assert "3 cases of 3 patients" in caplog.text
    assert "3 in 3D: shape 10 × 11 × 12–14, spacing 1 × 1 × 2 mm, stored RAS" in caplog.text
    assert "1 organ (in 2 cases)" in caplog.text
    assert "no faults" in caplog.text


def test_faults_end_in_one_error_that_lists_them_by_kind(tmp_path: Path) -> None:
    given = cohort(tmp_path)
    (tmp_path / "images" / "p1.nii.gz").write_bytes(b"garbage")
    given = folder(tmp_path / "images", tmp_path / "labels", label_names={2: "other"}, channels=["MR"])
    with pytest.raises(MedsegError) as caught:
        check(given, progress=False)
    assert caught.value.exit_status == 2
    text = str(caught.value)
    assert text.startswith("check: 2 fault(s) in 2 of 3 cases or files")
    assert "files that cannot be read (1): case 'p1'" in text
    assert "labels that nothing names (1): case 'p2'" in text


def test_faults_of_classes_are_listed_with_those_of_images(tmp_path: Path) -> None:
    cohort(tmp_path)
    (tmp_path / "images" / "p1.nii.gz").write_bytes(b"garbage")
    (tmp_path / "t.csv").write_text("id,class\np0,ill\np1,ill\np2,\n")
    given = folder(tmp_path / "images", tmp_path / "labels", table=tmp_path / "t.csv", channels=["MR"])
    with pytest.raises(MedsegError) as caught:
        check(given, task={"name": "classification"}, progress=False)
    text = str(caught.value)
    assert "files that cannot be read (1): case 'p1'" in text or "files that were cut short (1): case 'p1'" in text
    assert "cases of which nobody says the class (1): case 'p2'" in text
    assert "two classes or more, found ill in" in text


def test_a_case_without_mask_is_a_fault_for_segmentation_alone(tmp_path: Path) -> None:
    cohort(tmp_path)
    (tmp_path / "labels" / "p2.nii.gz").unlink()
    (tmp_path / "t.csv").write_text("id,class\np0,ill\np1,ill\np2,well\n")
    where = tmp_path / "images", tmp_path / "labels"
    given = folder(*where, label_names={1: "organ"}, table=tmp_path / "t.csv", channels=["MR"])
    for task in (None, {"name": "classification"}):
        check(given, task=task, progress=False)
    with pytest.raises(MedsegError, match=r"images without label \(1\): case 'p2'"):
        check(given, task={"name": "segmentation"}, progress=False)


def test_a_message_that_many_share_is_one_line() -> None:
    faults = [Fault(f"p{n}", "empty_label", "the label marks nothing") for n in range(30)]
    (line,) = by_kind(faults, at_most=2)
    assert line == "labels that mark nothing (30): the label marks nothing: p0, p1 … and 28 more"
    assert "p29" in by_kind(faults)[0]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (30, 40), dtype=np.uint8)).save(path)


def voc(root: Path, **objects: str | None) -> Path:
    """Pictures of 40 × 30 pixels; each object of a file is ``name x0 y0 x1 y1``, None is no file."""
    (root / "Annotations").mkdir()
    for seed, (name, text) in enumerate(objects.items()):
        picture(root / "JPEGImages" / f"{name}.png", seed)
        boxes = ""
        for label, *edges in (entry.split(" ") for entry in (text or "").split(";") if entry):
            named = zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
            inner = "".join(f"<{edge}>{value}</{edge}>" for edge, value in named)
            boxes += f"<object><name>{label}</name><bndbox>{inner}</bndbox></object>"
        if text is not None:
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
    return root


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs ``medseg check`` → its exit status and what it says."""

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = cli.main(["check", *words])
        return status, capsys.readouterr().err

    return run


Said = Callable[..., tuple[int, str]]


def test_sound_boxes_are_summed_up_and_none_is_no_fault(tmp_path: Path, said: Said) -> None:
    voc(tmp_path, a="WBC 1 2 5 6;RBC 10 10 20 20", b="", c="RBC 1 1 9 9;RBC 20 20 30 30;RBC 2 2 8 8")
    status, text = said("data=voc", f"data.root={tmp_path}")
    assert status == 0
    assert "labels: 1 RBC (in 2 cases), 2 WBC (in 1 cases)" in text
    assert "boxes: 5 in 2 cases, at most 3 in one; 1 cases have none" in text
    assert "no faults" in text


def test_bad_boxes_and_lost_files_of_voc_are_listed_at_once(tmp_path: Path, said: Said) -> None:
    voc(
        tmp_path,
        sound="RBC 1 1 9 9",
        bad="RBC 4 4 4 4;RBC 9 9 1 1;RBC 90 90 99 99;WBC 1 1 9 9; 1 1 9 9;RBC 2 2 9 9",
        unmarked=None,
        hopeless="RBC 5 4 5 5",
        gone="",
    )
    (tmp_path / "JPEGImages" / "gone.png").unlink()
    status, text = said("data=voc", f"data.root={tmp_path}", "data.label_names=[RBC, Platelets]")
    assert status == 2
    for line in (
        "images that nobody marked (1): case 'unmarked': no file of boxes in",
        "annotations without image (1): case 'gone': annotation file gone.xml belongs to no image in",
        "boxes without extent (2): ",
        "case 'bad': box 1 (RBC, 4,4,4,4) has no extent",
        "boxes that end before they begin (1): case 'bad': box 2 (RBC, 9,9,1,1)",
        "labels and boxes that lie beyond their image (1): case 'bad': box 3 (RBC, 90,90,99,99) lies outside the image (40×30)",
        "boxes of a class that nothing names (1): case 'bad': box 4 (WBC, 1,1,9,9) is of a class that is none of RBC, Platelets",
        "boxes without a class (1): case 'bad': box 5 (1,1,9,9) has no class, and there are several (RBC, Platelets)",
        "cases of which no box can be used (1): case 'hopeless': none of its 1 box(es) can be used",
    ):
        assert text.count(line) == 1, f"{line}\n{text}"
    assert "check: 9 fault(s) in 4 of 5 cases or files" in text
    assert "Traceback" not in text


def test_millimetres_given_as_voxels_are_named(tmp_path: Path, said: Said) -> None:
    affine = np.array([[-2.0, 0, 0, 90], [0, 2.0, 0, -120], [0, 0, 5.0, -600], [0, 0, 0, 1]])
    for name in ("p1", "p2", "p3"):
        scan = np.random.default_rng(ord(name[1])).normal(size=(20, 20, 10)).astype(np.float32)
        nib.save(nib.Nifti1Image(scan, affine), tmp_path / f"{name}.nii.gz")
    table = tmp_path / "t.csv"
    table.write_text(
        'id,image,boxes\np1,p1.nii.gz,"60,-110,-590,80,-100,-570"\np2,p2.nii.gz,"1,1,1,5,5,5"\np3,p3.nii.gz,none\n'
    )
    status, text = said("data=table", f"data.file={table}", "data.label_names=[lesion]")
    assert status == 2
    assert "check: 1 fault(s) in 1 of 3" in text
    assert "millimetres given as voxels (1): case 'p1': box 1 (60,-110,-590,80,-100,-570) lies outside the grid" in text
    assert "inside its world extent" in text and "RAS+" in text
    status, text = said("data=table", f"data.file={table}", "data.label_names=[lesion]", "data.skip=[p1]")
    assert status == 0, text


def test_a_picture_that_coco_does_not_list_is_not_one_without_boxes(tmp_path: Path, said: Said) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / "pictures" / f"{name}.png", seed)
    listed = [{"id": n, "file_name": f"{name}.png", "width": 40, "height": 30} for n, name in enumerate("abz")]
    body = {
        "images": listed,
        "annotations": [{"id": 1, "image_id": 0, "category_id": 7, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 7, "name": "cell"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(body))
    status, text = said(
        "data=coco", f"data.images={tmp_path / 'pictures'}", f"data.annotations={tmp_path / 'boxes.json'}"
    )
    assert status == 2
    assert "images that nobody marked (1): case 'c': the annotations do not list it" in text
    assert "annotations without image (1): case 'z': the annotations list 'z.png', which is not in" in text
    assert "boxes: 1 in 1 cases, at most 1 in one; 1 cases have none" in text
