from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans.faults import NOTES, duplicate_groups, examine, faults
from medseg.scans.find import find_one
from medseg.scans.layouts import folder, msd
from medseg.structures import Case, Cohort, Fault, LabelTable
from tests.annotation_factory import write_rtstruct, write_seg
from tests.dicom_factory import affine_of, write_series

Write = Callable[..., Path]


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(12, 14, 16)).astype(np.float32)


def mask() -> np.ndarray:
    array = np.zeros((12, 14, 16), np.uint8)
    array[3:6, 4:8, 5:9] = 1
    return array


@pytest.fixture
def add(tmp_path: Path, write_nifti: Write) -> Callable[..., None]:
    """Writes a case; what is not given is sound."""
    made = iter(range(100))

    def write(
        name: str, scan: np.ndarray | None = None, label: np.ndarray | None = None, affine: object = None
    ) -> None:
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", image(next(made)) if scan is None else scan, affine)
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", mask() if label is None else label, affine)

    return write


def cohort(tmp_path: Path) -> Cohort:
    return folder(tmp_path / "images", tmp_path / "labels", label_names={1: "organ"}, channels=["MR"])


def kinds(found: list[Fault]) -> dict[str, str]:
    return {fault.case: fault.kind for fault in found}


def test_all_faults_are_listed_at_once(
    tmp_path: Path, add: Callable[..., None], write_nifti: Write, write_picture: Write
) -> None:
    for number in range(3):
        add(f"good_{number}")
    nan = image(50)
    nan[0, 0, :2] = np.nan, np.inf
    add("nan", nan)
    add("blank", np.zeros((12, 14, 16), np.float32))
    add("halves", label=mask() * 0.5)
    add("unknown", label=mask() * 7)
    add("empty", label=mask() * 0)
    add("thick", affine=np.diag([1.0, 1, 80, 1]))
    add("cut")
    whole = (tmp_path / "images" / "cut.nii.gz").read_bytes()
    (tmp_path / "images" / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    add("four", np.stack([image(51), image(52)], -1))
    add("other_grid", label=mask()[:-1])
    add("moved")
    shifted = np.eye(4)
    shifted[2, 3] = 5
    write_nifti(tmp_path / "labels" / "moved.nii.gz", mask(), shifted)
    write_nifti(tmp_path / "images" / "alone.nii.gz", image(53))
    write_nifti(tmp_path / "labels" / "orphan.nii.gz", mask())
    write_picture(tmp_path / "images" / "flat.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    write_picture(tmp_path / "labels" / "flat.png", np.ones((3, 4), np.uint8))
    add("twice", image(0))
    add("nearly", image(1) * 2 + np.random.default_rng(3).normal(size=(12, 14, 16)).astype(np.float32) / 50)
    found = faults(cohort(tmp_path), progress=False)
    assert kinds(found) == {
        "alone": "image_without_label",
        "orphan": "label_without_image",
        "nan": "not_finite",
        "blank": "blank_image",
        "halves": "non_integer",
        "unknown": "unknown_label",
        "empty": "empty_label",
        "thick": "spacing",
        "cut": "truncated",
        "four": "not_3d",
        "other_grid": "grids_differ",
        "moved": "grids_differ",
        "flat": "wrong_dimensions",
        "good_0": "duplicate",
        "good_1": "near_duplicate",
    }
    said = {fault.case: str(fault) for fault in found}
    assert "holds 1 NaN and 1 infinite" in said["nan"]
    assert "found 0.5" in said["halves"]
    assert "7 (48 voxels)" in said["unknown"]
    assert "known are 1 organ" in said["unknown"]
    assert "12×14×16×2" in said["four"]
    assert "1×1×80 mm" in said["thick"]
    assert said["other_grid"].startswith("case 'other_grid': label and image lie on different grids (label 11×14×16")
    assert said["other_grid"].endswith("data.skip=[other_grid]")
    assert "5 mm apart" in said["moved"]
    assert "flat.png is a picture" in said["flat"]
    assert "twice" in said["good_0"]
    assert all(fault.message.count(f"case {fault.case!r}") == 0 for fault in found)


def test_a_sound_data_set_has_no_faults(tmp_path: Path, add: Callable[..., None]) -> None:
    for number in range(4):
        add(f"p{number}")
    assert faults(cohort(tmp_path), progress=False, workers=1) == []


def test_the_number_of_channels_must_be_that_of_the_data_set(tmp_path: Path, write_picture: Write) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("a", (9, 9)), ("b", (9, 9)), ("c", (9, 9, 3))):
        write_picture(tmp_path / "images" / f"{name}.png", rng.integers(0, 255, shape, dtype=np.uint8))
        write_picture(tmp_path / "labels" / f"{name}.png", np.ones((9, 9), np.uint8))
    given = folder(tmp_path / "images", tmp_path / "labels", label_names={1: "x"}, channels=["US"])
    (fault,) = faults(given, progress=False)
    assert (fault.case, fault.kind) == ("c", "channels")


def test_pictures_are_wrong_where_volumes_are_asked_for(tmp_path: Path, write_picture: Write) -> None:
    write_picture(tmp_path / "images" / "a.png", np.arange(12, dtype=np.uint8).reshape(3, 4))
    write_picture(tmp_path / "labels" / "a.png", np.ones((3, 4), np.uint8))
    given = folder(tmp_path / "images", tmp_path / "labels", label_names={1: "x"})
    assert faults(given, progress=False) == []
    assert [fault.kind for fault in faults(given, 3, progress=False)] == ["wrong_dimensions"]


def test_duplicates_of_one_patient_are_no_fault_and_no_group(tmp_path: Path, add: Callable[..., None]) -> None:
    add("p1", image(7))
    add("p2", image(7))
    (tmp_path / "t.csv").write_text("id,patient\np1,A\np2,A\n")
    given = folder(tmp_path / "images", tmp_path / "labels", label_names={1: "x"}, table=tmp_path / "t.csv")
    assert faults(given, progress=False) == []
    assert duplicate_groups(given, progress=False) == {}
    assert duplicate_groups(cohort(tmp_path), progress=False) == {"p1": "p1", "p2": "p1"}


def test_what_is_wrong_with_annotations_is_listed_beside_the_rest(tmp_path: Path) -> None:
    shape = (12, 10, 6)
    affine = affine_of(shape)
    inside = np.zeros(shape, bool)
    inside[3:6, 3:6, 1:4] = True
    square = np.array([[2.5, 2.5, 2], [5.5, 2.5, 2], [5.5, 5.5, 2]]) @ affine[:3, :3].T + affine[:3, 3]
    images = {
        name: write_series(
            tmp_path / name,
            np.random.default_rng(n).integers(0, 500, shape).astype(np.int16),
            affine,
            study=name,
            seed=name,
        )
        for n, name in enumerate(("sound", "unknown", "empty", "lost", "far", "oblique"))
    }
    lost = images.pop("lost")
    write_seg(tmp_path / "sound.dcm", {"tumour": inside}, affine, images=images["sound"])
    write_seg(tmp_path / "unknown.dcm", {"tumour": inside, "couch": ~inside}, affine, images=images["unknown"])
    write_seg(tmp_path / "lost.dcm", {"tumour": inside}, affine, images=lost)
    write_rtstruct(tmp_path / "empty.dcm", {"tumour": []}, images=images["empty"])
    write_rtstruct(tmp_path / "far.dcm", {"tumour": [square + 500]}, images=images["far"])
    write_rtstruct(
        tmp_path / "oblique.dcm",
        {"tumour": [np.add(square, [[0, 0, 0], [0, 0, 9], [0, 9, 0]])]},
        images=images["oblique"],
    )
    shutil.rmtree(tmp_path / "lost")
    found = faults(folder(tmp_path, label_names={1: "Tumour"}, progress=False), progress=False)
    kinds = sorted(fault.kind for fault in found)
    assert kinds == ["empty_annotation", "oblique_contours", "outside_image", "source_absent", "unknown_label"]
    assert "Secret" not in str(found)


def boxed(*boxes: Path | str | None, labels: LabelTable | None = None, masks: Sequence[Path] = ()) -> Cohort:
    """Pictures ``p0``, ``p1`` … of 40 × 30 pixels with these boxes, and with masks where given."""
    folder = masks[0].parent if masks else Path()
    images = [find_one(folder / f"p{number}.png").source for number in range(len(boxes))]
    sources = [find_one(mask).source for mask in masks] or [None] * len(boxes)
    cases = [
        Case(f"p{number}", (image,), label=mask, boxes=marked)
        for number, (image, mask, marked) in enumerate(zip(images, sources, boxes, strict=True))
    ]
    return Cohort(tuple(cases), ("US",), labels or LabelTable({1: "cyst", 2: "tumour"}))


@pytest.fixture
def pictures(tmp_path: Path, write_picture: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures ``p0`` … ``p4``, in which the test stands."""
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 255, (30, 40), dtype=np.uint8)
        write_picture(tmp_path / f"p{number}.png", noise)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_bad_box_is_listed_under_its_case(pictures: Path) -> None:
    bad = "4,4,4,9,cyst;9,9,4,4,cyst;50,50,60,60,cyst;30,20,48,29,cyst;1,1,5,5;1,1,5,5,polyp;1,nan,5,5,cyst"
    found = faults(boxed(f"1,2,3,4,cyst;{bad}", "1,1,5,5,tumour", "none"), progress=False)
    assert [(fault.case, fault.kind) for fault in found] == [
        ("p0", "zero_area_box"),
        ("p0", "inverted_box"),
        ("p0", "outside_image"),
        ("p0", "beyond_image"),
        ("p0", "box_without_class"),
        ("p0", "unknown_class"),
        ("p0", "not_finite"),
    ]
    assert [fault.message.split(" (")[0] for fault in found] == [f"box {number}" for number in range(2, 9)]
    assert not NOTES & {fault.kind for fault in found}


def test_what_makes_boxes_of_no_use_is_a_fault_of_their_case(pictures: Path) -> None:
    (pictures / "p1.json").write_text("{")
    found = faults(boxed("4,4,4,9,cyst", pictures / "p1.json", Path("gone.xml"), "1,2,3", None), progress=False)
    assert [(fault.case, fault.kind) for fault in found] == [
        ("p0", "zero_area_box"),
        ("p0", "no_usable_box"),
        ("p1", "unreadable"),
        ("p2", "missing_file"),
        ("p3", "malformed_boxes"),
        ("p4", "not_annotated_boxes"),
    ]


def test_pictures_that_nobody_marked_are_no_fault_where_nothing_is_marked(pictures: Path) -> None:
    assert faults(boxed(None, None), progress=False) == []


def test_boxes_and_mask_must_agree_on_whether_there_is_a_lesion(pictures: Path, write_picture: Write) -> None:
    marks = [0, 1, 1, 0, 9]
    masks = [write_picture(pictures / f"m{n}.png", np.full((30, 40), value, np.uint8)) for n, value in enumerate(marks)]
    found = faults(
        boxed("", "1,2,3,4,cyst", "", "1,2,3,4,cyst", "none", masks=masks, labels=LabelTable({1: "cyst"}, ignore=9)),
        progress=False,
    )
    assert [(fault.case, fault.kind) for fault in found if fault.kind != "empty_label"] == [
        ("p2", "boxes_against_mask"),
        ("p3", "boxes_against_mask"),
    ]
    assert [fault.case for fault in found if fault.kind == "empty_label"] == ["p0", "p3", "p4"]


def test_masks_that_number_their_lesions_hold_one_label(pictures: Path, write_picture: Write) -> None:
    numbered = np.repeat(np.arange(30, dtype=np.uint8)[:, None], 40, 1)
    masks = [write_picture(pictures / "m0.png", numbered), write_picture(pictures / "m1.png", 0 * numbered)]
    given = boxed(None, None, masks=masks, labels=LabelTable({4: "cyst"}, ignore=29))
    assert "unknown_label" in {fault.kind for fault in faults(given, progress=False)}
    found = faults(given, instances=True, progress=False)
    assert [(fault.case, fault.kind) for fault in found] == [("p1", "empty_label")]
    assert dict(examine(given, instances=True, progress=False)[0].voxels) == {4: 28 * 40, 29: 40}
    with pytest.raises(MedsegError, match=r"expected one label, found cyst, tumour; name one with data\.label_names"):
        faults(boxed(None, masks=masks[:1]), instances=True, progress=False)


def test_the_options_of_the_readers_hold_for_checking_too(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 500, (12, 10, 6)).astype(np.int16)
    affine = affine_of(volume.shape)
    write_series(tmp_path, volume, affine, drop=[2])
    given = folder(tmp_path, progress=False)
    assert [fault.kind for fault in faults(given, progress=False)] == ["missing_slices"]
    assert faults(given, options={"uneven": "resample"}, progress=False) == []


def test_an_empty_label_and_what_is_left_out_are_notes() -> None:
    assert {"empty_label", "left_out", "not_annotated"} <= NOTES


@pytest.mark.shared_data
def test_real_data_that_look_alike_are_no_duplicates(shared_data: Path) -> None:
    assert faults(msd(shared_data / "hippocampus"), 3, progress=False) == []
    root = shared_data / "lgg_flair"
    assert faults(folder(root / "images", root / "masks", label_names={1: "tumour"}), 3, progress=False) == []


@pytest.mark.shared_data
def test_real_pictures_that_are_doubled_are_found(shared_data: Path) -> None:
    root = shared_data / "breast_ultrasound"
    found = faults(folder(root / "images", root / "masks", label_names={1: "lesion"}), 2, progress=False)
    # benign_433 and malignant_145 are the same file under two diagnoses; 316 and 426 the same picture cut one row apart.
    assert ("benign_433", "duplicate") in {(fault.case, fault.kind) for fault in found}
    assert any("benign_426" in f.message for f in found if f.case == "benign_316")
    assert {fault.kind for fault in found} == {"empty_label", "duplicate", "near_duplicate"}
