from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medseg.data.preprocess import (
    PlannedScan,
    Restoration,
    preprocess,
    preprocess_mask,
    restore_mask,
    restore_scores_blocks,
    whole_restoration,
)
from medseg.errors import MedsegError
from medseg.planning.conventions import Conventions
from medseg.planning.plan import Channel
from medseg.volume import Geometry, Reorientation, Volume, nearest_index, resample_array
from tests.data.planned import phantom, plan_for

TURNS = [
    Reorientation(order, flip)
    for order in itertools.permutations(range(3))
    for flip in itertools.product((False, True), repeat=3)
]


def one_hot(labels: np.ndarray, count: int = 3) -> np.ndarray:
    return np.stack([labels == value for value in range(count)]).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def decode(scores: np.ndarray) -> np.ndarray:
    return scores.argmax(0)


def oblique(shape: tuple[int, ...]) -> Geometry:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([0.8, 0.9, 1.6])
    affine[:3, 3] = (20, -90, 33)
    return Geometry(shape, affine)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.9, 1.6), (0.5, 0.6, 0.7), (1.1, 1.3, 1.6)])
@pytest.mark.parametrize("cropping", ["none", "nonzero"])
def test_labels_come_back_to_the_scan_grid(spacing: tuple[float, ...], cropping: str) -> None:
    volume, mask = phantom()
    plan = plan_for(spacing, crop=cropping)
    image, restoration = preprocess(volume, plan)
    label = preprocess_mask(mask, restoration, plan)
    assert image.dtype == np.float32 and label.dtype == np.int16
    assert image.shape[1:] == label.shape[1:] == restoration.shape == restoration.geometry.shape
    assert restoration.geometry.spacing == pytest.approx(spacing, rel=0.05)
    back = restore_mask(one_hot(label[0]), restoration, decode, block=16)
    assert back.shape == mask.shape and back.dtype == np.uint8
    for value in (1, 2):
        assert dice(back == value, mask == value) > 0.93
    if spacing == (0.8, 0.9, 1.6):
        assert (back == mask).all()


def test_a_preprocessed_voxel_lies_where_the_restoration_says() -> None:
    shape = (30, 28, 18)
    geometry = oblique(shape)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = geometry.to_world(index)
    # Three channels hold the world coordinates themselves, which resampling must reproduce at the new voxel centres.
    volume = Volume(np.moveaxis(world, -1, 0).astype(np.float32), geometry)
    names = tuple(Channel(axis, "none") for axis in "xyz")
    image, restoration = preprocess(volume, plan_for((1.0, 1.0, 1.0), channels=names, image_order=(1, 1, 1)))
    index = np.stack(np.meshgrid(*map(np.arange, restoration.shape), indexing="ij"), -1)
    expected = np.moveaxis(restoration.geometry.to_world(index), -1, 0)
    inner = (slice(None), *(slice(2, -2),) * 3)
    np.testing.assert_allclose(image[inner], expected[inner], atol=1e-3)


@pytest.mark.parametrize("tilted", [False, True])
def test_the_orientation_in_which_a_scan_is_stored_does_not_matter(tilted: bool) -> None:
    volume, mask = phantom((22, 20, 12), (1.6, 1.7, 2.6))
    mask[2:4, 3:9, 2:5] = 1  # nothing symmetric
    data = volume.data + np.random.default_rng(1).normal(0, 3, volume.data.shape).astype(np.float32) * (
        volume.data != 0
    )
    geometry = oblique(mask.shape) if tilted else volume.geometry
    plan = plan_for((1.3, 1.3, 2.0), crop="nonzero")
    expected, first = preprocess(Volume(data, geometry), plan)
    labels = preprocess_mask(mask, first, plan)
    scores = one_hot(labels[0])
    restored = restore_mask(scores, first, decode, block=9)
    for turn in TURNS:
        turned = Volume(turn.apply(data), turn.apply_to_geometry(geometry))
        image, restoration = preprocess(turned, plan)
        assert image.tobytes() == expected.tobytes()
        assert (preprocess_mask(turn.apply(mask), restoration, plan) == labels).all()
        assert restoration.geometry.matches(first.geometry, 1e-6)
        again = restore_mask(scores, restoration, decode, block=7)
        assert (again == turn.apply(restored)).all()


