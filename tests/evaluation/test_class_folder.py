from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import MedsegError
from medseg.evaluation.class_folder import ClassFolder
from medseg.scans.reading import ScanError

CLASSES = ("benign", "malignant")


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_result_folders_and_plain_files_are_found_anywhere(tmp_path: Path) -> None:
    files = {"a": "a/classes.json", "b": "b.json", "c": "deep/c.json", "d": "deep/d/classes.json"}
    for name in files.values():
        write(tmp_path / name, {})
    folder = ClassFolder(tmp_path)
    assert {case: folder.relative(folder.file(case)) for case in files} == files
    assert folder.holds("a") and not folder.holds("e") and not folder.holds("classes")
    with pytest.raises(MedsegError, match=r"no class probabilities of it; expected e/classes\.json or e\.json"):
        folder.file("e")
    write(tmp_path / "deeper" / "c.json", {})
    with pytest.raises(MedsegError, match=r"several files .*deep/c\.json, deeper/c\.json"):
        ClassFolder(tmp_path).file("c")


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="expected a folder of class probabilities, found nothing"):
        ClassFolder(tmp_path / "nowhere")
    with pytest.raises(MedsegError, match="found a file"):
        ClassFolder(write(tmp_path / "a.json", {}))


def test_probabilities_come_in_the_order_of_the_classes(tmp_path: Path) -> None:
    write(tmp_path / "a" / "classes.json", {"malignant": 0.3, "benign": 0.7})
    read = ClassFolder(tmp_path).read("a", CLASSES, exclusive=True)
    assert list(read.items()) == [("benign", 0.7), ("malignant", 0.3)]
    write(tmp_path / "b.json", {"malignant": 1, "benign": 0.7})
    assert ClassFolder(tmp_path).read("b", CLASSES, exclusive=False) == {"benign": 0.7, "malignant": 1.0}


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("{", "unreadable", r"a\.json: cannot be read as classes\.json"),
        ([0.3, 0.7], "malformed_classes", "expected a probability a class, found"),
        (
            {"benign": 1.0},
            "malformed_classes",
            "expected the classes benign, malignant, found no probability of malignant",
        ),
        ({"benign": 0.5, "malignant": 0.5, "cyst": 0.0}, "malformed_classes", "found the classes cyst"),
        ({"benign": 2.5, "malignant": -1.5}, "malformed_classes", "apply a softmax or sigmoid to logits"),
        ({"benign": float("nan"), "malignant": 0.5}, "malformed_classes", "expected probabilities from 0 to 1"),
        ({"benign": True, "malignant": False}, "malformed_classes", "expected probabilities from 0 to 1"),
        ({"benign": "0.5", "malignant": 0.5}, "malformed_classes", "expected probabilities from 0 to 1"),
        ({"benign": 0.9, "malignant": 0.8}, "no_distribution", r"which sum to 1, found 1\.7"),
    ],
)
def test_probabilities_that_cannot_be_make_their_case_unusable(
    content: Any, kind: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.json", content)
    with pytest.raises(ScanError, match=message) as error:
        ClassFolder(tmp_path).read("a", CLASSES, exclusive=True)
    assert error.value.kind == kind and str(tmp_path) not in str(error.value)
