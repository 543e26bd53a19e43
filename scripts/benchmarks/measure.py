"""What the benchmarks share: a command watched from outside, medians, ratios, the table, and the JSON with all that is needed to
read a figure later: the command, the machine and its load, the versions of both sides.

Systems run in turn, so that what else the machine does falls on all of them alike. Knows no peer, and nothing of what is
measured. Only Linux tells what memory processes take; elsewhere that figure is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from medseg.files import write_text

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
LEAST_DICE = 0.995
"""Masks that agree less are of different work: their times are not compared."""
FIGURES = ("wall_s", "cpu_s", "peak_mb")
"""What is compared of a run (see `Measured`)."""


@dataclass(frozen=True)
class Measured:
    """One run of a command with all its processes.

    Args:
        wall_s, cpu_s: wall-clock seconds, and those of processors (of children that were waited for).
        peak_mb: the most memory in use at once in MiB, where a page that is shared counts once (PSS).
        resident_mb: the same with each process counted alone (RSS).
    """

    wall_s: float
    cpu_s: float
    peak_mb: float
    resident_mb: float = 0.0


def watch(command: Sequence[Any], *, environment: Mapping[str, str] | None = None, log: Path | None = None) -> Measured:
    """Run a command to its end in a session of its own and watch all its processes.

    Args:
        environment: all of its environment; that of this process by default.
        log: a file for what it says; else that is shown only if it fails, which ends this process.
    """
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() if log is None else log.open("w+b") as said:
        started = time.monotonic()
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=said, start_new_session=True)
        memory = PeakMemory(process.pid)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = memory.stop()
        if process.returncode:
            said.seek(0)
            tail = said.read().decode(errors="replace")[-4000:]
            sys.exit(f"{shlex.join(words)[:2000]}\nfailed with {process.returncode}:\n{tail}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak, memory.resident_mb)


class PeakMemory:
    """Watches a process that leads a session, all others of it and all their descendants, until it is stopped.

    It looks ten times a second, or as often as costs it 5 % of a core.
    """

    def __init__(self, session: int) -> None:
        self._session, self._pss, self._rss = session, 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The most in MiB that all took at once, shared pages counted once; 0 where the system does not tell."""
        self._done.set()
        self._thread.join()
        return self._pss / 1024

    @property
    def resident_mb(self) -> float:
        """The same, shared pages counted in each process."""
        return self._rss / 1024

    def _watch(self) -> None:
        wait = 0.0
        while not self._done.wait(wait):
            started = time.thread_time()
            found = [_memory_kb(process) for process in _family(self._session)]
            self._pss = max(self._pss, sum(pss for pss, _ in found))
            self._rss = max(self._rss, sum(rss for _, rss in found))
            wait = max(0.1, 20 * (time.thread_time() - started))


def _family(session: int) -> list[int]:
    """The processes of a session, and all that descend from them, in sessions of their own too."""
    members, children = [], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:
            continue  # it has just ended
        number = int(path.parent.name)
        if int(fields[3]) == session:
            members.append(number)
        children.setdefault(int(fields[1]), []).append(number)
    for member in members:
        members += [child for child in children.get(member, ()) if child not in members]
    return members


