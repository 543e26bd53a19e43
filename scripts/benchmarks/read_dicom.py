"""How long medseg and others take to read a DICOM series, in turn on the same machine, and how much memory.

    .venv/bin/python scripts/benchmarks/read_dicom.py --out result.json

From a folder of shuffled files to a float32 volume of Hounsfield units in order of position (dcm2niix: to an uncompressed NIfTI
file). Every run is a process of its own; imports do not count, and the first read is timed. Files are in the page cache. Values
are compared with those that were written, in every run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from scripts.benchmarks.measure import in_turn, middle, parser, publish, ratio_of, record, table, versions

Array = np.ndarray[Any, Any]
Reader = Callable[[Path], Array]
_KEPT: list[Any] = []
SPACING, THICKNESS, INTERCEPT = (0.75, 0.75), 1.25, -1024


def medseg(folder: Path) -> Array:
    from medseg.scans import read_volume
    from medseg.scans.find import find

    return read_volume(find(folder).sources[0].source).data[0].transpose(2, 1, 0)


def simpleitk(folder: Path) -> Array:
    import SimpleITK as sitk

    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(names, sitk.sitkFloat32)
    _KEPT.append(image)  # whose memory the array shows
    return sitk.GetArrayViewFromImage(image)


def pydicom(folder: Path) -> Array:
    from pydicom import dcmread

    datasets = sorted(map(dcmread, folder.iterdir()), key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    out = np.empty((len(datasets), datasets[0].Rows, datasets[0].Columns), np.float32)
    for k, dataset in enumerate(datasets):
        out[k] = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return out


def highdicom(folder: Path) -> Array:
    import highdicom as hd

    volume = hd.get_volume_from_series([hd.imread(path) for path in folder.iterdir()], dtype=np.float32)
    array = volume.array  # ascending or descending, as highdicom lays them
    return array if volume.affine[2, 0] > 0 else array[::-1]


def monai(folder: Path) -> Array:
    from monai.data import PydicomReader

    reader = PydicomReader()
    array, _ = reader.get_data(reader.read(str(folder)))
    return array.transpose(2, 1, 0)


READERS: Mapping[str, Reader] = {
    "medseg": medseg,
    "SimpleITK": simpleitk,
    "pydicom": pydicom,
    "highdicom": highdicom,
    "MONAI PydicomReader": monai,
}
IMPORTS = {
    "medseg": "medseg.scans.dicom, medseg.scans.find",
    "SimpleITK": "SimpleITK",
    "pydicom": "pydicom",
    "highdicom": "highdicom",
    "MONAI PydicomReader": "monai.data",
}


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        child(arguments.child, arguments.folder)
        return
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="medseg-benchmark-", dir=arguments.scratch) as name:
        folder = Path(name) / "series"
        truth = write_series(folder, arguments.slices, arguments.size, arguments.syntax)
        systems = [*READERS, "dcm2niix"] if arguments.systems is None else arguments.systems

        def once(system: str) -> dict[str, Any]:
            found = run(system, folder)
            return {**found, "equal": found.pop("values") == truth}

        runs = in_turn({system: functools.partial(once, system) for system in systems}, arguments.repeats)
    volume_mb = arguments.slices * arguments.size**2 * 4 / 1e6
    medians = {system: _median(measured) for system, measured in runs.items()}
    result = record(
        f"{arguments.slices} slices of {arguments.size}×{arguments.size} in int16, {arguments.syntax}, "
        f"{arguments.repeats} runs in turn; the float32 volume has {volume_mb:.0f} MB",
        load,
        {"all": versions("medseg", "SimpleITK", "pydicom", "highdicom", "monai", "dcm2niix", "numpy")},
        volume_mb=round(volume_mb, 1),
        median=medians,
        over_medseg={s: ratio_of(m["seconds"], medians["medseg"]["seconds"]) for s, m in medians.items()},
        runs=runs,
    )
    publish(result, shown(result), arguments.out)


def write_series(folder: Path, slices: int, size: int, syntax: str) -> str:
    """A CT of noise and ramps with a header of the usual length, in file names that do not follow position; its checksum."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        CTImageStorage,
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGLSLossless,
        RLELossless,
        generate_uid,
    )

    syntaxes = {"explicit": None, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless, "RLE": RLELossless}
    folder.mkdir()
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 40, (size, size))
    digest = hashlib.sha256()
    names = random.Random(0).sample(range(slices), slices)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for k in range(slices):
        stored = (noise + 3 * k + 1024).astype(np.int16)
        digest.update((stored.astype(np.float32) + INTERCEPT).tobytes())
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        for keyword, value in _ATTRIBUTES.items():
            setattr(ds, keyword, value)
        ds.ReferencedImageSequence = [_reference(ds.SOPInstanceUID), _reference(ds.SOPInstanceUID)]
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.InstanceNumber, ds.SliceLocation = k + 1, k * THICKNESS
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [-192.0, -192.0, k * THICKNESS], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = list(SPACING), THICKNESS, THICKNESS
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, INTERCEPT, "HU"
        ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = size, size, 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        private = ds.private_block(0x0029, "MEDSEG BENCHMARK", create=True)
        for number in range(12):
            private.add_new(number, "LO", f"private {number}")
        ds.PixelData = stored.tobytes()
        if syntaxes[syntax] is not None:
            ds.compress(syntaxes[syntax], generate_instance_uid=False)
        ds.save_as(folder / f"{names[k]:05d}.dcm", enforce_file_format=True)
    return digest.hexdigest()


