"""Model folders of nnU-Net with known weights, and what nnU-Net's own networks compute with them.

Weights and input are made by a formula from names and shapes, so that the golden file (``golden/nnunet.json``) need hold names,
shapes and outputs only. It was made by nnU-Net 2.8.1 with dynamic-network-architectures 0.4.4, in their own environment::

    scripts/benchmarks/.venv/bin/python tests/interop/nnunet_folder.py tests/interop/golden/nnunet.json
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).with_name("golden") / "nnunet.json"
EVERY = 7
"""Of the outputs, every seventh number is kept."""


def architecture(kind: str, dimensions: int, **changes: Any) -> dict[str, Any]:
    """A network of three stages as nnU-Net's plans name it; the first axis is coarse in 3D."""
    thin = [1] * (dimensions - 2)
    arguments: dict[str, Any] = {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[*thin, 3, 3], [3] * dimensions, [3] * dimensions],
        "strides": [[1] * dimensions, [*thin, 2, 2], [2] * dimensions],
        "n_conv_per_stage_decoder": [1, 2],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name, counted = {
        "plain": ("PlainConvUNet", "n_conv_per_stage"),
        "residual": ("ResidualEncoderUNet", "n_blocks_per_stage"),
    }[kind]
    arguments[counted] = [1, 2, 2]
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": arguments | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain_3d": (architecture("plain", 3), (4, 8, 12)),
    "plain_2d": (architecture("plain", 2), (8, 12)),
    "residual_3d": (architecture("residual", 3), (4, 8, 12)),
    "residual_2d": (architecture("residual", 2), (8, 12)),
}
"""Name → architecture, and the input's size along nnU-Net's axes."""


def formula(name: str, shape: Sequence[int]) -> torch.Tensor:
    """Numbers from −0.5 to 0.5 that depend on name and place alone."""
    count = int(np.prod(shape))
    mixed = (np.arange(count, dtype=np.int64) * 2654435761 + zlib.crc32(name.encode())) % 1009
    return torch.from_numpy((mixed / 1009 - 0.5).astype(np.float32).reshape(tuple(shape)))


def plans(network: Mapping[str, Any], patch: Sequence[int], **changes: Any) -> dict[str, Any]:
    """What ``plans.json`` holds of one configuration, called ``it``."""
    configuration = {
        "spacing": [1.0] * len(patch),
        "patch_size": list(patch),
        "batch_size": 2,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": network,
    } | changes.pop("configuration", {})
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"it": configuration},
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 50.0, "std": 20.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}
        },
    } | changes


DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "front": 1, "back": 2}, "numTraining": 3}


def checkpoint(weights: Mapping[str, torch.Tensor], mirror: Sequence[int] | None) -> dict[str, Any]:
    """What nnU-Net saves, numbers of numpy and a device among it."""
    return {
        "network_weights": dict(weights),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "ema": [np.float32(0.5)], "epochs": [np.int64(1)]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 5,
        "init_args": {"configuration": "it", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirror,
    }


def _once(name: str) -> str:
    """nnU-Net holds some tensors under two names."""
    name = name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name
    return name.replace(".all_modules.0", ".conv").replace(".all_modules.1", ".norm")


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights that nnU-Net's own network had when its output was kept."""
    shapes = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]["shapes"]
    return {key: formula(_once(key), shape) for key, shape in shapes.items()}


def write_folder(
    folder: Path,
    name: str = "plain_3d",
    *,
    folds: Sequence[int | str] = (0,),
    mirror: Sequence[int] | None = None,
    dataset: Mapping[str, Any] = DATASET,
    weights: Mapping[str, torch.Tensor] | None = None,
    **changes: Any,
) -> Path:
    """A model folder of nnU-Net; ``changes`` are of `plans`."""
    network, patch = NETWORKS[name]
    network = changes.pop("network", network)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans(network, patch, **changes)), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        held = golden_weights(name) if weights is None else weights
        torch.save(checkpoint(held, mirror), folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def _make_golden(out: Path) -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    kept = {}
    for name, (network, size) in NETWORKS.items():
        arguments = (network["network_class_name"], network["arch_kwargs"], network["_kw_requires_import"], 1, 3)
        module = get_network_from_plans(*arguments, deep_supervision=False).eval()
        state = module.state_dict()
        with torch.no_grad():
            for key, value in state.items():
                value.copy_(formula(_once(key), value.shape))
            output = module(formula("input", (1, 1, *size)))
        shapes = {key: list(value.shape) for key, value in state.items()}
        numbers = [round(float(v), 7) for v in output.reshape(-1)[::EVERY]]
        kept[name] = {"shapes": shapes, "output": numbers}
    out.write_text(json.dumps(kept, indent=None, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    _make_golden(Path(sys.argv[1]))
