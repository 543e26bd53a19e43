"""Before the first case, one line says what the largest one takes; a grant too small for it names the smallest that works."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.commands.predict import predict
from medseg.errors import MedsegError
from medseg.model import save_model
from tests.tiny import noise, tiny_model, write_nifti


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "in" / "small.nii.gz", noise((10, 9, 8)))
    write_nifti(tmp_path / "in" / "large.nii.gz", noise((30, 20, 10)))
    return tmp_path / "in"


def run(scans: Path, output: Path, workers: int = 1, **runtime: object) -> Path:
    save_model(tiny_model(3), output.parent / "model")
    return predict(
        model=output.parent / "model", input=scans, output=output, progress=False, mirror=False, report=False, workers=workers,
        runtime={"device": "cpu", "precision": "float32", **runtime},
    )  # fmt: skip


def test_the_peak_of_the_largest_case_is_said_once(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "medseg"):
        run(scans, tmp_path / "out")
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory:")]
    assert len(lines) == 1
    assert "large" in lines[0] and "30×20×10" in lines[0] and "GB at most" in lines[0]


def test_too_small_a_grant_says_the_smallest_that_works_and_that_one_works(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"smallest that works is runtime\.memory_gb=[\d.]+") as caught:
        run(scans, tmp_path / "out", memory_gb=0.05)
    assert not (tmp_path / "out").exists()
    found = re.search(r"runtime\.memory_gb=([\d.]+)$", str(caught.value))
    assert found is not None
    output = run(scans, tmp_path / "out", memory_gb=float(found.group(1)) + 0.2)
    assert (output / "large" / "mask.nii.gz").is_file()


def test_one_case_after_another_gives_the_same_masks_as_all_at_once(scans: Path, tmp_path: Path) -> None:
    one, two = run(scans, tmp_path / "a"), run(scans, tmp_path / "b", memory_gb=500)
    for name in ("small", "large"):
        masks = [np.asarray(nib.load(output / name / "mask.nii.gz").dataobj) for output in (one, two)]
        np.testing.assert_array_equal(*masks)


def test_with_no_worker_nothing_is_held_beside_the_case_that_is_predicted(
    scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "medseg"):
        run(scans, tmp_path / "out", workers=0)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory:")]
    assert line.endswith("one after another")
