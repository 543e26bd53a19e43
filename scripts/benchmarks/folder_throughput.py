"""Scans an hour of a whole folder: `medseg predict` with and without overlap, and ``nnUNetv2_predict``, with the same weights.

    .venv/bin/python scripts/benchmarks/folder_throughput.py --out result.json

Overlap is reading ahead and writing behind while the network works (``workers=1``, the default; ``workers=0`` does one after
another). Two folders: hippocampus cases as they are, where starting and the network count, and a few of them with voxels six
times finer along each axis (13 million), where reading, resampling and writing count. nnU-Net trains the network for some steps,
or ``--model`` names a model folder that it trained; ``medseg import`` makes ours of it. Whole commands, in turn; nnU-Net reads
and writes in one process each. A row counts only if the masks of all its runs agree.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.measure import (
    DATA,
    compare,
    comparison_table,
    middle,
    numbers,
    parser,
    publish,
    record,
    table,
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

WAYS = {"medseg": "workers=1", "medseg, no overlap": "workers=0"}


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    arguments.work.mkdir(parents=True, exist_ok=True)
    theirs = arguments.model or hippocampus_model(arguments.work, arguments.data)
    ours = import_model(theirs, arguments.work / "medseg_model")
    rows = []
    for finer, count in zip((1, arguments.finer), arguments.cases, strict=True):
        if count:
            names = listed(arguments.data)[-count:]
            scans = finer_scans(arguments.data, arguments.work / f"scans_{finer}_{count}", names, finer)
            what = f"{count} hippocampus" if finer == 1 else f"{count} of {finer}× finer voxels"
            rows.append(measured(what, theirs, ours, scans, count, arguments))
    lines = [
        [row["what"], system, f"{row['scans_an_hour'][system]:.0f}"] for row in rows for system in row["scans_an_hour"]
    ]
    result = record(
        f"predict a folder, whole commands, mirroring {'on' if arguments.mirror else 'off'}, {arguments.repeats} runs in turn",
        load,
        both_versions("numpy"),
        rows=rows,
    )
    shown = f"{comparison_table(rows)}\n\n{table(['folder', 'by', 'scans an hour'], lines)}"
    publish(result, shown, arguments.out)


def measured(
    what: str, theirs: Path, ours: Path, scans: Path, count: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A row of one folder, with its scans an hour."""
    ways = {name: (word, "overlays=false", "report=false", *arguments.overrides) for name, word in WAYS.items()}
    how = {"repeats": arguments.repeats, "mirror": arguments.mirror}
    runs, agreement = predict_in_turn(theirs, ours, scans, arguments.work, ways, **how)
    row = compare(what, runs, **agreement)
    return row | {"scans_an_hour": {name: 3600 * count / middle(one.wall_s for one in of) for name, of in runs.items()}}


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=3)
    work = Path(tempfile.gettempdir()) / "medseg-folder"
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of medseg predict, such as runtime=torch")
    made.add_argument("--cases", type=numbers, default=(30, 4), help="scans of each folder (default 30,4)")
    made.add_argument(
        "--finer", type=int, default=6, help="voxels of the second folder for one along each axis (default 6)"
    )
    made.add_argument("--no-mirror", dest="mirror", action="store_false", help="no mirrored copies, on both sides")
    made.add_argument("--model", type=Path, help="a model folder trained by nnU-Net")
    made.add_argument("--data", type=Path, default=DATA / "hippocampus", help="(default ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    given = made.parse_args()
    given.work = given.work.resolve()
    return given


if __name__ == "__main__":
    main()
