"""Phantoms of the size of a CT scan: what work on large scans is measured on, with labels in nnU-Net's raw layout or alone.

The bodies are those of `medseg.testing.phantoms`; tissues have the values of CT and plain noise, which takes seconds where the
phantoms' own images would take minutes. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.testing.phantoms import LABELS, Body, make_body
from medseg.volume import Array, Geometry
from scripts.benchmarks.nnunet_peer import describe, save_fast

SHAPE = (512, 512, 120)
SPACING_MM = (0.8, 0.8, 2.5)
LARGER = 2.0
"""A phantom's body is as wide as a child's."""
AIR, SOFT, NOISE = -1000, 40, 10
HU = {
    **{"fat": -100, "muscle": 55, "lungs": -800, "heart": 150, "spine": 400, "cord": 30, "aorta": 220, "gas": -900},
    **{"gallbladder": 5, "liver": 110, "kidneys": 190, "spleen": 145, "lesions": 70},
}
"""So far apart that a network learns them in minutes; what is not named is soft tissue."""


def write_phantoms(out: Path, cases: int, shape: Sequence[int] = SHAPE, spacing: Sequence[float] = SPACING_MM) -> int:
    """Write ``cases`` with labels in nnU-Net's raw layout; returns how many.

    The spacing of each differs from ``spacing`` by up to 12 %, along the body by up to 20 %.
    """
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
    for index in range(cases):
        rng = np.random.default_rng([index, 1])
        own = np.asarray(spacing) * [*[rng.uniform(0.88, 1.12)] * 2, rng.uniform(0.8, 1.2)]
        image, mask = ct_phantom(index, shape, own)
        save_fast(image, out / "imagesTr" / f"phantom_{index:03d}_0000.nii.gz")
        save_fast(mask, out / "labelsTr" / f"phantom_{index:03d}.nii.gz")
    labels = {"background": 0, **{name: value for value, name in LABELS.names.items()}}
    describe(out, {"0": "CT"}, labels, cases)
    return cases


def ct_phantom(index: int, shape: Sequence[int], spacing: Sequence[float]) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """A body in HU (int16) in the middle of the scan, and its labels (uint8)."""
    rng = np.random.default_rng(index)
    body = make_body(rng)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    smaller = np.diag([*[1 / LARGER] * 3, 1.0]) @ affine
    numbered = Body(tuple(replace(part, label=number) for number, part in enumerate(body.structures, start=1)))
    parts = numbered.mask(Geometry(tuple(shape), smaller))
    values = np.array([AIR, *(HU.get(part.name, SOFT) for part in body.structures)], np.float32)
    labels = np.array([0, *(part.label for part in body.structures)], np.uint8)
    seen: Array = values[parts] + NOISE * rng.standard_normal(tuple(shape), np.float32)
    return nib.Nifti1Image(seen.round().astype(np.int16), affine), nib.Nifti1Image(labels[parts], affine)
