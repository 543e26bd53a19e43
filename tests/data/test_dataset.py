"""A crop is a function of (seed, epoch, index): whatever the workers, the ranks, the cache, and whoever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.data import cases
from medseg.data.augment import none, strong
from medseg.data.dataset import (
    CropLoader,
    Crops,
    Draw,
    EpochSampler,
    make_loader,
    stream,
    wants_foreground,
    whole_cases,
)
from medseg.data.store import Store
from medseg.errors import MedsegError

from .conftest import BalancedCrops, crop_plan

Batches = list[dict[str, Any]]


def loader_of(store: Store, **options: Any) -> CropLoader:
    plan = crop_plan()
    settings = {"steps": 3, "workers": 0, "seed": 5, **options}
    return make_loader(store, list(store.cases), BalancedCrops(), plan, strong(plan), **settings)


def batches_of(store: Store, epochs: tuple[int, ...] = (0,), **options: Any) -> Batches:
    loader = loader_of(store, **options)
    try:
        return [batch for epoch in epochs for batch in (loader.set_epoch(epoch), *loader)[1:]]
    finally:
        loader.close()


def assert_same(first: Batches, second: Batches) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["case"] == b["case"]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["label"], b["label"])


def test_a_batch_has_the_shapes_and_types_of_the_contract(crop_store: Store) -> None:
    batch = batches_of(crop_store)[0]
    assert batch["image"].shape == batch["label"].shape == (4, 1, 16, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].dtype == torch.int16
    assert set(batch["case"]) <= set(crop_store.cases)
    assert len(batch["case"]) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_seen(crop_store: Store, workers: int) -> None:
    expected = batches_of(crop_store, epochs=(0, 1))
    assert_same(batches_of(crop_store, epochs=(0, 1), workers=workers), expected)


def test_an_epoch_can_be_entered_in_the_middle_of_a_training(crop_store: Store) -> None:
    expected = batches_of(crop_store, epochs=(0, 1, 2))
    assert_same(batches_of(crop_store, epochs=(2,), workers=1), expected[6:])
    assert_same(batches_of(crop_store, epochs=(0, 1))[3:], expected[3:6])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_epoch_may_be_set_after_the_iterator_is_made(crop_store: Store, workers: int) -> None:
    expected = batches_of(crop_store, epochs=(2,))
    loader = loader_of(crop_store, workers=workers)
    waiting = iter(loader)  # so does Lightning when it resumes
    loader.set_epoch(2)
    assert_same(list(waiting), expected)
    loader.close()


def test_two_ranks_together_see_what_one_sees(crop_store: Store) -> None:
    whole = batches_of(crop_store, epochs=(1,))
    first, second = (batches_of(crop_store, epochs=(1,), rank=rank, world_size=2) for rank in (0, 1))
    for one, a, b in zip(whole, first, second, strict=True):
        assert a["image"].shape[0] == b["image"].shape[0] == 2
        together = torch.stack([a["image"], b["image"]], 1).flatten(0, 1)
        assert torch.equal(together, one["image"])
        assert [name for pair in zip(a["case"], b["case"], strict=True) for name in pair] == one["case"]


def test_epochs_and_seeds_differ_and_the_order_of_ids_does_not_matter(crop_store: Store) -> None:
    first = batches_of(crop_store)
    for other in (batches_of(crop_store, epochs=(1,)), batches_of(crop_store, seed=6)):
        assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))
    plan = crop_plan()
    crops = [
        Crops(stream(crop_store, ids), BalancedCrops(), plan, strong(plan), seed=1)
        for ids in (sorted(crop_store.cases), sorted(crop_store.cases))
    ]
    assert torch.equal(crops[0][Draw(3, 4)]["image"], crops[1][Draw(3, 4)]["image"])
    shuffled = make_loader(
        crop_store, ["d", "b", "a", "c"], BalancedCrops(), plan, strong(plan), seed=5, steps=3, workers=0
    )
    assert_same(list(shuffled), first)


def test_drawing_batches_leaves_global_randomness_alone(crop_store: Store) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches_of(crop_store, workers=1)
    batches_of(crop_store)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], before_numpy)


def test_the_last_slots_of_every_batch_hold_foreground(crop_store: Store) -> None:
    for batch in batches_of(crop_store, epochs=(0, 1, 2)):
        centres = batch["label"][:, 0, 7:9, 7:9, 7:9].flatten(1).amax(1)
        assert (centres[2:] > 0).all()


@pytest.mark.parametrize(
    ("batch_size", "share", "expected"), [(2, 0.33, 1), (12, 0.33, 4), (100, 0.33, 33), (3, 0, 0), (3, 1, 3)]
)
def test_a_batch_has_at_least_the_share_of_foreground_asked_for(batch_size: int, share: float, expected: int) -> None:
    wanted = [wants_foreground(index, batch_size, share) for index in range(3 * batch_size)]
    assert wanted == ([False] * (batch_size - expected) + [True] * expected) * 3


def test_batches_of_one_take_turns() -> None:
    wanted = [wants_foreground(index, 1, 0.25) for index in range(12)]
    assert wanted == [False, False, False, True] * 3
    assert all(wants_foreground(index, 1, 1.0) for index in range(5))


def test_every_case_is_drawn_about_equally_often(crop_store: Store) -> None:
    plan = crop_plan()
    crops = Crops(stream(crop_store, sorted(crop_store.cases)), BalancedCrops(), plan, none(plan))
    drawn = [crops[Draw(0, index)]["case"] for index in range(400)]
    assert min(drawn.count(name) for name in "abcd") > 70


def test_without_augmentation_a_crop_is_a_window_of_the_case(crop_store: Store) -> None:
    plan = crop_plan()

    class Corner(BalancedCrops):
        def crop(self, case: Any, patch_size: Any, foreground: bool, rng: Any) -> tuple[int, ...]:
            return (-3, 2, 5)

    crop = Crops(stream(crop_store, ["a"]), Corner(), plan, none(plan))[Draw(0, 0)]
    case = crop_store.case("a")
    np.testing.assert_array_equal(crop["image"].numpy(), case.image((-3, 2, 5), (13, 18, 21)))
    np.testing.assert_array_equal(crop["label"].numpy(), case.label((-3, 2, 5), (13, 18, 21)))


def test_a_turned_crop_keeps_the_centre_that_the_task_chose(crop_store: Store) -> None:
    plan = crop_plan(patch_size=(6, 6, 6))
    turned = none(plan, p_rotation=1, rotation_deg=180, p_scale=1, scale=(0.7, 1.4))
    crops = Crops(stream(crop_store, sorted(crop_store.cases)), BalancedCrops(), plan, turned)
    for index in range(2, 80, 4):  # a foreground slot
        assert crops[Draw(0, index)]["label"][0, 2:5, 2:5, 2:5].max() == 2


def test_image_and_label_stay_aligned_through_everything(crop_store: Store) -> None:
    plan = crop_plan()
    moved = none(plan, p_rotation=1, rotation_deg=40, p_scale=1, scale=(0.7, 1.4), mirror_axes=(0, 1, 2))
    crops = Crops(stream(crop_store, sorted(crop_store.cases)), BalancedCrops(), plan, moved)
    for index in range(2, 82, 4):
        crop = crops[Draw(0, index)]
        image, label = crop["image"], crop["label"]
        # The phantoms are 0, 100 and 200 with noise of 10, so labels and intensities must correlate.
        assert np.corrcoef(image.flatten(), label.flatten())[0, 1] > 0.85


def test_mistakes_are_named(crop_store: Store) -> None:
    with pytest.raises(
        MedsegError, match=r"on 3 processes: expected plan.batch_size to be a multiple of 3, found 4; set .*=6"
    ):
        EpochSampler(1, 4, world_size=3)
    with pytest.raises(MedsegError, match="expected a case to crop from, found none"):
        make_loader(crop_store, [], BalancedCrops(), crop_plan(), none(crop_plan()))
    with pytest.raises(MedsegError, match="seed: expected 0 or more, found -1"):
        loader_of(crop_store, seed=-1)


def test_validation_walks_whole_cases_in_the_order_given(crop_store: Store) -> None:
    walked: Iterator[Any] = whole_cases(crop_store, ["c", "a"])
    assert [(case.id, case.whole()[0].shape[1:]) for case in walked] == [("c", (24, 20, 20)), ("a", (20, 24, 18))]


PARENT = """
import sys, time
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from conftest import BalancedCrops, crop_plan, make_store
from medseg.data.augment import none
from medseg.data.dataset import make_loader
plan = crop_plan()
store = make_store(Path(sys.argv[1]))
loader = make_loader(store, list(store.cases), BalancedCrops(), plan, none(plan), steps=10_000, workers=2)
for batch in loader:
    print(*(worker.pid for worker in loader._iterator._workers), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="asks /proc; elsewhere torch's own watchdog ends workers within seconds"
)
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    here = Path(__file__)
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(here.parent), str(here.parents[2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        alive = [pid for pid in workers if runs(pid)]
        os.kill(parent.pid, signal.SIGKILL)
    assert len(alive) == 2
    deadline = time.monotonic() + 3
    while any(runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(runs(pid) for pid in workers)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_cases_that_the_task_does_not_want_are_drawn_again_but_not_for_ever(crop_store: Store) -> None:
    plan = crop_plan()

    class Picky(BalancedCrops):
        def wants(self, case: Any, rng: Any) -> bool:
            return case.id == "b"

    class Unwilling(BalancedCrops):
        def wants(self, case: Any, rng: Any) -> bool:
            return False

    crops = Crops(stream(crop_store, ["a", "b", "c"]), Picky(), plan, none(plan))
    assert {crops[Draw(0, index)]["case"] for index in range(20)} == {"b"}
    none_wanted = Crops(stream(crop_store, ["a", "b", "c"]), Unwilling(), plan, none(plan))
    assert none_wanted[Draw(0, 0)]["case"] in ("a", "b", "c")


def test_a_case_that_is_not_wanted_is_not_read(crop_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, read, loaded = crop_plan(), [], cases._loaded
    monkeypatch.setattr(cases, "_loaded", lambda case, item: read.append(case.id) or loaded(case, item))

    class Picky(BalancedCrops):
        def wants(self, case: Any, rng: Any) -> bool:
            return case.id == "b"

    crops = Crops(cases.cache(crop_store, ["a", "b", "c"]), Picky(), plan, none(plan))
    for index in range(20):
        assert crops[Draw(0, index)]["case"] == "b"
    assert read == ["b"] * 20