def _memory_kb(process: int) -> tuple[int, int]:
    """PSS and RSS of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    known = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
    return known.get("Pss", 0), known.get("Rss", 0)


def in_turn(
    systems: Mapping[str, Callable[[], T]], repeats: int, *, after: Callable[[], None] = lambda: None
) -> dict[str, list[T]]:
    """What each system answers, ``repeats`` times: all in turn, every other time in the opposite order.

    Args:
        after: called after each round, such as to look at what all of it left behind.
    """
    answers: dict[str, list[T]] = {name: [] for name in systems}
    for number in range(repeats):
        for name in list(systems) if number % 2 == 0 else list(systems)[::-1]:
            answers[name].append(systems[name]())
            print(f"{number + 1}/{repeats} {name}: {_short(answers[name][-1])}", file=sys.stderr)
        after()
    return answers


def compare(
    what: str,
    runs: Mapping[str, Sequence[Measured]],
    *,
    peer: str = "nnU-Net",
    aims: Mapping[str, float] | None = None,
    least_dice: float | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A row: medians of ``medseg`` and of its ``peer``, and by how much the peer's are larger.

    Args:
        aims: figure (a field of `Measured`) → the least ratio that is asked for.
        least_dice: of any label of any case between the masks of these very runs, where they make masks.
        settings: system → what it was told of windows, such as their step and the mirroring; they must be the same.

    Returns:
        ``what median runs ratio aims met refused``. Where the masks or settings differ, ``refused`` says so, and there is neither
        a ratio nor an aim that is met.
    """
    median = {
        system: {name: middle(getattr(one, name) for one in of) for name in FIGURES} for system, of in runs.items()
    }
    refused = ""
    if settings is not None and settings["medseg"] != settings[peer]:
        refused = f"other settings: medseg {dict(settings['medseg'])}, {peer} {dict(settings[peer])}"
    elif least_dice is not None and not least_dice >= LEAST_DICE:
        refused = f"the masks differ: least Dice {least_dice:.4f}, expected {LEAST_DICE} or more"
    ratio = {} if refused else {name: ratio_of(median[peer][name], median["medseg"][name]) for name in FIGURES}
    return {
        "what": what,
        "peer": peer,
        "median": median,
        "ratio": ratio,
        "aims": dict(aims or {}),
        "met": {name: ratio[name] >= aim for name, aim in (aims or {}).items() if name in ratio},
        "least_dice": least_dice,
        "settings": settings,
        "refused": refused,
        "runs": {system: [asdict(one) for one in of] for system, of in runs.items()},
    }


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows that `compare` made."""
    header = ["what", "by", "wall s", "ratio", "aim", "cpu s", "ratio", "peak MB", "ratio", "aim", "least Dice"]
    lines = []
    for row in rows:
        ratio, aims, dice = row["ratio"], row["aims"], row["least_dice"]
        for system, median in row["median"].items():
            own = system == "medseg"

            def times(name: str, own: bool = own, of: Mapping[str, float] = ratio) -> str:
                return f"{of[name]:.2f}" if own and name in of else ""

            def aim(name: str, own: bool = own, of: Mapping[str, float] = aims) -> str:
                return f"≥ {of[name]:g}" if own and name in of else ""

            lines.append([
                row["what"], system, f"{median['wall_s']:.2f}", times("wall_s"), aim("wall_s"), f"{median['cpu_s']:.2f}",
                times("cpu_s"), f"{median['peak_mb']:.0f}", times("peak_mb"), aim("peak_mb"),
                f"{dice:.4f}" if own and dice is not None else "",
            ])  # fmt: skip
    refused = [f"{row['what']}: does not count, {row['refused']}" for row in rows if row["refused"]]
    return "\n".join([table(header, lines), *refused])


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells as text in columns of one width, in Markdown; all but the first column to the right."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join([first.lstrip().ljust(widths[0]), *rest])} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def middle(values: Iterable[float]) -> float:
    """The median, to five digits: no figure here knows more."""
    return _digits(statistics.median(values))


def ratio_of(peer: float, own: float) -> float:
    """How many times ``own`` fits into ``peer``; 0 where there is no figure of both."""
    return _digits(peer / own) if own > 0 else 0.0


def record(what: str, load: Sequence[float], versions: Mapping[str, Any], **figures: Any) -> dict[str, Any]:
    """What the JSON holds: what was measured, by which command, where, of which versions, and the figures."""
    return {"what": what, "command": command_line(), "machine": machine(load), "versions": dict(versions), **figures}


def publish(result: Mapping[str, Any], shown: str, out: Path | None) -> None:
    """Print a `record` with its table and, where ``out`` is given, write it there as JSON, whole."""
    about = result["machine"]
    print(f"{result['what']}\n\n{shown}\n\n{result['command']}")
    print(f"{about['cores']} cores, {about['processor']}, {about['memory_gb']} GB, load before {about['load_before']}")
    print("; ".join(f"{name}: {_version_words(of)}" for name, of in result["versions"].items()))
    if out is not None:
        write_text(out, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def machine(load: Sequence[float]) -> dict[str, Any]:
    """Cores, processor, memory, and how busy it was before: a figure of a shared machine is worth less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cores": cores,
        "processor": names[0] if names else platform.processor(),
        "memory_gb": round(memory / 1e9, 1),
        "load_before": [round(x, 1) for x in load],
    }


def versions(*packages: str, python: Path | None = None) -> dict[str, str]:
    """The interpreter's version and those of the packages that are installed, here or for another interpreter."""
    if python is None:
        return {**_installed(packages), "python": platform.python_version()}
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({**{n: found[n] for n in sys.argv[1:] if n in found}, 'python': platform.python_version()}))"
    )
    done = subprocess.run(
        [python, "-c", code, *packages], capture_output=True, text=True, check=True, env=_without_path()
    )
    return dict(json.loads(done.stdout))


def command_line() -> str:
    """The command that runs now, as one would type it."""
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", str(name), *sys.argv[1:]])


def parser(text: str | None, *, repeats: int | None = None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring, with ``--out`` and, where it repeats its runs, ``-n``."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        made.add_argument("-n", "--repeats", type=int, default=repeats, help=f"runs of each (default {repeats})")
    made.add_argument("--out", type=Path, help="write the result there as JSON, too")
    return made


def numbers(text: str) -> tuple[int, ...]:
    """``96,96,80`` as an argument."""
    return tuple(int(part) for part in text.split(","))


def _installed(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _without_path() -> dict[str, str]:
    """The environment without PYTHONPATH, which belongs to this interpreter."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _version_words(found: Mapping[str, str] | str) -> str:
    return found if isinstance(found, str) else ", ".join(f"{name} {number}" for name, number in found.items())


def _short(answer: Any) -> str:
    if isinstance(answer, Measured):
        return f"{answer.wall_s:.2f} s, {answer.peak_mb:.0f} MB"
    return f"{answer:.3f} s" if isinstance(answer, float) else str(answer)


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
