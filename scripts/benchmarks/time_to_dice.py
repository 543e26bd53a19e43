"""Dice against wall-clock: nnU-Net's trainer and `medseg train` on the same hippocampus cases and as many threads, without a GPU.

    .venv/bin/python scripts/benchmarks/time_to_dice.py --peer             # once: nnU-Net's curve, three hours at most
    .venv/bin/python scripts/benchmarks/time_to_dice.py --out result.json

``--peer`` trains `nnUNetTrainer_5epochs` with its own plan on ``fit`` of fold 0, with ``tune`` as its validation, keeps the
weights of every epoch, predicts ``test`` with each by ``nnUNetv2_predict`` and writes the curve down. What is trained stays in
the working folder: the same command goes on with it, and takes up a training of which an epoch is done. Without ``--peer``,
`medseg train` gets a quarter of the time at which nnU-Net was best, for the whole command: start, planning, preprocessing,
training and what it decides on ``tune``. nnU-Net's time is that of its training alone, without its validation, and its best epoch
is chosen on ``test``: both are in its favour. The baseline is the mean shape: that of the ``fit`` masks, each stretched to
the same box.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nibabel as nib
import numpy as np

from medseg.data.splits import Split, make_splits
from medseg.files import write_text
from medseg.scans.faults import duplicate_groups
from medseg.scans.layouts import msd
from medseg.volume import Array, resample_array
from scripts.benchmarks.measure import DATA, parser, publish, ratio_of, record, table, watch
from scripts.benchmarks.nnunet_peer import (
    NAME,
    NNUNET,
    NUMBER,
    both_versions,
    convert,
    copy_scans,
    ensure_peer,
    environment,
    predict_medseg,
    predict_nnunet,
)

CURVE = Path(__file__).resolve().parent / "results" / "time_to_dice_nnunet.json"
SHARE = 0.25
START_S = 20.0
"""What a start takes at most before ``trainer.max_time`` is counted, and what comes after it."""
TRAIN = """
import json, sys, time
from pathlib import Path
import torch
from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

base, threads, limit = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])

class nnUNetTrainer_5epochs(nnUNetTrainer_Xepochs.nnUNetTrainer_5epochs):  # the same, only watched
    def on_train_start(self):
        super().on_train_start()
        self.began, self.validating, self.steps, self.rows = time.monotonic(), 0.0, 0, []

    def train_step(self, batch):
        self.steps += 1
        return super().train_step(batch)

    def on_validation_epoch_start(self):
        self.paused = time.monotonic()
        super().on_validation_epoch_start()

    def on_epoch_end(self):
        self.validating += time.monotonic() - self.paused
        super().on_epoch_end()
        epoch, folder = len(self.rows) + 1, Path(self.output_folder)
        self.save_checkpoint(str(folder / f"checkpoint_epoch_{epoch}.pth"))
        spent = time.monotonic() - self.began
        row = {"epoch": epoch, "steps": self.steps, "seconds": spent, "training_seconds": spent - self.validating}
        self.rows.append(row)
        (folder / "seconds.json").write_text(json.dumps(self.rows))
        if spent > limit:
            sys.exit()

