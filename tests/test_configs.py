"""Every option of every group composes, and every target in them takes the options that its file gives."""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import fields
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg import config, runs, targets
from medseg.commands.plan import PLANNER
from medseg.errors import MedsegError
from medseg.inference.runtimes import RuntimeOptions
from medseg.losses_boxes import Truth
from medseg.networks import BUILDERS, build_network
from medseg.planning.classes import ClassPlan
from medseg.planning.plan import Plan
from medseg.tasks import build_task
from medseg.training.settings import Optimization, TrainerSettings
from tests.tiny import tiny_boxes, tiny_plan

CONF = config.conf_dir()
FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [(path.parent.name, path.stem) for path in FILES if path.parent != CONF]
GIVEN = {  # what each data option still asks for
    "folder": ["data.images=a", "data.labels=b"],
    "msd": ["data.root=a"],
    "nnunet": ["data.root=a"],
    "table": ["data.file=a.csv"],
    "voc": ["data.root=a"],
    "coco": ["data.images=a", "data.annotations=b.json"],
    "npz": ["data.file=a.npz"],
}
NEEDED = {
    "check": ["data=msd", "data.root=a"],
    "plan": ["data=msd", "data.root=a"],
    "train": ["data=msd", "data.root=a"],
    "evaluate": ["data=msd", "data.root=a", "model=m", "out=o"],
    "predict": ["model=m", "input=i", "output=o"],
    "explain": ["model=m", "input=i", "output=o"],
    "audit": ["evaluation=e", "columns=[site]"],
    "report": ["folder=f"],
    "demo": [],
    "import": ["source=a", "output=b"],
    "convert": ["model=m", "to=onnx", "output=o"],
}


def given(group: str, option: str) -> list[str]:
    """What a data set or an experiment leaves to be given."""
    if group == "data":
        return GIVEN[option]
    needs = {"hippocampus": "data.root=a", "pneumonia_xray": "file=a.npz"}
    return [needs.get(option, "root=a")] if group == "experiment" else []


def of(group: str) -> list[str]:
    return config.options(group)


@lru_cache
def composed(group: str, option: str, verb: str = "train") -> Any:
    rest = [word for word in NEEDED[verb] if not word.startswith("data") or group not in ("data", "experiment")]
    return config.compose(verb, [*rest, f"{group}={option}", *given(group, option)])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_a_file_is_short_and_opens_with_a_command_that_composes(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    command = next(line for line in lines if not line.startswith("# @"))
    assert command.startswith("# medseg "), command
    words = shlex.split(command[2:].split(";")[0])[1:]
    if "…" in words:
        assert words[0] in NEEDED
        words[words.index("…") : words.index("…") + 1] = NEEDED[words[0]]
    config.compose(words[0], words[1:])
    assert len(lines) > 2 and next(line for line in lines[1:] if not line.startswith("# @")).startswith("# ")


@pytest.mark.parametrize("verb", list(NEEDED))
def test_every_option_composes_in_every_verb_that_has_the_group(verb: str) -> None:
    """The first options of all groups together, then the second ones …: few compositions, every option once."""
    groups = [group for group in config.groups(verb) if group not in ("data", "experiment")]
    for row in zip_longest(*(of(group) for group in groups)):
        chosen = {group: option for group, option in zip(groups, row, strict=True) if option is not None}
        words = [f"{group}={option}" for group, option in chosen.items()]
        values = config.compose(verb, [*NEEDED[verb], *words])
        assert all(values[group] is not None for group in chosen)
    for group in ("data", "experiment"):
        for option in of(group) if group in config.groups(verb) else []:
            assert composed(group, option, verb)["data"]["_target_"]


def test_every_group_and_verb_is_known() -> None:
    assert set(NEEDED) == set(config.verbs()) == set(runs._RUNS)
    used = {group for verb in config.verbs() for group in config.groups(verb)}
    assert {group for group, _ in OPTIONS} == used


@pytest.mark.parametrize("option", of("data"))
def test_a_layout_takes_its_options(option: str) -> None:
    targets.partial(composed("data", option)["data"], where="data")


@pytest.mark.parametrize("option", of("network"))
def test_a_network_is_built_as_its_file_says(option: str) -> None:
    spec = composed("network", option)["network"]
    assert spec["_target_"] in BUILDERS
    size = 64 if option in ("swin_unetr", "densenet") else 16
    stages = {
        "features": (4, 8, 8),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernel_sizes": ((3, 3),) * 3,
        "blocks": (1,) * 3,
    }
    small = {"init_filters": 8} if option == "segresnet" else {"feature_size": 12} if option == "swin_unetr" else {}
    plan = tiny_plan(2, patch_size=(size, size), boxes=tiny_boxes(2), **stages)
    assert isinstance(build_network(spec | small, plan, len(plan.labels.outputs)), torch.nn.Module)


def test_every_network_of_medseg_has_an_option() -> None:
    assert {composed("network", option)["network"]["_target_"] for option in of("network")} == set(BUILDERS)


@pytest.mark.parametrize("option", of("loss"))
def test_a_loss_is_built_as_its_file_says(option: str) -> None:
    spec = composed("loss", option)["loss"]
    builder = targets.partial(spec, where="loss")
    if spec["_target_"].startswith("medseg.losses_boxes."):
        plan = tiny_plan(2, task="detection", boxes=tiny_boxes(2))
        task = build_task({"name": "detection"}, plan, builder)
        output = {"scores": [torch.randn(1, 4, 8, 8)], "deltas": [torch.randn(1, 8, 8, 8)]}
        parts = task.loss(output, {"truth": [Truth(torch.tensor([[1.0, 1, 5, 5]]), torch.tensor([0]))]})
    elif spec["_target_"].startswith("medseg.losses_classes."):
        parts = builder(multilabel=False)(torch.randn(2, 3), torch.tensor([0, 2]))
    else:
        parts = builder(exclusive=True)(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 1, 8, 8)), None)
    assert all(torch.isfinite(value) for value in parts.values())


