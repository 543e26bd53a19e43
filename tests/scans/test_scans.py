from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medseg.scans import read_case, read_mask, turn_onto
from medseg.scans.find import find, find_one
from medseg.scans.reading import ScanError
from medseg.structures import Case, Source
from medseg.volume import Geometry, Volume, reorient
from tests.annotation_factory import write_rtstruct, write_seg

Write = Callable[..., Path]


def source(path: Path) -> Source:
    return find_one(path).source


def test_channels_are_stacked_in_their_order(tmp_path: Path, write_nifti: Write) -> None:
    paths = [write_nifti(tmp_path / f"{n}.nii", np.full((2, 3, 4), n, np.int16)) for n in range(3)]
    volume = read_case(Case("p", tuple(source(p) for p in paths)))
    assert volume.data.shape == (3, 2, 3, 4)
    assert volume.data[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_channels_on_different_grids_are_refused_with_both(tmp_path: Path, write_nifti: Write) -> None:
    one = write_nifti(tmp_path / "a.nii", np.zeros((2, 3, 4)))
    two = write_nifti(tmp_path / "b.nii", np.zeros((2, 3, 5)), np.diag([1, 1, 0.7, 1]))
    with pytest.raises(
        ScanError, match=r"case 'p': channels 0 and 1 .*2×3×4 at 1×1×1 mm.*2×3×5 at 1×1×0.7 mm"
    ) as caught:
        read_case(Case("p", (source(one), source(two))))
    assert caught.value.kind == "grids_differ"


def test_a_shifted_channel_is_refused_with_the_distance(tmp_path: Path, write_nifti: Write) -> None:
    moved = np.eye(4)
    moved[0, 3] = 3
    one, two = (
        write_nifti(tmp_path / "a.nii", np.zeros((4, 4, 4))),
        write_nifti(tmp_path / "b.nii", np.zeros((4, 4, 4)), moved),
    )
    with pytest.raises(ScanError, match="3 mm apart"):
        read_case(Case("p", (source(one), source(two))))


def test_a_reading_error_names_the_case(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="case 'p': .*no such file"):
        read_case(Case("p", (Source("nifti", (tmp_path / "gone.nii",)),)))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "ILA"])
def test_a_mask_stored_along_other_axes_is_turned_onto_the_image(
    tmp_path: Path, write_nifti: Write, codes: str
) -> None:
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    image = Geometry((2, 3, 4), np.array([[-1.0, 0, 0, 9], [0, 2, 0, 8], [0, 0, 3, 7], [0, 0, 0, 1]]))
    turned = reorient(Volume(labels[None], image), codes)
    path = write_nifti(tmp_path / "m.nii.gz", turned.data[0], turned.geometry.affine)
    mask, geometry = read_mask(source(path), image)
    np.testing.assert_array_equal(mask, labels)
    assert geometry is image


