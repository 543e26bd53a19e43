"""The command line: help that is there at once, one message for a mistake, and exit statuses that scripts can rely on."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg import cli, runs, targets
from medseg.errors import MachineError, MedsegError, SomeFailed

VERBS = ("check", "plan", "train", "evaluate", "predict", "explain", "audit", "report", "demo", "import", "convert")


def medseg(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medseg", *words], capture_output=True, text=True, cwd=cwd, timeout=120
    )


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Put a function in the place of what ``medseg demo`` does."""

    def put(function: Callable[[], Any]) -> None:
        monkeypatch.setitem(runs._RUNS, "demo", lambda values: function)

    return put


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(words: Sequence[str]) -> None:
    code = f"import sys; from medseg.cli import main; s = main({list(words)!r}); sys.exit(s or 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "medseg" in found.stdout


def test_help_answers_within_a_second() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        assert medseg("train", "--help").returncode == 0
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 1.0


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"\n  {verb}" in overview for verb in VERBS)
    assert cli.main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert "medseg train data=msd" in text and "*plain_unet" in text and "folds: 5" in text and "(to be given)" in text
    assert cli.main(["train", "--help", "network=dynunet"]) == 0
    assert "res_block: false" in capsys.readouterr().out


def test_version_and_configuration_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("medseg ")
    assert cli.main(["demo", "--cfg", "minutes=2"]) == 0
    assert "minutes: 2\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a command"),
        (["trian"], "did you mean train?"),
        (["trian", "--help"], "did you mean train?"),
        (["demo", "minuts=3"], "did you mean minutes?"),
        (["train", "data=msdd"], "did you mean msd?"),
        (["train", "--fast"], "there is no option '--fast'"),
        (["train", "data=msd"], "still to be given: data.root=…"),
        (["demo", "--config-dir"], "--config-dir: expected a folder"),
        (["demo", "--config-dir", "nowhere"], "there is no folder nowhere"),
        (["demo", "word"], "'word': expected key=value"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_message_and_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MedsegError("wrong"), 2),
        (SomeFailed("case 3"), 3),
        (MachineError("disk full"), 4),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
        (caused(ValueError("could not write"), OSError(errno.ENOSPC, "No space left on device")), 4),
        (PermissionError(errno.EACCES, "Permission denied"), 4),
        (MemoryError(), 4),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 4),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4),
        (KeyboardInterrupt(), 130),
        (cli.Terminated(), 143),
        (ZeroDivisionError("oops"), 1),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_how_a_command_ends_is_its_exit_status(
    error: BaseException,
    status: int,
    stub: Callable[[Callable[[], Any]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub(raising(error))
    assert cli.main(["demo"]) == status
    told = capsys.readouterr().err
    assert told.strip()
    assert ("Traceback" in told) == (status == 1)


def test_argv_and_handlers_are_left_as_they_were(stub: Callable[[Callable[[], Any]], None]) -> None:
    argv, handler = list(sys.argv), signal.getsignal(signal.SIGTERM)
    root = logging.getLogger("medseg")
    before = list(root.handlers), root.level, root.propagate
    stub(lambda: None)
    assert cli.main(["demo"]) == 0 and cli.main(["demo"]) == 0
    assert sys.argv == argv and signal.getsignal(signal.SIGTERM) is handler
    assert (list(root.handlers), root.level, root.propagate) == before


def test_a_network_in_the_current_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Callable[[Callable[[], Any]], None]
) -> None:
    (tmp_path / "my_own_net.py").write_text("class Net: ...\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = []
    stub(lambda: found.append(targets.resolve("my_own_net.Net", "network")))
    assert cli.main(["demo"]) == 0 and found[0].__name__ == "Net"


def test_sigterm_ends_with_143(tmp_path: Path) -> None:
    code = (
        "import sys, time; from medseg import cli, runs\n"
        "runs._RUNS['demo'] = lambda values: lambda: (sys.stdout.write('on'), sys.stdout.flush(), time.sleep(60))\n"
        "sys.exit(cli.main(['demo']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.read(2) == "on"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143 and "interrupted; the same command goes on" in error


def test_a_reader_that_has_gone_is_no_mistake() -> None:
    found = subprocess.run(
        f"{sys.executable} -m medseg --help | true", shell=True, capture_output=True, text=True, timeout=30
    )
    assert found.returncode == 0 and "Traceback" not in found.stderr


# ---- several jobs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Jobs are noted, not run; ``status`` says how each ends."""
    noted: dict[str, Any] = {"jobs": [], "status": lambda job: 0}

    def run(command: Sequence[str]) -> int:
        noted["jobs"].append(list(command[command.index("medseg") + 1 :]))
        return int(noted["status"](noted["jobs"][-1]))

    monkeypatch.setattr(cli, "_run_process", run)
    return noted


FOLDS = ["train", "--multirun", "data=msd", "data.root=x", "name=h"]


def test_every_combination_is_run(jobs: dict[str, Any]) -> None:
    assert cli.main([*FOLDS, "fold=0,1", "network=dynunet,unet"]) == 0
    assert [job[-1] for job in jobs["jobs"]] == ["name=h/network-dynunet", "name=h/network-unet"] * 2
    assert [job[4] for job in jobs["jobs"]] == ["fold=0", "fold=0", "fold=1", "fold=1"]


def test_folds_lie_side_by_side(jobs: dict[str, Any]) -> None:
    assert cli.main([*FOLDS, "fold=range(3)"]) == 0
    assert [job[1:] for job in jobs["jobs"]] == [["data=msd", "data.root=x", "name=h", f"fold={k}"] for k in range(3)]


def test_a_failed_job_does_not_stop_the_rest(jobs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    jobs["status"] = lambda job: 1 if "fold=1" in job else 0
    assert cli.main([*FOLDS, "fold=0,1,2"]) == 3
    assert len(jobs["jobs"]) == 3
    error = capsys.readouterr().err
    assert "1 of 3 jobs failed" in error and "fold=1 (exit status 1)" in error


def test_jobs_that_all_were_refused_are_status_2(jobs: dict[str, Any]) -> None:
    jobs["status"] = lambda job: 2
    assert cli.main([*FOLDS, "fold=0,1"]) == 2


@pytest.mark.parametrize(
    ("status", "expected"), [(130, 130), (143, 143), (-signal.SIGTERM, 143), (-signal.SIGINT, 130)]
)
def test_an_interrupted_job_ends_the_rest(jobs: dict[str, Any], status: int, expected: int) -> None:
    jobs["status"] = lambda job: status
    assert cli.main([*FOLDS, "fold=0,1"]) == expected
    assert len(jobs["jobs"]) == 1


def test_a_mistake_in_one_job_is_found_before_the_first_runs(jobs: dict[str, Any]) -> None:
    assert cli.main([*FOLDS, "network=dynunet,dynunte"]) == 2
    assert not jobs["jobs"]


def test_jobs_that_would_write_one_folder_are_refused(jobs: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "-m", "model=a", "input=b", "overlap=0.25,0.5"]
    assert cli.main([*words, "output=c"]) == 2
    assert "both write c" in capsys.readouterr().err and not jobs["jobs"]
    assert cli.main([*words, "output=c/${overlap}"]) == 0
    assert len(jobs["jobs"]) == 2


def test_several_jobs_run_for_real_and_the_failed_one_is_named(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / "whole" / part).mkdir(parents=True)
        for case in "ab":
            values = np.random.default_rng(ord(case)).normal(size=(9, 8, 7))
            values = (values > 1).astype(np.uint8) if part == "labels" else values.astype(np.float32)
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "whole" / part / f"{case}.nii.gz")
    words = ["data=folder", "data.images=whole/images,missing/images", "data.labels=whole/labels"]
    found = medseg("check", "--multirun", *words, cwd=tmp_path)
    assert found.returncode == 3, found.stderr
    assert "1 of 2 jobs failed" in found.stderr and "data.images=missing/images" in found.stderr


def test_a_job_does_not_outlive_its_command(tmp_path: Path) -> None:
    code = (
        "import sys; from medseg import cli\n"
        f"cli._jobs = lambda request: [[]]\n"
        f"cli.sys.executable = {str(tmp_path / 'job')!r}\n"
        "sys.exit(cli.main(['demo', '--multirun']))"
    )
    job = tmp_path / "job"
    job.write_text("#!/bin/sh\necho $$\nexec sleep 60\n", encoding="utf-8")
    job.chmod(0o755)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_garbage_is_looked_for_in_a_run_and_its_imports_are_left_out(tmp_path: Path) -> None:
    code = "import gc, sys; from medseg.cli import main; main(); print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    command = [sys.executable, "-c", code, "report", f"folder={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize(
    ("verb", "given", "expected"), [("predict", "", "PASSIVE"), ("predict", "ACTIVE", "ACTIVE"), ("train", "", "")]
)
def test_threads_wait_asleep_where_scans_are_read_beside_them(
    tmp_path: Path, verb: str, given: str, expected: str
) -> None:
    code = "import os; from medseg.cli import main; main(); print(os.environ.get('OMP_WAIT_POLICY', ''))"
    told = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told |= {"OMP_WAIT_POLICY": given} if given else {}
    words = {"predict": ["model=none", "input=none", "output=out"], "train": ["data.folder=none"]}[verb]
    done = subprocess.run(
        [sys.executable, "-c", code, verb, *words], capture_output=True, text=True, cwd=tmp_path, env=told
    )
    assert done.stdout.strip() == expected, done.stderr
