from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg.data.workers import work_off
from medseg.errors import MachineError

# No `if __name__ == "__main__"`: a worker that imported this would begin anew. It prints who its workers are, then waits.
SCRIPT = """
import multiprocessing, threading, time
from medseg.data.workers import work_off
def tell():
    while len(multiprocessing.active_children()) < 2:
        time.sleep(0.02)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
threading.Thread(target=tell, daemon=True).start()
for _ in work_off(time.sleep, [60, 60, 60], workers=2):
    pass
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_item_is_worked_off_once() -> None:
    assert sorted(work_off(abs, [-3, 1, -2, 5, 4], workers=2)) == [(-3, 3), (-2, 2), (1, 1), (4, 4), (5, 5)]


def test_what_a_call_raises_is_raised_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(work_off(int, ["x"], workers=1))


def test_a_killed_worker_is_said_and_not_waited_for() -> None:
    with pytest.raises(MachineError, match="killed"):
        list(work_off(os._exit, [9], workers=1))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_caller(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    caller = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a run in the background ignores
    )
    assert caller.stdout is not None
    workers = [int(pid) for pid in caller.stdout.readline().split()]
    assert len(workers) == 2
    caller.send_signal(how)
    assert caller.wait(timeout=30) != 0
    caller.stdout.close()
    end = time.monotonic() + 30
    while any(runs(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in workers)
