from __future__ import annotations

from pathlib import PurePath

import pytest

from medseg.scans.names import (
    case_id,
    channel_of,
    frame_hash,
    patient_hash,
    series_hash,
    series_id,
    slug,
    stem,
    study_hash,
    unique_ids,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.nii.gz", "a"),
        ("b.NII", "b"),
        ("c.v2.mha", "c.v2"),
        ("1.2.840.10008", "1.2.840.10008"),
        (".nii.gz", ".nii.gz"),
    ],
)
def test_a_stem_loses_known_endings_only(name: str, expected: str) -> None:
    assert stem(name) == expected


@pytest.mark.parametrize("name", ["../liver", "a/b", "..", "", "C:\\x", "\x00", "~root", "tumour\n", "x" * 300, "…"])
def test_a_slug_is_one_safe_part_of_a_path(name: str) -> None:
    made = slug(name)
    assert made
    assert len(made) <= 100
    assert PurePath(made).parts == (made,)
    assert not set(made) & set('/\\:\n\x00~"*?<>|')
    assert not made.startswith(".")


def test_a_slug_keeps_letters_of_any_language() -> None:
    assert slug("../Leber & Milz (groß)") == "Leber_Milz_groß"


def test_a_case_id_stays_as_it_is_where_it_is_safe() -> None:
    assert case_id("Case 1 (left)") == "Case 1 (left)"
    assert case_id("../../etc/passwd") == "etc_passwd"


def test_ids_take_the_folder_and_then_the_ending_where_stems_are_not_unique() -> None:
    paths = [PurePath(p) for p in ("a/x.nii.gz", "b/x.nii.gz", "y.nii.gz", "z.mha", "z.nii.gz")]
    assert unique_ids(paths) == ["a__x", "b__x", "y", "z__mha", "z__nii__gz"]


def test_channel_numbers_have_four_digits() -> None:
    assert channel_of("p_1_0002") == ("p_1", 2)
    assert channel_of("p_002") is None


def test_ids_of_series_and_patients_are_stable_and_tell_nothing() -> None:
    # SHA-256 of "1.2.3\n", written down when the rule was made: changing it would rename every case.
    assert series_id("ct", "1.2.3", "") == "CT_d82f34ae9aa4"
    assert series_id("CT", "1.2.3", "EchoTime=2") != series_id("CT", "1.2.3", "")
    assert "Miller" not in patient_hash("Miller")
    assert patient_hash("Miller") == patient_hash("Miller") != patient_hash("Smith")


def test_stand_ins_of_uids_are_apart_by_what_they_stand_for_and_empty_for_none() -> None:
    assert len({study_hash("1.2"), series_hash("1.2"), frame_hash("1.2")}) == 3
    assert series_hash("1.2") == series_hash("1.2") != series_hash("1.3")
    assert (series_hash(""), frame_hash("")) == ("", "")
