"""The Lightning module, written once for all tasks: a network, a task, an average of the weights, and nothing about files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from medseg.data.store import StoredCase
from medseg.errors import MachineError
from medseg.inference.predictor import predict_grid
from medseg.inference.runtime import Precision, TorchRuntime
from medseg.networks.layout import channels_last, channels_last_format
from medseg.planning.plan import Plan
from medseg.structures import Boxes
from medseg.tasks.base import Batch, Output, Task
from medseg.training.settings import Optimization
from medseg.volume import Array

SAMPLES = 3
Sample = tuple[Array, Array | Boxes, Array | Boxes]


class TrainingModule(pl.LightningModule):
    """Trains ``network`` on ``task``; validates the averaged weights on whole cases.

    ``total_steps`` is the length that the learning rate runs over; it is None while it is being measured, and belongs to
    the checkpoint. Randomness inside the network (dropout) is a function of seed and epoch, so that a run that was killed
    and resumed equals one that was not.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        plan: Plan,
        optimization: Optimization,
        *,
        ema: float,
        seed: int,
        total_steps: int | None,
        precision: Precision,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.plan = plan
        self.total_steps = total_steps
        self.averaged = AveragedModel(network, multi_avg_fn=_average(ema), use_buffers=True) if ema else None
        if self.averaged is not None:
            self.averaged.requires_grad_(False)
        self._optimization = optimization
        self._seed = seed
        self._precision = precision
        self._forward: Callable[[Tensor], Output] = torch.compile(network) if compiled else network
        self._losses: dict[str, Tensor] = {}
        self._steps_in_epoch = 0
        self._metrics = task.metrics()
        self._samples: dict[int, Sample] = {}

    @property
    def best_network(self) -> nn.Module:
        """The network whose weights are validated and kept: the average where there is one."""
        return self.network if self.averaged is None else self.averaged.module

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._optimization.build(self.network.parameters())

    def on_train_start(self) -> None:
        self.network.to(memory_format=channels_last_format(self.plan.dimensions))  # type: ignore[call-overload]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0:
            torch.manual_seed(self._seed + self.global_step)
            self._losses, self._steps_in_epoch = {}, 0
        rate = self._optimization.rate(self.global_step, self.total_steps)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = rate

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        parts = self.task.loss(self._forward(channels_last(batch["image"])), batch)
        loss = torch.stack(list(parts.values())).sum()
        for name, value in {"loss": loss, **parts}.items():
            self._losses[name] = self._losses.get(name, torch.zeros_like(value)) + value.detach()
        self._steps_in_epoch += 1
        if batch_idx % 10 == 0 or self.device.type == "cpu":
            self.check_finite(loss)
        return loss

    def check_finite(self, loss: Tensor) -> None:
        """Raises MachineError for a loss that is no longer a number: training on would waste the budget."""
        if not torch.isfinite(loss.detach()):
            raise MachineError(
                f"the loss turned {float(loss.detach())} at step {self.global_step}; expected a finite number. The last "
                f"checkpoint is sound: lower optim.lr (now {self._optimization.lr}) or set trainer.precision=float32, and "
                "start again with run.new=true"
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def epoch_losses(self) -> dict[str, float]:
        """Mean of each part of the loss over the steps of the epoch so far."""
        return {name: float(total) / max(self._steps_in_epoch, 1) for name, total in self._losses.items()}

    def on_validation_epoch_start(self) -> None:
        self._metrics = self.task.metrics()

    def validation_step(self, case: StoredCase, batch_idx: int) -> None:
        image = case.image((0,) * len(case.shape), case.shape)
        merged = self.predict_case(image)
        self._metrics.update(merged, case)
        if batch_idx < SAMPLES:
            self._samples = {**self._samples, batch_idx: (image, *self.task.shown(merged, case))}

    def samples(self) -> list[Sample]:
        """The first validated cases as ``(image (C, *S), truth, found)``, for pictures: masks ``(*S)`` or boxes."""
        return list(self._samples.values())

    def predict_case(self, image: Any) -> Any:
        """A preprocessed case ``(C, *S)`` → the merged result on the plan's grid, with the weights that are kept."""
        runtime = TorchRuntime(self.best_network, device=str(self.device), precision=self._precision)
        return predict_grid([runtime], image, self.plan, self.task, overlap=0.25, mirror=False)

    def validation_figures(self) -> dict[str, float]:
        return self._metrics.compute()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["medseg"] = {"total_steps": self.total_steps, "finished": bool(self.trainer.should_stop)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.total_steps = checkpoint["medseg"]["total_steps"]


def _average(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential average whose memory grows from 10 steps to 1 / (1 − decay), so that early weights are forgotten.

    Running figures of batch norm are averaged like weights, whose figures they are; whole numbers are copied.
    """

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        n = float(count)
        if averaged[0].is_floating_point():  # all of a call have one type
            torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))
        else:
            torch._foreach_copy_(averaged, current)

    return update
