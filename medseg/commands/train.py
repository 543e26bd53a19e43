"""The recipe of a training run, from top to bottom: cohort → splits → plan → preprocessed cases → network → weights → model."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medseg.commands.decide import decided_on_tune
from medseg.commands.evaluation_parts import start_of
from medseg.commands.plan import plan as make_plan
from medseg.commands.plan import usable_cohort
from medseg.data.augment import Augment, Recipe, strong
from medseg.data.dataset import make_loader, stream
from medseg.data.on_device import DeviceImages, hold_cases
from medseg.data.splits import Split, Splits, obtain_splits
from medseg.data.store import Store, prepare
from medseg.errors import MedsegError, SomeFailed
from medseg.inference.runtime import Precision, can_compile, compiler_of, fast_bf16, find_device
from medseg.model import Model, save_model
from medseg.networks import build_network
from medseg.planning.plan import Plan
from medseg.scans.faults import NOTES, duplicate_groups
from medseg.structures import Cohort
from medseg.tasks import build_task, check_loss
from medseg.training.fit import Fitted, Loggers, TrainingData, fit
from medseg.training.module import TrainingModule
from medseg.training.pictures import Pictures
from medseg.training.run_folder import RunFolder
from medseg.training.settings import Optimization, TrainerSettings
from medseg.training.transfer import transfer

logger = logging.getLogger(__name__)


def train(
    cohort: Cohort,
    *,
    run_dir: Path,
    cache_dir: Path,
    network: Mapping[str, Any],
    task: Mapping[str, Any] | None = None,
    loss: Callable[..., Any] | None = None,
    augment: Callable[[Plan], Augment] = strong,
    loader: Callable[..., Any] = stream,
    optim: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    loggers: Loggers = lambda folder: (),
    planner: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    fold: int = 0,
    folds: int = 5,
    tune: float = 0.1,
    seed: int = 0,
    new: bool = False,
    init: Path | None = None,
    trust: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Train one fold; the same call goes on with an unfinished run and only reports a finished one.

    Args:
        cohort: the data set; cases of the fold's ``test`` are never read here beyond the fingerprint.
        run_dir: the run folder. ``cache_dir`` holds preprocessed cases and may be shared by runs.
        network: spec of a builder, ``{"_target_": "medseg.networks.…", **options}``.
        loss, augment, loader: builders, with their options bound; without ``loss`` the task chooses.
        optim, trainer: values of `Optimization` and `TrainerSettings`.
        planner, overrides: options of the planner; values of the plan that the user sets.
        tune: share of the patients outside ``test`` that checkpoints and post-processing are chosen on.
        init: a model, run or experiment folder to start from (of an experiment, the member of the same fold).
        config: the whole configuration as plain data, kept in ``config.yaml`` and compared on the next call.

    Returns:
        The model folder.

    Raises:
        MedsegError: nothing was done because of the request or the data.
        SomeFailed: the model is there, but some cases could not be preprocessed and were left out.
        MachineError: stopped by the machine; the same call goes on.
    """
    started = time.monotonic()
    settings, optimization = TrainerSettings.from_mapping(trainer or {}), Optimization.from_mapping(optim or {})
    task = task or {"name": "segmentation"}
    check_loss(task, loss)
    cohort, _ = usable_cohort(cohort, task)
    request = config or {"network": dict(network), "task": dict(task), "fold": fold, "folds": folds, "seed": seed}
    run = RunFolder.open(run_dir, request, new=new)
    if run.finished:
        logger.info("%s is finished: its model is in %s (set run.new=true for another run)", run.path, run.model)
        return run.model
    with run.log():
        for fault in cohort.faults:
            logger.log(logging.INFO if fault.kind in NOTES else logging.WARNING, "not in the data set: %s", fault)
        reader = (overrides or {}).get("options") or {}
        split = _split(cohort, run.path / "splits.json", reader, folds=folds, tune=tune, seed=seed).fold(fold)
        plan = make_plan(
            cohort,
            planner=planner or {},
            overrides=overrides or {},
            out=run.path / "plan.yaml",
            network=network,
            task=task,
            trust=trust,
        )
        wanted = [case for case in cohort.cases if case.id in {*split.fit, *split.tune}]
        store = prepare(wanted, plan, cache_dir)
        usable = _usable(split, store)

        seed_torch(seed)
        device = find_device("auto" if settings.accelerator in ("auto", "gpu") else settings.accelerator)
        precision = choose_precision(settings, device.type)
        module = TrainingModule(
            _network(network, plan, task, None if init is None else _start(init, fold, split, trust), trust),
            build_task(task, plan, loss),
            plan,
            optimization,
            ema=settings.ema,
            seed=seed,
            total_steps=None if settings.max_time else settings.max_epochs * settings.steps_per_epoch,
            precision=precision,
            compiled=choose_compile(settings, device.type),
        )

        def loader_of(rank: int, ranks: int, device: torch.device) -> Any:
            recipe = augment(plan)
            return make_loader(
                store,
                usable.fit,
                module.task,
                plan,
                recipe,
                kind=loader,
                seed=seed,
                steps=settings.steps_per_epoch,
                workers=choose_workers(settings, device.type),
                rank=rank,
                world_size=ranks,
                images=choose_images(settings, device, recipe, plan, store, usable.fit),
                pin_memory=device.type == "cuda",
            )

        watched = [store.case(name) for name in usable.tune[: settings.tune_cases]]
        fitted = fit(
            module,
            TrainingData(loader_of, watched),
            settings,
            run.path,
            started=started,
            precision=precision,
            loggers=loggers(run.path),
            reserve=0.03 * (settings.max_time or 0.0),
            draw=Pictures(run.path, module).draw,
        )
        if fitted.rank:
            return run.model
        model = _model(fitted, plan, task, network, optimization, seed, fold)
        model = decided_on_tune(model, cohort, usable.tune, trust)
        save_model(model, run.model)
        logger.info(
            "tune score %.4f at epoch %d of %d; the model is in %s",
            fitted.best_score,
            fitted.best_epoch,
            len(fitted.rows),
            run.model,
        )
        if store.failed:
            raise SomeFailed("\n".join(["trained without these cases:", *(f"  - {fault}" for fault in store.failed)]))
    return run.model


