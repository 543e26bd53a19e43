"""A scan of 1024×1024×1000 voxels and 100 labels, whole command, within 8 GB: measured from outside, and compared with no bound.

    .venv/bin/python scripts/benchmarks/huge_scan.py --out result.json
    .venv/bin/python scripts/benchmarks/huge_scan.py --shape 256,256,200 --outputs 30 --memory-gb 2

A phantom of tissue in air is written as an int16 NIfTI, slice by slice. ``medseg predict`` runs in a process of its own, whose
memory and that of all its children is read from /proc (resident pages; what processes share is counted in each). Then a crop is
predicted without a bound, by the windows that the scan has there, and its inside compared with the mask.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nibabel as nib
import numpy as np
import torch

from medseg.data.preprocess import preprocess
from medseg.inference.answers import Answers
from medseg.inference.runtime import TorchRuntime
from medseg.model import Model, load_model, save_model
from medseg.networks import build_network
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.tiling.blending import GaussianBlender
from medseg.tiling.windows import axis_starts, cut_window
from medseg.volume import Geometry, Volume
from scripts.benchmarks.measure import numbers, parser, publish, record, table, versions, watch

NETWORK = {"_target_": "medseg.networks.unet.plain_unet"}
SPACING = (0.4, 0.4, 0.4)
AIR = -1024


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--shape", type=numbers, default=(1024, 1024, 1000))
    made.add_argument("--outputs", type=int, default=100, help="of the network, background among them")
    made.add_argument("--patch", type=numbers, default=(64, 64, 64))
    made.add_argument("--overlap", type=float, default=0.25)
    made.add_argument("--spacing", type=float, default=SPACING[0], help="of the plan; that of the scan is 0.4 mm")
    made.add_argument("--memory-gb", type=float, default=8.0)
    made.add_argument(
        "--crop", type=int, default=5, help="windows along each axis of what is predicted without a bound"
    )
    made.add_argument("--work", type=Path, default=Path("huge_scan"), help="folder of scan, model and results")
    arguments, load = made.parse_args(), os.getloadavg()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scan, model = arguments.work / "scans" / "huge.nii", arguments.work / "model"
    write_scan(scan, arguments.shape)
    save_model(random_model(arguments), model)
    output = arguments.work / "results"
    command = [sys.executable, "-m", "medseg", "predict", f"model={model}", f"input={scan}", f"output={output}"]
    command += [
        f"overlap={arguments.overlap}",
        "mirror=false",
        "overwrite=true",
        "runtime=torch",
        f"runtime.memory_gb={arguments.memory_gb}",
    ]
    log = arguments.work / "log.txt"
    measured = watch(command, log=log)
    voxels, same = compared(scan, model, output / "huge" / "mask.nii.gz", arguments)
    said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    peak_gb = measured.resident_mb * 2**20 / 1e9
    result = record(
        f"predict {'×'.join(map(str, arguments.shape))} int16, {arguments.outputs} outputs, windows {arguments.patch}",
        load,
        {"medseg": versions("medseg", "torch", "numpy")},
        predict=" ".join([Path(command[0]).name, *command[1:]]),
        seconds=round(measured.wall_s, 1),
        peak_gb=round(peak_gb, 3),
        granted_gb=arguments.memory_gb,
        said=next((line for line in said if "memory:" in line), ""),
        windows=json.loads((output / "manifest.json").read_text(encoding="utf-8"))["cases"]["huge"]["windows"],
        compared_voxels=voxels,
        same=same,
    )
    shown = table(
        ["seconds", "peak GB", "granted GB", "compared voxels", "the same"],
        [[f"{measured.wall_s:.0f}", f"{peak_gb:.2f}", arguments.memory_gb, voxels, f"{same:.5f}"]],
    )
    publish(result, f"{shown}\n\n{result['said']}", arguments.out)
    if peak_gb > arguments.memory_gb or not same >= 0.9999:  # an empty crop has no share
        raise SystemExit("the bound or the mask is not what was said")


def write_scan(path: Path, shape: tuple[int, ...]) -> None:
    """Balls and grain within a cylinder of tissue, air around it; the last axis is written slice by slice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    affine = np.diag([*SPACING, 1.0])
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    x, y = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape[:2]), indexing="ij")
    body = x**2 + y**2 < 0.5
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(header.binaryblock + b"\0" * 4)
        for k in range(shape[2]):
            tissue = 60 * np.sin(9 * x + k / 17) * np.cos(11 * y - k / 23) + rng.normal(0, 15, shape[:2])
            plane = np.where(body, tissue, AIR).astype("<i2")
            file.write(plane.tobytes(order="F"))


def random_model(arguments: argparse.Namespace) -> Model:
    labels = LabelTable({value: f"label {value}" for value in range(1, arguments.outputs)})
    plan = Plan(
        task="segmentation", orientation="RAS", channels=(Channel("CT", "ct", mean=0, std=50, low=-200, high=200),),
        labels=labels, crop="none", spacing=(arguments.spacing,) * 3, unit="mm", image_order=(3, 3, 3),
        label_order=(1, 1, 1), patch_size=arguments.patch, batch_size=1, features=(4, 8), strides=((1,) * 3, (2,) * 3),
        kernel_sizes=((3,) * 3, (3,) * 3), blocks=(1, 1), mirror_axes=(), foreground=0.5, memory_gb=4.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(NETWORK, plan, arguments.outputs)
    return Model(plan=plan, task={"name": "segmentation"}, network=NETWORK, weights=network.state_dict())


def compared(scan: Path, model: Path, mask: Path, arguments: argparse.Namespace) -> tuple[int, float]:
    """How many voxels of the inside of a crop were compared, and the share of them that is the same."""
    if arguments.spacing != SPACING[0]:
        return 0, 1.0  # a crop would be resampled onto other places
    lower, upper = [], []
    for n, size in zip(arguments.shape, arguments.patch, strict=True):
        starts = axis_starts(n, size, arguments.overlap)
        first = len(starts) // 2 - arguments.crop // 2
        chosen = starts[max(first, 0) : first + arguments.crop]
        lower.append(chosen[0])
        upper.append(chosen[-1] + size)
    window = tuple(map(slice, lower, upper))
    data = np.asarray(nib.load(scan).dataobj[window])
    found = _without_bound(data, load_model(model), arguments, lower, upper)
    inside = tuple(
        slice(size if low else 0, up - low - (size if up < n else 0))
        for low, up, n, size in zip(lower, upper, arguments.shape, arguments.patch, strict=True)
    )
    theirs = np.asarray(nib.load(mask).dataobj[window])[inside]
    return int(theirs.size), float((theirs == found[inside]).mean())


def _without_bound(
    data: np.ndarray, model: Model, arguments: argparse.Namespace, first: list[int], last: list[int]
) -> Any:
    """The mask of a crop from its whole scores, by the windows that the scan has there."""
    volume = Volume(data[None], Geometry.from_spacing(data.shape, SPACING))
    array, restoration = preprocess(volume, model.plan)
    task = build_task(model.task, model.plan)
    answers = Answers([TorchRuntime(model.network_module())], task, ())
    blender = GaussianBlender(data.shape, arguments.outputs, arguments.patch)
    axes = [
        [start - low for start in axis_starts(n, size, arguments.overlap) if low <= start and start + size <= up]
        for n, size, low, up in zip(arguments.shape, arguments.patch, first, last, strict=True)
    ]
    for lower in itertools.product(*axes):
        blender.add(answers([cut_window(array, lower, arguments.patch)])[0], lower)
    return task.decode("crop", blender.result(), restoration, {}).mask


if __name__ == "__main__":
    main()
