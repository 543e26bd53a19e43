"""Runs the loop: from a module and its data to the weights that are kept, going on from the last checkpoint if there is one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from medseg.data.store import StoredCase
from medseg.errors import MedsegError
from medseg.inference.runtime import Precision
from medseg.training.allocation import freed_memory_is_kept
from medseg.training.callbacks import Clock, Progress, Record, Waiting
from medseg.training.module import TrainingModule
from medseg.training.settings import TrainerSettings

logger = logging.getLogger(__name__)
_CPU = torch.device("cpu")
Loggers = Callable[[Path], Sequence[Logger]]
"""Makes the loggers of a run, given its folder."""


@dataclass(frozen=True)
class Fitted:
    """What a run ended with: the kept weights, and the rows of its figures (one an epoch).

    ``rank`` is this process among those that trained together; the first one goes on to write the model.
    """

    weights: dict[str, Tensor]
    rows: list[dict[str, float]]
    best_epoch: int
    best_score: float
    seconds: float
    rank: int = 0


class TrainingData(pl.LightningDataModule):
    """Gives each process its share of the crops, and every process all ``tune`` cases.

    Args:
        make_loader: called with this process's rank, the number of processes and the device that this one trains on.
        tune: the cases to validate on.
    """

    def __init__(self, make_loader: Callable[[int, int, torch.device], Any], tune: Sequence[StoredCase]) -> None:
        super().__init__()
        self._make_loader = make_loader
        self._tune = list(tune)
        self.loader: Any = None

    def train_dataloader(self) -> Any:
        trainer = self.trainer
        where = (trainer.global_rank, trainer.world_size, trainer.strategy.root_device) if trainer else (0, 1, _CPU)
        self.loader = self._make_loader(*where)
        return self.loader

    @property
    def waited_s(self) -> float:
        """Seconds of this epoch in which the loop waited for a batch."""
        return float(getattr(self.loader, "waited_s", 0.0))

    def val_dataloader(self) -> DataLoader[StoredCase]:
        return DataLoader(self._tune, batch_size=None)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, StoredCase):
            return batch
        images = getattr(self.loader, "images", None)
        if images is None:
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        rest = {name: value for name, value in batch.items() if name != "pending"}
        moved = super().transfer_batch_to_device(rest, device, dataloader_idx)
        return images.finish({**moved, "pending": batch["pending"]}, device)


def fit(
    module: TrainingModule,
    data: TrainingData,
    settings: TrainerSettings,
    folder: Path,
    *,
    started: float,
    precision: Precision,
    loggers: Sequence[Logger] = (),
    reserve: float = 0.0,
    draw: Callable[[list[dict[str, float]]], None] = lambda rows: None,
) -> Fitted:
    """Train until the schedule ends, the clock cuts or patience runs out; a second call goes on where the first stopped.

    Args:
        folder: the run folder; ``checkpoints/`` and ``training.csv`` are written there.
        started: ``time.monotonic()`` at the start of the command, from which the budget counts.
        precision: ``"bf16"`` or ``"float32"``, already decided.
        reserve: seconds of the budget that are kept for what follows the training.
        draw: called with the rows so far, to draw curves and samples.

    Raises:
        MachineError: the loss is not finite, or the disk is full; running again goes on.
        KeyboardInterrupt: interrupted by the user; running again goes on.
    """
    last = folder / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(last)["medseg"] if last.exists() else {"total_steps": module.total_steps, "finished": False}
    waiting = Waiting(lambda: data.waited_s)
    record = Record(folder, settings, draw, waiting)
    clock = Clock(settings, started, reserve)
    callbacks = [clock, waiting, record, Progress(record, waiting)]
    trainer = make_trainer(settings, folder, precision, state["total_steps"], callbacks, loggers)
    if last.exists():
        logger.info("going on from %s", last.name)
    if state["finished"]:
        states = load_checkpoint(last)["callbacks"]
        record.load_state_dict(states["Record"])
        clock.load_state_dict(states["Clock"])
    else:
        try:
            with freed_memory_is_kept():
                trainer.fit(module, datamodule=data, ckpt_path=last if last.exists() else None, weights_only=True)
        finally:
            if data.loader is not None and hasattr(data.loader, "close"):
                data.loader.close()
        if trainer.interrupted:
            raise KeyboardInterrupt
    weights = safetensors.torch.load_file(last.with_name("best.safetensors"))
    return Fitted(weights, record.rows, record.best_epoch, record.best_score, clock.elapsed, trainer.global_rank)


def make_trainer(
    settings: TrainerSettings,
    folder: Path,
    precision: Precision,
    total_steps: int | None,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
) -> pl.Trainer:
    """A Trainer that leaves data order, checkpoints and progress to us."""
    epochs = settings.max_epochs if total_steps is None else -(-total_steps // settings.steps_per_epoch)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for words in ("does not have many workers", "exists and is not empty", "infer the `batch_size`", "LeafSpec"):
        warnings.filterwarnings("ignore", message=f".*{words}.*")  # nothing that a user could act on
    many = settings.devices not in ("auto", 1, "1")
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=1 if settings.accelerator in ("auto", "cpu") and not many else settings.devices,
            strategy="ddp" if many else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_epochs=epochs,
            gradient_clip_val=settings.clip or None,
            benchmark=True,  # every patch has one size, so cuDNN may find out once which of its convolutions is fastest
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=max(1, min(50, settings.steps_per_epoch)),
            callbacks=list(callbacks),
            logger=list(loggers) or False,
            default_root_dir=folder,
        )
    except (ValueError, RuntimeError) as error:  # an accelerator that is not there
        raise MedsegError(
            f"trainer.accelerator={settings.accelerator} trainer.devices={settings.devices}: {error}"
        ) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of this or an earlier process. Raises MedsegError where the file is not one."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["medseg"], checkpoint["callbacks"]
    except Exception as error:  # whatever torch raises for a damaged file
        raise MedsegError(f"{path}: not a checkpoint of medseg ({error}); start afresh with run.new=true") from None
    return checkpoint
