from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.scans.grid import Grid, grid_of
from medseg.scans.headers import Slice
from medseg.scans.reading import ScanError

SPACING = (0.8, 0.9, 2.5)
OBLIQUE = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
TO_RAS = np.array([-1.0, -1.0, 1.0])


def slices_at(
    depths: Sequence[float],
    *,
    tilt: float = 0.0,
    sideways: Sequence[Sequence[float]] | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    matrix: tuple[int, int] = (40, 36),
    **more: Any,
) -> list[Slice]:
    """Slices at ``depths`` mm along the normal, shifted down by the tilt, or ``sideways`` (mm along row, column)."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    along, found = np.cross(row, column), []
    for k, depth in enumerate(depths):
        across, down = (0.0, np.tan(np.radians(tilt)) * depth) if sideways is None else sideways[k]
        place = np.array([-20.0, 31.0, 7.0]) + depth * along + across * row + down * column
        found.append(
            Slice(
                path=Path(f"IM{k:04d}"),
                series="1.2",
                study="",
                patient="",
                modality="CT",
                description="",
                instance=str(k),
                number=k,
                matrix=(matrix[1], matrix[0], 1),
                orientation=tuple(map(float, orientation)),
                position=tuple(map(float, place)),
                pixel_spacing=(SPACING[1], SPACING[0]),
                thickness=99.0,
            )
        )
    return [replace(entry, **more) for entry in found]


def voxels_of(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """World coordinates ``(*shape, 3)`` of voxel centres."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return np.asarray(index @ affine[:3, :3].T + affine[:3, 3])