def _split(cohort: Cohort, path: Path, options: Mapping[str, Any], *, folds: int, tune: float, seed: int) -> Splits:
    """The splits kept in ``path``, or new ones: by patient, and what shows the same thing twice in one part."""
    groups: dict[str, set[str]] = {}
    if not path.exists():
        for case, group in duplicate_groups(cohort, options=options).items():
            groups.setdefault(group, set()).add(case)
    return obtain_splits(cohort.cases, path, folds=folds, tune=tune, seed=seed, groups=groups.values())


def _usable(split: Split, store: Store) -> Split:
    """The split without the cases that could not be preprocessed."""
    failed = {fault.case for fault in store.failed}
    for fault in store.failed:
        logger.warning("left out: %s", fault)
    usable = Split(*(tuple(i for i in part if i not in failed) for part in (split.fit, split.tune, split.test)))
    if not usable.fit or not usable.tune:
        raise MedsegError(
            f"train: {len(usable.fit)} fit and {len(usable.tune)} tune cases could be preprocessed; expected at least one of "
            f"each. First reason: {store.failed[0] if store.failed else 'the data set is too small'}"
        )
    return usable


def _network(
    spec: Mapping[str, Any], plan: Plan, task: Mapping[str, Any], start: Model | None, trust: Sequence[str]
) -> nn.Module:
    """The network of the plan, fresh or with what fits of the model ``start``."""
    network = build_network(spec, plan, build_task(task, plan).out_channels, trust=trust)
    if start is not None:
        taken = transfer(
            network,
            dict(start.weights),
            outputs=_outputs(plan),
            old_outputs=_outputs(start.plan),
            channels=[channel.name for channel in plan.channels],
            old_channels=[channel.name for channel in start.plan.channels],
        )
        if not taken.whole:
            raise MedsegError("init: no tensor of that model fits this network; expected the same network and plan")
        logger.info("init: %s", taken)
    return network


