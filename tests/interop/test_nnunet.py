"""A model of nnU-Net becomes one of medseg's that computes the same, or is refused with all its reasons; none of it is run."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.errors import MedsegError
from medseg.interop.nnunet import read_nnunet
from medseg.model import load_members, save_model
from tests.interop.nnunet_folder import (
    DATASET,
    EVERY,
    GOLDEN,
    NETWORKS,
    architecture,
    formula,
    golden_weights,
    write_folder,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_imported_network_computes_what_nnunet_computes(tmp_path: Path, name: str) -> None:
    model = read_nnunet(write_folder(tmp_path, name))[0]
    size = NETWORKS[name][1]
    x = formula("input", (1, 1, *size))
    theirs = np.array(json.loads(GOLDEN.read_text())[name]["output"])
    # nnU-Net's k, j, i are medseg's i, j, k; a 2D network sees a volume of one slice.
    mine = x.reshape(1, 1, *([1] * (3 - len(size))), *size).permute(0, 1, 4, 3, 2)
    with torch.no_grad():
        y = model.network_module()(mine.contiguous())
    found = y.permute(0, 1, 4, 3, 2).reshape(-1)[::EVERY].numpy()
    assert theirs.std() > 0.01
    assert np.abs(found - theirs).max() < 1e-5


def test_turned_axes_are_turned_back(tmp_path: Path) -> None:
    """``transpose_forward`` (1, 2, 0): the network's first axis is the array's second, the file's j."""
    model = read_nnunet(write_folder(tmp_path, transpose_forward=[1, 2, 0], mirror=[0, 1]))[0]
    assert model.plan.strides == ((1, 1, 1), (2, 1, 2), (2, 2, 2))
    assert model.plan.patch_size == (8, 4, 12)
    assert model.plan.mirror_axes == (0, 1)
    x = formula("input", (1, 1, *NETWORKS["plain_3d"][1]))
    with torch.no_grad():
        y = model.network_module()(x.permute(0, 1, 3, 2, 4).contiguous())
    theirs = np.array(json.loads(GOLDEN.read_text())["plain_3d"]["output"])
    assert np.abs(y.permute(0, 1, 3, 2, 4).reshape(-1)[::EVERY].numpy() - theirs).max() < 1e-5


def test_the_plan_says_what_nnunet_does(tmp_path: Path) -> None:
    plan = read_nnunet(write_folder(tmp_path, mirror=[0, 2], configuration={"spacing": [3.0, 0.5, 0.7]}))[0].plan
    assert plan.orientation == "stored"
    assert plan.spacing == (0.7, 0.5, 3.0)
    assert plan.patch_size == (12, 8, 4)
    assert plan.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 2))
    assert plan.kernel_sizes[0] == (3, 3, 1)
    assert plan.mirror_axes == (0, 2)
    assert plan.crop == "nonzero"
    assert plan.channels[0].normalisation == "zscore_all"
    assert dict(plan.labels.names) == {1: "front", 2: "back"}
    assert plan.conventions is not None
    assert plan.conventions.averaged == "logits"
    assert plan.conventions.odd_padding == "after"


def test_a_2d_network_of_volumes_looks_at_slices_as_they_are(tmp_path: Path) -> None:
    plan = read_nnunet(write_folder(tmp_path, "plain_2d", mirror=[0]))[0].plan
    assert plan.patch_size == (12, 8, 1)
    assert plan.spacing == (1.0, 1.0, 2.0)
    assert plan.mirror_axes == (1,)
    assert plan.conventions is not None and plan.conventions.kept_axes == (2,)


def test_pictures_have_columns_first(tmp_path: Path) -> None:
    model = read_nnunet(write_folder(tmp_path, "plain_2d", mirror=[0], image_reader_writer="NaturalImage2DIO"))[0]
    assert (model.plan.dimensions, model.plan.unit, model.plan.patch_size) == (2, "px", (12, 8))
    assert model.plan.mirror_axes == (1,)
    x = formula("input", (1, 1, 8, 12))
    with torch.no_grad():
        y = model.network_module()(x.mT.contiguous()).mT
    theirs = np.array(json.loads(GOLDEN.read_text())["plain_2d"]["output"])
    assert np.abs(y.reshape(-1)[::EVERY].numpy() - theirs).max() < 1e-5


