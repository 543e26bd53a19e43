"""Every kind of loader gives the same windows and the same batches; only `smart` sees other cases at another time."""

from __future__ import annotations

import threading
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.data.augment import none
from medseg.data.cases import cache, persistent, smart, stream
from medseg.data.dataset import make_loader
from medseg.data.store import Store
from medseg.errors import MachineError

from .conftest import SHAPES, BalancedCrops, crop_plan
from .test_dataset import assert_same, batches_of

IDS = sorted(SHAPES)


def fixed_kinds(folder: Path) -> dict[str, Any]:
    return {
        "stream": stream,
        "cache": cache,
        "half of it cached": partial(cache, rate=0.5),
        "persistent": partial(persistent, cache_dir=folder),
        "persistent, read back": partial(persistent, cache_dir=folder),
    }


def test_every_kind_answers_every_window_as_the_store_does(crop_store: Store, tmp_path: Path) -> None:
    corners = [
        ((0, 0, 0), (8, 8, 8)),
        ((-5, 3, 10), (7, 40, 30)),
        ((30, 30, 30), (33, 34, 35)),
        ((-9, 0, 0), (-4, 5, 5)),
    ]
    for kind, build in (fixed_kinds(tmp_path) | {"smart": partial(smart, rate=1.0)}).items():
        cases = build(crop_store, IDS)
        for position in range(len(cases)):
            case = cases[position]
            stored = crop_store.case(case.id)
            assert kind == "smart" or case.id == IDS[position]
            assert (case.shape, case.channels) == (stored.shape, stored.channels)
            assert list(case.locations) == list(stored.locations)
            for name, rows in stored.locations.items():
                np.testing.assert_array_equal(case.locations[name], rows)
            for lower, upper in corners:
                for member in ("image", "label"):
                    found, expected = getattr(case, member)(lower, upper), getattr(stored, member)(lower, upper)
                    np.testing.assert_array_equal(found, expected, err_msg=kind)
                    assert found.dtype == expected.dtype
        cases.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fixed_kind_gives_the_same_batches(crop_store: Store, tmp_path: Path, workers: int) -> None:
    expected = batches_of(crop_store, epochs=(0, 1))
    for kind in fixed_kinds(tmp_path).values():
        assert_same(batches_of(crop_store, epochs=(0, 1), workers=workers, kind=kind), expected)


def test_persistent_files_are_whole_and_named_by_content(crop_store: Store, tmp_path: Path) -> None:
    persistent(crop_store, IDS, cache_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{crop_store.case(name).file.stem}.pt" for name in IDS]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    persistent(crop_store, IDS, cache_dir=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_full_disk_stops_with_a_message(crop_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(MachineError, match=r"tensors of 'a' could not be written .*file write failed\); make room"):
        persistent(crop_store, IDS, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_smart_replaces_cases_between_epochs_and_ends_its_thread(crop_store: Store, workers: int) -> None:
    plan = crop_plan()
    kind = partial(smart, rate=0.5, replace_rate=0.5)
    loader = make_loader(crop_store, IDS, BalancedCrops(), plan, none(plan), kind=kind, steps=8, workers=workers)
    seen = []
    for epoch in range(4):
        loader.set_epoch(epoch)
        seen.append({name for batch in loader for name in batch["case"]})
    loader.close()
    loader.close()
    assert all(len(names) == 2 for names in seen), "half of four cases are in memory"
    assert set().union(*seen) == set(IDS), "and each had its turn"
    assert all(len(now & before) == 1 for before, now in pairwise(seen)), "one of two was replaced"
    assert not [thread for thread in threading.enumerate() if "manage_replacement" in thread.name]


def test_smart_can_be_closed_before_and_within_an_epoch(crop_store: Store) -> None:
    for steps in (0, 1):
        plan = crop_plan()
        loader = make_loader(crop_store, IDS, BalancedCrops(), plan, none(plan), kind=smart, steps=8, workers=0)
        for _ in zip(range(steps), loader, strict=False):
            pass
        loader.close()
    assert not [thread for thread in threading.enumerate() if "manage_replacement" in thread.name]


def test_smart_holds_a_single_case_without_complaint(crop_store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases = smart(crop_store, ["b"])
    assert [cases[0].id, len(cases), cases.changes] == ["b", 1, False]
