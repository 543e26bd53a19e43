"""Files are named relative to the input, and another content has another key."""

from __future__ import annotations

import os
from pathlib import Path

from medseg.export.origin import InputNames, content_key
from medseg.structures import Case, Source, as_source


def case(*files: Path) -> Case:
    return Case("a", tuple(as_source("nifti", file) for file in files))


def test_names_are_relative_to_the_folder_or_to_where_the_file_lies(tmp_path):
    file = tmp_path / "in" / "sub" / "a.nii.gz"
    file.parent.mkdir(parents=True)
    file.touch()
    assert InputNames.of(tmp_path / "in").sources(case(file)) == ("sub/a.nii.gz",)
    assert InputNames.of(file).sources(case(file)) == ("a.nii.gz",)
    assert InputNames.of([file, tmp_path / "in" / "b.nii"]).relative(file) == "sub/a.nii.gz"
    assert InputNames.of(tmp_path / "in").relative(tmp_path / "elsewhere" / "c.nii") == "c.nii"


def test_a_series_is_named_by_its_folder(tmp_path):
    (tmp_path / "s").mkdir()
    files = tuple(tmp_path / "s" / f"{i}.dcm" for i in range(30))
    assert InputNames.of(tmp_path).sources(Case("a", (Source("dicom", files),))) == ("s (30 files)",)


def test_messages_lose_the_paths_of_the_machine_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    names = InputNames.of(folder)
    assert (
        names.without_paths(f"{folder}/x/a.nii: cut short; min/max in the header")
        == "x/a.nii: cut short; min/max in the header"
    )
    monkeypatch.chdir(tmp_path)
    assert names.without_paths("in/a.nii: in the header") == "a.nii: in the header"
    elsewhere = tmp_path / "far" / "b.nii"
    assert names.without_paths(f"{elsewhere}: cut short", case(elsewhere)) == "b.nii: cut short"


def test_the_key_follows_the_content_and_not_the_name_or_the_time(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(bytes(range(256)) * 400)
    b.write_bytes(a.read_bytes())
    os.utime(b, (1, 1))
    key = content_key(case(a))
    assert key == content_key(case(b))
    b.write_bytes(a.read_bytes()[:-1] + b"?")
    assert content_key(case(b)) != key
    b.write_bytes(b"")
    assert content_key(case(b)) != key