def test_stored_orientation_is_left_alone() -> None:
    volume, _ = phantom()
    turn = TURNS[20]
    turned = Volume(turn.apply(volume.data), turn.apply_to_geometry(volume.geometry))
    plan = plan_for(turned.geometry.spacing, orientation="stored")
    image, restoration = preprocess(turned, plan)
    assert restoration.turn == Reorientation((0, 1, 2), (False,) * 3)
    np.testing.assert_allclose(image, (turned.data - turned.data.mean()) / turned.data.std(), atol=1e-4)


@pytest.mark.parametrize("block", [5, 8, 128])
@pytest.mark.parametrize("spacing", [(0.5, 1.4, 1.6), (2.0, 0.7, 3.0)])
def test_block_by_block_equals_the_whole(block: int, spacing: tuple[float, ...]) -> None:
    volume, _ = phantom((22, 20, 12))
    turn = TURNS[29]
    turned = Volume(turn.apply(volume.data), turn.apply_to_geometry(volume.geometry))
    _, restoration = preprocess(turned, plan_for(spacing, crop="nonzero"))
    scores = np.random.default_rng(0).random((3, *restoration.shape)).astype(np.float32)
    kept = [u - low for low, u in zip(restoration.lower, restoration.upper, strict=True)]
    whole = np.zeros((3, *volume.geometry.shape), np.float32)
    inside = tuple(slice(low, u) for low, u in zip(restoration.lower, restoration.upper, strict=True))
    whole[(slice(None), *inside)] = resample_array(scores, kept, 1)
    whole = restoration.turn.inverse().apply(whole)
    out, seen = np.zeros_like(whole), np.zeros(whole.shape[1:], int)
    for window, part in restore_scores_blocks(scores, restoration, block):
        assert max(part.shape[1:]) <= block
        out[(slice(None), *window)] = part
        seen[window] += 1
    np.testing.assert_allclose(out, whole, atol=1e-5)
    assert seen.max() == 1 and seen.sum() == np.prod(kept)


def test_restoring_reads_only_the_scores_that_a_block_needs() -> None:
    volume, _ = phantom()
    _, restoration = preprocess(volume, plan_for((1.0, 1.0, 1.0)))

    class Watched:
        """Scores that are never there as a whole."""

        shape = (3, *restoration.shape)
        largest = 0

        def __getitem__(self, key: Any) -> np.ndarray:
            out = np.zeros((3, *(s.stop - s.start for s in key[1:])), np.float16)
            out[2] = 1
            self.largest = max(self.largest, out[0].size)
            return out

    scores = Watched()
    back = restore_mask(scores, restoration, decode, block=10)  # type: ignore[arg-type]
    assert (back == 2).all()
    assert scores.largest <= 12 * 12 * 18


def test_a_mask_is_as_wide_as_its_labels() -> None:
    volume, _ = phantom((10, 10, 10))
    _, restoration = preprocess(volume, plan_for((0.8, 0.9, 1.6)))
    scores = np.zeros((1, *restoration.shape), np.float32)
    assert restore_mask(scores, restoration, lambda part: np.full(part.shape[1:], 255)).dtype == np.uint8
    wide = restore_mask(scores, restoration, lambda part: np.full(part.shape[1:], 300))
    assert wide.dtype == np.uint16 and (wide == 300).all()


def test_a_result_on_another_grid_is_refused() -> None:
    volume, _ = phantom()
    _, restoration = preprocess(volume, plan_for())
    with pytest.raises(MedsegError, match="on the plan's grid"):
        restore_mask(np.zeros((2, 3, 4, 5), np.float32), restoration, decode)


