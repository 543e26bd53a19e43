"""Synthetic series in many states against the truth they were made from, and against ``dcm2niix``.

Every pair of states (object × plane × patient position × transfer syntax × pixel type × order × scaling × stacking) is met
in at least one series. What has a test of its own is not in the matrix: `test_dicom_states`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.scans import read_geometry, read_volume
from medseg.scans.find import find
from medseg.volume import Geometry, Volume, reorient
from tests.dicom_encoding import SYNTAXES
from tests.dicom_factory import PLANES, POSITIONS, affine_of, write_series

State = Mapping[str, str]
SHAPE = (35, 32, 5)

FACTORS: dict[str, tuple[str, ...]] = {
    "object": ("CT", "MR", "PT", "enhanced CT", "enhanced MR", "enhanced PT", "NM", "mosaic MR"),
    "plane": tuple(PLANES),
    "patient": tuple(POSITIONS),
    "syntax": tuple(name for name in SYNTAXES if name not in ("JPEG baseline", "JPEG extended")),
    "pixels": ("u8", "u12", "u16", "i12", "i16", "i32"),
    "order": ("ascending", "reversed", "shuffled"),
    "scale": ("none", "series", "slice"),
    "stack": ("along row × column", "against it"),
}
_RAW = ("implicit", "explicit", "big endian", "deflated")
IMPOSSIBLE = {
    *((("object", name), ("order", "shuffled")) for name in ("NM", "mosaic MR")),  # one step for all of its planes
    *((("object", name), ("scale", "slice")) for name in ("NM", "mosaic MR")),  # one header for all of its planes
    *((("syntax", name), ("pixels", "i32")) for name in FACTORS["syntax"] if name not in _RAW),
}


def _apart(one: tuple[str, str], two: tuple[str, str]) -> bool:
    return (one, two) not in IMPOSSIBLE and (two, one) not in IMPOSSIBLE


def pairwise() -> Iterator[State]:
    """States in which every possible pair of values stands at least once, chosen greedily."""
    values = {name: [(name, value) for value in options] for name, options in FACTORS.items()}
    left = {
        frozenset(pair)
        for one, two in combinations(values, 2)
        for pair in ((a, b) for a in values[one] for b in values[two])
        if _apart(*pair)
    }
    while left:
        chosen = list(min(left, key=sorted))
        for name in values:
            if name in dict(chosen):
                continue
            able = [value for value in values[name] if all(_apart(value, other) for other in chosen)]
            chosen.append(max(able, key=lambda value: sum(frozenset((value, other)) in left for other in chosen)))
        left -= {frozenset(pair) for pair in combinations(chosen, 2)}
        yield {name: dict(chosen)[name] for name in FACTORS}


STATES = tuple(pairwise())


def name_of(number: int) -> str:
    return f"case{number:03d}"


def write(folder: Path, state: State, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The values ``(I, J, K)`` and the affine that a series of this state was made from."""
    signed, bits = state["pixels"][0] == "i", int(state["pixels"][1:])
    low = -(1 << (bits - 1)) if signed else 0
    stored = np.rint(np.linspace(low, low + (1 << bits) - 1, 5600)).reshape(
        SHAPE
    )  # the whole range; in 16 bits no value twice
    layout, _, modality = state["object"].rpartition(" ")
    single = state["scale"] != "slice"
    slope = np.ones(5) if state["scale"] == "none" else np.full(5, 0.5) if single else 0.5 + np.arange(5) / 4
    intercept = np.zeros(5) if state["scale"] == "none" else np.full(5, -24.0) if single else -3.0 * np.arange(5)
    affine = affine_of(SHAPE, state["plane"], state["patient"])
    if state["stack"] == "against it":
        affine[:3, 3] += affine[:3, 2] * (SHAPE[2] - 1)
        affine[:3, 2] *= -1
    volume = stored * slope + intercept
    write_series(
        folder,
        volume,
        affine,
        modality=modality,
        layout=layout or ("enhanced" if modality == "NM" else "classic"),  # type: ignore[arg-type]
        transfer_syntax=state["syntax"],
        patient_position=state["patient"],
        order=state["order"],  # type: ignore[arg-type]
        bits=bits,
        signed=signed,
        slope=slope,
        intercept=intercept,
        seed=str(number),
        study=str(number),
        description=name_of(number),
    )
    return volume, affine


