"""How long it takes to sort ten thousand DICOM files into volumes, beside other tools and beside the disk itself.

    .venv/bin/python scripts/benchmarks/find_dicom.py --out result.json

Makes a tree of CT series (64×64, a header as scanners write it, private blocks and sequences included) and runs each system on
it in turn, each as a process of its own. Times are those of the work alone, without the start of the interpreter and the first
imports, for which dcm2niix has no counterpart. "disk" reads all bytes of all files one after the other, "disk, threads" the
first kilobytes in threads. "cold" drops the files from the page cache before each run (Linux; where the disk is a virtual one
its host may still hold them).
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from scripts.benchmarks.measure import in_turn, middle, parser, publish, ratio_of, record, table, versions

SLICES = 100
FILES = "[os.path.join(here, name) for here, _, names in os.walk(folder) for name in names]"
SYSTEMS = {
    "disk": f"""
for path in {FILES}:
    with open(path, "rb") as file: file.read()
""",
    "disk, threads": f"""
def head(path):
    with open(path, "rb") as file: file.read(8192)
paths = {FILES}
with ThreadPoolExecutor(16) as pool:
    list(pool.map(lambda chunk: [head(path) for path in chunk], [paths[n:n + 128] for n in range(0, len(paths), 128)]))
""",
    "medseg": """
found = len(find(Path(folder)).sources)
""",
    "pydicom": f"""
series = {{}}
for path in {FILES}:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    series.setdefault(dataset.SeriesInstanceUID, []).append((list(dataset.ImagePositionPatient), path))
found = len(series)
""",
    "SimpleITK": """
found = 0
for here, _, names in os.walk(folder):
    if names:
        for uid in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(here):
            found += bool(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(here, uid))
""",
}
IMPORTS = {"medseg": "from medseg.scans.find import find", "pydicom": "import pydicom", "SimpleITK": "import SimpleITK"}
PROGRAM = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
{imports}
folder, found = sys.argv[1], 0
wall, cpu = time.perf_counter(), time.process_time()
{work}
print(time.perf_counter() - wall, time.process_time() - cpu, found)
"""


