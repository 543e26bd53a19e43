"""What the README shows is run, block after block in one folder, as a reader would; long ones are composed instead.

A block under a comment ``<!-- slow: why -->`` is not run here: its commands are only composed against the configurations. The
two set-up scripts are left out. A Python block whose first line is ``# name.py`` is the file of that name.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from medseg import config

ROOT = Path(__file__).resolve().parents[1]
SETUP = ("scripts/quickstart.sh", "scripts/test.sh")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    slow: bool

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a bash block, as words."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "bash" else []
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"(<!-- slow: [^>]+ -->\n+)?```(bash|python)\n(.*?)```"
    return [Block(found[2], found[3], bool(found[1])) for found in re.finditer(pattern, text, re.DOTALL)]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^```(\w+)", text, re.MULTILINE)) == {"bash", "python"}
    assert len(re.findall(r"^```(bash|python)$", text, re.MULTILINE)) == len(blocks())


@pytest.mark.parametrize("command", [c for b in blocks() for c in b.commands], ids=lambda c: " ".join(c)[:60])
def test_a_command_exists_and_composes(command: list[str]) -> None:
    if command[0] == "medseg":
        words = [word for word in command[2:] if word not in ("--multirun", "--help", "--cfg")]
        for job in config.sweep(words):
            config.compose(command[1], job)
    else:
        script = next(word for word in command if "/" in word)
        assert (ROOT / script).is_file(), f"{script} does not exist"


def test_files_that_are_named_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / path).exists(), f"the README points to {path}"


def test_blocks_run_one_after_another(tmp_path: Path) -> None:
    ran = 0
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MPLBACKEND": "agg",
    }
    for block in blocks():
        name = re.match(r"# (\w+\.py)\n", block.text)
        if block.language == "python" and name:
            (tmp_path / name[1]).write_text(block.text, encoding="utf-8")
            continue
        if block.slow or any(word in SETUP for command in block.commands for word in command):
            continue
        program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run([*program, block.text], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        ran += 1
    assert ran >= 2
    assert (tmp_path / "slice.png").stat().st_size > 1000
