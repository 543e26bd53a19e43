"""Anatomical phantoms with known answers: bodies of ellipsoids whose volumes, centres and boxes are known analytically.

A phantom is a function of (seed, index) alone. It is defined in the patient's millimetres and only then sampled on a grid, so
that one body can be looked at in any spacing, orientation and field of view. Organs share their intensities with what lies
around them; contrast, noise and a bias field vary from case to case, so that no threshold finds them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.export.nifti import write_labels
from medseg.export.series import write_series
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry, Volume, reorientation_to

LABELS = LabelTable({1: "liver", 2: "kidneys", 3: "spleen", 4: "lesion"})
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "PSR", "ASL")
BODY_MM = (78.0, 56.0, 95.0)
GAP_MM = 3.0
"""At least so far lie organs and lesions apart, so that their volumes are known."""


@dataclass(frozen=True)
class Ellipsoid:
    """A solid ellipsoid: ``center`` and semi-axes in RAS+ mm, turned by ``angle`` (radians) about the body's long axis."""

    center: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    angle: float = 0.0

    @property
    def volume_ml(self) -> float:
        return 4 / 3 * math.pi * math.prod(self.semi_axes) / 1000

    def depth(self, world: Array) -> Array:
        """``(..., 3)`` points in mm → 1 in the centre, 0 on the surface, negative outside."""
        depth: Array = 1 - np.linalg.norm(self._local(world) / self.semi_axes, axis=-1)
        return depth

    def depth_mm(self, world: Array) -> Array:
        """``(..., 3)`` points in mm → distance to the surface, positive inside; exact to first order, near the surface."""
        local = self._local(world) / self.semi_axes
        slope = np.linalg.norm(local / self.semi_axes, axis=-1)
        depth: Array = (1 - np.square(local).sum(-1)) / np.maximum(2 * slope, 1e-9)
        return depth

    def box_mm(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lowest and highest corner of the smallest world-aligned box."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        a, b, d = self.semi_axes
        reach = (math.hypot(c * a, s * b), math.hypot(s * a, c * b), d)
        lower = tuple(m - r for m, r in zip(self.center, reach, strict=True))
        return lower, tuple(m + r for m, r in zip(self.center, reach, strict=True))

    def surface(self, grow_mm: float = 0.0) -> Array:
        """``(400, 3)`` points spread over the surface, or over that of the ellipsoid with longer semi-axes."""
        n = np.arange(400)
        height, turn = 1 - (2 * n + 1) / 400, math.pi * (3 - math.sqrt(5)) * n
        radius = np.sqrt(1 - height**2)
        return self.from_local(np.stack([radius * np.cos(turn), radius * np.sin(turn), height], -1), grow_mm)

    def from_local(self, unit: Array, grow_mm: float = 0.0) -> Array:
        """``(..., 3)`` points of the unit ball → points of this ellipsoid in mm."""
        x, y, z = np.moveaxis(np.asarray(unit) * (np.asarray(self.semi_axes) + grow_mm), -1, 0)
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.stack([c * x - s * y, s * x + c * y, z], -1) + np.asarray(self.center)

    def apart_from(self, other: Ellipsoid, gap_mm: float = GAP_MM) -> bool:
        """Whether the two keep ``gap_mm`` between them."""
        mine = np.concatenate([self.surface(gap_mm), [self.center]])  # the centre, for one may surround the other
        theirs = np.concatenate([other.surface(gap_mm), [other.center]])
        return bool(other.depth(mine).max() < 0 and self.depth(theirs).max() < 0)

    def holds(self, other: Ellipsoid, gap_mm: float = GAP_MM) -> bool:
        """Whether ``other`` lies inside, ``gap_mm`` or more from the surface."""
        return bool(self.depth(other.surface(gap_mm)).min() > 0)

    def _local(self, world: Array) -> Array:
        """Points in mm → mm along the semi-axes."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        x, y, z = np.moveaxis(np.asarray(world) - np.asarray(self.center), -1, 0)
        return np.stack([c * x + s * y, c * y - s * x, z], -1)


@dataclass(frozen=True)
class Structure:
    """Ellipsoids that are one thing: painted over what came before, with a mean intensity and, if it counts, a label."""

    name: str
    parts: tuple[Ellipsoid, ...]
    intensity: float
    label: int = 0


@dataclass(frozen=True)
class Body:
    """The structures of one patient in the order in which they are painted."""

    structures: tuple[Structure, ...]

    def parts(self, label: int) -> tuple[Ellipsoid, ...]:
        """The ellipsoids that carry a label."""
        return tuple(part for structure in self.structures if structure.label == label for part in structure.parts)

    def lesions(self) -> tuple[Ellipsoid, ...]:
        return self.parts(4)

    def volumes_ml(self) -> dict[str, float]:
        """Label → volume, exactly: organs keep apart, and the lesions, which lie wholly in the liver, are not of it."""
        volumes = {name: sum(part.volume_ml for part in self.parts(label)) for label, name in LABELS.names.items()}
        return volumes | {"liver": volumes["liver"] - volumes["lesion"]}

    def mask(self, geometry: Geometry) -> Array:
        """``geometry.shape`` uint8: the label of what each voxel's centre lies in."""
        mask = np.zeros(geometry.shape, np.uint8)
        for structure in self.structures:
            for part in structure.parts:
                for window, world in _around(part, geometry, 0.0):
                    mask[window][part.depth(world) > 0] = structure.label
        return mask

    def image(self, geometry: Geometry, rng: np.random.Generator) -> Array:
        """``geometry.shape`` float32 whole numbers, as a scanner shows the body: the rest is drawn from ``rng``.

        Tissue is mottled, borders are blurred over a voxel, coils see near and far parts unequally bright, and the noise is
        that of magnitude images (Rician). A grid stored along other axes gives the same voxels.
        """
        turn = reorientation_to(geometry, "RAS")
        grid = turn.apply_to_geometry(geometry)
        width = 1.2 * grid.voxel_volume ** (1 / 3)
        clean = np.zeros(grid.shape)
        for structure in self.structures:
            for part in structure.parts:
                for window, world in _around(part, grid, width):
                    share = np.clip(0.5 + part.depth_mm(world) / width, 0, 1)
                    clean[window] += share * (structure.intensity - clean[window])
        world = _centers(grid)
        direction = rng.normal(size=3) / np.asarray(BODY_MM)
        bias = np.exp(0.18 * (world @ direction) + 0.1 * rng.normal() * np.square(world / BODY_MM).sum(-1))
        seen = clean * (1 + 0.04 * _mottle(world, rng)) * bias
        sigma = seen[clean > 50].mean() * rng.uniform(0.04, 0.09)
        noisy = np.hypot(seen + sigma * rng.normal(size=seen.shape), sigma * rng.normal(size=seen.shape))
        top = float(noisy.max())
        shown = (noisy / top) ** rng.uniform(0.85, 1.15) * top * rng.uniform(1.5, 4.5)
        return np.ascontiguousarray(turn.inverse().apply(np.rint(shown).astype(np.float32)))


@dataclass(frozen=True, eq=False)
class Phantom:
    """A body on a grid: the scan, its labels, and the body that both were sampled from."""

    id: str
    volume: Volume
    mask: Array
    body: Body


def make_body(rng: np.random.Generator) -> Body:
    """A patient: body and organs vary in place, size and turn; one or two lesions lie inside the liver.

    Labelled organs keep apart from each other; vessels, bowel, stomach, gallbladder and lungs lie behind them.
    """
    scale = rng.uniform(0.93, 1.07, 3)

    def organ(center: Sequence[float], semi: Sequence[float], spread: float = 5.0) -> Ellipsoid:
        size = rng.uniform(0.85, 1.15)
        moved = np.asarray(center) * scale + rng.uniform(-spread, spread, 3)
        axes = np.asarray(semi) * scale * size * rng.uniform(0.92, 1.08, 3)
        return Ellipsoid(_triple(moved), _triple(axes), float(rng.uniform(-0.25, 0.25)))

    def level(mean: float, spread: float = 8.0) -> float:
        return float(mean + rng.uniform(-spread, spread))

    def torso(grow: float) -> tuple[Ellipsoid, ...]:
        # Two long ellipsoids side by side: a belly with a groove along the back.
        semi = _triple(scale * (BODY_MM[0] - 14 + grow, BODY_MM[1] + grow, 400))
        return tuple(Ellipsoid(_triple(scale * (side, 0, 0)), semi) for side in (-14, 14))

    liver = organ((30, 4, 17), (34, 32, 30))
    kidneys = [
        _until(partial(organ, (side, -28, -34), (12, 12, 20), 3), lambda e: e.apart_from(liver)) for side in (-36, 36)
    ]
    spleen = _until(
        partial(organ, (-50, -10, 20), (15, 21, 22)), lambda e: all(e.apart_from(o) for o in (liver, *kidneys))
    )
    lesions = _lesions(liver, int(rng.integers(1, 3)), rng)
    bowel = [organ((x, 18, z), (12, 12, 15), 9) for x in (-34, -11, 12, 35) for z in (-30, -66)]
    structures = [
        Structure("fat", torso(5), level(135)),
        Structure("muscle", torso(-1), level(88)),
        Structure("tissue", torso(-6), level(102)),
        Structure("lungs", tuple(organ((x, -2, 96), (30, 40, 46)) for x in (-38, 38)), level(14, 4)),
        Structure("heart", (organ((-12, 14, 88), (24, 22, 34)),), level(132)),
        Structure("spine", (Ellipsoid(_triple(scale * (0, -38, 0)), (12, 11, 400)),), level(138)),
        Structure("cord", (Ellipsoid(_triple(scale * (0, -43, 0)), (4, 3.5, 400)),), level(80)),
        Structure("aorta", (Ellipsoid(_triple(scale * (-6, -20, 0)), (5, 5, 300)),), level(136)),
        Structure("stomach", (organ((-22, 24, 14), (20, 15, 22)),), level(132)),
        Structure("gas", (organ((-24, 33, 16), (9, 4, 10), 3),), level(18, 4)),
        *(Structure("bowel", (loop,), level(130, 14)) for loop in bowel),
        Structure("gallbladder", (organ((24, 26, -14), (8, 11, 11)),), level(100)),
        Structure("liver", (liver,), level(134), 1),
        Structure("kidneys", tuple(kidneys), level(136), 2),
        Structure("spleen", (spleen,), level(133), 3),
        Structure("lesions", tuple(lesions), level(94), 4),
    ]
    return Body(tuple(structures))


def make_geometry(rng: np.random.Generator, spacing_mm: float = 4.0) -> Geometry:
    """A grid as scanners choose it: spacing, orientation, a small turn of the patient and the field of view all vary."""
    spacing = np.array([*[spacing_mm * rng.uniform(0.85, 1.15)] * 2, spacing_mm * rng.uniform(1.0, 1.4)])
    extent = 2 * (np.asarray(BODY_MM) + 5) * rng.uniform(0.95, 1.15, 3)
    shape = np.ceil(extent / spacing).astype(int)
    turn = float(rng.uniform(-0.12, 0.12))
    c, s = math.cos(turn), math.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2) + rng.uniform(-5, 5, 3)
    geometry = Geometry(tuple(int(n) for n in shape), affine)
    codes = ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))]
    return reorientation_to(geometry, codes).apply_to_geometry(geometry)


