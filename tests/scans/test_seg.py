from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from medseg.scans import read_mask, turn_onto
from medseg.scans.dicom import native_grid
from medseg.scans.find import find_one
from medseg.scans.reading import ScanError
from medseg.scans.seg import segments
from medseg.scans.segments import Segment
from medseg.structures import LabelTable, Source
from medseg.volume import Geometry, Volume, reorient
from tests.annotation_factory import write_seg
from tests.dicom_factory import affine_of, native_positions, write_series

SHAPE = (13, 9, 6)  # 117 pixels: frames of one bit a pixel do not begin with a byte
AFFINE = affine_of(SHAPE)
GRID = Geometry(SHAPE, AFFINE)
TABLE = LabelTable({2: "liver", 5: "left kidney"})


def masks(shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    """Two organs side by side on some planes; nothing on the first and the last."""
    liver, kidney = np.zeros(shape, bool), np.zeros(shape, bool)
    liver[1:6, 2:8, 1:4] = True
    kidney[7:11, 3:6, 2:5] = True
    liver[2, 3, 1] = False
    return {"Liver": liver, "LEFT_Kidney": kidney}


def truth(found: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(2 * found["Liver"] + 5 * found["LEFT_Kidney"])


def source(*paths: Path, key: str = "") -> Source:
    return Source("seg", paths, key)


@pytest.mark.parametrize("kind", ["binary", "fractional", "labelmap"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "oblique"])
def test_every_kind_lies_where_its_frames_say(tmp_path: Path, kind: Any, plane: str) -> None:
    affine = affine_of(SHAPE, plane, "FFS")
    path = write_seg(tmp_path / "seg.dcm", masks(), affine, kind=kind)
    mask, _ = read_mask(source(path), Geometry(SHAPE, affine), TABLE)
    np.testing.assert_array_equal(mask, truth(masks()))
    assert mask.dtype == np.uint8


def test_names_decide_and_not_numbers(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE, numbers=[7, 3])
    assert segments(path) == (Segment(7, "Liver"), Segment(3, "LEFT_Kidney"))
    np.testing.assert_array_equal(read_mask(source(path), GRID, TABLE)[0], truth(masks()))
    numbers, _ = read_mask(source(path), GRID)
    np.testing.assert_array_equal(numbers, 7 * masks()["Liver"] + 3 * masks()["LEFT_Kidney"])


def test_an_image_stored_along_other_axes_gets_the_same_voxels(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE)
    for codes in ("RAS", "LPS", "SPR", "ILA"):
        turned = reorient(Volume(truth(masks())[None], GRID), codes)
        mask, geometry = read_mask(source(path), turned.geometry, TABLE)
        np.testing.assert_array_equal(mask, turned.data[0])
        assert geometry is turned.geometry


def test_without_an_image_the_frames_span_a_grid_of_their_own(tmp_path: Path) -> None:
    found = masks()
    found["Liver"][..., 3] = found["LEFT_Kidney"][..., 3] = False  # a plane without a frame, between others
    path = write_seg(tmp_path / "seg.dcm", found, AFFINE)
    mask, geometry = read_mask(source(path), labels=TABLE)
    np.testing.assert_array_equal(mask, truth(found)[..., 1:5])
    assert geometry.matches(GRID.cropped((0, 0, 1), (*SHAPE[:2], 5)))


def test_half_a_fraction_is_inside(tmp_path: Path) -> None:
    fractions = np.zeros(SHAPE)
    fractions[1:5, 0, 0] = 0.2, 0.49, 0.51, 1.0
    path = write_seg(tmp_path / "seg.dcm", {"Liver": fractions}, AFFINE, kind="fractional")
    assert read_mask(source(path), GRID, TABLE)[0][:6, 0, 0].tolist() == [0, 0, 0, 2, 2, 0]


@pytest.mark.parametrize("kind", ["fractional", "labelmap"])
def test_compressed_frames_are_the_same(tmp_path: Path, kind: Any) -> None:
    path = write_seg(
        tmp_path / "seg.dcm",
        masks(),
        AFFINE,
        kind=kind,
        change=lambda ds: ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False),
    )
    np.testing.assert_array_equal(read_mask(source(path), GRID, TABLE)[0], truth(masks()))


def test_where_segments_overlap_the_later_of_the_table_is_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = masks()
    found["LEFT_Kidney"][5:7, 3:6, 2:5] = True  # 1 × 3 × 2 of them in the liver
    path = write_seg(tmp_path / "seg.dcm", found, AFFINE)
    expected = np.where(found["LEFT_Kidney"], 5, 2 * found["Liver"])
    np.testing.assert_array_equal(read_mask(source(path), GRID, TABLE)[0], expected)
    assert "overlap in 6 voxels" in caplog.text
    other = LabelTable({1: "left kidney", 2: "liver"})
    expected = np.where(found["Liver"], 2, found["LEFT_Kidney"])
    np.testing.assert_array_equal(read_mask(source(path), GRID, other)[0], expected)


def test_regions_overlap_by_intent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, core = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    whole[2:9, 2:7, 1:5] = True
    core[4:6, 3:5, 2:4] = True
    path = write_seg(tmp_path / "seg.dcm", {"Core": core, "Whole": whole}, AFFINE)
    table = LabelTable({1: "edema", 2: "necrosis"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    np.testing.assert_array_equal(read_mask(source(path), GRID, table)[0], whole + 1 * core)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_segment_that_nothing_names_is_refused_unless_it_marks_nothing(tmp_path: Path, kind: Any) -> None:
    table = LabelTable({1: "liver"})
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE, kind=kind)
    with pytest.raises(ScanError, match=r"holds 'LEFT_Kidney', which nothing names; known are liver") as caught:
        read_mask(source(path), GRID, table)
    assert caught.value.kind == "unknown_label"
    only = {**masks(), "LEFT_Kidney": np.zeros(SHAPE, bool)}
    path = write_seg(tmp_path / "seg.dcm", only, AFFINE, kind=kind, empty_frames=True)
    np.testing.assert_array_equal(read_mask(source(path), GRID, table)[0], only["Liver"])


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_segment_that_the_file_does_not_describe_is_refused(tmp_path: Path, kind: Any) -> None:
    def forget(ds: Dataset) -> None:
        del ds.SegmentSequence[1]

    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE, kind=kind, change=forget)
    for table in (TABLE, None):
        with pytest.raises(ScanError, match="holds segment 2, which it does not describe"):
            read_mask(source(path), GRID, table)


def test_an_ignored_region_is_a_segment_of_that_name(tmp_path: Path) -> None:
    found = {"Liver": masks()["Liver"], "Ignore": masks()["LEFT_Kidney"]}
    path = write_seg(tmp_path / "seg.dcm", found, AFFINE)
    mask, _ = read_mask(source(path), GRID, LabelTable({1: "liver"}, ignore=255))
    np.testing.assert_array_equal(mask, found["Liver"] + 255 * found["Ignore"])


def test_several_files_are_one_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [write_seg(tmp_path / f"{name}.dcm", {name: mask}, AFFINE) for name, mask in masks().items()]
    np.testing.assert_array_equal(read_mask(source(*paths), GRID, TABLE)[0], truth(masks()))
    assert not caplog.records
    with pytest.raises(ScanError, match="several SEG files have no grid of their own"):
        read_mask(source(*paths), labels=TABLE)


def test_frames_of_a_tilted_series_are_sheared_with_it(tmp_path: Path) -> None:
    shape = (20, 24, 8)
    affine = affine_of(shape, spacing=(1.0, 1.0, 3.0))
    found = {"Liver": np.zeros(shape, bool)}
    found["Liver"][4:15, 5:19, 1:7] = np.random.default_rng(0).random((11, 14, 6)) > 0.4
    images = write_series(tmp_path / "ct", np.zeros(shape, np.int16), affine, tilt_degrees=17.0)
    origins = native_positions(affine, shape[2], 17.0)
    path = write_seg(tmp_path / "seg.dcm", found, affine, images=images, origins=origins)
    grid = native_grid(find_one(tmp_path / "ct").source, {})
    assert grid.geometry.shape != shape
    mask, _ = read_mask(source(path), grid.geometry, LabelTable({1: "liver"}))
    assert mask.sum() == found["Liver"].sum()
    np.testing.assert_array_equal(grid.sample_back(mask), found["Liver"])


def test_frames_of_an_uneven_series_lie_on_the_slices_that_were_made_of_them(tmp_path: Path) -> None:
    affine = affine_of(SHAPE, spacing=(1.0, 1.0, 2.0))
    depths = [0.0, 2.0, 4.0, 6.0, 10.0, 12.0]  # a slice is missing
    images = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), affine, depths_mm=depths)
    origins = native_positions(affine, SHAPE[2], depths_mm=depths)
    path = write_seg(tmp_path / "seg.dcm", masks(), affine, images=images, origins=origins)
    grid = native_grid(find_one(tmp_path / "ct").source, {"uneven": "resample"})
    mask, _ = read_mask(source(path), grid.geometry, TABLE)
    assert mask.shape[2] == 7
    np.testing.assert_array_equal(mask[..., [0, 1, 2, 3, 5, 6]], truth(masks()))


