from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medseg.scans import encapsulated, read_volume
from medseg.scans.find import find
from medseg.scans.headers import read_headers
from medseg.scans.reading import ScanError
from tests.dicom_factory import affine_of, write_series

SHAPE = (32, 32, 5)
VALUES = np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE)


def mosaic(folder: Path, **kind: Any) -> Path:
    affine = affine_of(SHAPE, kind.pop("plane", "axial"))
    return write_series(folder, VALUES, affine, modality="MR", layout="mosaic", **kind)[0]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "oblique"])
@pytest.mark.parametrize("order", ["ascending", "reversed"])  # reversed: the CSA normal is −row × column
def test_every_tile_lies_where_the_csa_header_says(tmp_path: Path, plane: str, order: str) -> None:
    volume = read_volume(find(mosaic(tmp_path, plane=plane, order=order)).sources[0].source)
    np.testing.assert_allclose(volume.geometry.affine, affine_of(SHAPE, plane), atol=1e-5)
    np.testing.assert_array_equal(volume.data[0], VALUES)


def test_a_compressed_mosaic_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find(mosaic(tmp_path, transfer_syntax="JPEG-LS")).sources[0].source
    calls = []
    decode = encapsulated.decode
    monkeypatch.setattr("medseg.scans.pixels.decode", lambda *given: calls.append(given) or decode(*given))
    np.testing.assert_array_equal(read_volume(source).data[0], VALUES)
    assert len(calls) == 1


def refusal(path: Path, spoil: Any) -> ScanError:
    dataset: Dataset = pydicom.dcmread(path)
    spoil(dataset)
    dataset.save_as(path)
    with pytest.raises(ScanError) as caught:
        read_headers(path)
    return caught.value


def test_a_mosaic_without_csa_header_is_refused_because_it_may_be_upside_down(tmp_path: Path) -> None:
    error = refusal(mosaic(tmp_path), lambda ds: ds.remove_private_tags())
    assert error.kind == "unsupported"
    assert "which way they are stacked" in str(error)


def test_a_damaged_csa_header_is_refused(tmp_path: Path) -> None:
    def cut(dataset: Dataset) -> None:
        dataset[0x0029, 0x1010].value = dataset[0x0029, 0x1010].value[:90]

    assert "CSA" in str(refusal(mosaic(tmp_path), cut))


def test_a_mosaic_that_was_resampled_is_refused(tmp_path: Path) -> None:
    error = refusal(mosaic(tmp_path), lambda ds: setattr(ds, "Columns", 95))
    assert "95×96 pixels does not divide into 3×3 tiles" in str(error)


@pytest.mark.parametrize(
    ("keyword", "kind"),
    [("ImagePositionPatient", "no_position"), ("SpacingBetweenSlices", "no_spacing"), ("PixelSpacing", "no_spacing")],
)
def test_a_mosaic_that_cannot_be_placed_is_refused(tmp_path: Path, keyword: str, kind: str) -> None:
    assert refusal(mosaic(tmp_path), lambda ds: delattr(ds, keyword)).kind == kind
