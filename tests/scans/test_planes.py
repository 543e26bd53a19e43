from __future__ import annotations

import numpy as np
import pytest

from medseg.scans.planes import Planes, fits, onto, own_grid
from medseg.scans.reading import ScanError
from medseg.volume import Geometry

GRID = Geometry.from_spacing((6, 5, 4), (1.0, 2.0, 3.0))


def planes(depths: list[float], step: float | None = None, thickness: float = 3.0, shift: float = 0.0) -> Planes:
    origins = np.array([[shift, 0.0, depth] for depth in depths])
    return Planes(origins, np.eye(3), (1.0, 2.0), (6, 5), step, thickness)


def labelled(count: int) -> np.ndarray:
    """``(P, j, i)``: the number of the plane everywhere."""
    return np.broadcast_to(np.arange(1, count + 1, dtype=np.uint8)[:, None, None], (count, 5, 6))


def column(found: np.ndarray) -> list[int]:
    assert (found == found[:1, :1]).all()
    return [int(v) for v in found[0, 0]]


def test_planes_on_the_slices_are_copied_and_the_others_are_empty() -> None:
    assert column(onto(labelled(2), planes([3.0, 9.0]), GRID, "a")) == [0, 1, 0, 2]
    assert column(onto(labelled(1), planes([6.0], thickness=20.0), GRID, "a")) == [0, 0, 1, 0]


def test_thick_planes_cover_the_slices_within_their_step() -> None:
    fine = Geometry.from_spacing((6, 5, 12), (1.0, 2.0, 1.0))
    assert column(onto(labelled(2), planes([3.0, 6.0], step=3.0), fine, "a")) == [0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0]
    assert column(onto(labelled(1), planes([4.5], thickness=2.0), fine, "a")) == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]


def test_thin_planes_are_sampled_at_the_centres_of_thick_slices(caplog: pytest.LogCaptureFixture) -> None:
    thin = planes([float(z) for z in range(10)])
    assert column(onto(labelled(10), thin, GRID, "a")) == [1, 4, 7, 10]
    assert "other voxels" in caplog.text


def test_slices_that_stand_on_a_leaning_axis_keep_their_own_pixels() -> None:
    count = 60
    lean = np.array([[1, 0, 0.025, 0], [0, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]], float)
    stack = np.random.default_rng(0).integers(0, 3, (count, 5, 6)).astype(np.uint8)
    origins = np.arange(count)[:, None] * lean[:3, 2]
    found = onto(stack, Planes(origins, np.eye(3), (1.0, 2.0), (6, 5), None, 3.0), Geometry((6, 5, count), lean), "a")
    np.testing.assert_array_equal(found, stack.transpose(2, 1, 0))


def test_planes_fit_a_grid_whose_voxels_are_theirs() -> None:
    assert fits(planes([0.0, 9.0]), GRID)
    assert not fits(planes([0.0, 12.0]), GRID)
    assert not fits(planes([0.0, 4.0]), GRID)
    assert not fits(planes([0.0], shift=0.4), GRID)
    assert not fits(planes([0.0]), Geometry.from_spacing((7, 5, 4), (1.0, 2.0, 3.0)))
    assert not fits(planes([0.0]), Geometry.from_spacing((6, 5, 4), (1.1, 2.0, 3.0)))
    turned = Geometry((6, 5, 4), np.array([[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]], float))
    assert not fits(planes([0.0]), turned)


def test_planes_span_a_grid_if_they_are_even() -> None:
    geometry = own_grid(planes([1.0, 3.0, 9.0], step=2.0), "a")
    assert (geometry.shape, geometry.spacing) == ((6, 5, 5), (1.0, 2.0, 2.0))
    with pytest.raises(ScanError, match="no even grid"):
        own_grid(planes([1.0, 3.0, 8.0], step=2.0), "a")
    with pytest.raises(ScanError, match="span"):
        own_grid(planes([1.0, 1e12], step=2.0), "a")
