"""How long nnU-Net and medseg take to fingerprint, plan and preprocess the same cases, in turn on the same machine.

    .venv/bin/python scripts/benchmarks/preprocess_vs_nnunet.py --out result.json
    .venv/bin/python scripts/benchmarks/preprocess_vs_nnunet.py --rows phantoms --phantoms 4 --workers 1 -n 1

Two rows: the 200 hippocampus cases, and 20 phantoms of 512×512×120 int16 voxels of about 0.8×0.8×2.5 mm, as a CT scanner makes
them: spacing differs from case to case, so that all have to be resampled. Both systems read the same files in nnU-Net's raw
layout and run as a process of their own with as many workers, so that interpreter and imports count for both. nnU-Net runs
without ``--verify_dataset_integrity`` and prepares ``3d_fullres`` only; medseg always looks for NaN, unknown labels and grids
that differ.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medseg.planning.plan import Plan
from scripts.benchmarks.ct_phantoms import write_phantoms
from scripts.benchmarks.measure import (
    DATA,
    Measured,
    compare,
    comparison_table,
    in_turn,
    parser,
    publish,
    record,
    watch,
)
from scripts.benchmarks.nnunet_peer import NAME, NNUNET, NUMBER, both_versions, convert, ensure_peer, environment

SYSTEMS = ("nnU-Net", "medseg")
AIM = {"wall_s": 3.0}
MEDSEG = """
import sys
from pathlib import Path
from medseg.commands.plan import plan
from medseg.data.store import prepare
from medseg.scans.layouts import nnunet

root, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cohort = nnunet(root)
network = {"_target_": "medseg.networks.unet.plain_unet"}
made = plan(cohort, planner={}, overrides={}, out=out / "plan.yaml", network=network, workers=workers)
store = prepare(cohort.cases, made, out / "cache", workers=workers)
if store.failed:
    sys.exit("\\n".join(str(fault) for fault in store.failed))
"""


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    rows = []
    with tempfile.TemporaryDirectory(prefix="medseg-benchmark-", dir=arguments.scratch) as name:
        for row in arguments.rows:
            folder = Path(name) / row
            raw = folder / "raw" / NAME
            if row == "phantoms":
                cases = write_phantoms(raw, arguments.phantoms)
                what = f"{cases} CT-sized phantoms"
            else:
                cases = convert(arguments.data, raw, arguments.limit)
                what = f"{cases} {arguments.data.name} cases"
            rows.append(measured(what, folder, cases, arguments))
            shutil.rmtree(folder)
    result = record(
        f"fingerprint, plan and preprocess, {arguments.workers} workers, {arguments.repeats} runs in turn",
        load,
        both_versions("numpy", "scipy", "blosc2"),
        rows=rows,
    )
    publish(result, comparison_table(rows), arguments.out)


def measured(what: str, folder: Path, cases: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row: both systems on the cases in ``folder / "raw"``, with the spacing that each chose in mm, by falling axis."""
    grids: dict[str, list[float]] = {}

    def once(system: str) -> Measured:
        out = folder / "out"
        out.mkdir()
        found = run(system, folder / "raw", out, arguments.workers)
        grids[system] = check(system, out, cases)
        shutil.rmtree(out)
        return found

    runs = in_turn({system: functools.partial(once, system) for system in SYSTEMS}, arguments.repeats)
    return compare(what, runs, aims=AIM) | {"spacing_mm": grids}


def run(system: str, raw: Path, out: Path, workers: int) -> Measured:
    """Run one system on ``raw`` into ``out``."""
    if system == "medseg":
        return watch([sys.executable, "-c", MEDSEG, raw / NAME, out, workers])
    told = environment(out) | {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(out)}
    command = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres"]
    return watch([*command, "-npfp", workers, "-np", workers], environment=told)


def check(system: str, out: Path, cases: int) -> list[float]:
    """The spacing of the plan. Every case must be there, else the figure says nothing."""
    found = len(list(out.rglob("*.pkl" if system == "nnU-Net" else "cache/*.zip")))
    if found != cases:
        sys.exit(f"{system}: expected {cases} preprocessed cases, found {found}")
    if system == "nnU-Net":
        plans = json.loads((out / NAME / "nnUNetPlans.json").read_text(encoding="utf-8"))
        spacing = plans["configurations"]["3d_fullres"]["spacing"]
    else:
        spacing = Plan.load(out / "plan.yaml").spacing
    return sorted((round(float(n), 4) for n in spacing), reverse=True)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=3)
    rows = ("hippocampus", "phantoms")
    made.add_argument("--rows", nargs="+", choices=rows, default=list(rows))
    default = DATA / "hippocampus"
    made.add_argument("--data", type=Path, default=default, help="an MSD folder (default: ../shared/data/hippocampus)")
    made.add_argument("--limit", type=int, help="only its first cases")
    made.add_argument("--phantoms", type=int, default=20, help="how many are made (default 20, of 35 MB each)")
    made.add_argument("--workers", type=int, default=2, help="processes of each (default 2)")
    made.add_argument("--scratch", type=Path, help="a folder for cases and results (default: the system's)")
    return made.parse_args()


if __name__ == "__main__":
    main()
