from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from monai.transforms import LoadImaged

from medseg.errors import MedsegError
from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.scans.monai_reader import MedsegReader
from tests.dicom_factory import affine_of
from tests.dicom_factory import write_series as write_synthetic


def load(*paths: Path, reader: MedsegReader | None = None) -> object:
    transform = LoadImaged(["image"], reader=reader or MedsegReader(), ensure_channel_first=True)
    return transform({"image": [str(p) for p in paths] if len(paths) > 1 else str(paths[0])})["image"]


def test_monai_loads_nifti_series_and_pictures_as_we_do(
    tmp_path: Path, write_nifti: Callable, write_series: Callable, write_picture: Callable, ramp: np.ndarray
) -> None:
    affine = np.diag([2.0, 3, 4, 1])
    image = load(write_nifti(tmp_path / "a.nii.gz", ramp, affine))
    assert tuple(image.shape) == (1, 5, 4, 3)
    np.testing.assert_allclose(image.affine, affine)
    write_series(tmp_path / "series", ramp)
    image = load(tmp_path / "series")
    np.testing.assert_array_equal(np.asarray(image)[0], ramp.transpose(1, 0, 2))
    np.testing.assert_allclose(image.affine, np.diag([-1.0, -1, 1, 1]))
    assert tuple(load(write_picture(tmp_path / "p.png", np.zeros((3, 4, 3), np.uint8))).shape) == (3, 4, 3)


def test_several_files_are_channels_of_one_grid(tmp_path: Path, write_nifti: Callable, ramp: np.ndarray) -> None:
    one, two = write_nifti(tmp_path / "a.nii", ramp), write_nifti(tmp_path / "b.nii", ramp + 1)
    assert tuple(load(one, two).shape) == (2, 5, 4, 3)
    reader = MedsegReader()
    assert reader.verify_suffix(one)
    assert not reader.verify_suffix(tmp_path / "gone.nii")
    other = write_nifti(tmp_path / "c.nii", ramp[:-1])
    with pytest.raises(MedsegError, match="different grids"):
        reader.get_data(reader.read([one, other]))


def test_frames_of_one_file_and_other_formats_load_as_read_volume_reads_them(tmp_path: Path) -> None:
    values = np.arange(4 * 5 * 6.0).reshape(4, 5, 6)
    (path,) = write_synthetic(tmp_path, values, affine_of(values.shape, "oblique"), layout="enhanced")
    image = load(path)
    np.testing.assert_array_equal(np.asarray(image)[0], values)
    np.testing.assert_allclose(image.affine, affine_of(values.shape, "oblique"), atol=1e-6)
    for ending in (".nrrd", ".mha"):
        file = tmp_path.parent / f"{tmp_path.name}{ending}"
        picture = sitk.GetImageFromArray(values.astype(np.int16))
        picture.SetSpacing((1.0, 2.0, 3.0))
        sitk.WriteImage(picture, str(file))
        np.testing.assert_array_equal(np.asarray(load(file))[0], read_volume(find(file).sources[0].source).data[0])


def test_options_reach_the_reader(tmp_path: Path) -> None:
    values = np.arange(20.0).reshape(4, 5, 1)
    kind = {"modality": "DX", "layout": "picture", "photometric": "MONOCHROME1", "signed": False, "bits": 12}
    (path,) = write_synthetic(tmp_path, values, affine_of(values.shape), **kind)
    np.testing.assert_array_equal(np.asarray(load(path))[0], 4095 - values[..., 0])
    as_stored = load(path, reader=MedsegReader({"invert": False}))
    np.testing.assert_array_equal(np.asarray(as_stored)[0], values[..., 0])
    with pytest.raises(MedsegError, match="no inverted"):
        MedsegReader({"inverted": False})


@pytest.mark.shared_data
def test_a_dicom_seg_loads_as_the_same_mask_in_nrrd(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "seg_ct3"
    reader = MedsegReader(image=folder / "ct")
    assert reader.verify_suffix(folder / "liver.dcm")
    ours, theirs = (load(folder / name, reader=reader) for name in ("liver.dcm", "liver_seg.nrrd"))
    assert np.asarray(ours).any()
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)


@pytest.mark.shared_data
def test_an_rtstruct_loads_on_the_grid_of_its_image(shared_data: Path) -> None:
    folder = shared_data / "dicom" / "sarcoma_rtstruct" / "STS_003" / "PET"
    (mask,) = (path for path in (folder / "mask").iterdir() if path.is_file())
    with pytest.raises(MedsegError, match="no grid of their own"):
        MedsegReader().read(mask)
    image = load(folder / "image")
    drawn = load(mask, reader=MedsegReader(image=lambda path: path.parents[1] / "image"))
    assert drawn.shape == image.shape
    np.testing.assert_allclose(drawn.affine, image.affine)
    assert set(np.unique(np.asarray(drawn))) == {0, 1}
