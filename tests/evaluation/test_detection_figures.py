from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.evaluation.detection_figures import draw_froc, draw_precision_recall
from medseg.evaluation.detection_summary import Curve
from medseg.volume import Array

FOUND = Curve(
    np.array([0, 0.1, 0.5, 3]), np.array([0, 0.4, 0.6, 0.9]), np.array([0.4, 0.6, 0.9]), np.array([1, 0.8, 0.5])
)
ABSENT = Curve(np.array([0, 2.0]), np.full(2, np.nan), np.array([np.nan]), np.zeros(1))


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        pixels: Array = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 200
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def test_curves_are_drawn_also_of_a_label_without_lesion(tmp_path: Path) -> None:
    curves = {"mass": FOUND, "$absent_{$": ABSENT}
    rates = {f"sensitivity_at_{rate}_fp": {"mass": {"value": 0.5, "low": 0.3, "high": 0.7}} for rate in ("0.5", "1")}
    draw_froc(curves, tmp_path / "figures" / "froc.png", summary=rates, iou=0.1, title="split test: $x_{")
    draw_precision_recall(curves, tmp_path / "figures" / "precision_recall.png", iou=0.1)
    for name in ("froc", "precision_recall"):
        assert (31, 119, 180) in colours(tmp_path / "figures" / f"{name}.png")
    assert len(list((tmp_path / "figures").iterdir())) == 2


def test_another_detector_is_drawn_beside_in_the_colour_of_its_label(tmp_path: Path) -> None:
    worse = Curve(FOUND.fp_per_scan, FOUND.sensitivity / 3, FOUND.recall, FOUND.precision)

    def blue(name: str, **more: Any) -> int:
        draw_froc({"mass": FOUND}, tmp_path / name, **more)
        with Image.open(tmp_path / name) as picture:
            red, _, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), -1, 0)
            return int((blue > red + 60).sum())  # thin lines are blended with white

    alone, both = blue("one.png"), blue("two.png", beside={"baseline": {"mass": worse, "cyst": worse}})
    assert both > 1.2 * alone


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    for draw in (draw_froc, draw_precision_recall):
        with pytest.raises(MedsegError, match="at least one curve"):
            draw({}, tmp_path / "nothing.png")