def test_a_mask_elsewhere_is_refused_with_both_grids(tmp_path: Path, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "m.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(ScanError, match=r"label 4×4×4 at 1×1×1 mm, image 4×4×5 at 1×1×2 mm"):
        read_mask(source(path), Geometry.from_spacing((4, 4, 5), (1, 1, 2)))
    with pytest.raises(ScanError, match=r"image 4×4 at 1×1 px"):
        read_mask(source(path), Geometry.from_spacing((4, 4), (1, 1), "px"))


def test_rounded_headers_still_match() -> None:
    one = Geometry.from_spacing((512, 512, 200), (0.7, 0.7, 2.5))
    two = Geometry.from_spacing((512, 512, 200), (0.70001, 0.70001, 2.5))
    assert turn_onto(one, two) is not None
    assert turn_onto(one, Geometry.from_spacing((512, 512, 200), (0.701, 0.701, 2.5))) is None


def test_masks_take_the_smallest_type(tmp_path: Path, write_nifti: Write) -> None:
    for values, dtype in (([0, 255], np.uint8), ([0, 256], np.uint16), ([-1, 3], np.int8), ([-1, 200], np.int16)):
        path = write_nifti(tmp_path / "m.nii", np.array(values, np.float32).reshape(2, 1, 1))
        mask, _ = read_mask(source(path))
        assert mask.dtype == dtype
        assert mask.ravel().tolist() == values


@pytest.mark.parametrize(
    ("value", "words"), [(0.5, "found 0.5"), (np.nan, "NaN"), (np.inf, "infinite"), (1e30, "label values")]
)
def test_masks_hold_whole_numbers(tmp_path: Path, write_nifti: Write, value: float, words: str) -> None:
    path = write_nifti(tmp_path / "m.nii", np.array([0, value], np.float32).reshape(2, 1, 1))
    with pytest.raises(ScanError, match=words) as caught:
        read_mask(source(path))
    assert caught.value.kind == "non_integer"


def test_a_mask_of_a_picture_with_known_spacing_needs_the_same_size_only(tmp_path: Path, write_picture: Write) -> None:
    path = write_picture(tmp_path / "m.png", np.zeros((2, 3), np.uint8))
    read_mask(source(path), Geometry.from_spacing((3, 2), (0.1, 0.1), "mm"))
    with pytest.raises(ScanError, match="different grids"):
        read_mask(source(path), Geometry.from_spacing((2, 3), (0.1, 0.1), "mm"))


def test_mutated_files_are_refused_or_read_and_never_crash(
    tmp_path: Path, write_nifti: Write, write_picture: Write, write_series: Callable[..., list[Path]]
) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 500, (9, 10, 11)).astype(np.int16)
    meta = b"ObjectType = Image\nNDims = 3\nDimSize = 9 10 11\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    nrrd = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 10 11\nendian: little\nencoding: raw\n\n"
    whole = {
        "a.nii": write_nifti(tmp_path / "a.nii", array).read_bytes(),
        "b.nii.gz": write_nifti(tmp_path / "b.nii.gz", array).read_bytes(),
        "c.mha": meta + array.tobytes(order="F"),
        "d.nrrd": nrrd + array.tobytes(order="F"),
        "e.png": write_picture(tmp_path / "e.png", array[:, :, 0].astype(np.uint8)).read_bytes(),
        "f.dcm": write_series(tmp_path / "f", array[:, :, :1])[0].read_bytes(),
    }
    outcomes = {"read": 0, "refused": 0}
    for turn in range(240):
        name = list(whole)[turn % len(whole)]
        raw = bytearray(whole[name])
        if turn % 5 == 0:
            raw = raw[: rng.integers(len(raw))]
        else:
            at = rng.integers(min(len(raw), 600), size=rng.choice([1, 8, 60]))
            for place in at:
                raw[place] = rng.choice([0, 255, 127, raw[place] ^ 1 << rng.integers(8)])
        path = tmp_path / "w" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(raw))
        found = find(path)
        assert found.sources or found.unread
        for entry in found.sources:
            try:
                read_case(Case("p", (entry.source,)))
                outcomes["read"] += 1
            except ScanError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_mutated_annotations_are_refused_or_read_and_never_crash(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    grid = Geometry.from_spacing((9, 8, 4), (1, 1, 2))
    mask = np.zeros(grid.shape, bool)
    mask[2:6, 2:5, 1:3] = True
    square = np.array([[1.5, 1.5, 2], [6.5, 1.5, 2], [6.5, 5.5, 2]])
    sources = [
        Source("seg", (write_seg(tmp_path / "a.dcm", {"x": mask, "y": ~mask}, grid.affine),)),
        Source("seg", (write_seg(tmp_path / "b.dcm", {"x": mask}, grid.affine, kind="labelmap"),)),
        Source(
            "rtstruct", (write_rtstruct(tmp_path / "c.dcm", {"x": [square, np.add(square, [0, 0, 4])], "y": [square]}),)
        ),
    ]
    outcomes, said = {"read": 0, "refused": 0}, []
    for turn in range(150):
        whole = sources[turn % 3]
        raw = bytearray(whole.files[0].read_bytes())
        if turn % 5 == 0:
            raw = raw[: rng.integers(132, len(raw))]
        for place in rng.integers(132, len(raw), size=rng.choice([1, 2, 20])):
            raw[place] = rng.choice([0, 255, raw[place] ^ 1 << rng.integers(8)])
        path = tmp_path / "w.dcm"
        path.write_bytes(bytes(raw))
        try:
            found, geometry = read_mask(Source(whole.kind, (path,)), grid)
            assert found.shape == geometry.shape
            outcomes["read"] += 1
        except ScanError as error:
            outcomes["refused"] += 1
            said.append(str(error))
        find(path)
    assert "Secret" not in str(said)
    assert min(outcomes.values()) > 10
