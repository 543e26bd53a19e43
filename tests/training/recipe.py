"""A whole training run on six tiny phantoms, as a script, so that tests can kill it: ``recipe.py <folder> [key=value …]``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from medseg.commands.train import train
from medseg.scans.layouts import folder as folder_layout
from medseg.structures import Cohort
from medseg.testing.phantoms import LABELS, write_phantoms

NETWORK = {"_target_": "medseg.networks.unet.plain_unet"}
PLAN = {
    "patch_size": [16, 16, 16],
    "features": [4, 8],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
    "blocks": [1, 1],
    "batch_size": 2,
}
TRAINER = {"max_epochs": 3, "steps_per_epoch": 4, "accelerator": "cpu", "pictures": 0, "tune_cases": 1, "workers": 1}


def tiny_cohort(folder: Path, cases: int = 6) -> Cohort:
    """Phantoms of about 14×11×13 voxels, as NIfTI and DICOM."""
    if not (folder / "labels" / f"phantom_{cases - 1:03d}.nii.gz").exists():
        write_phantoms(folder, range(cases), spacing_mm=14.0)
    return folder_layout(
        images=folder / "images", labels=folder / "labels", label_names=dict(LABELS.names), channels=["MR"]
    )


def run(folder: Path, trainer: dict[str, Any], *, name: str = "run", **options: Any) -> Path:
    torch.set_num_threads(1)
    arguments: dict[str, Any] = {
        "run_dir": folder / name / "fold_0",
        "cache_dir": folder / "cache",
        "network": NETWORK,
        "optim": {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9},
        "overrides": PLAN,
        "trainer": TRAINER | trainer,
        "folds": 3,
    }
    return train(tiny_cohort(folder / "data"), **(arguments | options))


if __name__ == "__main__":
    run(Path(sys.argv[1]), yaml.safe_load(sys.argv[3]) if len(sys.argv) > 3 else {}, name=sys.argv[2])
