"""A runtime is chosen for what is ahead: set-up is paid only where it comes back."""

from __future__ import annotations

import pytest

from medseg.inference.choose_runtime import Timing, choose, worth_trying

PLAIN = Timing(0.0, 1.0)


def test_the_fastest_in_all_is_chosen_and_the_reason_has_the_figures():
    timings = {"torch": PLAIN, "compile": Timing(90.0, 0.5), "openvino": Timing(5.0, 0.8)}
    assert choose(timings, 10).name == "torch"
    assert choose(timings, 100).name == "openvino"
    found = choose(timings, 1000)
    assert found.name == "compile"
    assert found.why == "1000 windows ahead; torch 1 s a window, compile 0.5 s a window after 90 s, " + (
        "openvino 0.8 s a window after 5 s"
    )


def test_a_set_up_that_is_paid_already_does_not_count_but_that_of_other_members_does():
    timings = {"torch": PLAIN, "compile": Timing(90.0, 0.5)}
    assert choose(timings, 100).name == "torch"
    assert choose(timings, 100, ready=["compile"]).name == "compile"
    assert choose(timings, 100, networks=5, ready=["compile"]).name == "torch"


def test_of_equals_plain_pytorch_is_taken():
    assert choose({"compile": PLAIN, "torch": PLAIN}, 10).name == "torch"


@pytest.mark.parametrize(("windows", "expected"), [(4, None), (60, "openvino"), (10_000, "openvino")])
def test_what_cannot_repay_its_set_up_is_not_tried(windows, expected):
    assert worth_trying({"torch": PLAIN}, windows, ["onnx", "compile", "openvino"]) == expected


def test_what_would_not_beat_the_best_so_far_is_not_tried():
    known = {"torch": PLAIN, "openvino": Timing(9.0, 0.6)}
    assert worth_trying(known, 10_000, ["onnx", "compile"]) is None
    assert worth_trying({**known, "openvino": Timing(9.0, 0.8)}, 10_000, ["onnx", "compile"]) == "compile"


def test_a_set_up_that_is_paid_already_makes_the_best_so_far_better():
    known = {"torch": PLAIN, "openvino": Timing(500.0, 0.8)}
    assert worth_trying(known, 1000, ["compile"]) == "compile"
    assert worth_trying(known, 1000, ["compile"], ready=["openvino"]) is None


def test_slow_windows_are_worth_more():
    assert worth_trying({"torch": Timing(0.0, 10.0)}, 40, ["compile"]) == "compile"
    assert worth_trying({"torch": Timing(0.0, 0.01)}, 40, ["compile"]) is None