def _start(init: Path, fold: int, split: Split, trust: Sequence[str]) -> Model:
    """The model to start from; warns where it was trained on cases that this fold holds back."""
    model, seen = start_of(init, fold, trust)
    known = seen.intersection(split.test)
    if known:
        logger.warning(
            "init=%s: that model has seen %d of the %d test cases of fold %d, so that figures on them would say too much; start "
            "from a model of the same fold",
            init, len(known), len(split.test), fold,
        )  # fmt: skip
    return model


def _outputs(plan: Plan) -> tuple[str, ...]:
    """What the channels of a network's output are called; classes have no background among them."""
    return plan.labels.outputs if plan.classes is None else tuple(plan.labels.names.values())


def _model(
    fitted: Fitted,
    plan: Plan,
    task: Mapping[str, Any],
    network: Mapping[str, Any],
    optimization: Optimization,
    seed: int,
    fold: int,
) -> Model:
    summary = {
        "fold": fold,
        "seed": seed,
        "epochs": len(fitted.rows),
        "steps": int(fitted.rows[-1]["step"]),
        "best_epoch": fitted.best_epoch,
        "tune_score": round(fitted.best_score, 6),
        "seconds": round(fitted.seconds, 1),
        "optimizer": optimization.target,
        "lr": optimization.lr,
    }
    return Model(plan=plan, task=dict(task), network=dict(network), weights=fitted.weights, training=summary)


def seed_torch(seed: int) -> None:
    """Weights and dropout start from ``seed``."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # some of MONAI's layers draw from numpy's global state


def choose_precision(settings: TrainerSettings, device: str) -> Precision:
    """``"bf16"`` or ``"float32"``: what was asked for, or bf16 where the hardware is fast at it."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if fast_bf16(device) else "float32"


def choose_compile(settings: TrainerSettings, device: str) -> bool:
    """Whether to compile the network, which costs one to two minutes: on a GPU it repays them within ten.

    On a CPU with AMX, too; on others convolutions are nine tenths of a step, and compiled it took 1.02 times as long as eager.
    Where there is nothing to compile with it is not compiled, and one line says so.
    """
    long_enough = settings.max_time is None or settings.max_time >= 600
    amx = device == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    wanted = settings.compile == "true" or (settings.compile == "auto" and long_enough and (device == "cuda" or amx))
    if wanted and not can_compile(torch.device(device)):
        logger.warning("the network is not compiled: found no %s", compiler_of(torch.device(device)))
        return False
    return bool(wanted)


def choose_images(
    settings: TrainerSettings, device: torch.device, recipe: Augment, plan: Plan, store: Store, ids: Sequence[str]
) -> DeviceImages | None:
    """What makes images on ``device``, holding all cases there if they fit; None where workers make them."""
    gpu, keep = device.type == "cuda", settings.keep_on_device
    if settings.augment_on == "workers" or (settings.augment_on == "auto" and keep != "true" and not gpu):
        return None
    if settings.augment_on == "auto" and keep != "true" and not isinstance(recipe, Recipe):
        return None
    images = DeviceImages(recipe, plan.patch_size)
    if keep == "true" or (keep == "auto" and gpu):
        images.held = hold_cases(store, ids, device, always=keep == "true")
    return images


def choose_workers(settings: TrainerSettings, device: str) -> int:
    """Loading processes: one beside a CPU that computes itself, up to eight beside a GPU."""
    if settings.workers is not None:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores - 1)) if device == "cuda" else 1