def test_pictures_are_preprocessed_in_two_dimensions() -> None:
    volume, mask = phantom((60, 50), (0.5, 0.5), channels=3)
    plan = plan_for((0.7, 0.7), channels=3, crop="nonzero")
    image, restoration = preprocess(volume, plan)
    label = preprocess_mask(mask, restoration, plan)
    assert image.shape[0] == 3 and image.ndim == 3
    back = restore_mask(one_hot(label[0]), restoration, decode, block=20)
    assert dice(back == 2, mask == 2) > 0.95


def test_pictures_without_spacing_are_not_resampled() -> None:
    geometry = Geometry.from_spacing((31, 17), (1, 1), "px")
    volume = Volume(np.random.default_rng(0).random((1, 31, 17)).astype(np.float32), geometry)
    image, restoration = preprocess(volume, plan_for((1.0, 1.0), unit="px"))
    assert image.shape == (1, 31, 17) and restoration.geometry.unit == "px"


@pytest.mark.parametrize(("have", "want"), [("px", "mm"), ("mm", "px")])
def test_pixels_and_millimetres_are_not_mixed(have: Any, want: str) -> None:
    volume = Volume(np.ones((1, 8, 8), np.float32), Geometry.from_spacing((8, 8), (1, 1), have))
    with pytest.raises(MedsegError, match=f"in {want}, this scan's .* in {have}; .*make another plan"):
        preprocess(volume, plan_for((1.0, 1.0), unit=want))


def test_a_missing_channel_is_named() -> None:
    volume, _ = phantom()
    with pytest.raises(MedsegError, match=r"expected 2 channels \['channel 0', 'channel 1'\], found 1"):
        preprocess(volume, plan_for(channels=2))


def test_a_picture_for_a_3d_plan_is_refused() -> None:
    volume, _ = phantom((20, 20), (1, 1))
    with pytest.raises(MedsegError, match="for 3D scans"):
        preprocess(volume, plan_for())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    volume, _ = phantom((8, 8, 8))
    volume.data[0, 2, 3, 4] = bad
    with pytest.raises(MedsegError, match="NaN or infinite"):
        preprocess(volume, plan_for())


def test_the_scan_that_was_given_is_not_changed() -> None:
    volume, _ = phantom()
    before = volume.data.copy()
    preprocess(volume, plan_for(volume.geometry.spacing))
    assert (volume.data == before).all()


def test_an_empty_scan_is_kept_whole() -> None:
    volume = Volume(np.zeros((1, 9, 8, 7), np.float32), Geometry.from_spacing((9, 8, 7), (1, 1, 1)))
    image, restoration = preprocess(volume, plan_for(crop="nonzero"))
    assert image.shape == (1, 9, 8, 7) and not image.any()
    assert restoration.upper == (9, 8, 7)


def test_a_thin_scan_keeps_at_least_one_voxel() -> None:
    volume = Volume(np.ones((1, 20, 20, 1), np.float32), Geometry.from_spacing((20, 20, 1), (1, 1, 1)))
    image, _ = preprocess(volume, plan_for((1.0, 1.0, 5.0)))
    assert image.shape == (1, 20, 20, 1)


def test_resampled_labels_are_the_largest_share_of_each_voxel() -> None:
    rng = np.random.default_rng(3)
    mask = (rng.integers(0, 4, (5, 5, 4)).repeat(4, 0).repeat(4, 1).repeat(3, 2) % 3).astype(np.uint8)
    mask[:3, :3] = 9
    plan = plan_for((1.3, 0.7, 2.1))
    _, restoration = preprocess(
        Volume(np.ones((1, *mask.shape), np.float32), Geometry.from_spacing(mask.shape, (1, 1, 1))), plan
    )
    label = preprocess_mask(mask, restoration, plan)[0]
    values = np.array([0, 1, 2, 9])
    shares = resample_array(np.stack([mask == v for v in values]).astype(np.float32), restoration.shape, 1)
    first, second = np.sort(shares, 0)[[-1, -2]]
    clear = first - second > 1e-4
    assert clear.mean() > 0.8
    assert (label == values[shares.argmax(0)])[clear].all()


