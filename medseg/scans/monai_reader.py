"""The readers of this room as a MONAI ``ImageReader``, for other people's ``LoadImaged`` pipelines. Adds nothing to them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys

from medseg.errors import MedsegError
from medseg.scans import read_volume, same_grid
from medseg.scans.find import find_one
from medseg.volume import Array, Volume

PathLike = str | os.PathLike[Any]


class MedsegReader(ImageReader):
    """Reads a NIfTI, NRRD, MetaImage or picture file, or a folder with one DICOM series, whatever its name.

    Several paths are stacked as channels. Arrays are float32 ``(*S)`` for one channel, ``(C, *S)`` for more; the affine is
    RAS+ in mm, 4×4 (pictures: their 2D affine in the first two axes).

    Example:
        ``LoadImaged(["image", "label"], reader=MedsegReader(), ensure_channel_first=True)``

    Args:
        options: as `medseg.scans.read_volume` takes them.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every path is a scan: told from the content, not from the suffix."""
        try:
            for path in _paths(filename):
                find_one(path)
        except MedsegError:
            return False
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Sequence[tuple[Path, Volume]]:
        """The volumes of one or several paths, each with its path. Raises MedsegError."""
        options = {**self.options, **kwargs}
        return [(path, read_volume(find_one(path).source, options)) for path in _paths(data)]

    def get_data(self, img: Sequence[tuple[Path, Volume]]) -> tuple[Array, dict[str, Any]]:
        """The pixels and the metadata that MONAI expects. Raises MedsegError where grids differ."""
        first = img[0][1]
        for path, volume in img[1:]:
            if not same_grid(first.geometry, volume.geometry):
                raise MedsegError(
                    f"{img[0][0]} and {path} lie on different grids: {first.geometry.describe()}, {volume.geometry.describe()}"
                )
        data = np.concatenate([volume.data for _, volume in img])
        affine = np.eye(4)
        dimensions = first.geometry.dimensions
        affine[:dimensions, :dimensions] = first.geometry.affine[:-1, :-1]
        affine[:dimensions, 3] = first.geometry.affine[:-1, -1]
        single = len(data) == 1
        return data[0] if single else data, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.asarray(first.geometry.shape),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan") if single else 0,
            "modality": first.modality,
        }


def _paths(data: Sequence[PathLike] | PathLike) -> list[Path]:
    return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(path) for path in data]
