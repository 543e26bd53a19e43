"""How long resampling a volume takes by banded matrices along its axes, beside dense ones and the spline of scipy.

    .venv/bin/python scripts/benchmarks/resampling.py --out result.json

Each way resamples the same noise to the same shape in turn, cubic along every axis; shown are medians of the repeats, in seconds
of the processor.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from scipy import ndimage

from medseg.volume import Array, resample_array, resampling_matrix
from scripts.benchmarks.measure import in_turn, middle, parser, publish, ratio_of, record, table, versions

VOLUMES = (((40, 56, 40), (48, 62, 44)), ((256, 256, 120), (200, 200, 150)), ((512, 512, 100), (340, 340, 160)))


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--largest", type=int, default=len(VOLUMES), help="how many of the volumes")
    arguments, load = made.parse_args(), os.getloadavg()
    ways: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
        "bands": lambda values, shape: resample_array(values, shape, 3),
        "dense": dense,
        "scipy": splined,
    }
    rows, lines = [], []
    for old, new in VOLUMES[: arguments.largest]:
        values = np.random.default_rng(0).normal(size=old).astype(np.float32)
        found = {}

        def once(
            name: str, values: Array = values, new: tuple[int, ...] = new, found: dict[str, Array] = found
        ) -> float:
            started = time.process_time()
            found[name] = ways[name](values, new)
            return time.process_time() - started

        runs = in_turn({name: functools.partial(once, name) for name in ways}, arguments.repeats)
        seconds = {name: middle(taken) for name, taken in runs.items()}
        inner = (slice(16, -16),) * 3  # scipy continues a volume beyond its faces in another way
        apart = {name: float(np.abs(found[name] - found["bands"])[inner].max(initial=0)) for name in ("dense", "scipy")}
        shape = "×".join(map(str, old)) + " → " + "×".join(map(str, new))
        faster = {name: ratio_of(seconds[name], seconds["bands"]) for name in apart}
        rows.append({"shape": shape, "seconds": seconds, "faster_than": faster, "apart": apart})
        lines += [
            [shape, name, f"{seconds[name]:.4f}", f"{faster.get(name, 1):.2f}", f"{apart.get(name, 0):.1e}"]
            for name in ways
        ]
    what = f"resample noise, cubic along every axis, processor seconds, {arguments.repeats} runs in turn"
    shown = table(["volume", "by", "s", "÷ bands", "apart"], lines)
    publish(record(what, load, {"both": versions("medseg", "numpy", "scipy")}, rows=rows), shown, arguments.out)


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
