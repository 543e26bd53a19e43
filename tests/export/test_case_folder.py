"""A folder appears whole or not at all."""

from __future__ import annotations

import pytest

from medseg.export.case_folder import holds_only_results, remove_remains, whole_folder


def test_a_folder_is_there_only_when_the_block_is_done(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_block_that_fails_leaves_the_older_folder_and_no_remains(tmp_path):
    with whole_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("old")

    def fail():
        with whole_folder(tmp_path / "a") as folder:
            (folder / "x").write_text("new")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    for name in (".part-a", ".old-b", ".git", "a"):
        (tmp_path / name).mkdir()
    (tmp_path / ".part-manifest.json").write_text("{")
    remove_remains(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".git", "a"]


def test_only_names_that_a_prediction_writes_may_be_replaced(tmp_path):
    for name in ("mask.nii.gz", "boxes.json", "overlay.png", "organs/probability_1-liver.nii.gz"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).touch()
    assert holds_only_results(tmp_path / "a")
    (tmp_path / "a" / "organs" / "notes.txt").touch()
    assert not holds_only_results(tmp_path / "a")
    assert not holds_only_results(tmp_path / "a" / "organs" / "notes.txt")
