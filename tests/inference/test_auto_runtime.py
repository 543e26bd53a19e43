"""``auto`` measures what is worth it, once, and drops what fails or answers otherwise."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

import medseg.inference.auto_runtime as module
from medseg.errors import MedsegError
from medseg.inference.auto_runtime import difference, settle
from medseg.inference.runtimes import RuntimeOptions
from tests.tiny import tiny_model

MANY = 1_000_000


class Fake:
    """Answers with ``value`` after ``seconds``."""

    device = torch.device("cpu")

    def __init__(self, name: str, seconds: float, value: float = 1.0) -> None:
        self.name, self.seconds, self.value, self.asked = name, seconds, value, 0

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        time.sleep(self.seconds)
        return torch.full((len(batch), 2), self.value)

    def describe(self) -> dict[str, str]:
        return {"runtime": self.name}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What can be had here beside plain PyTorch: a runtime, or the error that building it raises; and what was built."""
    offers: dict[str, Any] = {"openvino": Fake("openvino", 0.001), "built": []}

    def build(name: str, model: object, options: object, **how: object) -> object:
        offers["built"].append(name)
        if isinstance(offers[name], Exception):
            raise offers[name]
        return offers[name]

    monkeypatch.setattr(module, "build_runtime", build)
    monkeypatch.setattr(module, "candidates", lambda options: [name for name in offers if name != "built"])
    return offers


def settled(cache=None, windows: int = MANY, members: int = 1, plain: Fake | None = None):
    plain = plain or Fake("torch", 0.02)
    options = RuntimeOptions("auto", "cpu", "float32", cache)
    runtimes, choice = settle([tiny_model(0)] * members, options, windows, plain=[plain] * members)
    assert len(runtimes) == members and {runtime.describe()["runtime"] for runtime in runtimes} == {choice.name}
    return choice


def test_the_faster_one_is_taken_for_every_member(built):
    choice = settled(members=2)
    assert choice.name == "openvino" and choice.why.startswith(f"{MANY} windows ahead; torch 0.02")
    assert built["built"] == ["openvino", "openvino"]


def test_few_windows_are_predicted_without_measuring(built):
    plain = Fake("torch", 0.0)
    assert settled(windows=3, plain=plain).why == "3 windows ahead: too few to measure"
    assert plain.asked == 0 and built["built"] == []


def test_what_was_measured_is_not_measured_again(built, tmp_path):
    first = settled(tmp_path / "cache")
    plain, built["openvino"].asked = Fake("torch", 0.02), 0
    again = settled(tmp_path / "cache", plain=plain)
    assert again == first and plain.asked == built["openvino"].asked == 0
    (entry,) = json.loads((tmp_path / "cache" / "runtimes.json").read_text()).values()
    assert set(entry) == {"torch", "openvino"} and entry["torch"]["window_s"] >= 0.02


def test_a_long_window_is_asked_once(built, monkeypatch):
    monkeypatch.setattr(module, "_MEASURE_S", 0.01)
    plain = Fake("torch", 0.02)
    settled(windows=8, plain=plain)
    assert plain.asked == 1
    quick = Fake("torch", 0.0)
    settled(windows=8, plain=quick)
    assert quick.asked == 4  # one warms up


def test_a_spoilt_memory_is_measured_anew(built, tmp_path):
    (tmp_path / "runtimes.json").write_text("[1, 2")
    assert settled(tmp_path).name == "openvino"
    assert json.loads((tmp_path / "runtimes.json").read_text())


def test_one_that_answers_otherwise_is_left_out(built, caplog):
    built["openvino"] = Fake("openvino", 0.001, value=1.5)
    assert settled().name == "torch"
    assert "openvino is left out: it answers otherwise than PyTorch" in caplog.text


def test_one_that_cannot_be_built_is_left_out(built):
    built["openvino"] = MedsegError("OpenVINO cannot express the network")
    built["compile"] = Fake("compile", 0.001)
    assert settled().name == "compile"


def test_the_difference_is_relative_and_no_number_is_infinite():
    expected = {"a": torch.full((4,), 100.0), "b": [torch.ones(2)]}
    assert difference({"a": torch.full((4,), 101.0), "b": [torch.ones(2)]}, expected) == pytest.approx(0.01)
    assert difference({"a": torch.full((4,), torch.nan), "b": [torch.ones(2)]}, expected) == float("inf")
