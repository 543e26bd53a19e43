"""How long it takes to make one set of ten thousand raw boxes, beside MONAI's non-maximum suppression of the same boxes.

    .venv/bin/python scripts/benchmarks/fuse_boxes.py --out result.json

The boxes lie as a detector leaves them: a few hundred lesions, each found by many views with a little error, and many more of low
score anywhere in a scan of 512×512×300 voxels. Both systems run in one process and on one thread, in turn; MONAI's suppression
keeps one box a group and merges nothing, so its result is compared with medseg's own suppression of the same boxes.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from monai.data.box_utils import non_max_suppression

from medseg.tiling.fusion import nms, soft_nms, weighted_box_clustering
from scripts.benchmarks.measure import in_turn, middle, parser, publish, ratio_of, record, table, versions

SHAPE = (512, 512, 300)
IOU = 0.1


def raw_boxes(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(count, 6)`` boxes, scores and labels of a detector: half of them about 200 lesions, the others anywhere."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(2.3, 0.4, (200, 3)))
    centres = rng.uniform(0, 1, (200, 3)) * (np.array(SHAPE) - sizes) + sizes / 2
    of = rng.integers(0, 200, count // 2)
    found = centres[of] + rng.normal(0, 0.1, (len(of), 3)) * sizes[of]
    spread = sizes[of] * np.exp(rng.normal(0, 0.1, (len(of), 3)))
    rest = count - len(of)
    anywhere, size = rng.uniform(0, 1, (rest, 3)) * SHAPE, np.exp(rng.normal(2.3, 0.5, (rest, 3)))
    centre, length = np.concatenate([found, anywhere]), np.concatenate([spread, size])
    scores = np.concatenate([rng.beta(5, 2, len(of)), rng.beta(1, 8, rest)])
    return np.concatenate([centre - length / 2, centre + length / 2], 1), scores, np.ones(count, np.int64)


def measure(count: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each system on the same boxes, and whether both suppressions keep the same ones."""
    boxes, scores, labels = raw_boxes(count)
    tensors = torch.from_numpy(boxes), torch.from_numpy(scores)
    systems = {
        "weighted box clustering": lambda: weighted_box_clustering(boxes, scores, labels, iou=IOU, views=8),
        "soft-NMS": lambda: soft_nms(boxes, scores, labels, IOU),
        "NMS": lambda: nms(boxes, scores, labels, IOU),
        "MONAI's NMS": lambda: non_max_suppression(*tensors, nms_thresh=IOU),
    }
    results = {}

    def once(name: str) -> float:
        begin = time.perf_counter()
        results[name] = systems[name]()
        return time.perf_counter() - begin

    seconds = in_turn({name: functools.partial(once, name) for name in systems}, repeats)
    ours = {tuple(row) for row in np.round(results["NMS"][0], 6)}
    theirs = {tuple(row) for row in np.round(boxes[results["MONAI's NMS"].numpy()], 6)}
    return {
        "boxes": count,
        "seconds": {name: middle(times) for name, times in seconds.items()},
        "kept": {name: len(found[0]) if isinstance(found, tuple) else len(found) for name, found in results.items()},
        "suppressions_agree": ours == theirs,
    }


def main() -> None:
    made = parser(__doc__, repeats=5)
    made.add_argument("--count", type=int, default=10_000)
    arguments, load = made.parse_args(), os.getloadavg()
    torch.set_num_threads(1)
    found = measure(arguments.count, arguments.repeats)
    peer = found["seconds"]["MONAI's NMS"]
    rows = [
        [name, f"{median:.3f}", f"{ratio_of(peer, median):.2f}", found["kept"][name]]
        for name, median in found["seconds"].items()
    ]
    shown = table(["by", "s", "MONAI's ÷ it", "boxes"], rows)
    shown += f"\n\nboth suppressions keep the same boxes: {found['suppressions_agree']}"
    what = f"make one set of {arguments.count} raw boxes on one thread, {arguments.repeats} runs in turn"
    publish(record(what, load, {"both": versions("medseg", "monai", "torch", "numpy")}, **found), shown, arguments.out)


if __name__ == "__main__":
    main()
