from __future__ import annotations

import numpy as np
import pytest

from medseg.evaluation import lesions
from medseg.evaluation.lesions import (
    bounding_box,
    component_sizes,
    component_slabs,
    components,
    count_components,
    label_windows,
    match_lesions,
)
from medseg.structures import LabelTable


def test_voxels_that_touch_at_a_corner_are_one_lesion() -> None:
    volume = np.zeros((4, 4, 4), bool)
    volume[0, 0, 0] = volume[1, 1, 1] = True
    volume[3, 3, 3] = True
    labelled, count = components(volume)
    assert count == 2
    assert component_sizes(labelled, count).tolist() == [2, 1]
    assert components(volume[:, :, 0])[1] == 1
    assert components(np.eye(3, dtype=bool))[1] == 1


def test_the_bounding_box_holds_every_true_voxel() -> None:
    mask = np.zeros((5, 6), bool)
    assert bounding_box(mask) is None
    mask[1, 4] = mask[3, 2] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 5))


def test_a_lesion_is_found_from_a_tenth_of_overlap_up() -> None:
    truth = np.zeros(40, np.int32)
    truth[0:11] = 1
    for start, found in ((9, True), (10, False)):  # IoU 2/20 and 1/21 with eleven voxels each
        predicted = np.zeros(40, np.int32)
        predicted[start : start + 11] = 1
        assert bool(match_lesions(predicted, truth, (1, 1))) is found


def test_one_prediction_finds_one_lesion_and_takes_the_better_one() -> None:
    truth = np.array([1, 1, 0, 2, 2, 2, 0, 0], np.int32)
    predicted = np.array([1, 1, 1, 1, 1, 1, 0, 2], np.int32)
    assert match_lesions(predicted, truth, (2, 2)) == [(1, 2)]


def test_two_halves_of_a_lesion_are_one_hit_and_one_false_lesion() -> None:
    truth = np.array([1, 1, 1, 1, 1, 1], np.int32)
    predicted = np.array([1, 1, 0, 2, 2, 2], np.int32)
    assert match_lesions(predicted, truth, (2, 1)) == [(2, 1)]


def test_nothing_matches_nothing() -> None:
    empty = np.zeros((3, 3), np.int32)
    assert match_lesions(empty, empty, (0, 0)) == []


@pytest.mark.parametrize("shape", [(11, 8, 7), (1, 6, 5), (17, 9)])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.15, 0.6])
@pytest.mark.parametrize("planes", [1, 3, 100])
def test_components_counted_slab_by_slab_are_as_many(
    shape: tuple[int, ...], density: float, planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    monkeypatch.setattr(lesions, "_SLAB", planes * mask[..., 0].size)
    assert count_components(mask) == components(mask)[1]


@pytest.mark.parametrize("planes", [1, 3, 100])
def test_components_numbered_slab_by_slab_are_those_of_the_whole(planes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(1).random((9, 8, 13)) < 0.15
    expected, count = components(mask)
    monkeypatch.setattr(lesions, "_SLAB", planes * mask[..., 0].size)
    slabs = list(component_slabs(mask))
    assert [first for first, _ in slabs] == list(range(0, 13, planes))
    found = np.concatenate([labelled for _, labelled in slabs], axis=-1)
    pairs = np.unique(np.stack([found[mask], expected[mask]]), axis=1)
    assert pairs.shape == (2, count) and sorted(pairs[0]) == sorted(pairs[1]) == list(range(1, count + 1))
    assert not found[~mask].any()


def test_a_picture_is_one_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesions, "_SLAB", 4)
    mask = np.eye(6, dtype=bool)
    ((first, labelled),) = component_slabs(mask)
    assert first == 0 and np.array_equal(labelled, mask)


def test_windows_hold_labels_and_regions_and_nothing_absent_has_one() -> None:
    mask = np.zeros((6, 7), np.uint8)
    mask[1, 2] = 1
    mask[3:5, 5] = 2
    labels = LabelTable(
        {1: "core", 2: "rim", 3: "gone"}, regions={"core": (1,), "all": (1, 2), "gone": (3,)}, paint=(1, 2, 3)
    )
    assert label_windows(mask, labels) == {"core": np.s_[1:2, 2:3], "all": np.s_[1:5, 2:6]}
