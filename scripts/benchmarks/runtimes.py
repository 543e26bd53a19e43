"""Seconds a window of one network by every runtime that is installed, and how much of the machine that is.

    .venv/bin/python scripts/benchmarks/runtimes.py --patch 96,96,96 --out result.json

The network is a planned U-Net of random weights or, with ``--model``, a trained one. Every runtime answers the same window, in
turn and several times; the median counts. Ratios are to PyTorch in float32, not compiled. The share is what the network's
floating-point operations (torch.utils.flop_counter, two a multiplication and addition) reach a second, of the best bf16 matrix
product that PyTorch reaches on the same threads, n of 1024 to 8192: the network alone, with no reading, mirroring or blending.
The last column is how far the answer lies from float32, as a share of its root mean square; with ``--scans`` (and ``--model``
of a segmentation) the least Dice of any label of any scan with the mask of float32, on the scan's own grid, without mirroring.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg.data.preprocess import preprocess
from medseg.data.regions import read_planned
from medseg.errors import MedsegError
from medseg.inference.auto_runtime import difference
from medseg.inference.predictor import predict_grid
from medseg.inference.runtime import Runtime, fast_bf16, find_device
from medseg.inference.runtimes import RuntimeOptions, build_runtime, candidates, versions_of_runtimes
from medseg.interop.graph import example_of
from medseg.model import Model, load_members
from medseg.scans.layouts import input_cases
from medseg.tasks import build_task
from scripts.benchmarks.explain_cost import model_of
from scripts.benchmarks.measure import middle, numbers, parser, publish, ratio_of, record, table, versions

SIZES = (1024, 2048, 4096, 8192)
REFERENCE = "torch float32"


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--patch", type=numbers, default=(96, 96, 96), help="of a window, without --model")
    made.add_argument("--model", type=Path, help="a model, run or experiment folder, whose first member is measured")
    made.add_argument("--scans", type=Path, help="a file or folder of scans for --model, whose masks are compared")
    made.add_argument("--device", default="auto")
    made.add_argument("--batch-size", type=int, default=1)
    made.add_argument("--largest", type=int, default=max(SIZES), help="n of the matrix product")
    arguments, load = made.parse_args(), os.getloadavg()
    device = find_device(arguments.device)
    model = load_members(arguments.model)[0] if arguments.model else model_of(arguments.patch)
    plan = model.plan
    example = example_of(len(plan.channels), plan.patch_size, arguments.batch_size)
    flops = flops_of(model, example) / arguments.batch_size
    best, products = best_product(device, [n for n in SIZES if n <= arguments.largest])
    runtimes, found, left_out = timed(model, example, str(device), arguments.repeats)
    if arguments.scans:
        for name, dice in agreement(model, runtimes, arguments.scans, arguments.batch_size).items():
            found[name]["least_dice"] = dice
    rows = {name: {**row, **shares(row, found[REFERENCE], flops, best)} for name, row in found.items()}
    what = f"one window of {list(example.shape)} on {device} with {torch.get_num_threads()} threads, {arguments.repeats} runs"
    result = record(
        what,
        load,
        {"both": versions("medseg") | versions_of_runtimes()},
        device=str(device),
        threads=torch.get_num_threads(),
        window=list(example.shape),
        flop_a_window=flops,
        matrix_product_flop_s=products,
        runtimes=rows,
        left_out=left_out,
    )
    product = f"{flops / 1e9:.1f} GFLOP a window; best bf16 matrix product {best / 1e9:.0f} GFLOP/s"
    publish(result, f"{shown(rows, left_out)}\n\n{product}", arguments.out)


def flops_of(model: Model, example: torch.Tensor) -> float:
    """Floating-point operations of one forward pass."""
    network = model.network_module()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    return float(counter.get_total_flops())


def best_product(device: torch.device, sizes: list[int]) -> tuple[float, dict[str, float]]:
    """The best rate of a bf16 matrix product in FLOP/s, and that of each size."""
    rates = {}
    for n in sizes:
        a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
        rates[str(n)] = 2 * n**3 / least(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    return max(rates.values()), rates


def least(work: Callable[[], Any], device: torch.device, seconds: float = 2.0) -> float:
    """The least seconds of some runs, after one that warms up."""
    work()
    begin, times = time.perf_counter(), []
    while len(times) < 2 or (len(times) < 50 and time.perf_counter() - begin < seconds):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def timed(
    model: Model, example: torch.Tensor, device: str, repeats: int
) -> tuple[dict[str, Runtime], dict[str, dict[str, Any]], dict[str, str]]:
    """The runtimes, what is known of each, and why others are left out."""
    runtimes: dict[str, Runtime] = {}
    rows: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    expected: Any = None
    formats = ["float32", "bf16"] if fast_bf16(device) else ["float32"]
    for kind in ("torch", *sorted(candidates(RuntimeOptions(device=device)))):
        for precision in formats if kind != "onnx" else formats[:1]:
            name, started = f"{kind} {precision}", time.perf_counter()
            try:
                options = RuntimeOptions(device=device, precision=precision)  # type: ignore[arg-type]
                runtimes[name] = build_runtime(kind, model, options, batch_size=len(example))
                answer = runtimes[name](example)
            except MedsegError as error:
                left_out[name] = str(error)
                continue
            expected = answer if name == REFERENCE else expected
            rows[name] = {
                "setup_s": time.perf_counter() - started,
                "window_s": [],
                "difference": difference(answer, expected),
            }
    for _ in range(repeats):
        for name, runtime in runtimes.items():  # in turn
            _wait(runtime.device)
            started = time.perf_counter()
            runtime(example)
            _wait(runtime.device)
            rows[name]["window_s"].append((time.perf_counter() - started) / len(example))
    return runtimes, rows, left_out


def agreement(model: Model, runtimes: dict[str, Runtime], scans: Path, batch_size: int) -> dict[str, float]:
    """The least Dice of any label of any scan with the mask of the reference; 1 where neither has the label."""
    task, plan = build_task(model.task, model.plan), model.plan
    least_dice = dict.fromkeys(runtimes, 1.0)
    for case in input_cases(scans, plan)[0]:
        array, restoration = preprocess(read_planned(case, plan), plan)
        masks = {}
        for name, runtime in runtimes.items():
            merged = predict_grid([runtime], array, plan, task, mirror=False, batch_size=batch_size)
            masks[name] = task.decode(case.id, merged, restoration, {}).mask
        for name, mask in masks.items():
            for value in plan.labels.names:
                a, b = mask == value, masks[REFERENCE] == value
                if a.any() or b.any():
                    least_dice[name] = min(least_dice[name], float(2 * (a & b).sum() / (a.sum() + b.sum())))
    return least_dice


def shares(row: dict[str, Any], reference: dict[str, Any], flops: float, best: float) -> dict[str, float]:
    """Median, ratio to the reference, and share of the matrix product."""
    median = middle(row["window_s"])
    return {
        "median_s": median,
        "times_as_fast": ratio_of(middle(reference["window_s"]), median),
        "share": flops / median / best,
    }


def shown(rows: dict[str, dict[str, Any]], left_out: dict[str, str]) -> str:
    """A line a runtime, and below why others are left out."""
    header = [
        "runtime",
        "set-up, s",
        "s a window",
        "× torch float32",
        "share of the matrix product",
        "difference",
        "least Dice",
    ]
    lines = [
        [
            name, f"{row['setup_s']:.1f}", f"{row['median_s']:.4f}", f"{row['times_as_fast']:.2f}", f"{row['share']:.0%}",
            f"{row['difference']:.1e}", f"{row['least_dice']:.5f}" if "least_dice" in row else "",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    return "\n".join([table(header, lines), *(f"{name}: left out, {why}" for name, why in left_out.items())])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