def test_ct_and_the_other_normalisations_keep_their_numbers(tmp_path: Path) -> None:
    schemes = [
        "CTNormalization",
        "ZScoreNormalization",
        "NoNormalization",
        "RescaleTo01Normalization",
        "RGBTo01Normalization",
    ]
    weights = golden_weights("plain_3d")
    for name in [name for name in weights if name.endswith("encoder.stages.0.0.convs.0.conv.weight")]:
        weights[name] = weights[name].repeat(1, 5, 1, 1, 1)
    dataset = DATASET | {"channel_names": {str(n): name for n, name in enumerate("abcde")}}
    changes = {"normalization_schemes": schemes, "use_mask_for_norm": [False, True, False, False, False]}
    model = read_nnunet(write_folder(tmp_path, dataset=dataset, weights=weights, configuration=changes))[0]
    ct, *others = model.plan.channels
    assert (ct.normalisation, ct.low, ct.high, ct.mean, ct.std) == ("ct", -100.0, 200.0, 50.0, 20.0)
    assert [channel.normalisation for channel in others] == ["zscore", "none", "minmax", "rescale"]
    assert (others[3].low, others[3].high) == (0.0, 255.0)


def test_regions_and_the_ignore_label_are_kept(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    table = read_nnunet(write_folder(tmp_path, dataset=DATASET | {"labels": labels, "regions_class_order": [1, 2, 3]}))[
        0
    ].plan.labels
    assert dict(table.regions) == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert (table.paint, table.ignore) == ((1, 2, 3), 4)
    again = read_nnunet(write_folder(tmp_path / "b", dataset=DATASET | {"labels": DATASET["labels"] | {"ignore": 3}}))[
        0
    ]
    assert again.plan.labels.ignore == 3
    assert again.plan.labels.outputs == ("background", "front", "back")


def test_a_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = read_nnunet(write_folder(tmp_path / "nnunet", "residual_3d"))[0]
    save_model(model, tmp_path / "model")
    again = load_members(tmp_path / "model")[0]
    assert again.plan == model.plan
    assert again.sha256 == model.sha256
    assert again.training["trainer"] == "nnUNetTrainer"


def test_plans_of_an_older_nnunet_are_read(tmp_path: Path) -> None:
    older = {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": [1, 2, 2],
        "n_conv_per_stage_decoder": [1, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    }
    wide = {name: _with_features(name, weight) for name, weight in golden_weights("plain_3d").items()}
    model = read_nnunet(
        write_folder(tmp_path, network=None, configuration=older | {"architecture": None}, weights=wide)
    )[0]
    assert model.plan.features == (4, 8, 8)
    assert model.network["decoder_blocks"] == [2, 1]


def _with_features(name: str, weight: torch.Tensor) -> torch.Tensor:
    """The golden network has 4, 6 and 8 features; older plans double them up to a limit: 4, 8 and 8."""
    shape = [{6: 8, 12: 16}.get(n, n) for n in weight.shape]
    del name
    return torch.zeros(shape)


def test_folds_are_taken_together_and_missing_ones_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, folds=(0, 1, 2))
    assert list(read_nnunet(folder)) == [0, 1, 2]
    (folder / "fold_1" / "checkpoint_final.pth").rename(folder / "fold_1" / "checkpoint_latest.pth")
    with pytest.raises(
        MedsegError, match=r"fold_1/checkpoint_final.pth is missing \(there is checkpoint_latest.pth\)"
    ) as error:
        read_nnunet(folder)
    assert "folds=[0,2]" in str(error.value)
    assert list(read_nnunet(folder, folds=[0, 2])) == [0, 2]
    (folder / "fold_1" / "checkpoint_latest.pth").unlink()
    (folder / "fold_1").rmdir()
    with pytest.raises(MedsegError, match="fold_1"):
        read_nnunet(folder)
    with pytest.raises(MedsegError, match="fold_4.*missing"):
        read_nnunet(folder, folds=[0, 4])


def test_a_fold_of_all_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    assert list(read_nnunet(write_folder(tmp_path, folds=("all",)))) == ["all"]


class _Harm:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_runs_code_is_refused_and_did_not_run(tmp_path: Path, protocol: int) -> None:
    folder, trace = write_folder(tmp_path / "nnunet"), tmp_path / "it-ran"
    file = folder / "fold_0" / "checkpoint_final.pth"
    held = torch.load(file, weights_only=False)
    torch.save(held | {"logging": _Harm(trace)}, file, pickle_protocol=protocol)
    with pytest.raises(MedsegError, match="refused, and nothing of it was run") as error:
        read_nnunet(folder)
    assert protocol == 4 or "mkdir" in str(error.value)
    assert not trace.exists()
    torch.load(file, weights_only=False)  # the same file does harm where it is trusted
    assert trace.exists()


def test_a_bare_pickle_is_refused_and_did_not_run(tmp_path: Path) -> None:
    folder, trace = write_folder(tmp_path / "nnunet"), tmp_path / "it-ran"
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(_Harm(trace)))
    with pytest.raises(MedsegError):
        read_nnunet(folder)
    assert not trace.exists()


