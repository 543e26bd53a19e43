"""A run chooses its runtime once, says which and why, and keeps it when it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import medseg.inference.predictor as predictor_module
from medseg.commands.predict import predict
from medseg.inference.choose_runtime import Choice
from medseg.model import save_model
from tests.tiny import noise, tiny_model, write_nifti

CPU = {"device": "cpu", "precision": "float32"}


def run(folder: Path, runtime: dict[str, str]) -> Path:
    return predict(
        model=folder / "model",
        input=folder / "scans",
        output=folder / "out",
        runtime=runtime,
        overlap=0.0,
        progress=False,
    )


def manifest(output: Path) -> dict[str, Any]:
    return json.loads((output / "manifest.json").read_text())


def test_the_runtime_that_auto_chose_is_noted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run chooses once, for all windows ahead; a second, which would choose otherwise, goes on as the first did."""
    asked: list[int] = []
    save_model(tiny_model(3), tmp_path / "model")
    for i, name in enumerate(("a", "b", "c")):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise((12 + i, 10, 6), i))

    def settle(models: Any, options: Any, windows: int, *, plain: Any, **how: Any) -> Any:
        asked.append(windows)
        return list(plain), Choice("torch", "it is the fastest")

    monkeypatch.setattr(predictor_module, "settle", settle)
    auto = {**CPU, "name": "auto"}
    output = run(tmp_path, auto)
    assert asked == [3 * 8 * 8]  # scans, windows (two patches of 8 along 12 or more, 10 and 2 · 6 mm), mirrorings
    assert manifest(output)["runtimes"] == {
        "": {"runtime": "torch", "device": "cpu", "precision": "float32", "why": "it is the fastest"}
    }
    write_nifti(tmp_path / "scans" / "d.nii.gz", noise((8, 8, 4), 9))
    run(tmp_path, auto)
    assert len(asked) == 1 and sorted(manifest(output)["cases"]) == ["a", "b", "c", "d"]
    assert manifest(output)["runtimes"][""]["why"] == "it is the fastest"
    run(tmp_path, CPU)
    assert manifest(output)["runtimes"] == {"": {"runtime": "torch", "device": "cpu", "precision": "float32"}}