def main() -> None:
    arguments, load = _arguments(), os.getloadavg()
    systems = [*SYSTEMS, *(["dcm2niix -n -1"] if _dcm2niix() else [])]
    runs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="medseg-benchmark-", dir=arguments.folder) as name:
        folder = Path(name) / "data"
        stored = write_files(folder, arguments.files)
        series = -(-arguments.files // SLICES)
        for state, prepare in (("warm", remember), ("cold", forget)):

            def once(system: str, prepare: Any = prepare) -> tuple[float, float]:
                prepare(folder)
                wall, cpu, found = run(system, folder)
                if found not in (series, 0):
                    sys.exit(f"{system}: expected {series} series, found {found}")
                return wall, cpu

            runs[state] = in_turn({s: functools.partial(once, s) for s in systems}, arguments.repeats)
    walls, cpus = ({state: _medians(of, which) for state, of in runs.items()} for which in (0, 1))
    over_disk = {state: {s: ratio_of(wall, of["disk"]) for s, wall in of.items()} for state, of in walls.items()}
    result = record(
        f"sort {arguments.files} DICOM files ({stored / 1e6:.0f} MB, {series} series), {arguments.repeats} runs in turn",
        load,
        {"all": versions("medseg", "pydicom", "SimpleITK", "dcm2niix")},
        median_wall_s=walls,
        median_cpu_s=cpus,
        over_disk=over_disk,
    )
    publish(result, shown(result), arguments.out)


def write_files(folder: Path, count: int) -> int:
    """A tree of series of a hundred slices; returns the bytes written. One header is made, and its numbers are replaced."""
    pattern = _template()
    for n in range(count):
        series, k = divmod(n, SLICES)
        here = folder / f"{series // 10:03d}" / f"{series:04d}"
        if not k:
            here.mkdir(parents=True)
        body = pattern
        # Each is as long as what it replaces, so that no length in the file changes.
        for old, new in (
            ("77777777", f"{series + 1:08d}"),
            ("88888888", f"{n + 1:08d}"),
            ("-999.5", f"{2.5 * k:06.1f}"),
        ):
            body = body.replace(old.encode(), new.encode())
        (here / f"{(k * 37) % SLICES:05d}").write_bytes(body)
    return count * len(pattern)


def _template() -> bytes:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.826.0.1.3680043.8.498.1.2.88888888"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.1.77777777"
    ds.FrameOfReferenceUID, ds.PatientID, ds.PatientName = "1.2.826.0.1.3680043.8.498.3", "P77777777", "Phantom"
    ds.ImageType, ds.Modality, ds.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "medseg"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "101500.000000"
    ds.SeriesDescription, ds.KVP, ds.ConvolutionKernel = "Thorax", "120", "B30f"
    references = []
    for n in range(8):
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = CTImageStorage, f"1.2.826.0.1.3680043.{n}"
        references.append(reference)
    ds.ReferencedImageSequence = references
    block = ds.private_block(0x0009, "MEDSEG BENCHMARK", create=True)
    for n in range(60):
        block.add_new(n, "LO", f"private value number {n}")
    ds.private_block(0x0029, "MEDSEG BENCHMARK", create=True).add_new(1, "OB", bytes(10_000))
    ds.InstanceNumber, ds.AcquisitionNumber, ds.SeriesNumber = "88888888", "1", "77777777"
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], ["-100", "-100", "-999.5"]
    ds.PixelSpacing, ds.SliceThickness, ds.PatientPosition = [0.7, 0.7], "2.5", "HFS"
    ds.Rows = ds.Columns = 64
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.RescaleSlope, ds.RescaleIntercept = 15, 1, 1, -1024
    ds.PixelData = np.zeros((64, 64), np.int16).tobytes()
    with tempfile.TemporaryFile() as file:
        pydicom.dcmwrite(file, ds, enforce_file_format=True)
        file.seek(0)
        return file.read()


def run(system: str, folder: Path) -> tuple[float, float, int]:
    """Wall-clock and processor seconds of one system, and how many series it found (0: it does not say)."""
    if system in SYSTEMS:
        code = PROGRAM.format(imports=IMPORTS.get(system, ""), work=SYSTEMS[system])
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        wall, cpu, found = done.stdout.split()[-3:]
        return float(wall), float(cpu), int(found)
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen([_dcm2niix(), "-n", "-1", "-o", out, str(folder)], stdout=log, stderr=log)
        _, _, usage = os.wait4(process.pid, 0)
        return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, 0


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    os.sync()
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remember(folder: Path) -> None:
    for path in _files(folder):
        path.read_bytes()


def _files(folder: Path) -> Iterator[Path]:
    return (Path(here) / name for here, _, names in os.walk(folder) for name in names)


def _dcm2niix() -> str:
    beside = Path(sys.executable).parent / "dcm2niix"
    return str(beside) if beside.exists() else shutil.which("dcm2niix") or ""


def _medians(runs: Mapping[str, list[tuple[float, float]]], which: int) -> dict[str, float]:
    return {system: middle(one[which] for one in measured) for system, measured in runs.items()}


def shown(result: Mapping[str, Any]) -> str:
    walls, cpus, ratios = (result[name] for name in ("median_wall_s", "median_cpu_s", "over_disk"))
    rows = [
        [system, wall, cpus["warm"][system], ratios["warm"][system], walls["cold"][system], ratios["cold"][system]]
        for system, wall in walls["warm"].items()
    ]
    header = ["by", "warm s", "cpu s", "÷ disk", "cold s", "÷ disk"]
    return table(header, [[row[0], *(f"{value:.2f}" for value in row[1:])] for row in rows])


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=3)
    made.add_argument("--files", type=int, default=10_000, help="how many (default 10000)")
    made.add_argument(
        "--folder", type=Path, help="where to make the files: the disk that is measured (default: the temporary folder)"
    )
    return made.parse_args()


if __name__ == "__main__":
    main()
