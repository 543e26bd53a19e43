"""What is freed between two steps is used again, and only while a training runs."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from medseg.training.allocation import freed_memory_is_kept

BYTES = 64 * 2**20


def new_pages() -> int:
    """Pages that the system hands out for a large tensor, after one of the same size was freed."""
    torch.ones(BYTES, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are left as they are")
def test_freed_memory_is_used_again_inside_only() -> None:
    def kept() -> bool:
        return new_pages() < 1000

    assert not kept()
    with freed_memory_is_kept() as here:
        if not here:
            pytest.skip("needs glibc")
        assert kept()
    assert not kept()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.training.allocation.sys.platform", "win32")
    with freed_memory_is_kept() as here:
        assert not here
