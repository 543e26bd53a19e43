"""What a heat map of a whole volume costs beside its prediction: the same network, windows and number format, no mirroring.

    .venv/bin/python scripts/benchmarks/explain_cost.py --shape 192,192,160 --patch 96,96,80 --out result.json

A planned U-Net of random weights predicts a volume of noise, and explains one label of it, in turn and several times; each
system's peak memory is that of a process of its own. The aim is three times the time of the prediction.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
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
from scripts.benchmarks.preprocess_vs_nnunet import machine

METHODS = ("grad_cam", "hires_cam", "depth_cam", "gradient")
NETWORK = {"_target_": "medseg.networks.unet.plain_unet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=_numbers, default=(192, 192, 160), help="of the volume on the plan's grid")
    parser.add_argument("--patch", type=_numbers, default=(96, 96, 80), help="of a window")
    parser.add_argument("-n", "--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()
    names = ("prediction", *METHODS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:  # in turn, each in a process of its own
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                taken, peak = pool.apply(measured, (name, arguments.shape, arguments.patch))
            seconds[name].append(taken)
            memory[name].append(peak)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    lines = ["| what | seconds | × prediction | peak memory, MB | × prediction |", "|---|---|---|---|---|"]
    for name in names:
        peak = statistics.median(memory[name])
        ratio, more = middle[name] / middle["prediction"], peak / statistics.median(memory["prediction"])
        lines.append(f"| {name} | {middle[name]:.2f} | {ratio:.2f} | {peak:.0f} | {more:.2f} |")
    text = "\n".join(lines)
    sys.stdout.write(text + "\n")
    if arguments.out is not None:
        found = {"seconds": seconds, "memory_mb": memory, "machine": machine(load), "torch": torch.__version__}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


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


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
