from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImaged

from medseg.errors import MedsegError
from medseg.scans.monai_reader import MedsegReader


def load(*paths: Path) -> object:
    transform = LoadImaged(["image"], reader=MedsegReader(), ensure_channel_first=True)
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
