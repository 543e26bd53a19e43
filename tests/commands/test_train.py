"""The recipe on six tiny phantoms: what is in the run folder, and what happens when something is wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from medseg.commands import train as recipe
from medseg.data.augment import strong
from medseg.data.cases import cache, persistent, smart
from medseg.data.splits import Splits
from medseg.data.store import Store
from medseg.errors import MedsegError, SomeFailed
from medseg.model import load_model, save_model
from medseg.planning.plan import Plan
from medseg.scans.layouts import folder as folder_layout
from medseg.training.settings import TrainerSettings
from tests.tiny import tiny_plan
from tests.training.recipe import PLAN, run, tiny_cohort

SHORT = {"max_epochs": 1, "steps_per_epoch": 2, "workers": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("trained"), SHORT | {"pictures": 1}).parent


def test_a_run_leaves_what_the_design_says(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.yaml", "plan.yaml", "splits.json", "training.csv", "checkpoints", "model", "log.txt"} <= names
    assert {path.name for path in (trained / "model").iterdir()} == {
        "model.yaml",
        "plan.yaml",
        "weights.safetensors",
        "card.md",
    }
    assert (trained / "curves.png").stat().st_size > 5000
    assert (trained / "samples.png").stat().st_size > 1000
    assert not list(trained.rglob("*.part"))


def test_the_model_obeys_the_plan_of_its_run(trained: Path) -> None:
    model = load_model(trained / "model")
    assert model.plan == Plan.load(trained / "plan.yaml")
    assert list(model.plan.features) == PLAN["features"]
    assert model.training["steps"] == 2


def test_test_cases_are_kept_apart(trained: Path) -> None:
    splits = yaml.safe_load((trained / "splits.json").read_text())["folds"][0]
    assert set(splits["test"]).isdisjoint([*splits["fit"], *splits["tune"]])
    assert len(splits["test"]) == 2


def test_the_start_of_a_fold_is_the_member_of_the_same_fold_and_what_another_has_seen_is_said(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for k in (0, 1):
        shutil.copytree(trained, tmp_path / f"fold_{k}")
        model = load_model(trained / "model")
        save_model(replace(model, training={**model.training, "fold": k}), tmp_path / f"fold_{k}" / "model")
    splits = Splits.load(trained / "splits.json")
    assert recipe._start(tmp_path, 1, splits.fold(1), ()).training["fold"] == 1
    assert not caplog.records
    recipe._start(tmp_path / "fold_0", 1, splits.fold(1), ())
    assert f"has seen {len(splits.fold(1).test)} of the {len(splits.fold(1).test)} test cases of fold 1" in caplog.text


def test_a_model_with_other_labels_is_a_start(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    tiny_cohort(data)
    regrouped = folder_layout(
        images=data / "images",
        labels=data / "labels",
        label_names={1: "liver", 2: "kidneys", 3: "spleen", 4: "tumour"},
        channels=["MR"],
    )
    caplog.set_level("INFO")
    module = recipe._network(
        {"_target_": "medseg.networks.unet.plain_unet"},
        load_model(trained / "model").plan.changed(labels=regrouped.labels),
        {"name": "segmentation"},
        load_model(trained / "model"),
        (),
    )
    assert "init:" in caplog.text and "adapted" in caplog.text
    old = load_model(trained / "model").weights
    new = module.state_dict()
    head = next(name for name in new if name.startswith("heads") and name.endswith("weight"))
    assert (new[head][:4] == old[head][:4]).all()
    assert not (new[head][4] == old[head][4]).all()


@pytest.mark.parametrize("kind", ["cache", "persistent", "smart"])
def test_every_loader_trains(kind: str, tmp_path: Path, trained: Path) -> None:
    builders: dict[str, Any] = {
        "cache": cache,
        "persistent": lambda store, ids: persistent(store, ids, cache_dir=tmp_path / "persistent"),
        "smart": lambda store, ids: smart(store, ids, rate=0.5),
    }
    model = run(tmp_path, SHORT, loader=builders[kind])
    if kind != "smart":  # the very same crops, so the very same weights
        assert load_model(model).sha256 == load_model(trained / "model").sha256


def test_a_case_that_cannot_be_prepared_is_named_and_the_rest_trains(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "data")
    run(tmp_path, SHORT, name="first")
    fit = yaml.safe_load((tmp_path / "first" / "fold_0" / "splits.json").read_text())["folds"][0]["fit"]
    victim = next(case for case in cohort.cases if case.id in fit and case.images[0].kind == "nifti")
    image = victim.images[0].files[0]
    second = tmp_path / "second" / "fold_0"
    second.mkdir(parents=True)
    for name in ("splits.json", "plan.yaml", "config.yaml"):
        shutil.copy(tmp_path / "first" / "fold_0" / name, second / name)
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    with pytest.raises(SomeFailed, match=rf"trained without these cases:(.|\n)*{victim.id}"):
        run(tmp_path, SHORT, name="second", planner={"file": second / "plan.yaml"}, overrides={})
    assert (second / "model" / "model.yaml").exists()


def test_a_data_set_without_labels_is_refused(tmp_path: Path) -> None:
    cohort = replace(tiny_cohort(tmp_path / "data"), labels=None)
    with pytest.raises(MedsegError, match="has no labels"):
        recipe.train(cohort, run_dir=tmp_path / "run", cache_dir=tmp_path / "cache", network={})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "device", "made_there", "held"),
    [
        ({}, "cpu", False, False),
        ({}, "cuda", True, True),
        ({"augment_on": "device"}, "cpu", True, False),
        ({"augment_on": "workers"}, "cuda", False, False),
        ({"keep_on_device": False}, "cuda", True, False),
        ({"keep_on_device": True}, "cpu", True, True),
    ],
)
def test_images_are_made_where_the_settings_and_the_device_say(
    settings: dict[str, Any], device: str, made_there: bool, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "hold_cases", lambda store, ids, device, always: "held")
    plan = tiny_plan()
    images = recipe.choose_images(
        TrainerSettings.from_mapping(settings), torch.device(device), strong(plan), plan, Store(Path(), {}), []
    )
    assert (images is not None) is made_there
    assert (images is not None and images.held == "held") is held


def test_an_augmentation_of_the_users_own_stays_with_the_workers() -> None:
    plan, own = tiny_plan(), type("Own", (), {})()
    rest = (torch.device("cuda"), own, plan, Store(Path(), {}), [])
    assert recipe.choose_images(TrainerSettings(), *rest) is None
    with pytest.raises(MedsegError, match="found Own"):
        recipe.choose_images(TrainerSettings(augment_on="device"), *rest)


def test_a_network_is_compiled_where_that_repays_and_can_be_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recipe, "can_compile", lambda device: True)
    assert recipe.choose_compile(TrainerSettings(), "cuda")
    assert not recipe.choose_compile(TrainerSettings(max_time=300), "cuda")
    assert recipe.choose_compile(TrainerSettings(max_time=300, compile="true"), "cpu")
    assert not recipe.choose_compile(TrainerSettings(compile="false"), "cuda")
    assert not caplog.records
    monkeypatch.setattr(recipe, "can_compile", lambda device: False)
    assert not recipe.choose_compile(TrainerSettings(compile="true"), "cpu")
    assert "the network is not compiled: found no C++ compiler" in caplog.text
