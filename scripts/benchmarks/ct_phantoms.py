"""Phantoms of the size of a CT scan, with labels in nnU-Net's raw layout or alone: what work on large scans is measured on.

The bodies are those of `medseg.testing.phantoms`, drawn coarsely and enlarged with fresh noise, for their own drawing would take
minutes a case. Knows nothing of what is measured.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.testing.phantoms import LABELS, make_phantom
from medseg.volume import Array, Geometry
from scripts.benchmarks.nnunet_peer import describe

SHAPE = (512, 512, 120)
SPACING_MM = (0.8, 0.8, 2.5)
COARSE = (4, 4, 1)
"""Voxels along each axis that are drawn as one."""
SMALLER = 0.4
"""A phantom's body is as wide as a child's: its millimetres are counted as larger ones, and it fills the scan."""


def write_phantoms(out: Path, cases: int, shape: tuple[int, int, int] = SHAPE, *, seed: int = 0) -> int:
    """Write ``cases`` with labels in nnU-Net's raw layout; returns how many."""
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
    for index in range(cases):
        image, mask, affine = make_ct(index, shape, seed=seed)
        _save(image, affine, out / "imagesTr" / f"phantom_{index:03d}_0000.nii.gz")
        _save(mask, affine, out / "labelsTr" / f"phantom_{index:03d}.nii.gz")
    labels = {"background": 0, **{name: value for value, name in LABELS.names.items()}}
    describe(out, {"0": "CT"}, labels, cases)
    return cases


def write_scans(out: Path, cases: int, shape: tuple[int, int, int] = SHAPE, *, seed: int = 1) -> list[str]:
    """Write scans alone, named as nnU-Net wants its input; returns the names of the cases."""
    out.mkdir(parents=True, exist_ok=True)
    names = [f"phantom_{index:03d}" for index in range(cases)]
    for index, name in enumerate(names):
        image, _, affine = make_ct(index, shape, seed=seed)
        _save(image, affine, out / f"{name}_0000.nii.gz")
    return names


def make_ct(index: int, shape: tuple[int, int, int], *, seed: int = 0) -> tuple[Array, Array, Array]:
    """Image in HU (int16), mask (uint8) and affine of a case; its spacing differs from `SPACING_MM` by up to 12 %, along the body
    by up to 20 %, and the field of view with it."""
    rng = np.random.default_rng([seed, index, 1])
    spacing = np.asarray(SPACING_MM) * [*[rng.uniform(0.88, 1.12)] * 2, rng.uniform(0.8, 1.2)]
    coarse = tuple(-(-n // step) for n, step in zip(shape, COARSE, strict=True))
    drawn = make_phantom(seed, index, geometry=_centred(coarse, spacing * COARSE * SMALLER))
    fine = _centred(shape, spacing * SMALLER)
    values = drawn.volume.data[0]
    for axis, step in enumerate(COARSE):
        values = np.repeat(values, step, axis)
    values = values[tuple(map(slice, shape))] * np.float32(1200 / values.max()) - 1000
    values += 12 * rng.standard_normal(shape, np.float32)
    affine = np.diag([*spacing, 1.0])
    return np.rint(values).astype(np.int16), drawn.body.mask(fine), affine


def _centred(shape: tuple[int, ...], spacing: Array) -> Geometry:
    """A grid whose middle is the body's."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * (np.asarray(shape) - 1) / 2
    return Geometry(tuple(shape), affine)


def _save(array: Array, affine: Array, path: Path) -> None:
    """Compressed at the first level, as fast as it goes."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    with nib.openers.Opener(str(path), "wb", compresslevel=1) as file:
        image.to_stream(file)