def test_an_axis_with_nearest_labels_invents_no_slice_between() -> None:
    volume, mask = phantom()
    plan = plan_for((0.8, 0.9, 0.8), label_order=(1, 1, 0), image_order=(3, 3, 0))
    image, restoration = preprocess(volume, plan)
    label = preprocess_mask(mask, restoration, plan)
    assert (label[0] == mask.repeat(2, 2)).all()
    np.testing.assert_array_equal(image[0, ..., 0::2], image[0, ..., 1::2])


def test_a_structure_one_voxel_thin_survives_halving() -> None:
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[7, 4:12, 4:12] = 1
    plan = plan_for((2.0, 2.0, 2.0))
    _, restoration = preprocess(
        Volume(np.ones((1, 16, 16, 16), np.float32), Geometry.from_spacing((16,) * 3, (1, 1, 1))), plan
    )
    assert preprocess_mask(mask, restoration, plan).sum() == 16


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((3, 3, 3), np.uint8), "resample the mask"),
        (np.full((40, 36, 20), 5, np.uint8), r"holds \[5\], .*ignore: 9.*correct the mask"),
        (np.full((40, 36, 20), -1, np.int8), "run from -1"),
        (np.zeros((40, 36, 20), np.float32), "whole numbers"),
    ],
)
def test_a_mask_that_does_not_belong_is_refused(mask: np.ndarray, message: str) -> None:
    volume, _ = phantom()
    plan = plan_for()
    _, restoration = preprocess(volume, plan)
    with pytest.raises(MedsegError, match=message):
        preprocess_mask(mask, restoration, plan)


def test_a_restoration_survives_json_exactly() -> None:
    volume = Volume(np.random.default_rng(0).random((1, 12, 14, 10)).astype(np.float32), oblique((12, 14, 10)))
    _, restoration = preprocess(volume, plan_for((1.1, 0.7, 1.9), crop="nonzero"))
    again = Restoration.from_json(restoration.to_json())
    assert again.to_json() == restoration.to_json()
    assert (again.scan.affine == restoration.scan.affine).all()
    for name in ("turn", "lower", "upper", "shape"):
        assert getattr(again, name) == getattr(restoration, name)
    assert again.geometry.matches(restoration.geometry, 1e-9)


@pytest.mark.parametrize("crop", ["none", "nonzero"])
@pytest.mark.parametrize("spacing", [(0.8, 0.9, 1.6), (1.1, 0.7, 1.9)])
def test_a_part_of_a_scan_is_that_part_of_the_whole(spacing: tuple[float, ...], crop: str) -> None:
    volume, _ = phantom(channels=2)
    turned = Volume(TURNS[29].apply(volume.data), TURNS[29].apply_to_geometry(volume.geometry))
    scan = PlannedScan(turned, plan_for(spacing, channels=2, crop=crop))
    whole = scan.whole()
    assert whole.shape == scan.shape == (2, *scan.restoration.shape)
    rng = np.random.default_rng(0)
    for _ in range(12):
        ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in scan.shape[1:]]
        window = (slice(None), *(slice(int(low), int(high)) for low, high in ends))
        np.testing.assert_allclose(scan[window], whole[window], atol=2e-5)


