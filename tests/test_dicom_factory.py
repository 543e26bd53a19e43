"""The synthetic series are DICOM as other people's software wants it, so that what is proved with them says something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.dicom_factory import PLANES, POSITIONS, affine_of, write_series
from tests.validators import dciodvfy_errors

RAMP = np.arange(16 * 12 * 3).reshape(16, 12, 3)
OBJECTS: dict[str, dict[str, Any]] = {
    "CT": {},
    "MR": {"modality": "MR"},
    "PET": {"modality": "PT", "slope": 0.5},
    "enhanced CT": {"layout": "enhanced"},
    "enhanced MR": {"layout": "enhanced", "modality": "MR"},
    "enhanced PET": {"layout": "enhanced", "modality": "PT"},
    "SPECT": {"layout": "enhanced", "modality": "NM", "signed": False},
    "clip": {"layout": "cine", "modality": "US", "bits": 8, "signed": False},
    "mosaic": {"layout": "mosaic", "modality": "MR", "signed": False},
    "CR": {"layout": "picture", "modality": "CR", "signed": False},
    "DX": {"layout": "picture", "modality": "DX", "signed": False},
    "MG": {"layout": "picture", "modality": "MG", "signed": False},
    "US": {"layout": "picture", "modality": "US", "bits": 8, "signed": False},
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_is_valid_dicom(tmp_path: Path, kind: str) -> None:
    made = OBJECTS[kind]
    path = write_series(tmp_path, RAMP % 256, affine_of(RAMP.shape), **made)[0]
    assert dciodvfy_errors(path) == []


@pytest.mark.parametrize("patient", POSITIONS)
@pytest.mark.parametrize("plane", PLANES)
def test_a_plane_of_the_scanner_lies_in_the_patient_as_the_position_says(plane: str, patient: str) -> None:
    """The floor is where gravity pulls: a supine patient's back, a prone one's chest, the named side in decubitus."""
    affine = affine_of(RAMP.shape, plane, patient, (1, 1, 1))
    rotation = affine[:3, :3] @ np.linalg.inv(affine_of(RAMP.shape, plane, "HFS", (1, 1, 1))[:3, :3])
    assert np.linalg.det(affine[:3, :3]) == pytest.approx(1)  # RAS+ and LPS are both right-handed
    floor = rotation @ [0, -1, 0]  # posterior of a supine patient
    expected = {"S": (0, -1, 0), "P": (0, 1, 0), "DL": (-1, 0, 0), "DR": (1, 0, 0)}[patient[2:]]
    np.testing.assert_allclose(floor, expected, atol=1e-9)
    np.testing.assert_allclose(rotation @ [0, 0, 1], (0, 0, 1 if patient[:2] == "HF" else -1), atol=1e-9)


def test_the_same_call_writes_the_same_identifiers(tmp_path: Path) -> None:
    one, two = (write_series(tmp_path / name, RAMP, affine_of(RAMP.shape)) for name in "ab")
    assert [pydicom.dcmread(p).SOPInstanceUID for p in one] == [pydicom.dcmread(p).SOPInstanceUID for p in two]


def test_values_that_the_stored_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not fit into 8 bits"):
        write_series(tmp_path, RAMP, affine_of(RAMP.shape), bits=8, signed=False)
