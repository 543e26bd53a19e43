from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.scans.tables import read_table


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_rows_hold_our_columns_and_metadata(tmp_path: Path, delimiter: str) -> None:
    text = "id,image,image_10,image_2,age\np1,a.nii,c.nii,b.nii,44\np2,d.nii,,,\n".replace(",", delimiter)
    table = read_table(write(tmp_path / "t.csv", text))
    assert table.images == ("image", "image_2", "image_10")
    assert [row.get("id") for row in table.rows] == ["p1", "p2"]
    assert dict(table.rows[0].metadata) == {"age": "44"}
    assert table.rows[1].get("image_2") == ""
    assert table.resolve("a.nii") == tmp_path / "a.nii"


def test_other_names_are_mapped(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", 'case,subject\np1,"Ä, B"\n'), {"id": "case", "patient": "subject"})
    assert table.by_id()["p1"].get("patient") == "Ä, B"


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("", None, "empty"),
        ("name,age\n", None, "no column id; it has name, age"),
        ("id\n", {"patient": "who"}, "no column 'who'"),
        ("id\n", {"pacient": "id"}, "no pacient; a table has id, image"),
    ],
)
def test_what_is_no_table_is_said(tmp_path: Path, text: str, columns: dict[str, str] | None, words: str) -> None:
    with pytest.raises(MedsegError, match=words):
        read_table(write(tmp_path / "t.csv", text), columns)


def test_missing_files_binary_files_and_doubled_ids_are_said(tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match="no such table"):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "b.csv").write_bytes(b"id\n\xff\xfe\xfa")
    with pytest.raises(MedsegError, match="UTF-8"):
        read_table(tmp_path / "b.csv")
    with pytest.raises(MedsegError, match="lines 2 and 3 have the same id 'p'"):
        read_table(write(tmp_path / "t.csv", "id\np\np\n")).by_id()


def test_an_empty_cell_of_boxes_says_that_there_is_none_and_no_cell_says_nothing(tmp_path: Path) -> None:
    text = 'id,age,boxes\np1,3,"1,2,3,4"\np2,3,\np3,3, \np4,3,none\np5,3,sub/p5.json\np6,3,p6.XML\np7,3\n'
    table = read_table(write(tmp_path / "t.csv", text))
    found = {row.get("id"): table.boxes_of(row) for row in table.rows}
    assert found == {
        "p1": "1,2,3,4",
        "p2": "",
        "p3": "",
        "p4": "none",
        "p5": tmp_path / "sub" / "p5.json",
        "p6": tmp_path / "p6.XML",
        "p7": None,
    }
    without = read_table(write(tmp_path / "t.csv", "id,age\np1,3\n"))
    assert without.boxes_of(without.rows[0]) is None
