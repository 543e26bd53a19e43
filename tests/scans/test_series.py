from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medseg.scans import read_volume
from medseg.scans.find import find

Series = Callable[..., list[Path]]


def test_two_series_in_one_folder_are_two_volumes(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    for number in ("1", "2"):
        for path in write_series(tmp_path / number, ramp, series=number):
            path.rename(tmp_path / f"{number}_{path.name}")
    assert [len(entry.source.files) for entry in find(tmp_path).sources] == [3, 3]


def test_slices_of_one_series_in_two_folders_are_one_volume(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    paths = write_series(tmp_path / "a", ramp)
    (tmp_path / "b").mkdir()
    paths[1].rename(tmp_path / "b" / "x")
    (entry,) = find(tmp_path).sources
    assert len(entry.source.files) == 3
    assert entry.relative.as_posix() == "."


def test_a_localizer_of_three_planes_is_three_volumes(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    for number, orientation in enumerate([(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (1, 0, 0, 0, 0, -1)]):
        write_series(tmp_path / str(number), ramp, orientation=orientation)
    sources = find(tmp_path).sources
    assert [len(entry.source.files) for entry in sources] == [3, 3, 3]
    assert len({entry.id for entry in sources}) == 3
    assert all("orientation=" in entry.source.key for entry in sources)


def test_other_matrix_sizes_are_volumes_of_their_own(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    write_series(tmp_path / "a", ramp)
    write_series(tmp_path / "b", ramp[:4], origin=(0, 0, 3))
    assert sorted(entry.source.key.split(";")[0] for entry in find(tmp_path).sources) == [
        "matrix=4x4x1",
        "matrix=5x4x1",
    ]


def test_echoes_are_told_apart_by_their_tag(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    for echo in (5, 20):

        def mark(ds: Dataset, k: int, echo: int = echo) -> None:
            ds.EchoTime = str(echo)
            ds.AcquisitionTime = f"1000{echo:02d}.{k}"  # differs for every slice, so it says nothing

        write_series(tmp_path / str(echo), ramp + echo, change=mark)
    found = {entry.source.key: entry.source for entry in find(tmp_path).sources}
    assert sorted(found) == ["EchoTime=20", "EchoTime=5"]
    assert read_volume(found["EchoTime=20"]).data.min() == 0


def test_time_points_without_any_tag_follow_the_order_of_acquisition(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    for time in range(3):

        def number(ds: Dataset, k: int, time: int = time) -> None:
            ds.InstanceNumber = 100 * time + k

        write_series(tmp_path / str(2 - time), ramp + 100 * time, change=number)
    found = sorted(find(tmp_path).sources, key=lambda entry: entry.source.key)
    assert [entry.source.key for entry in found] == ["volume=0", "volume=1", "volume=2"]
    assert [read_volume(entry.source).data.min() for entry in found] == [-20, 80, 180]


def test_doubled_slices_that_no_tag_explains_are_a_fault(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    paths = write_series(tmp_path, ramp)
    again = pydicom.dcmread(paths[1])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    again.save_as(tmp_path / "again")
    found = find(tmp_path)
    assert not found.sources
    assert found.faults[0].kind == "duplicate_slices"
    assert found.faults[0].case.startswith("MR_")


def test_a_copy_of_a_file_is_passed_over(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    paths = write_series(tmp_path, ramp)
    (tmp_path / "copy").write_bytes(paths[1].read_bytes())
    found = find(tmp_path)
    assert len(found.sources[0].source.files) == 3
    assert not found.faults
    assert "the same image" in found.unread[0].message


def test_the_id_does_not_depend_on_where_or_in_which_order_files_lie(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    paths = write_series(tmp_path / "a", ramp)
    before = find(tmp_path).sources[0]
    (tmp_path / "b").mkdir()
    for number, path in enumerate(reversed(paths)):
        path.rename(tmp_path / "b" / f"{number}.dcm")
    after = find(tmp_path).sources[0]
    assert (before.id, before.patient, before.study) == (after.id, after.patient, after.study)


@pytest.mark.parametrize("modality", ["RTSTRUCT", "SR", "SEG"])
def test_objects_that_are_no_scans_are_listed_and_are_nobodys_fault(
    tmp_path: Path, write_series: Series, ramp: np.ndarray, modality: str
) -> None:
    write_series(tmp_path, ramp[:, :, :1], modality=modality)
    found = find(tmp_path)
    assert not found.sources
    assert not found.faults
    assert modality in found.unread[0].message


def test_multi_frame_objects_and_mosaics_are_refused(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def spoil(ds: Dataset, k: int) -> None:
        if k == 0:
            ds.NumberOfFrames = 2
            ds.PixelData = ds.PixelData * 2
        if k == 1:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "MOSAIC"]

    write_series(tmp_path, ramp[:, :, :2], change=spoil)
    assert [fault.kind for fault in find(tmp_path).faults] == ["unsupported", "unsupported"]
