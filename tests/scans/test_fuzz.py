"""Spoilt files end as a volume or as a clear refusal: the short form of ``scripts/benchmarks/fuzz_readers.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.benchmarks.fuzz_files import seeds
from scripts.benchmarks.fuzz_mutations import mutations

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmarks" / "fuzz_readers.py"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process are those of Linux")


def test_a_hundred_and_sixty_spoilt_files_are_read_or_refused(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    command = [sys.executable, str(SCRIPT), "--count", "160", "--seed", "20", "--out", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert out.exists(), done.stderr
    report = json.loads(out.read_text())
    assert report["failed"] == []
    assert done.returncode == 0
    assert report["count"] == sum(report["ended"].values()) == 160
    assert min(report["ended"]["volume"], report["ended"]["refused"]) > 30  # neither all too mild nor all too harsh
    assert {name.split("/")[0] for name in report["by_format"]} == {"dicom", "nifti", "nrrd", "metaimage", "picture"}
    assert report["by_format"]["dicom/RTSTRUCT"] and report["by_format"]["dicom/SEG binary"]


WRONG = {
    "return 'volume', ''": "volume",
    "raise ScanError('no')": "refused",
    "raise KeyError('x')": "unhandled",
    "os.abort()": "signal SIGABRT",
    "while True: pass": "time",
    "return 'volume', str(len(b'x' * (200 << 20)))": "memory",
    "return 'volume', str(len(b'x' * (200 << 30)))": "unhandled",
}
JUDGES = """
import json, os, sys
from pathlib import Path
from scripts.benchmarks import fuzz_readers
from medseg.scans.reading import ScanError

fuzz_readers.CPU_S, ended = 1, []
for number, line in enumerate(json.loads(sys.argv[2])):
    exec(f"def examined(found, evened):\\n    {line}")
    fuzz_readers._examined = examined
    ended.append(fuzz_readers._judged(Path(sys.argv[1]), number, "", "", False, False).ended)
print(json.dumps(ended))
"""


def test_the_judge_sees_what_goes_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-c", JUDGES, str(tmp_path), json.dumps(list(WRONG))]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout) == list(WRONG.values())


@pytest.mark.filterwarnings("ignore:Unknown encoding")
@pytest.mark.parametrize("name", ["dicom/classic", "nifti/1 gzip", "nrrd/gzip", "metaimage/raw", "picture/png"])
def test_a_case_is_known_by_its_seed_and_number(name: str) -> None:
    def spoilt(number: int) -> list[bytes]:
        seed: Any = seeds()[name]()
        raw = seed.files[seed.target]
        return [change(raw, np.random.default_rng([1, number])) for change in mutations(name).values()]

    assert spoilt(3) == spoilt(3)
    assert all(one != two for one, two in zip(spoilt(3), spoilt(4), strict=True))
