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
    """Follows the image, and what the score Σ x² is made of."""
    return np.asarray(x[0] ** 2)


def brightness(x: Array) -> float:
    return float((x**2).sum())


def weighted(seed: int) -> Attribute:
    """The map w·x of a linear network whose weights are drawn by ``seed``."""
    weights = np.random.default_rng(seed).standard_normal(SHAPE)
    return lambda x: weights * x[0]


def measured(methods: dict[str, Method], score: Score = brightness, truth: Array | None = LESION) -> TrustCase:
    return measure(bright(), methods, score, id="a", patient="p", target="class-bright", truth=truth)


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


def test_a_method_is_compared_with_every_shuffled_network() -> None:
    methods = {
        "linear": Method(weighted(0), [weighted(1), weighted(0)]),
        "edges_of_image": Method(edge_map, [edge_map, edge_map]),
    }
    linear, edges = (measured(methods).values[name] for name in methods)
    assert (
        0.5 <= linear["shuffled_rank"] < 0.6 and linear["shuffled_ssim"] < 0.75
    )  # the second are the very same weights
    assert linear["shuffled_floor"] < 0.2
    for figure in ("shuffled_rank", "shuffled_ssim", "shuffled_floor"):
        assert edges[figure] == pytest.approx(1), figure


def test_a_map_turned_over_by_shuffling_is_still_the_same_map() -> None:
    case = measured({"turned": Method(squares, [lambda x: -squares(x)])})
    assert case.values["turned"]["shuffled_rank"] == pytest.approx(1)


def test_lengths_follow_the_spacing() -> None:
    far = np.zeros(SHAPE)
    far[6, 23] = 1  # 12 voxels to the right of the lesion's last column, 0.5 mm each
    found = {}
    for spacing in (None, (0.5, 0.5)):
        case = measure(
            bright(), {"far": Method(lambda x: far)}, brightness, id="a", patient="p", target="t", truth=LESION,
            spacing=spacing,
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


def test_a_method_that_fails_leaves_the_others_their_figures() -> None:
    def refuse(x: Array) -> Array:
        raise MedsegError("its rectifier is not known")

    alone = measured({"good": Method(squares)})
    case = measured({"refused": Method(refuse), "good": Method(squares), "late": Method(squares, [refuse])})
    assert case.failed == dict.fromkeys(("refused", "late"), "its rectifier is not known")
    assert case.values == alone.values
    with pytest.raises(ZeroDivisionError):  # a bug, as long as nobody says what to make of it
        measured({"buggy": Method(lambda x: x / (1 // 0)), "good": Method(squares)})
    told = measure(
        bright(), {"buggy": Method(lambda x: x / (1 // 0)), "good": Method(squares)}, brightness, id="a", patient="p",
        target="t", why=lambda method, error: f"{method}, {type(error).__name__}",
    )  # fmt: skip
    assert told.failed == {"buggy": "buggy, ZeroDivisionError"}


def test_what_cannot_be_measured_is_said_together() -> None:
    broken = {"flat": Method(lambda x: np.ones(3)), "torn": Method(lambda x: np.full(SHAPE, np.nan))}
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
