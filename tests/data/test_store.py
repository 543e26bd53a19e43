from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest

from medseg.data import store as store_module
from medseg.data.preprocess import preprocess, preprocess_mask
from medseg.data.store import MAX_LOCATIONS, StoredCase, entry_key, prepare
from medseg.errors import MachineError, MedsegError
from medseg.planning.plan import Channel, Plan
from medseg.scans import read_case, read_mask
from medseg.structures import Case, LabelTable, as_source


def plan_for(**values: Any) -> Plan:
    plan = Plan(
        task="segmentation",
        orientation="RAS",
        channels=(Channel("MRI", "zscore"),),
        labels=LabelTable({1: "organ", 2: "lesion"}),
        crop="none",
        spacing=(1.0, 1.0, 1.0),
        unit="mm",
        image_order=(3, 3, 3),
        label_order=(1, 1, 1),
        patch_size=(8, 8, 8),
        batch_size=2,
        features=(8, 16),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3), (3, 3, 3)),
        blocks=(1, 1),
        mirror_axes=(0, 1, 2),
        foreground=0.5,
        memory_gb=4,
    )
    return plan.changed(**values)


def write_case(folder: Path, id: str, shape: Sequence[int] = (20, 18, 12), seed: int = 0) -> Case:
    """A box of organ with a lesion in its corner, written as two NIfTI files of 1.2 mm voxels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    mask[4:-4, 4:-4, 3:-3] = 1
    mask[4:8, 4:8, 3:6] = 2
    values = (100 * mask + rng.normal(0, 10, shape)).astype(np.float32)
    affine = np.diag([-1.2, 1.2, 1.2, 1])
    for name, array in ((f"{id}.nii.gz", values), (f"{id}_label.nii.gz", mask)):
        nib.save(nib.Nifti1Image(array, affine), folder / name)
    return Case(id, (as_source("nifti", folder / f"{id}.nii.gz"),), as_source("nifti", folder / f"{id}_label.nii.gz"))


def cases_in(folder: Path, count: int) -> list[Case]:
    folder.mkdir(exist_ok=True)
    return [write_case(folder, f"p{i}", seed=i) for i in range(count)]


def entries(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_stored_case_is_the_preprocessed_case(tmp_path: Path) -> None:
    case, plan = write_case(tmp_path, "p0"), plan_for()
    stored = prepare([case], plan, tmp_path / "cache", progress=False).case("p0")
    assert case.label is not None
    volume = read_case(case)
    image, restoration = preprocess(volume, plan)
    label = preprocess_mask(read_mask(case.label, volume.geometry)[0], restoration, plan)
    got_image, got_label = stored.whole()
    assert got_image.dtype == np.float32 and got_label.dtype == np.int16
    assert (stored.shape, stored.channels) == (image.shape[1:], 1)
    np.testing.assert_allclose(got_image, image, rtol=1e-3, atol=1e-6)
    assert (got_label == label).all()
    assert stored.restoration.to_json() == restoration.to_json()


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ((3, 2, 1), (11, 9, 8)),
        ((-4, -1, -9), (6, 30, 5)),
        ((-5, -5, -5), (40, 40, 40)),
        ((50, 50, 50), (54, 55, 56)),
        ((-9, 3, 3), (-2, 6, 6)),
    ],
)
def test_a_window_is_padded_with_zero_beyond_the_case(lower: Any, upper: Any, tmp_path: Path) -> None:
    stored = prepare([write_case(tmp_path, "p0")], plan_for(), tmp_path / "cache", progress=False).case("p0")
    image, label = stored.whole()
    wide = [(0, 0), *[(60, 60)] * 3]
    window = (slice(None), *(slice(low + 60, u + 60) for low, u in zip(lower, upper, strict=True)))
    np.testing.assert_array_equal(stored.image(lower, upper), np.pad(image, wide)[window])
    np.testing.assert_array_equal(stored.label(lower, upper), np.pad(label, wide)[window])


def test_reading_a_patch_does_not_read_the_volume(tmp_path: Path) -> None:
    case = write_case(tmp_path, "p0", (150, 80, 80))
    stored = prepare([case], plan_for(), tmp_path / "cache", progress=False).case("p0")
    lower, upper = (70, 3, 3), (86, 19, 19)
    expected = stored.image(lower, upper)
    array = blosc2.open(str(stored.file), mode="r", offset=stored.offsets["image.b2nd"])
    assert array.schunk.nchunks == 12
    # The pixels of every chunk but the one that the patch lies in are overwritten: who reads them fails.
    content = bytearray(stored.file.read_bytes())
    for number in set(range(12)) - {4}:
        chunk = array.schunk.get_chunk(number)
        at = content.index(chunk[:200])
        assert content[at : at + len(chunk)] == chunk
        header = 32  # bytes that begin a chunk; opening looks at the first one's
        content[at + header : at + len(chunk)] = b"\xff" * (len(chunk) - header)
    damaged = replace(stored, file=tmp_path / "damaged.zip")
    damaged.file.write_bytes(content)
    np.testing.assert_array_equal(damaged.image(lower, upper), expected)
    with pytest.raises(RuntimeError):
        damaged.whole()


def test_a_stored_case_goes_to_another_process(tmp_path: Path) -> None:
    store = prepare([write_case(tmp_path, "p0")], plan_for(), tmp_path / "cache", progress=False)
    store.case("p0").whole()
    again = pickle.loads(pickle.dumps(store)).case("p0")
    assert len(pickle.dumps(again)) < 2000
    assert (again.whole()[0] == store.case("p0").whole()[0]).all()


def test_sampled_voxels_belong_to_their_target(tmp_path: Path) -> None:
    case = write_case(tmp_path, "p0", (60, 50, 40))
    regions = {"names": {1: "organ", 2: "lesion", 5: "rare"}, "ignore": None}
    plan = plan_for(
        labels={**regions, "regions": {"whole": [1, 2], "lesion": [2], "rare": [5]}, "paint": [1, 2, 5]},
        spacing=(1.2, 1.2, 1.2),
    )
    stored = prepare([case], plan, tmp_path / "cache", progress=False).case("p0")
    label = stored.whole()[1][0]
    found = stored.locations
    assert list(found) == ["whole", "lesion", "rare"]
    assert found["whole"].shape == (MAX_LOCATIONS, 3) and found["whole"].dtype == np.int32
    assert len(np.unique(found["whole"], axis=0)) == MAX_LOCATIONS
    assert (label[tuple(found["whole"].T)] > 0).all()
    # The sample is spread over the region: its centre is the region's.
    np.testing.assert_allclose(found["whole"].mean(0), np.argwhere(label > 0).mean(0), atol=0.3)
    assert {tuple(row) for row in found["lesion"].tolist()} == {tuple(row) for row in np.argwhere(label == 2).tolist()}
    assert found["rare"].shape == (0, 3)
    (tmp_path / "other").mkdir()
    again = prepare([case], plan, tmp_path / "other" / "cache", progress=False).case("p0")
    assert (again.locations["whole"] == found["whole"]).all()


def test_a_case_without_label_is_stored_and_says_so(tmp_path: Path) -> None:
    case = replace(write_case(tmp_path, "p0"), label=None)
    stored = prepare([case], plan_for(), tmp_path / "cache", progress=False).case("p0")
    assert stored.image((0, 0, 0), stored.shape).any()
    assert not stored.has_label and stored.locations == {}
    assert stored.whole()[1] is None
    with pytest.raises(MedsegError, match="no label"):
        stored.label((0, 0, 0), (1, 1, 1))


def test_values_beyond_half_precision_are_kept(tmp_path: Path) -> None:
    affine, values = np.eye(4), np.arange(64, dtype=np.float32).reshape(4, 4, 4) * 5000
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "pet.nii")
    case = Case("pet", (as_source("nifti", tmp_path / "pet.nii"),))
    for channel in (Channel("PET", "none"), Channel("PET", "ct", mean=0, std=1, low=0, high=1e6)):
        plan = plan_for(channels=(channel,))
        stored = prepare([case], plan, tmp_path / "cache", progress=False).case("pet")
        assert (stored.image((0, 0, 0), (4, 4, 4))[0] == values).all()


def test_pictures_are_stored_in_two_dimensions(tmp_path: Path) -> None:
    write_case(tmp_path, "p0", (40, 30, 12))
    from PIL import Image

    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "a.png")
    Image.fromarray((np.arange(600).reshape(20, 30) > 300).astype(np.uint8)).save(tmp_path / "a_mask.png")
    case = Case("a", (as_source("picture", tmp_path / "a.png"),), as_source("picture", tmp_path / "a_mask.png"))
    grids = {
        "image_order": (1, 1),
        "label_order": (1, 1),
        "strides": [[1, 1], [2, 2]],
        "kernel_sizes": [[3, 3], [3, 3]],
        "mirror_axes": (0,),
    }
    plan = plan_for(orientation="stored", spacing=(1.0, 1.0), unit="px", patch_size=(8, 8), **grids)
    stored = prepare([case], plan, tmp_path / "cache", progress=False).case("a")
    assert stored.shape == (30, 20)
    assert stored.image((-2, 0), (8, 30)).shape == (1, 10, 30)
    assert stored.label((0, 0), stored.shape).sum() == 299


def test_the_key_is_the_content_and_the_preprocessing(tmp_path: Path) -> None:
    case, plan = write_case(tmp_path, "p0"), plan_for()
    key = entry_key(case, plan)
    assert entry_key(case, plan.changed(patch_size=(16, 16, 16), batch_size=9)) == key
    assert entry_key(case, plan.changed(spacing=(2.0, 1.0, 1.0))) != key
    (tmp_path / "elsewhere").mkdir()
    moved = write_case(tmp_path / "elsewhere", "renamed")
    assert entry_key(replace(case, images=moved.images), plan) == key
    assert entry_key(replace(case, label=None), plan) != key
    assert entry_key(replace(case, images=case.images * 2), plan) != key
    other = write_case(tmp_path, "p1", seed=1)
    assert entry_key(replace(case, images=other.images), plan) != key
    assert case.label is not None
    label = case.label.files[0]
    nib.save(nib.Nifti1Image(np.zeros((20, 18, 12), np.uint8), np.eye(4)), label)
    assert entry_key(case, plan) != key


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    cases, plan, folder = cases_in(tmp_path, 3), plan_for(), tmp_path / "cache"
    first = prepare(cases[:2], plan, folder, progress=False)
    before = entries(folder)
    second = prepare(cases, plan, folder, progress=False)
    after = entries(folder)
    assert len(after) == 3 and before.items() <= after.items()
    assert first.case("p1") == second.case("p1")


def test_an_entry_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    cases, plan, folder = cases_in(tmp_path, 1), plan_for(), tmp_path / "cache"
    stored = prepare(cases, plan, folder, progress=False).case("p0")
    expected = stored.whole()[0]
    stored.file.write_bytes(stored.file.read_bytes()[:-200])
    (folder / ".abc.tmp").write_bytes(b"half")
    (folder / ".old.tmp").write_bytes(b"half")
    os.utime(folder / ".old.tmp", (time.time() - 7200,) * 2)
    store_module._opened.cache_clear()
    again = prepare(cases, plan, folder, progress=False)
    assert (again.case("p0").whole()[0] == expected).all()
    assert sorted(entries(folder)) == [".abc.tmp", stored.file.name]


def test_two_processes_make_what_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, plan = cases_in(tmp_path, 6), plan_for(spacing=(0.9, 1.1, 1.7))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes((tmp_path / "p0.nii.gz").read_bytes()[:-300])
    cases.insert(2, replace(cases[0], id="broken", images=(as_source("nifti", broken),)))
    one = prepare(cases, plan, tmp_path / "one", workers=1, progress=False)
    monkeypatch.setattr(store_module, "ALONE_S", 0)
    two = prepare(cases, plan, tmp_path / "two", workers=2, progress=False)
    assert list(one.cases) == list(two.cases) == [f"p{i}" for i in range(6)]
    assert [str(fault) for fault in one.failed] == [str(fault) for fault in two.failed]
    for name in one.cases:
        assert one.case(name).file.name == two.case(name).file.name
        for a, b in zip(one.case(name).whole(), two.case(name).whole(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_bad_cases_are_named_and_the_others_are_made(tmp_path: Path) -> None:
    good, gone, odd, cut = cases_in(tmp_path, 4)
    gone.images[0].files[0].unlink()
    assert odd.label is not None
    affine = np.diag([-1.2, 1.2, 1.2, 1])
    nib.save(nib.Nifti1Image(np.full((20, 18, 12), 7, np.uint8), affine), odd.label.files[0])
    path = cut.images[0].files[0]
    path.write_bytes(path.read_bytes()[:400])
    store = prepare([gone, good, odd, cut], plan_for(), tmp_path / "cache", progress=False)
    assert list(store.cases) == ["p0"]
    assert [fault.case for fault in store.failed] == ["p1", "p2", "p3"]
    assert [fault.kind for fault in store.failed][:2] == ["missing_file", "unprepared"]
    assert "p1.nii.gz" in str(store.failed[0])
    assert "[7]" in store.failed[1].message
    assert all(str(fault).count("case 'p") == 1 for fault in store.failed)
    with pytest.raises(MedsegError, match=r"\[7\]"):
        store.case("p2")
    with pytest.raises(MedsegError, match="'p9': not among the 1"):
        store.case("p9")


def test_a_full_disk_stops_with_a_message_and_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, folder = cases_in(tmp_path, 3), tmp_path / "cache"
    prepare(cases[:1], plan_for(), folder, progress=False)
    before = entries(folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(MachineError, match="disk is full"):
        prepare(cases, plan_for(), folder, progress=False)
    assert entries(folder) == before


def test_a_cache_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MedsegError, match="cannot be written"):
        prepare(cases_in(tmp_path, 1), plan_for(), tmp_path / "file" / "cache", progress=False)


def test_workers_do_not_load_torch() -> None:
    code = "import sys, medseg.data.store; print([m for m in ('torch', 'monai', 'lightning', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_opening_an_entry_reads_no_pixels(tmp_path: Path) -> None:
    stored = prepare([write_case(tmp_path, "p0")], plan_for(), tmp_path / "cache", progress=False).case("p0")
    with zipfile.ZipFile(stored.file) as archive:
        names = archive.namelist()
        kept = {name: archive.read(name) for name in ("case.json", "locations.npy")}
    assert sorted(names) == ["case.json", "image.b2nd", "label.b2nd", "locations.npy"]
    bare = tmp_path / "bare.zip"
    with zipfile.ZipFile(bare, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    assert StoredCase.open("p0", bare).shape == stored.shape
