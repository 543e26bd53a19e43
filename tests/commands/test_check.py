from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

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
    assert text.startswith("check: 2 fault(s) in 2 of 2 cases or files")
    assert "files that cannot be read (1): case 'p1'" in text
    assert "labels that nothing names (1): case 'p2'" in text


def test_a_message_that_many_share_is_one_line() -> None:
    faults = [Fault(f"p{n}", "empty_label", "the label marks nothing") for n in range(30)]
    (line,) = by_kind(faults, at_most=2)
    assert line == "labels that mark nothing (30): the label marks nothing: p0, p1 … and 28 more"
    assert "p29" in by_kind(faults)[0]
