"""How long resampling a volume takes by banded matrices along its axes, beside dense ones and the spline of scipy.

    .venv/bin/python scripts/benchmarks/resampling.py --out result.json

Each way resamples the same noise to the same shape in turn, cubic along every axis; shown are medians of the repeats, in seconds
of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy import ndimage

from medseg.volume import Array, resample_array, resampling_matrix
from scripts.benchmarks.preprocess_vs_nnunet import machine

VOLUMES = (((40, 56, 40), (48, 62, 44)), ((256, 256, 120), (200, 200, 150)), ((512, 512, 100), (340, 340, 160)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, default=len(VOLUMES), help="how many of the volumes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()
    ways: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
        "bands": lambda values, shape: resample_array(values, shape, 3),
        "dense": dense,
        "scipy": splined,
    }
    rows = []
    for old, new in VOLUMES[: arguments.largest]:
        values = np.random.default_rng(0).normal(size=old).astype(np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found = {}
        for _ in range(arguments.repeats):
            for name, way in ways.items():
                started = time.process_time()
                found[name] = way(values, new)
                seconds[name].append(time.process_time() - started)
        middle = {name: statistics.median(taken) for name, taken in seconds.items()}
        inner = (slice(16, -16),) * 3  # scipy continues a volume beyond its faces in another way
        rows.append(
            {
                "shape": "×".join(map(str, old)) + " → " + "×".join(map(str, new)),
                "seconds": {name: round(value, 4) for name, value in middle.items()},
                "faster_than": {name: round(middle[name] / middle["bands"], 2) for name in ("dense", "scipy")},
                "apart": {
                    name: float(np.abs(found[name] - found["bands"])[inner].max(initial=0))
                    for name in ("dense", "scipy")
                },
            }
        )
    text = json.dumps({"machine": machine(load), "rows": rows}, indent=1, ensure_ascii=False)
    sys.stdout.write(text + "\n")
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def dense(values: Array, shape: tuple[int, ...]) -> Array:
    """One product an axis with all of its matrix."""
    for axis in sorted(range(3), key=lambda a: shape[a] / values.shape[a]):
        matrix = resampling_matrix(values.shape[axis], shape[axis], 3)
        values = np.ascontiguousarray(np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis))
    return values


def splined(values: Array, shape: tuple[int, ...]) -> Array:
    zoom = [new / old for new, old in zip(shape, values.shape, strict=True)]
    return np.asarray(ndimage.zoom(values, zoom, order=3, mode="mirror", grid_mode=True))


if __name__ == "__main__":
    main()
