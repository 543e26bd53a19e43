from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.errors import MedsegError
from medseg.scans import read_case, read_mask
from medseg.scans.layouts import folder
from medseg.structures import Case, Cohort, Fault
from tests.annotation_factory import write_rtstruct, write_seg
from tests.dicom_factory import affine_of, write_series

SHAPE = (10, 8, 5)
AFFINE = affine_of(SHAPE, spacing=(1.0, 1.0, 2.0))
MASK = np.zeros(SHAPE, bool)
MASK[2:5, 3:6, 1:4] = True
THICK = {"minimum_slices": 3}


def series(folder: Path, study: str, seed: str = "ct", **options: Any) -> list[Path]:
    """A series that differs from all others in its values; of one frame of reference with those of its study."""
    rng = np.random.default_rng([*f"{study} {seed}".encode()])
    shape = options.pop("shape", SHAPE)
    affine = options.pop("affine", AFFINE)
    volume = rng.integers(0, 500, shape).astype(np.int16)
    return write_series(folder, volume, affine, study=study, seed=f"{study}-{seed}", **options)


def contours() -> list[np.ndarray]:
    """Around the voxels of ``MASK``, between their centres and those of their neighbours."""
    corners = np.array([[1.5, 2.5], [4.5, 2.5], [4.5, 5.5], [1.5, 5.5]])
    index = [np.column_stack([corners, np.full(4, k)]) for k in (1, 2, 3)]
    return [points @ AFFINE[:3, :3].T + AFFINE[:3, 3] for points in index]


def said(faults: Any) -> dict[str, str]:
    return {fault.case: fault.kind for fault in faults}


def message(cohort: Cohort, kind: str) -> str:
    (fault,) = (fault for fault in cohort.faults if fault.kind == kind)
    assert isinstance(fault, Fault)
    return fault.message


def mask_of(case: Case, cohort: Cohort) -> np.ndarray:
    assert case.label is not None
    return read_mask(case.label, read_case(case).geometry, cohort.labels)[0]


@pytest.fixture
def two_patients(tmp_path: Path) -> dict[str, list[Path]]:
    """``anna`` and ``bert``, each with a series, and a localizer of anna's."""
    series(tmp_path / "scans" / "anna" / "scout", "anna", "scout", shape=(6, 6, 2), description="scout")
    return {name: series(tmp_path / "scans" / name / "ct", name) for name in ("anna", "bert")}


def test_a_folder_of_series_and_what_refers_to_them_is_a_data_set(
    tmp_path: Path, two_patients: dict[str, list[Path]]
) -> None:
    write_seg(tmp_path / "scans" / "one.dcm", {"Tumour": MASK}, AFFINE, images=two_patients["bert"])
    write_rtstruct(tmp_path / "scans" / "two.dcm", {"tumour": contours()}, images=two_patients["anna"])
    cohort = folder(tmp_path / "scans", progress=False)
    assert cohort.labels is not None
    assert list(cohort.labels.names.values()) in (["Tumour"], ["tumour"])
    assert {case.label.kind for case in cohort.cases if case.label} == {"seg", "rtstruct"}
    for case in cohort.cases:
        np.testing.assert_array_equal(mask_of(case, cohort), MASK)
    assert list(said(cohort.faults).values()) == ["not_annotated"]  # the localizer
    assert "no SEG or RTSTRUCT" in cohort.faults[0].message


def test_a_series_that_nothing_refers_to_stays_for_its_class(
    tmp_path: Path, two_patients: dict[str, list[Path]]
) -> None:
    write_seg(tmp_path / "scans" / "one.dcm", {"Tumour": MASK}, AFFINE, images=two_patients["bert"])
    plain = folder(tmp_path / "scans", progress=False)
    assert len(plain.cases) == 1 and list(said(plain.faults).values()) == ["not_annotated"] * 2
    healthy = next(case for case, kind in said(plain.faults).items() if kind == "not_annotated")
    (tmp_path / "t.csv").write_text(f"id,class\n{plain.cases[0].id},ill\n{healthy},well\n")
    cohort = folder(tmp_path / "scans", table=tmp_path / "t.csv", progress=False)
    assert {case.class_name: case.label is not None for case in cohort.cases} == {"ill": True, "well": False}
    assert list(said(cohort.faults).values()) == ["not_annotated"]  # neither a class nor a missing row


