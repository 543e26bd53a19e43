"""The set-up scripts: they parse, pin what the project asks for, and name no place that packages come from."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_names_no_registry(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert not re.search(r"https?://|index-url|find-links", script.read_text(encoding="utf-8"))


def test_every_dependency_is_pinned_to_a_version_that_fits() -> None:
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [
        *project["dependencies"],
        *(text for name in ("swin", "openvino", "onnx", "dev") for text in extras[name]),
    ]:
        asked = Requirement(text)
        if asked.name != "medseg":
            assert asked.specifier.contains(pins[canonicalize_name(asked.name)]), text
            assert any(clause.operator == ">=" for clause in asked.specifier), f"{text} has no lower bound"
    assert not any("+" in version for version in pins.values()), "a local version exists on one machine only"


def test_a_python_that_is_too_old_is_said_plainly(tmp_path: Path) -> None:
    for name in ("python3", "python"):
        (tmp_path / name).write_text(
            '#!/bin/bash\n[ "$1" = --version ] && echo "Python 3.9.1" || exit 1\n', encoding="utf-8"
        )
        (tmp_path / name).chmod(0o755)
    bash = "/bin/bash"
    source = f'. "{ROOT / "scripts" / "setup.sh"}"; PATH="{tmp_path}"; find_python'
    found = subprocess.run([bash, "-c", source], capture_output=True, text=True, env=dict(os.environ))
    assert found.returncode == 2
    assert "needs Python 3.11 or newer" in found.stderr and "Python 3.9.1" in found.stderr
