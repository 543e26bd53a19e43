"""What a heat map of a whole volume costs beside its prediction: the same network, windows and number format, no mirroring.

    .venv/bin/python scripts/benchmarks/explain_cost.py --shape 192,192,160 --patch 96,96,80 --out result.json

A planned U-Net of random weights predicts a volume of noise, and explains one label of it, in turn and several times; each
system's peak memory is that of a process of its own. The aim is three times the time of the prediction.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from medseg.explain.explainer import Explainer
from medseg.inference.predictor import predict_grid
from medseg.inference.runtime import TorchRuntime
from medseg.model import Model
from medseg.networks import build_network
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable
from medseg.tasks import build_task
from scripts.benchmarks.measure import in_turn, middle, numbers, parser, publish, ratio_of, record, table, versions

METHODS = ("grad_cam", "hires_cam", "depth_cam", "gradient")
NETWORK = {"_target_": "medseg.networks.unet.plain_unet"}


def main() -> None:
    made = parser(__doc__, repeats=3)
    made.add_argument("--shape", type=numbers, default=(192, 192, 160), help="of the volume on the plan's grid")
    made.add_argument("--patch", type=numbers, default=(96, 96, 80), help="of a window")
    arguments, load = made.parse_args(), os.getloadavg()
    names = ("prediction", *METHODS)
    runs = in_turn(
        {name: functools.partial(apart, name, arguments.shape, arguments.patch) for name in names}, arguments.repeats
    )
    seconds = {name: middle(taken for taken, _ in of) for name, of in runs.items()}
    memory = {name: middle(peak for _, peak in of) for name, of in runs.items()}
    rows = [
        [
            name,
            f"{seconds[name]:.2f}",
            f"{ratio_of(seconds[name], seconds['prediction']):.2f}",
            f"{memory[name]:.0f}",
            f"{ratio_of(memory[name], memory['prediction']):.2f}",
        ]
        for name in names
    ]
    shown = table(["what", "seconds", "× prediction", "peak memory, MB", "× prediction"], rows)
    what = f"explain a volume of {arguments.shape} voxels, windows {arguments.patch}, {arguments.repeats} runs in turn"
    result = record(
        what, load, {"both": versions("medseg", "torch", "captum")}, seconds=seconds, memory_mb=memory, runs=runs
    )
    publish(result, shown, arguments.out)


def apart(name: str, shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[float, float]:
    """What `measured` says in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (name, shape, patch))


def measured(name: str, shape: tuple[int, ...], patch: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of one of the systems once it is warm, and the peak memory of this process in MB."""
    model = model_of(patch)
    task = build_task(model.task, model.plan)
    array = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    region = np.zeros(shape, bool)
    region[tuple(slice(n // 3, n // 3 + n // 6) for n in shape)] = True
    work: Callable[[np.ndarray, np.ndarray], Any]
    if name == "prediction":
        runtime = TorchRuntime(model.network_module())

        def work(volume: np.ndarray, _: np.ndarray) -> Any:
            return predict_grid([runtime], volume, model.plan, task, mirror=False)
    else:
        explainer = Explainer([model], method=name)

        def work(volume: np.ndarray, where: np.ndarray) -> Any:
            return explainer.on_grid(volume, "lesion", where)

    small = tuple(slice(0, n) for n in patch)
    inside = np.zeros(patch, bool)
    inside[tuple(slice(n // 3, n // 2) for n in patch)] = True
    work(array[(slice(None), *small)], inside)  # warm
    begin = time.perf_counter()
    work(array, region)
    return time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model_of(patch: tuple[int, ...]) -> Model:
    """A plain U-Net of five stages and random weights."""
    strides = ((1, 1, 1), *(((2, 2, 2),) * 4))
    plan = Plan(
        task="segmentation",
        orientation="RAS",
        channels=(Channel("MRI", "zscore"),),
        labels=LabelTable({1: "organ", 2: "lesion"}),
        crop="none",
        spacing=(1.0, 1.0, 1.0),
        unit="mm",
        image_order=(3, 3, 3),
        label_order=(1, 1, 1),
        patch_size=patch,
        batch_size=2,
        features=(16, 32, 64, 128, 256),
        strides=strides,
        kernel_sizes=((3, 3, 3),) * 5,
        blocks=(2,) * 5,
        mirror_axes=(0, 1, 2),
        foreground=0.33,
        memory_gb=4.0,
    )
    torch.manual_seed(0)
    weights = build_network(NETWORK, plan, 3).state_dict()
    return Model(plan=plan, task={"name": "segmentation"}, network=NETWORK, weights=weights)


if __name__ == "__main__":
    main()
