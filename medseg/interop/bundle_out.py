"""A model of medseg's as a MONAI bundle: ``configs``, ``models/model.pt`` and a README that says what is not quite the same.

Owns how a Plan is said in MONAI's transforms. MONAI's own networks are named as such, so that the bundle runs without medseg;
medseg's U-Nets are named by their builder, and need it installed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medseg.errors import all_at_once
from medseg.files import whole_file, write_text
from medseg.interop.bundle_network import bundle_definition
from medseg.model import Model
from medseg.planning.plan import Plan
from medseg.tasks import build_task

_MODES = {0: "nearest", 1: "bilinear", 3: 3}
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"


def write_bundle(model: Model, folder: Path, *, batch_size: int = 1, trust: Sequence[str] = ()) -> None:
    """Write the bundle into ``folder``, which must not hold one.

    Args:
        batch_size: windows that go through the network at once.
        trust: means nothing here, as no network is built.

    Raises:
        MedsegError: the model does not segment, or its plan has something that MONAI's transforms cannot say; all at once.
    """
    del trust
    _check(model)
    outputs = build_task(model.task, model.plan).out_channels
    for name in ("configs", "models", "docs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_text(folder / "configs" / "metadata.json", _json(_metadata(model, outputs)))
    write_text(folder / "configs" / "inference.json", _json(_inference(model, outputs, batch_size)))
    write_text(folder / "docs" / "README.md", _readme(model))
    stream = io.BytesIO()
    torch.save({name: w.detach().cpu().contiguous() for name, w in model.weights.items()}, stream)
    with whole_file(folder / "models" / "model.pt") as aside:
        aside.write_bytes(stream.getvalue())


def _check(model: Model) -> None:
    plan, faults = model.plan, []
    if model.task.get("name") != "segmentation":
        faults.append(f"task {model.task.get('name')}; a bundle is made of models that segment")
    if plan.dimensions == 2 and plan.unit == "px":
        faults.append("pictures without spacing, which MONAI's Spacing cannot resample")
    kinds = {json.dumps(_normalised(plan, number), sort_keys=True) for number in range(len(plan.channels))}
    if len(kinds) > 1:
        faults.append("channels that are normalised each its own way; MONAI's transforms treat all of an image alike")
    if len(set(plan.image_order)) > 1:
        faults.append(f"image_order {list(plan.image_order)}; MONAI's Spacing has one for all axes")
    if plan.options:
        faults.append(f"reader options {dict(plan.options)}, which MONAI's readers do not have")
    if faults:
        raise all_at_once("convert: this model cannot be said as a MONAI bundle", faults)


def _normalised(plan: Plan, number: int) -> dict[str, Any]:
    """MONAI's transform of one channel."""
    channel = plan.channels[number]
    if channel.normalisation == "ct":
        first, last = ((bound - channel.mean) / channel.std for bound in (channel.low, channel.high))
        limits = {"a_min": channel.low, "a_max": channel.high, "b_min": first, "b_max": last}
        return {"_target_": "ScaleIntensityRanged", "keys": "image", **limits, "clip": True}
    if channel.normalisation == "rescale":
        limits = {"a_min": channel.low, "a_max": channel.high, "b_min": 0.0, "b_max": 1.0}
        return {"_target_": "ScaleIntensityRanged", "keys": "image", **limits, "clip": False}
    if channel.normalisation == "minmax":
        return {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0, "channel_wise": True}
    if channel.normalisation == "none":
        return {"_target_": "EnsureTyped", "keys": "image"}
    masked = channel.normalisation == "zscore" and plan.crop == "nonzero"
    return {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": masked, "channel_wise": True}


def _inference(model: Model, outputs: int, batch_size: int) -> dict[str, Any]:
    plan = model.plan
    kept = plan.conventions is not None and len(plan.conventions.kept_axes) == plan.dimensions
    turn = {"_target_": "Orientationd", "keys": "image", "axcodes": plan.orientation, "labels": None}
    mode = _MODES[plan.image_order[0]]
    spacing = {"_target_": "Spacingd", "keys": "image", "pixdim": list(plan.spacing), "mode": mode}
    before = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *([turn] if plan.orientation != "stored" and plan.dimensions == 3 else []),
        _normalised(plan, 0),
        *([] if kept else [spacing]),
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "dataset_dir": "/workspace/data",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": bundle_definition(model.network, plan, outputs),
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {
            "_target_": "DataLoader",
            "dataset": "@dataset",
            "batch_size": 1,
            "shuffle": False,
            "num_workers": 0,
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.patch_size),
            "sw_batch_size": batch_size,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after(plan)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "evaluating": ["$@evaluator.run()"],
    }


def _after(plan: Plan) -> list[dict[str, Any]]:
    exclusive = plan.labels.exclusive
    values = [0, *plan.labels.names]
    mapping = {
        "_target_": "MapLabelValued",
        "keys": "pred",
        "orig_labels": list(range(len(values))),
        "target_labels": values,
    }
    return [
        {"_target_": "Activationsd", "keys": "pred", **({"softmax": True} if exclusive else {"sigmoid": True})},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", **({"argmax": True} if exclusive else {"threshold": 0.5})},
        *([mapping] if exclusive and values != list(range(len(values))) else []),
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "resample": False},
    ]


def _metadata(model: Model, outputs: int) -> dict[str, Any]:
    plan = model.plan
    sizes: dict[str, Any] = {
        "type": "image",
        "num_channels": len(plan.channels),
        "spatial_shape": list(plan.patch_size),
    }
    common = {"dtype": "float32", "is_patch_data": True}
    return {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": "made by medseg convert"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "medseg": version("medseg")},
        "name": f"medseg {plan.task}",
        "task": f"Segmentation of {', '.join(plan.labels.outputs[plan.labels.exclusive :])}",
        "description": "A model of medseg; see docs/README.md",
        "authors": "unknown",
        "copyright": "unknown",
        "intended_use": "Research only, no medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    **sizes,
                    **common,
                    "format": "magnitude",
                    "modality": plan.channels[0].name,
                    "value_range": [],
                    "channel_def": {str(n): channel.name for n, channel in enumerate(plan.channels)},
                }
            },
            "outputs": {
                "pred": {
                    **sizes,
                    **common,
                    "num_channels": outputs,
                    "format": "segmentation",
                    "value_range": [0, 1],
                    "channel_def": {str(n): name for n, name in enumerate(plan.labels.outputs)},
                }
            },
        },
    }


def _readme(model: Model) -> str:
    axes = list(model.plan.mirror_axes)
    return f"""# {model.plan.task} as a MONAI bundle

Made by medseg {version("medseg")} of a model whose weights and plan have the hash {model.sha256}.

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir <folder of NIfTI files>

What MONAI does not do as medseg does:

- copies mirrored along the axes {axes} are not averaged, nor is the mask cleaned afterwards;
- the resampled grid lies on the centre of the first voxel, medseg's on its outer edge: half a voxel at most;
- where only voxels that are not zero are normalised, holes inside of them are left out, and nothing is cropped.
"""


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4) + "\n"
