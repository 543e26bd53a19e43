from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

from medseg.errors import MedsegError
from medseg.evaluation import segmentation as segmentation_module
from medseg.evaluation.segmentation import segmentation_metrics
from medseg.structures import LabelTable
from medseg.volume import Array, Geometry, reorientation_to

ORGAN = LabelTable({1: "organ"})
OVERLAP = ("dice", "iou", "nsd")


def figures(
    predicted: Array,
    truth: Array,
    spacing: tuple[float, ...] | None = None,
    labels: LabelTable = ORGAN,
    label: str = "organ",
    unit: str = "mm",
    **options: float,
) -> dict[str, float]:
    geometry = Geometry.from_spacing(truth.shape, spacing or (1.0,) * truth.ndim, unit)  # type: ignore[arg-type]
    rows = segmentation_metrics(predicted.astype(np.uint8), truth.astype(np.uint8), geometry, labels, **options)
    return {row.metric: row.value for row in rows if row.label == label}


def cube(*ranges: tuple[int, int], shape: tuple[int, ...] = (14, 14, 14)) -> Array:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...], shape: tuple[int, ...]) -> Array:
    grid = np.indices(shape)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True)) < 1  # type: ignore[no-any-return]


def brute_force(predicted: Array, truth: Array, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    """Surface voxels by looking at the neighbours one by one, distances by comparing all with all."""

    def surface(mask: Array) -> Array:
        points = []
        for index in np.argwhere(mask):
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    at = index.copy()
                    at[axis] += step
                    if at[axis] < 0 or at[axis] >= mask.shape[axis] or not mask[tuple(at)]:
                        points.append(index * spacing)
        return np.unique(np.array(points, float), axis=0)

    a, b = surface(predicted), surface(truth)
    apart = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    there, back = apart.min(1), apart.min(0)
    both = np.concatenate([there, back])
    return {
        "nsd": float((both <= tolerance + 1e-6).mean()),
        "hd95_mm": float(max(np.quantile(there, 0.95), np.quantile(back, 0.95))),
        "assd_mm": float(both.mean()),
    }


def test_a_mask_equals_itself() -> None:
    mask = cube((3, 8), (3, 8), (3, 8))
    found = figures(mask, mask)
    assert all(found[name] == 1 for name in (*OVERLAP, "lesion_sensitivity", "lesion_precision", "lesion_f1"))
    assert all(found[name] == 0 for name in ("hd95_mm", "assd_mm", "volume_error_ml", "volume_error_share"))


def test_a_cube_shifted_by_one_voxel_gives_the_figures_computed_by_hand() -> None:
    # Cubes of 4×4×4: 48 of 64 voxels are shared. Surface: 64 − 2³ = 56 voxels each; of the shifted cube's 56, the 16 of
    # the far face are one voxel off, as are the 4 inner voxels of the near face, which lie inside the other cube.
    truth, predicted = cube((3, 7), (3, 7), (3, 7)), cube((4, 8), (3, 7), (3, 7))
    found = figures(predicted, truth, (2.0, 1.0, 1.0), tolerance_mm=1.5)
    assert found["dice"] == pytest.approx(2 * 48 / 128)
    assert found["iou"] == pytest.approx(48 / 80)
    assert found["volume_error_ml"] == 0
    # The 16 of the far face are 2 mm off; the 4 inner ones of the near face are 1 mm from the other cube's side.
    assert found["nsd"] == pytest.approx(1 - 16 / 56)
    assert found["assd_mm"] == pytest.approx((16 * 2 + 4 * 1) / 56)
    assert found["hd95_mm"] == pytest.approx(2.0)


@pytest.mark.parametrize(("axis", "apart"), [(0, 0.5), (1, 1.0), (2, 5.0)])
def test_spacing_turns_one_voxel_into_millimetres_along_each_axis(axis: int, apart: float) -> None:
    one, other = (cube(*[(3, 7) if a != axis else (at, at + 1) for a in range(3)]) for at in (6, 7))
    found = figures(one, other, (0.5, 1.0, 5.0))
    assert found["hd95_mm"] == pytest.approx(apart)
    assert found["assd_mm"] == pytest.approx(apart)


def test_volume_error_is_signed_and_in_millilitres() -> None:
    truth, predicted = cube((0, 10), (0, 10), (0, 10)), cube((0, 10), (0, 10), (0, 12))
    found = figures(predicted, truth, (1.0, 2.0, 3.0))
    assert found["volume_error_ml"] == pytest.approx(200 * 6 / 1000)
    assert found["volume_error_share"] == pytest.approx(0.2)
    assert figures(truth, predicted, (1.0, 2.0, 3.0))["volume_error_ml"] == pytest.approx(-1.2)


def test_both_masks_empty_leaves_everything_blank_but_the_volume_error() -> None:
    empty = cube((0, 0), (0, 0), (0, 0))
    found = figures(empty, empty)
    assert found.pop("volume_error_ml") == 0
    assert all(math.isnan(value) for value in found.values())


def test_a_false_prediction_is_no_overlap_and_no_distance() -> None:
    empty, mask = cube((0, 0), (0, 0), (0, 0)), cube((3, 8), (3, 8), (3, 8))
    found = figures(mask, empty)
    assert all(found[name] == 0 for name in (*OVERLAP, "lesion_precision", "lesion_f1"))
    blank = ("hd95_mm", "assd_mm", "lesion_sensitivity", "volume_error_share")
    assert all(math.isnan(found[name]) for name in blank)
    assert found["volume_error_ml"] == pytest.approx(0.125)


def test_a_missing_prediction_is_no_overlap_and_no_distance() -> None:
    empty, mask = cube((0, 0), (0, 0), (0, 0)), cube((3, 8), (3, 8), (3, 8))
    found = figures(empty, mask)
    assert all(found[name] == 0 for name in (*OVERLAP, "lesion_sensitivity", "lesion_f1"))
    assert all(math.isnan(found[name]) for name in ("hd95_mm", "assd_mm", "lesion_precision"))
    assert found["volume_error_share"] == -1


def test_lesions_are_counted_and_matched() -> None:
    truth = cube((0, 3), (0, 3), (0, 3)) | cube((8, 11), (8, 11), (8, 11)) | cube((0, 2), (10, 12), (0, 2))
    predicted = cube((0, 3), (0, 3), (1, 4)) | cube((12, 14), (0, 2), (0, 2))
    geometry = Geometry.from_spacing(truth.shape, (1, 1, 1))
    rows = {row.metric: row for row in segmentation_metrics(predicted, truth, geometry, ORGAN)}
    assert (rows["dice"].n_gt, rows["dice"].n_pred) == (3, 2)
    assert rows["lesion_sensitivity"].value == pytest.approx(1 / 3)
    assert rows["lesion_precision"].value == pytest.approx(1 / 2)
    assert rows["lesion_f1"].value == pytest.approx(2 / 5)


def test_ignored_voxels_count_for_nobody() -> None:
    labels = LabelTable({1: "organ"}, ignore=9)
    truth, predicted = cube((3, 7), (3, 7), (3, 7)), cube((3, 7), (3, 7), (3, 9))
    truth[:, :, 7:] = 9
    found = figures(predicted, truth, labels=labels)
    assert found["dice"] == 1 and found["nsd"] == 1 and found["volume_error_ml"] == 0
    predicted[0, 0, 0] = 1
    assert figures(predicted, truth, labels=labels)["dice"] < 1


def test_regions_that_overlap_are_scored_each_by_its_values() -> None:
    labels = LabelTable({1: "edema", 2: "core"}, regions={"whole": (1, 2), "core": (2,)}, paint=(1, 2))
    truth = cube((2, 8), (2, 8), (2, 8))
    truth[3:5, 3:5, 3:5] = 2
    predicted = np.where(truth > 0, 1, 0)
    assert figures(predicted, truth, labels=labels, label="whole")["dice"] == 1
    assert figures(predicted, truth, labels=labels, label="core")["dice"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_surface_figures_equal_a_brute_force_and_monai(seed: int) -> None:
    random = np.random.default_rng(seed)
    spacing = tuple(float(s) for s in random.uniform(0.5, 3, 3))
    shape = (14, 13, 9)
    truth = ellipsoid((6, 6, 4), (5, 4, 3), shape) ^ (random.random(shape) < 0.02)
    predicted = ellipsoid((7, 6, 5), (4, 5, 3.5), shape) ^ (random.random(shape) < 0.02)
    found = figures(predicted, truth, spacing, tolerance_mm=1.3)
    for name, value in brute_force(predicted, truth, spacing, 1.3).items():
        assert found[name] == pytest.approx(value, rel=1e-6), name
    p, t = (torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth))
    options = {"include_background": True, "spacing": spacing}
    assert found["nsd"] == pytest.approx(float(compute_surface_dice(p, t, [1.3], **options)))
    assert found["hd95_mm"] == pytest.approx(float(compute_hausdorff_distance(p, t, percentile=95, **options)))
    assert found["assd_mm"] == pytest.approx(float(compute_average_surface_distance(p, t, symmetric=True, **options)))


def test_a_header_that_says_one_millimetre_a_little_wrong_changes_nothing() -> None:
    truth, predicted = cube((3, 7), (3, 7), (3, 7)), cube((4, 8), (3, 7), (3, 7))
    assert figures(predicted, truth, (1.0000002,) * 3, tolerance_mm=1)["nsd"] == 1


def test_figures_do_not_depend_on_orientation_or_on_empty_surroundings() -> None:
    shape = (12, 13, 10)
    truth, predicted = ellipsoid((5, 6, 4), (4, 5, 3), shape), ellipsoid((6, 6, 5), (4, 4, 3), shape)
    geometry = Geometry.from_spacing(shape, (1.0, 0.8, 2.5))
    expected = segmentation_metrics(predicted.astype(int), truth.astype(int), geometry, ORGAN)
    turn = reorientation_to(geometry, "PIL")
    turned = segmentation_metrics(
        turn.apply(predicted.astype(int)), turn.apply(truth.astype(int)), turn.apply_to_geometry(geometry), ORGAN
    )
    wide = Geometry.from_spacing([n + 20 for n in shape], geometry.spacing)
    padded = segmentation_metrics(np.pad(predicted.astype(int), 10), np.pad(truth.astype(int), 10), wide, ORGAN)
    for a, b, c in zip(expected, turned, padded, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-6) == pytest.approx(c.value, rel=1e-6)
        assert (a.n_gt, a.n_pred) == (b.n_gt, b.n_pred) == (c.n_gt, c.n_pred)


def test_overlap_and_surfaces_are_symmetric() -> None:
    a, b = ellipsoid((5, 6, 4), (4, 5, 3), (12, 12, 9)), ellipsoid((6, 6, 5), (4, 4, 3), (12, 12, 9))
    one, two = figures(a, b, (1, 1, 2)), figures(b, a, (1, 1, 2))
    assert all(one[name] == two[name] for name in (*OVERLAP, "hd95_mm", "assd_mm", "lesion_f1"))
    assert one["volume_error_ml"] == -two["volume_error_ml"]


def test_pictures_have_lengths_in_their_own_unit() -> None:
    truth, predicted = cube((2, 6), (2, 6), shape=(10, 10)), cube((3, 7), (2, 6), shape=(10, 10))
    px = figures(predicted, truth, unit="px", tolerance_mm=0)
    assert px["dice"] == pytest.approx(0.75)
    assert px["hd95_px"] == 1 and px["area_error_px"] == 0
    # Twelve edge pixels each: four of the far edge and the two inner ones of the near edge are one pixel off.
    assert px["nsd"] == pytest.approx(0.5) and px["assd_px"] == pytest.approx(0.5)
    mm = figures(cube((2, 6), (2, 7), shape=(10, 10)), truth, (0.5, 2.0))
    assert mm["hd95_mm"] == 2 and mm["area_error_mm2"] == 4


def test_a_mask_of_another_shape_is_refused() -> None:
    geometry = Geometry.from_spacing((4, 4, 4), (1, 1, 1))
    with pytest.raises(MedsegError, match="does not fit the grid"):
        segmentation_metrics(np.zeros((4, 4, 5), int), np.zeros((4, 4, 4), int), geometry, ORGAN)
    with pytest.raises(MedsegError, match="tolerance_mm"):
        segmentation_metrics(np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int), geometry, ORGAN, tolerance_mm=-1)


def test_large_masks_do_not_overflow() -> None:
    truth = np.ones((260, 260, 250), np.uint8)  # 16.9 million voxels: beyond the whole numbers of float32
    predicted = truth.copy()
    predicted[:130] = 0
    found = segmentation_module._overlap(predicted.astype(bool), truth.astype(bool))
    assert found == (pytest.approx(2 / 3, rel=1e-7), pytest.approx(1 / 2, rel=1e-7))


def test_a_case_of_the_hippocampus_size_takes_milliseconds() -> None:
    shape = (36, 50, 36)
    truth, predicted = ellipsoid((18, 25, 18), (8, 16, 7), shape), ellipsoid((18.5, 25, 19), (8, 15, 7), shape)
    labels = LabelTable({1: "anterior", 2: "posterior"})
    halves = np.where(np.indices(shape)[1] < 25, 1, 2)
    geometry = Geometry.from_spacing(shape, (1, 1, 1))
    started = time.process_time()
    for _ in range(10):
        segmentation_metrics(predicted * halves, truth * halves, geometry, labels)
    assert (time.process_time() - started) / 10 < 0.1  # 8 ms on an idle core
