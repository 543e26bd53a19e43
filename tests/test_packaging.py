"""The wheel holds everything: it is built, unpacked, and used from another folder than the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, as an installer lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("medseg", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    site = folder / "site"
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    return site


def run(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``medseg`` of the unpacked wheel, standing in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-m", "medseg", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)


def test_the_wheel_holds_the_configurations_and_nothing_else_beside_the_package(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} == {"medseg", "medseg-0.1.0.dist-info"}
    shipped = {
        path.relative_to(unpacked / "medseg" / "conf") for path in (unpacked / "medseg" / "conf").rglob("*.yaml")
    }
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    modules = {path.relative_to(unpacked / "medseg") for path in (unpacked / "medseg").rglob("*.py")}
    assert modules == {path.relative_to(ROOT / "medseg") for path in (ROOT / "medseg").rglob("*.py")}
    assert (unpacked / "medseg" / "py.typed").is_file()


def test_the_wheel_declares_the_command_and_its_licence(unpacked: Path) -> None:
    about = unpacked / "medseg-0.1.0.dist-info"
    assert "medseg = medseg.cli:main" in (about / "entry_points.txt").read_text(encoding="utf-8")
    metadata = (about / "METADATA").read_text(encoding="utf-8")
    assert "License-Expression: Apache-2.0" in metadata and "Requires-Python: >=3.11" in metadata
    assert any(about.rglob("LICENSE"))


def test_the_command_finds_its_configurations_from_any_folder(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys, medseg.config as c; sys.stdout.write(str(c.conf_dir()))"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert Path(found.stdout) == unpacked / "medseg" / "conf"
    shown = run(unpacked, tmp_path, "--help")
    assert shown.returncode == 0 and "predict" in shown.stdout


def test_a_data_set_is_checked_with_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "images" / "a.nii.gz")
    nib.save(nib.Nifti1Image((values[:-1] > 1).astype(np.uint8), np.eye(4)), tmp_path / "labels" / "a.nii.gz")
    found = run(unpacked, tmp_path, "check", "data=folder", "data.images=images", "data.labels=labels")
    assert found.returncode == 2 and "Traceback" not in found.stderr, found.stderr
    assert "9×8×7" in found.stderr and "8×8×7" in found.stderr
