"""Seconds of a training step of nnU-Net and of medseg: the same plan, network, weights and batch, in turn on the same threads.

    bash scripts/benchmarks/nnunet.sh
    .venv/bin/python scripts/benchmarks/training_step.py --threads 2 --out result.json

nnU-Net plans and preprocesses hippocampus cases and makes a batch with its own loader. medseg takes plan, weights and batch
over; both must answer the batch alike, or nothing is measured. A step is nnU-Net's ``nnUNetTrainer.train_step`` on the CPU, and
medseg's loop with all that it does between two batches: forward, loss at every level, backward, clipping, SGD and the average
of the weights, in the precision that it chooses by itself. nnU-Net has neither an average nor another number format on a CPU.
``--loading`` measures the step with what loads and augments its batch before it, in the same process for both, as a second
row. Processor seconds stand beside those of the clock: on a machine that is shared they are the ones to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.measure import DATA, middle, parser, publish, ratio_of, record, table, watch
from scripts.benchmarks.nnunet_peer import NAME, NNUNET, NUMBER, convert, ensure_peer, environment

HERE = Path(__file__).resolve().parent

ALIKE = 1e-3
"""How far the answers of both networks may differ at most, as a share of their standard deviation; float32, before any step."""

# Both workers write a line of JSON when they are ready, and one for each line that they read: the seconds of a step, of the clock
# and of the processor.
PEER = """
import json, sys, time
from pathlib import Path
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

sys.stdout, out = sys.stderr, sys.stdout
base, folder, threads, loading = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
torch.set_num_threads(threads)
torch.manual_seed(0)
plans = json.loads((base / "nnUNetPlans.json").read_text()) | {"continue_training": False}
trainer = nnUNetTrainer(plans, "3d_fullres", 0, json.loads((base / "dataset.json").read_text()), torch.device("cpu"))
trainer.initialize()
trainer.do_split()
batches, _ = trainer.get_dataloaders()
trainer.network.train()
batch = next(batches)
with torch.no_grad():
    answer = trainer.network(batch["data"])[0]
held = {"weights": dict(trainer.network.state_dict()), "data": batch["data"], "target": batch["target"][0], "answer": answer}
torch.save(held, folder / "batch.pt")
versions = {name: __import__("importlib.metadata").metadata.version(name) for name in ("nnunetv2", "torch")}
print(json.dumps({"versions": versions}), file=out, flush=True)
for _ in sys.stdin:
    started = time.perf_counter(), time.process_time()
    trainer.train_step(next(batches) if loading else batch)
    print(json.dumps([time.perf_counter() - started[0], time.process_time() - started[1]]), file=out, flush=True)
"""


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    ensure_peer()
    base = prepare(arguments.data, arguments.work, arguments.cases)
    rows = {}
    for name, loading in [("step", False), *([("step and loading", True)] if arguments.loading else [])]:
        rows[name], versions = measured(base, arguments, loading)
    what = f"a training step on a CPU, {arguments.threads} threads, {arguments.repeats} steps of each in turn"
    publish(record(what, load, versions, rows=rows), shown(rows), arguments.out)


def prepare(data: Path, work: Path, cases: int) -> Path:
    """nnU-Net's preprocessed cases and plans in ``work``; made once."""
    base = work / "preprocessed" / NAME
    if not (base / "prepared").exists():
        convert(data, work / "raw" / NAME, cases)
        command = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres", "-npfp", "1", "-np", "1"]
        watch(command, environment=environment(work))
        (base / "prepared").touch()
    return base


