from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from medseg.scans.duplicates import Print, detail_correlation, duplicates, print_of

SHAPE = {2: (96, 80), 3: (40, 36, 30)}


def scene(dimensions: int, seed: int) -> np.ndarray:
    """The same anatomy for every seed (a large bright blob), with texture and noise of its own."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE[dimensions]], indexing="ij"))
    texture = scipy.ndimage.gaussian_filter(rng.normal(size=SHAPE[dimensions]), 1)
    return (200 * np.exp(-2 * (grid**2).sum(0)) + 10 * texture / texture.std() + rng.normal(size=texture.shape)).astype(
        np.float32
    )


def compare(images: dict[str, np.ndarray], patients: dict[str, str] | None = None) -> tuple[list, list]:
    prints = [print_of(name, (patients or {}).get(name, name), image[None]) for name, image in images.items()]
    return duplicates([p for p in prints if isinstance(p, Print)], lambda name: images[name])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_different_scans_of_one_anatomy_are_not_duplicates(dimensions: int) -> None:
    assert compare({str(seed): scene(dimensions, seed) for seed in range(8)}) == ([], [])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_same_pixels_are_found_once(dimensions: int) -> None:
    images = {str(seed): scene(dimensions, seed) for seed in range(4)} | {"again": scene(dimensions, 2)}
    assert compare(images) == ([("2", "again")], [])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_nearly_the_same_scans_are_found(dimensions: int) -> None:
    original = scene(dimensions, 0)
    noise = np.random.default_rng(9).normal(size=original.shape).astype(np.float32)
    images = {
        "other": scene(dimensions, 1),
        "original": original,
        "brighter": original * 1.7 + 30,
        "noisy": original + noise,
        "cropped": original[1:, :-1],
    }
    assert compare(images) == ([], [("brighter", "cropped", "noisy", "original")])


def test_scans_of_one_patient_are_not_compared() -> None:
    images = {"a": scene(3, 0), "b": scene(3, 0), "c": scene(3, 0) + 1}
    assert compare(images, dict.fromkeys("abc", "same")) == ([], [])


def test_blank_images_have_no_print_and_nan_does_no_harm() -> None:
    assert print_of("a", "a", np.full((1, 8, 8), 3.0, np.float32)) is None
    assert print_of("a", "a", np.full((1, 8, 8), np.nan, np.float32)) is None
    odd = scene(2, 0)
    odd[0, 0] = np.inf
    assert print_of("a", "a", odd[None]) is not None


def test_detail_is_compared_whatever_the_shift() -> None:
    image = scene(2, 3)
    assert detail_correlation(image, image) == pytest.approx(1, abs=1e-5)
    assert detail_correlation(image[:-3], image[3:]) > 0.9
    assert detail_correlation(image, np.zeros_like(image)) == 0
