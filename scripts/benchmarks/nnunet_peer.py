"""nnU-Net as a peer of the benchmarks: its virtual environment, its folders, its copies of our cases, its masks beside ours.

Knows how nnU-Net is called and how it names things, and nothing of what is measured.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.files import whole_file
from medseg.planning.plan import Plan
from medseg.volume import resample_array
from scripts.benchmarks import measure

HERE = Path(__file__).resolve().parent
NNUNET = HERE / ".venv" / "bin"
NAME = "Dataset004_Benchmark"
NUMBER = str(int(NAME[7:10]))
TRAIN = """
import json, sys
from pathlib import Path
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as original

class nnUNetTrainer(original.nnUNetTrainer):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3)
        return optimizer, PolyLRScheduler(optimizer, 1e-3, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        rotation, dummy, _, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy, self.configuration_manager.patch_size, axes

    @classmethod
    def get_training_transforms(cls, patch, rotation, scales, axes, dummy, use_mask_for_norm=None, **labels):
        return ComposeTransforms([MirrorTransform(axes), *cls.get_validation_transforms(scales, **labels).transforms])

base, configuration, fold, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(fold)
plans = json.loads((base / "nnUNetPlans.json").read_text()) | {"continue_training": False}
trainer = nnUNetTrainer(plans, configuration, fold, json.loads((base / "dataset.json").read_text()), torch.device("cpu"))
epochs = max(1, steps // 25)  # the learning rate falls from one to the next
trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, steps // epochs, 1
trainer.run_training()
"""
"""nnU-Net's trainer with AdamW, and mirroring alone: within few steps a network that decides clearly, if not a good one."""
PREDICT = """
import sys
import torch
torch.half = torch.float32
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

model, scans, out, *folds = sys.argv[1:]
predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
predictor.initialize_from_trained_model_folder(model, use_folds=[int(fold) for fold in folds])
predictor.predict_from_files_sequential(scans, out)
"""
"""``nnUNetv2_predict`` with windows added up in float32; by itself it does that in half precision, whatever it computes in."""


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
    """Make ``out`` a folder of images of an MSD folder alone, named as nnU-Net wants its input."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in names:
        shutil.copy(data / "imagesTr" / f"{name}.nii.gz", out / f"{name}_0000.nii.gz")
    return out


def listed(data: Path) -> list[str]:
    """Names of the cases of an MSD folder, as it lists them."""
    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    return [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in described["training"]]


def finer_scans(data: Path, out: Path, names: Sequence[str], finer: int) -> Path:
    """As `copy_scans`, with voxels that are ``finer`` times smaller along each axis; what is there is not made again."""
    if finer == 1:
        return copy_scans(data, out, names)
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = out / f"{name}_0000.nii.gz"
        if not target.exists():
            source = nib.load(data / "imagesTr" / f"{name}.nii.gz")
            values = np.asarray(source.dataobj)
            large = resample_array(values, tuple(finer * n for n in values.shape), 1)
            if values.dtype.kind in "iu":
                large = np.rint(large).astype(values.dtype)
            affine = source.affine @ np.diag([1 / finer] * 3 + [1.0])
            affine[:3, 3] -= (source.affine - affine)[:3, :3].sum(1) / 2  # voxel centres: the field stays where it is
            save_fast(nib.Nifti1Image(large, affine), target)
    return out


def save_fast(image: nib.Nifti1Image, path: Path) -> None:
    """Compressed at the first level, whole, as fast as it goes."""
    image.header.set_xyzt_units("mm")
    with whole_file(path) as aside, nib.openers.Opener(str(aside), "wb", compresslevel=1) as file:
        image.to_stream(file)


def hippocampus_model(work: Path, data: Path, *, cases: int = 20, steps: int = 150) -> Path:
    """nnU-Net's own plan and network for the first cases of an MSD folder, trained for some steps: random weights would decide
    nothing clearly. What is made stays in ``work``."""
    base = work / "preprocessed" / NAME
    if not (base / "prepared").exists():
        for name in ("raw", "preprocessed", "results"):
            shutil.rmtree(work / name, ignore_errors=True)
        convert(data, work / "raw" / NAME, cases)
        command = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
        measure.watch(command, environment=environment(work))
        (base / "prepared").touch()
    return train_folds(work, "3d_fullres", [0], steps)


def train_folds(work: Path, configuration: str, folds: Sequence[int], steps: int) -> Path:
    """The model folder of a planned and preprocessed configuration, each fold trained for some steps unless it was before."""
    model = work / "results" / NAME / f"nnUNetTrainer__nnUNetPlans__{configuration}"
    for fold in folds:
        if not (model / f"fold_{fold}" / "checkpoint_final.pth").exists():
            command = [NNUNET / "python", "-c", TRAIN, work / "preprocessed" / NAME, configuration, fold, steps]
            took = measure.watch(command, environment=environment(work, workers=0))
            print(f"{configuration}: fold {fold} trained in {took.wall_s:.0f} s", file=sys.stderr)
    return model


def import_model(model: Path, out: Path) -> Path:
    """What ``medseg import`` makes of nnU-Net's model folder."""
    command = [sys.executable, "-m", "medseg", "import", "from=nnunet", f"source={model}", f"output={out}"]
    measure.watch([*command, "overwrite=true"])
    return out


def predict_medseg(model: Path, scans: Path, out: Path, *words: str, mirror: bool = True) -> measure.Measured:
    """Run ``medseg predict`` with further ``words`` of its command line; step and mirroring are nnU-Net's."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "medseg", "predict", f"model={model}", f"input={scans}", f"output={out}"]
    return measure.watch([*command, f"mirror={str(mirror).lower()}", *words])


def predict_nnunet(
    model: Path, scans: Path, out: Path, *, mirror: bool = True, processes: int = 1, folds: Sequence[int] = (0,)
) -> measure.Measured:
    """Run ``nnUNetv2_predict`` on a model folder that lies anywhere, with step size 0.5.

    Args:
        processes: that read, and as many that write; 0 for its own choice.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [NNUNET / "nnUNetv2_predict_from_modelfolder", "-m", model, "-f", *folds, "-i", scans, "-o", out]
    command += ["-device", "cpu", *([] if mirror else ["--disable_tta"])]
    command += ["-npp", processes, "-nps", processes] if processes else []
    return measure.watch(command, environment=environment(out.parent))


def predict_nnunet_in_float32(model: Path, scans: Path, out: Path, folds: Sequence[int] = (0,)) -> None:
    """`predict_nnunet` in one process, with windows that are added up in float32 (`PREDICT`)."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command = [NNUNET / "python", "-c", PREDICT, model, scans, out, *folds]
    measure.watch(command, environment=environment(out.parent))


def predict_in_turn(
    theirs: Path, ours: Path, scans: Path, work: Path, ways: Mapping[str, Sequence[str]], *, repeats: int, mirror: bool
) -> tuple[dict[str, list[measure.Measured]], dict[str, Any]]:
    """Whole commands on the same scans: those of nnU-Net and, by each of ``ways``, of medseg with more words.

    Returns:
        The runs of each, and ``least_dice`` and ``settings`` as `measure.compare` asks for them.
    """
    masks = {name: work / f"masks_{number}" for number, name in enumerate(("nnU-Net", *ways))}
    dice: list[float] = []

    def once(system: str) -> measure.Measured:
        if system == "nnU-Net":
            return predict_nnunet(theirs, scans, masks[system], mirror=mirror)
        return predict_medseg(ours, scans, masks[system], *ways[system], mirror=mirror)

    def look() -> None:
        dice.extend(row["dice"] for way in ways for row in compare_masks(masks["nnU-Net"], masks[way]))

    runs = measure.in_turn({name: functools.partial(once, name) for name in masks}, repeats, after=look)
    settings = settings_of(theirs, ours, masks[next(iter(ways))], mirror=mirror)
    return runs, {"least_dice": min(dice), "settings": settings}


def settings_of(theirs: Path, ours: Path, masks: Path, *, mirror: bool) -> dict[str, dict[str, Any]]:
    """Step, mirroring and windows of both: what nnU-Net was told, and what medseg noted.

    Args:
        theirs, ours: model folders, that of nnU-Net named after its configuration.
        masks: medseg's result folder.
    """
    plans = json.loads((theirs / "plans.json").read_text(encoding="utf-8"))
    window = plans["configurations"][theirs.name.rpartition("__")[2]]["patch_size"]
    noted = json.loads((masks / "manifest.json").read_text(encoding="utf-8"))["options"]
    own = sorted(Plan.load(ours / "plan.yaml").patch_size)
    return {
        "nnU-Net": {"step": 0.5, "mirror": mirror, "window": sorted(window)},
        "medseg": {"step": 1 - noted["overlap"], "mirror": noted["mirror"], "window": own},
    }


def compare_masks(theirs: Path, ours: Path) -> list[dict[str, Any]]:
    """A row a case and label of nnU-Net's masks ``<case>.nii.gz`` and of medseg's ``<case>/mask.nii.gz``: their Dice, how many
    voxels differ, and how many there are.

    A case without any label is a row of label 0 with the Dice of the background, 1.
    """
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
