from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans import read_case
from medseg.scans.layouts import input_cases
from medseg.structures import Case, Fault
from tests.annotation_factory import write_seg
from tests.dicom_factory import affine_of
from tests.dicom_factory import write_series as write_annotated

Write = Callable[..., Path]
IMAGE = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@dataclass(frozen=True)
class Channel:
    name: str
    match: str = ""


@dataclass(frozen=True)
class Plan:
    scan_channels: Sequence[Channel]
    dimensions: int = 3


ONE = Plan([Channel("MR")])
TWO = Plan([Channel("T1", r"t1"), Channel("T2", r"t2")])


def said(faults: list[Fault]) -> set[tuple[str, str]]:
    return {(fault.case, fault.kind) for fault in faults}


def ids(cases: list[Case]) -> list[str]:
    return [case.id for case in cases]


def test_a_folder_may_mix_formats_and_hold_a_corrupt_file(
    tmp_path: Path, write_nifti: Write, write_series: Callable
) -> None:
    write_nifti(tmp_path / "a.nii.gz", IMAGE)
    write_nifti(tmp_path / "deep" / "b_0000.nii", IMAGE)
    write_series(tmp_path / "series", IMAGE)
    (tmp_path / "corrupt.nii.gz").write_bytes(b"garbage")
    (tmp_path / "notes.txt").write_text("not a scan, and nobody's fault")
    cases, faults = input_cases(tmp_path, ONE)
    assert ids(cases)[1:] == ["a", "b"]
    assert ids(cases)[0].startswith("MR_")
    assert said(faults) == {("corrupt", "unreadable")}
    assert all(case.label is None for case in cases)


def test_a_single_file_and_a_list_of_files_are_inputs(tmp_path: Path, write_nifti: Write) -> None:
    one, two = (write_nifti(tmp_path / f"p_{n:04d}.nii.gz", IMAGE + n) for n in range(2))
    cases, faults = input_cases(one, ONE)
    assert (ids(cases), faults) == (["p"], [])
    cases, faults = input_cases([str(two), str(one)], TWO)
    assert (ids(cases), faults) == (["p"], [])
    assert read_case(cases[0]).data[:, 0, 0, 0].tolist() == [0, 1]


