"""Whether an imported nnU-Net predicts what nnU-Net predicts: Dice of both masks, case by case, in float32 with mirroring.

    bash scripts/benchmarks/nnunet.sh
    .venv/bin/python scripts/benchmarks/import_vs_nnunet.py --out result.json

nnU-Net plans and preprocesses a few hippocampus cases and trains on them for some hundred steps with its own trainer: random
weights would decide nothing clearly. Other configurations than its own ask more of the import: ``windows`` has patches smaller
than the cases, ``slices`` is the 2D network, ``coarse`` counts 4 mm along one axis, which nnU-Net then resamples apart, and
``residual`` is the residual-encoder network; ``folds`` is an ensemble of two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from preprocess_vs_nnunet import NAME, NNUNET, ROOT, convert, machine, nnunet_version

AIM = 0.999
KINDS = ("whole", "windows", "slices", "coarse", "residual", "folds")
TRAIN = """
import json, sys
from pathlib import Path
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

base, configuration, fold, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(fold)
plans = json.loads((base / "nnUNetPlans.json").read_text()) | {"continue_training": False}
trainer = nnUNetTrainer(plans, configuration, fold, json.loads((base / "dataset.json").read_text()), torch.device("cpu"))
trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, steps, 1
trainer.run_training()
"""


def main() -> None:
    arguments = _arguments()
    if not (NNUNET / "nnUNetv2_predict").exists():
        sys.exit("nnU-Net is not installed: run `bash scripts/benchmarks/nnunet.sh` first")
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.data, arguments.work, arguments.training)
    scans = copy_cases(arguments.data, arguments.work / "scans", arguments.training, arguments.cases)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, float]] = {}
    for kind in arguments.kinds:
        started = time.monotonic()
        model = train(arguments.work, kind, arguments.steps)
        print(f"{kind}: trained in {time.monotonic() - started:.0f} s", file=sys.stderr)
        seconds[kind] = {
            "nnU-Net": predict_nnunet(arguments.work, model, scans, arguments.work / f"nnunet_{kind}", kind),
            "medseg": predict_medseg(model, scans, arguments.work / f"medseg_{kind}"),
        }
        rows += compare(kind, arguments.work / f"nnunet_{kind}", arguments.work / f"medseg_{kind}")
    result = {
        "what": f"Dice of the masks of nnUNetv2_predict -device cpu and of medseg import + predict, {arguments.cases} cases",
        "command": " ".join(["python", "scripts/benchmarks/import_vs_nnunet.py", *sys.argv[1:]]),
        "machine": machine(os.getloadavg()),
        "versions": {
            "nnU-Net": nnunet_version(),
            **{name: version(name) for name in ("medseg", "torch")},
            "python": platform.python_version(),
        },
        "aim": AIM,
        "lowest": {kind: min(row["dice"] for row in rows if row["kind"] == kind) for kind in arguments.kinds},
        "differing_voxels": {k: sum(r["differ"] for r in rows if r["kind"] == k) for k in arguments.kinds},
        "seconds": seconds,
        "rows": rows,
    }
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def prepare(data: Path, work: Path, training: int) -> None:
    """nnU-Net's plans and preprocessed cases, with the further configurations; once for a working folder."""
    base = work / "preprocessed" / NAME
    if (base / "prepared").exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    convert(data, work / "raw" / NAME, training)
    command = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", str(int(NAME[7:10])), "-c", "3d_fullres", "2d"]
    run([*command, "-npfp", "1", "-np", "1", "1"], work)
    plans = json.loads((base / "nnUNetPlans.json").read_text(encoding="utf-8"))
    for kind, changes in configurations(plans["configurations"]).items():
        plans["configurations"][kind] = changes
    (base / "nnUNetPlans.json").write_text(json.dumps(plans, indent=1), encoding="utf-8")
    command = [NNUNET / "nnUNetv2_preprocess", "-d", str(int(NAME[7:10])), "-c", "coarse", "-np", "1"]
    run(command, work)
    (base / "prepared").touch()


