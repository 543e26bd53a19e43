from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from medseg.scans import read_volume
from medseg.scans.find import find
from medseg.scans.headers import Slice
from medseg.scans.names import series_id
from medseg.scans.series import plane_of, volumes

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


@pytest.mark.parametrize("modality", ["SR", "RTDOSE", "PR", "KO"])
def test_objects_that_are_no_scans_are_listed_and_are_nobodys_fault(
    tmp_path: Path, write_series: Series, ramp: np.ndarray, modality: str
) -> None:
    write_series(tmp_path, ramp[:, :, :1], modality=modality)
    found = find(tmp_path)
    assert not found.sources
    assert not found.faults
    assert modality in found.unread[0].message


def test_a_secondary_capture_that_poses_as_a_scan_is_named_once_a_series(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    write_series(tmp_path / "ct", ramp, series="1", modality="CT")

    def capture(ds: Dataset, k: int) -> None:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        del ds.ImagePositionPatient, ds.ImageOrientationPatient

    write_series(tmp_path / "report", ramp[:, :, :2], series="1", modality="CT", change=capture)
    found = find(tmp_path)
    assert [entry.slices for entry in found.sources] == [3]
    (fault,) = found.unread
    assert (fault.kind, fault.case) == ("secondary_capture", series_id("CT", "1.2.1.1", ""))
    assert fault.message.startswith("report/IM0000: series CT_") and "2 secondary capture(s)" in fault.message


def test_a_derived_volume_that_is_stored_as_secondary_capture_is_read(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    def capture(ds: Dataset, k: int) -> None:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage

    write_series(tmp_path, ramp, modality="CT", change=capture)
    assert [entry.slices for entry in find(tmp_path).sources] == [3]


def marked(write_series: Series, folder: Path, ramp: np.ndarray, **marks: object) -> None:
    """Slices that bear these tags, in a folder of their own."""

    def change(ds: Dataset, k: int) -> None:
        for keyword, value in marks.items():
            setattr(ds, keyword, value)

    write_series(folder, ramp, change=change)


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("TemporalPositionIdentifier", [1, 2, 10]),
        ("EchoNumbers", [1, 2, 3]),
        ("DiffusionBValue", [0.0, 500.0, 1000.0]),
        ("InversionTime", ["100", "900"]),
        ("TriggerTime", ["0", "35.5", "71"]),
        ("NominalPercentageOfCardiacPhase", [0.0, 50.0]),
        ("ComplexImageComponent", ["MAGNITUDE", "PHASE"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", kind, "ND"] for kind in ("M", "P", "R", "I")]),
        ("AcquisitionNumber", [1, 2]),
        ("SeriesNumber", [3, 4]),
    ],
)
def test_each_mark_splits_a_series(
    tmp_path: Path, write_series: Series, ramp: np.ndarray, keyword: str, values: list[object]
) -> None:
    for number, value in enumerate(values):
        marked(write_series, tmp_path / str(number), ramp, **{keyword: value, "InstanceNumber": 1})
    sources = find(tmp_path).sources
    assert [entry.slices for entry in sources] == [3] * len(values)
    assert all(entry.source.key.startswith(f"{keyword}=") for entry in sources)
    assert len({entry.relative for entry in sources}) == len(values)  # no volume mixes two values


def test_two_marks_split_a_series_twice(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    for n, (echo, kind) in enumerate((echo, kind) for echo in ("5", "10.0") for kind in ("M", "P")):
        marked(write_series, tmp_path / str(n), ramp, EchoTime=echo, ImageType=["ORIGINAL", "PRIMARY", kind])
    keys = {entry.source.key for entry in find(tmp_path).sources}
    assert keys == {f"EchoTime={echo};ImageType=ORIGINAL\\PRIMARY\\{kind}" for echo in (5, 10) for kind in "MP"}


def test_one_b_value_in_several_directions_is_a_volume_for_each(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    for n, b_value in enumerate((0.0, 1000.0, 1000.0, 1000.0)):

        def change(ds: Dataset, k: int, n: int = n, b_value: float = b_value) -> None:
            ds.DiffusionBValue, ds.InstanceNumber = b_value, 10 * n + k

        write_series(tmp_path / str(n), ramp, change=change)
    found = {entry.source.key: entry.relative.name for entry in find(tmp_path).sources}
    assert found == {
        "DiffusionBValue=0": "0",
        "DiffusionBValue=1000;volume=0": "1",
        "DiffusionBValue=1000;volume=1": "2",
        "DiffusionBValue=1000;volume=2": "3",
    }


def test_a_time_that_differs_from_slice_to_slice_splits_nothing(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    for time in range(2):

        def change(ds: Dataset, k: int, time: int = time) -> None:
            ds.TriggerTime, ds.InstanceNumber = 2000 * time + 100 * k, 10 * time + k

        write_series(tmp_path / str(time), ramp, change=change)
    sources = find(tmp_path).sources
    assert sorted(entry.source.key for entry in sources) == ["volume=0", "volume=1"]
    assert {len({path.parent for path in entry.source.files}) for entry in sources} == {1}


def test_a_time_point_that_lacks_a_slice_spoils_no_other(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    for time in (1, 2, 3):
        marked(write_series, tmp_path / str(time), ramp, TemporalPositionIdentifier=time)
    (tmp_path / "2" / "IM0001").unlink()
    found = {entry.source.key[-1]: entry.slices for entry in find(tmp_path).sources}
    assert found == {"1": 3, "2": 2, "3": 3}  # that the second has a hole is said when it is read


def test_stacks_beside_each_other_are_volumes_of_their_own(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    for stack in (1, 2):

        def change(ds: Dataset, k: int, stack: int = stack) -> None:
            ds.StackID = str(stack)

        write_series(tmp_path / str(stack), ramp, origin=(0, 0, 50 * stack), change=change)
    assert [entry.source.key for entry in sorted(find(tmp_path).sources, key=lambda e: e.relative)] == [
        "StackID=1",
        "StackID=2",
    ]


def test_another_pixel_spacing_is_another_volume(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    write_series(tmp_path / "a", ramp)
    write_series(tmp_path / "b", ramp, spacing=(2, 2, 1))
    assert sorted(entry.source.key.split(";")[1] for entry in find(tmp_path).sources) == ["spacing=1x1", "spacing=2x2"]


def test_slices_that_nothing_tells_apart_are_refused(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    for n in range(2):
        marked(write_series, tmp_path / str(n), ramp, InstanceNumber=0)
    found = find(tmp_path)
    assert not found.sources
    assert [fault.kind for fault in found.faults] == ["duplicate_slices"]


def test_pictures_are_a_case_each_whether_or_not_others_lie_beside(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    def flat(ds: Dataset, k: int) -> None:
        del ds.ImagePositionPatient, ds.ImageOrientationPatient

    paths = write_series(tmp_path, ramp, modality="DX", change=flat)
    before = {entry.source.files[0]: entry.id for entry in find(tmp_path).sources}
    assert set(before) == set(paths)
    paths[0].unlink()
    assert {entry.id for entry in find(tmp_path).sources} == {before[path] for path in paths[1:]}


def test_an_id_does_not_depend_on_what_lies_beside(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    write_series(tmp_path / "a", ramp, series="1")
    alone = find(tmp_path).sources[0]
    write_series(tmp_path / "b", ramp, series="2")
    write_series(tmp_path / "c", ramp, series="1", study="2")
    assert alone.id in {entry.id for entry in find(tmp_path).sources}


def test_an_id_holds_where_the_series_uid_was_stripped(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def strip(ds: Dataset, k: int) -> None:
        del ds.SeriesInstanceUID

    paths = write_series(tmp_path / "a", ramp, series="1", change=strip)
    write_series(tmp_path / "b", ramp, series="2", change=strip)
    before = {entry.relative.name: entry.id for entry in find(tmp_path).sources}
    assert len(set(before.values())) == 2
    for number, path in enumerate(reversed(paths)):
        path.rename(path.with_name(f"x{number}"))
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    after = {entry.relative.name: entry.id for entry in find(tmp_path).sources}
    assert after == {"elsewhere": before["a"], "b": before["b"]}


def test_ids_stay_apart_where_every_uid_was_stripped(tmp_path: Path, write_series: Series, ramp: np.ndarray) -> None:
    def strip(ds: Dataset, k: int) -> None:
        del ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.SOPInstanceUID

    for folder in "ab":
        write_series(tmp_path / folder, ramp, change=strip)
    sources = find(tmp_path).sources
    assert [entry.slices for entry in sources] == [3, 3]
    assert len({entry.id for entry in sources}) == 2


def test_rounded_orientations_far_from_the_origin_keep_their_order(
    tmp_path: Path, write_series: Series, ramp: np.ndarray
) -> None:
    """Cosines that differ in the third digit move a plane 500 mm off by more than the spacing, were each measured by its own."""

    def jitter(ds: Dataset, k: int) -> None:
        ds.ImageOrientationPatient = [1, 0, 0.004 * (-1) ** k, 0, 1, 0]

    paths = write_series(tmp_path, ramp, origin=(500, 0, 0), change=jitter)
    (entry,) = find(tmp_path).sources
    assert list(entry.source.files) == paths


def test_frames_of_one_file_are_planes_of_a_volume() -> None:
    slices = [plane(number, position=float(number), frame=number) for number in (2, 0, 1)]
    (volume,), left_out = volumes(slices)
    assert not left_out
    assert volume.source().files == (Path("a"),) * 3
    assert volume.source().frames == (0, 1, 2)


def test_multi_frame_files_of_one_series_without_a_mark_are_told_apart_by_their_numbers() -> None:
    slices = [
        replace(plane(k, position=float(k), frame=k), path=Path(f"{time}"), instance=f"1.{time}", number=time)
        for time in (1, 2)
        for k in range(3)
    ]
    found, _ = volumes(slices)
    assert {(volume.key, volume.source().files) for volume in found} == {
        ("InstanceNumber=1", (Path("1"),) * 3),
        ("InstanceNumber=2", (Path("2"),) * 3),
    }


def test_a_cine_is_a_picture_a_frame() -> None:
    slices = [replace(plane(n, position=0.0, frame=n), modality="US", position=None) for n in range(3)]
    found, _ = volumes(slices)
    assert sorted(volume.key.partition(";")[2] for volume in found) == ["frame=0", "frame=1", "frame=2"]
    assert len({volume.id for volume in found}) == 3


@pytest.mark.parametrize(
    ("axis", "plane"),
    [((0, 0, 1), "axial"), ((0, -1, 0.3), "coronal"), ((1, 0.2, 0.2), "sagittal"), ((1, 1, 0), "oblique")],
)
def test_planes_have_the_names_of_the_field(axis: tuple[float, ...], plane: str) -> None:
    assert plane_of(np.array(axis)) == plane


def plane(n: int, position: float, frame: int | None = None) -> Slice:
    """An axial plane of 4×5 pixels at a height."""
    return Slice(
        path=Path("a"),
        series="1.2",
        study="",
        patient="",
        modality="MR",
        description="",
        instance="1.2.3",
        number=1,
        matrix=(5, 4, 1),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        position=(0.0, 0.0, position),
        pixel_spacing=(1.0, 1.0),
        thickness=1.0,
        frame=frame,
    )
