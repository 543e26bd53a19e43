"""A parametric map holds the very values, where they belong, and says what they measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from medseg.errors import MedsegError
from medseg.export import parametric_map
from medseg.export.anatomy import AnatomyTable
from medseg.export.dicom_source import Algorithm, DicomSource, dicom_source
from medseg.export.parametric_map import Quantity, attribution_by, probability_of, write_parametric_map
from medseg.scans.find import find
from medseg.volume import Array
from tests.dicom_factory import affine_of, write_series
from tests.validators import dciodvfy_errors, parametric_map_values, placed

SHAPE = (17, 13, 6)
STATES: dict[str, dict[str, Any]] = {
    "axial": {},
    "coronal, feet first, reversed": {"plane": "coronal", "patient_position": "FFS", "order": "reversed"},
    "oblique, enhanced": {"plane": "oblique", "modality": "MR", "layout": "enhanced", "order": "shuffled"},
    "one slice": {"shape": (17, 13, 1)},
}


def a_source(folder: Path, *, plane: str = "axial", shape: tuple[int, ...] = SHAPE, **made: Any) -> DicomSource:
    volume = np.arange(np.prod(shape)).reshape(shape)
    write_series(folder, volume, affine_of(shape, plane, made.get("patient_position", "HFS")), **made)
    return dicom_source(find(folder).sources[0].source, {})


def values_on(source: DicomSource) -> Array:
    return np.random.default_rng(2).normal(size=source.geometry.shape).astype(np.float32)


def write(values: Array, source: DicomSource, path: Path, quantity: Quantity | None = None) -> pydicom.Dataset:
    given = quantity or probability_of("liver")
    algorithm = Algorithm("test model", "5eed")
    write_parametric_map(values, source, path, quantity=given, algorithm=algorithm, anatomy=AnatomyTable.load())
    return pydicom.dcmread(path)


@pytest.mark.parametrize("state", STATES)
def test_others_read_the_same_values_at_the_same_place(state: str, tmp_path: Path) -> None:
    source, path = a_source(tmp_path / "scan", **STATES[state]), tmp_path / "map.dcm"
    values = values_on(source)
    write(values, source, path)
    assert dciodvfy_errors(path) == []
    read, affine, _ = parametric_map_values(path)
    np.testing.assert_array_equal(placed(read.astype(np.float32), affine, source.geometry), values)


def test_a_mended_series_gets_its_values_on_the_slices_as_they_were_scanned(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan", tilt_degrees=14.0)
    assert source.grid.resampled
    values = values_on(source)
    read = write(values, source, tmp_path / "map.dcm")
    assert dciodvfy_errors(tmp_path / "map.dcm") == []
    np.testing.assert_array_equal(read.pixel_array, source.mask_planes(values))
    for dataset, group in zip(source.datasets, read.PerFrameFunctionalGroupsSequence, strict=True):
        place = group.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.array(place, float), np.array(dataset.ImagePositionPatient, float), atol=1e-6)
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == dataset.SOPInstanceUID


@pytest.mark.parametrize(
    ("quantity", "measured", "region"),
    [
        (probability_of("liver tumour"), "Fractional Probabilistic Segmentation", "Liver"),
        (probability_of("edema"), "Fractional Probabilistic Segmentation", "Anatomical Structure"),
        (attribution_by("Grad-CAM", "spleen"), "Gradient-weighted class activation", "Spleen"),
        (attribution_by("layer_cam", "spleen"), "Class activation", "Spleen"),
        (attribution_by("occlusion", "pneumonia"), "Saliency", "Anatomical Structure"),
    ],
)
def test_a_map_says_what_it_measures(quantity: Quantity, measured: str, region: str, tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    values = values_on(source)
    shared = write(values, source, tmp_path / "map.dcm", quantity).SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == measured
    assert mapping.LUTExplanation == quantity.explanation
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    bounds = (mapping.DoubleFloatRealWorldValueFirstValueMapped, mapping.DoubleFloatRealWorldValueLastValueMapped)
    assert bounds == (values.min(), values.max())
    assert shared.FrameAnatomySequence[0].AnatomicRegionSequence[0].CodeMeaning == region


def test_the_same_values_give_the_same_file_and_others_another(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    values = values_on(source)
    one = write(values, source, tmp_path / "one.dcm")
    write(np.asfortranarray(values.astype(np.float64)), source, tmp_path / "two.dcm")
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()
    values[0, 0, 0] += 1
    assert write(values, source, tmp_path / "two.dcm").SOPInstanceUID != one.SOPInstanceUID


def test_a_constant_map_has_a_window(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    read = write(np.zeros(SHAPE, np.float32), source, tmp_path / "map.dcm")
    assert read.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0].WindowWidth == 1
    assert dciodvfy_errors(tmp_path / "map.dcm") == []


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(odd: float, tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan")
    values = values_on(source)
    values[3, 3, 3] = odd
    with pytest.raises(MedsegError, match=r"map\.dcm: expected finite values"):
        write(values, source, tmp_path / "map.dcm")
    assert not (tmp_path / "map.dcm").exists()


def test_a_picture_has_no_parametric_map(tmp_path: Path) -> None:
    source = a_source(tmp_path / "scan", modality="CR", layout="picture", shape=(17, 13, 1), signed=False)
    with pytest.raises(MedsegError, match="no place in the patient"):
        write(np.zeros(source.geometry.shape, np.float32), source, tmp_path / "map.dcm")


def test_too_much_for_one_object_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = a_source(tmp_path / "scan")
    monkeypatch.setattr(parametric_map, "LARGEST", 100)
    with pytest.raises(MedsegError, match="a DICOM object holds 100"):
        write(values_on(source), source, tmp_path / "map.dcm")
