"""The demo goes the whole way; the long test holds it to what it promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.commands.demo import demo


def test_the_demo_shows_every_step_and_goes_on_where_it_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="medseg")
    summary = demo(folder=tmp_path / "demo", minutes=0.05, cases=10)
    assert set(summary["dice"]) == {"liver", "kidneys", "spleen", "lesion", "mean"}
    manifest = json.loads((tmp_path / "demo" / "results" / "manifest.json").read_text())
    status = {name: case["status"] for name, case in manifest["cases"].items()}
    assert sorted(status.values()) == ["done"] * 4 + ["failed"]
    assert status["cut_off"] == "failed"
    assert sum(name.startswith("MR_") for name in status) == 2  # the DICOM series among them
    assert "[5/5]" in caplog.text
    assert "Where to look" in caplog.text
    caplog.clear()
    assert demo(folder=tmp_path / "demo", minutes=0.05, cases=10) == summary
    assert "is finished" in caplog.text
    assert "4 of 5 cases are done already" in caplog.text


@pytest.mark.slow
def test_the_demo_is_good_where_a_threshold_is_not(tmp_path: Path) -> None:
    summary = demo(folder=tmp_path / "demo")
    assert summary["dice"]["mean"]["value"] >= 0.8
    assert summary["baselines"]["global_threshold"]["dice"]["mean"]["value"] <= 0.4
