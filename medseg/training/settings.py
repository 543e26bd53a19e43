"""How long, how fast and how carefully to train: the values of ``conf/trainer`` and ``conf/optim``, checked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch

from medseg.errors import MedsegError
from medseg.inference.runtime import Precision

Schedule = Literal["poly", "cosine", "constant"]
Choice = Literal["auto", "true", "false"]
Place = Literal["auto", "workers", "device"]
OPTIMIZERS = {"torch.optim.SGD": torch.optim.SGD, "torch.optim.AdamW": torch.optim.AdamW}


@dataclass(frozen=True)
class Optimization:
    """The optimiser by its full name, its arguments, and the course of the learning rate over the whole run."""

    target: str = "torch.optim.SGD"
    lr: float = 0.01
    schedule: Schedule = "poly"
    warmup: int = 0
    arguments: Mapping[str, Any] | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Optimization:
        rest = dict(values)
        target = str(rest.pop("_target_", cls.target))
        known = {name: rest.pop(name) for name in ("lr", "schedule", "warmup") if name in rest}
        optimization = cls(target=target, arguments=rest, **known)
        if target not in OPTIMIZERS:
            raise MedsegError(f"optim: {target!r}; expected one of {', '.join(OPTIMIZERS)}")
        if optimization.schedule not in get_args(Schedule):
            raise MedsegError(
                f"optim.schedule {optimization.schedule!r}; expected one of {', '.join(get_args(Schedule))}"
            )
        return optimization

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        try:
            return OPTIMIZERS[self.target](parameters, lr=self.lr, **dict(self.arguments or {}))  # type: ignore[abstract]
        except (TypeError, ValueError) as error:
            raise MedsegError(f"optim: {self.target} does not take {dict(self.arguments or {})}: {error}") from None

    def rate(self, step: int, total: int | None) -> float:
        """The learning rate at ``step``; flat while the length of the run is not known yet (the measured warm-up)."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        done = 0.0 if not total else min(1.0, step / total)
        if self.schedule == "poly":
            return self.lr * rise * max(1.0 - done, 0.0) ** 0.9
        if self.schedule == "cosine":
            return self.lr * rise * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.lr * rise


@dataclass(frozen=True)
class TrainerSettings:
    """The training loop.

    Args:
        max_time: wall-clock budget ``HH:MM:SS`` or seconds, counted from the start of the command; None for no limit.
        max_epochs: length where there is no budget, and an upper bound where there is one.
        steps_per_epoch: optimiser steps between two validations.
        precision: ``auto`` is bf16 mixed precision where the hardware is fast at it; ``bf16`` or ``float32``.
        compile: ``auto`` compiles where the hardware and the budget repay it.
        ema: decay of the weight average that is validated and kept; 0 keeps the plain weights.
        clip: largest norm of the gradient; 0 for none.
        patience: epochs without a better ``tune`` score before an early stop; None for none.
        keep: the ``best`` epoch by its ``tune`` score, or the ``last``.
        tune_cases: how many ``tune`` cases are validated each epoch; None for all.
        workers: loading processes; None chooses by the number of cores and the device.
        augment_on: whether ``workers`` change images or the ``device`` of the network; ``auto``: a GPU, where there is one.
        keep_on_device: whether the images of all cases are kept on the device and cut there; ``auto``: on a GPU, where they
            fit. Then images are changed there, too.
        pictures: epochs between two drawings of curves and samples; 0 for none.
    """

    max_time: float | None = None
    max_epochs: int = 1000
    steps_per_epoch: int = 250
    precision: Precision = "auto"
    compile: str = "auto"
    ema: float = 0.999
    clip: float = 12.0
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    tune_cases: int | None = None
    workers: int | None = None
    augment_on: Place = "auto"
    keep_on_device: str = "auto"
    accelerator: str = "auto"
    devices: int | str = "auto"
    pictures: int = 1

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainerSettings:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise MedsegError(f"trainer has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        settings = dict(values) | {"max_time": seconds(values.get("max_time"))}
        for name in ("precision", "compile", "keep_on_device"):
            if name in settings:
                settings[name] = str(settings[name]).lower()
        trainer = cls(**settings)
        if trainer.precision not in get_args(Precision):
            raise MedsegError(f"trainer.precision {trainer.precision!r}; expected auto, bf16 or float32")
        for name in ("compile", "keep_on_device"):
            if getattr(trainer, name) not in get_args(Choice):
                raise MedsegError(f"trainer.{name} {getattr(trainer, name)!r}; expected auto, true or false")
        if trainer.augment_on not in get_args(Place):
            raise MedsegError(f"trainer.augment_on {trainer.augment_on!r}; expected auto, workers or device")
        if trainer.augment_on == "workers" and trainer.keep_on_device == "true":
            raise MedsegError(
                "trainer.keep_on_device=true with augment_on=workers: what a device holds is changed there; leave one out"
            )
        if trainer.max_epochs < 1 or trainer.steps_per_epoch < 1 or not 0 <= trainer.ema < 1:
            raise MedsegError("trainer: expected max_epochs ≥ 1, steps_per_epoch ≥ 1 and 0 ≤ ema < 1")
        return trainer


def seconds(value: str | float | None) -> float | None:
    """``"01:30:00"`` → 5400.0; a number is seconds; None stays None."""
    if value is None or isinstance(value, (int, float)):
        return None if value is None else float(value)
    match = re.fullmatch(r"(?:(\d+):)?(\d+):(\d{2})", str(value).strip())
    if not match:
        raise MedsegError(f"trainer.max_time {value!r}: expected HH:MM:SS, such as 01:00:00, or a number of seconds")
    hours, minutes, rest = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + rest)