def measured(base: Path, arguments: argparse.Namespace, loading: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps of both in turn, after one of each that warms up; and the versions of both."""
    with tempfile.TemporaryDirectory(prefix="medseg-step-") as name:
        words = [str(base), name, str(arguments.threads), str(int(loading))]
        mine = [sys.executable, str(HERE / "training_step_medseg.py"), *words]
        mine += [f"{key}={getattr(arguments, key)}" for key in ("precision", "compile")]
        peer = Worker([str(NNUNET / "python"), "-c", PEER, *words], arguments)
        ours = Worker(mine, arguments)  # after the peer, whose batch it reads
        if ours.ready["difference"] > ALIKE:
            sys.exit(
                f"the networks differ by {ours.ready['difference']:.1e} on the same batch, at most {ALIKE:g} expected"
            )
        workers = {"nnU-Net": peer, "medseg": ours}
        steps: dict[str, list[list[float]]] = {system: [] for system in workers}
        for number in range(-1, arguments.repeats):
            for system, worker in workers.items():
                took = worker.step()
                steps[system] += [took] if number >= 0 else []
                print(
                    f"{number + 1}/{arguments.repeats} {system}: {took[0]:.2f} s, {took[1]:.2f} s cpu", file=sys.stderr
                )
        for worker in workers.values():
            worker.close()
    median = {
        system: {
            clock: middle(times) for clock, times in zip(("wall_s", "cpu_s"), zip(*taken, strict=True), strict=True)
        }
        for system, taken in steps.items()
    }
    row = {
        "median": median,
        "ratio": {key: ratio_of(median["nnU-Net"][key], median["medseg"][key]) for key in ("wall_s", "cpu_s")},
        "steps": steps,
        **{key: ours.ready[key] for key in ("difference", "patch", "batch_size", "features", "precision", "compiled")},
    }
    return row, {"nnU-Net": peer.ready["versions"], "medseg": ours.ready["versions"]}


class Worker:
    """A process that takes a step whenever it is told to; what else it says is shown if it fails."""

    def __init__(self, command: Sequence[str], arguments: argparse.Namespace) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        told = environment(arguments.work, workers=0) if Path(command[0]).parent == NNUNET else dict(os.environ)
        told["OMP_NUM_THREADS"] = str(arguments.threads)
        self._process = subprocess.Popen(
            command, env=told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.ready: dict[str, Any] = self._answer()

    def step(self) -> list[float]:
        """Seconds of one step, of the clock and of the processor."""
        if self._process.stdin is not None:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        return [float(seconds) for seconds in self._answer()]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            self._log.seek(0)
            sys.exit(f"{' '.join(map(str, self._process.args))[:200]} failed:\n{self._log.read()[-4000:]}")  # type: ignore[arg-type]
        return json.loads(line)


def shown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Seconds of both by the clock and of the processor, and below what was trained."""
    lines, notes = [], []
    for name, row in rows.items():
        for key, ratio in row["ratio"].items():
            theirs, mine = (row["median"][system][key] for system in ("nnU-Net", "medseg"))
            lines.append([f"{name}, {key}", f"{theirs:.3f}", f"{mine:.3f}", f"{ratio:.2f}"])
        notes.append(
            f"{name}: patch {row['patch']}, batch {row['batch_size']}, features {row['features']}; medseg in {row['precision']}, "
            f"{'compiled' if row['compiled'] else 'not compiled'}; answers differ by {row['difference']:.1e}"
        )
    return "\n".join([table(["median", "nnU-Net", "medseg", "ratio"], lines), "", *notes])


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=7)
    work, cores = Path(tempfile.gettempdir()) / "medseg-step", len(os.sched_getaffinity(0))
    made.add_argument("--data", type=Path, default=DATA / "hippocampus", help="(default ../shared/data/hippocampus)")
    made.add_argument("--work", type=Path, default=work, help=f"what nnU-Net prepares stays there (default: {work})")
    made.add_argument("--cases", type=int, default=40, help="cases that nnU-Net plans for (default 40)")
    made.add_argument("--threads", type=int, default=cores, help="of each (default: all cores)")
    made.add_argument("--loading", action="store_true", help="also with what loads and augments the batch")
    made.add_argument("--precision", default="auto", help="of medseg: auto, bf16 or float32")
    made.add_argument("--compile", default="auto", help="of medseg: auto, true or false")
    return made.parse_args()


if __name__ == "__main__":
    main()
