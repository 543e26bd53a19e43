"""Which place answers for which lesion, and what it costs: against values by hand, MONAI's functions, and empty batches."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.losses_boxes import (
    NEGATIVE,
    BoxLoss,
    Truth,
    focal_giou,
    giou,
    hard_negative_giou,
    iou,
    match_atss,
    match_centers,
    quality_giou,
)
from medseg.networks.anchor_grid import AnchorGrid

BUILDERS: list[Callable[..., BoxLoss]] = [focal_giou, hard_negative_giou, quality_giou]
every = pytest.mark.parametrize("builder", BUILDERS)
ANCHORED = AnchorGrid(((2, 2), (4, 4)), (((4.0, 4.0), (6.0, 3.0)), ((8.0, 8.0),)))
FREE = AnchorGrid(((2, 2), (4, 4)))
SHAPES = [(16, 16), (8, 8)]  # of an input of 32 × 32
both_grids = pytest.mark.parametrize("grid", [ANCHORED, FREE], ids=["anchors", "anchor-free"])


def boxes_of(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def truth_of(*rows: Sequence[float], classes: Sequence[int] | None = None, ignore: Tensor | None = None) -> Truth:
    boxes = boxes_of(*rows) if rows else torch.zeros(0, 4)
    return Truth(boxes, torch.tensor(classes or [0] * len(rows), dtype=torch.int64), ignore)


def output_of(grid: AnchorGrid, batch: int = 1, classes: int = 2, seed: int = 0) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    levels = list(zip(grid.per_cell, SHAPES, strict=True))
    return {
        "scores": [torch.randn(batch, n * classes, *s, generator=generator).requires_grad_() for n, s in levels],
        grid.codes: [torch.randn(batch, n * 4, *s, generator=generator).requires_grad_() for n, s in levels],
    }


def as_levels(rows: Tensor, grid: AnchorGrid) -> list[Tensor]:
    """The inverse of `AnchorGrid.rows`."""
    levels, first = [], 0
    for count, shape in zip(grid.per_cell, SHAPES, strict=True):
        last = first + count * math.prod(shape)
        levels.append(rows[:, first:last].reshape(len(rows), *shape, -1).movedim(-1, 1))
        first = last
    return levels


def match(grid: AnchorGrid, boxes: Tensor, **options: Any) -> Tensor:
    levels = grid.places(SHAPES)
    return match_centers(boxes, levels, **options) if grid.anchor_free else match_atss(boxes, levels, grid, **options)


def random_boxes(count: int, seed: int, dimensions: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, dimensions, generator=generator) * 24 + 4
    half = torch.rand(count, dimensions, generator=generator) * 4 + 1
    return torch.cat((center - half, center + half), 1)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def test_overlap_by_hand() -> None:
    first = boxes_of([0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1])
    second = boxes_of([1, 1, 3, 3], [0, 0, 2, 2], [3, 0, 4, 1])
    # One square of four shared, union 7, hull 9; the same; two unit squares in a hull of 4.
    torch.testing.assert_close(iou(first, second), torch.tensor([1 / 7, 1, 0]))
    torch.testing.assert_close(giou(first, second), torch.tensor([1 / 7 - 2 / 9, 1, -2 / 4]))
    cubes = boxes_of([0, 0, 0, 2, 2, 2]), boxes_of([1, 1, 1, 3, 3, 3])
    torch.testing.assert_close(giou(*cubes), torch.tensor([1 / 15 - 12 / 27]))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_overlap_is_what_monai_computes(dimensions: int) -> None:
    from monai.data.box_utils import box_pair_giou

    first, second = random_boxes(50, 0, dimensions), random_boxes(50, 1, dimensions)
    torch.testing.assert_close(giou(first, second), box_pair_giou(first, second), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_atss_is_monais_where_cells_are_cubes_and_levels_have_as_many_anchors(seed: int) -> None:
    from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher

    grid = AnchorGrid(((2, 2), (4, 4)), (((4.0, 4.0), (6.0, 3.0)), ((8.0, 8.0), (6.0, 10.0))))
    levels, boxes = grid.places(SHAPES), random_boxes(4, seed)
    _, expected = ATSSMatcher(4, center_in_gt=False)(boxes, torch.cat(levels), [16 * 16, 8 * 8], 2)
    assert match(grid, boxes).tolist() == expected.tolist()
    assert (expected >= 0).sum() >= 4


@both_grids
@pytest.mark.parametrize("seed", range(5))
def test_every_lesion_has_a_place_and_lies_on_it(grid: AnchorGrid, seed: int) -> None:
    boxes = random_boxes(3, seed)
    boxes[0] = boxes_of([9.2, 9.1, 9.9, 9.8])[0]  # smaller than a cell, beside its centre
    matches = match(grid, boxes)
    assert set(matches.tolist()) == {NEGATIVE, 0, 1, 2}
    places = torch.cat(grid.places(SHAPES))
    positive = matches >= 0
    assert float(iou(boxes[matches[positive]], places[positive]).min()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_thick_slices_are_matched_as_cubes_would_be(seed: int) -> None:
    """Nearness is counted in cells: voxels four times as thick, so that cells are cubes in mm, change nothing."""
    thick, cubes = AnchorGrid(((1, 4, 4),), (((2.0, 8.0, 8.0),),)), AnchorGrid(((4, 4, 4),), (((8.0, 8.0, 8.0),),))
    boxes = random_boxes(3, seed, 3)
    expected = match_atss(boxes, cubes.places([(8, 8, 8)]), cubes, candidates=9)
    found = match_atss(boxes / torch.tensor([4, 1, 1] * 2), thick.places([(8, 8, 8)]), thick, candidates=9)
    assert found.tolist() == expected.tolist() and int((expected >= 0).sum()) >= 3


def test_the_best_of_few_candidates_answers_even_below_mean_plus_deviation() -> None:
    """Of two overlaps a > b the threshold (a + b) / 2 + (a − b) / √2 exceeds a."""
    grid = AnchorGrid(((4, 4),), (((4.0, 4.0),),))
    matches = match_atss(boxes_of([4, 5, 8, 9]), grid.places([(8, 8)]), grid, candidates=2)
    assert matches.reshape(8, 8).eq(0).nonzero().tolist() == [[1, 1]]


def test_the_cells_around_a_centre_answer_for_a_box() -> None:
    """On the level of stride 4 a box of 16 × 16 counts four cells; centres within one stride of (16, 16) are 14 and 18."""
    matches = match_centers(boxes_of([8, 8, 24, 24]), FREE.places(SHAPES), radius=1.0, cells=4.0)
    fine, coarse = matches[:256], matches[256:].reshape(8, 8)
    assert (fine == NEGATIVE).all()
    assert (coarse == 0).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]


def test_a_cell_takes_the_smallest_of_the_boxes_that_want_it() -> None:
    large, small = [8, 8, 20, 20], [12.8, 12.8, 14.8, 14.8]
    places = FREE.places(SHAPES)[:1]
    matches = match_centers(boxes_of(large, small), places, radius=1.5, cells=4.0).reshape(16, 16)
    # Cells 5 to 8 are centred at 11, 13, 15 and 17, within one and a half strides of 14; the small box holds 13 alone.
    assert (matches == 1).nonzero().tolist() == [[6, 6]]
    around = [[i, j] for i in range(5, 9) for j in range(5, 9)]
    assert (matches == 0).nonzero().tolist() == [cell for cell in around if cell != [6, 6]]


@both_grids
@every
def test_a_perfect_box_costs_nothing(builder: Callable[..., BoxLoss], grid: AnchorGrid) -> None:
    """Boxes of the places themselves are wrong, those of the truth are right; only scores are left to cost."""
    boxes = boxes_of([8, 8, 16, 14], [20, 18, 29, 30])
    places, matches = torch.cat(grid.places(SHAPES)), match(grid, boxes)
    codes = torch.zeros_like(places)
    codes[matches >= 0] = grid.encode(boxes[matches[matches >= 0]], places[matches >= 0])
    logits = torch.full((1, len(places), 2), -30.0)
    logits[0, matches >= 0, 1] = 30.0
    output = {"scores": as_levels(logits, grid), grid.codes: as_levels(codes[None], grid)}
    terms = builder(smooth_l1_weight=1.0)(output, [Truth(boxes, torch.tensor([1, 1]))], grid)
    assert set(terms) == {"scores", "giou", "smooth_l1"}
    assert all(float(value) == pytest.approx(0, abs=1e-4) for value in terms.values())
    wrong = {**output, grid.codes: [level + 0.5 for level in output[grid.codes]]}
    terms = builder(smooth_l1_weight=1.0)(wrong, [Truth(boxes, torch.tensor([1, 1]))], grid)
    assert float(terms["giou"]) > 0.05 and float(terms["smooth_l1"]) == pytest.approx(0.5 - 0.05, abs=1e-4)


def test_the_focal_loss_by_hand() -> None:
    """One class, p = ½ everywhere: a positive costs ¼·¼·ln 2, a negative ¾·¼·ln 2, divided by the positives."""
    output = {"scores": [torch.zeros(1, 1, *s) for s in SHAPES], "faces": [torch.zeros(1, 4, *s) for s in SHAPES]}
    boxes = boxes_of([8, 8, 24, 24])
    positives = int((match(FREE, boxes) >= 0).sum())
    found = focal_giou()(output, [Truth(boxes, torch.tensor([0]))], FREE)["scores"]
    negatives = 16 * 16 + 8 * 8 - positives
    expected = (0.25 * positives + 0.75 * negatives) * 0.25 * math.log(2) / positives
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_hard_negatives_by_hand() -> None:
    """Of p = ½ everywhere, and one negative at 0.9: with a pool of one, the two negatives of a lone positive hold the worst."""
    scores = [torch.zeros(1, 1, *s) for s in SHAPES]
    scores[0][0, 0, 0, 0] = math.log(9)
    output = {"scores": scores, "faces": [torch.zeros(1, 4, *s) for s in SHAPES]}
    loss = hard_negative_giou(sampled=3, positive=1 / 3, pool=1.0)
    found = loss(output, [truth_of([8, 8, 24, 24])], FREE)["scores"]
    assert float(found) == pytest.approx((math.log(2) + math.log(2) - math.log(0.1)) / 3, rel=1e-5)


def test_quality_asks_for_the_overlap_as_the_score() -> None:
    """Scores equal to the IoU of their own boxes cost only their entropy's slope: the gradient there is zero."""
    boxes = boxes_of([8, 8, 24, 24])
    places, matches = torch.cat(FREE.places(SHAPES)), match(FREE, boxes)
    codes = torch.ones(1, len(places), 4)
    worth = iou(FREE.decode(codes[0], places)[matches >= 0], boxes.expand(int((matches >= 0).sum()), 4))
    assert float(worth.min()) > 0.05 and float(worth.max()) < 0.95
    logits = torch.full((1, len(places), 1), -30.0)
    logits[0, matches >= 0, 0] = torch.logit(worth)
    output = {"scores": as_levels(logits, FREE), "faces": as_levels(codes, FREE)}
    assert float(quality_giou()(output, [truth_of([8, 8, 24, 24])], FREE)["scores"]) == pytest.approx(0, abs=1e-5)
    higher = {**output, "scores": as_levels(logits + 1, FREE)}
    assert float(quality_giou()(higher, [truth_of([8, 8, 24, 24])], FREE)["scores"]) > 1e-3


