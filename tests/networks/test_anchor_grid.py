"""Places lie on cells, rows run as places do, and codes become the boxes they were made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg.errors import MedsegError
from medseg.networks.anchor_grid import AnchorGrid, candidates, decode_deltas, encode_deltas

TWO = AnchorGrid.of([(1, 1), (2, 2), (1, 2)], [1, 2], [[(3, 4), (6, 2)], [(8, 8)]])
THREE = AnchorGrid.of([(1, 1, 1), (1, 2, 2), (2, 2, 2)], [0, 2], [[(2, 4, 4)], [(4, 8, 8), (8, 9, 10)]])
FREE = AnchorGrid.of([(1, 1, 1), (1, 2, 2), (2, 2, 2)], [1, 2])
SHAPES = {2: [(4, 6), (4, 3)], 3: [(4, 8, 8), (2, 2, 2)]}
every = pytest.mark.parametrize("grid", [TWO, THREE, FREE], ids=["2D", "3D", "anchor-free"])


def random_boxes(like: Tensor, seed: int = 0) -> Tensor:
    """Boxes around the centres of ``like``, a third to three times its size."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = like.chunk(2, -1)
    growth = torch.rand(2, *lower.shape, generator=generator) * 1.3 + 0.2
    center, half = (lower + upper) / 2, (upper - lower) / 2
    return torch.cat((center - growth[0] * half, center + growth[1] * half), -1)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_the_first_cell_is_centred_at_half_its_stride(stride: int) -> None:
    grid = AnchorGrid(((stride, stride),), (((5.0, 7.0),),))
    (places,) = grid.places([(3, 3)])
    assert ((places[0, :2] + places[0, 2:]) / 2).tolist() == [stride / 2, stride / 2]
    assert ((places[-1, :2] + places[-1, 2:]) / 2).tolist() == [2.5 * stride, 2.5 * stride]
    assert (places[:, 2:] - places[:, :2]).unique(dim=0).tolist() == [[5.0, 7.0]]


def test_cells_without_anchors_tile_the_input() -> None:
    fine, coarse = FREE.places([(4, 4, 4), (2, 2, 2)])
    for cells in (fine, coarse):
        assert cells[0, :3].tolist() == [0, 0, 0] and cells[-1, 3:].tolist() == [4, 8, 8]
        assert (cells[:, 3:] - cells[:, :3]).prod(1).sum() == 4 * 8 * 8
    assert fine[1].tolist() == [0, 0, 2, 1, 2, 4]  # the last axis runs fastest
    assert coarse[1].tolist() == [0, 0, 4, 2, 4, 8]


def test_strides_are_products_of_the_plans_up_to_each_level() -> None:
    assert TWO.strides == ((2, 2), (2, 4)) and THREE.strides == ((1, 1, 1), (2, 4, 4))
    assert TWO.per_cell == (2, 1) and FREE.per_cell == (1, 1)
    assert FREE.anchor_free and not TWO.anchor_free


@every
def test_rows_run_as_places_do(grid: AnchorGrid) -> None:
    """Each place writes its own centre and size into its channels; as rows they stand beside that place."""
    shapes = SHAPES[grid.dimensions]
    places = grid.places(shapes)
    levels = []
    for place, shape, count in zip(places, shapes, grid.per_cell, strict=True):
        cells = place.reshape(*shape, count * 2 * grid.dimensions)
        levels.append(torch.stack([cells.movedim(-1, 0), 2 * cells.movedim(-1, 0)]))
    rows = grid.rows(levels)
    torch.testing.assert_close(rows, torch.stack([torch.cat(places), 2 * torch.cat(places)]))


def test_channel_a_times_c_is_class_c_of_anchor_a() -> None:
    level = torch.zeros(1, 2 * 3, 4, 6)
    level[0, 1 * 3 + 2, 3, 5] = 7  # anchor 1, class 2, the last cell
    rows = TWO.rows([level, torch.zeros(1, 3, 4, 3)])
    assert rows.shape == (1, 4 * 6 * 2 + 4 * 3, 3)
    assert rows.nonzero().tolist() == [[0, 4 * 6 * 2 - 1, 2]]


@every
def test_decoding_what_was_encoded_gives_the_box(grid: AnchorGrid) -> None:
    places = torch.cat(grid.places(SHAPES[grid.dimensions]))
    boxes = random_boxes(places)
    torch.testing.assert_close(grid.decode(grid.encode(boxes, places), places), boxes, atol=1e-4, rtol=1e-5)


@every
def test_boxes_have_a_finite_positive_size_whatever_the_head_says(grid: AnchorGrid) -> None:
    places = torch.cat(grid.places(SHAPES[grid.dimensions]))
    for low in (-1e4, 1e4):
        codes = torch.zeros_like(places)
        codes[:, grid.dimensions :] = low
        if grid.anchor_free:
            codes[:] = low
        lower, upper = grid.decode(codes, places).chunk(2, -1)
        assert lower.isfinite().all() and upper.isfinite().all() and (upper > lower).all()