def make_phantom(seed: int, index: int, *, spacing_mm: float = 4.0, geometry: Geometry | None = None) -> Phantom:
    """Patient ``index`` of the cohort ``seed``, on its own grid or on ``geometry``."""
    rng = np.random.default_rng([seed, index])
    body = make_body(rng)
    own = make_geometry(rng, spacing_mm)
    grid = own if geometry is None else geometry
    image = body.image(grid, rng)
    return Phantom(f"phantom_{index:03d}", Volume(image[None], grid, "MR"), body.mask(grid), body)


def write_phantoms(folder: Path, indices: Sequence[int], *, seed: int = 0, spacing_mm: float = 4.0) -> None:
    """Write a cohort: ``images/`` (odd cases a DICOM series in a folder of its own, even ones NIfTI) and ``labels/``."""
    for index in indices:
        phantom = make_phantom(seed, index, spacing_mm=spacing_mm)
        write_scan(phantom, folder / "images", dicom=bool(index % 2))
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        write_labels(phantom.mask, phantom.volume.geometry, folder / "labels" / phantom.id)


def write_scan(phantom: Phantom, folder: Path, *, dicom: bool) -> None:
    """Write the scan alone, as ``<id>/*.dcm`` or ``<id>.nii.gz``; both hold the same values."""
    if dicom:
        content = hashlib.sha256(np.ascontiguousarray(phantom.volume.data).tobytes()).hexdigest()
        write_series(phantom.volume, folder / phantom.id, seed=f"{phantom.id} {content}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(phantom.volume.data[0], phantom.volume.geometry.affine), folder / f"{phantom.id}.nii.gz")


def _lesions(liver: Ellipsoid, wanted: int, rng: np.random.Generator) -> list[Ellipsoid]:
    """Round lesions in the liver, apart from each other; at least one, fewer than ``wanted`` where there is no room."""
    found: list[Ellipsoid] = []
    tries = 0
    while len(found) < wanted and (tries < 300 or not found):
        tries += 1
        away = rng.normal(size=3)
        away *= rng.uniform(0.15, 0.6) / np.linalg.norm(away)
        radius = float(rng.uniform(9, 14))
        axes = (radius, radius * float(rng.uniform(0.85, 1.15)), radius)
        lesion = Ellipsoid(_triple(liver.from_local(away)), axes)
        if liver.holds(lesion, 1.0) and all(lesion.apart_from(other, 6.0) for other in found):
            found.append(lesion)
    return found


def _until(draw: Callable[[], Ellipsoid], fits: Callable[[Ellipsoid], bool]) -> Ellipsoid:
    """Draw until it fits; each drawing is made 0.5 % smaller than the last, so that there is an end."""
    size = 1.0
    while True:
        drawn = draw()
        found = Ellipsoid(drawn.center, _triple(np.asarray(drawn.semi_axes) * size), drawn.angle)
        if fits(found):
            return found
        size *= 0.995


def _mottle(world: Array, rng: np.random.Generator) -> Array:
    """Smooth noise of the place in the patient, mean 0 and deviation 1: plane waves of 10 to 35 mm in all directions."""
    out = np.zeros(world.shape[:-1])
    waves = rng.normal(size=(12, 3))
    waves *= (2 * math.pi / rng.uniform(10, 35, 12) / np.linalg.norm(waves, axis=1))[:, None]
    for wave, phase in zip(waves, rng.uniform(0, 2 * math.pi, 12), strict=True):
        out += np.cos(world @ wave + phase)
    return out / math.sqrt(6)


def _around(part: Ellipsoid, geometry: Geometry, margin_mm: float) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """The window of the grid that holds the ellipsoid, and the centres of its voxels; nothing where it lies outside."""
    box = np.asarray(part.box_mm()) + np.array([[-margin_mm], [margin_mm]])
    corners = geometry.to_index(np.stack(np.meshgrid(*box.T, indexing="ij"), -1).reshape(-1, 3))
    lower = np.maximum(np.floor(corners.min(0)), 0).astype(int)
    upper = np.minimum(np.ceil(corners.max(0)) + 1, geometry.shape).astype(int)
    if (upper > lower).all():
        window = tuple(slice(int(low), int(high)) for low, high in zip(lower, upper, strict=True))
        yield window, _centers(geometry.cropped(lower.tolist(), upper.tolist()))


def _centers(geometry: Geometry) -> Array:
    """``(*shape, 3)`` world coordinates of the voxel centres."""
    return geometry.to_world(np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), -1))


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z
