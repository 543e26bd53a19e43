"""How much of an epoch was spent waiting is said where people look, and training on a device is training all the same."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path
from typing import Any

import pytest

from medseg.data.augment import Parameters, Recipe, strong
from medseg.training.callbacks import Waiting
from tests.training.recipe import run

SHORT = {"max_epochs": 1, "steps_per_epoch": 3, "workers": 0}


class Slow(Recipe):
    """Draws a crop in a tenth of a second."""

    def draw(self, rng: Any, channels: int) -> Parameters:
        time.sleep(0.1)
        return super().draw(rng, channels)


def test_a_slow_loader_shows_in_the_bar_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model = run(tmp_path, SHORT, augment=lambda plan: Slow(plan.spacing, (0, 1, 2)))
    log = (model.parent / "log.txt").read_text()
    (share,) = re.findall(r"epoch 0: .*waited for batches (\d+) % of the time", log)
    assert 50 <= int(share) <= 100
    assert re.findall(r"train.*waiting (\d+)%", capsys.readouterr().err)[-1] == share
    assert "wait" not in (model.parent / "training.csv").read_text()


def test_the_share_counts_from_the_start_of_its_epoch() -> None:
    waited = [0.0]
    waiting = Waiting(lambda: waited[0])
    for seconds, least, most in [(0.05, 0.3, 0.6), (0.0, 0.0, 0.0)]:
        waiting.on_train_epoch_start(None, None)  # type: ignore[arg-type]
        waited[0] = seconds
        time.sleep(0.1)
        waiting.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
        assert least <= waiting.share <= most


def test_a_run_whose_images_are_held_and_changed_on_the_device_equals_one_with_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    losses = []
    for name, where in [("workers", {}), ("device", {"keep_on_device": True})]:
        model = run(tmp_path, SHORT | where, name=name, augment=lambda plan: strong(plan, p_noise=0, p_rotation=0.5))
        with (model.parent / "training.csv").open() as file:
            losses.append(float(next(csv.DictReader(file))["loss"]))
        assert ("are kept on cpu" in (model.parent / "log.txt").read_text()) is (name == "device")
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
