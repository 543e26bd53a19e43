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
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.measure import DATA, parser, publish, record, table, watch
from scripts.benchmarks.nnunet_peer import (
    NAME,
    NNUNET,
    NUMBER,
    both_versions,
    compare_masks,
    convert,
    copy_scans,
    ensure_peer,
    environment,
)

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
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.data, arguments.work, arguments.training)
    scans = copy_cases(arguments.data, arguments.work / "scans", arguments.training, arguments.cases)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, float]] = {}
    for kind in arguments.kinds:
        model, theirs, ours = train(arguments.work, kind, arguments.steps), *places(arguments.work, kind)
        seconds[kind] = {
            "nnU-Net": predict_nnunet(arguments.work, scans, theirs, kind),
            "medseg": predict_medseg(model, scans, ours),
        }
        found = compare_masks(theirs, ours)
        if not any(row["label"] for row in found):
            sys.exit(f"{kind}: nnU-Net found nothing in any case; train for more steps")
        rows += [{"kind": kind, **row} for row in found]
    result = record(
        f"Dice of the masks of nnUNetv2_predict -device cpu and of medseg import + predict, {arguments.cases} cases",
        load,
        both_versions("numpy"),
        aim=AIM,
        lowest={kind: min(row["dice"] for row in rows if row["kind"] == kind) for kind in arguments.kinds},
        differing_voxels={k: sum(r["differ"] for r in rows if r["kind"] == k) for k in arguments.kinds},
        seconds=seconds,
        rows=rows,
    )
    publish(result, shown(result), arguments.out)


def places(work: Path, kind: str) -> tuple[Path, Path]:
    """The folders of nnU-Net's masks and of medseg's."""
    return work / f"nnunet_{kind}", work / f"medseg_{kind}"


def prepare(data: Path, work: Path, training: int) -> None:
    """nnU-Net's plans and preprocessed cases, with the further configurations; once for a working folder."""
    base = work / "preprocessed" / NAME
    if (base / "prepared").exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    convert(data, work / "raw" / NAME, training)
    command = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres", "2d"]
    watch([*command, "-npfp", "1", "-np", "1", "1"], environment=environment(work))
    plans = json.loads((base / "nnUNetPlans.json").read_text(encoding="utf-8"))
    for kind, changes in configurations(plans["configurations"]).items():
        plans["configurations"][kind] = changes
    (base / "nnUNetPlans.json").write_text(json.dumps(plans, indent=1), encoding="utf-8")
    command = [NNUNET / "nnUNetv2_preprocess", "-d", NUMBER, "-c", "coarse", "-np", "1"]
    watch(command, environment=environment(work))
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
    listed = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["training"][skip : skip + count]
    return copy_scans(data, out, [Path(entry["image"]).name.removesuffix(".nii.gz") for entry in listed])


def train(work: Path, kind: str, steps: int) -> Path:
    """The trained model folder of a configuration."""
    model = work / "results" / NAME / f"nnUNetTrainer__nnUNetPlans__{kind}"
    for fold in range(2 if kind == "folds" else 1):
        if not (model / f"fold_{fold}" / "checkpoint_final.pth").exists():
            command = [NNUNET / "python", "-c", TRAIN, work / "preprocessed" / NAME, kind, fold, steps]
            took = watch(command, environment=environment(work, workers=0))
            print(f"{kind}: fold {fold} trained in {took.wall_s:.0f} s", file=sys.stderr)
    return model


def predict_nnunet(work: Path, scans: Path, out: Path, kind: str) -> float:
    """Seconds of ``nnUNetv2_predict``."""
    shutil.rmtree(out, ignore_errors=True)
    folds = ["0", "1"] if kind == "folds" else ["0"]
    command = [NNUNET / "nnUNetv2_predict", "-i", scans, "-o", out, "-d", NUMBER, "-c", kind, "-f", *folds]
    return watch([*command, "-device", "cpu", "-npp", "1", "-nps", "1"], environment=environment(work)).wall_s


def predict_medseg(model: Path, scans: Path, out: Path) -> float:
    """Seconds of ``medseg predict`` in float32, with the model that ``medseg import`` makes."""
    shutil.rmtree(out, ignore_errors=True)
    medseg = [sys.executable, "-m", "medseg"]
    imported = out.with_name(f"{out.name}_model")
    watch([*medseg, "import", "from=nnunet", f"source={model}", f"output={imported}", "overwrite=true"])
    command = [
        *medseg,
        "predict",
        f"model={imported}",
        f"input={scans}",
        f"output={out}",
        "overlays=false",
        "report=false",
    ]
    return watch([*command, "runtime=torch", "runtime.precision=float32"]).wall_s


def shown(result: Mapping[str, Any]) -> str:
    names = ["kind", "case", "label", "voxels", "differ", "dice"]
    lines = [table(names, [[row[name] for name in names[:-1]] + [f"{row['dice']:.5f}"] for row in result["rows"]])]
    for kind, lowest in result["lowest"].items():
        verdict = "agrees" if lowest >= result["aim"] else "DIFFERS"
        lines.append(
            f"{kind}: lowest Dice {lowest:.5f}, {verdict} (aim {result['aim']}); seconds {result['seconds'][kind]}"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__)
    default, work = DATA / "hippocampus", Path(tempfile.gettempdir()) / "medseg-import"
    made.add_argument("--data", type=Path, default=default, help="an MSD folder (default: ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    made.add_argument("--training", type=int, default=20, help="cases to train on (default 20)")
    made.add_argument("--cases", type=int, default=10, help="cases to predict (default 10)")
    made.add_argument("--steps", type=int, default=150, help="training steps of a fold (default 150)")
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    return made.parse_args()


if __name__ == "__main__":
    main()