torch.set_num_threads(threads)
plans = json.loads((base / "nnUNetPlans.json").read_text()) | {"continue_training": False}
nnUNetTrainer_5epochs(plans, "3d_fullres", 0, json.loads((base / "dataset.json").read_text()), torch.device("cpu")).run_training()
"""
RENAME = """
import sys, torch
kept = torch.load(sys.argv[1], map_location="cpu", weights_only=False)
torch.save({**kept, "trainer_name": "nnUNetTrainer", "optimizer_state": None}, sys.argv[2])
"""
"""nnU-Net looks in its package for the trainer, of which prediction needs nothing, and may fail on the way to a variant."""


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    here = sorted(os.sched_getaffinity(0))
    if len(here) > arguments.threads:
        os.sched_setaffinity(0, here[: arguments.threads])  # which all children inherit
    os.environ |= {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    arguments.work.mkdir(parents=True, exist_ok=True)
    split = split_of(arguments.data)
    test = sorted(split.test)[: arguments.cases]
    scans = copy_scans(arguments.data, arguments.work / "scans", test)
    if arguments.peer:
        found = curve(arguments, split, scans, test)
        rows = [[row["epoch"], f"{row['training_seconds']:.0f}", f"{row['dice']['mean']:.4f}"] for row in found["rows"]]
        shown, what, out = table(["epoch", "s without validation", "Dice"], rows), "nnU-Net's curve", arguments.curve
        out.parent.mkdir(parents=True, exist_ok=True)
    else:
        peer = json.loads(arguments.curve.read_text(encoding="utf-8"))
        found = against(peer, arguments, split, scans, test)
        shown, what, out = (
            table(["by", "s", "Dice", *found["labels"]], found.pop("table")),
            "Dice and its time",
            arguments.out,
        )
    what += f": hippocampus, {len(split.fit)} fit, {len(split.tune)} tune and {len(test)} test cases, {arguments.threads} threads"
    publish(record(what, load, both_versions("numpy"), threads=arguments.threads, **found), shown, out)


def split_of(data: Path) -> Split:
    """Fold 0 as ``medseg train`` makes it."""
    cohort = msd(data, progress=False)
    groups: dict[str, set[str]] = {}
    for case, group in duplicate_groups(cohort, progress=False).items():
        groups.setdefault(group, set()).add(case)
    return make_splits(cohort.cases, folds=5, tune=0.1, seed=0, groups=groups.values()).fold(0)


def curve(arguments: argparse.Namespace, split: Split, scans: Path, test: Sequence[str]) -> dict[str, Any]:
    """Train where nothing is trained yet, and score the weights of every epoch that is done."""
    work: Path = arguments.work
    base = work / "preprocessed" / NAME
    if not (base / "nnUNetPlans.json").exists():
        shutil.rmtree(work / "raw", ignore_errors=True)
        convert(arguments.data, work / "raw" / NAME, None)
        command = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
        watch(command, environment=environment(work))
        splits = [{"train": sorted(split.fit), "val": sorted(split.tune)}]
        write_text(base / "splits_final.json", json.dumps(splits))
    kept = json.loads((base / "splits_final.json").read_text(encoding="utf-8"))[0]
    if sorted(kept["train"]) != sorted(split.fit) or sorted(kept["val"]) != sorted(split.tune):
        sys.exit(f"{base / 'splits_final.json'}: expected fit and tune of fold 0; choose another --work")
    if not list((work / "results").rglob("seconds.json")):
        command = [NNUNET / "python", "-c", TRAIN, base, arguments.threads, 3600 * arguments.hours]
        watch(command, environment=environment(work, workers=0), log=work / "training.txt")
    (seconds,) = (work / "results").rglob("seconds.json")
    rows = []
    for row in json.loads(seconds.read_text(encoding="utf-8")):
        model = model_of(seconds.parent, row["epoch"], work / "epochs")
        masks = work / f"masks_{len(test)}_epoch_{row['epoch']}"
        if not masks.exists():
            part = work / "masks_part"
            predict_nnunet(model, scans, part)
            part.rename(masks)
        rows.append({**row, "dice": dice_of(arguments.data, test, lambda name, at=masks: at / f"{name}.nii.gz")})
        print(f"epoch {row['epoch']}: {row['training_seconds']:.0f} s, {rows[-1]['dice']}", file=sys.stderr)
    if not rows:
        sys.exit(f"{seconds}: no epoch is done yet")
    return {"rows": rows, "best": max(rows, key=lambda row: row["dice"]["mean"]), "test": list(test)}


def model_of(trained: Path, epoch: int, out: Path) -> Path:
    """A model folder of the weights after an epoch, which ``nnUNetv2_predict`` takes."""
    model = out / f"epoch_{epoch}"
    target = model / "fold_0" / "checkpoint_final.pth"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in ("plans.json", "dataset.json"):
            shutil.copy(trained.parent / name, model / name)
        source = trained / f"checkpoint_epoch_{epoch}.pth"
        watch([NNUNET / "python", "-c", RENAME, source, target], environment=environment(out))
    return model


def against(
    peer: Mapping[str, Any], arguments: argparse.Namespace, split: Split, scans: Path, test: Sequence[str]
) -> dict[str, Any]:
    """Train and score medseg in a share of the peer's time, and the mean shape."""
    if peer["threads"] != arguments.threads or peer["test"] != list(test):
        sys.exit(f"{arguments.curve}: is of {peer['threads']} threads and {len(peer['test'])} cases; choose the same")
    best = peer["best"]
    allowed = arguments.share * best["training_seconds"]
    folder: Path = arguments.work / "medseg"
    shutil.rmtree(folder, ignore_errors=True)
    train = [sys.executable, "-m", "medseg", "train", "experiment=hippocampus", f"data.root={arguments.data}"]
    train += [f"run.dir={folder / 'run'}", f"cache.dir={folder / 'cache'}", "trainer.accelerator=cpu"]
    train += [f"trainer.max_time={max(60.0, allowed - START_S):.0f}", *arguments.overrides]
    measured = watch(train)
    masks = folder / "masks"
    predict_medseg(folder / "run", scans, masks, "report=false", "overlays=false")
    ours = dice_of(arguments.data, test, lambda name: masks / name / "mask.nii.gz")
    mean = mean_shape(arguments.data, split.fit)
    trivial = dice_of(arguments.data, test, lambda name: mean)
    labels = [name for name in ours if name != "mean"]
    rows = [
        [f"nnU-Net, epoch {best['epoch']} of {len(peer['rows'])}", best["training_seconds"], best["dice"]],
        ["medseg", measured.wall_s, ours],
        ["mean shape", 0.0, trivial],
    ]
    return {
        "labels": labels,
        "allowed_s": allowed,
        "medseg": {"command": train[2:], "seconds": measured.wall_s, "cpu_s": measured.cpu_s, "dice": ours},
        "nnU-Net": best,
        "mean_shape": trivial,
        "ratio": ratio_of(best["training_seconds"], measured.wall_s),
        "met": ours["mean"] >= best["dice"]["mean"] and measured.wall_s <= allowed,
        "peer_versions": peer["versions"]["nnU-Net"],
        "peer_machine": peer["machine"],
        "table": [[name, f"{s:.0f}", *(f"{dice[of]:.4f}" for of in ("mean", *labels))] for name, s, dice in rows],
    }


