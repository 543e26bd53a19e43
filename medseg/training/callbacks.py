"""What happens around the steps: the length of the run, the table of its figures, its checkpoints and its pictures.

A checkpoint holds everything that the rows of ``training.csv`` and the weights depend on, so that a killed run that is started
again ends with the same weights and the same rows. Nothing in ``training.csv`` depends on the clock.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

from medseg.errors import MachineError
from medseg.files import whole_file, write_text
from medseg.training.module import TrainingModule
from medseg.training.settings import TrainerSettings

logger = logging.getLogger(__name__)
SETTLE = 5  # first steps of a process, which warm caches up and are not measured


class Clock(Callback):
    """Fixes the length of the schedule after a measured first epoch, and cuts when the budget is used up.

    The length is kept in the checkpoint and never measured again, so the learning rate of a resumed run does not jump; a run
    that turns out slower than measured is cut by the clock, before an epoch that would not fit.
    """

    def __init__(self, settings: TrainerSettings, started: float, reserve: float = 0.0) -> None:
        self._settings = settings
        self._started = started
        self._reserve = reserve
        self._before = 0.0
        self._steps: list[float] = []
        self._last = self._epoch_start = time.monotonic()
        self.epoch_seconds: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds that all processes of this run have spent."""
        return self._before + time.monotonic() - self._started

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._last = time.monotonic()
        if batch_idx == 0:
            self._epoch_start = self._last

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps.append(time.monotonic() - self._last)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        budget = self._settings.max_time
        if budget is None or not isinstance(module, TrainingModule):
            return
        self.epoch_seconds = time.monotonic() - self._epoch_start
        left = budget - self._reserve - self.elapsed
        total = module.total_steps or self._fit_in(left, trainer.current_epoch + 1)
        # Every rank has a clock of its own; all obey that of rank 0, or some would wait for the others for ever.
        module.total_steps, late = trainer.strategy.broadcast((total, left < self.epoch_seconds))
        if late:
            logger.info("the time budget is used up after epoch %d", trainer.current_epoch)
        trainer.should_stop = trainer.should_stop or late or module.global_step >= module.total_steps

    def _fit_in(self, left: float, done: int) -> int:
        """How many steps the run will have, if ``left`` seconds remain after ``done`` epochs like the last."""
        steady = statistics.median(self._steps[SETTLE:] or self._steps)
        fixed = (self.epoch_seconds or 0.0) - sum(self._steps)
        per_epoch = steady * len(self._steps) + max(fixed, 0.0)
        epochs = max(1, min(done + int(0.97 * left / per_epoch), self._settings.max_epochs))
        logger.info("%.3f s a step, %.1f s an epoch: %d epochs fit into the budget", steady, per_epoch, epochs)
        return epochs * self._settings.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["elapsed"])


class Waiting(Callback):
    """The share of the time of an epoch's steps that the loop spent waiting for batches: what a faster loader would save.

    The time runs from the epoch's start, before its first batch, to the end of its last step so far, without validation.

    Args:
        waited: seconds that the loop has waited in this epoch.
    """

    def __init__(self, waited: Callable[[], float]) -> None:
        self._waited = waited
        self._start = time.perf_counter()
        self.share = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.share = min(1.0, self._waited() / max(time.perf_counter() - self._start, 1e-9))


class Record(Callback):
    """A row of figures an epoch, the best weights so far, the early stop, and a checkpoint that appears whole or not at all.

    Writes ``training.csv``, ``checkpoints/best.safetensors`` and ``checkpoints/last.ckpt``, in this order: a run killed in
    between repeats the epoch and writes the same again.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainerSettings,
        draw: Callable[[list[dict[str, float]]], None],
        waiting: Waiting,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._draw = draw
        self._waiting = waiting
        self.rows: list[dict[str, float]] = []
        self.best_score = float("-inf")
        self.best_epoch = -1

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not isinstance(module, TrainingModule) or trainer.sanity_checking:
            return
        epoch = trainer.current_epoch
        losses = module.epoch_losses()
        module.check_finite(torch.tensor(losses["loss"]))
        figures = module.validation_figures()
        rate = float(trainer.optimizers[0].param_groups[0]["lr"])
        row = {"epoch": float(epoch), "step": float(module.global_step), "lr": rate}
        row |= losses | {f"tune/{name}": value for name, value in figures.items()}
        self.rows = [old for old in self.rows if old["epoch"] < epoch] + [row]
        for name, value in row.items():
            module.log(name, value, rank_zero_only=True)
        if figures["score"] > self.best_score or self._settings.keep == "last":
            self.best_score, self.best_epoch = figures["score"], epoch
            if trainer.is_global_zero:
                self._save_best(module)
        patience = self._settings.patience
        if patience is not None and epoch - self.best_epoch >= patience:
            logger.info("no better tune score for %d epochs: stopped early", patience)
            trainer.should_stop = True
        logger.info(
            "epoch %d: loss %.4f, tune score %.4f (best %.4f), waited for batches %.0f %% of the time",
            epoch, losses["loss"], figures["score"], self.best_score, 100 * self._waiting.share,
        )  # fmt: skip
        if trainer.is_global_zero:
            write_rows(self._folder / "training.csv", self.rows)
        self._checkpoint(trainer)
        if trainer.is_global_zero and self._settings.pictures and (epoch + 1) % self._settings.pictures == 0:
            self._draw(self.rows)

    def _save_best(self, module: TrainingModule) -> None:
        path = self._folder / "checkpoints" / "best.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {
            name: tensor.detach().cpu().contiguous() for name, tensor in module.best_network.state_dict().items()
        }
        with full_disk_is_clear(path), whole_file(path) as aside:
            safetensors.torch.save_file(weights, aside)

    def _checkpoint(self, trainer: pl.Trainer) -> None:
        path = self._folder / "checkpoints" / "last.ckpt"
        aside = path.with_suffix(".part")
        with full_disk_is_clear(path):
            trainer.save_checkpoint(aside)  # every rank takes part; rank 0 writes
            if trainer.is_global_zero:
                os.replace(aside, path)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]
        write_rows(self._folder / "training.csv", self.rows)


class Progress(Callback):
    """One bar over the steps of the run; it says the last loss and ``tune`` score, and the share of time spent waiting."""

    def __init__(self, record: Record, waiting: Waiting) -> None:
        self._record = record
        self._waiting = waiting
        self._bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            often = 0.5 if sys.stderr.isatty() else 15.0  # a log file needs no animation
            start = trainer.global_step
            self._bar = tqdm(desc="train", unit="step", initial=start, mininterval=often, dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or not isinstance(module, TrainingModule):
            return
        self._bar.total = module.total_steps
        figures = [f"loss {row['loss']:.3f} tune {row['tune/score']:.3f}" for row in self._record.rows[-1:]]
        self._bar.set_postfix_str(" ".join([*figures, f"waiting {self._waiting.share:.0%}"]), refresh=False)
        self._bar.update(1)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class full_disk_is_clear:
    """Turns "no space left" while ``path`` is written into one clear message; the file before stays as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError) or (isinstance(error, Exception) and "No space left" in str(error)):
            raise MachineError(
                f"{self._path}: could not be written ({error}); what was there before is untouched. Free some space and run "
                f"the same command again: it goes on from the last checkpoint"
            ) from error


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Rows of figures as CSV, whole or not at all; whole numbers without a point, the rest so that they read back equal."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: str(int(v)) if k in ("epoch", "step") else repr(float(v)) for k, v in row.items()})
    with full_disk_is_clear(path):
        write_text(path, text.getvalue())
