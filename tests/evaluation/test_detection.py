from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.detection import DetectedCase, faults_of, score_labels, threshold_for
from medseg.structures import Boxes, LabelTable
from medseg.volume import Array, Geometry

LESION = LabelTable({1: "lesion"})
CELLS = LabelTable({1: "red", 2: "white", 5: "platelet"})


def boxes(rows: Any, *, labels: Any = 1, scores: Any = None, axes: int = 2) -> Boxes:
    array = np.array(rows, float).reshape(-1, 2 * axes)
    values = np.broadcast_to(np.array(labels, int), len(array))
    return Boxes(array, values, None if scores is None else np.array(scores, float))


def at(place: int, size: int = 10) -> list[int]:
    """A square whose corner is ``place`` along the diagonal."""
    return [place, place, place + size, place + size]


def case(name: str, true: list[list[int]], found: dict[float, list[int]] | None = None, **more: Any) -> DetectedCase:
    found = found or {}
    grid = Geometry.from_spacing((400, 400), (1.0, 1.0))
    return DetectedCase(name, boxes(list(found.values()), scores=list(found)), boxes(true), grid, **more)


def worked() -> list[DetectedCase]:
    """Eight scans with four lesions in three of them; the second lesion of the first scan is never found.

    score   what               lesions found   false positives
    0.95    scan 0, lesion 1         1               0
    0.90    scan 3                   1               1
    0.85    scan 1                   2               1
    0.80    scan 0, lesion 1 again   2               2
    0.70    scan 4, and scan 2       3               3
    0.60    scan 5                   3               4
    """
    return [
        case("0", [at(0), at(50)], {0.95: at(0), 0.80: at(1)}),
        case("1", [at(0)], {0.85: at(0)}),
        case("2", [at(0)], {0.70: at(0)}),
        case("3", [], {0.90: at(90)}),
        case("4", [], {0.70: at(90)}),
        case("5", [], {0.60: at(90)}),
        case("6", []),
        case("7", []),
    ]


def figures(cases: list[DetectedCase], labels: LabelTable = LESION, **more: Any) -> dict[str, float]:
    (first, *_) = score_labels(cases, labels, **more)
    return dict(zip(first.metrics, first.measure(first.ranking.every_case_once).tolist(), strict=True))