Truth = dict[int, tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    root = tmp_path_factory.mktemp("matrix")
    return root, {number: write(root / name_of(number), state, number) for number, state in enumerate(STATES)}


def same(found: Volume, values: Any, affine: Any) -> None:
    """Values and places are those of the truth, whatever the order of the axes."""
    ours = reorient(found, "RAS")
    truth = reorient(Volume(np.asarray(values)[None], Geometry(values.shape, affine)), "RAS")
    assert ours.geometry.shape == truth.geometry.shape
    np.testing.assert_allclose(ours.geometry.affine, truth.geometry.affine, atol=1e-3)
    np.testing.assert_allclose(ours.data, truth.data, rtol=2e-7, atol=1e-4)  # float32


def test_every_possible_pair_is_met() -> None:
    met = {frozenset(pair) for state in STATES for pair in combinations(state.items(), 2)}
    for one, two in combinations(FACTORS, 2):
        for a in FACTORS[one]:
            for b in FACTORS[two]:
                assert (frozenset(((one, a), (two, b))) in met) == _apart((one, a), (two, b))
    assert len(STATES) < 100


@pytest.mark.parametrize("number", range(len(STATES)), ids=lambda n: "-".join(STATES[n].values()))
def test_a_series_is_read_as_it_was_made(written: tuple[Path, Truth], number: int) -> None:
    root, truth = written
    found = find(root / name_of(number))
    assert [entry.source.modality for entry in found.sources] == [STATES[number]["object"].split()[-1]]
    assert found.unread == ()
    volume = read_volume(found.sources[0].source)
    same(volume, *truth[number])
    assert np.linalg.det(volume.geometry.affine) > 0  # i = column, j = row, k along row × column
    assert volume.geometry.shape == SHAPE
    assert read_geometry(found.sources[0].source).matches(volume.geometry, 1e-9)


@pytest.fixture(scope="module")
def converted(written: tuple[Path, Truth], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What dcm2niix makes of all series in one go: ``case000.nii`` …"""
    program = shutil.which("dcm2niix", path=f"{Path(sys.executable).parent}") or shutil.which("dcm2niix")
    if program is None:
        pytest.skip("dcm2niix is not installed (pip install dcm2niix)")
    out = tmp_path_factory.mktemp("dcm2niix")
    command = [program, "-f", "%d", "-b", "n", "-z", "n", "-w", "2", "-o", str(out), str(written[0])]
    subprocess.run(command, capture_output=True, check=False, timeout=300)  # its status counts what it passes over
    return out


def beyond_dcm2niix(state: State) -> str:
    """Why dcm2niix does not, or knowingly not rightly, read a series of this state; empty where it does."""
    if state["syntax"] == "deflated":
        return "it reads no deflated files"
    if state["object"] == "NM":
        return "it guesses the direction of NM slices from their plane, and does not decode all compressed frames"
    if "enhanced" in state["object"] and state["syntax"] not in _RAW and state["order"] != "ascending":
        return "it leaves compressed frames in the order of the file"
    return ""


@pytest.mark.parametrize(
    "number",
    [n for n, state in enumerate(STATES) if not beyond_dcm2niix(state)],
    ids=lambda n: "-".join(STATES[n].values()),
)
def test_dcm2niix_puts_every_voxel_where_we_do(written: tuple[Path, Truth], converted: Path, number: int) -> None:
    (path,) = converted.glob(f"{name_of(number)}*.nii")
    image: Any = nib.load(path)
    (entry,) = find(written[0] / name_of(number)).sources
    same(read_volume(entry.source), np.asarray(image.dataobj, np.float64).reshape(image.shape[:3]), image.affine)


def test_most_states_are_compared_with_dcm2niix() -> None:
    assert sum(not beyond_dcm2niix(state) for state in STATES) > 50
