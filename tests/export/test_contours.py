from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseg.export.contours import outlines
from medseg.volume import Array


def drawn(picture: str) -> Array:
    """A mask from lines of ``#`` and ``.``."""
    return np.array([[letter == "#" for letter in row] for row in picture.split()])


def ring(radius: float, width: float, size: int = 41) -> Array:
    distance = np.hypot(*(np.indices((size, size)) - size // 2))
    return np.asarray((distance <= radius) & (distance > radius - width))


SHAPES = {
    "a single pixel": drawn("... .#. ..."),
    "the only pixel there is": drawn("#"),
    "a pixel in each corner": drawn("#..# .... #..#"),
    "the whole plane": np.ones((5, 7), bool),
    "a horizontal line": drawn("..... .###. ....."),
    "a vertical line": drawn("... .#. .#. .#. ..."),
    "a diagonal line": np.eye(6, dtype=bool),
    "two diagonals that cross": np.eye(7, dtype=bool) | np.eye(7, dtype=bool)[::-1],
    "a checkerboard": np.indices((7, 8)).sum(axis=0) % 2 == 0,
    "a disc": ring(15.5, 99),
    "a ring": ring(15.5, 6),
    "a thin ring": ring(15.5, 1),
    "rings within rings": ring(18.5, 4) | ring(12.5, 3) | ring(7.5, 2) | ring(2.5, 99),
    "holes side by side": drawn("######### #.#.#.#.# ######### #.#.#.#.# #########"),
    "a hole that begins behind and above another": drawn("####### #####.# #.###.# #####.# ####### #######"),
    "holes that touch by a corner": drawn("###### #.#### ##.### ###.## ######"),
    "a hole that touches the outside by a corner": drawn(".##### #.#### ###### ######"),
    "a hole of several rows": drawn("####### ##..### #....## #.##.## ##..### #######"),
    "an island that touches the lake's shore by a corner": drawn("##### #...# #.#.# #..## #####"),
    "a comb": np.indices((9, 41))[1] % 2 == 0,
}
NOISE = [np.random.default_rng(seed).random((9, 11)) < 0.1 + 0.08 * seed for seed in range(11)]


def even_odd(polygons: list[Array], shape: tuple[int, ...]) -> Array:
    """Which pixel centres lie inside, by the number of edges that a ray to the right meets: the rule in its plainest form."""
    rows, columns = np.indices(shape)
    inside = np.zeros(shape, bool)
    for vertices in polygons:
        for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
            if y0 != y1:
                inside ^= ((y0 > rows) != (y1 > rows)) & (columns < x0 + (rows - y0) / (y1 - y0) * (x1 - x0))
    return inside


def area(vertices: Array) -> float:
    """Gauss's formula; positive where a walk keeps the inside on its right."""
    x, y = vertices.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2


@pytest.mark.parametrize("mask", [*SHAPES.values(), *NOISE], ids=[*SHAPES, *(f"noise {n}" for n in range(len(NOISE)))])
def test_a_pixel_centre_rule_turns_outlines_back_into_the_mask(mask: Array) -> None:
    polygons = outlines(mask)
    np.testing.assert_array_equal(even_odd(polygons, mask.shape), mask)
    filled_alone = [even_odd([polygon], mask.shape) for polygon in polygons]
    np.testing.assert_array_equal(
        np.sum(filled_alone, axis=0), mask
    )  # none overlaps another, so that a union is right too


@pytest.mark.parametrize("mask", [*SHAPES.values(), *NOISE])
def test_a_region_is_one_polygon_of_its_area(mask: Array) -> None:
    labelled, count = ndimage.label(mask)
    found = sorted(area(polygon) for polygon in outlines(mask))
    assert len(found) == count
    np.testing.assert_allclose(found, np.sort(np.bincount(labelled.ravel())[1:]), atol=1e-9)


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES)
def test_vertices_are_corners_of_pixels_at_which_the_outline_turns(mask: Array) -> None:
    for polygon in outlines(mask):
        np.testing.assert_array_equal(polygon % 1, 0.5)
        steps = np.roll(polygon, -1, axis=0) - polygon
        assert ((steps != 0).sum(axis=1) == 1).all()
        straight = np.sign(steps) == np.sign(np.roll(steps, 1, axis=0))
        assert not straight.all(axis=1).any()


def test_an_empty_mask_has_no_outline() -> None:
    assert outlines(np.zeros((4, 5), bool)) == []


def test_outlines_lie_where_the_mask_lies_and_leave_it_alone() -> None:
    large = np.zeros((30, 50), bool)
    large[20:22, 30:34] = True
    turned = large.T
    (polygon,) = outlines(turned)
    assert sorted(map(tuple, polygon.tolist())) == [(19.5, 29.5), (19.5, 33.5), (21.5, 29.5), (21.5, 33.5)]
    assert np.count_nonzero(large) == 8