def test_whole_numbers_as_stored_give_what_their_floats_give() -> None:
    volume, _ = phantom()
    numbers = np.rint(volume.data).astype(np.int16)
    plan = plan_for((1.0, 1.0, 1.2), crop="nonzero")
    one, _ = preprocess(Volume(numbers, volume.geometry), plan)
    two, _ = preprocess(Volume(numbers.astype(np.float32), volume.geometry), plan)
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("conventions", [None, Conventions(kept_axes=(1,)), Conventions(apart_beyond=3.0)])
def test_a_header_tells_the_way_back_of_a_scan_that_is_kept_whole(conventions: Conventions | None) -> None:
    volume, _ = phantom()
    turned = Volume(TURNS[7].apply(volume.data), TURNS[7].apply_to_geometry(volume.geometry))
    plan = plan_for((1.1, 0.7, 3.9), conventions=conventions)
    assert whole_restoration(turned.geometry, plan).to_json() == preprocess(turned, plan)[1].to_json()


def test_a_coarse_axis_is_resampled_apart_there_and_back() -> None:
    """The scan has slices of 4 mm: neither image nor scores are mixed along them, whatever the plan's spacing is."""
    volume, _ = phantom((24, 20, 6), (1.0, 1.0, 4.0))
    plan = plan_for((1.0, 1.0, 1.0), (Channel("a", "none"),), conventions=Conventions(apart_beyond=3.0))
    array, restoration = preprocess(volume, plan)
    assert array.shape == (1, 24, 20, 24)
    np.testing.assert_allclose(array[0], np.repeat(volume.data[0], 4, axis=2))
    assert Restoration.from_json(restoration.to_json()).apart == 2
    scores = np.random.default_rng(0).normal(size=(1, *array.shape[1:])).astype(np.float32)
    ((_, back),) = restore_scores_blocks(scores, restoration)
    np.testing.assert_array_equal(back[0], scores[0][:, :, 2::4])
    mixed, _ = preprocess(volume, plan.changed(conventions=None))
    assert np.abs(mixed - array).max() > 1


def test_kept_axes_are_never_resampled() -> None:
    volume, _ = phantom((24, 20, 6), (1.0, 1.0, 4.0))
    array, _ = preprocess(volume, plan_for((2.0, 1.0, 1.0), conventions=Conventions(kept_axes=(2,))))
    assert array.shape == (1, 12, 20, 6)


def test_a_restoration_that_an_older_medseg_stored_is_read() -> None:
    _, restoration = preprocess(phantom()[0], plan_for())
    older = restoration.to_json().replace(', "apart": null', "")
    assert "apart" not in older
    assert Restoration.from_json(older).apart is None


@pytest.mark.parametrize("coarse", [1.0, 4.0])
def test_within_range_a_resampled_image_stays_between_the_values_it_is_made_from(coarse: float) -> None:
    data = np.random.default_rng(0).choice([-1000, 40, 60], (1, 9, 10, 7)).astype(np.int16)
    data[0, :, :, 2] = np.clip(data[0, :, :, 2], 40, 50)
    volume = Volume(data, Geometry.from_spacing(data.shape[1:], (1.0, 1.0, coarse)))
    channel = Channel("CT", "ct", mean=10.0, std=5.0, low=0.0, high=60.0)
    free = plan_for((0.6, 0.7, 0.5), (channel,), conventions=Conventions(apart_beyond=3.0))
    kept = replace(free, conventions=replace(free.conventions, within_range=True))
    swinging, found = (preprocess(volume, plan)[0][0] for plan in (free, kept))
    normalised = (np.clip(data[0], 0, 60) - 10.0) / 5
    low, high = normalised.min(), normalised.max()
    if coarse > 3:  # slices are resampled by themselves, each within its own values
        slices = nearest_index(7, found.shape[2])
        low, high = (end[slices] for end in (normalised.min((0, 1)), normalised.max((0, 1))))
        assert low.max() > low.min()
    assert swinging.max() > normalised.max() + 0.5
    np.testing.assert_allclose(found, np.clip(swinging, low, high), atol=1e-5)
    part = PlannedScan(volume, kept)[np.s_[:, 2:6, 3:9, 5:11]]
    np.testing.assert_allclose(part[0], found[2:6, 3:9, 5:11], atol=1e-5)
