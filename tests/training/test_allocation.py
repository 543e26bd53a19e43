"""What is freed between two steps is used again, and only while a training runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from medseg.training.allocation import freed_memory_is_kept

PAGES = """
import json, resource, torch
from medseg.training.allocation import freed_memory_is_kept

def new_pages():
    torch.ones(64 * 2**20, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = new_pages()
with freed_memory_is_kept() as here:
    inside = min(new_pages() for _ in range(10))
print(json.dumps([here, before, inside, new_pages()]))
"""
"""Pages that the system hands out for a large tensor after one of the same size was freed: before, inside and afterwards. In a
process of its own, whose heap nobody has cut to pieces; the first blocks may still be some bytes too short for the next, until
what glibc sets aside of such scraps is full."""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are left as they are")
def test_freed_memory_is_used_again_inside_only() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    here, before, inside, afterwards = json.loads(done.stdout)
    if not here:
        pytest.skip("needs glibc")
    assert inside < 1000 < min(before, afterwards)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.training.allocation.sys.platform", "win32")
    with freed_memory_is_kept() as here:
        assert not here
