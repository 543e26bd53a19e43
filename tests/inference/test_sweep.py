"""A case that is swept in tiles and rows has the mask of one whose scores are whole in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.data.preprocess import MaskOnScan, PlannedScan
from medseg.inference.answers import Answers
from medseg.inference.memory import Memory
from medseg.inference.predictor import Predictor, predict_grid
from medseg.inference.runtime import TorchRuntime
from medseg.inference.sweep import sweep
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Plan
from medseg.structures import LabelTable
from medseg.tasks import build_task
from medseg.tiling.blending import GaussianBlender
from medseg.tiling.route import find_route
from medseg.volume import Geometry, Reorientation, Volume
from tests.tiny import noise, tiny_model, tiny_plan

OVERLAP = 0.5
MANY = LabelTable({value: f"label {value}" for value in range(1, 12)})
REGIONS = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
THEIRS = Conventions(averaged="logits", odd_padding="after", peak="after", apart_beyond=3.0)
TURN = Reorientation((2, 0, 1), (True, False, True))
CASES: dict[str, tuple[tuple[int, ...], tuple[float, ...], dict[str, Any], Reorientation | None]] = {
    "three labels at native spacing": ((21, 17, 30), (1.0, 1.0, 1.0), {}, None),
    "twelve labels, anisotropic": ((24, 20, 9), (0.7, 0.8, 2.5), {"labels": MANY}, None),
    "regions that overlap, a finer scan": ((40, 26, 23), (0.5, 0.6, 0.7), {"labels": REGIONS}, None),
    "stored along other axes": ((21, 30, 17), (0.9, 1.3, 0.8), {}, TURN),
    "cropped to what is not zero": ((26, 22, 20), (1.2, 0.9, 1.0), {"crop": "nonzero"}, TURN),
    "smaller than a window": ((6, 7, 5), (1.0, 1.0, 1.0), {}, None),
    "smaller along one axis, coarser": ((5, 19, 12), (2.0, 1.0, 1.4), {}, None),
    "smaller than a window, as nnU-Net does it": ((9, 7, 5), (1.0, 1.0, 1.0), {"conventions": THEIRS}, None),
    "slices apart, as nnU-Net does it": ((25, 21, 7), (0.9, 1.1, 4.0), {"conventions": THEIRS, "labels": MANY}, None),
    "logits of regions": ((23, 21, 18), (0.9, 1.1, 1.3), {"conventions": THEIRS, "labels": REGIONS}, TURN),
    "slices as they are": ((20, 19, 13), (0.8, 0.8, 3.0), {"conventions": Conventions(kept_axes=(2,))}, TURN),
    "windows of unequal sides": ((20, 31, 9), (1.0, 1.1, 1.0), {"patch_size": (8, 12, 4)}, None),
}


def scan_and_plan(case: str) -> tuple[Volume, Plan]:
    shape, spacing, changes, turn = CASES[case]
    values = noise(shape, 1)
    values[:3] = 0
    scan = Volume(values[None], Geometry.from_spacing(shape, spacing))
    if turn is not None:
        scan = Volume(turn.apply(scan.data), turn.apply_to_geometry(scan.geometry))
    return scan, tiny_plan(mirror_axes=(), **changes)


def swept(scan: Volume, plan: Plan, budget: float, *, whole: bool = False, batch_size: int = 1) -> tuple[Any, Any]:
    """The mask and the route of it."""
    model = tiny_model(2, plan)
    task = build_task(model.task, plan)
    planned = PlannedScan(scan, plan)
    answers = Answers([TorchRuntime(model.network_module(), device="cpu", precision="float32")], task, ())
    lines, outputs = planned.restoration.lines, len(plan.labels.outputs)
    route = find_route(
        lines, plan.patch_size, OVERLAP, channels=1, outputs=outputs, budget=budget, odd=plan.odd_padding
    )
    source = planned.whole() if whole else planned
    mask = sweep(source, planned.restoration, task, answers, route, patch=plan.patch_size, batch_size=batch_size)
    assert answers.asked + answers.spared == route.windows
    return mask, route


def unbounded(scan: Volume, plan: Plan) -> np.ndarray:
    """By way of the scores of the whole case."""
    model = tiny_model(2, plan)
    task = build_task(model.task, plan)
    planned = PlannedScan(scan, plan)
    runtime = TorchRuntime(model.network_module(), device="cpu", precision="float32")
    merged = predict_grid([runtime], planned.whole(), plan, task, overlap=OVERLAP)
    return task.decode("a", merged, planned.restoration, {}).mask


@pytest.mark.parametrize("case", CASES)
def test_a_swept_case_has_the_mask_of_an_unbounded_one(case: str) -> None:
    scan, plan = scan_and_plan(case)
    expected = unbounded(scan, plan)
    assert len(np.unique(expected)) > 1
    roomy, one = swept(scan, plan, 1e9, whole=True)
    tight, tiles = swept(scan, plan, 0)
    assert len(one.tiles) == 1 and one.windows == one.distinct
    assert tiles.bytes <= one.bytes
    for found in (roomy, tight):
        assert found.dtype == expected.dtype
        assert (found == expected).mean() >= 0.9999


def test_at_native_spacing_every_voxel_is_the_same_however_small_the_memory() -> None:
    scan, plan = scan_and_plan("three labels at native spacing")
    plan = plan.changed(image_order=(1, 1, 1))
    roomy, one = swept(scan, plan, 1e9)
    for budget in (one.bytes - 1, one.bytes / 3, 0):
        found, route = swept(scan, plan, budget)
        assert len(route.tiles) > 1 and route.windows > route.distinct
        np.testing.assert_array_equal(found, roomy)


def test_batches_stay_within_a_row_of_windows_and_change_nothing() -> None:
    scan, plan = scan_and_plan("three labels at native spacing")
    one, _ = swept(scan, plan, 0)
    five, _ = swept(scan, plan, 0, batch_size=5)
    assert (one == five).mean() >= 0.9999


def test_pictures_are_swept_too() -> None:
    plan = tiny_plan(2, mirror_axes=())
    picture = Volume(noise((33, 21))[None], Geometry.from_spacing((33, 21), (1, 1), "px"))
    np.testing.assert_array_equal(swept(picture, plan, 0)[0], unbounded(picture, plan))


def test_what_is_held_is_what_the_route_says(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    read: list[int] = []

    class Watched(GaussianBlender):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            held.append(self._sum.nbytes + self._weight.nbytes)

    make = PlannedScan.__getitem__
    monkeypatch.setattr("medseg.tasks.segmentation.GaussianBlender", Watched)
    monkeypatch.setattr(PlannedScan, "__getitem__", lambda s, w: read.append(make(s, w).nbytes) or make(s, w))
    scan, plan = scan_and_plan("twelve labels, anisotropic")
    _, route = swept(scan, plan, 0)
    assert len(held) == len(route.tiles) > 4
    assert max(held) + 3 * max(read) <= route.bytes
    whole = 4 * 12 * np.prod(PlannedScan(scan, plan).shape)
    assert max(held) < whole / 4


def test_air_is_asked_once_and_the_mask_stays_the_same() -> None:
    values = np.full((40, 12, 12), -1000, np.int16)
    values[28:] = (noise((12, 12, 12)) / 10).astype(np.int16)
    scan = Volume(values[None], Geometry.from_spacing(values.shape, (1.1, 0.9, 1.0)))
    model = tiny_model(2, tiny_plan(mirror_axes=()))
    predictor = Predictor([model], runtime={"device": "cpu", "precision": "float32"})
    found = predictor.outcome(scan, "a", scores=False)
    again = predictor.outcome(scan, "a", scores=True)
    assert found.merged is None and again.merged is not None
    assert found.windows["spared"] > 4
    assert found.windows["spared"] + found.windows["asked"] == again.windows["spared"] + again.windows["asked"]
    # Without sparing: the windows themselves, through the network one by one.
    assert (found.prediction.mask == again.prediction.mask).mean() >= 0.9999
    assert (found.prediction.mask == unbounded_asking_all(scan, predictor)).mean() >= 0.9999


def unbounded_asking_all(scan: Volume, predictor: Predictor) -> np.ndarray:
    ready = predictor.prepare(scan)
    array = ready.array() + 1e-7 * np.random.default_rng(0).normal(size=ready.scan.shape).astype(np.float32)
    told: list[int] = []
    merged = predict_grid(
        predictor._runtimes, array, predictor.plan, predictor.task, on_window=lambda done, _: told.append(done)
    )
    assert told
    mask = predictor.task.decode("a", merged, ready.restoration, {}).mask
    assert mask is not None
    return mask


def test_a_predictor_with_little_memory_says_the_same() -> None:
    scan, plan = scan_and_plan("stored along other axes")
    predictor = Predictor([tiny_model(2, plan)], mirror=False)
    expected = predictor.predict_volume(scan, "a").mask
    predictor.memory = Memory(total=0, resident=0, given=True)
    assert not isinstance(predictor.prepare(scan).scan, np.ndarray)
    assert (predictor.predict_volume(scan, "a").mask == expected).mean() >= 0.9999


def test_a_predictor_sweeps_by_the_conventions_of_the_plan() -> None:
    """Odd padding, the peak of the weights, slices apart and what is averaged: all of them the same where a case is swept."""
    for case in ("smaller than a window, as nnU-Net does it", "slices apart, as nnU-Net does it"):
        scan, plan = scan_and_plan(case)
        predictor = Predictor([tiny_model(2, plan)], mirror=False, runtime={"device": "cpu", "precision": "float32"})
        predictor.memory = Memory(total=0, resident=0, given=True)
        found = predictor.predict_volume(scan, "a").mask
        assert (found == unbounded(scan, plan)).mean() >= 0.9999
        own = unbounded(scan, plan.changed(conventions=Conventions(averaged="logits")))
        assert (found == own).mean() < 0.999


def test_a_mask_may_be_painted_in_any_order() -> None:
    scan, plan = scan_and_plan("stored along other axes")
    restoration = PlannedScan(scan, plan).restoration
    task = build_task(tiny_model(0, plan).task, plan)
    scores = np.random.default_rng(0).random((3, *restoration.shape)).astype(np.float32)
    one, parts = MaskOnScan(restoration, task.values), MaskOnScan(restoration, task.values, block=7)
    one.paint(scores, (0, 0, 0), restoration.kept)
    a, b, c = restoration.kept
    parts.paint(scores, (5, 0, 0), (a, b, c))
    parts.paint(scores, (0, 0, 0), (5, b, c))
    assert (one.mask == parts.mask).mean() >= 0.9999
