"""The readers of this room as a MONAI ``ImageReader``, for other people's ``LoadImaged`` pipelines. Adds nothing to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys

from medseg.errors import MedsegError
from medseg.scans import check_options, read_geometry, read_mask, read_volume, same_grid
from medseg.scans.find import find, find_one
from medseg.structures import LabelTable, Source
from medseg.volume import Array, Volume

PathLike = str | os.PathLike[Any]


class MedsegReader(ImageReader):
    """Reads a NIfTI, NRRD, MetaImage or picture file, a folder with one DICOM series, a DICOM SEG or RTSTRUCT, whatever its name.

    Several paths are stacked as channels. Arrays are float32 ``(*S)`` for one channel, ``(C, *S)`` for more; the affine is
    RAS+ in mm, 4×4 (pictures: their 2D affine in the first two axes).

    Example:
        ``LoadImaged(["image", "label"], reader=MedsegReader(), ensure_channel_first=True)``

    Args:
        options: as `medseg.scans.read_volume` takes them.
        image: the scan on whose grid a SEG or RTSTRUCT is painted, or a function that gives it for the path of the mask. A
            SEG has a grid of its own otherwise; an RTSTRUCT has none, and needs it.
        labels: the values that the names of segments and regions stand for; without it, the numbers that the file gives them.
    """

    def __init__(
        self,
        options: Mapping[str, Any] | None = None,
        *,
        image: PathLike | Callable[[Path], PathLike] | None = None,
        labels: LabelTable | None = None,
    ) -> None:
        check_options(options or {})
        self.options, self.image, self.labels = dict(options or {}), image, labels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether every path is a scan or a mask: told from the content, not from the suffix."""
        try:
            for path in _paths(filename):
                _source(path)
        except MedsegError:
            return False
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Sequence[tuple[Path, Volume]]:
        """The volumes of one or several paths, each with its path. Raises MedsegError."""
        return [(path, self._volume(path, {**self.options, **kwargs})) for path in _paths(data)]

    def get_data(self, img: Sequence[tuple[Path, Volume]]) -> tuple[Array, dict[str, Any]]:
        """The pixels and the metadata that MONAI expects. Raises MedsegError where grids differ."""
        first = img[0][1]
        for path, volume in img[1:]:
            if not same_grid(first.geometry, volume.geometry):
                raise MedsegError(
                    f"{img[0][0]} and {path} lie on different grids: {first.geometry.describe()}, {volume.geometry.describe()}"
                )
        data = np.concatenate([volume.data for _, volume in img]) if len(img) > 1 else first.data
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

    def _volume(self, path: Path, options: Mapping[str, Any]) -> Volume:
        source = _source(path)
        if source.kind not in ("seg", "rtstruct"):
            return read_volume(source, options)
        image = self.image(path) if callable(self.image) else self.image
        geometry = None if image is None else read_geometry(find_one(Path(image)).source, options)
        mask, grid = read_mask(source, geometry, self.labels)
        return Volume(mask[None].astype(np.float32), grid)


def _source(path: Path) -> Source:
    """The one volume that a path names, or the one SEG or RTSTRUCT where there is no volume."""
    annotations = find(path).annotations if path.is_file() else ()
    return annotations[0].source if annotations else find_one(path).source


def _paths(data: Sequence[PathLike] | PathLike) -> list[Path]:
    return [Path(data)] if isinstance(data, (str, os.PathLike)) else [Path(path) for path in data]
