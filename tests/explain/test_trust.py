from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.explain.baselines import NAMES, edge_map
from medseg.explain.faithfulness import Score
from medseg.explain.stability import Attribute
from medseg.explain.trust import Method, TrustCase, measure
from medseg.volume import Array

SHAPE = (24, 24)
LESION = np.zeros(SHAPE, bool)
LESION[4:10, 6:12] = True


def bright(seed: int = 0) -> Array:
    """A dim image with a bright lesion."""
    noise = np.random.default_rng(seed).random((1, *SHAPE))
    return np.asarray(0.2 * noise + LESION)


def squares(x: Array) -> Array:
    """Follows the image, and its map of the score Σ x² at zero fill is perfect."""
    return np.asarray(x[0] ** 2)


def brightness(x: Array) -> float:
    return float((x**2).sum())


def weighted(seed: int) -> Attribute:
    """The map w·x of a linear network whose weights are drawn by ``seed``."""
    weights = np.random.default_rng(seed).standard_normal(SHAPE)
    return lambda x: weights * x[0]


def measured(methods: dict[str, Method], score: Score = brightness, truth: Array | None = LESION) -> TrustCase:
    return measure(
        bright(), methods, score, id="a", patient="p", target="class-bright", truth=truth, fill="zero", steps=6
    )


def test_a_perfect_map_beats_every_baseline() -> None:
    case = measured({"perfect": Method(squares)})
    assert tuple(case.values) == ("perfect", *NAMES)
    perfect = case.values["perfect"]
    assert perfect["stability"] == pytest.approx(1)
    assert perfect["pointing"] == 1
    for name in NAMES:
        assert perfect["deletion"] < case.values[name]["deletion"], name
        assert perfect["insertion"] > case.values[name]["insertion"], name
        assert perfect["energy_inside"] > 2 * case.values[name]["energy_inside"], name
        assert "stability" not in case.values[name]


def test_energy_of_the_mask_is_one_and_of_the_area_its_share() -> None:
    case = measured({"mask": Method(lambda x: LESION.astype(np.float32))})
    assert case.values["mask"]["energy_inside"] == case.values["mask"]["energy_near"] == 1
    assert case.values["mask"]["centre_distance"] == 0
    assert case.values["area"]["energy_inside"] == pytest.approx(LESION.mean())
    assert case.size == LESION.sum()


def test_the_last_stage_is_the_wholly_shuffled_network() -> None:
    stages = {"head": weighted(0), "all": weighted(1)}
    case = measured(
        {"linear": Method(weighted(0), stages), "edges_of_image": Method(lambda x: edge_map(x), {"all": edge_map})}
    )
    linear, edges = case.values["linear"], case.values["edges_of_image"]
    assert linear["shuffled_rank_head"] == pytest.approx(1)  # the very same weights
    assert linear["shuffled_rank"] < 0.2 and linear["shuffled_ssim"] < 0.5
    assert edges["shuffled_rank"] == pytest.approx(1) and edges["shuffled_ssim"] == pytest.approx(1)


def test_a_map_turned_over_by_shuffling_is_still_the_same_map() -> None:
    case = measured({"turned": Method(squares, {"all": lambda x: -squares(x)})})
    assert case.values["turned"]["shuffled_rank"] == pytest.approx(1)


def test_lengths_follow_the_spacing() -> None:
    far = np.zeros(SHAPE)
    far[6, 20] = 1  # 9 voxels to the right of the lesion's last column, 0.5 mm each
    found = {}
    for spacing in (None, (0.5, 0.5)):
        case = measure(
            bright(), {"far": Method(lambda x: far)}, brightness, id="a", patient="p", target="t", truth=LESION,
            spacing=spacing, reach=5, steps=2,
        )  # fmt: skip
        found[spacing] = case.values["far"]["pointing"], case.values["far"]["centre_distance"], case.size
    (miss, pixels, count), (hit, mm, area) = found.values()
    assert (miss, hit) == (0, 1)
    assert mm == pytest.approx(pixels / 2) and area == pytest.approx(count / 4)


@pytest.mark.parametrize("truth", [None, np.zeros(SHAPE, bool)], ids=["unknown", "healthy"])
def test_without_a_lesion_there_is_nothing_to_point_at(truth: Array | None) -> None:
    case = measured({"perfect": Method(squares)}, truth=truth)
    assert set(case.values["perfect"]) == {"deletion", "insertion", "stability"}
    assert np.isnan(case.size)


def test_a_score_that_tells_nothing_leaves_the_curves_blank() -> None:
    case = measured({"perfect": Method(squares)}, score=lambda x: -brightness(x))
    assert np.isnan(case.values["perfect"]["deletion"]) and case.curves == {}
    assert case.values["perfect"]["energy_inside"] > 0.8


def test_volumes_are_measured_too_and_a_seed_decides() -> None:
    image = np.random.default_rng(0).random((2, 12, 12, 6))
    found = [
        measure(
            image, {"m": Method(squares)}, brightness, id="v", patient="p", target="t", truth=image[0] > 0.9, seed=seed
        )
        for seed in (0, 0, 1)
    ]
    randoms = [case.values["random"]["deletion"] for case in found]
    assert randoms[0] == randoms[1] != randoms[2]
    assert 0 < found[0].values["m"]["energy_inside"] < 1


def test_what_cannot_be_measured_is_said_together() -> None:
    broken = {
        "flat": Method(lambda x: np.ones(3)),
        "torn": Method(lambda x: np.full(SHAPE, np.nan)),
        "good": Method(squares),
    }
    with pytest.raises(MedsegError) as error:
        measured(broken)
    assert "a class-bright" in str(error.value)
    assert "flat: expected a map of (24, 24), found (3,)" in str(error.value)
    assert "torn: expected finite values, found 576 that are not" in str(error.value)
    with pytest.raises(MedsegError) as error:
        measured({"edges": Method(squares)}, truth=np.ones((3, 3)))
    assert "'edges', which is a baseline" in str(error.value) and "found (3, 3)" in str(error.value)
    with pytest.raises(MedsegError, match="at least one method"):
        measured({})
