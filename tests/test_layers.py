"""Imports run one way through the rooms, and libraries stay in theirs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "medseg"
ORDER = [
    *(
        "errors",
        "files",
        "targets",
        "volume",
        "structures",
        "scans",
        "planning",
        "data",
        "losses",
        "losses_boxes",
        "losses_classes",
        "networks",
        "tiling",
    ),
    *("evaluation", "tasks", "model", "interop", "inference", "explain", "export", "report", "training", "testing"),
    *("commands", "runs", "config", "cli", "__main__"),
]
CONFINED = {
    "hydra": {"config", "cli"},
    "omegaconf": {"config", "cli"},
    "lightning": {"training"},
    "pytorch_lightning": {"training"},
    "pydicom": {"scans", "export"},
    "highdicom": {"scans", "export"},
    "captum": {"explain"},
    "openvino": {"inference", "interop"},
    "onnx": {"inference", "interop"},
    "onnxruntime": {"inference", "interop"},
}
LIGHT = {"errors", "files", "targets", "volume", "structures", "scans", "planning", "runs", "config", "cli"}
HEAVY = {"torch", "monai", "lightning", "sklearn", "pandas"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Full names that the file imports at run time (not under TYPE_CHECKING), with their line."""
    typing_only: set[ast.AST] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only |= {inner for statement in node.body for inner in ast.walk(statement)}
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(file: Path) -> None:
    room = room_of(file)
    if room == "__init__":
        return
    assert room in ORDER, f"{room} is not a room of the design"
    for name, line in imports(file):
        parts = name.split(".")
        if parts[0] == "medseg" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(room), (
                f"{file.name}:{line}: {room} imports {name}, which is below it"
            )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(file: Path) -> None:
    room = room_of(file)
    for name, line in imports(file):
        library = name.split(".")[0]
        assert room in CONFINED.get(library, {room}), f"{file.name}:{line}: {room} imports {library}"


@pytest.mark.parametrize("room", sorted(LIGHT - {"__main__"}))
def test_light_rooms_import_nothing_heavy(room: str) -> None:
    code = f"import sys, medseg.{room}; sys.stdout.write(' '.join(sorted(set({sorted(HEAVY)!r}) & set(sys.modules))))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == ""
