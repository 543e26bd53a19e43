from __future__ import annotations

import numpy as np
import pytest

from medseg.scans.contours import between, inside

SQUARE = np.array([[2.0, 1.0], [6.0, 1.0], [6.0, 4.0], [2.0, 4.0]])


def brute_force(polygons: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The rule spelt out: a centre is inside if an odd number of edges crosses its line at or before it."""
    found = np.zeros(shape, bool)
    for i, j in np.ndindex(shape):
        for vertices in polygons:
            for one, two in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
                (x0, y0), (x1, y1) = (one, two) if one[1] <= two[1] else (two, one)
                if y0 <= j < y1 and x0 + (j - y0) / (y1 - y0) * (x1 - x0) <= i:
                    found[i, j] = not found[i, j]
    return found


def test_a_centre_on_the_boundary_is_inside_on_the_side_of_smaller_indices() -> None:
    found = inside([SQUARE], (9, 6))
    assert np.argwhere(found).min(0).tolist() == [2, 1]
    assert np.argwhere(found).max(0).tolist() == [5, 3]
    assert found.sum() == 4 * 3


@pytest.mark.parametrize("seed", range(8))
def test_polygons_of_any_shape_fill_as_the_rule_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-4, 14, (n, 2)).round(seed % 3) for n in (3, 6, 9)]
    np.testing.assert_array_equal(inside(polygons, (10, 11)), brute_force(polygons, (10, 11)))


def test_neither_the_direction_nor_the_first_vertex_matters() -> None:
    rng = np.random.default_rng(1)
    polygon = rng.uniform(0, 20, (9, 2))
    found = inside([polygon], (20, 20))
    assert 0 < found.sum() < 400
    np.testing.assert_array_equal(inside([polygon[::-1]], (20, 20)), found)
    np.testing.assert_array_equal(inside([np.roll(polygon, 4, axis=0)], (20, 20)), found)


def test_polygons_that_share_edges_share_no_voxel_and_leave_none_out() -> None:
    centre = np.array([4.0, 4.0])
    corners = np.array([[0.0, 0.0], [8.0, 0.0], [8.0, 8.0], [0.0, 8.0]])
    parts = [inside([np.stack([corners[n - 1], corners[n], centre])], (9, 9)) for n in range(4)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), inside([corners], (9, 9)))


def test_a_hole_is_the_same_as_a_keyhole() -> None:
    outer = np.array([[0.5, 0.5], [11.5, 0.5], [11.5, 10.5], [0.5, 10.5]])
    hole = np.array([[3.5, 3.5], [7.5, 3.5], [7.5, 8.5], [3.5, 8.5]])
    ring = inside([outer, hole], (13, 12))
    assert ring.sum() == 11 * 10 - 4 * 5
    keyhole = np.concatenate([outer, outer[:1], hole[::-1], hole[-1:]])
    np.testing.assert_array_equal(inside([keyhole], (13, 12)), ring)


def test_what_lies_beyond_the_plane_is_cut_off_and_takes_no_memory() -> None:
    far = np.array([[-1e5, -1e5], [1e5, -1e5], [1e5, 1e5], [-1e5, 1e5]])
    assert inside([far], (5, 7)).all()
    assert not inside([far + 3e5], (5, 7)).any()
    assert not inside([], (5, 7)).any()


def disc(radius: float, spacing: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    i, j = np.indices((81, 81)) - 40
    return np.asarray((i * spacing[0]) ** 2 + (j * spacing[1]) ** 2 < radius**2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 0.8)])
def test_between_two_discs_lies_the_disc_of_the_radius_between(spacing: tuple[float, float]) -> None:
    found = between(disc(8, spacing), disc(16, spacing), 0.25, spacing)
    expected = disc(10, spacing)
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.98


def test_at_its_ends_the_shape_between_is_the_shape_itself() -> None:
    one, two = disc(8), np.roll(disc(12), 5, axis=0)
    np.testing.assert_array_equal(between(one, two, 0.0, (1, 1)), one)
    np.testing.assert_array_equal(between(one, two, 1.0, (1, 1)), two)
    assert not between(one, np.zeros_like(one), 0.5, (1, 1)).any()