def test_deltas_by_hand_and_as_in_monai() -> None:
    anchor, box = torch.tensor([[0.0, 0.0, 4.0, 8.0]]), torch.tensor([[2.0, 3.0, 10.0, 7.0]])
    # Centres (2, 4) and (6, 5), sizes (4, 8) and (8, 4).
    expected = torch.tensor([[4 / 4, 1 / 8, math.log(2), -math.log(2)]])
    torch.testing.assert_close(encode_deltas(box, anchor), expected)
    from monai.apps.detection.utils.box_coder import BoxCoder

    anchors = torch.cat(THREE.places(SHAPES[3]))
    boxes = random_boxes(anchors)
    coder = BoxCoder([1.0] * 6)
    codes = encode_deltas(boxes, anchors)
    torch.testing.assert_close(codes, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode_deltas(codes, anchors), coder.decode_single(codes, anchors))


def test_faces_by_hand() -> None:
    """The cell 4…8 is centred at 6: a box 2…14 has its faces one and two strides away."""
    grid = AnchorGrid(((4, 4),))
    cell = torch.tensor([[4.0, 4.0, 8.0, 8.0]])
    codes = torch.tensor([[math.log(math.expm1(0.99))] * 2 + [math.log(math.expm1(1.99))] * 2])
    torch.testing.assert_close(grid.encode(torch.tensor([[2.0, 2.0, 14.0, 14.0]]), cell), codes)
    torch.testing.assert_close(grid.decode(codes, cell), torch.tensor([[2.0, 2.0, 14.0, 14.0]]))


def test_a_box_beside_its_cells_centre_is_encoded_as_near_as_can_be() -> None:
    grid = AnchorGrid(((4, 4),))
    cell = torch.tensor([[4.0, 4.0, 8.0, 8.0]])
    found = grid.decode(grid.encode(torch.tensor([[6.5, 5.0, 7.5, 7.0]]), cell), cell)
    torch.testing.assert_close(found, torch.tensor([[6 - 0.08, 5.0, 7.5, 7.0]]))


def planted(grid: AnchorGrid, *, nan: bool = False) -> dict[str, list[Tensor]]:
    scores = [torch.full((2, 2 * n, *s), -20.0) for n, s in zip(grid.per_cell, SHAPES[grid.dimensions], strict=True)]
    deltas = [torch.zeros(2, 4 * n, *s) for n, s in zip(grid.per_cell, SHAPES[grid.dimensions], strict=True)]
    scores[0][0, 1 * 2 + 1, 2, 3] = 3.0  # sample 0, anchor 1 (6 × 2), class 1, cell (2, 3)
    scores[1][0, 0, 0, 1] = 1.0  # sample 0, the coarse anchor, class 0, cell (0, 1)
    if nan:
        scores[1][0, 0, 1, 1] = math.nan
    return {"scores": scores, "deltas": deltas}


@pytest.mark.parametrize("nan", [False, True], ids=["clean", "with a NaN"])
def test_candidates_come_by_falling_score_with_class_and_box(nan: bool) -> None:
    first, second = candidates(planted(TWO, nan=nan), TWO)
    torch.testing.assert_close(first.scores, torch.tensor([3.0, 1.0]).sigmoid())
    assert first.classes.tolist() == [1, 0]
    # Cell (2, 3) at stride 2 is centred at (5, 7); cell (0, 1) at strides 2 × 4 at (1, 6).
    assert first.boxes.tolist() == [[2, 6, 8, 8], [-3, 2, 5, 10]]
    assert len(second.boxes) == 0 and second.boxes.shape[1] == 4


def test_no_more_candidates_are_kept_than_asked_for() -> None:
    found = candidates(planted(TWO), TWO, keep=1)[0]
    assert found.classes.tolist() == [1]
    assert len(candidates(planted(TWO), TWO, above=0.9)[0].boxes) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": []}, "ascending levels of 0…2"),
        ({"levels": [1, 0]}, "ascending levels"),
        ({"levels": [3]}, r"found \[3\]"),
        ({"levels": [0, 1], "anchors": [[(1, 1)]]}, "anchors for each of 2 levels"),
        ({"levels": [0], "anchors": [[]]}, "one or more anchors"),
        ({"levels": [0], "anchors": [[(1, 1, 1)]]}, "2 positive numbers"),
        ({"levels": [0], "anchors": [[(1, 0)]]}, "2 positive numbers"),
    ],
)
def test_numbers_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        AnchorGrid.of([(1, 1), (2, 2), (2, 2)], **arguments)


def test_channels_that_do_not_fit_the_anchors_are_named() -> None:
    with pytest.raises(MedsegError, match="3 channels are no multiple of 2 anchors"):
        TWO.rows([torch.zeros(1, 3, 4, 6), torch.zeros(1, 3, 4, 3)])
