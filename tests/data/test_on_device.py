"""Images made on a device are those that workers would have made, wherever their cases lie."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from medseg.data.augment import strong
from medseg.data.dataset import CropLoader, make_loader
from medseg.data.on_device import DeviceImages, HeldCases, hold_cases
from medseg.data.store import Store
from medseg.errors import MedsegError

from .conftest import BalancedCrops, crop_plan

CPU = torch.device("cpu")


def loader_of(store: Store, images: DeviceImages | None, **options: Any) -> CropLoader:
    plan = crop_plan()
    settings: dict[str, Any] = {"steps": 6, "workers": 0, "seed": 5, **options}
    return make_loader(store, list(store.cases), BalancedCrops(), plan, recipe(), images=images, **settings)


def recipe() -> Any:
    return strong(crop_plan(), p_rotation=0.5, p_scale=0.5, p_noise=0.0)


def finished(loader: CropLoader, device: torch.device = CPU) -> list[dict[str, Any]]:
    try:
        return [batch if loader.images is None else loader.images.finish(batch, device) for batch in loader]
    finally:
        loader.close()


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and a["case"] == b["case"]
        assert torch.equal(a["label"].cpu(), b["label"])
        scale = float(b["image"].abs().max())
        torch.testing.assert_close(a["image"].cpu(), b["image"], rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("held", [False, True], ids=["windows", "held"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_made_on_a_device_is_that_of_the_workers(crop_store: Store, held: bool, workers: int) -> None:
    cases = hold_cases(crop_store, list(crop_store.cases), CPU, always=True) if held else None
    images = DeviceImages(recipe(), crop_plan().patch_size, cases)
    assert_same(finished(loader_of(crop_store, images, workers=workers)), finished(loader_of(crop_store, None)))


def test_boxes_and_classes_are_those_of_the_workers(crop_store: Store) -> None:
    class Boxed(BalancedCrops):
        def target(self, case: Any, label: Any, patch_size: Any, placed: Any) -> dict[str, Any]:
            boxes = placed(np.array([[2.0, 3, 4, 9, 8, 12]]))
            return {"boxes": (boxes, label), "class": torch.tensor(len(case.id))}

    plan = crop_plan()
    found, expected = (
        finished(make_loader(crop_store, ["a", "b"], Boxed(), plan, recipe(), steps=4, workers=0, images=images))
        for images in (DeviceImages(recipe(), plan.patch_size), None)
    )
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a["class"], b["class"])
        for one, two in zip(a["boxes"], b["boxes"], strict=True):
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1], two[1])


def test_pixels_of_a_held_case_are_not_read_again(crop_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    images = DeviceImages(recipe(), crop_plan().patch_size, HeldCases(crop_store, list(crop_store.cases), CPU))
    monkeypatch.setattr("medseg.data.store.StoredCase.image", lambda *window: pytest.fail("read"))
    assert len(finished(loader_of(crop_store, images))) == 6


def test_a_window_of_a_held_case_is_that_of_the_store_also_beyond_it(crop_store: Store) -> None:
    held = HeldCases(crop_store, ["a"], CPU)
    for first, last in [
        ((0, 0, 0), (4, 5, 6)),
        ((-3, 2, 5), (13, 40, 21)),
        ((30, 0, 0), (33, 4, 4)),
        ((-9, 0, 0), (-2, 4, 4)),
    ]:
        found = held.window("a", first, last)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), crop_store.case("a").image(first, last))


def test_cases_are_held_in_the_number_format_of_the_store(crop_store: Store) -> None:
    case = crop_store.case("a")
    assert case.image_bytes == 2 * np.prod(case.shape)
    assert HeldCases(crop_store, ["a"], CPU)._images["a"].element_size() == 2


def test_cases_that_do_not_fit_are_streamed_and_the_log_says_so(
    crop_store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100_000, 100_000))
    with caplog.at_level(logging.INFO):
        assert hold_cases(crop_store, list(crop_store.cases), torch.device("cuda")) is None
    assert "4 cases take 0.00 GB, more than 30 % of the 0.00 GB that are free on cuda: they are streamed" in caplog.text
    with caplog.at_level(logging.INFO):
        assert hold_cases(crop_store, list(crop_store.cases), CPU) is None
        assert hold_cases(crop_store, list(crop_store.cases), CPU, always=True) is not None
    assert "4 cases, 0.00 GB, are kept on cpu" in caplog.text


def test_an_augmentation_that_knows_arrays_only_is_named() -> None:
    with pytest.raises(
        MedsegError, match="expected an augmentation of medseg's own .* found Own, .*augment_on=workers"
    ):
        DeviceImages(type("Own", (), {})(), (16, 16, 16))


@pytest.mark.gpu
@pytest.mark.parametrize("held", [False, True], ids=["windows", "held"])
def test_a_batch_made_on_a_gpu_is_that_of_the_workers(crop_store: Store, held: bool) -> None:
    gpu = torch.device("cuda")
    cases = hold_cases(crop_store, list(crop_store.cases), gpu) if held else None
    images = DeviceImages(recipe(), crop_plan().patch_size, cases)
    found = finished(loader_of(crop_store, images, workers=2, pin_memory=True), gpu)
    assert found[0]["image"].device.type == "cuda"
    assert_same(found, finished(loader_of(crop_store, None)), 1e-3)
