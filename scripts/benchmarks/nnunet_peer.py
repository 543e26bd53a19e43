"""nnU-Net as a peer of the benchmarks: its virtual environment, its folders, its copies of our cases, its masks beside ours.

Knows how nnU-Net is called and how it names things, and nothing of what is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from scripts.benchmarks import measure

HERE = Path(__file__).resolve().parent
NNUNET = HERE / ".venv" / "bin"
NAME = "Dataset004_Benchmark"
NUMBER = str(int(NAME[7:10]))


def ensure_peer() -> None:
    """Make nnU-Net's virtual environment (``nnunet.sh``) where there is none yet."""
    if not (NNUNET / "nnUNetv2_plan_and_preprocess").exists():
        done = subprocess.run(["bash", str(HERE / "nnunet.sh")], stdout=sys.stderr)
        if done.returncode:
            sys.exit(f"nnU-Net could not be installed: bash scripts/benchmarks/nnunet.sh ended with {done.returncode}")


def both_versions(*packages: str) -> dict[str, dict[str, str]]:
    """Of medseg and of nnU-Net, each with its torch, and further packages that both may have."""
    return {
        "medseg": measure.versions("medseg", "torch", *packages),
        "nnU-Net": measure.versions("nnunetv2", "torch", *packages, python=NNUNET / "python"),
    }


def environment(work: Path, *, workers: int | None = None) -> dict[str, str]:
    """What nnU-Net is told: its three folders below ``work``, not to compile (which needs minutes), and its loading processes."""
    told = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told |= {f"nnUNet_{name}": str(work / name) for name in ("raw", "preprocessed", "results")}
    told["nnUNet_compile"] = "f"
    return told if workers is None else told | {"nnUNet_n_proc_DA": str(workers)}


def convert(data: Path, out: Path, limit: int | None) -> int:
    """Copy the cases of an MSD folder of one modality into nnU-Net's raw layout; returns how many there are."""
    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    if len(described["modality"]) != 1:
        sys.exit(f"{data}: expected one modality, found {len(described['modality'])}")
    listed = described["training"][:limit]
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
    for entry in listed:
        stem = Path(entry["image"]).name.removesuffix(".nii.gz")
        shutil.copy(data / entry["image"], out / "imagesTr" / f"{stem}_0000.nii.gz")
        shutil.copy(data / entry["label"], out / "labelsTr" / f"{stem}.nii.gz")
    labels = {name: int(value) for value, name in described["labels"].items()}
    describe(out, described["modality"], labels, len(listed))
    return len(listed)


def describe(out: Path, channels: dict[str, str], labels: dict[str, int], cases: int) -> None:
    """Write nnU-Net's ``dataset.json``."""
    raw = {"channel_names": channels, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (out / "dataset.json").write_text(json.dumps(raw), encoding="utf-8")


def copy_scans(data: Path, out: Path, names: Iterable[str]) -> Path:
    """Copy images of an MSD folder, named as nnU-Net wants its input."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(data / "imagesTr" / f"{name}.nii.gz", out / f"{name}_0000.nii.gz")
    return out


def compare_masks(theirs: Path, ours: Path) -> list[dict[str, Any]]:
    """A row a case and label of nnU-Net's masks ``<case>.nii.gz`` and of medseg's ``<case>/mask.nii.gz``: their Dice, how many
    voxels differ, and how many there are. A case without any label is a row of label 0 and Dice 1."""
    rows = []
    for path in sorted(theirs.glob("*.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        a, b = (np.asarray(nib.load(p).dataobj) for p in (path, ours / case / "mask.nii.gz"))
        labels = sorted({*np.unique(a), *np.unique(b)} - {0})
        for label in labels or [0]:
            both = int((a == label).sum() + (b == label).sum())
            dice = 2 * int(((a == label) & (b == label)).sum()) / both
            differ = int(((a == label) != (b == label)).sum())
            rows.append({"case": case, "label": int(label), "dice": dice, "differ": differ, "voxels": both // 2})
    return rows
