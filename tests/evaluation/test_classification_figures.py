from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.evaluation.classification_figures import draw_confusion, draw_precision_recall, draw_roc
from medseg.volume import Array

ROC = np.array([0, 0.1, 0.5, 1]), np.array([0, 0.7, 0.9, 1])
BLANK = np.array([0, 0.5, 1]), np.full(3, np.nan)
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def pixels(path: Path) -> Array:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def colours(path: Path) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(pixels(path).reshape(-1, 3), axis=0).tolist()}


def test_curves_are_drawn_with_those_of_others_beside(tmp_path: Path) -> None:
    for draw in (draw_roc, draw_precision_recall):
        draw({"$malignant_{ 0.93": ROC}, tmp_path / "figures" / "one.png", title="split test: $x_{")
        draw({"malignant": ROC, "benign": BLANK}, tmp_path / "two.png", beside={"prior": (ROC[0], ROC[0])})
        assert BLUE in colours(tmp_path / "figures" / "one.png") and pixels(tmp_path / "two.png").shape[1] > 400
        with pytest.raises(MedsegError, match="at least one curve"):
            draw({}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_the_baseline_has_a_colour_of_its_own(tmp_path: Path) -> None:
    draw_roc({"malignant": ROC}, tmp_path / "alone.png")
    draw_roc({"malignant": ROC}, tmp_path / "beside.png", beside={"prior": (ROC[0], ROC[0])})
    orange = [
        int((np.abs(pixels(tmp_path / name) - ORANGE).sum(-1) < 60).sum()) for name in ("alone.png", "beside.png")
    ]
    assert orange[0] == 0 and orange[1] > 50


def test_the_square_of_the_larger_share_is_the_darker(tmp_path: Path) -> None:
    counts = np.array([[90, 10], [0, 0]])
    draw_confusion(("a_{$", "b"), ("a_{$", "b"), counts, tmp_path / "square.png", title="split test")
    drawn = pixels(tmp_path / "square.png").sum(-1)
    height, width = drawn.shape
    row = drawn[int(height * 0.2)]  # above the words of the upper squares
    left, right = row[int(width * 0.3)], row[int(width * 0.8)]
    assert left < right - 200
    draw_confusion(
        ("a", "b"), ("found", "missed", "false alarm", "rightly denied"), np.ones((2, 4), int), tmp_path / "wide.png"
    )
    assert pixels(tmp_path / "wide.png").shape[1] > 400