def on_planes(grid: Grid, values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A function of the world on the native planes, ``(I, J, K)``."""
    places = [voxels_of(plane, (*grid.shape[:2], 1))[:, :, 0] for plane in grid.planes]
    return values(np.stack(places, axis=2))


def wave(world: np.ndarray) -> np.ndarray:
    """A smooth phantom of values up to 1; its waves are 30 mm long, some 35 pixels."""
    x, y, z = np.moveaxis(world, -1, 0) * 2 * np.pi / 30
    return np.asarray(np.sin(x + 0.3) * np.cos(y) * np.cos(0.4 * z))


def reached(grid: Grid, margin: float = 0.5) -> np.ndarray:
    """Which voxels of the grid the native planes reach."""
    ones = np.ones((1, *grid.shape), np.float32)
    return np.asarray(grid.apply(ones, np.nan)[0] > margin)


STATES = {
    "tilt": {"tilt": 15.0},
    "the other way": {"tilt": -22.5},
    "oblique and tilted": {"tilt": 18.0, "orientation": OBLIQUE},
    "along both axes": {"sideways": [(0.71 * k, -1.3 * k) for k in range(12)]},
    "to and fro": {"sideways": [(3 * np.sin(k), 2 * np.cos(k)) for k in range(12)]},
}


@pytest.mark.parametrize("state", STATES)
def test_a_sheared_phantom_comes_back_onto_an_orthogonal_grid(state: str) -> None:
    grid = grid_of(slices_at(2.5 * np.arange(12), **STATES[state]), "series X", {})
    assert grid.resampled and len(grid.mended) == 1
    unit = grid.geometry.affine[:3, :3] / grid.geometry.spacing
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-12)
    assert grid.geometry.spacing == pytest.approx(SPACING)
    found = grid.apply(on_planes(grid, wave)[None].astype(np.float32), fill=-5.0)[0]
    assert found.shape == grid.geometry.shape and found.dtype == np.float32
    inside = reached(grid)
    expected = wave(voxels_of(grid.geometry.affine, grid.geometry.shape))
    # Cubic convolution of a wave of 35 pixels is off by less than a thousandth; at the outer two pixels, where values beyond
    # are taken as those at the border, by as much as a wave changes over half a pixel.
    inner = inside.copy()
    for axis in (0, 1):
        for shift in (-2, 2):
            inner &= np.roll(inside, shift, axis)
    assert np.abs(found - expected)[inner].max() < 1e-3
    assert np.abs(found - expected)[inside].max() < 0.1
    np.testing.assert_allclose(found[~inside], -5, rtol=1e-6)
    assert inside.sum() == np.prod(grid.shape)  # as many voxels as there were: nothing is lost


@pytest.mark.parametrize("state", STATES)
def test_a_mask_goes_to_the_grid_and_back_unchanged(state: str) -> None:
    grid = grid_of(slices_at(2.5 * np.arange(12), **STATES[state]), "series X", {})
    boxes = [np.zeros(grid.shape, np.uint8) for _ in range(2)]
    boxes[0][9:22, :, 2:9] = 1  # from border to border along one axis: interpolated corners would be rounded off
    boxes[1][:, 14:30, 1:] = 1
    for native in boxes:
        mask = (grid.apply(native[None].astype(np.float32), 0.0)[0] > 0.5).astype(np.uint8)
        assert mask.shape != native.shape
        np.testing.assert_array_equal(grid.sample_back(mask), native)
        assert grid.sample_back(mask).dtype == np.uint8


def test_a_box_in_the_patient_is_the_same_box_on_the_native_planes() -> None:
    grid = grid_of(slices_at(2.5 * np.arange(12), tilt=15.0), "series X", {})

    def box(world: np.ndarray) -> np.ndarray:
        # In y, along which the slices are shifted, the edges are rounded to whole pixels once: compared only off them.
        return np.asarray((np.abs(world - [4, -45, 20]) < [8.1, 9, 7.6]).all(axis=-1))

    back = grid.sample_back(box(voxels_of(grid.geometry.affine, grid.geometry.shape)))
    off_edge = on_planes(grid, lambda world: np.abs(np.abs(world[..., 1] + 45) - 9) > SPACING[1] / 2)
    assert off_edge.mean() > 0.9 and back.any()
    np.testing.assert_array_equal(back[off_edge], on_planes(grid, box)[off_edge])


def test_a_sound_stack_is_not_touched() -> None:
    grid = grid_of(slices_at(2.5 * np.arange(6), orientation=OBLIQUE), "series X", {})
    stack, mask = np.zeros((1, *grid.shape), np.float32), np.zeros(grid.shape, np.uint8)
    assert grid.mended == () and not grid.resampled
    assert grid.apply(stack, 0.0) is stack
    assert grid.sample_back(mask) is mask
    for k, plane in enumerate(grid.planes):
        np.testing.assert_allclose(plane[:3, 3], grid.geometry.to_world((0, 0, k)))
        np.testing.assert_allclose(plane[:3, :3], grid.geometry.affine[:3, :3])


def test_a_slight_lean_and_rounded_positions_are_left_to_the_affine() -> None:
    leaning = grid_of(slices_at(2.5 * np.arange(40), tilt=0.4), "series X", {})
    assert not leaning.resampled
    np.testing.assert_allclose(leaning.geometry.to_world((0, 0, 39)), leaning.planes[39, :3, 3])
    rounded = slices_at(2.5 * np.arange(6), sideways=[(0.05 * (k % 2), 0) for k in range(6)])
    assert not grid_of(rounded, "series X", {}).resampled


def test_a_drift_beside_a_straight_line_is_mended_even_without_tilt() -> None:
    bent = slices_at(2.5 * np.arange(11), sideways=[(2 * np.sin(k / 10 * np.pi), 0) for k in range(11)])
    grid = grid_of(bent, "series X", {})
    assert grid.resampled and "up to 2 mm beside each other" in grid.mended[0]
    assert grid.geometry.shape[0] == 40 + 3  # 2 mm are 2.5 pixels of 0.8 mm


def test_the_tilt_is_said_with_its_angle_and_the_grown_grid() -> None:
    grid = grid_of(slices_at(2.5 * np.arange(12), tilt=15.0), "series X", {})
    # tan 15° × 27.5 mm = 7.37 mm, which are 8.2 rows of 0.9 mm
    assert grid.geometry.shape == (40, 36 + 8, 12)
    assert "tilted by 15.0°" in grid.mended[0] and "40×44×12" in grid.mended[0]


def test_a_single_slice_lies_as_thick_as_it_says_and_else_1_mm_is_assumed_aloud() -> None:
    assert grid_of(slices_at([0.0], thickness=4.0), "series X", {}).geometry.spacing[2] == pytest.approx(4)
    assumed = grid_of(slices_at([0.0], thickness=None), "series X", {})
    assert assumed.geometry.spacing[2] == pytest.approx(1) and "1 mm" in assumed.mended[0]
    assert not assumed.resampled


def test_spacing_comes_from_positions_never_from_the_thickness() -> None:
    assert grid_of(slices_at([0, 3, 6], thickness=5.0), "series X", {}).geometry.spacing[2] == pytest.approx(3)


GAP = [0, 2.5, 5, 10, 12.5, 15]
UNEVEN = [0, 2, 4, 6.7, 8.7, 10.7]


@pytest.mark.parametrize(
    ("depths", "kind", "words"),
    [
        (GAP, "missing_slices", ("1 slice(s) missing", "2.5 mm apart", "5 mm between IM0002 and IM0003")),
        (UNEVEN, "uneven_slices", ("2 to 2.7 mm apart, mostly 2 mm", "2.7 mm between IM0002 and IM0003")),
    ],
)
def test_gaps_are_refused_by_name_and_filled_on_request(depths: list[float], kind: str, words: tuple[str, ...]) -> None:
    slices = slices_at(depths)
    with pytest.raises(ScanError) as caught:
        grid_of(slices, "series X", {"uneven": "refuse"})
    assert caught.value.kind == kind
    for word in ("series X", "dicom.uneven=resample", *words):
        assert word in str(caught.value)
    grid = grid_of(slices, "series X", {"uneven": "resample"})
    assert words[0] in grid.mended[0] and "linear" in grid.mended[0]
    np.testing.assert_allclose(grid.geometry.to_world((0, 0, grid.geometry.shape[2] - 1)), grid.planes[-1, :3, 3])
    # A linear function of the world is interpolated without error, a native slice on the grid is kept as it is.
    native = on_planes(grid, lambda world: world @ [1.0, -2.0, 3.0]).astype(np.float32)
    found = grid.apply(native[None], 0.0)[0]
    np.testing.assert_allclose(
        found, voxels_of(grid.geometry.affine, grid.geometry.shape) @ [1.0, -2.0, 3.0], atol=1e-4
    )
    np.testing.assert_array_equal(found[..., 0], native[..., 0])
    mask = np.zeros(grid.geometry.shape, np.uint8)
    mask[:, :, 1:3] = 1
    spacing = grid.geometry.spacing[2]
    np.testing.assert_array_equal(grid.sample_back(mask).any(axis=(0, 1)), [0.5 <= d / spacing < 2.5 for d in depths])


def test_missing_slices_are_filled_to_the_even_row_that_they_left() -> None:
    grid = grid_of(slices_at(GAP), "series X", {"uneven": "resample"})
    assert grid.geometry.shape[2] == 7 and grid.geometry.spacing[2] == pytest.approx(2.5)
    native = np.random.default_rng(0).normal(size=(1, *grid.shape)).astype(np.float32)
    found = grid.apply(native, 0.0)
    np.testing.assert_array_equal(found[..., [0, 1, 2, 4, 5, 6]], native)
    np.testing.assert_allclose(found[..., 3], native[..., 2:4].mean(axis=-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(grid.sample_back(found[0]), native[0])


def test_a_tilted_series_with_gaps_is_mended_both_ways() -> None:
    grid = grid_of(slices_at(GAP, tilt=15.0), "series X", {"uneven": "resample"})
    assert [word in " ".join(grid.mended) for word in ("15.0°", "missing")] == [True, True]
    found = grid.apply(on_planes(grid, wave)[None].astype(np.float32), 0.0)[0]
    expected = wave(voxels_of(grid.geometry.affine, grid.geometry.shape))
    middle = (slice(4, -4), slice(8, -8), slice(None))
    assert np.abs(found - expected)[middle].max() < 0.01
    native = np.zeros(grid.shape, np.float32)
    native[9:22, 14:30, 1:5] = 1
    np.testing.assert_array_equal(grid.sample_back(grid.apply(native[None], 0.0)[0] > 0.5), native > 0)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_any_pixel_type_and_colours_are_sheared(dtype: type) -> None:
    grid = grid_of(slices_at(2.5 * np.arange(5), tilt=20.0), "series X", {})
    found = grid.apply(np.full((3, *grid.shape), 1000, dtype), -1.0)
    assert found.dtype == np.float32
    assert (np.isclose(found, 1000) | (found == -1)).all()
    assert np.isclose(found, 1000).sum() == 3 * np.prod(grid.shape)


def refused(slices: list[Slice], kind: str, *words: str, **options: str) -> None:
    with pytest.raises(ScanError) as caught:
        grid_of(slices, "series X", options)
    assert caught.value.kind == kind, caught.value
    for word in ("series X: ", *words):
        assert word in str(caught.value)


def with_one(**odd: Any) -> list[Slice]:
    slices = slices_at(2.5 * np.arange(4))
    return [*slices[:2], replace(slices[2], **odd), slices[3]]


def test_what_is_no_volume_is_refused_with_the_slice_that_is_odd() -> None:
    refused(with_one(matrix=(36, 32, 1)), "mixed_matrix", "40×36 in IM0000", "32×36 in IM0002")
    refused(with_one(orientation=(1.0, 0, 0, 0, 0, -1.0)), "mixed_orientation", "IM0002")
    refused(with_one(pixel_spacing=(0.9, 0.9)), "mixed_spacing", "0.9\\0.8 mm in IM0000", "0.9\\0.9 mm in IM0002")
    refused(with_one(position=None), "no_position", "IM0002 has no ImagePositionPatient")
    refused(with_one(orientation=None), "no_position", "IM0002 has no ImageOrientationPatient")
    refused(with_one(position=(0.0, 0.0, 1e9)), "no_position", "1e+09 mm", "IM0002")
    refused(slices_at([0, 2, 4], pixel_spacing=None), "no_spacing", "IM0000 has no PixelSpacing")
    refused(slices_at([0, 2, 4], pixel_spacing=(1.0, -1.0)), "no_spacing", "1\\-1 mm")
    refused(slices_at([0, 2, 4], orientation=(1, 0, 0, 1, 0, 0)), "no_position", "1\\0\\0\\1\\0\\0", "right angle")
    refused(slices_at([0, 2, 2, 4]), "duplicate_slices", "IM0001 and IM0002 lie 0 mm apart", "remove it")
    refused(slices_at([0, 4, 2, 6]), "duplicate_slices", "ascending position")


def test_a_frame_is_named_with_its_file() -> None:
    slices = [replace(entry, path=Path("all.dcm"), frame=k) for k, entry in enumerate(slices_at(GAP))]
    refused(slices, "missing_slices", "between frame 3 of all.dcm and frame 4 of all.dcm")


def test_positions_that_make_no_volume_take_no_memory() -> None:
    refused(slices_at([0, 0.1, 0.2, 9e5]), "uneven_slices", "no volume", uneven="resample")
    apart = slices_at([0, 1, 2], sideways=[(0, 0), (9e5, 9e5), (0, 0)])
    refused(apart, "tilted", "1.273e+06 mm beside each other")


def test_pictures_are_2d_one_at_a_time() -> None:
    picture = replace(slices_at([0])[0], modality="CR", position=None, orientation=None)
    grid = grid_of([picture], "series X", {})
    assert grid.geometry.shape == (40, 36) and grid.geometry.spacing == (0.8, 0.9)
    assert grid.apply(np.zeros((1, 40, 36, 1)), 0).shape == (1, 40, 36)
    assert grid.sample_back(np.zeros((40, 36))).shape == grid.shape == (40, 36, 1)
    refused([picture, picture], "not_2d", "found 2")
    odd = grid_of([replace(picture, pixel_spacing=(-1.0, 1e300))], "series X", {})
    assert odd.geometry.unit == "px" and "makes no sense" in odd.mended[0]
