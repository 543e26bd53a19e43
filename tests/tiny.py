"""Models so small that a whole way through the house takes milliseconds, with random or known weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import nn

from medseg.model import Model
from medseg.networks import BUILDERS, build_network
from medseg.planning.anchors import BoxPlan
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable
from medseg.volume import Geometry, Reorientation

UNET = next(name for name in BUILDERS if name.endswith("plain_unet"))
POINTWISE = "tests.tiny.pointwise"
RETINA = next(name for name in BUILDERS if name.endswith("retina_unet"))
LABELS = LabelTable({1: "liver", 3: "lesion"})


def tiny_plan(dimensions: int = 3, **changes: Any) -> Plan:
    """A plan with one stage of downsampling, patches of 8 and a spacing of 1."""
    values: dict[str, Any] = {
        "task": "segmentation",
        "orientation": "RAS" if dimensions == 3 else "stored",
        "channels": (Channel("MRI", "zscore"),),
        "labels": LABELS,
        "crop": "none",
        "spacing": (1.0,) * dimensions,
        "unit": "mm" if dimensions == 3 else "px",
        "image_order": (3,) * dimensions,
        "label_order": (1,) * dimensions,
        "patch_size": (8,) * dimensions,
        "batch_size": 2,
        "features": (4, 8),
        "strides": ((1,) * dimensions, (2,) * dimensions),
        "kernel_sizes": ((3,) * dimensions, (3,) * dimensions),
        "blocks": (1, 1),
        "mirror_axes": tuple(range(dimensions)),
        "foreground": 0.5,
        "memory_gb": 1.0,
    }
    return Plan(**(values | changes))


def tiny_boxes(dimensions: int = 3, **changes: Any) -> BoxPlan:
    """Anchors of 4 and 6 voxels on the finest level of `tiny_plan`."""
    size = (4.0,) * dimensions
    extremes = {name: {"lesion": size} for name in ("smallest", "median", "largest")}
    values: dict[str, Any] = {"levels": (0,), "anchors": ((size, (6.0,) * dimensions),), "reach": 1.0, **extremes}
    return BoxPlan(**(values | changes))


def pointwise(dimensions: int, in_channels: int, out_channels: int) -> nn.Module:
    """A network that looks at each voxel by itself."""
    return (nn.Conv2d if dimensions == 2 else nn.Conv3d)(in_channels, out_channels, 1)


def tiny_model(
    seed: int = 0, plan: Plan | None = None, target: str = UNET, trust: Sequence[str] = (POINTWISE,)
) -> Model:
    """A model with random weights whose mask, on a scan of noise, holds every label."""
    plan = tiny_plan() if plan is None else plan
    network = {"_target_": target}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_network(network, plan, len(plan.labels.outputs), trust=trust)
    return Model(plan=plan, task={"name": "segmentation"}, network=network, weights=module.state_dict())


def threshold_model(plan: Plan | None = None, at: float = 0.0) -> Model:
    """A model that calls every voxel above ``at`` (normalised) the first label, and nothing the others."""
    plan = tiny_plan() if plan is None else plan
    model = tiny_model(0, plan, POINTWISE)
    weight = torch.zeros_like(model.weights["weight"])
    bias = torch.full_like(model.weights["bias"], -100.0)
    weight[1], bias[0], bias[1] = 50.0, 0.0, -50.0 * at
    return Model(plan=plan, task=model.task, network=model.network, weights={"weight": weight, "bias": bias})


def noise(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Smooth noise, so that a mask made of it has some shape."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=[max(2, n // 3) for n in shape])
    for axis, n in enumerate(shape):
        coarse = np.repeat(coarse, -(-n // coarse.shape[axis]), axis=axis).take(range(n), axis=axis)
    return (100 * coarse + 10 * rng.normal(size=tuple(shape))).astype(np.float32)


def write_nifti(
    path: Path, values: np.ndarray, affine: np.ndarray | None = None, turn: Reorientation | None = None
) -> Path:
    """Store a scan, along other axes where ``turn`` is given; every voxel stays where it was in the world."""
    geometry = Geometry(values.shape, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine)
    if turn is not None:
        values, geometry = turn.apply(values), turn.apply_to_geometry(geometry)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(values), geometry.affine), path)
    return path
