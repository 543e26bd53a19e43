"""A killed run that is started again ends as if it had never been killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.training.recipe import run

EPOCHS = 4


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.training.recipe", str(folder), name, f"{{max_epochs: {EPOCHS}}}"]
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def _finish(folder: Path, name: str) -> None:
    process = _start(folder, name)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-3000:]


def _assert_equal(folder: Path, name: str, expected: str) -> None:
    runs = folder / name / "fold_0", folder / expected / "fold_0"
    assert (runs[0] / "training.csv").read_bytes() == (runs[1] / "training.csv").read_bytes()
    a, b = (safetensors.torch.load_file(r / "model" / "weights.safetensors") for r in runs)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _still_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 the command alone; whatever it had started must go by itself."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while _still_running(process.pid):
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.1)


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_ends_like_one_that_was_not(tmp_path, kills):
    started = time.monotonic()
    _finish(tmp_path, "whole")
    seconds = time.monotonic() - started
    moments = random.Random(kills)
    checkpoint = tmp_path / "killed" / "fold_0" / "checkpoints"
    for kill in range(kills):
        process = _start(tmp_path, "killed")
        if kill % 2:  # while a checkpoint is being written
            until = time.monotonic() + 2 * seconds
            while process.poll() is None and time.monotonic() < until and not list(checkpoint.glob("*.part")):
                time.sleep(0.0005)
        else:
            time.sleep(moments.uniform(0.3, 0.9) * seconds)
        _kill(process)
    _finish(tmp_path, "killed")
    _assert_equal(tmp_path, "killed", "whole")


def test_a_finished_run_is_reported_and_another_configuration_refused(tmp_path, caplog):
    from medseg.errors import MedsegError

    config = {"trainer": {"max_epochs": 1}, "seed": 0}
    model = run(tmp_path, {"max_epochs": 1}, config=config)
    before = (model / "weights.safetensors").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert run(tmp_path, {"max_epochs": 1}, config=config) == model
    assert "is finished" in caplog.text and (model / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(MedsegError, match=r"run.new=true(.|\n)*seed: was 0, now 1"):
        run(tmp_path, {"max_epochs": 1}, config=config | {"seed": 1})
    other = run(tmp_path, {"max_epochs": 1}, config=config | {"seed": 1}, seed=1, new=True)
    assert other.parent.name == "fold_0.2"


def test_a_loss_that_turns_nan_stops_and_says_what_to_do(tmp_path):
    from medseg.errors import MachineError

    with pytest.raises(MachineError, match=r"loss turned (nan|inf|-inf) at step \d+.*lower optim.lr"):
        run(tmp_path, {}, optim={"_target_": "torch.optim.SGD", "lr": 1e30})


@pytest.mark.slow
def test_two_processes_on_the_cpu_train_together(tmp_path):
    script = tmp_path / "two.py"
    call = f"run(Path({str(tmp_path)!r}), {{'devices': 2}}, name='two')"
    script.write_text(f"from pathlib import Path\nfrom tests.training.recipe import run\n{call}\n")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, str(script)], cwd=root, env=environment, check=True, timeout=300)
    run(tmp_path, {}, name="one")
    rows = [(tmp_path / n / "fold_0" / "training.csv").read_text().splitlines() for n in ("one", "two")]
    assert len(rows[0]) == len(rows[1]) == 4
    losses = [float(r[-1].split(",")[r[0].split(",").index("loss")]) for r in rows]
    assert losses[0] == pytest.approx(losses[1], rel=0.25)
