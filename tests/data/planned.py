"""A plan and a scan for it, of which everything is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable
from medseg.volume import Geometry, Volume


def plan_for(
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0), channels: int | tuple[Channel, ...] = 1, **values: Any
) -> Plan:
    dimensions = len(spacing)
    if isinstance(channels, int):
        channels = tuple(Channel(f"channel {i}", "zscore") for i in range(channels))
    plan = Plan(
        task="segmentation",
        orientation="RAS" if dimensions == 3 else "stored",
        channels=channels,
        labels=LabelTable({1: "ball", 2: "core"}, ignore=9),
        crop="none",
        spacing=spacing,
        unit="mm",
        image_order=(3,) * dimensions,
        label_order=(1,) * dimensions,
        patch_size=(8,) * dimensions,
        batch_size=2,
        features=(8, 16),
        strides=((1,) * dimensions, (2,) * dimensions),
        kernel_sizes=((3,) * dimensions,) * 2,
        blocks=(1, 1),
        mirror_axes=tuple(range(dimensions)),
        foreground=0.5,
        memory_gb=4,
    )
    return plan.changed(**values)


def phantom(
    shape: tuple[int, ...] = (40, 36, 20), spacing: tuple[float, ...] = (0.8, 0.9, 1.6), channels: int = 1
) -> tuple[Volume, np.ndarray]:
    """A ball of 11 mm with a core of 6 mm in an ellipsoid of tissue, zero outside of it; and its labels."""
    geometry = Geometry.from_spacing(shape, spacing)
    world = geometry.to_world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    middle = (np.array(shape) - 1) / 2 * spacing
    radius = np.linalg.norm(world - middle, axis=-1)
    mask = (radius < 11).astype(np.uint8) + (radius < 6)
    tissue = (((world - middle) / (np.array(shape) * spacing) / 0.47) ** 2).sum(-1) < 1
    noise = np.random.default_rng(0).normal(0, 5, (channels, *shape))
    data = np.where(tissue, 100 + 50 * mask + noise, 0).astype(np.float32)
    return Volume(data, geometry), mask
