from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.evaluation.classification import auroc
from medseg.evaluation.classification_baselines import FEATURES, LogisticRegression, Seen, features_of
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry

LABELS = LabelTable({1: "nodule", 2: "cyst"})
PICTURE = Geometry.from_spacing((56, 30), (1.0, 1.0), "px")
VOLUME = Geometry.from_spacing((10, 20, 5), (1.0, 0.5, 2.0))


def seen(
    geometry: Geometry = VOLUME,
    *,
    image: Array | None = None,
    mask: Array | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Seen:
    def pixels() -> Array:
        assert image is not None, "this feature must not read the image"
        return image

    def labels() -> Array:
        assert mask is not None
        return mask

    return Seen(geometry, metadata or {}, pixels, None if mask is None else labels, LABELS)


def one_hot(truth: Array, classes: int) -> Array:
    return np.eye(classes, dtype=bool)[truth]


# ---- features


def test_extent_and_volume_are_logarithms_of_lengths_and_volumes_in_mm() -> None:
    mask = np.zeros(VOLUME.shape, np.uint8)
    mask[:2, :3, 0] = 1
    assert FEATURES["image_extent"](seen()) == pytest.approx(np.log([10, 10, 10]))
    assert FEATURES["mask_volume"](seen(mask=mask)) == pytest.approx([np.log(1 + 6), 0])
    assert FEATURES["mask_volume"](seen()) is None


def test_a_picture_becomes_the_means_of_28_by_28_fields() -> None:
    image = np.random.default_rng(0).normal(size=(3, 56, 28)).astype(np.float32)
    grid = Geometry.from_spacing((56, 28), (1.0, 1.0), "px")
    small = FEATURES["pixels"](seen(grid, image=image))
    expected = image.reshape(3, 28, 2, 28).mean(2)
    assert small is not None and small == pytest.approx(expected.ravel(), abs=1e-5)
    uneven = FEATURES["pixels"](seen(PICTURE, image=np.full((1, 56, 30), 7.0, np.float32)))
    assert uneven == pytest.approx(np.full(28 * 28, 7.0))
    tiny = FEATURES["pixels"](seen(grid, image=image[:1, :28, :28]))
    assert tiny == pytest.approx(image[0, :28, :28].ravel())
    assert FEATURES["pixels"](seen()) is None


def test_columns_are_numbers_and_gaps_are_unknown() -> None:
    features = features_of(["diameter/mm"])
    assert list(features) == [*FEATURES, "column_diameter_mm"]
    assert features["column_diameter_mm"](seen(metadata={"diameter/mm": "3.5"})) == pytest.approx([3.5])
    gap = features["column_diameter_mm"](seen())
    assert gap is not None and np.isnan(gap).tolist() == [True]


# ---- logistic regression


def test_without_a_number_the_prior_is_the_frequency_of_each_class() -> None:
    truth = one_hot(np.array([0] * 6 + [1] * 3 + [2]), 3)
    for exclusive in (True, False):
        fitted = LogisticRegression.fit(np.zeros((10, 0)), truth, exclusive=exclusive)
        found = fitted.predict(np.zeros((2, 0)))
        assert found == pytest.approx(np.array([[0.6, 0.3, 0.1]] * 2), abs=1e-4)
        assert auroc(fitted.predict(np.zeros((10, 0)))[:, 0], truth[:, 0]) == 0.5


def test_it_finds_the_line_that_the_cases_were_drawn_from() -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(5, 2, (5_000, 1))
    truth = random.random(5_000) < 1 / (1 + np.exp(-(1.5 * numbers[:, 0] - 7)))
    both = np.stack([~truth, truth], axis=1)
    expected = 1 / (1 + np.exp(-(1.5 * np.array([3.0, 5.0, 6.0]) - 7)))
    for exclusive in (True, False):
        fitted = LogisticRegression.fit(numbers, both, exclusive=exclusive)
        assert fitted.predict(np.array([[3.0], [5.0], [6.0]]))[:, 1] == pytest.approx(expected, abs=0.03)


def test_at_its_optimum_the_penalised_likelihood_has_no_slope() -> None:
    random = np.random.default_rng(1)
    numbers, truth = random.normal(size=(50, 3)), one_hot(random.integers(0, 3, 50), 3)
    fitted = LogisticRegression.fit(numbers, truth, exclusive=True, penalty=2.0)
    inputs = (numbers - numbers.mean(0)) / numbers.std(0)
    assert np.abs(inputs.T @ (fitted.predict(numbers) - truth) + 2.0 * fitted.weights[:-1]).max() < 0.01
    assert np.abs((fitted.predict(numbers) - truth).sum(0)).max() < 0.01  # the intercept is free
    strict = LogisticRegression.fit(numbers, truth, exclusive=True, penalty=1e6)
    assert strict.predict(numbers) == pytest.approx(np.tile(truth.mean(0), (50, 1)), abs=1e-3)


def test_units_and_constant_numbers_do_not_matter_and_gaps_count_as_the_mean() -> None:
    random = np.random.default_rng(2)
    numbers, truth = random.normal(size=(60, 2)), one_hot(random.integers(0, 2, 60), 2)
    plain = LogisticRegression.fit(numbers, truth, exclusive=True).predict(numbers)
    other = np.column_stack([numbers * [1000, 0.01] + 3, np.full(60, 4.0)])
    assert LogisticRegression.fit(other, truth, exclusive=True).predict(other) == pytest.approx(plain, abs=1e-3)
    fitted = LogisticRegression.fit(numbers, truth, exclusive=True)
    gap = fitted.predict(np.array([[np.nan, 0.3]]))
    assert gap == pytest.approx(fitted.predict(np.array([[numbers[:, 0].mean(), 0.3]])))


def test_several_classes_a_case_are_fitted_each_by_itself() -> None:
    random = np.random.default_rng(3)
    numbers, truth = random.normal(size=(80, 2)), random.random((80, 2)) < 0.5
    both = LogisticRegression.fit(numbers, truth, exclusive=False).predict(numbers)
    for at in range(2):
        alone = LogisticRegression.fit(numbers, truth[:, [at]], exclusive=False).predict(numbers)
        assert both[:, at] == pytest.approx(alone[:, 0], abs=1e-3)


def test_nothing_can_be_fitted_on_nothing() -> None:
    with pytest.raises(MedsegError, match="at least one case in fit"):
        LogisticRegression.fit(np.zeros((0, 1)), np.zeros((0, 2), bool), exclusive=True)
