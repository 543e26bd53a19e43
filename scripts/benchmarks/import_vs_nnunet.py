"""Whether an imported nnU-Net predicts what nnU-Net predicts: Dice of both masks, case by case, in float32 with mirroring.

    bash scripts/benchmarks/nnunet.sh
    .venv/bin/python scripts/benchmarks/import_vs_nnunet.py --out result.json

nnU-Net plans and preprocesses a few hippocampus cases and trains on them for some hundred steps with its own trainer: random
weights would decide nothing clearly. Other configurations than its own ask more of the import: ``windows`` has patches smaller
than the cases, ``slices`` is the 2D network, ``coarse`` counts 4 mm along one axis, which nnU-Net then resamples apart, ``finer``
0.8 mm along all of them with values clipped as those of CT are, where a cubic spline would swing beyond them, and ``residual`` is
the residual-encoder network; ``folds`` is an ensemble of two.

nnU-Net adds up its windows in half precision, also where it computes in float32, and that alone decides hundreds of voxels. So
two Dice stand side by side: against its masks as they are, and against those that it makes when it adds up in float32.
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
    import_model,
    listed,
    predict_medseg,
    predict_nnunet,
    predict_nnunet_in_float32,
    train_folds,
)

AIM = 0.999
KINDS = ("whole", "windows", "slices", "coarse", "finer", "residual", "folds")


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(arguments.data, arguments.work, arguments.training)
    unseen = listed(arguments.data)[arguments.training :][: arguments.cases]
    scans = copy_scans(arguments.data, arguments.work / "scans", unseen)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, float]] = {}
    as_it_is: dict[str, dict[str, float]] = {}
    for kind in arguments.kinds:
        folds = [0, 1] if kind == "folds" else [0]
        model = train_folds(arguments.work, kind, folds, arguments.steps)
        imported = import_model(model, arguments.work / f"medseg_{kind}_model")
        theirs, ours = arguments.work / f"nnunet_{kind}", arguments.work / f"medseg_{kind}"
        float32 = ("runtime=torch", "runtime.precision=float32", "overlays=false", "report=false")
        seconds[kind] = {
            "nnU-Net": predict_nnunet(model, scans, theirs, folds=folds).wall_s,
            "medseg": predict_medseg(imported, scans, ours, *float32).wall_s,
        }
        in_float32 = arguments.work / f"nnunet_{kind}_float32"
        predict_nnunet_in_float32(model, scans, in_float32, folds)
        found, as_is = compare_masks(in_float32, ours), compare_masks(theirs, ours)
        if not any(row["label"] for row in found):
            sys.exit(f"{kind}: nnU-Net found nothing in any case; train for more steps")
        rows += [{"kind": kind, **row} for row in found]
        as_it_is[kind] = {"lowest": min(r["dice"] for r in as_is), "differing_voxels": sum(r["differ"] for r in as_is)}
    result = record(
        f"Dice of the masks of nnUNetv2_predict -device cpu and of medseg import + predict, {arguments.cases} cases",
        load,
        both_versions("numpy"),
        aim=AIM,
        lowest={kind: min(row["dice"] for row in rows if row["kind"] == kind) for kind in arguments.kinds},
        as_it_is=as_it_is,
        differing_voxels={k: sum(r["differ"] for r in rows if r["kind"] == k) for k in arguments.kinds},
        seconds=seconds,
        rows=rows,
    )
    publish(result, shown(result), arguments.out)


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
    command = [NNUNET / "nnUNetv2_preprocess", "-d", NUMBER, "-c", "coarse", "finer", "-np", "1", "1"]
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
    finer = narrow(full, spacing=[0.8] * 3, patch_size=[40, 56, 40], data_identifier="finer")
    finer["normalization_schemes"] = ["CTNormalization"]
    return {
        "whole": narrow(full),
        "windows": narrow(full, patch_size=[24, 32, 32]),
        "slices": narrow(flat, batch_size=12),
        "coarse": coarse,
        "finer": finer,
        "residual": residual,
        "folds": narrow(full, patch_size=[32, 40, 32]),
    }


def shown(result: Mapping[str, Any]) -> str:
    names = ["kind", "case", "label", "voxels", "differ", "dice"]
    lines = [table(names, [[row[name] for name in names[:-1]] + [f"{row['dice']:.5f}"] for row in result["rows"]])]
    for kind, lowest in result["lowest"].items():
        verdict = "agrees" if lowest >= result["aim"] else "DIFFERS"
        as_is, differ = result["as_it_is"][kind], result["differing_voxels"][kind]
        lines.append(
            f"{kind}: lowest Dice {lowest:.5f}, {verdict} (aim {result['aim']}), {differ} voxels differ; "
            f"nnU-Net as it is: {as_is['lowest']:.5f}, {as_is['differing_voxels']}; seconds {result['seconds'][kind]}"
        )
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__)
    default, work = DATA / "hippocampus", Path(tempfile.gettempdir()) / "medseg-import"
    made.add_argument("--data", type=Path, default=default, help="an MSD folder (default: ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    made.add_argument("--training", type=int, default=20, help="cases to train on (default 20)")
    made.add_argument("--cases", type=int, default=10, help="cases to predict (default 10)")
    made.add_argument("--steps", type=int, default=400, help="training steps of a fold (default 400)")
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    return made.parse_args()


if __name__ == "__main__":
    main()
