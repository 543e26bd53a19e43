"""Thousands of spoilt files, each of which has to end as a volume or as a clear refusal.

    .venv/bin/python scripts/benchmarks/fuzz_readers.py --count 3000 --seed 1 --out fuzz.json
    .venv/bin/python scripts/benchmarks/fuzz_readers.py --seed 1 --only 1234 --keep spoilt/    # one case again

Each case is a process of its own: what it raises, how long it computes and how much memory it takes beyond the sound process
that it is forked from are judged from outside. A case fails by any exception but `MedsegError`, by a signal, by time, by
memory, by a grid that differs from the header's, by asking for memory that no such file can need, or by a message with the
name or number of the patient. Linux only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medseg.errors import MedsegError
from medseg.scans import read_geometry, read_mask, read_volume
from medseg.scans.find import Found, find
from medseg.scans.reading import ScanError
from scripts.benchmarks.fuzz_files import Seed, seeds
from scripts.benchmarks.fuzz_mutations import mutations
from scripts.benchmarks.measure import command_line, versions

CPU_S, WALL_S = 10, 60
MEMORY_MB = 128
ADDRESSES_MB = 4096
"""Beyond the sound process: what a case may touch, and what it may ask for (threads of the finder reserve much)."""

_IN_VAIN = "claims more pixels than memory holds"
"""How the readers say that memory ran out: they are to see before they ask."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended: ``volume`` (everything was read), ``refused`` (something was, with a reason), or what is wrong."""

    number: int
    seed: str
    mutation: str
    ended: str
    said: str
    cpu_s: float
    wall_s: float
    memory_mb: float

    @property
    def failed(self) -> bool:
        return self.ended not in ("volume", "refused")


def main() -> int:
    arguments = _arguments()
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore")
    makers = {name: make for name, make in seeds().items() if arguments.format in (None, name.split("/")[0])}
    made: dict[str, Seed] = {}
    names, outcomes, started = list(makers), [], time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(arguments.count) if arguments.only is None else [arguments.only]:
            random = np.random.default_rng([arguments.seed, number])
            name = names[number % len(names)]
            if name not in made:
                made[name] = makers[name]()
                _check_sound(made[name], name, Path(scratch))
            ways = mutations(name)
            way = list(ways)[int(random.integers(len(ways)))]
            spoilt = ways[way](made[name].files[made[name].target], random)
            folder = Path(scratch) / str(number)
            _lay_out(folder, {**made[name].files, made[name].target: spoilt})
            if arguments.keep is not None:
                _lay_out(arguments.keep / str(number), {**made[name].files, made[name].target: spoilt})
            outcomes.append(_judged(folder, number, name, way, bool(random.random() < 0.5), arguments.only is not None))
            shutil.rmtree(folder)
    report = _report(outcomes, arguments, time.perf_counter() - started)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 1 if report["failed"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="how many files")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives other files")
    parser.add_argument("--format", help="of one format alone: dicom, nifti, nrrd, metaimage, picture")
    parser.add_argument("--only", type=int, help="one case, by its number, with what it says")
    parser.add_argument("--keep", type=Path, help="a folder to keep the spoilt files in")
    parser.add_argument("--out", type=Path, help="a file for the report (JSON)")
    return parser.parse_args()


