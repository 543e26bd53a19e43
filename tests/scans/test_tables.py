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
