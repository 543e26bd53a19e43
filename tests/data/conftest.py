"""Four small cases in a store: a bright ellipsoid with a second label inside, each of another shape, spacing 1 mm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.data.preprocess import preprocess, preprocess_mask
from medseg.data.store import Store, StoredCase, _write
from medseg.planning.plan import Channel, Plan
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry, Volume

SHAPES = {"a": (20, 24, 18), "b": (16, 30, 22), "c": (24, 20, 20), "d": (12, 26, 24)}


def crop_plan(**changes: Any) -> Plan:
    """A plan of 16³ patches on a 1 mm grid, two of four crops on foreground, mirrored along i and j."""
    plan = Plan(
        task="segmentation",
        orientation="RAS",
        channels=(Channel("MRI", "zscore"),),
        labels=LabelTable({1: "organ", 2: "lesion"}),
        crop="none",
        spacing=(1.0, 1.0, 1.0),
        unit="mm",
        image_order=(3, 3, 3),
        label_order=(1, 1, 1),
        patch_size=(16, 16, 16),
        batch_size=4,
        features=(8, 16),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3), (3, 3, 3)),
        blocks=(2, 2),
        mirror_axes=(0, 1),
        foreground=0.5,
        memory_gb=1.0,
    )
    return plan.changed(**changes) if changes else plan


@pytest.fixture(scope="session")
def crop_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("crops"))


def make_store(folder: Path) -> Store:
    plan = crop_plan()
    cases = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        rng = np.random.default_rng(number)
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        radius = np.sqrt((grid**2).sum(0))
        mask = (radius < 0.6).astype(np.int16) + (radius < 0.3).astype(np.int16)
        values = (mask * 100.0 + rng.normal(0, 10, shape)).astype(np.float32)
        volume = Volume(values[None], Geometry.from_spacing(shape, (1.0, 1.0, 1.0)))
        image, restoration = preprocess(volume, plan)
        file = folder / f"entry_{name}.zip"
        _write(file, image, preprocess_mask(mask, restoration, plan), restoration, None, plan)
        cases[name] = StoredCase.open(name, file)
    return Store(folder, cases)


class BalancedCrops:
    """Places crops as a segmentation task does: about a labelled voxel, or anywhere inside."""

    def target(self, case: Any, label: Array, patch_size: Sequence[int], placed: Any) -> dict[str, Any]:
        return {"label": torch.from_numpy(label)}

    def wants(self, case: Any, rng: np.random.Generator) -> bool:
        return True

    def crop(self, case: Any, patch_size: Sequence[int], foreground: bool, rng: np.random.Generator) -> tuple[int, ...]:
        if foreground:
            rows = case.locations["lesion"]
            return tuple(int(at) - n // 2 for at, n in zip(rows[int(rng.integers(len(rows)))], patch_size, strict=True))
        room = ((min(0, s - n), max(0, s - n)) for s, n in zip(case.shape, patch_size, strict=True))
        return tuple(int(rng.integers(low, high + 1)) for low, high in room)
