from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medseg.scans import read_geometry, read_mask, turn_onto
from medseg.scans.dicom import native_grid
from medseg.scans.find import find_one
from medseg.scans.reading import ScanError
from medseg.scans.rtstruct import lies_on, rois
from medseg.scans.segments import Segment
from medseg.structures import LabelTable, Source
from medseg.volume import Geometry
from tests.annotation_factory import write_rtstruct
from tests.dicom_factory import affine_of, write_series

SHAPE = (40, 36, 12)
GRID = Geometry(SHAPE, affine_of(SHAPE, spacing=(1.0, 1.0, 2.0)))
TABLE = LabelTable({1: "tumour", 2: "kidney"})


def source(path: Path, key: str = "") -> Source:
    return Source("rtstruct", (path,), key)


def circle(k: float, radius: float, centre: tuple[float, float] = (20.0, 18.0), count: int = 90) -> np.ndarray:
    """``(N, 3)`` voxel indices of a circle on slice ``k``."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    around = np.stack([np.cos(angle), np.sin(angle)], 1) * radius + centre
    return np.concatenate([around, np.full((count, 1), k)], 1)


def rectangle(k: float, lower: tuple[float, float], upper: tuple[float, float]) -> np.ndarray:
    """Voxels ``lower`` to ``upper`` (both within) of slice ``k``: the contour runs between the voxel centres."""
    (x0, y0), (x1, y1) = np.subtract(lower, 0.5), np.add(upper, 0.5)
    return np.array([[x0, y0, k], [x1, y0, k], [x1, y1, k], [x0, y1, k]])


def write(tmp_path: Path, regions: dict[str, list[Any]], grid: Geometry = GRID, **options: Any) -> Path:
    """Contours are given in voxel indices of ``grid``."""
    placed = {
        name: [(c[0], grid.to_world(c[1])) if isinstance(c, tuple) else grid.to_world(c) for c in contours]
        for name, contours in regions.items()
    }
    return write_rtstruct(tmp_path / "rs.dcm", placed, **options)


def read(path: Path, grid: Geometry = GRID, table: LabelTable | None = TABLE) -> np.ndarray:
    return read_mask(source(path), grid, table)[0]


def disc(radius: float, centre: tuple[float, float] = (20.0, 18.0)) -> np.ndarray:
    i, j = np.indices(SHAPE[:2])
    return np.asarray((i - centre[0]) ** 2 + (j - centre[1]) ** 2 < radius**2)


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "oblique"])
def test_a_voxel_belongs_if_its_centre_lies_inside(tmp_path: Path, plane: str) -> None:
    grid = Geometry(SHAPE, affine_of(SHAPE, plane, "HFDL", spacing=(1.0, 1.3, 2.0)))
    path = write(tmp_path, {"Tumour": [circle(k, 7.3) for k in (3, 4, 5)]}, grid)
    mask = read(path, grid)
    for k in range(SHAPE[2]):
        np.testing.assert_array_equal(mask[..., k], disc(7.3) if k in (3, 4, 5) else np.zeros(SHAPE[:2]))


def test_names_decide_and_regions_without_contours_are_none(tmp_path: Path) -> None:
    path = write(
        tmp_path, {"BODY": [], " kidney ": [rectangle(2, (1, 1), (3, 3))], "TUMOUR": [rectangle(2, (8, 8), (9, 9))]}
    )
    assert rois(path) == (Segment(2, "kidney"), Segment(3, "TUMOUR"))
    mask = read(path)
    assert np.bincount(mask.ravel()).tolist() == [mask.size - 13, 4, 9]
    assert (mask[1:4, 1:4, 2] == 2).all()
    numbers = read(path, table=None)
    assert set(np.unique(numbers)) == {0, 2, 3}


def test_a_contour_within_a_contour_is_a_hole_and_an_island_in_it_is_none(tmp_path: Path) -> None:
    rings = [circle(4, 14.2), circle(4, 9.1), circle(4, 3.3)]
    mask = read(write(tmp_path, {"tumour": rings}))[..., 4]
    np.testing.assert_array_equal(mask, disc(14.2) & ~disc(9.1) | disc(3.3))
    xor = [("CLOSEDPLANAR_XOR", ring) for ring in rings]
    np.testing.assert_array_equal(read(write(tmp_path, {"tumour": xor}))[..., 4], mask)


def test_a_keyhole_is_a_hole(tmp_path: Path) -> None:
    outer, inner = rectangle(4, (5, 5), (20, 20)), rectangle(4, (9, 8), (14, 15))
    keyhole = np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])
    mask = read(write(tmp_path, {"tumour": [keyhole]}))[..., 4]
    assert mask.sum() == 16 * 16 - 6 * 8
    assert not mask[9:15, 8:16].any()


def test_several_contours_on_a_slice_are_several_parts(tmp_path: Path) -> None:
    parts = [circle(4, 5.2, (9.0, 9.0)), circle(4, 4.4, (28.0, 25.0))]
    mask = read(write(tmp_path, {"tumour": parts}))[..., 4]
    np.testing.assert_array_equal(mask, disc(5.2, (9.0, 9.0)) | disc(4.4, (28.0, 25.0)))


def test_regions_that_overlap_keep_the_later_and_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    regions = {"kidney": [rectangle(4, (2, 2), (9, 9))], "tumour": [rectangle(4, (8, 8), (12, 12))]}
    mask = read(write(tmp_path, regions))
    assert np.bincount(mask.ravel())[1:].tolist() == [25 - 4, 64]
    assert "overlap in 4 voxels" in caplog.text


def test_a_region_that_nothing_names_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"tumour": [circle(4, 5.3)], "Couch": [circle(5, 5.0)]})
    with pytest.raises(ScanError, match="holds 'Couch', which nothing names; known are tumour, kidney") as caught:
        read(path)
    assert caught.value.kind == "unknown_label"


def test_slices_between_contour_planes_are_interpolated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cone, drawn on every second slice."""
    path = write(tmp_path, {"tumour": [circle(k, 4.3 + k) for k in (1, 3, 5, 7, 9)]})
    mask = read(path)
    assert [k for k in range(SHAPE[2]) if mask[..., k].any()] == list(range(1, 10))
    for k in (1, 3, 5, 7, 9):
        np.testing.assert_array_equal(mask[..., k], disc(4.3 + k))
    for k in (2, 4, 6, 8):
        assert dice(mask[..., k] > 0, disc(4.3 + k)) > 0.97
    assert "4 slices between contours were interpolated" in caplog.text


