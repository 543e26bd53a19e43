"""What failed is named once, without paths, and decides how the command ends."""

from __future__ import annotations

import logging

import pytest

from medseg.commands.failures import Failures
from medseg.errors import MachineError, MedsegError, SomeFailed
from medseg.export.origin import InputNames
from medseg.structures import Case, as_source


@pytest.fixture
def case(tmp_path):
    return Case("p", (as_source("nifti", tmp_path / "p.nii.gz"),))


@pytest.fixture
def failures(tmp_path):
    return Failures(InputNames.of(tmp_path))


def test_a_reason_has_neither_the_case_twice_nor_a_path(case, failures, tmp_path):
    error = MedsegError(f"case 'p': {tmp_path / 'p.nii.gz'} is cut short")
    assert failures.note(case, error) == "p.nii.gz is cut short"


def test_some_none_and_all(case, failures, tmp_path):
    failures.raise_if_any(["p", "q"], tmp_path, "explained")
    failures.note(case, MedsegError("odd"))
    with pytest.raises(SomeFailed, match=r"1 of 2 cases failed[\s\S]*'p': odd"):
        failures.raise_if_any(["p", "q"], tmp_path, "explained")
    with pytest.raises(MedsegError, match="none of the 1 cases could be explained") as caught:
        failures.raise_if_any(["p"], tmp_path, "explained")
    assert caught.value.exit_status == 2


def test_memory_ends_with_its_own_status_and_a_full_disk_at_once(case, failures, tmp_path):
    failures.note(case, MemoryError("1 TiB"))
    with pytest.raises(MachineError, match=r"memory did not hold 1 of 2[\s\S]*1 TiB"):
        failures.raise_if_any(["p", "q"], tmp_path, "explained")
    with pytest.raises(OSError, match="No space"):
        failures.note(case, OSError(28, "No space left on device"))


def test_a_bug_is_logged_with_its_traceback(case, failures, caplog):
    with pytest.raises(ZeroDivisionError) as caught:
        raise ZeroDivisionError("oops")
    with caplog.at_level(logging.ERROR):
        assert failures.note(case, caught.value) == "ZeroDivisionError: oops"
    assert "bug of medseg" in caplog.text
    assert "Traceback" in caplog.text
