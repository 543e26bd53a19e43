"""What was judged of a case comes back as it was, for the same request and the same files alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.commands.judged_cases import JudgedCases
from medseg.explain.faithfulness import Curve
from medseg.explain.trust import TrustCase
from medseg.structures import Case, as_source

REQUEST = {"models": ["abc"], "methods": [["layer_cam", None, {"steps": (1, 2)}]], "targets": []}
CURVE = Curve(np.linspace(0, 1, 4), np.array([1.0, 0.1 + 0.2, 1 / 3, 0.0]))
FOUND = TrustCase(
    "a/b", "p", "box-1", {"layer_cam": {"deletion": 0.1 + 0.2, "insertion": math.nan}}, {"layer_cam": (CURVE, CURVE)},
    math.nan, {"guided_backprop": "ü"},
)  # fmt: skip


@pytest.fixture
def case(tmp_path: Path) -> Case:
    for name in ("image.png", "boxes.json"):
        (tmp_path / name).write_bytes(name.encode())
    return Case("a/b", (as_source("picture", tmp_path / "image.png"),), boxes=tmp_path / "boxes.json", patient="p")


def test_figures_and_curves_come_back_as_they_were(case, tmp_path):
    kept = JudgedCases(tmp_path / "out", REQUEST)
    assert kept.read(case) is None and kept.other_way(case) is None
    kept.write(case, [FOUND])
    (found,) = kept.read(case)
    assert kept.other_way(case) == ""
    assert (found.id, found.patient, found.target, found.failed) == ("a/b", "p", "box-1", FOUND.failed)
    assert found.values["layer_cam"]["deletion"] == 0.1 + 0.2
    assert math.isnan(found.values["layer_cam"]["insertion"]) and math.isnan(found.size)
    for curve in found.curves["layer_cam"]:
        np.testing.assert_array_equal(curve.share, CURVE.share)
        np.testing.assert_array_equal(curve.score, CURVE.score)
    kept.write(case, [])
    assert kept.read(case) == []  # nothing was found in it, and it is done


def test_another_request_or_another_case_or_another_file_has_no_figures(case, tmp_path):
    kept = JudgedCases(tmp_path / "out", REQUEST)
    kept.write(case, [FOUND])
    other = JudgedCases(tmp_path / "out", {**REQUEST, "models": ["abd"], "targets": ["box-1"]})
    assert other.read(case) is None
    assert other.other_way(case) == "models, targets"
    assert kept.read(replace(case, id="a b")) is None
    (tmp_path / "boxes.json").write_bytes(b"others")
    assert kept.read(case) is None and kept.other_way(case) == ""
    (tmp_path / "boxes.json").unlink()
    assert kept.read(case) is None


def test_files_stay_in_their_folder_and_leave_with_it(case, tmp_path):
    kept = JudgedCases(tmp_path / "out", REQUEST)
    kept.write(replace(case, id="../../escaped"), [FOUND])
    (file,) = (path for path in tmp_path.rglob("*") if "escaped" in path.name)
    assert file.parent == tmp_path / "out" / "judged"
    kept.remove()
    assert not list((tmp_path / "out").iterdir())