def _lay_out(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


def _check_sound(seed: Seed, name: str, scratch: Path) -> None:
    """A seed is read as it is, which also imports whatever its reading needs."""
    folder = scratch / "sound"
    _lay_out(folder, dict(seed.files))
    found = find(folder)
    ended, said = _examined(found, evened=False)
    if ended != "volume" and "pages" not in name:
        raise SystemExit(f"the sound file {name} is not read: {said}")
    shutil.rmtree(folder)


def _examined(found: Found, *, evened: bool) -> tuple[str, str]:
    """Read all that was found, as training would. Returns how it ended, and the first refusal."""
    said = [fault.message for fault in found.faults]
    options = {"uneven": "resample" if evened else "refuse"}
    grids = []
    for entry in found.sources:
        try:
            geometry = read_geometry(entry.source, options)
            volume = read_volume(entry.source, options)
            if volume.geometry.shape != geometry.shape or not volume.geometry.matches(geometry):
                return "grids differ", f"header {geometry.describe()}, pixels {volume.geometry.describe()}"
            if volume.data.dtype != np.float32 or volume.data.shape[1:] != geometry.shape:
                return "no volume", f"{volume.data.dtype} {volume.data.shape}"
            grids.append(geometry)
            if entry.source.kind != "dicom":
                with suppress(ScanError):  # an image need not be a label
                    read_mask(entry.source, geometry)
        except MedsegError as error:
            said.append(str(error))
    for annotation in found.annotations:
        for grid in grids[:1] or [None]:
            try:
                mask, lies_on = read_mask(annotation.source, grid)
                if mask.dtype.kind not in "ui" or mask.shape != (grid or lies_on).shape:
                    return "no mask", f"{mask.dtype} {mask.shape}"
            except MedsegError as error:
                said.append(str(error))
    empty = not (found.sources or found.unread or found.annotations)
    return ("nothing", "") if empty else ("refused", said[0]) if said else ("volume", "")


def _judged(folder: Path, number: int, seed: str, mutation: str, evened: bool, aloud: bool) -> Outcome:
    """Read the folder in a forked process and look at it from outside."""
    receive, send = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _in_child(folder, send, evened, aloud)
    os.close(send)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(WALL_S)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    _, status, usage = os.wait4(child, 0)
    signal.alarm(0)
    wall, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    told = json.loads(answer) if answer else {"ended": "", "said": "", "before_kb": usage.ru_maxrss}
    ended, memory = told["ended"], (usage.ru_maxrss - told["before_kb"]) / 1024
    if os.WIFSIGNALED(status):
        killed = os.WTERMSIG(status)
        ended = "time" if killed in (signal.SIGXCPU, signal.SIGKILL) else f"signal {signal.Signals(killed).name}"
    elif memory > MEMORY_MB:
        ended = "memory"
    elif _IN_VAIN in told["said"]:
        ended = "memory asked for"
    return Outcome(number, seed, mutation, ended, told["said"], round(cpu, 3), round(wall, 3), round(memory, 1))


def _in_child(folder: Path, send: int, evened: bool, aloud: bool) -> None:
    """Examine the folder within limits, tell, and leave without cleaning up what belongs to the parent."""
    try:
        if not aloud:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C write there
        pages = [int(n) for n in Path("/proc/self/statm").read_text().split()]
        addresses = pages[0] * resource.getpagesize() + (ADDRESSES_MB << 20)
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        logged = _Logged(logging.WARNING)
        logging.getLogger().addHandler(logged)
        try:
            ended, said = _examined(find(folder), evened=evened)
        except MedsegError as error:
            ended, said = "refused", str(error)
        except BaseException as error:
            ended, said = "unhandled", f"{type(error).__name__}: {error} | {''.join(traceback.format_exc()[-1500:])}"
            if aloud:
                traceback.print_exc()
        if "secret" in f"{said} {logged.lines}".lower():
            ended, said = "patient named", f"{said} {logged.lines}"
        told = {"ended": ended, "said": said[:3000], "before_kb": before}
        os.write(send, json.dumps(told).encode())
    finally:
        os._exit(0)


class _Logged(logging.Handler):
    """What was said beside."""

    lines: str = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += f" {record.getMessage()}"


def _report(outcomes: list[Outcome], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    by_format: dict[str, Counter[str]] = {}
    by_mutation: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        by_format.setdefault(outcome.seed, Counter())[outcome.ended] += 1
        by_mutation.setdefault(outcome.mutation, Counter())[outcome.ended] += 1
    report: dict[str, Any] = {
        "command": command_line(),
        "seed": arguments.seed,
        "count": len(outcomes),
        "ended": dict(Counter(outcome.ended for outcome in outcomes)),
        "failed": [asdict(outcome) for outcome in outcomes if outcome.failed],
        "most_cpu_s": max(outcome.cpu_s for outcome in outcomes),
        "most_memory_mb": max(outcome.memory_mb for outcome in outcomes),
        "limits": {"cpu_s": CPU_S, "wall_s": WALL_S, "memory_mb": MEMORY_MB, "addresses_mb": ADDRESSES_MB},
        "by_format": {name: dict(counts) for name, counts in sorted(by_format.items())},
        "by_mutation": {name: dict(counts) for name, counts in sorted(by_mutation.items())},
        "seconds": round(seconds, 1),
        "versions": versions("numpy", "pydicom", "nibabel", "pynrrd", "pillow", "python-gdcm"),
    }
    if arguments.only is not None:
        report["case"] = asdict(outcomes[0])
    return report


if __name__ == "__main__":
    sys.exit(main())
