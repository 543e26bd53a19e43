from __future__ import annotations

import json
from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.evaluation.class_folder import ClassFolder
from medseg.export.classes import write_classes
from medseg.structures import LabelTable, Prediction
from medseg.volume import Geometry

LABELS = LabelTable({1: "müde", 2: "wach"})
GRID = Geometry.from_spacing((4, 4), (1.0, 1.0), "px")


def test_what_is_written_is_read_back_exactly_and_in_the_order_of_the_classes(tmp_path: Path) -> None:
    said = {"wach": 1 / 3, "müde": 2 / 3}
    (tmp_path / "a").mkdir()
    path = write_classes(Prediction("a", GRID, LABELS, classes=said), tmp_path / "a")
    assert path == tmp_path / "a" / "classes.json" and list(json.loads(path.read_text(encoding="utf-8"))) == [
        "wach",
        "müde",
    ]
    assert ClassFolder(tmp_path).read("a", ("müde", "wach"), exclusive=True) == said


@pytest.mark.parametrize(
    ("classes", "message"),
    [({}, "holds no classes"), ({"müde": 1.5, "wach": 0.0}, "from 0 to 1"), ({"müde": float("nan")}, "from 0 to 1")],
)
def test_what_is_no_probability_is_not_written(classes: dict[str, float], message: str, tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=rf"case 'a': .*{message}"):
        write_classes(Prediction("a", GRID, LABELS, classes=classes), tmp_path)
    assert not list(tmp_path.iterdir())
