"""What a model has learned, on sheets below ``features``: filters, what a layer answers to a case, and what excites it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg.data.preprocess import preprocess
from medseg.explain.features import activations, exciting_input, first_filters, strongest
from medseg.explain.layers import default_layer, layer_members, run_order
from medseg.export.feature_sheets import activation_tiles, draw_sheet, filter_tiles, input_tiles
from medseg.inference.runtime import find_device
from medseg.model import Model
from medseg.scans.names import case_id, slug
from medseg.tiling.windows import cut_window
from medseg.volume import Volume

FOLDER = "features"
_SHOWN = 31
"""Channels of a layer whose answers are shown, those that vary most."""
_EXCITED = {2: 6, 3: 3}
"""Channels whose exciting inputs are searched for, in pictures and volumes."""
_SIDE = {2: 64, 3: 32}
"""Of an exciting input, unless the network must have more or the window has less."""


class FeatureSheets:
    """Draws sheets of one model.

    Args:
        layer: a module by name; None for the one that heat maps look at by default. Of a list of modules, the first.
        runtime: of `TorchRuntime`; its device is used.
        trust: targets of networks that are not built in.

    Raises:
        MedsegError: a layer that does not exist, or has no feature map; those that have are listed.
    """

    def __init__(
        self, model: Model, layer: str | None, *, runtime: Mapping[str, Any] | None = None, trust: Sequence[str] = ()
    ) -> None:
        plan = self._plan = model.plan
        device = find_device(str((runtime or {}).get("device", "auto")))
        network = self._network = model.network_module(trust).requires_grad_(False).to(device)
        window = torch.zeros(1, len(plan.channels), *plan.patch_size, device=device)
        ran = run_order(network, lambda: network(window))
        chosen = layer or default_layer(ran, plan.patch_size, str(model.task["name"]))
        self._layer = layer_members(ran, chosen, plan.dimensions)[0]

    def write(self, volume: Volume, case: str, folder: Path) -> None:
        """Draw all sheets for a case into ``folder``, whole files each.

        Raises:
            MedsegError: the volume does not fit the plan, or the network has no convolution.
        """
        network, layer, patch = self._network, self._layer, self._plan.patch_size
        filters, activated, exciting = self._paths(case, folder)
        array, _ = preprocess(volume, self._plan)
        image = cut_window(array, [(n - p) // 2 for n, p in zip(array.shape[1:], patch, strict=True)], patch)
        name, weights = first_filters(network, image)
        answers = activations(network, layer, image)
        size = [_side(p, d, _SIDE[self._plan.dimensions]) for p, d in zip(patch, self._plan.divisor, strict=True)]
        channels = strongest(answers, _EXCITED[self._plan.dimensions])
        excited = {channel: exciting_input(network, layer, channel, (len(array), *size)) for channel in channels}
        draw_sheet(filter_tiles(weights), filters, title=f"first filters: {name}")
        draw_sheet(
            activation_tiles(image, answers, strongest(answers, _SHOWN)),
            activated,
            title=f"{layer} of case {case}: the channels that vary most in its middle",
        )
        draw_sheet(input_tiles(excited), exciting, title=f"{layer}: the input that excites a channel most")

    def is_done(self, case: str, folder: Path) -> bool:
        """Whether ``folder``, which belongs to the same model, holds all sheets for a case."""
        return all(path.is_file() for path in self._paths(case, folder))

    def _paths(self, case: str, folder: Path) -> tuple[Path, Path, Path]:
        place = slug(self._layer)
        names = "filters", f"activations_{place}_{case_id(case)}", f"exciting_{place}"
        filters, activated, exciting = (folder / f"{name}.png" for name in names)
        return filters, activated, exciting


def _side(patch: int, divisor: int, wanted: int) -> int:
    """The side of an exciting input: what is wanted, at least two cells of the coarsest map, at most the window."""
    return min(patch, max(2 * divisor, -(-wanted // divisor) * divisor))
