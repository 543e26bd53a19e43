"""Every real DICOM series of the shared data against its reference NIfTI: the same grid and the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest

from medseg.scans import read_mask, read_volume
from medseg.scans.find import Found, FoundSource, find
from medseg.volume import Geometry, Volume, reorient

pytestmark = pytest.mark.shared_data

SERIES = (
    "ge/anatomical/001",
    "ge/anatomical/001_implicit",
    "ge/anatomical/001_single_slice",
    "ge/dti/001",
    "ge/dti/001_implicit",
    "ge/dti/002",
    "ge/fmri/001",
    "ge/fmri/001_implicit",
    "generic/anatomical/001",
    "generic/anatomical/001_implicit",
    "generic/anatomical/002_non_isotropic",
    "generic/compressed/001",
    "generic/compressed_j2k/001",
    "generic/compressed_jpeg/001",
    "generic/compressed_jpegls/001",
    "generic/compressed_rle/001",
    "generic/rgb/001",
)


def reference(path: Path) -> list[Volume]:
    """The volumes of a NIfTI file, one a time point, in RAS+ order of axes."""
    image: Any = nib.load(path)
    raw = np.asarray(image.dataobj)
    channels = np.stack([raw[name] for name in "RGB"]) if raw.dtype.names else raw[None]
    times = np.moveaxis(channels, -1, 0) if channels.ndim == 5 else channels[None]
    return [reorient(Volume(time, Geometry(time.shape[1:], image.affine)), "RAS") for time in times]


def agree(entry: FoundSource, truth: Volume) -> None:
    ours = reorient(read_volume(entry.source), "RAS")
    assert ours.geometry.shape == truth.geometry.shape
    np.testing.assert_allclose(ours.geometry.affine, truth.geometry.affine, atol=1e-3)
    np.testing.assert_allclose(ours.data, truth.data, rtol=1e-6)


def dice(one: Any, two: Any) -> float:
    return float(2 * np.logical_and(one, two).sum() / (np.count_nonzero(one) + np.count_nonzero(two)))


def test_no_series_of_the_shared_data_is_forgotten(shared_data: Path) -> None:
    root = shared_data / "dicom"
    found = {
        path.relative_to(root).as_posix().split("_ground_truth")[0] for path in root.rglob("*_ground_truth.nii.gz")
    }
    assert found == set(SERIES)


@pytest.mark.parametrize("stored", ["", "_reoriented"])
@pytest.mark.parametrize("series", SERIES)
def test_a_series_lies_on_its_reference_and_holds_its_values(shared_data: Path, series: str, stored: str) -> None:
    folder = shared_data / "dicom" / series
    truth = reference(folder.parent / f"{folder.name}_ground_truth{stored}.nii.gz")
    found = find(folder)
    assert found.unread == () and found.annotations == ()
    assert len(found.sources) == len(truth)  # fMRI and DTI: a case a time point
    assert len({entry.id for entry in found.sources}) == len(truth)
    for entry, volume in zip(sorted(found.sources, key=lambda entry: entry.source.key), truth, strict=True):
        agree(entry, volume)


def transfer_syntaxes(shared_data: Path) -> Found:
    return find(shared_data / "dicom" / "transfer_syntaxes" / "In")


def test_a_mosaic_in_every_transfer_syntax_lies_on_its_reference(shared_data: Path) -> None:
    found = transfer_syntaxes(shared_data)
    assert sorted(entry.source.files[0].stem for entry in found.sources) == list("123456789")
    assert found.unread == ()
    for entry in found.sources:
        assert entry.slices == 35 and len(entry.source.distinct_files) == 1
        (truth,) = reference(shared_data / "dicom" / "transfer_syntaxes" / "Ref" / f"{entry.source.files[0].stem}.nii")
        agree(entry, truth)


def test_all_transfer_syntaxes_are_equal(shared_data: Path) -> None:
    first, *others = (read_volume(entry.source) for entry in transfer_syntaxes(shared_data).sources)
    assert first.data.max() > 0
    for other in others:
        np.testing.assert_array_equal(other.data, first.data)
        assert other.geometry.matches(first.geometry, 1e-9)


@pytest.mark.parametrize("patient", ["STS_003", "STS_004"])
def test_pet_and_its_contours_equal_the_nifti_of_the_same_patient(shared_data: Path, patient: str) -> None:
    found = find(shared_data / "dicom" / "sarcoma_rtstruct" / patient / "PET")
    (entry,), (contours,) = found.sources, found.annotations
    agree(entry, *reference(shared_data / "sarcoma_pet" / "images" / f"{patient}.nii.gz"))
    assert contours.source.kind == "rtstruct" and contours.series == (entry.series,)
    volume = read_volume(entry.source)
    mask, geometry = read_mask(contours.source, volume.geometry)
    (truth,) = reference(shared_data / "sarcoma_pet" / "masks" / f"{patient}.nii.gz")
    ours = reorient(Volume(mask[None], geometry), "RAS")
    assert truth.data.sum() > 800
    assert dice(ours.data, truth.data) >= 0.999


@pytest.mark.parametrize("patient", ["STS_003", "STS_004"])
def test_the_tumour_is_as_large_on_mr_as_on_pet(shared_data: Path, patient: str) -> None:
    """There is no reference mask of the MR series; its contours are those of PET, moved between frames of reference."""
    sizes = []
    for modality in ("PET", "MR_T1"):
        found = find(shared_data / "dicom" / "sarcoma_rtstruct" / patient / modality)
        (entry,), (contours,) = found.sources, found.annotations
        mask, geometry = read_mask(contours.source, read_volume(entry.source).geometry)
        sizes.append(mask.sum() * geometry.voxel_volume)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_a_segmentation_equals_the_nrrd_of_the_same_labels(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "seg_ct3"
    found = find(folder)
    (segmentation,) = found.annotations
    (ct,) = (entry for entry in found.sources if entry.source.kind == "dicom")
    (label,) = (entry for entry in found.sources if entry.source.kind == "nrrd")
    assert segmentation.source.kind == "seg"
    image = read_volume(ct.source)
    mask, geometry = read_mask(segmentation.source, image.geometry)
    expected, _ = read_mask(label.source, image.geometry)
    assert geometry.matches(image.geometry, 1e-9)
    assert np.count_nonzero(expected) > 1000
    np.testing.assert_array_equal(mask, expected)
    raw, _ = nrrd.read(str(folder / "liver_seg.nrrd"))  # by another hand
    assert np.count_nonzero(raw) == np.count_nonzero(mask)
