from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans import read_case, read_mask
from medseg.scans.layouts import folder, msd, nnunet, table
from medseg.scans.names import slug
from medseg.scans.select import Selection
from medseg.structures import Cohort
from tests.annotation_factory import write_seg
from tests.dicom_factory import affine_of, write_series

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


def test_a_folder_pairs_images_and_labels_by_name(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "sub/p2")
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert ids(cohort) == ["p1", "p2"]
    assert cohort.channels == ("image",)
    assert cohort.labels is not None
    assert dict(cohort.labels.names) == {1: "label_1"}
    assert [case.label.files[0].name for case in cohort.cases if case.label] == ["p1.nii.gz", "p2.nii.gz"]
    assert not cohort.faults


def test_equal_names_in_two_folders_pair_by_path(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("a/scan", "b/scan")
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert ids(cohort) == ["a__scan", "b__scan"]
    assert [case.label.files[0].parent.name for case in cohort.cases if case.label] == ["a", "b"]


def test_what_has_no_partner_is_a_fault_on_either_side(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "p2", "p3")
    (tmp_path / "labels" / "p2.nii.gz").rename(tmp_path / "labels" / "other.nii.gz")
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert ids(cohort) == ["p1", "p3"]
    assert faults(cohort) == {("p2", "image_without_label"), ("other", "label_without_image")}
    assert ids(folder(tmp_path / "images", tmp_path / "labels", skip=["p2", "other"])) == ["p1", "p3"]


def test_labels_of_other_cases_altogether_are_an_error_that_shows_both(
    tmp_path: Path, pair: Callable[..., None]
) -> None:
    pair("p1")
    (tmp_path / "labels" / "p1.nii.gz").rename(tmp_path / "labels" / "q9.nii.gz")
    with pytest.raises(MedsegError, match=r"images such as p1\.nii\.gz, labels such as q9\.nii\.gz"):
        folder(tmp_path / "images", tmp_path / "labels")


def test_an_unreadable_file_is_one_fault_not_two(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "p2", "p3")
    (tmp_path / "images" / "p2.nii.gz").write_bytes(b"garbage")
    (tmp_path / "labels" / "p3.nii.gz").write_bytes(b"")
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert faults(cohort) == {("p2", "unreadable"), ("p3", "unreadable")}


def test_missing_and_empty_folders_are_errors(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedsegError, match=r"images .*gone: no such folder"):
        folder(tmp_path / "gone", tmp_path / "labels")
    with pytest.raises(MedsegError, match=r"images .*empty: expected scans.*the folder is empty"):
        folder(tmp_path / "empty", tmp_path / "labels")
    with pytest.raises(MedsegError, match=r"labels .*empty: expected scans"):
        folder(tmp_path / "images", tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("hello")
    with pytest.raises(MedsegError, match=r"expected scans.*\n.*notes\.txt"):
        folder(tmp_path / "empty")


def test_a_suffix_tells_labels_from_images_in_one_folder(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p1", "p2"):
        write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
        write_nifti(tmp_path / f"{name}_seg.nii.gz", MASK)
    assert ids(folder(tmp_path, tmp_path, label_suffix="_seg")) == ["p1", "p2"]
    with pytest.raises(MedsegError, match="label_suffix"):
        folder(tmp_path, tmp_path)


def test_labels_below_the_images_are_no_images(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "p1.nii.gz", IMAGE)
    write_nifti(tmp_path / "labels" / "p1.nii.gz", MASK)
    assert ids(folder(tmp_path, tmp_path / "labels")) == ["p1"]


def test_channels_are_told_from_the_numbers_of_the_files(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p1", "p2"):
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", MASK)
        for channel in range(2):
            write_nifti(tmp_path / "images" / f"{name}_{channel:04d}.nii.gz", IMAGE + channel)
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert ids(cohort) == ["p1", "p2"]
    assert cohort.channels == ("channel_0", "channel_1")
    assert read_case(cohort.cases[0]).data[:, 0, 0, 0].tolist() == [0, 1]
    (tmp_path / "images" / "p2_0001.nii.gz").unlink()
    cohort = folder(tmp_path / "images", tmp_path / "labels", channels=["T1", "FLAIR"])
    assert ids(cohort) == ["p1"]
    (fault,) = cohort.faults
    assert (fault.case, fault.kind) == ("p2", "missing_channel")
    assert "channel 1 (FLAIR) is missing: expected p2_0001.nii.gz beside p2_0000.nii.gz" in fault.message


def test_numbered_cases_are_no_channels(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("img_0000", "img_0001", "img_0002")
    assert ids(folder(tmp_path / "images", tmp_path / "labels")) == ["img_0000", "img_0001", "img_0002"]


def test_a_single_channel_number_is_dropped(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p1", "p2"):
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", MASK)
        write_nifti(tmp_path / "images" / f"{name}_0000.nii.gz", IMAGE)
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert ids(cohort) == ["p1", "p2"]
    assert len(cohort.cases[0].images) == 1


def test_a_series_takes_the_label_called_like_its_folder(
    tmp_path: Path, write_series: Callable, write_nifti: Write, ramp: np.ndarray
) -> None:
    lps_to_ras = np.diag([-1.0, -1, 1, 1])
    for name in ("anna", "bert"):
        write_series(tmp_path / "images" / name / "deep", ramp, series="1" if name == "anna" else "2")
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", np.ones((4, 5, 3), np.uint8), lps_to_ras)
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert all(case.id.startswith("MR_") for case in cohort.cases)
    assert all(case.patient.startswith("patient_") for case in cohort.cases)
    assert {case.label.files[0].name for case in cohort.cases if case.label} == {"anna.nii.gz", "bert.nii.gz"}
    case = cohort.cases[0]
    assert case.label is not None
    read_mask(case.label, read_case(case).geometry)
    assert cohort.channels == ("MR",)


def test_two_series_that_claim_one_label_are_faults(
    tmp_path: Path, write_series: Callable, write_nifti: Write, ramp: np.ndarray
) -> None:
    write_series(tmp_path / "images" / "p1" / "t1", ramp, series="1")
    write_series(tmp_path / "images" / "p1" / "t2", ramp, series="2")
    write_series(tmp_path / "images" / "p2", ramp, series="3", study="2")
    for name in ("p1", "p2"):
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", MASK)
    cohort = folder(tmp_path / "images", tmp_path / "labels")
    assert len(cohort.cases) == 1
    assert [fault.kind for fault in cohort.faults] == ["ambiguous_label"] * 2


def test_series_become_channels_by_rules(
    tmp_path: Path, write_series: Callable, write_nifti: Write, ramp: np.ndarray
) -> None:
    for number, description in enumerate(("Sag T2 FLAIR", "Ax T1 post", "localizer")):
        write_series(tmp_path / "images" / "p1" / str(number), ramp, series=str(number), description=description)
    write_nifti(tmp_path / "labels" / "p1.nii.gz", np.ones((4, 5, 3), np.uint8), np.diag([-1.0, -1, 1, 1]))
    cohort = folder(tmp_path / "images", tmp_path / "labels", channels={"T1": r"\bT1\b", "FLAIR": "flair"})
    (case,) = cohort.cases
    assert cohort.channels == ("T1", "FLAIR")
    assert [source.description for source in case.images] == ["Ax T1 post", "Sag T2 FLAIR"]


def test_a_table_joins_patients_and_metadata(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "p2", "p3")
    (tmp_path / "t.csv").write_text("id,who,class,age\np1,A,benign,3\np2,A,malignant,4\n")
    cohort = folder(tmp_path / "images", tmp_path / "labels", table=tmp_path / "t.csv", columns={"patient": "who"})
    assert [(case.patient, case.class_name, dict(case.metadata)) for case in cohort.cases] == [
        ("A", "benign", {"age": "3"}),
        ("A", "malignant", {"age": "4"}),
    ]
    assert faults(cohort) == {("p3", "missing_row")}


def test_the_first_folder_below_the_images_is_the_class_unless_a_table_says_another(
    tmp_path: Path, write_picture: Write
) -> None:
    for name in ("benign/1.png", "malignant/1.png", "malignant/late/2.png", "3.png"):
        write_picture(tmp_path / "images" / name, np.zeros((3, 4), np.uint8))
    plain = folder(tmp_path / "images")
    assert {case.class_name for case in plain.cases} == {None}
    cohort = folder(tmp_path / "images", class_folders=True)
    classes = {"2": "malignant", "3": None, "benign__1": "benign", "malignant__1": "malignant"}
    assert {case.id: case.class_name for case in cohort.cases} == classes
    assert cohort.classes == ("benign", "malignant")
    (tmp_path / "t.csv").write_text("id,class\n2,unsure\n3,benign\nbenign__1,\nmalignant__1,\n")
    mended = folder(tmp_path / "images", class_folders=True, table=tmp_path / "t.csv")
    assert {case.id: case.class_name for case in mended.cases} == classes | {"2": "unsure", "3": "benign"}


def test_masks_may_lie_beside_the_images_in_the_folder_of_their_class(tmp_path: Path, write_picture: Write) -> None:
    for name in ("benign/1", "malignant/2"):
        write_picture(tmp_path / f"{name}.png", np.zeros((3, 4), np.uint8))
        write_picture(tmp_path / f"{name}_mask.png", np.ones((3, 4), np.uint8))
    cohort = folder(tmp_path, tmp_path, label_suffix="_mask", class_folders=True)
    assert [(case.id, case.class_name) for case in cohort.cases] == [("1", "benign"), ("2", "malignant")]
    assert all(case.label is not None for case in cohort.cases)


def test_an_image_without_mask_stays_for_its_class(tmp_path: Path, write_picture: Write) -> None:
    for name in ("ill/1", "well/2", "3"):
        write_picture(tmp_path / "images" / f"{name}.png", np.zeros((3, 4), np.uint8))
    write_picture(tmp_path / "labels" / "1.png", np.ones((3, 4), np.uint8))
    where = tmp_path / "images", tmp_path / "labels"
    cohort = folder(*where, class_folders=True)
    assert [(case.id, case.label is not None, case.class_name) for case in cohort.cases] == [
        ("1", True, "ill"),
        ("2", False, "well"),
    ]
    assert faults(cohort) == {("3", "image_without_label")}
    assert ids(folder(*where)) == ["1"]
    (tmp_path / "t.csv").write_text("id,class\n1,ill\n3,well\n")
    tabled = folder(*where, table=tmp_path / "t.csv")
    assert ids(tabled) == ["1", "3"]
    assert faults(tabled) == {("2", "image_without_label")}


def test_a_row_without_label_stays_for_its_class(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "a.nii.gz", IMAGE)
    write_nifti(tmp_path / "m.nii.gz", MASK)
    (tmp_path / "t.csv").write_text(
        "id,image,label,class\np1,a.nii.gz,m.nii.gz,ill\np2,a.nii.gz,,well\np3,a.nii.gz,,\n"
    )
    cohort = table(tmp_path / "t.csv")
    assert [(case.id, case.label is not None) for case in cohort.cases] == [("p1", True), ("p2", False)]
    assert faults(cohort) == {("p3", "image_without_label")}
    assert cohort.classes == ("ill", "well")


def test_a_series_has_the_class_of_the_folder_that_holds_its_own(
    tmp_path: Path, write_series: Callable, ramp: np.ndarray
) -> None:
    write_series(tmp_path / "ill" / "scan_a", ramp)
    cohort = folder(tmp_path, class_folders=True)
    assert [case.class_name for case in cohort.cases] == ["ill"]


def test_skipping_what_is_not_there_is_said(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "p2")
    assert ids(folder(tmp_path / "images", tmp_path / "labels", skip=["p2"])) == ["p1"]
    with pytest.raises(MedsegError, match="no case 'p7'"):
        folder(tmp_path / "images", tmp_path / "labels", skip=["p7"])
    with pytest.raises(MedsegError, match="no case is left"):
        folder(tmp_path / "images", tmp_path / "labels", skip=["p1", "p2"])


def test_colour_pictures_fill_three_channels(tmp_path: Path, write_picture: Write) -> None:
    write_picture(tmp_path / "images" / "a.png", np.zeros((3, 4, 3), np.uint8))
    write_picture(tmp_path / "labels" / "a.png", np.ones((3, 4), np.uint8))
    for channels in (None, ["r", "g", "b"]):
        cohort = folder(tmp_path / "images", tmp_path / "labels", channels=channels)
        assert len(cohort.channels) == 3
        assert len(cohort.cases[0].images) == 1


def describe(root: Path, **values: object) -> None:
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(values))


def test_msd_lists_its_training_cases(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p1", "p2"):
        write_nifti(tmp_path / "imagesTr" / f"{name}.nii.gz", np.stack([IMAGE, IMAGE + 1], -1))
        write_nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", MASK)
    (tmp_path / "imagesTr" / "._p1.nii.gz").write_bytes(b"left by macOS")
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("p1", "p2", "gone")]
    describe(tmp_path, modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "../tumour"}, training=listed)
    cohort = msd(tmp_path)
    assert ids(cohort) == ["p1", "p2"]
    assert cohort.channels == ("T1", "T2")
    assert read_case(cohort.cases[0]).data[:, 0, 0, 0].tolist() == [0, 1]
    assert faults(cohort) == {("gone", "missing_file")}
    assert cohort.labels is not None
    assert [slug(name) for name in cohort.labels.names.values()] == ["tumour"]


def test_msd_without_its_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"dataset\.json: no such file"):
        msd(tmp_path)
    describe(tmp_path, labels={"0": "background"})
    with pytest.raises(MedsegError, match="expected a list 'training'"):
        msd(tmp_path)
    (tmp_path / "dataset.json").write_text("{broken")
    with pytest.raises(MedsegError, match="not readable as JSON"):
        msd(tmp_path)
    with pytest.raises(MedsegError, match="no such folder"):
        msd(tmp_path / "gone")


def test_nnunet_raw_with_regions_and_an_ignore_label(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p_1", "p_2"):
        write_nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", MASK)
        for channel in range(2):
            write_nifti(tmp_path / "imagesTr" / f"{name}_{channel:04d}.nii.gz", IMAGE)
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    describe(
        tmp_path, channel_names={"0": "T1", "1": "T2"}, labels=labels, regions_class_order=[1, 2], file_ending=".nii.gz"
    )
    cohort = nnunet(tmp_path)
    assert ids(cohort) == ["p_1", "p_2"]
    assert cohort.channels == ("T1", "T2")
    assert cohort.labels is not None
    assert dict(cohort.labels.regions) == {"whole": (1, 2), "core": (2,)}
    assert (cohort.labels.paint, cohort.labels.ignore) == ((1, 2), 3)


def test_nnunet_takes_the_paths_that_its_description_lists(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "x" / "i.nii.gz", IMAGE)
    write_nifti(tmp_path / "x" / "m.nii.gz", MASK)
    listed = {
        "../q": {"images": ["x/i.nii.gz"], "label": "x/m.nii.gz"},
        "r": {"images": ["x/gone.nii.gz"], "label": "x/m.nii.gz"},
    }
    describe(tmp_path, channel_names={"0": "CT"}, labels={"background": 0, "a": 1}, dataset=listed)
    cohort = nnunet(tmp_path)
    assert ids(cohort) == ["q"]
    assert faults(cohort) == {("r", "missing_file")}


def test_a_table_lists_cases_and_says_what_each_row_lacks(
    tmp_path: Path, write_nifti: Write, write_series: Callable
) -> None:
    write_nifti(tmp_path / "i" / "a.nii.gz", IMAGE)
    write_nifti(tmp_path / "i" / "m.nii.gz", MASK)
    write_series(tmp_path / "i" / "d", IMAGE)
    (tmp_path / "t.csv").write_text(
        "id,image,image_2,label,patient,boxes,site\n"
        '../p1,i/a.nii.gz,i/a.nii.gz,i/m.nii.gz,A,"1,2,3,4;5,6,7,8",X\n'
        "p2,i/d,i/a.nii.gz,i/m.nii.gz,,boxes.json,\n"
        "p3,i/a.nii.gz,,i/m.nii.gz,B,,\n"
        "p4,i/a.nii.gz,i/gone.nii.gz,i/m.nii.gz,B,,\n"
        "p5,i/a.nii.gz,i/a.nii.gz,,B,,\n"
        "p6,i/a.nii.gz,i/a.nii.gz,i/m.nii.gz,,,\n"
        "p6,i/a.nii.gz,i/a.nii.gz,i/m.nii.gz,,,\n"
    )
    cohort = table(tmp_path / "t.csv", channels=["T1", "T2"])
    assert ids(cohort) == ["p1", "p2"]
    first, second = cohort.cases
    assert (first.patient, first.boxes, dict(first.metadata)) == ("A", "1,2,3,4;5,6,7,8", {"site": "X"})
    assert second.images[0].kind == "dicom"
    assert second.patient.startswith("patient_")
    assert second.boxes == tmp_path / "boxes.json"
    assert faults(cohort) == {
        ("p3", "missing_channel"),
        ("p4", "missing_file"),
        ("p5", "image_without_label"),
        ("p6", "duplicate_id"),
    }


def test_a_table_may_name_a_seg_and_a_folder_of_which_one_series_is_wanted(tmp_path: Path) -> None:
    shape = (6, 5, 4)
    affine = affine_of(shape)
    mask = np.zeros(shape, bool)
    mask[1:3, 1:3, 1:3] = True
    for name in ("p", "q"):
        ct = write_series(tmp_path / name / "ct", np.zeros(shape, np.int16), affine, study=name, seed=f"{name}ct")
        write_series(
            tmp_path / name / "pt", np.zeros(shape, np.int16), affine, study=name, seed=f"{name}pt", modality="PT"
        )
        write_seg(tmp_path / "labels" / f"{name}.dcm", {"tumour": mask}, affine, images=ct)
    (tmp_path / "t.csv").write_text(
        "id,image,label\np,p,labels/p.dcm\nq,q,labels/q.dcm\nr,q,labels/p.dcm\ns,q,labels\n"
    )
    cohort = table(tmp_path / "t.csv", select={"modality": "CT"}, progress=False)
    assert ids(cohort) == ["p", "q"]
    assert faults(cohort) == {("r", "other_frame_of_reference"), ("s", "several_annotations")}
    for case in cohort.cases:
        assert case.label is not None
        assert case.images[0].modality == "CT"
        found, _ = read_mask(case.label, read_case(case).geometry, cohort.labels)
        np.testing.assert_array_equal(found, mask)
    with pytest.raises(MedsegError, match=r"(?s)no case is left.*expected one volume, found 2") as caught:
        table(tmp_path / "t.csv", progress=False)
    assert "Secret" not in str(caught.value)
    with pytest.raises(MedsegError, match="expected one volume that select wants, found 0 of"):
        table(tmp_path / "t.csv", select={"modality": "MR"}, progress=False)


def test_what_a_selection_leaves_out_is_listed_and_no_fault(tmp_path: Path, pair: Callable[..., None]) -> None:
    pair("p1", "p2")
    write_series(tmp_path / "images" / "d", np.zeros((6, 5, 4), np.int16), affine_of((6, 5, 4)))
    for chosen in ({"minimum_slices": 4}, Selection(minimum_slices=4)):
        cohort = folder(tmp_path / "images", select=chosen, progress=False)
        assert len(cohort.cases) == 3
    cohort = folder(tmp_path / "images", select={"modality": "CT"}, progress=False)
    assert [case.images[0].modality for case in cohort.cases] == ["CT"]
    assert faults(cohort) == {("p1", "left_out"), ("p2", "left_out")}
    with pytest.raises(MedsegError, match="select: no modalty"):
        folder(tmp_path / "images", select={"modalty": "CT"}, progress=False)


@pytest.mark.shared_data
def test_the_real_data_sets_are_listed_without_faults(shared_data: Path) -> None:
    cohort = msd(shared_data / "hippocampus")
    assert (len(cohort.cases), cohort.channels) == (200, ("MRI",))
    assert cohort.labels is not None
    assert dict(cohort.labels.names) == {1: "Anterior", 2: "Posterior"}
    for name, names, count, patients, options in (
        ("lgg_flair", {1: "tumour"}, 80, 80, {"table": "patients.csv"}),
        ("lidc_nodules", {1: "nodule"}, 708, 401, {"table": "nodules.csv", "columns": {"class": "diagnosis"}}),
        ("breast_ultrasound", {1: "lesion"}, 600, 600, {"table": "index.csv", "columns": {"boxes": "boxes_xyxy"}}),
    ):
        root = shared_data / name
        given = {**options, "table": root / str(options["table"])}
        cohort = folder(root / "images", root / "masks", label_names=names, **given)  # type: ignore[arg-type]
        assert not cohort.faults
        assert len(cohort.cases) == count
        assert len({case.patient for case in cohort.cases}) == patients
