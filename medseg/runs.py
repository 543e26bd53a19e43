"""From a composed configuration to one call: which arguments the command of each verb gets.

Plain data come in and a function with everything bound goes out, so that commands know nothing of configurations. A command
and what it needs (torch, for most) is imported only when its verb is asked for.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medseg import targets
from medseg.errors import MedsegError

Config = dict[str, Any]


def build_run(verb: str, config: Config) -> Callable[[], Any]:
    """What ``medseg <verb>`` does: its command with every argument bound.

    The data set is listed here and everything that can be mistyped is checked: when it raises, nothing has begun.

    Raises:
        MedsegError: a target or an argument that does not exist, or data that cannot be listed.
    """
    return _RUNS[verb](config)


def destination(verb: str, config: Config) -> str | None:
    """Where the command writes: two jobs of one ``--multirun`` must not share it."""
    if verb == "train":
        return str(config["run"]["dir"])
    return next((str(config[key]) for key in _WRITES_TO.get(verb, ()) if config[key] is not None), None)


def _check(config: Config) -> Callable[[], Any]:
    from medseg.commands.check import check

    how = {"dimensions": config["dimensions"], "options": _reader(config), "task": config.get("task")}
    return functools.partial(check, _cohort(config), **how)


def _plan(config: Config) -> Callable[[], Any]:
    from medseg.commands.plan import plan

    targets.partial(config["network"], where="network")
    return functools.partial(
        plan,
        _cohort(config),
        **_planning(config),
        out=_path(config["out"]),
        network=config["network"],
        task=config["task"],
        workers=_workers(config),
        trust=_trusted(config),
    )


def _train(config: Config) -> Callable[[], Any]:
    from medseg.commands.train import train

    # Train builds these itself, after the run folder is made: a mistake is found here, before there is one.
    targets.partial(config["network"], where="network")
    targets.partial(config["optim"], where="optim", aside=("schedule", "warmup"))
    _check_loggers(config["logger"] or {})
    return functools.partial(
        train,
        _cohort(config),
        **_planning(config),
        run_dir=_path(config["run"]["dir"]),
        cache_dir=_path(config["cache"]["dir"]),
        network=config["network"],
        task=config["task"],
        loss=targets.partial(config["loss"], where="loss"),
        augment=targets.partial(config["augment"], where="augment"),
        loader=targets.partial(config["loader"], where="loader"),
        optim=config["optim"],
        trainer=config["trainer"],
        loggers=functools.partial(_loggers, config["logger"] or {}),
        new=config["run"]["new"],
        init=_optional_path(config["init"]),
        trust=_trusted(config),
        config=config,
        **{name: config[name] for name in ("fold", "folds", "tune", "seed")},
    )


def _evaluate(config: Config) -> Callable[[], Any]:
    from medseg.commands.evaluate import evaluate

    names = (
        "split",
        "fold",
        "tolerance_mm",
        "bootstrap",
        "baselines",
        "baseline_columns",
        "bands",
        "report",
        "overlap",
        "mirror",
        "overwrite",
        "runtime",
        "boxes",
        "trust",
    )
    task = config.get("task") or {}
    return functools.partial(
        evaluate,
        task=task.get("name"),
        lesions={name: task[name] for name in ("instances", "smallest_mm3") if name in task},
        cohort=_cohort(config),
        out=_path(config["out"]),
        model=_optional_path(config["model"]),
        predictions=_optional_path(config["predictions"]),
        splits=_optional_path(config["splits"]),
        reader=_reader(config),
        **{name: config[name] for name in names},
    )


def _predict(config: Config) -> Callable[[], Any]:
    from medseg.commands.predict import predict

    model, scans = config["model"], config["input"]
    names = (
        "overlap",
        "mirror",
        "batch_size",
        "save_probabilities",
        "uncertainty",
        "overlays",
        "report",
        "overwrite",
        "workers",
        "runtime",
        "boxes",
        "trust",
    )
    return functools.partial(
        predict,
        model={name: _path(folder) for name, folder in model.items()} if isinstance(model, dict) else _path(model),
        input=_paths(scans),
        output=_path(config["output"]),
        select=_given(config["select"]),
        export=config["export"],
        saliency=config["explain"],
        **{name: config[name] for name in names},
    )


def _explain(config: Config) -> Callable[[], Any]:
    shared = ("overlap", "mirror", "boxes", "overwrite", "runtime", "trust")
    common = {"model": _path(config["model"]), "output": _path(config["output"]), "saliency": config["explain"]}
    common |= {name: config[name] for name in shared}
    has_data = config.get("data") is not None
    if has_data == (config["input"] is not None) or has_data != config["judge"]:
        raise MedsegError(
            "explain: expected input=… (scans to explain), or judge=true and data=… (cases to judge maps on)"
        )
    if config["judge"]:
        from medseg.commands.judge import judge

        names = ("methods", "split", "fold", "cases", "bootstrap")
        return functools.partial(
            judge,
            cohort=_cohort(config),
            splits=_optional_path(config["splits"]),
            **common,
            **{name: config[name] for name in names},
        )
    from medseg.commands.explain import explain

    return functools.partial(
        explain,
        input=_paths(config["input"]),
        select=_given(config["select"]),
        export=config["export"],
        **common,
        **{name: config[name] for name in ("features", "workers", "batch_size", "report")},
    )


def _audit(config: Config) -> Callable[[], Any]:
    from medseg.commands.audit import audit

    names = ("columns", "pairs", "bands", "metrics", "smallest", "permutations", "seed")
    return functools.partial(
        audit,
        evaluation=_path(config["evaluation"]),
        table=_optional_path(config["table"]),
        out=_optional_path(config["out"]),
        **{name: config[name] for name in names},
    )


def _report(config: Config) -> Callable[[], Any]:
    from medseg.commands.report import report

    return functools.partial(report, _path(config["folder"]), _optional_path(config["out"]))


def _import(config: Config) -> Callable[[], Any]:
    from medseg.commands.import_model import import_model

    names = ("folds", "checkpoint", "orientation", "overwrite")
    return functools.partial(
        import_model,
        kind=str(config["from"]),
        source=_path(config["source"]),
        output=_path(config["output"]),
        **{name: config[name] for name in names},
    )


def _convert(config: Config) -> Callable[[], Any]:
    from medseg.commands.convert import convert

    names = ("to", "batch_size", "overwrite", "trust")
    options = {name: config[name] for name in names}
    return functools.partial(convert, model=_path(config["model"]), output=_path(config["output"]), **options)


def _demo(config: Config) -> Callable[[], Any]:
    from medseg.commands.demo import demo

    names = ("minutes", "seed", "cases")
    return functools.partial(demo, folder=_path(config["folder"]), **{name: config[name] for name in names})


_RUNS = {
    "check": _check, "plan": _plan, "train": _train, "evaluate": _evaluate, "predict": _predict, "explain": _explain,
    "audit": _audit, "report": _report, "demo": _demo, "import": _import, "convert": _convert,
}  # fmt: skip
_WRITES_TO = {
    "plan": ("out",), "evaluate": ("out",), "predict": ("output",), "explain": ("output",),
    "audit": ("out", "evaluation"), "report": ("out", "folder"), "demo": ("folder",), "import": ("output",),
    "convert": ("output",),
}  # fmt: skip
"""Verb → the options that name what it writes, of which the first that is given counts."""
_LOGGER_PACKAGES = ("mlflow", "wandb")  # extras of medseg


def _cohort(config: Config) -> Any:
    select = _given(config["select"])
    return targets.build({**config["data"], **({"select": select} if select else {})}, where="data")


def _reader(config: Config) -> dict[str, Any]:
    """Options of the readers that are not what they are by default; a plan keeps them."""
    from medseg.scans import chosen_options

    return chosen_options({**config["dicom"], **((config.get("plan") or {}).get("options") or {})})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _planning(config: Config) -> dict[str, Any]:
    """Options of the planner, and the values of the plan that the user sets (null: computed)."""
    from medseg.commands.plan import PLANNER

    chosen = _given(config["plan"]) | _given({"options": _reader(config) or None})
    planner = {name: chosen.pop(name) for name in PLANNER if name in chosen}
    return {"planner": planner, "overrides": chosen}


def _trusted(config: Config) -> list[str]:
    """What the user vouches for: ``trust``, and the network that this very command names."""
    return [*config["trust"], config["network"]["_target_"]]


def _loggers(specs: Mapping[str, Any], folder: Path) -> list[Any]:
    """The loggers of a run, each writing into the run folder."""
    return [targets.build(spec, where=f"logger.{name}", save_dir=folder) for name, spec in specs.items()]


def _check_loggers(specs: Mapping[str, Any]) -> None:
    for name, spec in specs.items():
        targets.partial(spec, where=f"logger.{name}", save_dir=Path())
        if name in _LOGGER_PACKAGES and importlib.util.find_spec(name) is None:
            raise MedsegError(f"logger={name}: the package {name} is not installed; pip install 'medseg[{name}]'")


def _workers(config: Config) -> int:
    return int(config["workers"]) if config["workers"] is not None else _cores()


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _path(value: Any) -> Path:
    return Path(str(value)).expanduser()


def _paths(value: Any) -> Path | list[Path]:
    return [_path(one) for one in value] if isinstance(value, list) else _path(value)


def _optional_path(value: Any) -> Path | None:
    return None if value is None else _path(value)