def test_parts_that_lie_apart_are_not_joined(tmp_path: Path) -> None:
    path = write(tmp_path, {"tumour": [circle(k, 6.0) for k in (1, 2, 3, 8, 9)]})
    mask = read(path)
    assert [k for k in range(SHAPE[2]) if mask[..., k].any()] == [1, 2, 3, 8, 9]


def test_contours_of_another_series_are_sampled_on_the_slices_of_this_one(tmp_path: Path) -> None:
    """A ball of 9 mm, drawn every 1.5 mm, on slices of 2 mm that lie elsewhere."""
    grid = Geometry.from_spacing((40, 36, 12), (1.0, 1.0, 2.0))
    depths = np.arange(12.2 - 8.25, 12.2 + 9, 1.5)
    contours = [circle(z / 2, float(np.sqrt(81 - (z - 12.2) ** 2))) for z in depths if abs(z - 12.2) < 9]
    mask = read(write(tmp_path, {"tumour": contours}, grid), grid) > 0
    i, j, k = np.indices(SHAPE)
    ball = (i - 20) ** 2 + (j - 18) ** 2 + (2 * k - 12.2) ** 2 < 81
    assert dice(mask, ball) > 0.97


def test_contours_far_apart_reach_half_their_distance_beyond_the_last(tmp_path: Path) -> None:
    path = write(tmp_path, {"tumour": [circle(k, 6.0) for k in (2.5, 5.5, 8.5)]})
    mask = read(path)
    assert [k for k in range(SHAPE[2]) if mask[..., k].any()] == list(range(2, 10))


def test_points_and_open_contours_are_passed_over_with_a_remark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    point, line = np.array([[3.0, 3.0, 4.0]]), circle(4, 12.0)
    regions = {"tumour": [("POINT", point), ("OPEN_PLANAR", line), circle(4, 5.3), circle(6, 5.0)[:2], circle(4, 5.3)]}
    mask = read(write(tmp_path, regions))
    np.testing.assert_array_equal(mask[..., 4], disc(5.3))
    for words in ("1 POINT", "1 OPEN_PLANAR", "1 the same contour twice", "less than three points"):
        assert words in caplog.text
    path = write(tmp_path, {"isocentre": [("POINT", point)], "tumour": [circle(4, 5.3)]})
    assert read(path).sum() == disc(5.3).sum()


