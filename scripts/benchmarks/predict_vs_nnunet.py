"""How long nnU-Net and medseg take to predict the same scans with the same weights: whole commands, in turn, with mirroring.

    bash scripts/benchmarks/nnunet.sh
    .venv/bin/python scripts/benchmarks/predict_vs_nnunet.py --kinds hippocampus ct --out result.json

``hippocampus`` is nnU-Net's own plan and network for ten cases of a Decathlon folder, ``ct`` one phantom of 512×512×120 voxels
of 0.8×0.8×2.5 mm with four organs, windows of 64×64×48 at 2.5 mm and six stages of 32 to 320 features. nnU-Net trains both for
some steps, or ``--model`` names a model folder that it trained; ``medseg import`` makes ours of it. Step size, mirroring and
windows are nnU-Net's defaults, which are medseg's too. medseg measures its runtimes anew in every run and writes overlays and
report, as it does unless told otherwise; nnU-Net writes masks. A ratio counts only if the masks of every run agree.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nibabel as nib

from scripts.benchmarks.ct_phantoms import SHAPE, SPACING_MM, ct_phantom, write_phantoms
from scripts.benchmarks.measure import (
    DATA,
    Measured,
    compare,
    comparison_table,
    in_turn,
    numbers,
    parser,
    publish,
    record,
    watch,
)
from scripts.benchmarks.nnunet_peer import (
    NAME,
    NNUNET,
    NUMBER,
    both_versions,
    compare_masks,
    copy_scans,
    ensure_peer,
    environment,
    hippocampus_model,
    import_model,
    listed,
    predict_medseg,
    predict_nnunet,
    save_fast,
    settings_of,
    train_folds,
)

AIMS = {"hippocampus": {"wall_s": 4.0}, "ct": {"wall_s": 6.0, "peak_mb": 2.0}}
CT_PATCH = [48, 64, 64]
"""nnU-Net's axes. In larger windows than those of its training, instance norm sees other tissue, and masks are left to chance."""


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    given = dict(word.split("=", 1) for word in arguments.model)
    rows = [measure(kind, *prepare(kind, arguments, given.get(kind)), arguments) for kind in arguments.kinds]
    what = f"whole commands, {arguments.threads} threads, {arguments.repeats} runs in turn, mirroring on both sides"
    result = record(what, load, both_versions("openvino", "numpy"), rows=rows)
    publish(result, comparison_table(rows), arguments.out)


def prepare(kind: str, arguments: argparse.Namespace, model: str | None) -> tuple[Path, Path, Path]:
    """nnU-Net's model folder, ours, and the scans; what is trained stays in the working folder."""
    work = arguments.work / kind
    work.mkdir(parents=True, exist_ok=True)
    if kind == "ct":
        scans = ct_scans(work / f"scans_{'x'.join(map(str, arguments.shape))}", arguments.shape)
    else:
        unseen = listed(arguments.data)[arguments.training :][: arguments.cases]
        scans = copy_scans(arguments.data, work / "scans", unseen)
    if model:
        theirs = Path(model)
    elif kind == "ct":
        theirs = ct_model(work, arguments.steps)
    else:
        theirs = hippocampus_model(work, arguments.data, cases=arguments.training, steps=arguments.steps)
    return theirs, import_model(theirs, work / "medseg_model"), scans


def ct_model(work: Path, steps: int) -> Path:
    """A model folder that nnU-Net trains on coarser phantoms of the same kind, once for a working folder."""
    base = work / "preprocessed" / NAME
    if not (base / "prepared").exists():
        write_phantoms(work / "raw" / NAME, 6, (120, 120, 80), (3.2, 3.2, 3.2))
        plan = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-npfp", "1", "--no_pp"]
        watch(plan, environment=environment(work))
        add_ct_configuration(base / "nnUNetPlans.json")
        watch([NNUNET / "nnUNetv2_preprocess", "-d", NUMBER, "-c", "ct", "-np", "1"], environment=environment(work))
        (base / "prepared").touch()
    return train_folds(work, "ct", [0], steps)


def add_ct_configuration(path: Path) -> None:
    """Write into nnU-Net's plans a network like that which it plans for abdominal CT, with smaller windows."""
    plans = json.loads(path.read_text(encoding="utf-8"))
    full = plans["configurations"]["3d_fullres"]
    architecture = json.loads(json.dumps(full["architecture"]))
    stages = 6
    architecture["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 2), [1, 2, 2]],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    changes = {"spacing": [2.5] * 3, "patch_size": CT_PATCH, "batch_size": 2, "data_identifier": "ct"}
    plans["configurations"]["ct"] = full | changes | {"architecture": architecture}
    path.write_text(json.dumps(plans, indent=1), encoding="utf-8")


def ct_scans(folder: Path, shape: tuple[int, ...]) -> Path:
    """One scan to predict, as nnU-Net wants its input."""
    path = folder / "ct_100_0000.nii.gz"
    if not path.exists():
        folder.mkdir(exist_ok=True)
        save_fast(ct_phantom(100, shape, SPACING_MM)[0], path)
    return folder


def measure(kind: str, theirs: Path, ours: Path, scans: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both commands in turn; medians, ratios, and how far the masks agree."""
    dice: list[float] = []
    with tempfile.TemporaryDirectory(prefix=f"medseg-{kind}-") as name:
        out = {system: Path(name) / system for system in ("nnU-Net", "medseg")}

        def once(system: str) -> Measured:
            if system == "nnU-Net":
                return predict_nnunet(theirs, scans, out[system], processes=arguments.processes)
            return predict_medseg(ours, scans, out[system], f"runtime.cache={Path(name) / f'cache_{len(dice)}'}")

        def look() -> None:
            dice.append(min(row["dice"] for row in compare_masks(out["nnU-Net"], out["medseg"])))

        runs = in_turn({system: functools.partial(once, system) for system in out}, arguments.repeats, after=look)
        noted = json.loads((out["medseg"] / "manifest.json").read_text(encoding="utf-8"))
        settings = settings_of(theirs, ours, out["medseg"], mirror=True)
    shapes = {path.name: list(nib.load(path).shape) for path in sorted(scans.glob("*.nii.gz"))}
    row = compare(f"{kind}, {len(shapes)} scans", runs, aims=AIMS[kind], least_dice=min(dice), settings=settings)
    return row | {"scans": shapes, "runtime": noted.get("runtimes", {})}


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=3)
    work, cores = Path(tempfile.gettempdir()) / "medseg-predict", len(os.sched_getaffinity(0))
    made.add_argument("--kinds", nargs="+", choices=list(AIMS), default=list(AIMS))
    made.add_argument("--model", action="append", default=[], metavar="KIND=FOLDER", help="trained by nnU-Net already")
    made.add_argument("--threads", type=int, default=cores, help="default: one a core")
    made.add_argument(
        "--processes", type=int, default=0, help="of nnU-Net, for reading and for writing (default: its own, 3)"
    )
    made.add_argument("--shape", type=numbers, default=SHAPE, help="of the ct scan (default: 512,512,120)")
    made.add_argument("--data", type=Path, default=DATA / "hippocampus", help="(default ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    made.add_argument("--training", type=int, default=20, help="hippocampus cases to train on (default 20)")
    made.add_argument("--cases", type=int, default=10, help="hippocampus cases to predict (default 10)")
    made.add_argument(
        "--steps", type=int, default=600, help="training steps (default 600; 250 are too few for small organs)"
    )
    return made.parse_args()


if __name__ == "__main__":
    main()
