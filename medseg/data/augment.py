"""Random changes of a training crop: what is drawn is a value (`Parameters`), and applying it is deterministic.

``draw`` turns a generator into parameters; ``apply`` turns a source window and parameters into a patch. So any sample
can be replayed, and only the window that this draw needs is read: most draws move nothing, and then the window *is* the
patch. Cropping, rotation and scaling are one interpolation: linear for images, nearest neighbour for labels, which are
never blurred; boxes move as the ellipsoids in them do. Nothing here knows cases, stores or workers, and nothing depends on
the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medseg.errors import MedsegError
from medseg.planning.plan import Plan
from medseg.volume import Array

ANISOTROPIC = 3.0
"""Above this ratio of spacings or patch lengths a volume is turned in its fine plane only, as nnU-Net does."""

P = TypeVar("P")


class Augment(Protocol[P]):
    """What a training crop goes through; ``P`` is whatever ``draw`` returns and the two others understand."""

    def draw(self, rng: np.random.Generator, channels: int) -> P:
        """Take every random decision for one crop; the only place where randomness enters."""

    def source_size(self, patch_size: Sequence[int], parameters: P) -> tuple[int, ...]:
        """The window to read for a patch; longer or shorter by an even number, so that both share their centre."""

    def apply(
        self, image: Array, label: Array | None, patch_size: Sequence[int], parameters: P
    ) -> tuple[Array, Array | None]:
        """Window ``(C, *source)`` float32 and ``(1, *source)`` int16 → patch ``(C, *patch)`` and ``(1, *patch)``.

        The arguments are left as they are; the label may be missing.
        """

    def move(self, boxes: Array, patch_size: Sequence[int], parameters: P) -> Array:
        """Boxes ``(N, 2·D)`` in voxel edges of the window → of the patch, beyond which they may reach."""


@dataclass(frozen=True)
class Parameters:
    """What was drawn for one crop. The default changes nothing; an entry a channel where a tuple is said to be so.

    Args:
        angles_deg: turn about each axis of a volume, or the one turn in the plane; empty: none.
        scale: length in the source of one length in the patch: above 1, what is seen shrinks.
        mirrored: axes that are flipped, last of all.
        noise: deviation of the added noise of each channel; ``noise_seed`` says which noise.
        blur: deviation in voxels along each axis, for each channel.
        brightness, contrast, gamma_inverted, gamma: factor or exponent of each channel.
        resolution: share of its voxels that each channel keeps along an axis.
    """

    angles_deg: tuple[float, ...] = ()
    scale: float = 1.0
    mirrored: tuple[int, ...] = ()
    noise: tuple[float, ...] = ()
    noise_seed: int = 0
    blur: tuple[tuple[float, ...], ...] = ()
    brightness: tuple[float, ...] = ()
    contrast: tuple[float, ...] = ()
    resolution: tuple[float, ...] = ()
    gamma_inverted: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether the patch is interpolated (a turn or a scale), not only cut out and mirrored."""
        return bool(self.angles_deg) or self.scale != 1.0


