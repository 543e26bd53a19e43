"""``--multirun`` on real trainings: a failed job does not stop the rest, and what is finished is not done again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medseg.testing.phantoms import write_phantoms

SMALL = [
    "trainer.max_epochs=1",
    "trainer.steps_per_epoch=2",
    "trainer.workers=0",
    "trainer.pictures=0",
    "plan.features=[4,8]",
    "plan.patch_size=[16,16,16]",
    "plan.strides=[[1,1,1],[2,2,2]]",
    "plan.kernel_sizes=[[3,3,3],[3,3,3]]",
    "plan.blocks=[1,1]",
    "plan.batch_size=2",
    "folds=3",
]


def _sweep(where: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    data = ("data=folder", "data.images=data/images", "data.labels=data/labels", "data.channels=[MR]", "name=sweep")
    command = [sys.executable, "-m", "medseg", "train", "--multirun", *data, *SMALL, *overrides]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failed_job_and_skips_what_is_finished(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", range(6), spacing_mm=14.0)
    first = _sweep(tmp_path, "fold=0,7,1")
    assert first.returncode == 3, first.stderr[-2000:]
    assert "fold=7" in first.stderr
    models = [tmp_path / "runs" / "sweep" / f"fold_{k}" / "model" / "weights.safetensors" for k in (0, 1)]
    before = [model.stat().st_mtime_ns for model in models]
    again = _sweep(tmp_path, "fold=0,1")
    assert again.returncode == 0, again.stderr[-2000:]
    assert [model.stat().st_mtime_ns for model in models] == before
