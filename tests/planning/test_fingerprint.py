"""Statistics of small cases whose grid, crop, values and volumes are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.planning.fingerprint import Fingerprint, content_key, fingerprint
from medseg.structures import Case, Cohort, LabelTable, Source

LABELS = LabelTable({1: "organ", 2: "lesion"}, ignore=9)


def write_case(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> Case:
    sources = []
    for kind, array in (("image", image.astype(np.float32)), ("label", mask.astype(np.uint8))):
        path = folder / f"{name}_{kind}.nii.gz"
        nib.save(nib.Nifti1Image(array, affine), path)
        sources.append(Source("nifti", (path,)))
    return Case(name, (sources[0],), sources[1])


def make_case(folder: Path, name: str = "a", value: float = 100.0, codes: str = "RAS") -> Case:
    """10×12×14 voxels of 1×2×3 mm in RAS: 4×4×4 are not zero, of which 2×2×2 are organ, 2 lesion and 2 ignored."""
    image, mask = np.zeros((10, 12, 14)), np.zeros((10, 12, 14))
    image[3:7, 4:8, 5:9] = value
    mask[3:5, 4:6, 5:7] = 1
    mask[5, 6, 7:9] = 2
    mask[6, 7, 7:9] = 9
    image[mask == 9] = -5000
    stored = nib.Nifti1Image(image, np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    turned = stored.as_reoriented(turn)
    turned_mask = nib.Nifti1Image(mask, stored.affine).as_reoriented(turn)
    return write_case(folder, name, turned.get_fdata(), turned_mask.get_fdata(), turned.affine)


def cohort_of(*cases: Case, labels: LabelTable | None = LABELS) -> Cohort:
    return Cohort(tuple(cases), ("MRI",), labels)


def test_a_case_is_measured_as_it_is_known_to_be(tmp_path: Path) -> None:
    found = fingerprint(cohort_of(make_case(tmp_path)), progress=False)
    case = found.cases[0]
    assert (case.shape, case.spacing, case.unit, case.crop) == ((10, 12, 14), (1.0, 2.0, 3.0), "mm", (4, 4, 4))
    assert case.sizes == pytest.approx({"organ": 8 * 6 / 1000, "lesion": 2 * 6 / 1000})
    channel = found.channels[0]
    assert (channel.mean, channel.std, channel.low, channel.high) == (100.0, 0.0, 100.0, 100.0)  # no ignored voxel
    assert (channel.minimum, channel.maximum) == (-5000.0, 100.0)
    assert found.presence() == {"a": "lesion+organ"}


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_the_stored_orientation_does_not_matter(tmp_path: Path, codes: str) -> None:
    plain = fingerprint(cohort_of(make_case(tmp_path)), progress=False)
    turned = fingerprint(cohort_of(make_case(tmp_path, codes=codes)), progress=False)
    assert replace(turned.cases[0], stored=(0, 1, 2)) == plain.cases[0]
    stored_shape = [nib.load(tmp_path / "a_image.nii.gz").shape[axis] for axis in turned.cases[0].stored]
    assert tuple(stored_shape) == (10, 12, 14)


def test_the_same_cases_give_the_same_fingerprint_in_any_order_and_with_any_workers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = []
    for name in "abc":  # more foreground than is sampled
        image, mask = rng.normal(50, 10, (30, 30, 30)), np.ones((30, 30, 30))
        cases.append(write_case(tmp_path, name, image, mask, np.eye(4)))
    one = fingerprint(cohort_of(*cases), workers=1, progress=False)
    assert fingerprint(cohort_of(*cases[::-1]), workers=3, progress=False) == one
    assert one.channels[0].mean == pytest.approx(50, abs=0.5)
    assert Fingerprint.from_json(one.to_json()) == one


def test_a_damaged_fingerprint_says_what_to_do() -> None:
    with pytest.raises(MedsegError, match="delete it and plan again"):
        Fingerprint.from_json('{"format": 1}')


def test_all_bad_cases_are_named_at_once(tmp_path: Path) -> None:
    good, unknown = make_case(tmp_path, "good"), make_case(tmp_path, "unknown")
    mask = np.full((10, 12, 14), 5, np.uint8)
    nib.save(nib.Nifti1Image(mask, np.diag([1.0, 2.0, 3.0, 1.0])), tmp_path / "unknown_label.nii.gz")
    gone = make_case(tmp_path, "gone")
    (tmp_path / "gone_image.nii.gz").unlink()
    infinite = write_case(tmp_path, "infinite", np.full((4, 4, 4), np.inf), np.ones((4, 4, 4)), np.eye(4))
    with pytest.raises(MedsegError) as error:
        fingerprint(cohort_of(good, unknown, gone, infinite), progress=False)
    text = str(error.value)
    assert "3 of 4 cases" in text
    assert all(f"'{name}'" in text for name in ("unknown", "gone", "infinite"))
    assert "'good'" not in text
    assert "[5]" in text


def test_masks_without_any_label_are_refused(tmp_path: Path) -> None:
    empty = write_case(tmp_path, "a", np.ones((4, 4, 4)), np.zeros((4, 4, 4)), np.eye(4))
    with pytest.raises(MedsegError, match="no mask holds any of the labels"):
        fingerprint(cohort_of(empty), progress=False)


def test_without_masks_the_foreground_is_what_is_not_zero(tmp_path: Path) -> None:
    case = replace(make_case(tmp_path, value=7.0), label=None)
    found = fingerprint(cohort_of(case, labels=None), progress=False)
    assert found.cases[0].sizes == {}
    assert found.channels[0].median == 7.0


def test_pictures_and_volumes_do_not_mix(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((8, 6), 3, np.uint8)).save(tmp_path / "p.png")
    picture = Case("p", (Source("picture", (tmp_path / "p.png",)),), Source("picture", (tmp_path / "p.png",)))
    table = LabelTable({1: "organ", 2: "lesion", 3: "x"})
    alone = fingerprint(cohort_of(picture, labels=table), progress=False)
    assert (alone.cases[0].shape, alone.unit, alone.dimensions) == ((6, 8), "px", 2)
    assert alone.cases[0].sizes["x"] == 48.0  # px², not ml
    volume = replace(make_case(tmp_path), label=None)
    with pytest.raises(MedsegError, match="the same dimensions"):
        fingerprint(cohort_of(picture, volume, labels=table), progress=False)


def test_the_content_key_follows_bytes_labels_and_options_but_not_names_of_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    case = make_case(first)
    key = content_key(cohort_of(case), progress=False)
    for path in first.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    moved = Case("a", (Source("nifti", (second / "a_image.nii.gz",)),), Source("nifti", (second / "a_label.nii.gz",)))
    assert content_key(cohort_of(moved), progress=False) == key
    assert content_key(cohort_of(moved, labels=LabelTable({1: "organ"})), progress=False) != key
    assert content_key(cohort_of(moved), {"grey": True}, progress=False) != key
    (second / "a_label.nii.gz").write_bytes((first / "a_image.nii.gz").read_bytes())
    assert content_key(cohort_of(moved), progress=False) != key
    (second / "a_label.nii.gz").unlink()
    with pytest.raises(MedsegError, match="case 'a'"):
        content_key(cohort_of(moved), progress=False)
