"""How long nnU-Net and medseg take to fingerprint, plan and preprocess the same cases, in turn on the same machine.

    bash scripts/benchmarks/nnunet.sh
    .venv/bin/python scripts/benchmarks/preprocess_vs_nnunet.py --out result.json

Both read the same copy of the cases in nnU-Net's raw layout and run as a process of their own with two workers, so that
interpreter and imports count for both. Peak memory is that of all processes together (Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAME = "Dataset004_Benchmark"
NNUNET = HERE / ".venv" / "bin"
MEDSEG = """
import sys
from pathlib import Path
from medseg.commands.plan import plan
from medseg.data.store import prepare
from medseg.scans.layouts import nnunet

root, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cohort = nnunet(root)
network = {"_target_": "medseg.networks.unet.plain_unet"}
made = plan(cohort, planner={}, overrides={}, out=out / "plan.yaml", network=network, workers=workers)
store = prepare(cohort.cases, made, out / "cache", workers=workers)
if store.failed:
    sys.exit("\\n".join(str(fault) for fault in store.failed))
"""


@dataclass(frozen=True)
class Measured:
    """One run: wall-clock and processor seconds, and the most memory in use at once (PSS, so that shared pages count once)."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def main() -> None:
    arguments = _arguments()
    if not (NNUNET / "nnUNetv2_plan_and_preprocess").exists():
        sys.exit("nnU-Net is not installed: run `bash scripts/benchmarks/nnunet.sh` first")
    load = os.getloadavg()
    runs: dict[str, list[Measured]] = {"nnU-Net": [], "medseg": []}
    with tempfile.TemporaryDirectory(prefix="medseg-benchmark-") as name:
        folder = Path(name)
        cases = convert(arguments.data, folder / "raw" / NAME, arguments.limit)
        for number in range(arguments.n):
            order = list(runs) if number % 2 == 0 else list(runs)[::-1]
            for system in order:
                out = folder / f"{system}_{number}"
                out.mkdir()
                runs[system].append(run(system, folder / "raw", out, arguments.workers))
                check(system, out, cases)
                shutil.rmtree(out)
                print(f"{number + 1}/{arguments.n} {system}: {runs[system][-1].wall_s:.1f} s", file=sys.stderr)
    result: dict[str, Any] = {
        "what": f"fingerprint, plan and preprocess {cases} cases, {arguments.workers} workers, {arguments.n} runs in turn",
        "command": " ".join(["python", "scripts/benchmarks/preprocess_vs_nnunet.py", *sys.argv[1:]]),
        "machine": machine(load),
        "versions": {"nnU-Net": nnunet_version(), "medseg": version("medseg"), "python": platform.python_version()},
        "median": {system: median(measured) for system, measured in runs.items()},
        "runs": {system: [asdict(one) for one in measured] for system, measured in runs.items()},
    }
    result["nnunet_over_medseg"] = {
        key: round(result["median"]["nnU-Net"][key] / max(result["median"]["medseg"][key], 1e-9), 2)
        for key in ("wall_s", "cpu_s", "peak_mb")
    }
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def convert(data: Path, out: Path, limit: int | None) -> int:
    """Copy the cases of an MSD folder of one modality into nnU-Net's raw layout; returns how many there are."""
    described = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    if len(described["modality"]) != 1:
        sys.exit(f"{data}: expected one modality, found {len(described['modality'])}")
    listed = described["training"][:limit]
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
    for entry in listed:
        stem = Path(entry["image"]).name.removesuffix(".nii.gz")
        shutil.copy(data / entry["image"], out / "imagesTr" / f"{stem}_0000.nii.gz")
        shutil.copy(data / entry["label"], out / "labelsTr" / f"{stem}.nii.gz")
    raw = {
        "channel_names": described["modality"],
        "labels": {name: int(value) for value, name in described["labels"].items()},
        "numTraining": len(listed),
        "file_ending": ".nii.gz",
    }
    (out / "dataset.json").write_text(json.dumps(raw), encoding="utf-8")
    return len(listed)


def run(system: str, raw: Path, out: Path, workers: int) -> Measured:
    """Run one system on ``raw`` into ``out`` as a process of its own; its output is shown only if it fails."""
    environment = dict(os.environ)
    if system == "nnU-Net":
        environment |= {"nnUNet_raw": str(raw), "nnUNet_preprocessed": str(out), "nnUNet_results": str(out / "results")}
        command = [str(NNUNET / "nnUNetv2_plan_and_preprocess"), "-d", str(int(NAME[7:10])), "-c", "3d_fullres"]
        command += ["-npfp", str(workers), "-np", str(workers)]
    else:
        command = [sys.executable, "-c", MEDSEG, str(raw / NAME), str(out), str(workers)]
    return watched(command, environment, out / "log.txt")


def watched(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Measured:
    """Run a command to its end as a session of its own; its output goes into ``log``, and is shown only if it fails."""
    with log.open("w+b") as file:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        watch = PeakMemory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = watch.stop()
        if process.returncode:
            file.seek(0)
            said = file.read().decode(errors="replace")[-4000:]
            sys.exit(f"{' '.join(command)}\nfailed with {process.returncode}:\n{said}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, peak)


def check(system: str, out: Path, cases: int) -> None:
    """Every case must be there, else the figure says nothing."""
    found = len(list(out.rglob("*.pkl" if system == "nnU-Net" else "cache/*.zip")))
    if found != cases:
        sys.exit(f"{system}: expected {cases} preprocessed cases, found {found}")


class PeakMemory:
    """Watches the processes of one session, five times a second, until it is stopped."""

    def __init__(self, session: int) -> None:
        self._session, self._peak_kb = session, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The peak in MB; 0 where the system does not tell."""
        self._done.set()
        self._thread.join()
        return self._peak_kb / 1024

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self._peak_kb = max(self._peak_kb, sum(map(_pss_kb, self._processes())))

    def _processes(self) -> list[Path]:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold anything
            except OSError:
                continue
            if int(fields[3]) == self._session:
                found.append(path.parent)
        return found


def _pss_kb(process: Path) -> int:
    try:
        text = (process / "smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def machine(load: Sequence[float]) -> dict[str, Any]:
    """Cores, processor, and how busy it was before: a figure of a shared machine is worth less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cores": cores,
        "processor": names[0] if names else platform.processor(),
        "load_before": [round(x, 1) for x in load],
    }


def nnunet_version(package: str = "nnunetv2") -> str:
    """The version of a package of nnU-Net's own environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([NNUNET / "python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def show(result: Mapping[str, Any]) -> None:
    machine = result["machine"]
    print(f"{result['what']}\n{result['command']}")
    print(f"{machine['cores']} cores, {machine['processor']}, load before {machine['load_before']}")
    print(f"{'median':<16}{'wall s':>10}{'cpu s':>10}{'peak MB':>10}")
    for system, row in [*result["median"].items(), ("ratio", result["nnunet_over_medseg"])]:
        name = f"{system} {result['versions'].get(system, '')}".strip()
        print(f"{name:<16}{row['wall_s']:>10.2f}{row['cpu_s']:>10.2f}{row['peak_mb']:>10.2f}")


def median(measured: Sequence[Measured]) -> dict[str, float]:
    return {key: round(statistics.median(asdict(one)[key] for one in measured), 2) for key in asdict(measured[0])}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "hippocampus"
    parser.add_argument(
        "--data", type=Path, default=default, help="an MSD folder (default: ../shared/data/hippocampus)"
    )
    parser.add_argument("--limit", type=int, help="only the first cases")
    parser.add_argument("-n", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each (default 2)")
    parser.add_argument("--out", type=Path, help="write the result there as JSON, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