def dice_of(data: Path, names: Sequence[str], found: Callable[[str], Path | Array]) -> dict[str, float]:
    """Label → mean Dice of the cases that hold or were given the label, and ``mean``, that of the labels.

    Args:
        found: name of a case → the mask of a system, or shares ``(K, *S)`` of any size that are stretched to it.
    """
    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["labels"]
    values = {name: int(value) for value, name in described.items() if int(value)}
    dice: dict[str, list[float]] = {name: [] for name in values}
    for name in names:
        truth = np.asarray(nib.load(data / "labelsTr" / f"{name}.nii.gz").dataobj)
        given = found(name)
        mask = np.asarray(nib.load(given).dataobj) if isinstance(given, Path) else stretched(given, truth.shape)
        for label, value in values.items():
            both = int((truth == value).sum() + (mask == value).sum())
            if both:
                dice[label].append(2 * int(((truth == value) & (mask == value)).sum()) / both)
    means = {label: float(np.mean(of)) for label, of in dice.items()}
    return {"mean": float(np.mean(list(means.values()))), **means}


def mean_shape(data: Path, names: Sequence[str]) -> Array:
    """``(K, *S)``: how often each value, background first, is there, over masks that were stretched to the first one's box."""
    masks = [np.asarray(nib.load(data / "labelsTr" / f"{name}.nii.gz").dataobj) for name in names]
    values = range(int(max(mask.max() for mask in masks)) + 1)
    shape = masks[0].shape
    return np.mean([[resample_array((m == v).astype(np.float32), shape, 1) for v in values] for m in masks], axis=0)


def stretched(shares: Array, shape: tuple[int, ...]) -> Array:
    return np.asarray(resample_array(shares, shape, 1).argmax(0))


def _arguments() -> argparse.Namespace:
    made = parser(__doc__)
    work = Path(tempfile.gettempdir()) / "medseg-time-to-dice"
    made.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of medseg train, beside experiment=hippocampus"
    )
    made.add_argument("--peer", action="store_true", help="measure nnU-Net's curve and write it down")
    made.add_argument(
        "--curve", type=Path, default=CURVE, help="nnU-Net's curve (default: results/time_to_dice_nnunet.json)"
    )
    made.add_argument("--hours", type=float, default=3.0, help="of nnU-Net's training at most (default 3)")
    made.add_argument("--share", type=float, default=SHARE, help="of nnU-Net's time that medseg gets (default 0.25)")
    made.add_argument("--threads", type=int, default=1, help="and cores, of both (default 1)")
    made.add_argument("--cases", type=int, help="only the first cases of test")
    made.add_argument("--data", type=Path, default=DATA / "hippocampus", help="(default ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    given = made.parse_args()
    given.work = given.work.resolve()
    return given


if __name__ == "__main__":
    main()
