"""What a network has learned, whatever it is for: the filters that it begins with, what a layer answers to an image, and the
input that excites a channel of a layer most. Which layers there are is said by `medseg.explain.layers.layer_members`, how all
this is shown elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg.errors import MedsegError
from medseg.explain.layers import watching
from medseg.volume import Array

_CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Ascent:
    """How the input that excites a channel is searched for.

    Args:
        steps: of gradient ascent (Adam).
        rate: of a step, in standard deviations of a normalised image.
        jitter: voxels by which the input is shifted at random before each step, along each axis, so that no pattern hangs on
            one place of a layer's grid (Mordvintsev et al. 2015, "Inceptionism").
        variation: weight of the total variation, the mean step between neighbours: more gives smoother inputs.
        energy: weight of the mean square; a channel that hangs on single voxels alone is answered with values of
            ``1 / (2 · energy)``.
        seed: of the noise that it starts from, and of the jitter.
    """

    steps: int = 64
    rate: float = 0.1
    jitter: int = 2
    variation: float = 0.1
    energy: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": self.steps >= 1, "rate": self.rate > 0, "energy": self.energy > 0}
        least |= {"jitter": self.jitter >= 0, "variation": self.variation >= 0}
        wrong = [f"{name}={getattr(self, name)}" for name, holds in least.items() if not holds]
        if wrong:
            raise MedsegError(
                "features: expected steps of 1 or more, rate and energy above 0, jitter and variation of 0 or more, found "
                f"{', '.join(wrong)}"
            )


def first_filters(network: nn.Module, image: Array) -> tuple[str, Array]:
    """The name and the weights ``(K, C, *kernel)`` of the convolution that an image meets first, wherever it is declared.

    Args:
        image: ``(C, *S)`` as the network takes it; convolutions along fewer axes are passed over.

    Raises:
        MedsegError: it meets none.
    """
    kind = _CONVOLUTIONS[image.ndim - 1]
    known = {name: module for name, module in network.named_modules() if isinstance(module, kind)}
    met: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: met.append(name))  # type: ignore[misc]
        for name, module in known.items()
    ]
    try:
        with torch.no_grad():
            network(torch.from_numpy(image[None]).float().to(_device(network)))
    finally:
        for hook in hooks:
            hook.remove()
    if not met:
        raise MedsegError(
            f"features: expected a network that looks at its input with a {kind.__name__}, found none in "
            f"{type(network).__name__}; it has no filters to show"
        )
    return met[0], known[met[0]].weight.detach().cpu().float().numpy()


def activations(network: nn.Module, layer: str, image: Array) -> Array:
    """What each channel of a layer answers to an image: ``(K, *s)`` on the layer's own, coarser grid.

    Args:
        layer: its name; it has one feature map.
        image: ``(C, *S)`` as the network takes it.
    """
    batch = torch.from_numpy(image[None]).float().to(_device(network))
    with torch.no_grad():
        found: Array = _map(network, layer, batch)[0].cpu().numpy()
    return found


def exciting_input(
    network: nn.Module, layer: str, channel: int, shape: Sequence[int], how: Ascent | None = None
) -> Array:
    """The image ``(C, *S)`` that a channel of a layer answers to most strongly, of all that are not too rough or too bright.

    It climbs the mean activation (Erhan et al. 2009, "Visualizing higher-layer features of a deep network"), less its weighted
    total variation and mean square (Mahendran & Vedaldi 2016, eq. 2). The activation is measured in its spread over an image
    of white noise, so that the weights mean the same in every layer. The same seed gives the same image.

    Args:
        layer: its name; it has one feature map.
        shape: ``(C, *S)``, of a size that the network takes.

    Raises:
        MedsegError: the layer has no such channel.
    """
    how = how or Ascent()
    device, dice = _device(network), torch.Generator().manual_seed(how.seed)
    noise = torch.randn((1, *shape), generator=dice).to(device)
    with torch.no_grad():
        channels = _map(network, layer, noise)[0]
    if not 0 <= channel < len(channels):
        raise MedsegError(f"features: the layer has channels 0 to {len(channels) - 1}, found {channel}")
    spread = channels[channel].square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    image = (0.1 * noise).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=how.rate)
    axes = tuple(range(2, image.ndim))
    for _ in range(how.steps):
        shift = torch.randint(-how.jitter, how.jitter + 1, (len(axes),), generator=dice).tolist()
        excited = _map(network, layer, image.roll(shift, axes))[0, channel].mean() / spread
        penalty = how.variation * _variation(image) + how.energy * image.square().mean()
        (image.grad,) = torch.autograd.grad(penalty - excited, image)
        optimizer.step()
    found: Array = image.detach()[0].cpu().numpy()
    return found


def strongest(answers: Array, count: int) -> list[int]:
    """The ``count`` channels of ``(K, *s)`` that vary most over the image, by number: those that see something in it."""
    spread = answers.reshape(len(answers), -1).std(axis=1)
    return sorted(int(channel) for channel in (-spread).argsort(kind="stable")[:count])


def _variation(image: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, summed over the axes of ``(1, C, *S)``."""
    return torch.stack([image.diff(dim=axis).abs().sum() for axis in range(2, image.ndim)]).sum() / image.numel()


def _map(network: nn.Module, layer: str, batch: Tensor) -> Tensor:
    """``(B, K, *s)``: what a layer answers; the network goes no further."""
    with watching(network, [layer], only=True) as maps:
        network(batch)
    return maps[layer]


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
