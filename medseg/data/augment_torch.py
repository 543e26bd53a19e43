"""The changes of a `Recipe` to an image as operations of PyTorch, so that a device that has the window can apply them.

The same drawn `Parameters` give the same image as `Recipe.apply` to within rounding, on any device; only noise is other noise,
drawn from the same seed by the device's own generator. Nothing waits for the device, so that it may still be busy with the step
before. Labels are no business of this module: they are moved where crops are drawn, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medseg.data.augment import Parameters, Recipe, lose_resolution, sample


def change_image(recipe: Recipe, image: Tensor, patch_size: Sequence[int], parameters: Parameters) -> Tensor:
    """Window ``(C, *source)`` float32, as large as `Recipe.source_size` says → patch ``(C, *patch)`` on the same device."""
    if parameters.moves:
        image = sample(image, tuple(patch_size), recipe.matrix(parameters), recipe.plane, "bilinear")
    image = _change_intensities(image, parameters, recipe.plane)
    return image.flip([axis + 1 for axis in parameters.mirrored]) if parameters.mirrored else image


def _change_intensities(image: Tensor, p: Parameters, plane: tuple[int, ...]) -> Tensor:
    """In the order of `Recipe.apply`; the window itself stays as it is."""
    generator = torch.Generator(image.device).manual_seed(p.noise_seed) if p.noise else None
    changed = []
    for c, channel in enumerate(image):
        if generator is not None:
            noise = torch.randn(channel.shape, generator=generator, device=channel.device)
            channel = channel + p.noise[c] * noise
        if p.blur:
            channel = _blur(channel, p.blur[c])
        if p.brightness:
            channel = channel * p.brightness[c]
        if p.contrast:
            channel = _change_contrast(channel, p.contrast[c])
        if p.resolution and p.resolution[c] < 1:
            channel = lose_resolution(channel, p.resolution[c], plane)
        if p.gamma_inverted:
            channel = -_change_gamma(-channel, p.gamma_inverted[c])
        if p.gamma:
            channel = _change_gamma(channel, p.gamma[c])
        changed.append(channel)
    return torch.stack(changed)


def _blur(channel: Tensor, deviations: Sequence[float]) -> Tensor:
    """A Gaussian along each axis, mirrored at the border: what it does to a line is a small matrix."""
    for axis, deviation in enumerate(deviations):
        if deviation > 0:
            matrix = ndimage.gaussian_filter1d(np.eye(channel.shape[axis]), deviation, axis=0).astype(np.float32)
            along = torch.from_numpy(matrix.T.copy()).to(channel.device, non_blocking=True)
            channel = (channel.movedim(axis, -1) @ along).movedim(-1, axis)
    return channel


def _change_contrast(channel: Tensor, factor: float) -> Tensor:
    mean = channel.mean()
    return ((channel - mean) * factor + mean).clamp(channel.min(), channel.max())


def _change_gamma(channel: Tensor, exponent: float) -> Tensor:
    low, mean, deviation = channel.min(), channel.mean(), channel.std(correction=0)
    width = channel.max() - low
    changed = ((channel - low) / width.clamp(min=1e-7)) ** exponent
    changed = changed - changed.mean()
    changed = changed * (deviation / changed.std(correction=0).clamp(min=1e-7)) + mean
    return torch.where(width > 1e-7, changed, channel)
