from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans.find import Found, find
from medseg.scans.select import Selection


@pytest.fixture
def found(tmp_path: Path, write_series: Callable, write_nifti: Callable, ramp: np.ndarray) -> Found:
    """An axial CT of 3 slices, a sagittal MR of 2, an MR of one oblique slice, and a NIfTI of 4 coronal slices."""
    write_series(tmp_path / "ct", ramp, modality="CT", description="Thorax B30f", series="1")
    write_series(tmp_path / "mr", ramp[:, :, :2], orientation=(0, 1, 0, 0, 0, -1), description="T2 FLAIR", series="2")
    write_series(tmp_path / "scout", ramp[:, :, :1], orientation=(0.7071, 0.7071, 0, 0, 0, -1), series="3")
    write_nifti(tmp_path / "n.nii.gz", np.zeros((6, 4, 5)), np.diag([1, 3, 1, 1]))
    return find(tmp_path)


def kept(found: Found) -> set[str]:
    return {entry.relative.name for entry in found.sources}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"ct", "mr", "scout", "n.nii.gz"}),
        ({"modality": "ct"}, {"ct"}),
        ({"modality": ["CT", "MR"]}, {"ct", "mr", "scout"}),
        ({"description": "flair|thorax"}, {"ct", "mr"}),
        ({"description": "^b30f"}, set()),
        ({"orientation": "Axial"}, {"ct"}),
        ({"orientation": ["coronal", "oblique"]}, {"n.nii.gz", "scout"}),
        ({"minimum_slices": 2}, {"ct", "mr", "n.nii.gz"}),
        ({"minimum_slices": 4}, {"n.nii.gz"}),
        ({"modality": "MR", "minimum_slices": 2}, {"mr"}),
    ],
)
def test_what_is_asked_for_is_kept(found: Found, options: dict[str, object], names: set[str]) -> None:
    chosen = Selection.from_mapping(options).apply(found)
    assert kept(chosen) == names
    left = {fault.case for fault in chosen.unread if fault.kind == "left_out"}
    assert left == {entry.id for entry in found.sources} - {entry.id for entry in chosen.sources}
    assert not chosen.faults  # it was meant


def test_what_is_left_out_says_why(found: Found) -> None:
    chosen = Selection(modality="CT").apply(found)
    reasons = {fault.message for fault in chosen.unread}
    assert reasons == {
        "left out: its modality is MR, asked for CT",
        "left out: its modality is not known, asked for CT",
    }
    (reason,) = {Selection(minimum_slices=3).reason_against(e) for e in found.sources if e.relative.name == "mr"}
    assert reason == "it has 2 slice(s), asked for at least 3"


def test_labels_stay(found: Found) -> None:
    assert Selection(modality="PT").apply(found).annotations == found.annotations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": "CT"}, "no modalities; a selection has modality, description, orientation, minimum_slices"),
        ({"orientation": "diagonal"}, "no diagonal; a series is axial, coronal, sagittal, oblique"),
        ({"description": "("}, "expected a regular expression"),
        ({"minimum_slices": 0}, "expected a whole number from 1 up, found 0"),
        ({"minimum_slices": "many"}, "found 'many'"),
        ({"modality": []}, r"expected a word or several, found \[\]"),
        ({"modality": 7}, "expected a word or several, found 7"),
    ],
)
def test_a_selection_that_makes_no_sense_says_what_would(options: dict[str, object], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        Selection.from_mapping(options)
