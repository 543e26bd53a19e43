"""medseg's side of `training_step.py`: its own training loop, which waits before each batch until it is told to take a step.

python scripts/benchmarks/training_step_medseg.py <preprocessed> <folder of batch.pt> <threads> <0|1> [precision=… compile=…]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medseg.commands.train import choose_compile, choose_precision
from medseg.data.augment import strong
from medseg.data.dataset import make_loader
from medseg.data.store import prepare
from medseg.interop.nnunet_plan import Described, described
from medseg.interop.nnunet_weights import renamed, turned
from medseg.networks import build_network
from medseg.scans.layouts import nnunet
from medseg.tasks import build_task
from medseg.training.allocation import freed_memory_is_kept
from medseg.training.fit import make_trainer
from medseg.training.module import TrainingModule
from medseg.training.settings import Optimization, TrainerSettings

SGD = {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
NO_END = 10**6


class Told(Dataset[dict[str, Any]]):
    """Batches, each when a line is read; before the next it says how many seconds the last one took with its step, of
    the clock and of the processor."""

    def __init__(self, batches: Iterator[dict[str, Any]], out: Any) -> None:
        self._batches, self._out = batches, out
        self._started: tuple[float, float] | None = None

    def __len__(self) -> int:
        return NO_END

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._started is not None:
            wall, cpu = (now - then for now, then in zip(_clocks(), self._started, strict=True))
            print(json.dumps([wall, cpu]), file=self._out, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self._started = _clocks()
        return next(self._batches)


def main() -> None:
    base, folder, threads, loading = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
    asked = dict(word.split("=", 1) for word in sys.argv[5:])
    out, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)
    settings = TrainerSettings.from_mapping({"accelerator": "cpu", "steps_per_epoch": NO_END, **asked})
    plans, dataset = (json.loads((base / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    found = described(plans, dataset, "3d_fullres", [0, 1, 2])
    plan, held = found.plan, torch.load(folder / "batch.pt", weights_only=True)
    task = build_task({"name": "segmentation"}, plan)
    network = build_network(found.network.spec, plan, task.out_channels)
    network.load_state_dict(
        {
            name: turned(w, found.axes.order, flat=False)
            for name, w in renamed(held["weights"], len(plan.features))[0].items()
        }
    )
    batch = {
        "image": _turned(held["data"], found),
        "label": _turned(held["target"], found).clamp(min=0).to(torch.int16),
        "case": [""] * len(held["data"]),
    }
    with torch.no_grad():
        answer, expected = network.train()(batch["image"])[0], _turned(held["answer"], found)
    precision, compiled = choose_precision(settings, "cpu"), choose_compile(settings, "cpu")
    module = TrainingModule(
        network, task, plan, Optimization.from_mapping(SGD),
        ema=settings.ema, seed=0, total_steps=NO_END, precision=precision, compiled=compiled,
    )  # fmt: skip
    ready = {
        "difference": float((answer - expected).abs().max() / expected.std()),
        "patch": list(plan.patch_size),
        "batch_size": len(batch["image"]),
        "features": list(plan.features),
        "precision": precision,
        "compiled": compiled,
        "versions": {name: version(name) for name in ("medseg", "torch", "lightning")},
    }
    batches = _loaded(found, base) if loading else _again(batch)
    print(json.dumps(ready), file=out, flush=True)
    trainer = make_trainer(settings, folder, precision, NO_END, [], [])
    with freed_memory_is_kept():
        trainer.fit(module, DataLoader(Told(batches, out), batch_size=None))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _turned(array: Tensor, found: Described) -> Tensor:
    """A batch ``(B, C, k, j, i)`` of nnU-Net's along medseg's axes."""
    return array.permute(0, 1, *(2 + axis for axis in found.axes.order)).contiguous()


def _again(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while True:
        yield batch


def _loaded(found: Described, base: Path) -> Iterator[dict[str, Any]]:
    """Batches of the same cases as medseg prepares, loads and augments them, in this process."""
    cohort = nnunet(base.parents[1] / "raw" / base.name)
    with tempfile.TemporaryDirectory(prefix="medseg-step-") as folder:
        store = prepare(cohort.cases, found.plan, Path(folder), workers=1, progress=False)
        task = build_task({"name": "segmentation"}, found.plan)
        yield from make_loader(store, list(store.cases), task, found.plan, strong(found.plan), steps=NO_END, workers=0)


if __name__ == "__main__":
    main()
