"""The plan of a small data set on disk: written, explained, and measured again only when the data change."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.commands import plan as room
from medseg.commands.plan import plan
from medseg.errors import MedsegError
from medseg.planning.plan import Plan
from medseg.structures import Case, Cohort, LabelTable, Source

NETWORK = {"_target_": "medseg.networks.unet.plain_unet"}


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    cases = []
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.zeros((16, 20, 18), np.uint8)
        mask[4:9, 5:12, 6:11] = 1
        sources = []
        for kind, array in (("image", rng.normal(mask * 50.0, 5).astype(np.float32)), ("label", mask)):
            path = tmp_path / f"{number}_{kind}.nii.gz"
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
            sources.append(Source("nifti", (path,)))
        cases.append(Case(f"case{number}", (sources[0],), sources[1]))
    return Cohort(tuple(cases), ("MRI",), LabelTable({1: "organ"}))


def run(cohort: Cohort, out: Path, **options: Any) -> Plan:
    given: dict[str, Any] = {"planner": {}, "overrides": {}, "network": NETWORK, "progress": False}
    return plan(cohort, out=out, **(given | options))


def test_a_plan_is_written_and_summed_up(cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out" / "my.yaml"
    made = run(cohort, out, planner={"memory_gb": 2.0, "batch_size": None}, overrides={"foreground": 0.5})
    assert Plan.load(out) == made
    assert (made.patch_size, made.memory_gb, made.foreground) == ((16, 20, 20), 2.0, 0.5)
    assert made.why["foreground"] == "as configured"
    assert sorted(path.name for path in out.parent.iterdir()) == ["fingerprint.json", "my.yaml"]
    assert "16×20×20" in caplog.text
    first = out.read_bytes()
    run(cohort, out, planner={"memory_gb": 2.0}, overrides={"foreground": 0.5})
    assert out.read_bytes() == first


def test_cases_are_measured_again_only_if_they_changed(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = []
    measure = room.fingerprint
    monkeypatch.setattr(room, "fingerprint", lambda *a, **k: times.append(1) or measure(*a, **k))
    out = tmp_path / "out"
    first = run(cohort, out)
    assert run(cohort, out) == first
    assert len(times) == 1
    path = cohort.cases[0].images[0].files[0]
    nib.save(nib.Nifti1Image(np.ones((16, 20, 18), np.float32), np.eye(4)), path)
    run(cohort, out)
    assert len(times) == 2
    (out / "fingerprint.json").write_text("{")
    run(cohort, out)
    assert len(times) == 3


def test_the_divisor_of_the_network_is_obeyed(cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "divisor_of", lambda spec, trust: 32)
    assert run(cohort, tmp_path / "out").patch_size == (32, 64, 32)


def test_mistaken_requests_are_refused_before_anything_is_measured(cohort: Cohort, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MedsegError, match="no option memory"):
        run(cohort, out, planner={"memory": 3})
    with pytest.raises(MedsegError, match=r"foreign\.net"):
        run(cohort, out, network={"_target_": "foreign.net"})
    with pytest.raises(MedsegError, match="no labels"):
        run(Cohort(cohort.cases, ("MRI",)), out)
    assert not out.exists()


def test_an_edited_plan_is_taken_and_a_foreign_one_refused(cohort: Cohort, tmp_path: Path) -> None:
    edited = tmp_path / "edited.yaml"
    edited.write_text(run(cohort, tmp_path / "a.yaml").changed("seen by eye", foreground=0.5).to_yaml())
    taken = run(cohort, tmp_path / "b.yaml", planner={"file": edited}, overrides={"batch_size": 3})
    assert (taken.foreground, taken.batch_size, taken.why["foreground"]) == (0.5, 3, "seen by eye")
    other = replace(cohort, labels=LabelTable({7: "other"}))
    with pytest.raises(MedsegError, match=r"edited.yaml: is a plan for labels .*Make one with medseg plan"):
        run(other, tmp_path / "c.yaml", planner={"file": edited})
