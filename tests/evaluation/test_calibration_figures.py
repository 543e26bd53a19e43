from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from medseg.errors import MedsegError
from medseg.evaluation.calibration import Calibration, Forecast, compare
from medseg.evaluation.calibration_figures import draw_reliability


def calibration(count: int) -> Calibration:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, count)
    happened = random.random(count) < expit(logits)
    patients = [str(i) for i in range(count)]
    before, after = (Forecast.of_events(expit(z), happened, patients) for z in (3 * logits, logits))
    return compare(before, after, [(3.0, 0.0)], samples=20)


def test_before_and_after_are_drawn_in_one_picture(tmp_path: Path) -> None:
    rows = {"all": calibration(300), "$absent_{$": calibration(0), "a & <b>: $x_{": calibration(30)}
    draw_reliability(rows, tmp_path / "figures" / "reliability.png", title="split test: $x_{")
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["reliability.png"]
    with Image.open(tmp_path / "figures" / "reliability.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    colours = {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    assert {(255, 127, 14), (31, 119, 180)} <= colours
    assert 700 < pixels.shape[1] < 900  # two panels: a row without events is left out


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="at least one event"):
        draw_reliability({"all": calibration(0)}, tmp_path / "reliability.png")
    assert not list(tmp_path.iterdir())