@pytest.mark.parametrize("regions", [{}, {"tumour": []}, {"tumour": [("POINT", np.zeros((1, 3)))]}])
def test_an_rtstruct_that_encloses_nothing_is_a_fault(tmp_path: Path, regions: dict[str, list[Any]]) -> None:
    with pytest.raises(ScanError, match="without any closed contour") as caught:
        read(write(tmp_path, regions))
    assert caught.value.kind == "empty_annotation"


def test_contours_beyond_the_image_are_counted_and_all_of_them_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, {"tumour": [circle(k, 6.0) for k in range(2, 9)]})
    part = GRID.cropped((0, 0, 4), (40, 36, 8))
    np.testing.assert_array_equal(read(path, part), read(path)[..., 4:8])
    assert "3 of 7 contours lie on planes beyond the image" in caplog.text
    with pytest.raises(ScanError, match="none of its 7 contours lies in the image") as caught:
        read(path, GRID.cropped((0, 0, 9), (40, 36, 12)))
    assert caught.value.kind == "outside_image"


def test_contours_that_lie_oblique_to_the_image_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"tumour": [circle(4, 6.0)]})
    with pytest.raises(ScanError, match="1 of 1 contours lie in no plane") as caught:
        read(path, Geometry(SHAPE, affine_of(SHAPE, "oblique")))
    assert caught.value.kind == "oblique_contours"
    with pytest.raises(ScanError, match="picture"):
        read(path, Geometry.from_spacing((3, 3), (1, 1)))
    with pytest.raises(ScanError, match="no grid of their own"):
        read_mask(source(path))


def no_number(ds: Dataset) -> None:
    ds.ROIContourSequence[0].ContourSequence[0].ContourData = ["1e30"] * 9


def no_name(ds: Dataset) -> None:
    ds.StructureSetROISequence = []


def test_what_cannot_be_read_is_refused_and_what_can_is_not(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no place in a patient"):
        read(write(tmp_path, {"tumour": [circle(4, 5.3)]}, change=no_number))
    path = write(tmp_path, {"tumour": [circle(4, 5.3)]}, change=no_name)
    assert rois(path) == (Segment(1, "roi_1"),)
    (tmp_path / "rs.dcm").write_bytes(path.read_bytes()[:900])
    with pytest.raises(ScanError):
        read(path)


def test_contours_of_a_tilted_series_lie_on_the_grid_that_was_made_of_it(tmp_path: Path) -> None:
    affine = affine_of(SHAPE, spacing=(1.0, 1.0, 2.0))
    write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), affine, tilt_degrees=12.0)
    grid = native_grid(find_one(tmp_path / "ct").source, {})
    path = write(tmp_path, {"tumour": [circle(k, 6.3, (20.0, 17.0)) for k in range(2, 9)]}, grid.geometry)
    mask = read(path, grid.geometry)
    assert mask.sum() == 7 * disc(6.3, (20.0, 17.0)).sum()


def test_contours_lie_on_an_image_whose_slices_they_are_drawn_on(tmp_path: Path) -> None:
    path = write(tmp_path, {"tumour": [circle(k, 6.0) for k in (2, 5)]})
    assert lies_on(path, GRID)
    assert not lies_on(path, GRID.cropped((0, 0, 4), SHAPE))
    assert not lies_on(path, GRID.reshaped((40, 36, 8)))
    assert not lies_on(path, GRID.cropped((18, 0, 0), SHAPE))


@pytest.mark.shared_data
@pytest.mark.parametrize(("patient", "voxels"), [("STS_003", 817), ("STS_004", 5962)])
def test_real_contours_give_the_masks_that_others_made_of_them(shared_data: Path, patient: str, voxels: int) -> None:
    folder = shared_data / "dicom" / "sarcoma_rtstruct" / patient / "PET"
    geometry = read_geometry(find_one(folder / "image").source)
    mask, _ = read_mask(source(folder / "mask" / "RS.dcm"), geometry, LabelTable({1: "GTV mass PET"}))
    expected, grid = read_mask(find_one(shared_data / "sarcoma_pet" / "masks" / f"{patient}.nii.gz").source)
    turn = turn_onto(geometry, grid)
    assert turn is not None
    assert mask.sum() == voxels
    assert dice(mask > 0, turn.apply(expected) > 0) >= 0.999
