"""The comparison of detectors: MONAI's sees the boxes where medseg does, and what is finished is not done again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from medseg.data.splits import Split, Splits
from medseg.errors import MedsegError
from medseg.losses_boxes import Truth
from medseg.model import Model
from medseg.networks import build_network
from medseg.networks.anchor_grid import AnchorGrid
from medseg.structures import Boxes, Case, Prediction, as_source
from medseg.training.run_folder import RunFolder
from medseg.volume import Geometry
from scripts.benchmarks import detectors, monai_retinanet
from scripts.benchmarks.monai_retinanet import MonaiFinder, MonaiLoss, anchors_of, evened
from tests.tiny import LABELS, tiny_boxes, tiny_plan

GRID = AnchorGrid(((2, 2, 2), (4, 4, 2)), (((4.3, 3.0, 5.0), (6.0, 6.0, 1.3)), ((8.0, 7.0, 6.0), (9.0, 8.0, 3.0))))
SHAPES = [(8, 6, 4), (4, 3, 4)]  # of a window of 16 × 12 × 8
PLANTED = torch.tensor([[5.2, 3.1, 1.4, 10.9, 7.7, 5.3]])


def levels_of(rows: Tensor) -> list[Tensor]:
    """Rows ``(N, C)`` in the order of the places → maps ``(1, A·C, *S)`` of each level."""
    sizes = [count * int(np.prod(shape)) for count, shape in zip(GRID.per_cell, SHAPES, strict=True)]
    return [part.reshape(1, *shape, -1).movedim(-1, 1) for part, shape in zip(rows.split(sizes), SHAPES, strict=True)]


def test_anchors_lie_where_those_of_medseg_do_and_keep_their_sizes() -> None:
    maps = [torch.zeros(1, 2, *shape) for shape in SHAPES]
    (places,) = anchors_of(GRID)(torch.zeros(1, 1, 16, 12, 8), maps)
    torch.testing.assert_close(places, torch.cat(GRID.places(SHAPES)))


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_the_loss_reads_boxes_and_codes_as_medseg_does(moved: float) -> None:
    places = torch.cat(GRID.places(SHAPES))
    output = {
        "scores": levels_of(torch.zeros(len(places), 2)),
        "deltas": levels_of(GRID.encode(PLANTED.expand(len(places), -1), places)),
    }
    truth = Truth(PLANTED + moved * torch.tensor([0, 1, 0, 0, 1, 0]), torch.tensor([1]))
    terms = MonaiLoss()(output, [truth], GRID)
    assert terms["classification"] == pytest.approx(np.log(2))
    assert (float(terms["box_regression"]) < 1e-8) == (moved == 0)


def test_the_loss_of_a_crop_without_lesions_teaches_scores_alone() -> None:
    places = torch.cat(GRID.places(SHAPES))
    scores = levels_of(torch.zeros(len(places), 2, requires_grad=True))
    output = {"scores": scores, "deltas": levels_of(torch.zeros(len(places), 6))}
    terms = MonaiLoss()(output, [Truth(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))], GRID)
    torch.stack(list(terms.values())).sum().backward()
    assert float(terms["box_regression"]) == 0 and terms["classification"].requires_grad


def test_outputs_that_are_no_numbers_become_a_loss_that_is_none() -> None:
    output = {"scores": [torch.full((1, 4, *shape), torch.nan) for shape in SHAPES]}
    output["deltas"] = [torch.zeros(1, 12, *shape) for shape in SHAPES]
    terms = MonaiLoss()(output, [Truth(PLANTED, torch.tensor([0]))], GRID)
    assert torch.stack(list(terms.values())).sum().isnan()


def test_a_level_gets_as_many_anchors_as_the_others_by_repeating_its_own() -> None:
    assert evened([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0]]])[1] == [[7.0, 8.0]] * 3
    uneven = AnchorGrid(((2, 2), (4, 4)), (((1.0, 2.0), (3.0, 4.0)), ((7.0, 8.0),)))
    with pytest.raises(MedsegError, match=r"as many anchors on every level, found \[2, 1\]"):
        monai_retinanet.make_detector(lambda images: {}, uneven, 1, [1, 1])


class Seer:
    """Stands in for a network: a window of a ramp says where it lies, and so where a planted box lies in it."""

    device = torch.device("cpu")
    grid = AnchorGrid.of(((1, 1, 1), (2, 2, 2)), (1,), (((3.0, 3.0, 3.0), (5.0, 4.0, 3.0)),))
    box = torch.zeros(6)

    def __init__(self, network: Any) -> None:
        pass

    def __call__(self, window: Tensor) -> dict[str, list[Tensor]]:
        first = int(window[0, 0, 0, 0, 0])
        lower = torch.tensor([first % 100, first // 100 % 100, first // 10_000] * 2)
        shape = [n // 2 for n in window.shape[2:]]
        places = torch.cat(self.grid.places([shape]))
        codes = self.grid.encode((self.box - lower).expand(len(places), -1), places)
        near = ((places - (self.box - lower)).abs().amax(1) < 1.6).float()
        scores = torch.stack([torch.full_like(near, -9.0), 12 * near - 9], 1)
        return {
            name: [rows.reshape(1, *shape, -1).movedim(-1, 1)] for name, rows in (("scores", scores), ("deltas", codes))
        }


@pytest.mark.parametrize(
    ("shape", "box"),
    [((21, 18, 10), (13.2, 8.1, 2.4, 18.1, 12.3, 5.3)), ((6, 7, 5), (1.1, 2.0, 1.2, 4.3, 5.1, 4.0))],
    ids=["larger than the patch", "smaller than the patch"],
)
def test_a_planted_box_comes_back_from_the_windows_of_monai(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], box: tuple[float, ...]
) -> None:
    boxes = tiny_boxes(levels=(1,), anchors=Seer.grid.anchors)
    plan = tiny_plan(task="detection", boxes=boxes)
    network = {"_target_": "medseg.networks.retina.retinanet"}
    weights = build_network(network, plan, 3).state_dict()
    monkeypatch.setattr(monai_retinanet, "TorchRuntime", Seer)
    monkeypatch.setattr(Seer, "box", torch.tensor(box))
    i, j, k = np.indices(shape, dtype=np.float32)
    found = MonaiFinder(Model(plan, {"name": "detection"}, network, weights)).found((i + 100 * j + 10_000 * k)[None])
    assert len(found) == 1 and found.labels.tolist() == [list(LABELS.names)[1]]
    np.testing.assert_allclose(found.boxes[0], box, atol=1e-3)
    assert found.scores is not None and found.scores[0] == pytest.approx(1 / (1 + np.exp(-3.0)))


def test_a_case_is_predicted_once_for_each_training(tmp_path: Path) -> None:
    geometry = Geometry((9, 9, 9), np.eye(4))
    boxes = Boxes(np.array([[1.0, 1, 1, 4, 5, 6]]), np.array([1]), np.array([0.5]))
    asked: list[str] = []

    def find(case: Case) -> Prediction:
        asked.append(case.id)
        return Prediction(case.id, geometry, LABELS, boxes=boxes)

    row = detectors.Row("some", "some", lambda model: find)
    cases = [Case(name, (as_source("nifti", tmp_path / f"{name}.nii.gz"),), None, name) for name in ("a", "b")]
    weights = tmp_path / "model"
    weights.mkdir()
    (weights / "model.yaml").touch()
    for _ in range(2):
        detectors.predict(None, row, cases, tmp_path / "found", weights)  # type: ignore[arg-type]
    assert asked == ["a", "b"]
    os.utime(weights / "model.yaml", (2**33, 2**33))
    detectors.predict(None, row, cases, tmp_path / "found", weights)  # type: ignore[arg-type]
    assert asked == ["a", "b"] * 2


def test_trainings_that_differ_in_what_they_should_share_are_not_compared(tmp_path: Path) -> None:
    def run(name: str, keep: str, test: str = "c", network: str = "x") -> RunFolder:
        folder = tmp_path / name
        Splits((Split(("a",), ("b",), (test,)),), {}).save(folder / "splits.json")
        config = {"trainer": {"keep": keep}, "network": {"_target_": network}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return RunFolder(folder)

    first = run("first", "best")
    assert detectors.shared_split([first, run("other", "best", network="y")], 0).test == ("c",)
    with pytest.raises(MedsegError, match=r"trainer\.keep: was 'best', now 'last'"):
        detectors.shared_split([first, run("late", "last")], 0)
    with pytest.raises(MedsegError, match="other splits"):
        detectors.shared_split([first, run("elsewhere", "best", test="d")], 0)


def test_the_table_names_what_failed_and_leaves_blank_what_cannot_be_measured() -> None:
    blank = {"value": None, "low": None, "high": None}
    figures = {metric: {"value": 0.5, "low": 0.25, "high": 0.75} for metric in detectors.METRICS.values()}
    result = {
        "minutes": 10.0,
        "folds": [0, 2],
        "failed": ["monai, fold 1: exit status 4: the loss turned nan"],
        "anchors_repeated": True,
        "trainings": {system: {0: {"steps": 100}, 2: {"steps": 200}} for system in detectors.SYSTEMS},
        "figures": dict.fromkeys(detectors.ROWS, figures) | {detectors.BRIGHTEST: figures | {"cpm": blank}},
        "lesions": 34,
        "scans": 33,
        "command": "python detectors.py",
        "machine": {"cores": 2, "processor": "x", "device": "no GPU", "load_before": [0.0]},
        "versions": {"monai": "1.6"},
    }
    lines = detectors.markdown(result).splitlines()
    shown = "0.500 [0.25–0.75]"
    assert lines[2] == f"| medseg | {' | '.join([shown] * 4)} | 150 |"
    assert lines[6] == f"| brightest components | {shown} | {shown} | – | {shown} | – |"
    assert "Failed or incomplete: monai, fold 1: exit status 4: the loss turned nan" in lines
    assert any("the tests of fold 0, 2, pooled; 10 minutes" in line for line in lines)


def test_the_reason_of_a_failure_is_the_last_error_that_was_said(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("epoch 1\nerror: the loss turned nan\ntrain: 10%\n\n", encoding="utf-8")
    assert detectors._last_words(log) == "the loss turned nan"


def test_monai_gets_the_trunk_and_the_heads_of_the_detector_that_it_is_compared_with(tmp_path: Path) -> None:
    words = ["data=folder", f"data.images={tmp_path}", f"data.labels={tmp_path}", "task=detection"]
    boxes = tiny_boxes(levels=(0, 1), anchors=(((4.0,) * 3, (6.0,) * 3), ((8.0,) * 3,)))
    plan = replace(tiny_plan(task="detection"), boxes=boxes)
    given = detectors.as_medseg([*words, "network.encoder=residual", "network.head_width=32"], plan)
    made = detectors.compose("train", [*words, *detectors.SYSTEMS["monai"], *given])
    assert made["network"]["_target_"].endswith(".retinanet")
    assert (made["network"]["encoder"], made["network"]["head_width"]) == ("residual", 32)
    assert made["plan"]["boxes"]["anchors"][1] == [[8.0, 8.0, 8.0]] * 2
    assert made["task"]["fusion"] == "nms" and made["loss"] == {"_target_": f"{MonaiLoss.__module__}.MonaiLoss"}
