from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.evaluation.audit import Audit, Cell, Verdict
from medseg.evaluation.audit_figures import draw_audit

NAN = float("nan")


def audit_of(differs: bool) -> Audit:
    cells = (
        Cell("site $x", "A", "dice", "t", 0.6, 0.5, 0.7, 20, 20, True),
        Cell("site $x", "B", "dice", "t", 0.9, 0.8, 0.95, 20, 20, True),
        Cell("site $x", "C", "dice", "t", 0.2, NAN, NAN, 1, 1, False),
    )
    judged = ("site $x", "dice", "t", ("A", "B"), ("C",))
    verdict = Verdict(*judged, "B", "A", 0.3, "A", 0.6, 0.9, 0.01, 0.01, differs, {"A": 0.1, "B": 0.1})
    overall = Cell("all", "all", "dice", "t", 0.75, 0.7, 0.8, 41, 41, True)
    return Audit((overall,), cells, (verdict,), {}, 41, 41, 10, 99, 0)


def reds(path: Path) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int(((pixels[..., 0] > 180) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)).sum())


def test_the_group_that_stands_out_is_red_only_where_groups_differ(tmp_path: Path) -> None:
    draw_audit(audit_of(True), tmp_path / "figures" / "a.png", title="all of it")
    draw_audit(audit_of(False), tmp_path / "b.png")
    assert reds(tmp_path / "figures" / "a.png") > 50
    assert reds(tmp_path / "b.png") == 0
    assert [p.name for p in (tmp_path / "figures").iterdir()] == ["a.png"]


def test_without_groups_there_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="at least one group"):
        draw_audit(Audit((), (), (), {}, 0, 0, 10, 99, 0), tmp_path / "a.png")