@dataclass(frozen=True)
class Recipe:
    """How likely each change is and how far it goes; an `Augment`.

    Args:
        spacing: length of a voxel along each axis: turns are turns in the patient, not in the index.
        plane: axes that are turned, scaled and thinned: all, or the two fine ones of an anisotropic volume.
        mirror_axes: axes that are flipped with probability ½ each.
        rotation_deg: the largest turn about an axis; ``p_…`` is the probability of a change.
        scale, noise, blur, brightness, contrast, resolution, gamma: ``(low, high)`` of what `Parameters` calls so.
        per_channel: of the channels of a crop that is blurred or thinned, the share that is.
    """

    spacing: tuple[float, ...]
    plane: tuple[int, ...]
    mirror_axes: tuple[int, ...] = ()
    rotation_deg: float = 0.0
    p_rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    p_scale: float = 0.0
    noise: tuple[float, float] = (0.0, 0.1)
    p_noise: float = 0.0
    blur: tuple[float, float] = (0.5, 1.0)
    p_blur: float = 0.0
    brightness: tuple[float, float] = (0.75, 1.25)
    p_brightness: float = 0.0
    contrast: tuple[float, float] = (0.75, 1.25)
    p_contrast: float = 0.0
    resolution: tuple[float, float] = (0.5, 1.0)
    p_resolution: float = 0.0
    gamma: tuple[float, float] = (0.7, 1.5)
    p_gamma_inverted: float = 0.0
    p_gamma: float = 0.0
    per_channel: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("p_") or field.name == "per_channel":
                if not 0 <= value <= 1:
                    raise MedsegError(f"augment.{field.name}: expected a probability between 0 and 1, found {value}")
            elif isinstance(value, (list, tuple)):
                object.__setattr__(self, field.name, tuple(value))
        for name in ("scale", "noise", "blur", "brightness", "contrast", "resolution", "gamma"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                raise MedsegError(f"augment.{name}: expected [low, high] with 0 ≤ low ≤ high, found {list(pair)}")
        dimensions = len(self.spacing)
        for name in ("plane", "mirror_axes"):
            axes = getattr(self, name)
            if len(set(axes)) != len(axes) or not set(axes) <= set(range(dimensions)):
                raise MedsegError(f"augment.{name}: expected different axes below {dimensions}, found {list(axes)}")
        if len(self.plane) not in (2, dimensions) or min(self.scale[0], self.resolution[0]) <= 0:
            raise MedsegError("augment: expected two axes or all of them in plane, and scale and resolution above 0")

    def draw(self, rng: np.random.Generator, channels: int) -> Parameters:
        def happens(probability: float) -> bool:
            return bool(rng.random() < probability)

        def each(values: tuple[float, float]) -> tuple[float, ...]:
            return tuple(float(v) for v in rng.uniform(*values, size=channels))

        def factors(values: tuple[float, float]) -> tuple[float, ...]:
            """Below and above 1 equally often, however the range lies about 1."""
            low, high = values
            below, above = (low, min(high, 1.0)), (max(low, 1.0), high)
            halves = [half for half in (below, above) if half[0] < half[1]] or [values]
            return tuple(float(rng.uniform(*halves[int(rng.integers(len(halves)))])) for _ in range(channels))

        def some(values: tuple[float, ...], otherwise: float) -> tuple[float, ...]:
            return tuple(v if happens(self.per_channel) else otherwise for v in values)

        turns = len(self.spacing) if len(self.plane) == 3 else 1
        drawn: dict[str, Any] = {}
        if happens(self.p_rotation):
            drawn["angles_deg"] = tuple(float(a) for a in rng.uniform(-self.rotation_deg, self.rotation_deg, turns))
        if happens(self.p_scale):
            drawn["scale"] = float(rng.uniform(*self.scale))
        if happens(self.p_noise):
            drawn["noise"] = (float(rng.uniform(*self.noise)),) * channels
            drawn["noise_seed"] = int(rng.integers(2**63))
        if happens(self.p_blur):
            chosen = some((1.0,) * channels, 0.0)
            drawn["blur"] = tuple(tuple(c * float(rng.uniform(*self.blur)) for _ in self.spacing) for c in chosen)
        if happens(self.p_brightness):
            drawn["brightness"] = factors(self.brightness)
        if happens(self.p_contrast):
            drawn["contrast"] = factors(self.contrast)
        if happens(self.p_resolution):
            drawn["resolution"] = some(each(self.resolution), 1.0)
        if happens(self.p_gamma_inverted):
            drawn["gamma_inverted"] = factors(self.gamma)
        if happens(self.p_gamma):
            drawn["gamma"] = factors(self.gamma)
        drawn["mirrored"] = tuple(axis for axis in self.mirror_axes if happens(0.5))
        return Parameters(**drawn)

    def matrix(self, parameters: Parameters) -> Array:
        """``(D, D)``: offset from the centre in the patch → offset from the centre in the source, both in voxels.

        A turn is taken in mm: scale · spacing⁻¹ · R · spacing, R the right-handed turns about i, then j, then k.
        """
        dimensions = len(self.spacing)
        turn = np.eye(dimensions)
        planes = [(1, 2), (2, 0), (0, 1)] if len(self.plane) == 3 else [(self.plane[0], self.plane[1])]
        for (a, b), angle in zip(planes, parameters.angles_deg or (0.0,) * len(planes), strict=True):
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            step = np.eye(dimensions)
            step[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
            turn = step @ turn
        spacing = np.asarray(self.spacing)
        stretch = np.array([parameters.scale if axis in self.plane else 1.0 for axis in range(dimensions)])
        return np.asarray(stretch[:, None] * turn * spacing[None, :] / spacing[:, None])

    def source_size(self, patch_size: Sequence[int], parameters: Parameters) -> tuple[int, ...]:
        patch = tuple(int(n) for n in patch_size)
        if not parameters.moves:
            return patch
        extent = np.abs(self.matrix(parameters)) @ (np.asarray(patch) - 1.0)
        return tuple(n + 2 * math.ceil((e + 1 - n) / 2 - 1e-6) for n, e in zip(patch, extent, strict=True))

    def apply(
        self, image: Array, label: Array | None, patch_size: Sequence[int], parameters: Parameters
    ) -> tuple[Array, Array | None]:
        patch = tuple(int(n) for n in patch_size)
        expected = self.source_size(patch, parameters)
        found = {name: list(a.shape[1:]) for name, a in (("image", image), ("label", label)) if a is not None}
        if any(size != list(expected) for size in found.values()):
            raise MedsegError(
                f"augment: expected a window of {list(expected)} voxels for a patch of {list(patch)}, "
                f"found {' and '.join(f'{name} {size}' for name, size in found.items())}; ask source_size() for it"
            )
        if parameters.moves:
            image = _sample_array(image, patch, self.matrix(parameters), self.plane, "bilinear")
        image = _change_intensities(image, parameters, self.plane)
        image = np.ascontiguousarray(np.flip(image, _flipped(parameters)))
        return image, None if label is None else self.apply_to_label(label, patch, parameters)

    def apply_to_label(self, label: Array, patch_size: Sequence[int], parameters: Parameters) -> Array:
        """The label that `apply` gives, without the image: for images that are changed elsewhere."""
        if parameters.moves:
            label = _sample_array(label, tuple(patch_size), self.matrix(parameters), self.plane, "nearest")
        return np.ascontiguousarray(np.flip(label, _flipped(parameters)))

    def move(self, boxes: Array, patch_size: Sequence[int], parameters: Parameters) -> Array:
        """A turned box is the smallest box around its turned ellipsoid: a box around turned corners would grow with every
        turn, although most lesions are round. With M the linear map and h half the lengths, half of the new ones are
        ``sqrt(Σⱼ (M_ij h_j)²)``."""
        patch = np.asarray(patch_size, np.float64)
        low, high = np.split(np.array(boxes, np.float64), 2, axis=1)
        if parameters.moves:
            inverse = np.linalg.inv(self.matrix(parameters))
            source = np.asarray(self.source_size(patch_size, parameters), np.float64)
            centre = ((low + high - source) / 2) @ inverse.T + patch / 2
            half = np.sqrt(((high - low) / 2) ** 2 @ (inverse**2).T)
            low, high = centre - half, centre + half
        for axis in parameters.mirrored:
            low[:, axis], high[:, axis] = patch[axis] - high[:, axis], patch[axis] - low[:, axis]
        return np.concatenate([low, high], axis=1)


def none(plan: Plan, **changes: Any) -> Recipe:
    """Nothing is changed, except what ``changes`` asks for by the names of `Recipe`."""
    return _changed("none", Recipe(plan.spacing, _plane(plan)), changes)


def light(plan: Plan, **changes: Any) -> Recipe:
    """Mirroring, small turns and scales, a little noise and brightness: for short trainings and many cases."""
    recipe = Recipe(
        spacing=plan.spacing,
        plane=_plane(plan),
        mirror_axes=plan.mirror_axes,
        rotation_deg=15.0,
        p_rotation=0.2,
        scale=(0.85, 1.25),
        p_scale=0.2,
        p_noise=0.1,
        p_brightness=0.15,
    )
    return _changed("light", recipe, changes)


def strong(plan: Plan, **changes: Any) -> Recipe:
    """The set that nnU-Net made standard, in its order and with its probabilities and ranges.

    Isensee et al. 2021, "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
    Nature Methods 18, supplementary note on data augmentation. Where version 2 of nnU-Net trains with other numbers
    than the paper prints (noise 0.1 instead of 0.15, blur to 1.0 instead of 1.5, brightness and contrast ±25 %, gamma
    0.3 and inverted 0.1, linear instead of cubic after losing resolution), those of version 2.

    Volumes are turned by ±30° about each axis; a plane (pictures, anisotropic volumes) by ±180°, or ±15° for a picture
    whose patch is longer than 1.5 times its width. Two differences: turns are taken in mm, and a plane in which the
    plan does not mirror both axes is turned by ±15° only, since half a turn is both mirrorings.

    Args:
        plan: gives spacing, patch and the axes to mirror.
        changes: other values by the names of `Recipe`, for example ``rotation_deg=10, p_gamma=0``.
    """
    plane = _plane(plan)
    lengths = [plan.patch_size[axis] for axis in plane]
    if len(plane) == 3:
        rotation = 30.0
    elif not set(plane) <= set(plan.mirror_axes) or (plan.dimensions == 2 and max(lengths) > 1.5 * min(lengths)):
        rotation = 15.0
    else:
        rotation = 180.0
    recipe = Recipe(
        spacing=plan.spacing,
        plane=plane,
        mirror_axes=plan.mirror_axes,
        rotation_deg=rotation,
        p_rotation=0.2,
        scale=(0.7, 1.4),
        p_scale=0.2,
        p_noise=0.1,
        p_blur=0.2,
        p_brightness=0.15,
        p_contrast=0.15,
        p_resolution=0.25,
        p_gamma_inverted=0.1,
        p_gamma=0.3,
    )
    return _changed("strong", recipe, changes)


def _changed(name: str, recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    known = [field.name for field in fields(recipe) if field.name != "spacing"]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise MedsegError(
            f"augment: medseg.data.augment.{name}() has no argument {', '.join(map(repr, unknown))}; "
            f"it accepts {', '.join(known)}."
        )
    return replace(recipe, **changes)


def _plane(plan: Plan) -> tuple[int, ...]:
    """The axes to turn in: all, or the two fine ones if the coarsest axis is `ANISOTROPIC` (in spacing or patch)."""
    axes = tuple(range(plan.dimensions))
    if plan.dimensions == 2:
        return axes
    by_patch = min(axes, key=lambda a: plan.patch_size[a])
    by_spacing = max(axes, key=lambda a: plan.spacing[a])
    if plan.spacing[by_spacing] > ANISOTROPIC * min(plan.spacing):
        return tuple(a for a in axes if a != by_spacing)
    if max(plan.patch_size) > ANISOTROPIC * plan.patch_size[by_patch]:
        return tuple(a for a in axes if a != by_patch)
    return axes


def sample(image: Tensor, patch: tuple[int, ...], matrix: Array, plane: tuple[int, ...], mode: str) -> Tensor:
    """Read ``(C, *source)`` float32 at ``matrix`` · (offset from the patch's centre): ``(C, *patch)``, on the same device.

    The axis that a plane leaves out becomes channels of a 2D sampling, which is several times faster.
    """
    still = [axis for axis in range(len(patch)) if axis not in plane]
    moved = image.movedim([axis + 1 for axis in still], list(range(1, 1 + len(still))))
    lead, source = moved.shape[: 1 + len(still)], moved.shape[1 + len(still) :]
    size = tuple(patch[axis] for axis in plane)
    # torch's coordinates run from −1 to 1 between the outer edges of the source, the last axis first. They are summed
    # axis by axis rather than by affine_grid, whose matrix product rounds differently with another number of threads.
    columns = []
    for row in reversed(range(len(plane))):
        column = torch.zeros(size, device=image.device)
        for axis, n in enumerate(size):
            line = (np.arange(n) - (n - 1) / 2) * (matrix[plane[row], plane[axis]] * 2 / source[row])
            on_device = torch.from_numpy(line.astype(np.float32)).to(image.device, non_blocking=True)
            column += on_device.view([-1 if a == axis else 1 for a in range(len(plane))])
        columns.append(column)
    sampled = functional.grid_sample(
        moved.reshape(1, -1, *source), torch.stack(columns, -1)[None], mode, padding_mode="border", align_corners=False
    )
    return sampled.reshape(*lead, *size).movedim(list(range(1, 1 + len(still))), [axis + 1 for axis in still])


def lose_resolution(channel: Tensor, share: float, plane: tuple[int, ...]) -> Tensor:
    """Keep every so-many-th voxel of ``(*S)`` along the axes of ``plane`` and interpolate linearly between them."""
    size = list(channel.shape)
    fewer = [max(1, round(n * share)) if axis in plane else n for axis, n in enumerate(size)]
    mode = "trilinear" if channel.ndim == 3 else "bilinear"
    thin = functional.interpolate(channel[None, None], size=fewer, mode="nearest-exact")
    return functional.interpolate(thin, size=size, mode=mode, align_corners=False)[0, 0]


def _sample_array(array: Array, patch: tuple[int, ...], matrix: Array, plane: tuple[int, ...], mode: str) -> Array:
    """`sample` of an array, whose type is kept."""
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return sample(values, patch, matrix, plane, mode).numpy().astype(array.dtype, copy=False)


def _flipped(parameters: Parameters) -> tuple[int, ...]:
    """The axes of ``(C, *S)`` that are flipped."""
    return tuple(axis + 1 for axis in parameters.mirrored)


def _change_intensities(image: Array, parameters: Parameters, plane: tuple[int, ...]) -> Array:
    """The changes that leave every voxel in its place, in nnU-Net's order; a fresh array if there are any."""
    p = parameters
    if not (p.noise or p.blur or p.brightness or p.contrast or p.resolution or p.gamma_inverted or p.gamma):
        return image
    out = np.array(image, dtype=np.float32, order="C")
    rng = np.random.Generator(np.random.Philox(p.noise_seed)) if p.noise else None
    for c, channel in enumerate(out):
        if rng is not None:
            channel += np.float32(p.noise[c]) * rng.standard_normal(channel.shape, dtype=np.float32)
        if p.blur and any(p.blur[c]):
            ndimage.gaussian_filter(channel, p.blur[c], output=channel)
        if p.brightness:
            channel *= np.float32(p.brightness[c])
        if p.contrast:
            _change_contrast(channel, p.contrast[c])
        if p.resolution and p.resolution[c] < 1:
            out[c] = lose_resolution(torch.from_numpy(channel), p.resolution[c], plane).numpy()
        if p.gamma_inverted:
            np.negative(channel, out=channel)
            _change_gamma(channel, p.gamma_inverted[c])
            np.negative(channel, out=channel)
        if p.gamma:
            _change_gamma(channel, p.gamma[c])
    return out


def _change_contrast(channel: Array, factor: float) -> None:
    """Stretch about the mean, in place; values stay within the range that was there."""
    low, high, mean = channel.min(), channel.max(), channel.mean()
    channel -= mean
    channel *= np.float32(factor)
    channel += mean
    np.clip(channel, low, high, out=channel)


def _change_gamma(channel: Array, exponent: float) -> None:
    """x ↦ x^γ on the channel's own range, in place; mean and deviation are kept."""
    low, mean, deviation = channel.min(), channel.mean(), channel.std()
    width = channel.max() - low
    if width <= 1e-7:
        return
    channel -= low
    channel /= width
    np.power(channel, np.float32(exponent), out=channel)
    channel -= channel.mean()
    channel *= deviation / max(channel.std(), np.float32(1e-7))
    channel += mean