def run(system: str, folder: Path) -> dict[str, Any]:
    """Read the series once in a process of its own: seconds, megabytes beyond what was there before, checksum of the values."""
    command = [sys.executable, __file__, "--child", system, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{system} failed with {done.returncode}:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(system: str, folder: Path) -> None:
    if system == "dcm2niix":
        print(json.dumps(convert(folder)))
        return
    for module in IMPORTS[system].split(", "):
        __import__(module)
    before = _memory_mb("VmRSS")
    started = time.perf_counter()
    array = READERS[system](folder)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": _memory_mb("VmHWM") - before, "values": _checksum(array)}))


def convert(folder: Path) -> dict[str, Any]:
    """What `child` measures, of the program dcm2niix, with its start."""
    binary = shutil.which(
        "dcm2niix", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if binary is None:
        sys.exit("dcm2niix is not installed; choose others with --systems")
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        command = [binary, "-b", "n", "-z", "n", "-f", "volume", "-o", out, str(folder)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        import nibabel

        array = np.asarray(nibabel.load(Path(out) / "volume.nii").dataobj)
    values = _checksum(array.transpose(2, 1, 0)[:, ::-1])  # it stores rows the other way round
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss * 1024 / 1e6, "values": values}


def shown(result: Mapping[str, Any]) -> str:
    """The systems, the fastest first."""
    rows = [
        [
            system, f"{row['seconds']:.3f}", f"{result['over_medseg'][system]:.2f}", f"{row['peak_mb']:.0f}",
            f"{row['peak_mb'] / result['volume_mb']:.2f}", "equal" if row["equal"] else "DIFFER",
        ]
        for system, row in sorted(result["median"].items(), key=lambda item: item[1]["seconds"])
    ]  # fmt: skip
    return table(["by", "s", "÷ medseg", "MB", "÷ volume", "values"], rows)


def _memory_mb(field: str) -> float:
    """Of this process, as Linux tells it: ``VmRSS`` now, ``VmHWM`` at its highest."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024 / 1e6


def _checksum(array: Array) -> str:
    """Of float32 values ``(K, rows, columns)``, a slice at a time."""
    digest = hashlib.sha256()
    for plane in array:
        digest.update(np.ascontiguousarray(plane, np.float32).tobytes())
    return digest.hexdigest()


def _reference(instance: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", instance
    return item


def _median(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    figures = {name: middle(one[name] for one in measured) for name in ("seconds", "peak_mb")}
    return {**figures, "equal": all(one["equal"] for one in measured)}


def _arguments() -> argparse.Namespace:
    made = parser(__doc__, repeats=5)
    made.add_argument("--slices", type=int, default=300)
    made.add_argument("--size", type=int, default=512, help="rows and columns (default 512)")
    made.add_argument("--syntax", choices=["explicit", "JPEG-LS", "JPEG 2000", "RLE"], default="explicit")
    systems = [*READERS, "dcm2niix"]
    made.add_argument("--systems", nargs="+", choices=systems, help="only these; medseg must be among them")
    made.add_argument("--scratch", type=Path, help="a folder for the series (default: the system's)")
    made.add_argument("--child", help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return made.parse_args()


_ATTRIBUTES: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "InstanceCreationDate": "20200102",
    "InstanceCreationTime": "101500",
    "StudyDate": "20200102",
    "SeriesDate": "20200102",
    "AcquisitionDate": "20200102",
    "ContentDate": "20200102",
    "StudyTime": "100000",
    "SeriesTime": "100500",
    "AcquisitionTime": "100600.5",
    "ContentTime": "100600.5",
    "AccessionNumber": "1",
    "Modality": "CT",
    "Manufacturer": "SYNTHETIC",
    "InstitutionName": "Nowhere",
    "ReferringPhysicianName": "",
    "StationName": "CT1",
    "StudyDescription": "Benchmark",
    "SeriesDescription": "Thorax 1.25",
    "ManufacturerModelName": "None",
    "PatientName": "Nobody",
    "PatientID": "0",
    "PatientBirthDate": "",
    "PatientSex": "",
    "PatientAge": "050Y",
    "PatientWeight": "70",
    "BodyPartExamined": "CHEST",
    "ScanOptions": "HELIX",
    "KVP": "120",
    "DataCollectionDiameter": "500",
    "DeviceSerialNumber": "1",
    "SoftwareVersions": "1",
    "ProtocolName": "Thorax",
    "ReconstructionDiameter": "384",
    "DistanceSourceToDetector": "950",
    "DistanceSourceToPatient": "540",
    "GantryDetectorTilt": "0",
    "TableHeight": "150",
    "RotationDirection": "CW",
    "ExposureTime": "500",
    "XRayTubeCurrent": "200",
    "Exposure": "100",
    "FilterType": "BODY",
    "GeneratorPower": "50",
    "FocalSpots": "0.7",
    "ConvolutionKernel": "STANDARD",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": 2,
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
    "ImageComments": "",
    "WindowCenter": "40",
    "WindowWidth": "400",
    "PatientComments": "",
}
"""Of a CT slice, so that its header is as long as usual: with the others about ninety elements."""


if __name__ == "__main__":
    main()
