"""Phantoms: their answers are the analytic ones, whatever grid they are looked at on, and no threshold finds them."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg import scans
from medseg.evaluation.baselines import Example, GlobalThreshold, normalised
from medseg.scans.find import find
from medseg.testing.phantoms import (
    LABELS,
    Body,
    Ellipsoid,
    Structure,
    make_body,
    make_geometry,
    make_phantom,
    write_phantoms,
    write_scan,
)
from medseg.volume import Geometry, reorient, reorientation_to

SEEDS = range(6)


def body_of(seed: int) -> Body:
    return make_body(np.random.default_rng([0, seed]))


def fine_grid(spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)) -> Geometry:
    """A grid around the whole field of view of every body."""
    size = np.array([180.0, 140.0, 220.0])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -size / 2
    return Geometry(tuple(int(n) for n in np.ceil(size / spacing)), affine)


def box_of(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """``(2, 3)`` the corners in mm of the box around the true voxels of an unturned grid."""
    found = np.argwhere(mask)
    return geometry.to_world(np.stack([found.min(0) - 0.5, found.max(0) + 0.5]))


@pytest.mark.parametrize("angle", [0.0, 0.25, -1.1])
def test_a_sampled_ellipsoid_has_the_analytic_volume_box_and_centre(angle: float) -> None:
    ellipsoid = Ellipsoid((5.2, -7.4, 11.1), (21.3, 12.6, 29.9), angle)
    geometry = fine_grid((1.0, 1.0, 1.0))
    mask = Body((Structure("one", (ellipsoid,), 100, 3),)).mask(geometry)
    assert set(np.unique(mask)) == {0, 3}
    assert mask.astype(bool).sum() * geometry.voxel_volume / 1000 == pytest.approx(ellipsoid.volume_ml, rel=0.005)
    assert np.abs(box_of(mask, geometry) - ellipsoid.box_mm()).max() <= 1.0
    assert geometry.to_world(np.argwhere(mask).mean(0)) == pytest.approx(ellipsoid.center, abs=0.05)


def test_depth_is_one_in_the_centre_zero_on_the_surface_and_counts_millimetres_there() -> None:
    ellipsoid = Ellipsoid((5.0, -7.0, 11.0), (20.0, 12.0, 30.0), 0.4)
    assert ellipsoid.depth(np.array(ellipsoid.center)) == pytest.approx(1)
    assert ellipsoid.depth(ellipsoid.surface()) == pytest.approx(0, abs=1e-9)
    assert (ellipsoid.depth_mm(np.array([ellipsoid.center])) > 12).all()
    c, s = math.cos(0.4), math.sin(0.4)
    tip = np.array(ellipsoid.center) + 20 * np.array([c, s, 0])  # the end of the first semi-axis, where its angle says
    for mm in (-0.5, 0.0, 0.5):
        assert ellipsoid.depth_mm(tip - mm * np.array([c, s, 0])) == pytest.approx(mm, abs=0.02)


def test_ellipsoids_know_whether_they_keep_apart_or_hold_each_other() -> None:
    one = Ellipsoid((0, 0, 0), (20, 10, 10))
    assert one.apart_from(Ellipsoid((35, 0, 0), (10, 10, 10)), 4.0)
    assert not one.apart_from(Ellipsoid((35, 0, 0), (10, 10, 10)), 6.0)  # there are 5 mm between them
    assert not one.apart_from(Ellipsoid((0, 0, 0), (1, 1, 1)))
    assert one.holds(Ellipsoid((0, 0, 0), (5, 5, 5)), 3.0)
    assert not one.holds(Ellipsoid((0, 0, 0), (5, 5, 5)), 6.0)
    assert not one.holds(Ellipsoid((18, 0, 0), (5, 5, 5)), 0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_sampled_labels_have_the_volumes_that_the_body_knows(seed: int) -> None:
    body, geometry = body_of(seed), fine_grid()
    mask = body.mask(geometry)
    for value, name in LABELS.names.items():
        sampled = (mask == value).sum() * geometry.voxel_volume / 1000
        assert sampled == pytest.approx(body.volumes_ml()[name], rel=0.03 if name == "lesion" else 0.01)
        for part in body.parts(value):
            lower, upper = (np.round(geometry.to_index(corner)).astype(int) for corner in part.box_mm())
            window = tuple(slice(max(low - 2, 0), high + 3) for low, high in zip(lower, upper, strict=True))
            alone = (mask[window] == value) & (part.depth(_world(geometry, window)) > -0.05)
            centre = geometry.to_world(np.argwhere(alone).mean(0) + [w.start for w in window])
            if name != "liver":  # the lesions are cut out of it
                assert centre == pytest.approx(part.center, abs=0.4)


def _world(geometry: Geometry, window: tuple[slice, ...]) -> np.ndarray:
    index = np.meshgrid(
        *[np.arange(w.start, min(w.stop, n)) for w, n in zip(window, geometry.shape, strict=True)], indexing="ij"
    )
    return geometry.to_world(np.stack(index, -1))


@pytest.mark.parametrize("seed", range(40))
def test_organs_keep_apart_and_lesions_lie_inside_the_liver(seed: int) -> None:
    body = body_of(seed)
    (liver,) = body.parts(1)
    organs = [liver, *body.parts(2), *body.parts(3)]
    assert len(organs) == 4
    assert all(a.apart_from(b, 0.0) for i, a in enumerate(organs) for b in organs[i + 1 :])
    assert 1 <= len(body.lesions()) <= 2
    assert all(liver.holds(lesion, 0.0) for lesion in body.lesions())
    assert len(body.lesions()) < 2 or body.lesions()[0].apart_from(body.lesions()[1], 0.0)
    assert min(part.volume_ml for part in organs) > 4
    assert min(part.volume_ml for part in body.lesions()) > 1.5


def test_a_phantom_is_a_function_of_seed_and_index() -> None:
    one, same = make_phantom(3, 7, spacing_mm=8), make_phantom(3, 7, spacing_mm=8)
    assert one.id == same.id and one.body == same.body
    assert np.array_equal(one.volume.data, same.volume.data) and np.array_equal(one.mask, same.mask)
    assert np.array_equal(one.volume.geometry.affine, same.volume.geometry.affine)
    for other in (make_phantom(3, 8, spacing_mm=8), make_phantom(4, 7, spacing_mm=8)):
        assert other.body != one.body


def test_a_body_is_the_same_in_the_world_on_any_grid_of_any_orientation() -> None:
    body = body_of(1)
    coarse = make_geometry(np.random.default_rng(0), 6.0)
    fine = make_geometry(np.random.default_rng(1), 3.0)
    assert coarse.axis_codes != fine.axis_codes
    masks = {grid: body.mask(grid) for grid in (coarse, fine)}
    index = np.argwhere(masks[coarse] >= 0)
    there = np.rint(fine.to_index(coarse.to_world(index))).astype(int)
    inside = ((there >= 0) & (there < fine.shape)).all(1)
    looked_up = masks[fine][tuple(there[inside].T)]
    expected = masks[coarse][tuple(index[inside].T)]
    assert (looked_up == expected).mean() > 0.97  # borders fall on this or that side of a voxel
    for value in LABELS.names:
        at_coarse, at_fine = (grid.to_world(np.argwhere(masks[grid] == value).mean(0)) for grid in (coarse, fine))
        assert at_coarse == pytest.approx(at_fine, abs=1.5)


@pytest.mark.parametrize("codes", ["LPS", "SRP", "AIL"])
def test_the_same_scan_stored_along_other_axes_holds_the_same_voxels(codes: str) -> None:
    own = make_phantom(0, 1, spacing_mm=7)
    geometry = own.volume.geometry
    turn = reorientation_to(geometry, codes)
    turned = make_phantom(0, 1, spacing_mm=7, geometry=turn.apply_to_geometry(geometry))
    assert turned.volume.geometry.axis_codes == codes != geometry.axis_codes
    assert np.array_equal(turned.mask, turn.apply(own.mask))
    assert np.array_equal(turned.volume.data, turn.apply(own.volume.data))


def test_cases_differ_in_orientation_spacing_field_of_view_contrast_noise_and_bias() -> None:
    phantoms = [make_phantom(0, index, spacing_mm=6) for index in range(16)]
    grids = [phantom.volume.geometry for phantom in phantoms]
    assert len({grid.axis_codes for grid in grids}) >= 4
    spacings = np.array([sorted(grid.spacing) for grid in grids])
    assert (spacings.max(0) > 1.2 * spacings.min(0)).all()
    assert len({grid.shape for grid in grids}) >= 12
    contrast, gain = [], []
    for phantom in phantoms:
        liver = phantom.volume.data[0][phantom.mask == 1]
        tissue = phantom.volume.data[0][(phantom.mask == 0) & (phantom.volume.data[0] > liver.mean() / 3)]
        gain.append(liver.mean())
        contrast.append((liver.mean() - tissue.mean()) / liver.std())
    assert max(gain) > 2 * min(gain)
    assert max(contrast) > min(contrast) + 0.4


def test_pixels_are_finite_whole_numbers_that_no_sign_or_overflow_troubles() -> None:
    for index in range(4):
        data = make_phantom(0, index, spacing_mm=8).volume.data
        assert data.dtype == np.float32 and np.isfinite(data).all()
        assert np.array_equal(data, np.rint(data)) and data.min() >= 0 and data.max() < 4096


def test_no_global_threshold_finds_the_labels() -> None:
    examples = []
    for index in range(16):
        phantom = make_phantom(0, index, spacing_mm=5)
        image = normalised(phantom.volume, [False])
        examples.append(Example(phantom.volume.geometry, image, phantom.mask))
    threshold = GlobalThreshold.fit(examples[:12], LABELS)
    dice = []
    for example in examples[12:]:
        found, truth = threshold.predict(example), example.truth
        assert truth is not None
        dice += [
            2 * ((found == v) & (truth == v)).sum() / ((found == v).sum() + (truth == v).sum()) for v in LABELS.names
        ]
    assert np.mean(dice) <= 0.4
    # Not even on the cases it was fitted on, one label at a time:
    assert np.mean([rule.dice for rule in threshold.intervals.values()]) <= 0.4


def test_a_cohort_on_disk_reads_back_as_it_was_made(tmp_path: Path) -> None:
    write_phantoms(tmp_path, range(2), seed=5, spacing_mm=12)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"phantom_000.nii.gz", "phantom_001"}
    for index, path in enumerate(("phantom_000.nii.gz", "phantom_001")):
        made = make_phantom(5, index, spacing_mm=12)
        read = scans.read_volume(find(tmp_path / "images" / path).sources[0].source)
        expected, found = reorient(made.volume, "RAS"), reorient(read, "RAS")
        assert found.geometry.matches(expected.geometry)
        assert np.array_equal(found.data, expected.data)  # whole numbers stay what they are
        label = nib.load(tmp_path / "labels" / f"phantom_{index:03d}.nii.gz")
        assert np.array_equal(np.asarray(label.dataobj), made.mask)
        assert np.allclose(label.affine, made.volume.geometry.affine, atol=1e-4)


def test_different_patients_of_the_same_number_are_different_series(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_scan(make_phantom(seed, 1, spacing_mm=16), tmp_path / str(seed), dicom=True)
    assert len(find(tmp_path).sources) == 2