def test_labels_may_lie_in_a_folder_of_their_own_and_masks_beside_them(
    tmp_path: Path, two_patients: dict[str, list[Path]], write_nifti: Callable[..., Path]
) -> None:
    write_seg(tmp_path / "labels" / "x.dcm", {"tumour": MASK}, AFFINE, images=two_patients["bert"])
    write_nifti(tmp_path / "labels" / "anna.nii.gz", MASK.astype(np.uint8), AFFINE)
    with pytest.raises(MedsegError, match="which have names, and 1 are masks of values"):
        folder(tmp_path / "scans", tmp_path / "labels", select=THICK, progress=False)
    cohort = folder(tmp_path / "scans", tmp_path / "labels", label_names={1: "tumour"}, select=THICK, progress=False)
    assert sorted(case.label.kind for case in cohort.cases if case.label) == ["nifti", "seg"]
    for case in cohort.cases:
        np.testing.assert_array_equal(mask_of(case, cohort), MASK)
    assert list(said(cohort.faults).values()) == ["left_out"]


def test_images_and_labels_may_be_one_folder(tmp_path: Path, two_patients: dict[str, list[Path]]) -> None:
    for name, images in two_patients.items():
        write_seg(tmp_path / "scans" / name / "seg.dcm", {"tumour": MASK}, AFFINE, images=images)
    cohort = folder(tmp_path / "scans", tmp_path / "scans", select={"description": "synthetic"}, progress=False)
    assert len(cohort.cases) == 2
    held = folder(tmp_path / "scans" / "bert" / "ct", tmp_path / "scans" / "bert", progress=False)
    assert len(held.cases) == 1  # the images of the folder of labels are no labels


def test_a_seg_of_a_series_that_is_absent_is_a_fault(tmp_path: Path, two_patients: dict[str, list[Path]]) -> None:
    other = series(tmp_path / "elsewhere", "cleo")
    write_seg(tmp_path / "scans" / "lost.dcm", {"tumour": MASK}, AFFINE, images=other)
    write_seg(tmp_path / "scans" / "anna.dcm", {"tumour": MASK}, AFFINE, images=two_patients["anna"])
    cohort = folder(tmp_path / "scans", progress=False)
    assert said(cohort.faults)["lost"] == "source_absent"
    assert "lost.dcm: a SEG of a series that is not in" in message(cohort, "source_absent")
    assert len(cohort.cases) == 1


def test_contours_in_another_frame_of_reference_are_a_fault(
    tmp_path: Path, two_patients: dict[str, list[Path]]
) -> None:
    def move(ds: Dataset) -> None:
        ds.FrameOfReferenceUID = ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.3.4"

    path = tmp_path / "scans" / "bert" / "rs.dcm"
    write_rtstruct(path, {"tumour": contours()}, images=two_patients["bert"], change=move)
    write_rtstruct(tmp_path / "scans" / "rs2.dcm", {"tumour": contours()})  # refers to nothing at all
    write_seg(tmp_path / "scans" / "anna.dcm", {"tumour": MASK}, AFFINE, images=two_patients["anna"])
    cohort = folder(tmp_path / "scans", progress=False)
    assert said(cohort.faults)["rs"] == said(cohort.faults)["rs2"] == "other_frame_of_reference"
    assert "Secret" not in str(cohort.faults)


