"""A model folder comes back as it was, or says what is wrong with it before anything is run or loaded."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import medseg.model
from medseg.errors import MachineError, MedsegError
from medseg.model import Model, load_members, load_model, save_model
from tests.tiny import POINTWISE, UNET, tiny_model, tiny_plan


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Model, Path]:
    model = replace(tiny_model(), postprocessing={"liver": {"largest": True}}, training={"steps": 7, "dice": 0.5})
    save_model(model, tmp_path / "model")
    return model, tmp_path / "model"


def edit(folder: Path, **changes: object) -> None:
    body = yaml.safe_load((folder / "model.yaml").read_text())
    (folder / "model.yaml").write_text(yaml.safe_dump({**body, **changes}))


def forge(folder: Path, name: str) -> None:
    """Make model.yaml vouch for a file that was changed."""
    body = yaml.safe_load((folder / "model.yaml").read_text())
    edit(folder, files={**body["files"], name: medseg.model._sha256(folder / name)})


def test_a_model_comes_back_as_it_was_saved(saved):
    model, folder = saved
    again = load_model(folder)
    assert {path.name for path in folder.iterdir()} == {"model.yaml", "plan.yaml", "weights.safetensors", "card.md"}
    assert again.plan == model.plan
    assert again.task == model.task
    assert again.network == model.network
    assert again.postprocessing == {"liver": {"largest": True}}
    assert again.training == {"steps": 7, "dice": 0.5}
    assert again.weights.keys() == model.weights.keys()
    assert all(torch.equal(again.weights[name], model.weights[name]) for name in model.weights)
    assert again.sha256 == model.sha256


def test_a_loaded_network_computes_what_the_saved_one_did_and_draws_no_random_numbers(saved):
    model, folder = saved
    x = torch.randn(1, 1, 8, 8, 8)
    state = torch.get_rng_state()
    network = load_model(folder).network_module()
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    with torch.no_grad():
        assert torch.equal(network(x), model.network_module()(x))


def test_the_hash_follows_weights_and_decisions_but_not_the_training_summary():
    model = tiny_model(0)
    assert model.sha256 == tiny_model(0).sha256
    assert model.sha256 == replace(model, training={"note": "x"}).sha256
    assert model.sha256 != tiny_model(1).sha256
    assert model.sha256 != replace(model, postprocessing={"liver": {"largest": True}}).sha256
    assert model.sha256 != replace(model, plan=model.plan.changed(spacing=[1.0, 1.0, 1.5])).sha256


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(saved):
    _, folder = saved
    save_model(tiny_model(5), folder)
    assert load_model(folder).sha256 == tiny_model(5).sha256
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_full_disk_leaves_the_old_model(saved, monkeypatch):
    model, folder = saved

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineError, match="disk is full"):
        save_model(tiny_model(5), folder)
    assert load_model(folder).sha256 == model.sha256
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.yaml"])
def test_a_changed_file_is_named_with_both_hashes(saved, name):
    _, folder = saved
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        MedsegError, match=f"{name}: changed since the model was saved .expected SHA-256 [0-9a-f]+, found"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.yaml", "model.yaml"])
def test_a_missing_file_is_named(saved, name):
    _, folder = saved
    (folder / name).unlink()
    with pytest.raises(MedsegError, match=name):
        load_model(folder)


def test_the_card_may_be_edited(saved):
    _, folder = saved
    (folder / "card.md").write_text("my notes")
    load_model(folder)


def test_another_format_and_missing_parts_are_refused(saved):
    _, folder = saved
    edit(folder, format=99)
    with pytest.raises(MedsegError, match="format 1, found 99"):
        load_model(folder)
    edit(folder, format=1, task=[1])
    with pytest.raises(MedsegError, match="'task'"):
        load_model(folder)


def test_yaml_that_would_run_something_is_not_read(saved, tmp_path):
    _, folder = saved
    (folder / "model.yaml").write_text(f"format: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(MedsegError, match="not readable as plain YAML"):
        load_model(folder)
    assert not (tmp_path / "made").exists()


def test_weights_of_another_network_are_refused_before_they_are_loaded(saved, monkeypatch):
    _, folder = saved
    wide = tiny_model(0, tiny_plan(features=(4, 16)))
    safetensors.torch.save_file(dict(wide.weights), folder / "weights.safetensors")
    forge(folder, "weights.safetensors")
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("the weights were loaded"))
    with pytest.raises(MedsegError, match="expected .*8.*, found .*16"):
        load_model(folder)


def test_missing_and_foreign_tensors_are_named(saved):
    _, folder = saved
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    name = next(iter(weights))
    weights["stranger"] = weights.pop(name)
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    forge(folder, "weights.safetensors")
    with pytest.raises(MedsegError, match=f"{name} is missing; stranger is not in the network"):
        load_model(folder)


def test_a_cut_weight_file_is_named_even_where_its_hash_is_right(saved):
    _, folder = saved
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    forge(folder, path.name)
    with pytest.raises(MedsegError, match="not a whole safetensors file"):
        load_model(folder)


def test_a_foreign_target_is_run_only_if_the_very_same_one_is_trusted(tmp_path):
    model = tiny_model(0, target=POINTWISE)
    save_model(model, tmp_path / "model")
    with pytest.raises(MedsegError, match=POINTWISE.replace(".", r"\.")):
        load_model(tmp_path / "model")
    with pytest.raises(MedsegError, match="trust"):
        load_model(tmp_path / "model", trust=[UNET])
    again = load_model(tmp_path / "model", trust=[POINTWISE])
    assert again.sha256 == model.sha256
    with pytest.raises(MedsegError, match=POINTWISE.replace(".", r"\.")):
        again.network_module()


def test_only_plain_values_are_saved(tmp_path):
    with pytest.raises(MedsegError, match="plain values"):
        save_model(replace(tiny_model(), training={"when": object()}), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_members_come_from_a_model_a_run_or_an_experiment_folder(tmp_path):
    for fold in (0, 2, 10):
        save_model(tiny_model(fold), tmp_path / "exp" / f"fold_{fold}" / "model")
    assert [m.sha256 for m in load_members(tmp_path / "exp")] == [tiny_model(f).sha256 for f in (0, 2, 10)]
    assert [m.sha256 for m in load_members(tmp_path / "exp" / "fold_2")] == [tiny_model(2).sha256]
    assert [m.sha256 for m in load_members(tmp_path / "exp" / "fold_2" / "model")] == [tiny_model(2).sha256]


def test_an_unfinished_fold_is_named_and_left_out(tmp_path, caplog):
    save_model(tiny_model(0), tmp_path / "fold_0" / "model")
    (tmp_path / "fold_1" / "checkpoints").mkdir(parents=True)
    assert len(load_members(tmp_path)) == 1
    assert "fold_1 has no model yet" in caplog.text


def test_where_there_is_no_model_the_message_says_what_was_found(tmp_path):
    with pytest.raises(MedsegError, match="no such folder"):
        load_members(tmp_path / "nothing")
    with pytest.raises(MedsegError, match="neither model.yaml"):
        load_members(tmp_path)
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(MedsegError, match="fold_0 without a finished model"):
        load_members(tmp_path)
