"""Scans are read ahead in order, few at a time, and what is wrong with one does not stop the others."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from medseg.inference.ahead import finish_behind, read_ahead
from medseg.structures import Case, as_source
from medseg.volume import Geometry, Volume


def cases(count):
    return [Case(str(i), (as_source("nifti"),)) for i in range(count)]


def volume(case):
    return Volume(np.full((1, 2, 2), float(case.id)), Geometry.from_spacing((2, 2), (1, 1)))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_cases_come_in_order_with_their_own_volume(ahead):
    got = [(case.id, float(read.value.data[0, 0, 0])) for case, read in read_ahead(cases(6), volume, ahead)]
    assert got == [(str(i), float(i)) for i in range(6)]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_than_was_allowed_is_read_ahead(ahead):
    started = []

    def read(case):
        started.append(int(case.id))
        return volume(case)

    for case, _ in read_ahead(cases(8), read, ahead):
        time.sleep(0.02)
        assert max(started) <= int(case.id) + ahead


def test_the_next_scan_is_read_while_the_caller_works():
    reading = {str(i): threading.Event() for i in range(3)}

    def read(case):
        reading[case.id].set()
        return volume(case)

    for case, _ in read_ahead(cases(3), read, 1):
        following = str(int(case.id) + 1)
        assert following not in reading or reading[following].wait(5)


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_comes_with_its_case_and_warnings_with_theirs(ahead):
    def read(case):
        logging.getLogger("medseg.scans.x").warning("mended %s", case.id)
        if case.id == "1":
            raise ValueError("broken")
        return volume(case)

    got = [read for _, read in read_ahead(cases(3), read, ahead)]
    assert [str(r.error) for r in got] == ["None", "broken", "None"]
    assert [r.warnings for r in got] == [("mended 0",), ("mended 1",), ("mended 2",)]


def test_stopping_early_leaves_no_thread_behind():
    before = threading.active_count()
    for _ in read_ahead(cases(50), volume, 2):
        break
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_case_is_finished_while_the_next_is_worked_on():
    next_begun, finished = threading.Event(), []

    def jobs():
        yield lambda: next_begun.wait(5)
        next_begun.set()
        yield lambda: "second"

    finish_behind(jobs(), finished.append)
    assert finished == [True, "second"]


@pytest.mark.parametrize("behind", [True, False])
def test_jobs_are_handed_over_in_order_by_the_callers_thread(behind):
    took = []
    finish_behind((lambda n=n: n for n in range(5)), lambda n: took.append((n, threading.get_ident())), behind=behind)
    assert took == [(n, threading.get_ident()) for n in range(5)]


def test_what_is_being_finished_is_handed_over_though_the_next_is_interrupted():
    took = []

    def jobs():
        yield lambda: time.sleep(0.05) or "written"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finish_behind(jobs(), took.append)
    assert took == ["written"]


def test_an_error_of_a_job_is_raised_and_no_thread_stays():
    before = threading.active_count()

    def broken():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        finish_behind(iter([broken, lambda: 1, lambda: 2]), lambda _: None)
    assert threading.active_count() == before