def test_several_annotations_of_a_series_are_named_and_chosen_or_merged(tmp_path: Path) -> None:
    images = series(tmp_path / "ct", "anna")
    other = np.roll(MASK, 4, axis=0)
    write_seg(tmp_path / "reader_1.dcm", {"tumour": MASK}, AFFINE, images=images)
    write_seg(tmp_path / "sub" / "reader_2.dcm", {"tumour": other}, AFFINE, images=images)
    write_rtstruct(tmp_path / "rs.dcm", {"tumour": contours()}, images=images)
    with pytest.raises(MedsegError, match=r"3 SEG or RTSTRUCT refer to it: .*reader_1\.dcm.*sub/reader_2\.dcm.*match"):
        folder(tmp_path, progress=False)
    chosen = folder(tmp_path, annotation_match="reader_2", progress=False)
    np.testing.assert_array_equal(mask_of(chosen.cases[0], chosen), other)
    assert said(chosen.faults) == {"reader_1": "left_out", "rs": "left_out"}
    both = folder(tmp_path, annotation_match="^seg", merge_annotations=True, progress=False)
    np.testing.assert_array_equal(mask_of(both.cases[0], both), MASK | other)
    with pytest.raises(MedsegError, match="3 SEG or RTSTRUCT refer"):
        folder(tmp_path, merge_annotations=True, progress=False)  # of two kinds
    with pytest.raises(MedsegError, match="no regular expression"):
        folder(tmp_path, annotation_match="(", progress=False)


def test_without_references_the_frame_of_reference_and_the_planes_decide(tmp_path: Path) -> None:
    """PET and CT of one study share a frame; the contours lie on the slices of one of them."""
    images = series(tmp_path / "ct", "anna", "ct")
    series(
        tmp_path / "pet", "anna", "pet", modality="PT", shape=(8, 7, 4), affine=affine_of((8, 7, 4), spacing=(2, 2, 3))
    )
    write_rtstruct(tmp_path / "rs.dcm", {"tumour": contours()}, images=images, refer=False)
    cohort = folder(tmp_path, progress=False)
    assert [case.images[0].modality for case in cohort.cases] == ["CT"]

    def forget(ds: Dataset) -> None:
        del ds.ReferencedSeriesSequence

    (tmp_path / "rs.dcm").unlink()
    write_seg(tmp_path / "seg.dcm", {"tumour": MASK}, AFFINE, images=images, change=forget)
    cohort = folder(tmp_path, progress=False)
    assert [case.images[0].modality for case in cohort.cases] == ["CT"]
    np.testing.assert_array_equal(mask_of(cohort.cases[0], cohort), MASK)


def test_of_several_volumes_of_a_series_the_one_whose_images_are_named_is_meant(tmp_path: Path) -> None:
    images = series(tmp_path / "mr", "anna", modality="MR", shape=(3, *SHAPE))
    second = [path for path in images if temporal_position(path) == 2]
    assert len(second) == SHAPE[2]
    write_seg(tmp_path / "seg.dcm", {"tumour": MASK}, AFFINE, images=second)
    cohort = folder(tmp_path, progress=False)
    (case,) = cohort.cases
    assert set(case.images[0].files) == set(second)
    write_seg(tmp_path / "seg.dcm", {"tumour": MASK}, AFFINE, images=images)
    with pytest.raises(MedsegError, match="may belong to any of MR_"):
        folder(tmp_path, progress=False)


def temporal_position(path: Path) -> int:
    import pydicom

    return int(pydicom.dcmread(path, stop_before_pixels=True).TemporalPositionIdentifier)


def test_an_annotation_belongs_to_all_channels_of_its_examination(tmp_path: Path) -> None:
    for name in ("anna", "bert"):
        series(tmp_path / name / "t1", name, "t1", modality="MR", description="ax T1")
        flair = series(tmp_path / name / "flair", name, "flair", modality="MR", description="ax FLAIR")
        write_seg(tmp_path / name / "seg.dcm", {"tumour": MASK}, AFFINE, images=flair)
    cohort = folder(tmp_path, channels={"T1": "t1", "FLAIR": "flair"}, progress=False)
    assert len(cohort.cases) == 2
    assert not cohort.faults
    assert read_case(cohort.cases[0]).data.shape == (2, *SHAPE)
    np.testing.assert_array_equal(mask_of(cohort.cases[1], cohort), MASK)


