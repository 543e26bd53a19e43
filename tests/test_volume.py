from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.volume import (
    Geometry,
    Reorientation,
    Volume,
    crop,
    nearest_index,
    pad,
    product_along,
    reorient,
    reorientation_to,
    resample,
    resample_array,
    resampling_matrix,
)

CODES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "IS")) for letters in itertools.product(*order)
]


def rotation(degrees: float, axis: int) -> np.ndarray:
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix


def oblique() -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = rotation(20, 2) @ rotation(-12, 0) @ np.diag([0.8, 1.0, 2.5])
    affine[:3, 3] = (-31, 12, 400)
    return Geometry((6, 5, 4), affine)


def test_spacing_and_volume_of_a_voxel_come_from_the_affine() -> None:
    geometry = oblique()
    assert geometry.spacing == pytest.approx((0.8, 1.0, 2.5))
    assert geometry.voxel_volume == pytest.approx(2.0)
    assert geometry.describe() == "6×5×4 at 0.8×1×2.5 mm"


def test_index_and_world_are_inverse() -> None:
    geometry = oblique()
    index = np.random.default_rng(0).uniform(-5, 9, (7, 3))
    np.testing.assert_allclose(geometry.to_index(geometry.to_world(index)), index, atol=1e-9)


def test_the_affine_maps_voxel_centres() -> None:
    geometry = Geometry.from_spacing((4, 4), (2, 3), "px")
    np.testing.assert_allclose(geometry.to_world((1, 1)), (2, 3))


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (np.diag([1, 1, 0, 1.0]), "singular"),
        (np.diag([1, np.nan, 1, 1.0]), "finite"),
        (np.eye(3), "4×4"),
        (np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "orthogonal"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(affine: np.ndarray, word: str) -> None:
    with pytest.raises(MedsegError, match=word):
        Geometry((3, 3, 3), affine)


def test_a_volume_whose_pixels_do_not_fit_its_grid_is_refused() -> None:
    with pytest.raises(MedsegError, match="do not fit"):
        Volume(np.zeros((1, 3, 3)), Geometry.from_spacing((3, 4), (1, 1)))


@pytest.mark.parametrize("codes", CODES)
def test_reorientation_moves_no_voxel_in_the_world(codes: str) -> None:
    geometry = oblique()
    volume = Volume(np.arange(120.0).reshape(1, 6, 5, 4), geometry)
    turned = reorient(volume, codes)
    assert turned.geometry.axis_codes == codes
    index = np.argwhere(turned.data[0] == 37)
    there = turned.geometry.to_world(index)
    np.testing.assert_allclose(there, geometry.to_world(np.argwhere(volume.data[0] == 37)), atol=1e-9)
    turn = reorientation_to(geometry, codes)
    assert (turn.inverse().apply(turned.data) == volume.data).all()
    assert turn.inverse().inverse() == turn
    back = turn.inverse().apply_to_geometry(turned.geometry)
    np.testing.assert_allclose(back.affine, geometry.affine, atol=1e-9)


def test_an_oblique_scan_at_45_degrees_still_gets_each_axis_once() -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(45, 2)
    geometry = Geometry((3, 4, 5), affine)
    assert sorted(reorientation_to(geometry, "RAS").order) == [0, 1, 2]


def test_crop_and_pad_keep_voxels_in_place() -> None:
    volume = Volume(np.arange(120.0).reshape(1, 6, 5, 4), oblique())
    part = crop(volume, (1, 2, 0), (5, 4, 3))
    np.testing.assert_allclose(part.geometry.to_world((0, 0, 0)), volume.geometry.to_world((1, 2, 0)))
    again = pad(part, (1, 2, 0), (1, 1, 1), value=-1)
    assert again.geometry.matches(volume.geometry)
    assert (again.data[:, 1:5, 2:4, 0:3] == part.data).all()
    assert (again.data == -1).sum() == 120 - 24
    with pytest.raises(MedsegError, match="leaves the grid"):
        crop(volume, (-1, 0, 0), (2, 2, 2))


def test_resampling_keeps_the_field_of_view() -> None:
    geometry = oblique()
    other = geometry.reshaped((12, 3, 9))
    for corner in itertools.product((0, 1), repeat=3):
        edge = np.array(corner) * geometry.shape - 0.5
        same = np.array(corner) * other.shape - 0.5
        np.testing.assert_allclose(geometry.to_world(edge), other.to_world(same), atol=1e-9)
    assert other.spacing == pytest.approx((0.4, 1.0 * 5 / 3, 2.5 * 4 / 9))


def test_grids_match_within_a_hundredth_of_a_voxel() -> None:
    geometry = oblique()
    moved = geometry.affine.copy()
    moved[0, 3] += 0.005
    assert geometry.matches(Geometry(geometry.shape, moved))
    moved[0, 3] += 0.1
    assert not geometry.matches(Geometry(geometry.shape, moved))
    assert not geometry.matches(geometry.reshaped((6, 5, 5)))


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(("old", "new"), [(7, 15), (15, 7), (1, 4), (4, 1), (2, 5), (40, 40)])
def test_rows_of_the_resampling_matrix_sum_to_one(order: int, old: int, new: int) -> None:
    matrix = resampling_matrix(old, new, order)
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(9, 20), (20, 9), (12, 13)])
def test_cubic_resampling_is_the_spline_of_scipy(old: int, new: int) -> None:
    line = np.random.default_rng(0).normal(size=old)
    at = (np.arange(new) + 0.5) * old / new - 0.5
    expected = ndimage.map_coordinates(line, [at], order=3, mode="mirror")
    inside = (at >= 0) & (at <= old - 1)
    np.testing.assert_allclose((resampling_matrix(old, new, 3) @ line)[inside], expected[inside], atol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_a_linear_ramp_stays_a_ramp_away_from_the_ends(order: int) -> None:
    ramp = np.arange(32.0)
    at = (np.arange(50) + 0.5) * 32 / 50 - 0.5
    out = resampling_matrix(32, 50, order) @ ramp
    inside = (at > 8) & (at < 23)
    np.testing.assert_allclose(out[inside], at[inside], atol=1e-3)


@pytest.mark.parametrize(("old", "new"), [(300, 210), (200, 333)])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_band_multiplied_by_parts_is_the_whole_matrix(old: int, new: int, axis: int) -> None:
    matrix = resampling_matrix(old, new, 3)
    assert (matrix != 0).sum(1).max() < 45
    shape = [2, 3, 4, 2]
    shape[axis] = old
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.moveaxis(np.tensordot(matrix.astype(np.float64), array, (1, axis)), 0, axis)
    np.testing.assert_allclose(product_along(array, matrix, axis), expected, atol=1e-5)


def test_long_lines_are_resampled_by_the_spline_of_scipy() -> None:
    line = np.random.default_rng(0).normal(size=500)
    at = (np.arange(733) + 0.5) * 500 / 733 - 0.5
    expected = ndimage.map_coordinates(line, [np.clip(at, 0, 499)], order=3, mode="mirror")
    found = resample_array(line.astype(np.float32), (733,), 3)
    np.testing.assert_allclose(found[2:-2], expected[2:-2], atol=1e-4)


def test_nearest_keeps_values_and_dtype() -> None:
    labels = np.random.default_rng(0).integers(0, 9, (1, 5, 6, 7)).astype(np.int16)
    out = resample_array(labels, (10, 12, 14), 0)
    assert out.dtype == np.int16
    assert (out == labels.repeat(2, 1).repeat(2, 2).repeat(2, 3)).all()
    assert nearest_index(3, 3).tolist() == [0, 1, 2]
    assert nearest_index(4, 2).tolist() == [1, 3]


def test_each_axis_is_resampled_with_its_own_order() -> None:
    data = np.random.default_rng(0).normal(size=(2, 8, 6, 4)).astype(np.float32)
    out = resample_array(data, (11, 9, 8), (3, 1, 0))
    expected = np.einsum(
        "ai,bj,cijk->cabk", resampling_matrix(8, 11, 3), resampling_matrix(6, 9, 1), data[..., nearest_index(4, 8)]
    )
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_resampling_to_the_same_shape_changes_nothing() -> None:
    volume = Volume(np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32), oblique())
    same = resample(volume, (6, 5, 4))
    assert (same.data == volume.data).all()
    assert same.geometry.matches(volume.geometry)


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(MedsegError, match="order 2"):
        resample_array(np.zeros((4, 4)), (5, 5), 2)


def test_reorientation_acts_on_the_trailing_axes() -> None:
    turn = Reorientation((1, 0), (True, False))
    array = np.arange(12).reshape(2, 2, 3)
    assert (turn.apply(array)[1] == turn.apply(array[1])).all()
    assert turn.apply(array).shape == (2, 3, 2)
