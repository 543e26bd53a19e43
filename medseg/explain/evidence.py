"""The number that every method explains: what a network says of a window, and of a whole case by its windows.

Owns how a network is run so that a gradient can be taken. What the number means is the task's, which windows it is made of
`medseg.explain.stitching`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg.explain.stitching import Share, Stitching
from medseg.inference.runtime import Precision, TorchRuntime
from medseg.tasks.base import Task
from medseg.tiling.windows import cut_window
from medseg.volume import Array


class Evidence:
    """One network whose scores can be differentiated by its input and its feature maps, not by its weights.

    Args:
        network: it is used as it is, not copied, and put into evaluation mode and onto the device.
        task: says what counts as evidence (`Task.score`).
        device, precision: as for `TorchRuntime`.
    """

    def __init__(self, network: nn.Module, task: Task, *, device: str = "auto", precision: Precision = "auto") -> None:
        self.network, self.task = network.requires_grad_(False), task
        self.device, self.precision = device, precision
        self._runtime = TorchRuntime(network, device=device, precision=precision)

    def output(self, batch: Tensor) -> Any:
        """What the network says of ``(B, C, *patch)``, in float32."""
        return self._runtime.forward(batch)

    def score(self, batch: Tensor, name: str, region: Array | None = None) -> Tensor:
        """``(B,)`` float32: how much speaks for the class or label ``name`` in ``region`` ``(1, *patch)`` of each window."""
        output = self.output(batch)
        if region is None:
            return self.task.score(output, name)
        inside = torch.from_numpy(region).to(self._runtime.device)
        return self.task.score(output, name, inside.expand(len(batch), *inside.shape))


@dataclass(frozen=True, eq=False)
class CaseScore:
    """The score of a whole case by one network: the sum of what its windows contribute.

    Args:
        name: of the class or label.
        shares: the windows and their part in it.
    """

    evidence: Evidence
    stitching: Stitching
    name: str
    shares: tuple[Share, ...]

    def __call__(self, array: Array) -> float:
        """The score of ``(C, *shape)``."""
        with torch.no_grad():
            return sum(float(self.of_window(self.cut(array, share.lower), share)) for share in self.shares)

    def cut(self, array: Array, lower: tuple[int, ...]) -> Tensor:
        """A window ``(1, C, *patch)`` of ``(C, *shape)``, zeros (the mean) beyond the case."""
        window = np.array(cut_window(array, lower, self.stitching.patch), np.float32)
        return torch.from_numpy(window)[None]

    def of_window(self, batch: Tensor, share: Share) -> Tensor:
        """``(B,)``: what each of ``(B, C, *patch)`` would contribute in the place of this window."""
        return share.weight * self.evidence.score(batch, self.name, share.region())