def test_an_image_of_other_voxels_takes_the_nearest_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE)
    fine = GRID.reshaped((26, 18, 12))
    mask, _ = read_mask(source(path), fine, TABLE)
    np.testing.assert_array_equal(mask, truth(masks()).repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert "other voxels" in caplog.text


def test_labels_beyond_the_image_are_counted_and_an_image_elsewhere_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE)
    part = GRID.cropped((4, 1, 0), (13, 9, 6))
    np.testing.assert_array_equal(read_mask(source(path), part, TABLE)[0], truth(masks())[4:, 1:])
    lost = np.count_nonzero(truth(masks())[:4])
    assert f"{lost} of {np.count_nonzero(truth(masks()))} labelled voxels lie beyond the image" in caplog.text
    with pytest.raises(ScanError, match="none of its") as caught:
        read_mask(source(path), GRID.cropped((40, 0, 0), (50, 9, 6)), TABLE)
    assert caught.value.kind == "outside_image"
    with pytest.raises(ScanError, match="oblique to the grid") as caught:
        read_mask(source(path), Geometry(SHAPE, affine_of(SHAPE, "oblique")), TABLE)
    assert caught.value.kind == "grids_differ"


def test_a_single_thick_plane_covers_one_slice_of_its_own_series(tmp_path: Path) -> None:
    found = {"Liver": np.zeros(SHAPE, bool)}
    found["Liver"][2:5, 2:5, 3] = True

    def thick(ds: Dataset) -> None:
        ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 10.0

    path = write_seg(tmp_path / "seg.dcm", found, AFFINE, step=False, change=thick)
    np.testing.assert_array_equal(read_mask(source(path), GRID, TABLE)[0], 2 * found["Liver"])


