"""How long medseg takes to begin: ``--help`` of every command, and the first mask of a small scan.

    .venv/bin/python scripts/benchmarks/start_up.py --model runs/medseg/fold_0 --scan scan.nii.gz --out result.json

Every figure is that of a whole command in a process of its own, with everything that it imports, from its start to the moment at
which the help was printed or the mask lies in its place; the median counts. Without ``--model`` and ``--scan`` the network is a
planned U-Net that takes everything for an organ, and the scan a part of a phantom, 80×80×64 voxels of 1 mm.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nibabel as nib
import numpy as np
import torch

from medseg.config import verbs
from medseg.model import Model, save_model
from medseg.testing.phantoms import make_body
from medseg.volume import Geometry
from scripts.benchmarks.explain_cost import model_of
from scripts.benchmarks.measure import in_turn, middle, parser, publish, record, table, versions

AIMS = {"--help": 0.5, "first mask": 8.0}
MEDSEG = (sys.executable, "-m", "medseg")


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    helps = {" ".join(words): words for words in [["--help"], *([verb, "--help"] for verb in verbs())]}
    with tempfile.TemporaryDirectory(prefix="medseg-start-") as name:
        model, scan = arguments.model, arguments.scan
        if model is None:
            model = Path(name) / "model"
            save_model(sure_model(), model)
        if scan is None:
            scan = small_scan(Path(name) / "scan.nii.gz")
        starts: dict[str, Callable[[], float]] = {
            title: functools.partial(seconds_of, [*MEDSEG, *words]) for title, words in helps.items()
        }
        starts["first mask"] = lambda: first_mask(model, scan, Path(tempfile.mkdtemp(dir=name)) / "out")
        runs = in_turn(starts, arguments.repeats)
    seconds = {title: middle(times) for title, times in runs.items()}
    aims = {title: AIMS.get(title, AIMS["--help"]) for title in seconds}
    rows = [
        [title, f"{took:.2f}", f"≤ {aims[title]:g}", "yes" if took <= aims[title] else "NO"]
        for title, took in seconds.items()
    ]
    result = record(
        f"seconds of whole commands, median of {arguments.repeats}",
        load,
        {"medseg": versions("medseg", "torch")},
        aims=AIMS,
        median_s=seconds,
        runs_s=runs,
    )
    publish(result, table(["command", "s", "aim", "within"], rows), arguments.out)


def seconds_of(command: Sequence[str], *, until: Callable[[], bool] | None = None) -> float:
    """Seconds until a command ends, or until something is there while it runs; it always runs to its end."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = None
    while until is not None and process.poll() is None:
        if until():
            seconds = time.monotonic() - started
            break
        time.sleep(0.01)
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)}\nfailed with {process.returncode}:\n{said[-4000:]}")
    return seconds or time.monotonic() - started


def first_mask(model: Path, scan: Path, out: Path) -> float:
    """Seconds until the mask of a single scan lies in its place, with nothing remembered of earlier runs."""
    command = [*MEDSEG, "predict", f"model={model}", f"input={scan}", f"output={out}", f"runtime.cache={out}_cache"]
    return seconds_of(command, until=lambda: any(out.glob("[!.]*/mask.nii.gz")))


def sure_model() -> Model:
    """A U-Net whose head looks at nothing: random weights make masks of thousands of specks, which no scan has."""
    model = model_of((64, 64, 64))
    head = {
        "heads.0.weight": torch.zeros_like(model.weights["heads.0.weight"]),
        "heads.0.bias": torch.tensor([0.0, 1, 0]),
    }
    return replace(model, weights={**model.weights, **head})


def small_scan(path: Path) -> Path:
    """The middle of a phantom: 80×80×64 voxels of 1 mm."""
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, 3] = (-40.0, -40.0, -32.0)
    image = make_body(rng).image(Geometry((80, 80, 64), affine), rng)
    nib.save(nib.Nifti1Image(image.astype(np.int16), affine), path)
    return path


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=5)
    made.add_argument("--model", type=Path, help="a model, run or experiment folder")
    made.add_argument("--scan", type=Path, help="a small scan for it")
    return made.parse_args()


if __name__ == "__main__":
    main()
