from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.scans.reading import ScanError
from medseg.scans.segments import Segment, check_rules, merged, numbered, palettes, renamed
from medseg.structures import LabelTable

FILES = [
    [Segment(1, "GTV-1"), Segment(2, "Lung Left")],
    [Segment(5, "lung_left"), Segment(6, "gtv-2"), Segment(7, "body")],
]


def painted(number: int, file: int, table: LabelTable | None, key: str = "") -> int:
    palette = palettes(FILES, table, key)[file]
    return int(palette.values[palette.paints(number, "a.dcm")])


def test_a_segment_is_painted_with_the_value_of_its_name() -> None:
    table = LabelTable({3: "LUNG  left", 4: "gtv-1", 8: "gtv-2", 9: "Body"})
    assert [painted(n, 0, table) for n in (1, 2)] == [4, 3]
    assert [painted(n, 1, table) for n in (5, 6, 7)] == [3, 8, 9]


def test_without_a_table_a_segment_has_its_number() -> None:
    assert [painted(n, 1, None) for n in (5, 6, 7)] == [5, 6, 7]


def test_only_painting_what_nothing_names_is_a_fault() -> None:
    table = LabelTable({1: "lung left"})
    assert painted(2, 0, table) == 1
    with pytest.raises(ScanError, match=r"a\.dcm: it holds 'GTV-1', which nothing names; known are lung left"):
        painted(1, 0, table)


def test_rules_pick_segments_and_call_them_alike() -> None:
    key = renamed(FILES, {"tumour": r"gtv-\d", "lung": "lung.*", "late": ".*left"})
    assert json.loads(key) == [{"1": "tumour", "2": "lung"}, {"5": "lung", "6": "tumour"}]
    table = LabelTable({1: "tumour", 2: "lung"})
    assert [painted(n, 0, table, key) for n in (1, 2)] == [1, 2]
    assert [painted(n, 1, table, key) for n in (5, 6, 7)] == [2, 1, 0]


def test_a_rule_fits_a_whole_name_and_a_key_is_empty_where_none_does() -> None:
    assert renamed(FILES, {"tumour": "gtv"}) == ""
    assert json.loads(renamed(FILES, {"body": "body"})) == [{}, {"7": "body"}]
    with pytest.raises(MedsegError, match="label_match 'x': .* is no regular expression"):
        check_rules({"x": "("})


def test_files_that_agree_keep_their_numbers_and_others_are_counted() -> None:
    assert numbered([[Segment(2, "liver")], [Segment(2, "Liver"), Segment(7, "spleen")]]) == {2: "liver", 7: "spleen"}
    assert numbered([[Segment(1, "liver")], [Segment(1, "spleen"), Segment(2, "liver")]]) == {1: "liver", 2: "spleen"}
    assert numbered([[Segment(0, "liver"), Segment(999, "spleen")]]) == {1: "liver", 2: "spleen"}
    assert numbered([[]]) == {}


def test_merging_keeps_the_higher_rank_and_counts_what_differs() -> None:
    found, doubled = merged(np.array([0, 1, 2, 2], np.uint8), np.array([1, 0, 2, 1], np.uint8))
    assert found.tolist() == [1, 1, 2, 2]
    assert doubled == 1
