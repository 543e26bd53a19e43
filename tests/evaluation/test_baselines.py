from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.baselines import Example, GlobalThreshold, MeanShapeAtlas, normalised
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry, Volume, reorientation_to

ORGAN = LabelTable({1: "organ"})
TWO = LabelTable({1: "dark", 2: "bright"})


def dice(a: Array, b: Array, value: int = 1) -> float:
    return float(2 * ((a == value) & (b == value)).sum() / ((a == value).sum() + (b == value).sum()))


def geometry(shape: tuple[int, ...]) -> Geometry:
    return Geometry.from_spacing(shape, (1.0,) * len(shape))


def made(values: Array, truth: Array, ct: bool = True) -> Example:
    image = normalised(Volume(values[None].astype(np.float32), geometry(truth.shape)), [ct])
    return Example(geometry(truth.shape), image, truth)


def bright_and_dark(seed: int) -> Example:
    """HU −500 and 500 in noise-free boxes on a background of 0."""
    random = np.random.default_rng(seed)
    truth = np.zeros((16, 16, 16), np.uint8)
    i, j = random.integers(0, 5, 2)
    truth[i : i + 6, 1:7, 2:9] = 1
    truth[j : j + 6, 9:15, 2:9] = 2
    return made(np.array([0, -500, 500])[truth], truth)


def test_a_threshold_finds_what_is_brighter_and_what_is_darker() -> None:
    fitted = GlobalThreshold.fit((bright_and_dark(i) for i in range(3)), TWO)
    case = bright_and_dark(7)
    assert (fitted.predict(case) == case.truth).all()
    assert fitted.intervals["bright"].dice == fitted.intervals["dark"].dice == 1


def test_an_interval_finds_what_lies_between() -> None:
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[3:7, 3:7, 3:7] = 1
    values = np.where(truth, 100, 0)
    values[9:, 9:, 9:] = 900
    assert (GlobalThreshold.fit([made(values, truth)], ORGAN).predict(made(values, truth)) == truth).all()


def test_the_threshold_has_the_best_mean_dice_of_all_thresholds() -> None:
    random = np.random.default_rng(0)
    cases = []
    for i in range(4):
        truth = np.zeros((12, 12, 12), np.uint8)
        truth[2:8, 2:8, 2 : 5 + i] = 1
        cases.append(made(truth * 150 + random.normal(0, 120, truth.shape), truth))
    fitted = GlobalThreshold.fit(cases, ORGAN)
    found = np.mean([dice(fitted.predict(case), case.truth) for case in cases])
    assert found == pytest.approx(fitted.intervals["organ"].dice)
    thresholds = [
        np.mean([dice((case.image[0] >= at).astype(int), case.truth) for case in cases])
        for at in np.arange(512) / 512
        if all((case.image[0] >= at).any() for case in cases)
    ]
    assert found >= max(thresholds) - 1e-9


def test_the_best_of_several_channels_is_used() -> None:
    truth = np.zeros((10, 10), np.uint8)
    truth[2:5, 2:5] = 1
    noise = np.random.default_rng(0).random((10, 10)).astype(np.float32)
    case = Example(geometry((10, 10)), np.stack([noise, truth.astype(np.float32) * 0.5]), truth)
    fitted = GlobalThreshold.fit([case], ORGAN)
    assert fitted.intervals["organ"].channel == 1
    assert (fitted.predict(case) == truth).all()


def test_normalising_makes_scaled_mr_images_equal_and_leaves_hu_alone() -> None:
    values = np.random.default_rng(0).random((1, 6, 6, 6)) * 100 + 1
    grid = geometry((6, 6, 6))
    assert np.allclose(
        normalised(Volume(values, grid), [False]), normalised(Volume(values * 37, grid), [False]), atol=1e-5
    )
    air = normalised(Volume(np.full((1, 2, 2, 2), -1024.0), geometry((2, 2, 2))), [True])
    assert (air == 0).all()


def test_ignored_voxels_do_not_fit_the_threshold() -> None:
    labels = LabelTable({1: "organ"}, ignore=9)
    truth = np.zeros((10, 10, 10), np.uint8)
    truth[:3], truth[7:] = 1, 9
    values = np.where(truth > 0, 500, 0)
    assert GlobalThreshold.fit([made(values, truth)], labels).intervals["organ"].dice == 1


def test_the_atlas_finds_what_is_always_at_the_same_place_of_the_field_of_view() -> None:
    def case(n: int) -> Example:
        truth = np.zeros((n, n, 2 * n), np.uint8)
        truth[n // 4 : n // 2, n // 4 : n // 2, n // 2 : n] = 1
        return Example(geometry(truth.shape), truth=truth)

    fitted = MeanShapeAtlas.fit([case(16), case(24)], ORGAN)
    assert dice(fitted.predict(case(32)), case(32).truth) > 0.95


def test_the_atlas_is_the_same_whatever_the_orientation_of_the_file() -> None:
    truth = np.zeros((16, 12, 20), np.uint8)
    truth[2:8, 3:9, 10:18] = 1
    grid = geometry(truth.shape)
    fitted = MeanShapeAtlas.fit([Example(grid, truth=truth)], ORGAN)
    turn = reorientation_to(grid, "PSL")
    turned = fitted.predict(Example(turn.apply_to_geometry(grid)))
    assert (turned == turn.apply(fitted.predict(Example(grid)))).all()
    assert dice(turned, turn.apply(truth)) > 0.95


def test_the_level_of_the_atlas_is_the_best_on_fit() -> None:
    def case(shift: int) -> Example:
        truth = np.zeros((128, 128), np.uint8)
        truth[40 + shift : 60 + shift, 40:60] = 1
        return Example(geometry(truth.shape), truth=truth)

    cases = [case(shift) for shift in range(0, 30, 3)]
    fitted = MeanShapeAtlas.fit(iter(cases), ORGAN)
    found = np.mean([dice(fitted.predict(c), c.truth) for c in cases])
    assert found == pytest.approx(fitted.dice["organ"])
    majority = (np.mean([c.truth for c in cases], axis=0) >= 0.5).astype(int)
    assert found >= np.mean([dice(majority, c.truth) for c in cases])


def test_labels_of_the_atlas_compete() -> None:
    truth = np.zeros((32, 32), np.uint8)
    truth[4:16, 4:28], truth[16:28, 4:28] = 1, 2
    fitted = MeanShapeAtlas.fit([Example(geometry((32, 32)), truth=truth)] * 2, TWO)
    found = fitted.predict(Example(geometry((32, 32))))
    assert dice(found, truth, 1) == dice(found, truth, 2) == 1


def test_regions_are_painted_in_order() -> None:
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    truth = np.zeros((32, 32), np.uint8)
    truth[4:28, 4:28], truth[10:18, 10:18] = 1, 2
    case = made(np.array([0, 400, 800])[truth], truth)
    assert (GlobalThreshold.fit([case], labels).predict(case) == truth).all()
    assert (MeanShapeAtlas.fit([case], labels).predict(case) == truth).all()


def test_a_label_that_fit_never_shows_is_never_predicted() -> None:
    case = bright_and_dark(0)
    labels = LabelTable({1: "dark", 2: "bright", 3: "absent"})
    assert 3 not in GlobalThreshold.fit([case], labels).predict(case)
    assert 3 not in MeanShapeAtlas.fit([case], labels).predict(case)


def test_no_case_is_an_error() -> None:
    def nothing() -> Iterator[Example]:
        yield from ()

    for baseline in (GlobalThreshold, MeanShapeAtlas):
        with pytest.raises(MedsegError, match="at least one case"):
            baseline.fit(nothing(), ORGAN)