def random_cases(count: int, seed: int, axes: int = 2, ties: bool = False) -> list[DetectedCase]:
    """Scans with up to six lesions of three classes, some found with an error, some not, beside false ones."""
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        n = int(random.integers(0, 7)) * int(i % 4 != 0)
        lower = random.integers(0, 80, (n, axes))
        true = np.concatenate([lower, lower + random.integers(4, 20, (n, axes))], 1)
        found = np.concatenate([true, true[: n // 2]]) + random.integers(-3, 4, (n + n // 2, 2 * axes))
        found[:, axes:] = np.maximum(found[:, axes:], found[:, :axes] + 1)
        stray = random.integers(0, 80, (int(random.integers(0, 5)), axes))
        found = np.concatenate([found, np.concatenate([stray, stray + 8], 1)])
        values = random.choice(list(CELLS.names), n)
        guesses = np.concatenate([values, values[: n // 2], random.choice(list(CELLS.names), len(stray))])
        scores = random.random(len(found))
        grid = Geometry.from_spacing((100,) * axes, (1.0,) * axes)
        scores = np.round(scores, 1) if ties else scores
        predicted = boxes(found, labels=guesses, scores=scores, axes=axes)
        made.append(DetectedCase(str(i), predicted, boxes(true, labels=values, axes=axes), grid))
    return made


def coco_precision(cases: list[DetectedCase], overlaps: Array) -> Array:
    """``(T, classes)`` average precision as pycocotools has it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(index: int, found: Boxes) -> list[dict[str, Any]]:
        kept = zip(found.boxes.tolist(), found.labels.tolist(), strict=True)
        made = [
            {"image_id": index, "category_id": value, "bbox": [a, b, c - a, d - b], "area": (c - a) * (d - b)}
            for (a, b, c, d), value in kept
        ]
        return [row | ({} if found.scores is None else {"score": float(found.scores[i])}) for i, row in enumerate(made)]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(cases))],
        "categories": [{"id": value} for value in CELLS.names],
        "annotations": [row | {"iscrowd": 0} for i, c in enumerate(cases) for row in rows(i, c.truth)],
    }
    for i, annotation in enumerate(truth.dataset["annotations"], start=1):
        annotation["id"] = i
    truth.createIndex()
    theirs = COCOeval(truth, truth.loadRes([row for i, c in enumerate(cases) for row in rows(i, c.predicted)]), "bbox")
    theirs.params.iouThrs = overlaps
    theirs.evaluate()
    theirs.accumulate()
    return theirs.eval["precision"][:, :, :, 0, -1].mean(axis=1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_in_pictures_is_that_of_pycocotools(seed: int, ties: bool) -> None:
    pytest.importorskip("pycocotools", reason="the reference for 2D average precision is not installed")
    cases = random_cases(40, seed, ties=ties)
    low = coco_precision(cases, np.array([0.1, 0.2, 0.3, 0.4, 0.5]))
    high = coco_precision(cases, np.linspace(0.5, 0.95, 10))
    for column, score in enumerate(score_labels(cases, CELLS)):
        found = score.measure(score.ranking.every_case_once)
        assert np.abs(found[:5] - low[:, column]).max() < 1e-6
        assert found[5] == pytest.approx(high[:, column].mean(), abs=1e-6)
        assert 0 < found[5] < found[0] < 1


def test_only_the_hundred_surest_boxes_of_a_case_count_as_in_pycocotools() -> None:
    pytest.importorskip("pycocotools", reason="the reference for 2D average precision is not installed")
    random = np.random.default_rng(0)
    corner = random.integers(0, 300, (150, 2))
    found = boxes(np.concatenate([corner, corner + 10], 1), scores=random.random(150))
    grid = Geometry.from_spacing((400, 400), (1.0, 1.0))
    cases = [DetectedCase("a", found, boxes(found.boxes), grid), case("b", [])]
    (score, *_) = score_labels(cases, CELLS)
    assert score.measure(np.ones(2, int))[4] == pytest.approx(coco_precision(cases, np.array([0.5]))[0, 0], abs=1e-6)
    assert score.measure(np.ones(2, int))[4] < 0.7


def test_froc_is_that_of_the_worked_example() -> None:
    found = figures(worked())
    expected = {0.125: 0.5, 0.25: 0.5, 0.5: 0.75, 1: 0.75, 2: 0.75, 4: 0.75, 8: 0.75}
    assert {rate: found[f"sensitivity_at_{rate:g}_fp"] for rate in expected} == expected
    assert found["cpm"] == pytest.approx(4.75 / 7)


def test_the_threshold_is_the_lowest_that_keeps_to_the_rate() -> None:
    # At 0.70 a lesion and a false positive come together: three false positives in eight scans are more than a quarter.
    rates = {0.0: 0.95, 0.125: 0.85, 0.25: 0.80, 0.3: 0.80, 0.375: 0.70, 0.5: 0.60, 8.0: 0.60}
    assert {rate: threshold_for(worked(), LESION, rate)["lesion"] for rate in rates} == rates


def test_where_the_surest_box_is_false_a_rate_of_zero_keeps_nothing() -> None:
    cases = [case("a", [at(0)], {0.9: at(50), 0.8: at(0)})]
    assert threshold_for(cases, LESION, 0.0)["lesion"] > 0.9
    assert threshold_for(cases, LESION, 1.0)["lesion"] == 0.8


def test_a_label_that_is_never_found_keeps_every_box() -> None:
    assert threshold_for([case("a", [at(0)])], LESION, 1.0) == {"lesion": 0.0}


def test_a_rate_that_tune_is_too_small_for_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        threshold_for(worked()[:3], LESION, 0.25)
    assert "4 are needed" in caplog.text
    with pytest.raises(MedsegError, match="0 or more"):
        threshold_for(worked(), LESION, float("nan"))


def test_scans_without_lesion_count_as_scans() -> None:
    alone = figures([*worked()[:3], case("f", [], {0.99: at(90)}), case("g", [], {0.98: at(90)})])
    beside = figures([*worked()[:3], case("f", [], {0.99: at(90)}), case("g", [], {0.98: at(90)}), *worked()[6:] * 10])
    assert alone["sensitivity_at_0.25_fp"] == 0.0 and beside["sensitivity_at_0.25_fp"] == 0.75
    assert alone["ap_50"] == beside["ap_50"]


def test_the_working_point_is_counted_over_all_scans() -> None:
    found = figures([replace(c, thresholds={"lesion": 0.75}) for c in worked()])
    assert found["sensitivity"] == 2 / 4 and found["precision"] == 2 / 4 and found["f1"] == 2 * 2 / (4 + 4)
    assert found["fp_per_scan"] == 2 / 8
    assert found["clean_scans"] == 4 / 5


def test_each_case_has_the_working_point_of_its_own_model() -> None:
    first, second = worked()[1], worked()[2]
    cases = [replace(first, thresholds={"lesion": 0.9}), replace(second, thresholds={"lesion": 0.7})]
    (score,) = score_labels(cases, LESION)
    assert score.tp.tolist() == [0, 1] and score.own_point


def test_without_a_working_point_it_is_one_false_positive_a_scan_of_these_cases() -> None:
    (score,) = score_labels(worked(), LESION)
    assert not score.own_point and set(score.thresholds) == {0.6}


def test_a_lesion_counts_from_a_low_overlap_in_volumes_and_half_in_pictures() -> None:
    flat = case("a", [at(0)], {0.9: at(4)})  # overlap 36 / 164
    assert figures([flat])["sensitivity"] == 0 and figures([flat], iou=0.2)["sensitivity"] == 1
    grid = Geometry.from_spacing((40, 40, 40), (1.0, 1.0, 1.0))
    true, found = boxes([0, 0, 0, 10, 10, 10], axes=3), boxes([4, 4, 0, 14, 14, 10], scores=[0.9], axes=3)
    assert figures([DetectedCase("a", found, true, grid)])["sensitivity"] == 1


def test_a_draw_is_the_same_as_repeating_its_cases() -> None:
    point = dict.fromkeys(CELLS.names.values(), 0.5)
    cases = [replace(c, thresholds=point) for c in random_cases(16, 3, axes=3)]
    for seed in range(4):
        draw = np.random.default_rng(seed).multinomial(16, np.full(16, 1 / 16))
        repeated = [replace(c, id=f"{c.id}-{k}") for c, n in zip(cases, draw, strict=True) for k in range(n)]
        drawn, meant = (score_labels(c, CELLS, size_edges=[8.0, 12.0]) for c in (cases, repeated))
        for one, two in zip(drawn, meant, strict=True):
            assert np.allclose(one.measure(draw), two.measure(np.ones(16, int)), atol=1e-12, equal_nan=True)


def test_figures_do_not_depend_on_the_order_of_cases_and_boxes() -> None:
    cases = random_cases(20, 5)
    order = np.random.default_rng(0).permutation(20)

    def turned(found: Boxes) -> Boxes:
        return Boxes(found.boxes[::-1], found.labels[::-1], None if found.scores is None else found.scores[::-1])

    shuffled = [replace(cases[i], predicted=turned(cases[i].predicted), truth=turned(cases[i].truth)) for i in order]
    for one, two in zip(score_labels(cases, CELLS), score_labels(shuffled, CELLS), strict=True):
        assert np.allclose(one.measure(np.ones(20, int)), two.measure(np.ones(20, int)), equal_nan=True)


def test_a_perfect_detector_reaches_one_and_a_blind_one_zero() -> None:
    cases = random_cases(20, 6)
    perfect = [replace(c, predicted=replace(c.truth, scores=np.full(len(c.truth.boxes), 0.9))) for c in cases]
    blind = [replace(c, predicted=boxes([], scores=[])) for c in cases]
    best, worst = figures(perfect, CELLS), figures(blind, CELLS)
    ones = {name for name, value in best.items() if value == 1}
    assert ones == set(best) - {"fp_per_scan"} and best["fp_per_scan"] == 0
    assert worst["clean_scans"] == 1 and np.isnan(worst["precision"])
    assert all(worst[name] == 0 for name in set(best) - {"clean_scans", "precision"})


def test_lesions_are_told_apart_by_their_longest_edge() -> None:
    true = [at(0, 4), at(20, 8), at(50, 20), at(100, 24)]
    grid = Geometry.from_spacing((200, 200), (0.5, 0.5))
    cases = [DetectedCase("a", boxes([true[1], true[2]], scores=[0.9, 0.8]), boxes(true), grid)]
    found = figures(cases, size_edges=[4.0, 11.0])
    names = ["sensitivity_below_4_mm", "sensitivity_4_to_11_mm", "sensitivity_from_11_mm"]
    assert [found[name] for name in names] == [0, 1, 0]
    found = figures(cases)  # edges of 2, 4, 10 and 12 mm in thirds: 2, then 4, then 10 and 12
    assert [found[f"sensitivity_{third}"] for third in ("small", "medium", "large")] == [0, 1, 0.5]


def test_what_cannot_be_scored_is_named_and_all_of_it_at_once() -> None:
    good = worked()[0]
    nan = replace(good, id="n", predicted=boxes([at(0)], scores=[np.nan]))
    bare = replace(good, id="b", predicted=boxes([at(0)]))
    other = replace(good, id="o", truth=boxes([at(0)], labels=7))
    flat = replace(good, id="f", truth=boxes([0, 0, 0, 1, 1, 1], axes=3))
    kinds = {"n": "nan_score", "b": "no_scores", "o": "unknown_class", "f": "other_dimensions"}
    assert {c.id: fault.kind for c in (nan, bare, other, flat) for fault in faults_of(c, LESION)} == kinds
    assert faults_of(good, LESION) == []
    with pytest.raises(MedsegError) as error:
        score_labels([good, nan, bare, other, flat], LESION)
    assert all(f"case '{name}'" in str(error.value) for name in kinds)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(MedsegError, match="at least one case"):
        score_labels([], LESION)
    with pytest.raises(MedsegError, match="iou"):
        score_labels(worked(), LESION, iou=0)
    with pytest.raises(MedsegError, match="rising"):
        score_labels(worked(), LESION, size_edges=[5, 5])
    px = replace(worked()[0], geometry=Geometry.from_spacing((400, 400), (1, 1), unit="px"))
    with pytest.raises(MedsegError, match="2D in mm, 2D in px"):
        score_labels([*worked(), px], LESION)
