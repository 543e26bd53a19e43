from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.evaluation.bootstrap import Estimate
from medseg.explain.faithfulness import Curve
from medseg.explain.sanity import SAME_WITHOUT_WEIGHTS
from medseg.explain.trust import TrustCase
from medseg.explain.trust_figures import _limits, draw_curves, draw_trust
from medseg.explain.trust_table import gather

BLUE = (31, 119, 180)


def curve(points: int, bend: float) -> Curve:
    share = np.linspace(0, 1, points)
    return Curve(share, (1 - share) ** bend)


def cases() -> list[TrustCase]:
    """Curves of cases of different sizes have different points."""
    curves = [{"cam_{$": (curve(n, 4), curve(n, 1)), "area": (curve(n, 1), curve(n, 1))} for n in (7, 25)]
    values = {
        "cam_{$": {"deletion": 0.2, "energy_near": 0.6, "stability": 0.9, "shuffled_rank": 0.8},
        "area": {"deletion": 0.5, "energy_near": 0.15},
    }
    return [TrustCase(f"c{i}", f"p{i}", "class-a", values, c, float("nan")) for i, c in enumerate(curves)]


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def test_curves_are_drawn_with_baselines_in_grey(tmp_path: Path) -> None:
    draw_curves(cases(), tmp_path / "figures" / "curves.png", title="split test: $x_{")
    found = colours(tmp_path / "figures" / "curves.png")
    assert BLUE in found and (128, 128, 128) in found
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["curves.png"]


def test_the_table_is_drawn_as_bars(tmp_path: Path) -> None:
    table = gather(cases(), "cam_{$")
    assert table.flags["cam_{$"] == (SAME_WITHOUT_WEIGHTS,)
    draw_trust(table, tmp_path / "trust.png")
    found = colours(tmp_path / "trust.png")
    assert BLUE in found and (153, 153, 153) in found


def test_bars_and_intervals_beyond_the_usual_range_are_not_cut() -> None:
    inside, beyond = Estimate(0.4, 0.2, 0.9, 5), Estimate(-0.2, -0.4, 1.1, 5)
    assert _limits([inside, Estimate(0.5, math.nan, math.nan, 5)]) == (0, 1)
    low, high = _limits([inside, beyond])
    assert low < -0.4 and high > 1.1


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    blank = [TrustCase("c", "p", "class-a", {"cam": {"deletion": float("nan")}}, {}, float("nan"))]
    with pytest.raises(MedsegError, match="at least one case with a deletion curve"):
        draw_curves(blank, tmp_path / "a.png")
    with pytest.raises(MedsegError, match="at least one measure"):
        draw_trust(gather(blank, "cam"), tmp_path / "b.png")
    assert not list(tmp_path.iterdir())