def test_segments_are_picked_and_called_alike_by_rules(tmp_path: Path, two_patients: dict[str, list[Path]]) -> None:
    body = np.ones(SHAPE, bool)
    for name, label in (("anna", "GTV-1"), ("bert", "gtv_primary")):
        path = tmp_path / "scans" / f"{name}.dcm"
        write_seg(path, {"body": body, label: MASK}, AFFINE, images=two_patients[name])
    cohort = folder(tmp_path / "scans", label_match={"tumour": "gtv.*"}, progress=False)
    assert cohort.labels is not None
    assert dict(cohort.labels.names) == {1: "tumour"}
    for case in cohort.cases:
        np.testing.assert_array_equal(mask_of(case, cohort), MASK)
    named = folder(
        tmp_path / "scans", label_match={"tumour": "gtv.*"}, label_names={4: "body", 7: "Tumour"}, progress=False
    )
    assert np.unique(mask_of(named.cases[0], named)).tolist() == [0, 7]
    with pytest.raises(MedsegError, match="label_match: tumour is none of the labels body"):
        folder(tmp_path / "scans", label_match={"tumour": "gtv.*"}, label_names={4: "body"}, progress=False)
    few = folder(tmp_path / "scans", label_match={"tumour": r"gtv-\d"}, progress=False)
    assert len(few.cases) == 1
    assert "holds 'body', 'gtv_primary', and data.label_match fits none of it" in message(few, "unknown_label")


def test_a_case_with_a_mask_and_a_seg_is_a_fault(
    tmp_path: Path, two_patients: dict[str, list[Path]], write_nifti: Callable[..., Path]
) -> None:
    for name, images in two_patients.items():
        write_seg(tmp_path / "labels" / f"seg_{name}.dcm", {"tumour": MASK}, AFFINE, images=images)
    write_nifti(tmp_path / "labels" / "bert.nii.gz", MASK.astype(np.uint8), AFFINE)
    cohort = folder(tmp_path / "scans", tmp_path / "labels", select=THICK, progress=False)
    assert len(cohort.cases) == 1
    assert "it has a mask (bert.nii.gz) and a SEG" in message(cohort, "several_annotations")


def test_the_labels_of_what_a_selection_leaves_out_are_left_out_with_it(
    tmp_path: Path, two_patients: dict[str, list[Path]], write_nifti: Callable[..., Path]
) -> None:
    pet = series(tmp_path / "scans" / "cleo", "cleo", modality="PT")
    write_seg(tmp_path / "labels" / "seg.dcm", {"tumour": MASK}, AFFINE, images=pet)
    for name in ("anna", "bert", "cleo"):
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", MASK.astype(np.uint8), AFFINE)
    cohort = folder(
        tmp_path / "scans",
        tmp_path / "labels",
        label_names={1: "x"},
        select={"modality": "CT", "minimum_slices": 3},
        progress=False,
    )
    assert len(cohort.cases) == 2
    assert set(said(cohort.faults).values()) == {"left_out"}


@pytest.mark.shared_data
def test_real_folders_of_dicom_are_data_sets(shared_data: Path) -> None:
    root = shared_data / "dicom" / "sarcoma_rtstruct"
    cohort = folder(root, label_match={"tumour": "GTV_Mass.*"}, select={"modality": "PT"}, progress=False)
    assert sorted(int(mask_of(case, cohort).sum()) for case in cohort.cases) == [817, 5962]
    assert set(said(cohort.faults).values()) == {"left_out"}
    cohort = folder(shared_data / "dicom" / "seg_ct3" / "ct", shared_data / "dicom" / "seg_ct3", progress=False)
    assert [case.label.kind for case in cohort.cases if case.label] == ["seg"]
    assert cohort.labels is not None
    assert dict(cohort.labels.names) == {1: "Liver"}
