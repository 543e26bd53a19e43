"""Images that are made where the network is: of windows that workers have read, or cut there out of cases that the device holds.

What a crop shows is still decided where it is drawn, from (seed, epoch, index) alone, and its label and target are made there;
only the image is left `Pending`. Owns what is kept on a device and whether it fits; knows no networks and no Lightning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medseg.data.augment import Parameters, Recipe
from medseg.data.augment_torch import change_image
from medseg.data.store import Store
from medseg.errors import MedsegError

logger = logging.getLogger(__name__)
SHARE = 0.3
"""Of the memory that is free on a device before training, what cases may fill; the network needs the rest."""


class Pending(NamedTuple):
    """The image of a crop before it is changed: ``window`` (C, *source) float32, or None where a device holds the case, of which
    it is ``[first, last)``."""

    case: str
    first: tuple[int, ...]
    last: tuple[int, ...]
    window: Tensor | None
    parameters: Parameters


class HeldCases:
    """The images of all cases of a training on a device, in the number format of the store."""

    def __init__(self, store: Store, ids: Sequence[str], device: torch.device) -> None:
        self._images = {name: _narrowed(store.case(name).whole()[0]).to(device) for name in ids}

    def window(self, case: str, first: Sequence[int], last: Sequence[int]) -> Tensor:
        """``[first, last)`` of a case as ``(C, *size)`` float32; 0 beyond it, as in the store."""
        image = self._images[case]
        low = [min(max(at, 0), n) for at, n in zip(first, image.shape[1:], strict=True)]
        high = [max(min(at, n), lowest) for at, n, lowest in zip(last, image.shape[1:], low, strict=True)]
        inside = image[(slice(None), *map(slice, low, high))]
        out = inside.new_zeros((len(image), *(b - a for a, b in zip(first, last, strict=True))), dtype=torch.float32)
        place = (slice(a - at, b - at) for a, b, at in zip(low, high, first, strict=True))
        out[(slice(None), *place)] = inside
        return out


class DeviceImages:
    """Finishes batches on a device.

    Args:
        recipe: the augmentation that drew the parameters.
        patch_size: of the plan.
        held: the cases that are on the device; None where workers send windows.

    Raises:
        MedsegError: the augmentation is none that PyTorch can apply.
    """

    def __init__(self, recipe: Any, patch_size: Sequence[int], held: HeldCases | None = None) -> None:
        if not isinstance(recipe, Recipe):
            raise MedsegError(
                f"trainer.augment_on=device: expected an augmentation of medseg's own (augment=strong, light or none), found "
                f"{type(recipe).__name__}, which knows arrays only; set trainer.augment_on=workers"
            )
        self.recipe, self.patch_size, self.held = recipe, tuple(patch_size), held

    @torch.no_grad()
    def finish(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """The batch with ``image`` (B, C, *patch) float32 on ``device`` in place of ``pending``."""
        pending: Sequence[Pending] = batch["pending"]
        images = [change_image(self.recipe, self._window(p, device), self.patch_size, p.parameters) for p in pending]
        return {"image": torch.stack(images), **{name: value for name, value in batch.items() if name != "pending"}}

    def _window(self, pending: Pending, device: torch.device) -> Tensor:
        if pending.window is not None:
            return pending.window.to(device, non_blocking=True)
        if self.held is None:
            raise RuntimeError(f"case {pending.case!r}: neither its window came with the crop nor is it on {device}")
        return self.held.window(pending.case, pending.first, pending.last)


def hold_cases(store: Store, ids: Sequence[str], device: torch.device, *, always: bool = False) -> HeldCases | None:
    """All images on ``device``, or None where they would fill more than `SHARE` of what is free there; the log says which.

    Args:
        always: hold them however little is free. On a CPU, where nothing is gained by it, they are held only so.
    """
    needed = sum(store.case(name).image_bytes for name in ids)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if not always and needed > SHARE * free:
        logger.info(
            "the images of %d cases take %.2f GB, more than %.0f %% of the %.2f GB that are free on %s: they are streamed",
            len(ids), needed / 1e9, 100 * SHARE, free / 1e9, device,
        )  # fmt: skip
        return None
    logger.info("the images of %d cases, %.2f GB, are kept on %s", len(ids), needed / 1e9, device)
    return HeldCases(store, ids, device)


def _narrowed(image: np.ndarray) -> Tensor:
    """float16 where that loses nothing, as for all that is stored so."""
    with np.errstate(over="ignore"):
        half = image.astype(np.float16)
    return torch.from_numpy(half if np.array_equal(half, image) else image)