@every
@both_grids
def test_a_batch_without_lesions_teaches_scores_alone(builder: Callable[..., BoxLoss], grid: AnchorGrid) -> None:
    output = output_of(grid, batch=2)
    terms = builder(smooth_l1_weight=1.0)(output, [truth_of(), truth_of()], grid)
    total(terms).backward()
    assert terms["giou"].item() == 0 and terms["smooth_l1"].item() == 0 and terms["scores"].item() > 0
    assert all(level.grad is not None and float(level.grad.abs().max()) == 0 for level in output[grid.codes])
    assert any(float(level.grad.abs().max()) > 0 for level in output["scores"])


@every
@both_grids
def test_one_sample_may_lack_what_another_has(builder: Callable[..., BoxLoss], grid: AnchorGrid) -> None:
    output = output_of(grid, batch=2)
    total(builder()(output, [truth_of(), truth_of([8, 8, 16, 14], classes=[1])], grid)).backward()
    touched = [
        float(level.grad[i].abs().max()) > 0 for i in (0, 1) for level in output[grid.codes] if level.grad is not None
    ]
    assert touched[:2] == [False, False] and any(touched[2:])


@every
@both_grids
def test_terms_are_float32_and_gradients_finite_in_bfloat16(builder: Callable[..., BoxLoss], grid: AnchorGrid) -> None:
    output = output_of(grid)
    low = {
        name: [(20 * level.detach()).bfloat16().requires_grad_() for level in levels] for name, levels in output.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        terms = builder(smooth_l1_weight=1.0)(low, [truth_of([8, 8, 16, 14], classes=[1])], grid)
    total(terms).backward()
    assert all(value.dtype == torch.float32 and value.ndim == 0 and value.isfinite() for value in terms.values())
    assert all(level.grad is not None and level.grad.isfinite().all() for levels in low.values() for level in levels)


@both_grids
def test_places_in_an_ignored_region_have_no_gradient_unless_a_lesion_is_theirs(grid: AnchorGrid) -> None:
    output = output_of(grid)
    truth = truth_of([8, 8, 16, 14], ignore=boxes_of([0, 0, 32, 32]))
    focal_giou()(output, [truth], grid)["scores"].backward()
    gradient = grid.rows([level.grad for level in output["scores"] if level.grad is not None])[0].abs().amax(1)
    assert torch.equal(gradient > 0, match(grid, truth.boxes) >= 0)


@both_grids
def test_a_step_against_the_gradient_lowers_the_loss(grid: AnchorGrid) -> None:
    output, loss = output_of(grid), focal_giou(smooth_l1_weight=1.0)
    truth = [truth_of([8, 8, 16, 14], [20, 18, 29, 30], classes=[1, 0])]
    before = total(loss(output, truth, grid))
    before.backward()
    moved = {
        name: [x.detach() - 0.05 * x.grad for x in levels if x.grad is not None] for name, levels in output.items()
    }
    assert total(loss(moved, truth, grid)).item() < before.item()


def test_terms_are_weighted_and_left_out_at_zero() -> None:
    output, truth = output_of(FREE), [truth_of([8, 8, 16, 14])]
    once, twice = focal_giou()(output, truth, FREE), focal_giou(score_weight=2, giou_weight=0.5)(output, truth, FREE)
    torch.testing.assert_close(twice["scores"], 2 * once["scores"])
    torch.testing.assert_close(twice["giou"], 0.5 * once["giou"])
    assert list(focal_giou(giou_weight=0)(output, truth, FREE)) == ["scores"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: focal_giou(score_weight=-1), "must not be negative nor all zero"),
        (lambda: focal_giou(score_weight=0, giou_weight=0), "nor all zero"),
        (lambda: focal_giou(candidates=1), "2 or more candidates"),
        (lambda: hard_negative_giou(positive=1.0), "between 0 and 1"),
        (lambda: focal_giou()(output_of(FREE, batch=2), [truth_of()], FREE), "boxes of 2 samples, found 1"),
        (
            lambda: focal_giou()(output_of(FREE), [truth_of([8, 8, 16, 14], classes=[2])], FREE),
            r"2 classes, a box is of class 2 \(from 0\)",
        ),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        call()


@every
def test_losses_can_be_sent_to_another_process(builder: Callable[..., BoxLoss]) -> None:
    output, truth = output_of(FREE), [truth_of([8, 8, 16, 14])]
    loss = builder()
    torch.manual_seed(0)
    expected = total(loss(output, truth, FREE))
    torch.manual_seed(0)
    torch.testing.assert_close(total(pickle.loads(pickle.dumps(loss))(output, truth, FREE)), expected)