@pytest.mark.parametrize("option", of("augment"))
def test_an_augmentation_is_built_as_its_file_says(option: str) -> None:
    plan = tiny_plan(3)
    recipe = targets.partial(composed("augment", option)["augment"], where="augment")(plan)
    drawn = recipe.draw(np.random.default_rng(0), 1)
    assert len(recipe.source_size(plan.patch_size, drawn)) == 3


@pytest.mark.parametrize("option", of("loader"))
def test_a_loader_takes_its_options(option: str) -> None:
    targets.partial(composed("loader", option)["loader"], where="loader")


@pytest.mark.parametrize("option", of("optim"))
def test_an_optimiser_is_built_as_its_file_says(option: str) -> None:
    optimization = Optimization.from_mapping(composed("optim", option)["optim"])
    assert optimization.build([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == optimization.lr
    assert optimization.rate(0, 100) > 0


@pytest.mark.parametrize("option", of("trainer"))
def test_a_trainer_lists_every_setting(option: str) -> None:
    values = composed("trainer", option)["trainer"]
    assert set(values) == {field.name for field in fields(TrainerSettings)}
    TrainerSettings.from_mapping(values)


@pytest.mark.parametrize("option", of("logger"))
def test_a_logger_takes_its_options(option: str, tmp_path: Path) -> None:
    for name, spec in composed("logger", option)["logger"].items():
        targets.partial(spec, where=f"logger.{name}", save_dir=tmp_path)


@pytest.mark.parametrize("option", of("runtime"))
def test_a_runtime_is_built_as_its_file_says(option: str) -> None:
    options = dict(composed("runtime", option, "predict")["runtime"])
    assert options.pop("memory_gb") is None  # of the whole command, not of a network
    assert RuntimeOptions.from_mapping(options).name == option


@pytest.mark.parametrize("option", of("task"))
def test_a_task_is_built_as_its_file_says(option: str) -> None:
    own = {"detection": {"boxes": tiny_boxes()}, "classification": {"classes": ClassPlan((0.5, 0.5))}}
    plan = tiny_plan(task=option, **own.get(option, {}))
    assert build_task(composed("task", option)["task"], plan).name == option


def test_the_plan_lists_every_value_that_can_be_set() -> None:
    decided_elsewhere = {"task", "labels", "classes", "conventions", "why"}
    expected = ({field.name for field in fields(Plan)} - decided_elsewhere) | set(PLANNER)
    assert set(composed("plan", "default")["plan"]) == expected


def test_all_that_is_not_null_in_the_plan_reaches_the_planner() -> None:
    values = config.compose("plan", [*NEEDED["plan"], "plan.patch_size=[16,16]", "plan.batch_size=2"])
    assert runs._planning(values) == {
        "planner": {"memory_gb": 4.0, "batch_size": 2, "width": 16},
        "overrides": {"patch_size": [16, 16]},
    }


def test_times_are_quoted() -> None:
    """YAML reads 01:00:00 as a number of base 60."""
    for path in FILES:
        assert not re.search(r": \d+:\d\d", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("verb", list(NEEDED))
def test_the_command_of_a_verb_takes_what_its_configuration_gives(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_cohort", lambda values: "a cohort")
    call = runs.build_run(verb, config.compose(verb, NEEDED[verb]))
    inspect.signature(call.func).bind(*call.args, **call.keywords)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "network.chanels=3",
            r"network: medseg\.networks\.unet\.plain_unet\(\) has no argument 'chanels'; it accepts .*dropout",
        ),
        (
            "optim.betaz=0.9",
            r"optim: torch\.optim\.AdamW\(\) has no argument 'betaz'; it accepts .*betas.*schedule, warmup",
        ),
        ("loss.gamma=2", r"loss: medseg\.losses\.dice_ce\(\) has no argument 'gamma'"),
        ("network._target_=no_net.Net", r"network: 'no_net\.Net': there is no module 'no_net'"),
        ("logger={own: {_target_: no_logger.Log}}", r"logger\.own: 'no_logger\.Log': there is no module"),
    ],
)
def test_a_mistyped_option_is_found_before_anything_is_made(
    word: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_cohort", lambda values: "a cohort")
    with pytest.raises(MedsegError, match=message):
        runs.build_run("train", config.compose("train", [*NEEDED["train"], word]))


def test_a_logger_whose_package_is_missing_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_cohort", lambda values: "a cohort")
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MedsegError, match=r"logger=wandb: .*pip install 'medseg\[wandb\]'"):
        runs.build_run("train", config.compose("train", [*NEEDED["train"], "logger=wandb"]))
