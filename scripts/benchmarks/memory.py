"""Peak memory against the size of the scan: `medseg predict` and ``nnUNetv2_predict`` with the same weights, whole commands.

    .venv/bin/python scripts/benchmarks/memory.py --out result.json
    .venv/bin/python scripts/benchmarks/memory.py --model nnunet_model --finer 1,8 -n 1 runtime=torch

One hippocampus case, its voxels made ever finer along each axis: the network sees the same windows, and only what is read,
brought back to the scan and written grows. With 12 it has 420×612×420 voxels. Memory is that of all processes together (PSS).
`medseg predict` says beforehand what it will take; ``runtime.memory_gb=`` bounds it (`huge_scan.py`). Masks are compared; without
mirroring.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nibabel as nib

from scripts.benchmarks.measure import (
    DATA,
    compare,
    comparison_table,
    numbers,
    parser,
    publish,
    record,
)
from scripts.benchmarks.nnunet_peer import (
    both_versions,
    ensure_peer,
    finer_scans,
    hippocampus_model,
    import_model,
    listed,
    predict_in_turn,
)

AIM = {"peak_mb": 2.0}


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    arguments.work.mkdir(parents=True, exist_ok=True)
    theirs = arguments.model or hippocampus_model(arguments.work, arguments.data)
    ours = import_model(theirs, arguments.work / "medseg_model")
    rows = [measured(theirs, ours, finer, arguments) for finer in arguments.finer]
    what = f"peak memory of predicting one scan, {arguments.repeats} runs in turn"
    publish(record(what, load, both_versions("numpy"), rows=rows), comparison_table(rows), arguments.out)


def measured(theirs: Path, ours: Path, finer: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """A row of one size."""
    name = listed(arguments.data)[-1]
    scans = finer_scans(arguments.data, arguments.work / f"scans_{finer}", [name], finer)
    shape = nib.load(next(scans.iterdir())).shape
    ways = {"medseg": ("overlays=false", "report=false", *arguments.overrides)}
    how = {"repeats": arguments.repeats, "mirror": False}
    runs, agreement = predict_in_turn(theirs, ours, scans, arguments.work, ways, **how)
    return compare("×".join(map(str, shape)), runs, aims=AIM, **agreement)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=3)
    work = Path(tempfile.gettempdir()) / "medseg-memory"
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of medseg predict, such as runtime=torch")
    made.add_argument(
        "--finer", type=numbers, default=(1, 4, 8, 12), help="voxels for one along each axis (default 1,4,8,12)"
    )
    made.add_argument("--model", type=Path, help="a model folder trained by nnU-Net")
    made.add_argument("--data", type=Path, default=DATA / "hippocampus", help="(default ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    given = made.parse_args()
    given.work = given.work.resolve()
    return given


if __name__ == "__main__":
    main()