def configurations(planned: Mapping[str, Any]) -> dict[str, Any]:
    """Configurations of narrow networks, so that a few minutes of a processor train them; patches and grids as named above."""
    full, flat = planned["3d_fullres"], planned["2d"]

    def narrow(of: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
        architecture = json.loads(json.dumps(of["architecture"]))
        arguments = architecture["arch_kwargs"]
        arguments["features_per_stage"] = [min(8 * 2**stage, 64) for stage in range(arguments["n_stages"])]
        return {**of, "architecture": architecture, "batch_size": 2, **changes}

    residual = narrow(full)
    arguments = residual["architecture"]["arch_kwargs"]
    name = residual["architecture"]["network_class_name"]
    residual["architecture"]["network_class_name"] = name.replace("PlainConvUNet", "ResidualEncoderUNet")
    arguments["n_blocks_per_stage"] = [1, 2, 2, 2, 2, 2, 2][: arguments["n_stages"]]
    arguments["n_conv_per_stage_decoder"] = [1] * (arguments["n_stages"] - 1)
    del arguments["n_conv_per_stage"]
    coarse = narrow(full, spacing=[4.0, 1.0, 1.0], patch_size=[8, 48, 32], data_identifier="coarse")
    arguments = coarse["architecture"]["arch_kwargs"]
    arguments["strides"] = [[1, *row[1:]] for row in arguments["strides"]]
    return {
        "whole": narrow(full),
        "windows": narrow(full, patch_size=[24, 32, 32]),
        "slices": narrow(flat, batch_size=12),
        "coarse": coarse,
        "residual": residual,
        "folds": narrow(full, patch_size=[32, 40, 32]),
    }


def copy_cases(data: Path, out: Path, skip: int, count: int) -> Path:
    """Cases that were not trained on, named as nnU-Net wants its input."""
    out.mkdir(exist_ok=True)
    listed = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["training"][skip : skip + count]
    for entry in listed:
        stem = Path(entry["image"]).name.removesuffix(".nii.gz")
        shutil.copy(data / entry["image"], out / f"{stem}_0000.nii.gz")
    return out


def train(work: Path, kind: str, steps: int) -> Path:
    """The trained model folder of a configuration."""
    model = work / "results" / NAME / f"nnUNetTrainer__nnUNetPlans__{kind}"
    for fold in range(2 if kind == "folds" else 1):
        if not (model / f"fold_{fold}" / "checkpoint_final.pth").exists():
            base = work / "preprocessed" / NAME
            run([NNUNET / "python", "-c", TRAIN, str(base), kind, str(fold), str(steps)], work, workers=0)
    return model


def predict_nnunet(work: Path, model: Path, scans: Path, out: Path, kind: str) -> float:
    """Seconds of ``nnUNetv2_predict``."""
    shutil.rmtree(out, ignore_errors=True)
    folds = ["0", "1"] if kind == "folds" else ["0"]
    command = [NNUNET / "nnUNetv2_predict", "-i", str(scans), "-o", str(out), "-d", str(int(NAME[7:10]))]
    return run([*command, "-c", kind, "-f", *folds, "-device", "cpu", "-npp", "1", "-nps", "1"], work)


def predict_medseg(model: Path, scans: Path, out: Path) -> float:
    """Seconds of ``medseg predict`` in float32, with the model that ``medseg import`` makes."""
    shutil.rmtree(out, ignore_errors=True)
    medseg = [sys.executable, "-m", "medseg"]
    imported = out.with_name(f"{out.name}_model")
    run([*medseg, "import", "from=nnunet", f"source={model}", f"output={imported}", "overwrite=true"], out.parent)
    command = [
        *medseg,
        "predict",
        f"model={imported}",
        f"input={scans}",
        f"output={out}",
        "runtime=torch",
        "runtime.precision=float32",
    ]
    return run([*command, "overlays=false", "report=false"], out.parent)


def run(command: Sequence[Any], work: Path, workers: int = 1) -> float:
    """Run a command to its end, its output shown only if it fails; returns its seconds."""
    environment = dict(os.environ) | {"nnUNet_compile": "f", "nnUNet_n_proc_DA": str(workers)}
    for name in ("raw", "preprocessed", "results"):
        environment[f"nnUNet_{name}"] = str(work / name)
    if Path(command[0]).parent == NNUNET:
        environment.pop("PYTHONPATH", None)
    started = time.monotonic()
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, command))}\nfailed with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    return time.monotonic() - started


def compare(kind: str, theirs: Path, ours: Path) -> list[dict[str, Any]]:
    """A row a case and label: Dice of both masks, and how many voxels differ."""
    rows = []
    for path in sorted(theirs.glob("*.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        a, b = (np.asarray(nib.load(p).dataobj) for p in (path, ours / case / "mask.nii.gz"))
        for label in sorted({*np.unique(a), *np.unique(b)} - {0}):
            both = int((a == label).sum() + (b == label).sum())
            dice = 2 * int(((a == label) & (b == label)).sum()) / both
            differ = int(((a == label) != (b == label)).sum())
            rows.append(
                {"kind": kind, "case": case, "label": int(label), "dice": dice, "differ": differ, "voxels": both // 2}
            )
    if not rows:
        sys.exit(f"{kind}: nnU-Net found nothing in any case; train for more steps")
    return rows


def show(result: Mapping[str, Any]) -> None:
    print(f"{result['what']}\n{result['command']}\n{result['machine']}\n{result['versions']}")
    print(f"{'kind':<10}{'case':<20}{'label':>6}{'voxels':>8}{'differ':>8}{'Dice':>10}")
    for row in result["rows"]:
        print(
            f"{row['kind']:<10}{row['case']:<20}{row['label']:>6}{row['voxels']:>8}{row['differ']:>8}{row['dice']:>10.5f}"
        )
    for kind, lowest in result["lowest"].items():
        verdict = "agrees" if lowest >= result["aim"] else "DIFFERS"
        print(f"{kind}: lowest Dice {lowest:.5f}, {verdict} (aim {result['aim']}); seconds {result['seconds'][kind]}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "hippocampus"
    work = Path(tempfile.gettempdir()) / "medseg-import"
    parser.add_argument(
        "--data", type=Path, default=default, help="an MSD folder (default: ../shared/data/hippocampus)"
    )
    parser.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    parser.add_argument("--training", type=int, default=20, help="cases to train on (default 20)")
    parser.add_argument("--cases", type=int, default=10, help="cases to predict (default 10)")
    parser.add_argument("--steps", type=int, default=150, help="training steps of a fold (default 150)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, help="write the result there as JSON, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