def test_a_broken_checkpoint_and_torchscript_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MedsegError, match="not a whole checkpoint"):
        read_nnunet(folder)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)
    with pytest.raises(MedsegError, match="TorchScript"):
        read_nnunet(folder)


def test_what_is_not_supported_is_named_all_at_once(tmp_path: Path) -> None:
    network = architecture(
        "plain", 3, nonlin="torch.nn.ReLU", norm_op="torch.nn.modules.batchnorm.BatchNorm3d", extra=1
    )
    folder = write_folder(
        tmp_path,
        network=network,
        image_reader_writer="MyReader",
        configuration={"normalization_schemes": ["MyNormalization"], "resampling_fn_data": "resample_torch_fornnunet"},
    )
    with pytest.raises(MedsegError) as error:
        read_nnunet(folder)
    for part in ("ReLU", "BatchNorm3d", "extra=1", "MyReader", "MyNormalization", "resample_torch_fornnunet"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["dynamic_network_architectures.architectures.primus.Primus", "evil.PlainConvUNet"])
def test_a_network_class_that_is_not_supported_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(MedsegError, match=name):
        read_nnunet(write_folder(tmp_path, network=architecture("plain", 3) | {"network_class_name": name}))


def test_a_trainer_that_changed_the_network_is_named(tmp_path: Path) -> None:
    weights = golden_weights("plain_3d") | {"encoder.stages.0.0.convs.0.norm.running_mean": torch.zeros(4)}
    with pytest.raises(MedsegError, match="trainer nnUNetTrainer.*\n.*running_mean is not in the network"):
        read_nnunet(write_folder(tmp_path, weights=weights))


def test_a_cascade_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="cascade"):
        read_nnunet(write_folder(tmp_path, configuration={"previous_stage": "3d_lowres"}))


def test_what_was_given_instead_of_a_model_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "results" / "trainer__plans__3d")
    with pytest.raises(MedsegError, match="trainer__plans__3d; name one"):
        read_nnunet(tmp_path / "results")
    with pytest.raises(MedsegError, match="the folder above the folds"):
        read_nnunet(folder / "fold_0")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "plans.pkl").touch()
    with pytest.raises(MedsegError, match="nnU-Net 1"):
        read_nnunet(tmp_path / "old")
    (folder / "plans.json").write_text('{"plans_per_stage": {}}')
    with pytest.raises(MedsegError, match="no 'configurations'"):
        read_nnunet(folder)


def test_a_checkpoint_of_something_else_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    torch.save({"state_dict": {}}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(MedsegError, match=r"network_weights, init_args, trainer_name.*it has state_dict"):
        read_nnunet(folder)
