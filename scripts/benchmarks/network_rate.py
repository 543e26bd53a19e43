"""Which share of the machine a network reaches by each runtime, for windows of several sizes, and which layers bound it.

    .venv/bin/python scripts/benchmarks/network_rate.py --out result.json
    .venv/bin/python scripts/benchmarks/network_rate.py --model imported --patches 128,128,96 --out result.json

The network alone: no reading, mirroring or blending. Its floating-point operations (torch.utils.flop_counter, two a
multiplication and addition) a second, as a share of the best bf16 matrix product that PyTorch reaches on the same threads, n of
1024 to 8192. Without ``--model`` these are the plain U-Nets that nnU-Net plans for the hippocampus (four stages of 32 to 256
features) and for abdominal CT (six of 32 to 320), of random weights. The layers are OpenVINO's own counters in the number format
that is fast here; nodes that it fused count with the one before.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg.inference.runtime import fast_bf16
from medseg.inference.runtimes import versions_of_runtimes
from medseg.interop.graph import FlatNetwork, example_of
from medseg.interop.openvino import openvino_graph, openvino_library
from medseg.model import Model, load_members
from medseg.networks import build_network
from scripts.benchmarks.explain_cost import NETWORK, model_of
from scripts.benchmarks.measure import numbers, parser, publish, record, table, versions
from scripts.benchmarks.runtimes import REFERENCE, SIZES, best_product, flops_of, shares, timed

AIM = 0.5
STAGES = {(40, 56, 40): 4, (64, 64, 64): 6, (96, 96, 96): 6, (128, 128, 96): 6}
"""Windows, and the stages of the network that nnU-Net plans for them."""


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    device = torch.device("cpu")
    best, products = best_product(device, [n for n in SIZES if n <= arguments.largest])
    windows: list[dict[str, Any]] = []
    for patch in arguments.patches or STAGES:
        model = model_with(arguments.model, patch)
        example = example_of(len(model.plan.channels), patch)
        flops = flops_of(model, example)
        _, found, left_out = timed(model, example, "cpu", arguments.repeats)
        rows = {name: row | shares(row, found[REFERENCE], flops, best) for name, row in found.items()}
        layers = layers_of(model, example)
        windows.append({"patch": patch, "flop": flops, "runtimes": rows, "left_out": left_out, "layers": layers})
        print(f"window {patch}: {best / 1e9:.0f} GFLOP/s at best", file=sys.stderr)
    result = record(
        "the network alone, as a share of the best bf16 matrix product",
        load,
        {"both": versions("medseg") | versions_of_runtimes()},
        threads=torch.get_num_threads(),
        aim=AIM,
        matrix_product_flop_s=products,
        windows=windows,
    )
    head = f"best bf16 matrix product {best / 1e9:.0f} GFLOP/s on {torch.get_num_threads()} threads; aim {AIM:.0%}"
    publish(result, "\n\n".join([head, *map(shown, windows)]), arguments.out)


def model_with(folder: Path | None, patch: Sequence[int]) -> Model:
    """The model of a folder, or one of random weights, with windows of another size."""
    if folder is not None:
        model = load_members(folder)[0]
        return replace(model, plan=replace(model.plan, patch_size=tuple(patch)))
    stages = STAGES.get(tuple(patch), 6)
    model = model_of((64, 64, 64))
    plan = replace(
        model.plan,
        patch_size=tuple(patch),
        features=tuple(min(32 * 2**stage, 256 if stages == 4 else 320) for stage in range(stages)),
        strides=((1, 1, 1), *(((2, 2, 2),) * (stages - 1))),
        kernel_sizes=((3, 3, 3),) * stages,
        blocks=(2,) * stages,
    )
    network = build_network(NETWORK, plan, len(plan.labels.outputs))
    return replace(model, plan=plan, weights=network.state_dict())


def layers_of(model: Model, example: torch.Tensor) -> list[dict[str, Any]]:
    """Every layer that takes time in OpenVINO: its kind, milliseconds, share of the whole, and GFLOP/s."""
    network = FlatNetwork(model.network_module())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(example)
    counts = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if fast_bf16("cpu") else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
    }
    compiled = openvino_library().Core().compile_model(openvino_graph(network, example), "CPU", options)
    request, values = compiled.create_infer_request(), example.numpy()
    times: Counter[tuple[str, str]] = Counter()
    for number in range(4):
        request.infer([values])
        for node in request.get_profiling_info() if number else ():  # the first one warms up
            layer = node.node_name.partition("/")[0].removeprefix("__module.")
            times[layer, f"{node.node_type} {node.exec_type}"] += node.cpu_time.total_seconds() / 3
    whole = sum(times.values())
    return [
        {
            "layer": layer,
            "kind": kind,
            "ms": 1000 * seconds,
            "share": seconds / whole,
            "gflop_s": counts.get(layer, 0) / seconds / 1e9 if "Convolution" in kind else None,
        }
        for (layer, kind), seconds in times.most_common()
        if seconds > 0
    ]


def shown(window: dict[str, Any]) -> str:
    """The runtimes, the kinds of layers that take longest, and the layers themselves."""
    rates = [[name, f"{row['median_s']:.4f}", f"{row['share']:.0%}"] for name, row in window["runtimes"].items()]
    kinds: Counter[str] = Counter()
    for layer in window["layers"]:
        kinds[layer["kind"]] += layer["share"]
    layers = []
    for layer in window["layers"][:6]:
        rate = "" if layer["gflop_s"] is None else f"{layer['gflop_s']:.0f}"
        layers.append([layer["layer"], f"{layer['ms']:.1f}", f"{layer['share']:.0%}", rate])
    parts = [
        f"window {'×'.join(map(str, window['patch']))}, {window['flop'] / 1e9:.1f} GFLOP",
        table(["runtime", "s a window", "share"], rates),
        ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.most_common(6)),
        table(["layer", "ms", "share", "GFLOP/s"], layers),
        *(f"{name}: left out, {why}" for name, why in window["left_out"].items()),
    ]
    return "\n\n".join(parts)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=5)
    made.add_argument("--model", type=Path, help="a model folder, such as medseg import makes")
    made.add_argument("--patches", nargs="+", type=numbers, help="windows, such as 96,96,96 128,128,96")
    made.add_argument("--largest", type=int, default=max(SIZES), help="n of the matrix product")
    return made.parse_args()


if __name__ == "__main__":
    main()
