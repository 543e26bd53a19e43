"""A heat map is kept as it is: raw values where they belong, a picture that says what its colours stand for, and DICOM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from medseg.errors import MedsegError
from medseg.export.dicom import DicomExport, export_maps
from medseg.export.dicom_source import Algorithm, dicom_source
from medseg.export.heat_maps import heat_overlay, stems, value_map, write_heat_map
from medseg.export.slices import LEGEND_PX, TILE_PX
from medseg.scans.find import find
from medseg.structures import Case, HeatMap
from medseg.volume import Geometry, Reorientation, Volume
from tests.dicom_factory import affine_of, write_series
from tests.validators import dciodvfy_errors, parametric_map_values, placed

SHAPE = (24, 20, 12)


def scan(shape=SHAPE, spacing=(1.0, 1.0, 1.0), unit="mm") -> Volume:
    data = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    return Volume(data, Geometry.from_spacing(shape, spacing, unit))


def heat(volume: Volume, low: float = 0.0, high: float = 3.5, at=None) -> HeatMap:
    """Faint noise, and one strong cube."""
    values = np.random.default_rng(1).uniform(low, 0.01, volume.geometry.shape).astype(np.float32)
    at = at or tuple(slice(n - 4, n - 1) for n in volume.geometry.shape)
    values[at] = high
    return HeatMap("a", "lesion-1", "layer_cam", values, volume.geometry)


def red_minus_blue(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (pixels[..., 0] - pixels[..., 2])[:-LEGEND_PX]


def test_a_volume_keeps_its_raw_values_and_its_grid(tmp_path):
    volume = scan(spacing=(0.7, 0.9, 2.5))
    made = heat(volume, low=-0.3)
    path = write_heat_map(made, tmp_path / "heatmap_lesion-1")
    assert path.name == "heatmap_lesion-1.nii.gz"
    read = nib.load(path)
    assert read.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asanyarray(read.dataobj), made.values)
    np.testing.assert_allclose(read.affine, volume.geometry.affine)


def test_a_picture_keeps_its_raw_values_as_a_tiff_of_floats(tmp_path):
    made = heat(scan((20, 12), (1.0, 1.0), "px"), low=-0.3)
    path = write_heat_map(made, tmp_path / "heatmap_class-malignant")
    assert path.name == "heatmap_class-malignant.tif"
    with Image.open(path) as image:
        assert image.mode == "F"
        np.testing.assert_array_equal(np.asarray(image).T, made.values)


def test_a_map_with_nan_is_refused_by_name(tmp_path):
    made = heat(scan())
    made.values[0, 0, 0] = np.nan
    with pytest.raises(MedsegError, match="case 'a': the heat map of lesion-1 by layer_cam holds NaN"):
        write_heat_map(made, tmp_path / "heatmap")
    assert not list(tmp_path.iterdir())


def test_names_are_safe_and_never_shared():
    found = stems(["label-../../etc/x", "label-a b", "label-a_b", "lesion-1"])
    assert found["lesion-1"] == "heatmap_lesion-1"
    assert found["label-a b"] == "heatmap_label-a_b"
    assert len(set(found.values())) == 4
    assert all("/" not in name and name.startswith("heatmap_") for name in found.values())


def test_slices_go_through_the_peak_and_show_it_on_the_right_side(tmp_path):
    volume = scan((32, 32, 32))
    made = heat(volume, at=(slice(2, 6), slice(26, 30), slice(14, 18)))  # left, anterior
    path = heat_overlay(volume, made, tmp_path / "h.png")
    assert Image.open(path).size == (3 * TILE_PX, TILE_PX + LEGEND_PX)
    rows, columns = np.nonzero(red_minus_blue(path)[:, :TILE_PX] > 60)
    assert columns.min() > TILE_PX * 0.75  # the patient's left
    assert rows.max() < TILE_PX * 0.25  # anterior is up


def test_the_picture_is_the_same_however_the_scan_is_stored(tmp_path):
    volume = scan()
    made = heat(volume)
    turn = Reorientation((2, 0, 1), (True, False, True))
    turned = Volume(turn.apply(volume.data), turn.apply_to_geometry(volume.geometry))
    one = heat_overlay(volume, made, tmp_path / "1.png")
    two = heat_overlay(
        turned, replace(made, values=turn.apply(made.values), geometry=turned.geometry), tmp_path / "2.png"
    )
    assert one.read_bytes() == two.read_bytes()


def test_what_speaks_against_has_the_opposite_colour(tmp_path):
    volume = scan((32, 24), (1.0, 1.0), "px")
    made = heat(volume, low=-0.01, at=(slice(0, 8), slice(0, 6)))
    made.values[24:, 18:] = -made.values.max()
    shown = red_minus_blue(heat_overlay(volume, made, tmp_path / "h.png"))
    height = shown.shape[0]
    margin = (2 * TILE_PX - height * 24 // 32) // 2
    assert (shown[margin + 20 : margin + 60, 20:60] > 60).all()
    assert (shown[height - margin - 60 : height - margin - 20, -60:-20] < -60).all()


def test_where_there_is_no_evidence_the_scan_shows_as_it_is(tmp_path):
    volume = scan()
    nothing = HeatMap("a", "label-x", "occlusion", np.zeros(SHAPE, np.float32), volume.geometry)
    assert (red_minus_blue(heat_overlay(volume, nothing, tmp_path / "h.png")) == 0).all()


def test_the_legend_tells_maps_of_other_raw_values_apart(tmp_path):
    volume = scan()
    made = heat(volume)
    pictures = []
    for number, factor in enumerate((1.0, 1000.0)):
        scaled = replace(made, values=np.float32(factor) * made.values)
        pictures.append(np.asarray(Image.open(heat_overlay(volume, scaled, tmp_path / f"{number}.png"))))
    np.testing.assert_array_equal(pictures[0][:-LEGEND_PX], pictures[1][:-LEGEND_PX])
    assert (pictures[0][-LEGEND_PX:] != pictures[1][-LEGEND_PX:]).any()


def test_one_voxel_far_beyond_all_others_does_not_hide_them(tmp_path):
    volume = scan((64, 64), (1.0, 1.0), "px")
    made = heat(volume, at=(slice(0, 32), slice(0, 32)))
    made.values[63, 63] = 1e6
    shown = red_minus_blue(heat_overlay(volume, made, tmp_path / "h.png"))
    assert (shown[:200, :200] > 60).all()


def test_a_parametric_map_holds_the_values_and_says_by_what_method(tmp_path):
    write_series(tmp_path / "scan", np.arange(np.prod(SHAPE)).reshape(SHAPE), affine_of(SHAPE))
    source = find(tmp_path / "scan").sources[0].source
    case = Case("a", (source,))
    volume = scan()
    made = heat(volume, low=-0.3)
    (tmp_path / "probability_1-x.dcm").touch()
    how = {"options": DicomExport(), "plan_options": {}, "algorithm": Algorithm("test model", "5eed")}
    export_maps([value_map(made, "heatmap_lesion-1")], case, tmp_path, **how)
    path = tmp_path / "heatmap_lesion-1.dcm"
    assert dciodvfy_errors(path) == []
    read, affine, _ = parametric_map_values(path)
    geometry = dicom_source(source, {}).geometry
    np.testing.assert_array_equal(placed(read.astype(np.float32), affine, geometry), made.values)
    written = pydicom.dcmread(path)
    assert written.ContentDescription == "layer_cam for lesion-1"
    assert written.SeriesNumber % 10 == 5  # behind that of the probability
