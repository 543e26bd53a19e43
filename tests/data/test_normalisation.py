"""The values that a network sees are those of the plan, whatever the scan's own were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medseg.data.preprocess import preprocess
from medseg.planning.plan import Channel
from medseg.volume import Geometry, Volume
from tests.data.planned import phantom, plan_for


def test_zscore_uses_what_is_not_zero_where_the_plan_crops_to_it() -> None:
    volume, _ = phantom(channels=2)
    volume.data[0, 20, 18, 10] = 0  # a hole is tissue
    volume.data[1, 20, 18, 10] = 0
    plan = plan_for(volume.geometry.spacing, channels=2, crop="nonzero")
    image, restoration = preprocess(volume, plan)
    kept = tuple(slice(low, u) for low, u in zip(restoration.lower, restoration.upper, strict=True))
    assert image.shape[1:] < volume.data.shape[1:]
    tissue = (volume.data != 0).any(0)
    tissue[20, 18, 10] = True
    for out, values in zip(image, volume.data, strict=True):
        np.testing.assert_allclose(
            out[tissue[kept]], (values[tissue] - values[tissue].mean()) / values[tissue].std(), atol=1e-4
        )
        assert (out[~tissue[kept]] == 0).all()


def test_channels_are_normalised_as_the_plan_says() -> None:
    geometry = Geometry.from_spacing((2, 2, 2), (1, 1, 1))
    values = np.array([-1000, -100, 0, 40, 100, 300, 1000, 3000], np.float32).reshape(2, 2, 2)
    channels = (
        Channel("CT", "ct", mean=50, std=25, low=-100, high=300),
        Channel("picture", "rescale", low=-1000, high=3000),
        Channel("as it is", "none"),
        Channel("flat", "zscore"),
    )
    before = np.stack([values, values, values, np.full_like(values, 1000.1)])
    image, _ = preprocess(Volume(before.copy(), geometry), plan_for(channels=channels))
    np.testing.assert_allclose(image[0], (values.clip(-100, 300) - 50) / 25, rtol=1e-6)
    np.testing.assert_allclose(image[1], (values + 1000) / 4000, rtol=1e-6)
    assert (image[2] == values).all()
    assert np.abs(image[3]).max() < 1e-3


@pytest.mark.parametrize("normalisation", ["ct", "zscore", "zscore_all", "rescale", "minmax", "none"])
def test_far_from_everything_air_is_one_value_to_the_last_bit(normalisation: Any) -> None:
    values = np.full((1, 60, 20, 20), -1000.0, np.float32)
    values[:, 45:] = np.random.default_rng(0).normal(0, 50, (1, 15, 20, 20))
    volume = Volume(values, Geometry.from_spacing(values.shape[1:], (0.8, 0.9, 1.6)))
    channel = Channel("CT", normalisation, mean=37, std=91, low=-500, high=321)
    image, _ = preprocess(volume, plan_for((1.03, 0.77, 1.21), channels=(channel,)))
    assert len(np.unique(image[:, :18])) == 1


def test_zeros_count_for_zscore_all_although_they_are_cropped_away_for_zscore() -> None:
    volume, _ = phantom()
    data = volume.data.astype(np.float32)
    line = data[0][np.ix_(*(np.flatnonzero(data[0].any(axis=o)) for o in ((1, 2), (0, 2), (0, 1))))]
    plan = plan_for(volume.geometry.spacing, (Channel("a", "zscore_all"),), crop="nonzero")
    found, _ = preprocess(volume, plan)
    np.testing.assert_allclose(found[0], (line - line.mean()) / line.std(), atol=1e-4)
    inside, _ = preprocess(volume, plan.changed(channels=(Channel("a", "zscore"),)))
    assert np.abs(inside - found).max() > 0.1


def test_minmax_maps_the_range_of_the_case_to_one() -> None:
    volume, _ = phantom()
    found, _ = preprocess(volume, plan_for(volume.geometry.spacing, (Channel("a", "minmax"),)))
    assert (found.min(), found.max()) == (0, 1)