def test_a_missing_channel_is_named(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("p_0000", "p_0001", "q_0001", "r"):
        write_nifti(tmp_path / f"{name}.nii.gz", IMAGE)
    cases, faults = input_cases(tmp_path, TWO)
    assert ids(cases) == ["p"]
    assert said(faults) == {("q", "missing_channel"), ("r", "missing_channel")}
    assert "channel 0 (T1) is missing: expected q_0000.nii.gz beside q_0001.nii.gz" in faults[0].message


def test_a_file_of_several_volumes_is_several_channels(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "p.nii.gz", np.stack([IMAGE, IMAGE + 5], -1))
    (case,), faults = input_cases(tmp_path, TWO)
    assert not faults
    assert read_case(case).data[:, 0, 0, 0].tolist() == [0, 5]


def test_series_are_matched_by_the_rules_of_the_plan(tmp_path: Path, write_series: Callable) -> None:
    for number, description in enumerate(("ax T2", "ax T1", "localizer")):
        write_series(tmp_path / "p" / str(number), IMAGE + number, series=str(number), description=description)
    write_series(tmp_path / "q" / "1", IMAGE, study="2", description="T1 Secret^Name")
    cases, faults = input_cases(tmp_path, TWO)
    assert len(cases) == 1
    assert read_case(cases[0]).data[:, 0, 0, 0].tolist() == [1, 0]
    (fault,) = faults
    assert fault.kind == "missing_channel"
    assert "channel 1 (T2) is missing" in fault.message
    assert "ecret" not in str(fault)


def test_two_series_that_fit_one_channel_are_ambiguous(tmp_path: Path, write_series: Callable) -> None:
    for number, description in enumerate(("T1", "T1 again", "T2")):
        write_series(tmp_path / str(number), IMAGE, series=str(number), description=description)
    cases, faults = input_cases(tmp_path, TWO)
    assert not cases
    assert "channel 0 (T1) is ambiguous" in faults[0].message


def test_several_channels_of_dicom_without_rules_are_refused(tmp_path: Path, write_series: Callable) -> None:
    write_series(tmp_path, IMAGE)
    cases, faults = input_cases(tmp_path, Plan([Channel("a"), Channel("b")]))
    assert not cases
    assert "plan.channels" in faults[0].message


def test_a_rule_of_a_single_channel_chooses_the_series(tmp_path: Path, write_series: Callable) -> None:
    write_series(tmp_path / "1", IMAGE, series="1", description="T1")
    write_series(tmp_path / "2", IMAGE, series="2", description="T2")
    cases, faults = input_cases(tmp_path, Plan([Channel("T2", "t2")]))
    assert [case.images[0].description for case in cases] == ["T2"]
    assert not faults
    cases, faults = input_cases(tmp_path, Plan([Channel("CT", "^CT")]))
    assert not cases
    assert faults[0].kind == "missing_channel"


def test_a_picture_where_a_volume_is_expected_is_a_fault(
    tmp_path: Path, write_nifti: Write, write_picture: Write
) -> None:
    write_nifti(tmp_path / "a.nii.gz", IMAGE)
    write_picture(tmp_path / "b.png", np.zeros((3, 4), np.uint8))
    cases, faults = input_cases(tmp_path, ONE)
    assert (ids(cases), said(faults)) == (["a"], {("b", "wrong_dimensions")})
    cases, faults = input_cases(tmp_path, Plan([Channel("US")], dimensions=2))
    assert (ids(cases), said(faults)) == (["b"], {("a", "wrong_dimensions")})


def test_layouts_give_their_images(tmp_path: Path, write_nifti: Write) -> None:
    for name in ("imagesTr/a", "imagesTs/b", "labelsTr/a"):
        write_nifti(tmp_path / "msd" / f"{name}.nii.gz", IMAGE)
    (tmp_path / "msd" / "dataset.json").write_text(json.dumps({}))
    for name in ("images/c", "masks/c"):
        write_nifti(tmp_path / "plain" / f"{name}.nii.gz", IMAGE)
    assert ids(input_cases(tmp_path / "msd", ONE)[0]) == ["b"]
    assert ids(input_cases(tmp_path / "plain", ONE)[0]) == ["c"]


def test_a_table_is_an_input(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "a.nii.gz", IMAGE)
    (tmp_path / "t.csv").write_text("id,image,patient\n../x,a.nii.gz,P\ny,gone.nii.gz,P\n")
    cases, faults = input_cases(tmp_path / "t.csv", ONE)
    assert [(case.id, case.patient) for case in cases] == [("x", "P")]
    assert said(faults) == {("y", "missing_file")}
    cases, faults = input_cases(tmp_path / "t.csv", TWO)
    assert "expected 2 image columns, found 1" in faults[0].message


def test_an_archive_is_an_input_of_models_of_its_dimensions(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", test_images=np.zeros((2, 5, 4), np.uint8))  # the same pixels: both are wanted
    flat = Plan([Channel("CR")], dimensions=2)
    cases, faults = input_cases(tmp_path / "a.npz", flat)
    assert ids(cases) == ["test_000000", "test_000001"]
    assert not faults
    assert said(input_cases(tmp_path / "a.npz", ONE)[1]) == {(name, "wrong_dimensions") for name in ids(cases)}
    np.savez(tmp_path / "deep.npz", test_images=np.zeros((1, 3, 5, 4), np.uint8))
    assert ids(input_cases([tmp_path / "deep.npz"], ONE)[0]) == ["test_000000"]
    assert said(input_cases(tmp_path / "deep.npz", flat)[1]) == {("test_000000", "wrong_dimensions")}


def test_nothing_there_and_nothing_found_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="no such file or folder"):
        input_cases(tmp_path / "gone", ONE)
    cases, faults = input_cases(tmp_path, ONE)
    assert not cases
    assert faults[0].kind == "empty"


def test_ids_that_two_inputs_share_are_a_fault(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "p.nii.gz", IMAGE)
    write_nifti(tmp_path / "p_0000.nii.gz", IMAGE)
    cases, faults = input_cases(tmp_path, ONE)
    assert not cases
    assert said(faults) == {("p", "duplicate_id")}


def test_a_4d_file_is_a_case_a_volume_for_a_model_of_one_channel(tmp_path: Path, write_nifti: Write) -> None:
    write_nifti(tmp_path / "run.nii.gz", np.stack([IMAGE, IMAGE + 5, IMAGE + 9], -1))
    write_nifti(tmp_path / "one.nii.gz", IMAGE)
    cases, faults = input_cases(tmp_path, ONE)
    assert not faults
    assert ids(cases) == ["one", "run__v0001", "run__v0002", "run__v0003"]
    assert [float(read_case(case).data[0, 0, 0, 0]) for case in cases] == [0, 0, 5, 9]
    assert {case.patient for case in cases} == {"one", "run"}


def test_a_selection_says_which_volumes_are_predicted(
    tmp_path: Path, write_series: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    for number, description in enumerate(("scout", "ax T1")):
        write_series(tmp_path / str(number), IMAGE, series=str(number), description=description)
    caplog.set_level("INFO")
    cases, faults = input_cases(tmp_path, ONE, select={"description": "^ax"})
    assert [case.images[0].description for case in cases] == ["ax T1"]
    assert not faults
    assert "left out: its description does not match '^ax'" in caplog.text
    cases, faults = input_cases(tmp_path, ONE, select={"modality": "CT"})
    assert not cases
    assert "2 scan(s), of which select leaves none" in faults[0].message


def test_annotations_beside_scans_are_no_scans(tmp_path: Path) -> None:
    shape = (6, 5, 4)
    images = write_annotated(tmp_path, np.zeros(shape, np.int16), affine_of(shape))
    write_seg(tmp_path / "seg.dcm", {"liver": np.ones(shape, bool)}, affine_of(shape), images=images)
    cases, faults = input_cases(tmp_path, ONE)
    assert [case.images[0].modality for case in cases] == ["CT"]
    assert not faults