def set_tiled(ds: Dataset) -> None:
    ds.DimensionOrganizationType = "TILED_FULL"


def forget_places(ds: Dataset) -> None:
    for frame in ds.PerFrameFunctionalGroupsSequence:
        del frame.PlanePositionSequence


def cut_pixels(ds: Dataset) -> None:
    ds.PixelData = ds.PixelData[: len(ds.PixelData) // 4 * 2]


def claim_frames(ds: Dataset) -> None:
    ds.NumberOfFrames = 2_000_000_000


def claim_size(ds: Dataset) -> None:
    ds.Rows = ds.Columns = 65535


def spread(ds: Dataset) -> None:
    ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1e30]


def turn_a_frame(ds: Dataset) -> None:
    turn = Dataset()
    turn.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]
    ds.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [turn]


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (set_tiled, "unsupported", "whole slide"),
        (forget_places, "no_position", "do not say where they lie"),
        (cut_pixels, "truncated", "expected .* bytes, found"),
        (claim_frames, "truncated", "expected 29,250,000,000 bytes"),
        (claim_size, "truncated", "expected .* bytes, found"),
        (spread, "unreadable", "span"),
        (turn_a_frame, "unsupported", "several orientations"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(tmp_path: Path, spoil: Any, kind: str, words: str) -> None:
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE, change=spoil)
    with pytest.raises(ScanError, match=words) as caught:
        read_mask(source(path), labels=TABLE)
    assert caught.value.kind == kind
    assert "Secret" not in str(caught.value)


def test_a_picture_has_no_seg(tmp_path: Path) -> None:
    path = write_seg(tmp_path / "seg.dcm", masks(), AFFINE)
    with pytest.raises(ScanError, match="the image is a picture"):
        read_mask(source(path), Geometry.from_spacing((13, 9), (1, 1)), TABLE)


def test_the_segmentations_of_another_writer_are_read(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    import pydicom
    from highdicom.sr.coding import CodedConcept

    images = write_series(tmp_path / "ct", np.zeros(SHAPE, np.int16), AFFINE)
    found = masks()
    found["LEFT_Kidney"][5, 3:6, 2:4] = True
    stack = np.stack([np.moveaxis(mask, (0, 1, 2), (2, 1, 0)) for mask in found.values()], -1).astype(np.uint8)
    tissue = CodedConcept("85756007", "SCT", "Tissue")
    described = [
        highdicom.seg.SegmentDescription(n, name, tissue, tissue, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL)
        for n, name in enumerate(found, 1)
    ]
    written = highdicom.seg.Segmentation(
        [pydicom.dcmread(path) for path in images],
        stack,
        highdicom.seg.SegmentationTypeValues.BINARY,
        described,
        highdicom.UID(),
        1,
        highdicom.UID(),
        1,
        "A",
        "B",
        "1",
        "2",
    )
    written.save_as(tmp_path / "seg.dcm")
    mask, _ = read_mask(source(tmp_path / "seg.dcm"), GRID, TABLE)
    np.testing.assert_array_equal(mask, np.where(found["LEFT_Kidney"], 5, 2 * found["Liver"]))


@pytest.mark.shared_data
def test_a_real_seg_equals_the_mask_that_it_was_made_from(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    folder = shared_data / "dicom" / "seg_ct3"
    image = native_grid(find_one(folder / "ct").source, {}).geometry
    mask, geometry = read_mask(source(folder / "liver.dcm"), image, LabelTable({1: "liver"}))
    expected, grid = read_mask(find_one(folder / "liver_seg.nrrd").source)
    turn = turn_onto(geometry, grid)
    assert turn is not None
    np.testing.assert_array_equal(mask, turn.apply(expected))
    assert mask.sum() == 107098
    assert not caplog.records
