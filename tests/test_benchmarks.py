"""What the benchmarks share: figures are right, rows of different work are refused, and each script says how it is called."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.testing.phantoms import make_body
from scripts.benchmarks import measure, nnunet_peer, time_to_dice
from scripts.benchmarks.ct_phantoms import LARGER, ct_phantom
from scripts.benchmarks.measure import Measured, compare, comparison_table, in_turn, middle, ratio_of, table, watch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "scripts" / "benchmarks"
PARTS = (
    "measure",
    "nnunet_peer",
    "ct_phantoms",
    "monai_retinanet",
    "fuzz_files",
    "fuzz_mutations",
    "training_step_medseg",
)
"""Modules of the scripts, and no scripts."""
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if path.stem not in PARTS)
TAKES_200_MB = "import time; block = bytearray(200 << 20); block[::4096] = b'1' * len(block[::4096]); time.sleep(0.6)"


def test_peak_memory_is_what_a_process_and_its_children_take() -> None:
    alone = watch([sys.executable, "-c", TAKES_200_MB])
    assert 200 < alone.peak_mb < 240
    child = f"import subprocess, sys; {TAKES_200_MB}; subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    both = watch([sys.executable, "-c", child, TAKES_200_MB])
    assert 400 < both.peak_mb < 460, "a child counts, in a session of its own too"


def test_pages_that_processes_share_count_once() -> None:
    forked = TAKES_200_MB.replace(
        "time.sleep(0.6)", "import os; child = os.fork(); time.sleep(0.8); child and os.wait()"
    )
    found = watch([sys.executable, "-c", forked])
    assert 200 < found.peak_mb < 240 and found.resident_mb > 400


def test_seconds_are_those_of_the_wall_and_of_the_processor() -> None:
    found = watch([sys.executable, "-c", "import time; time.sleep(0.5)"])
    assert found.wall_s >= 0.5 and found.cpu_s < found.wall_s


def test_a_command_that_fails_ends_the_benchmark_and_says_why() -> None:
    with pytest.raises(SystemExit, match="failed with 3:\nbad luck"):
        watch([sys.executable, "-c", "import sys; print('bad luck'); sys.exit(3)"])


def test_medians_and_ratios() -> None:
    assert middle([3.0, 1.0, 200.0]) == 3.0
    assert ratio_of(9.0, 3.0) == 3.0 and ratio_of(1.0, 0.0) == 0.0
    row = compare("x", runs(), aims={"wall_s": 3.0, "peak_mb": 3.0})
    assert row["median"]["nnU-Net"] == {"wall_s": 6.0, "cpu_s": 8.0, "peak_mb": 400.0}
    assert row["ratio"] == {"wall_s": 3.0, "cpu_s": 4.0, "peak_mb": 2.0}
    assert row["met"] == {"wall_s": True, "peak_mb": False}


def test_a_row_counts_only_where_the_masks_agree() -> None:
    row = compare("ten cases", runs(), aims={"wall_s": 2.0}, least_dice=0.994)
    assert row["ratio"] == {} and row["met"] == {} and "0.9940" in row["refused"]
    assert "ten cases: does not count" in comparison_table([row])
    assert compare("x", runs(), least_dice=float("nan"))["refused"]
    assert compare("x", runs(), aims={"wall_s": 2.0}, least_dice=0.995)["met"] == {"wall_s": True}


def test_a_row_counts_only_with_the_same_windows_and_mirroring() -> None:
    settings = {"medseg": {"step": 0.5, "mirror": False}, "nnU-Net": {"step": 0.5, "mirror": True}}
    assert "mirror" in compare("x", runs(), settings=settings)["refused"]
    settings["medseg"]["mirror"] = True
    assert not compare("x", runs(), settings=settings)["refused"]


def test_systems_run_in_turn_and_in_both_orders() -> None:
    order: list[str] = []
    answers = in_turn(
        {name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 3, after=lambda: order.append("-")
    )
    assert "".join(order) == "ab-ba-ab-" and answers == {"a": [1, 5, 7], "b": [2, 4, 8]}


def test_a_table_is_markdown() -> None:
    assert table(["a", "bc"], [["x", 10]]) == "| a | bc |\n| - | -: |\n| x | 10 |"


def test_a_result_says_what_is_needed_to_read_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "resampling.py"), "-n", "3"])
    versions = {"medseg": measure.versions("medseg", "torch", "no-such-package")}
    result = measure.record("resample", (1.0, 2.0, 3.0), versions, rows=[1])
    measure.publish(result, "a table", tmp_path / "result.json")
    kept = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert kept == result and kept["command"] == "python scripts/benchmarks/resampling.py -n 3"
    assert set(kept["versions"]["medseg"]) == {"medseg", "torch", "python"}
    assert kept["machine"]["cores"] > 0 and kept["machine"]["load_before"] == [1.0, 2.0, 3.0]
    assert "a table" in capsys.readouterr().out


def test_versions_of_another_interpreter_are_asked_of_it() -> None:
    asked = measure.versions("numpy", "no-such-package", python=Path(sys.executable))
    assert asked == measure.versions("numpy")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_it_is_called(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(BENCHMARKS)  # as for a script that is run
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"scripts/benchmarks/{script.name}" in said and "--out" in said


def test_every_script_is_in_the_readme() -> None:
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in SCRIPTS if f"`{path.name}`" not in text] == []


def test_masks_of_both_are_compared_by_case_and_label(tmp_path: Path) -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[:2, 0, 0], mask[3] = 1, 2
    other = mask.copy()
    other[0, 0, 0] = 0
    (tmp_path / "ours" / "a").mkdir(parents=True)
    (tmp_path / "theirs").mkdir()
    nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "theirs" / "a.nii.gz")
    nib.save(nib.Nifti1Image(other, np.eye(4)), tmp_path / "ours" / "a" / "mask.nii.gz")
    assert nnunet_peer.compare_masks(tmp_path / "theirs", tmp_path / "ours") == [
        {"case": "a", "label": 1, "dice": 2 / 3, "differ": 1, "voxels": 1},
        {"case": "a", "label": 2, "dice": 1.0, "differ": 0, "voxels": 16},
    ]


def test_finer_scans_cover_the_same_field(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5, -6, 7
    ramp = np.broadcast_to(np.arange(6, dtype=np.int16)[:, None, None] * 100, (6, 5, 4))
    nib.save(nib.Nifti1Image(np.ascontiguousarray(ramp), affine), tmp_path / "imagesTr" / "a.nii.gz")
    finer = nib.load(next(nnunet_peer.finer_scans(tmp_path, tmp_path / "out", ["a"], 3).iterdir()))
    assert finer.shape == (18, 15, 12) and finer.get_data_dtype() == np.int16
    corner = np.array([-0.5, -0.5, -0.5, 1])
    np.testing.assert_allclose(finer.affine @ corner, affine @ corner, rtol=1e-6)
    np.testing.assert_allclose(finer.affine @ [17.5, 14.5, 11.5, 1], affine @ [5.5, 4.5, 3.5, 1], rtol=1e-6)
    assert finer.get_fdata()[7, 7, 6] == 200  # the middle of the third voxel


def test_a_ct_phantom_holds_its_organs() -> None:
    image, labels = ct_phantom(0, (96, 96, 60), (4.0, 4.0, 5.0))
    values, mask = np.asarray(image.dataobj), np.asarray(labels.dataobj)
    liver = make_body(np.random.default_rng(0)).volumes_ml()["liver"] * LARGER**3
    assert (mask == 1).sum() * 80 / 1000 == pytest.approx(liver, rel=0.05)
    assert values.dtype == np.int16 and values[mask == 1].mean() == pytest.approx(110, abs=2)
    assert values[0, 0].mean() == pytest.approx(-1000, abs=5)


def test_dice_is_the_mean_of_labels_and_a_mean_shape_is_stretched(tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "a", "2": "b"}}))
    for name, size in (("one", 4), ("two", 8)):
        mask = np.zeros((size, 4, 4), np.uint8)
        mask[: size // 2], mask[-size // 4 :] = 1, 2
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "labelsTr" / f"{name}.nii.gz")
    mean = time_to_dice.mean_shape(tmp_path, ["one"])
    assert time_to_dice.dice_of(tmp_path, ["one", "two"], lambda name: mean) == {"mean": 1.0, "a": 1.0, "b": 1.0}
    given = time_to_dice.dice_of(
        tmp_path, ["two"], lambda name: (mean > 0.5) * np.array([1, 1, 0])[:, None, None, None]
    )
    assert given == {"mean": 0.5, "a": 1.0, "b": 0.0}


def runs() -> dict[str, list[Measured]]:
    """Of three runs each, nnU-Net takes three times as long and twice the memory."""
    ours = [Measured(2.0, 2.0, 200.0), Measured(1.0, 1.0, 100.0), Measured(3.0, 3.0, 300.0)]
    theirs = [Measured(6.0, 8.0, 400.0), Measured(5.0, 7.0, 400.0), Measured(50.0, 70.0, 500.0)]
    return {"nnU-Net": theirs, "medseg": ours}
