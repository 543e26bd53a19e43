"""CSV tables of cases: which column is what, and a row for each case. Opens no scan."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medseg.errors import MedsegError

KNOWN = ("id", "image", "label", "boxes", "class", "patient")
BOX_FILES = (".json", ".xml")
"""Endings of files of boxes: ``boxes.json`` and Pascal VOC."""

_IMAGE = re.compile(r"^image_(\d+)$")


@dataclass(frozen=True)
class Row:
    """One line of a table: our columns by our names, every other column as metadata.

    Empty cells are left out of both, but for ``boxes``: an empty one says that there is no lesion, none at all says nothing.
    """

    line: int
    cells: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> str:
        return self.cells.get(name, "")


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file. ``images`` are the image columns it has, by our names, in the order of the channels."""

    path: Path
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    images: tuple[str, ...]

    def resolve(self, cell: str) -> Path:
        """A path in a cell: relative to the table."""
        return self.path.parent / cell

    def boxes_of(self, row: Row) -> Path | str | None:
        """The boxes of a row: a file, or the cell itself (empty: no lesion); None where the table says nothing of them."""
        cell = row.cells.get("boxes")
        return self.resolve(cell) if cell and cell.lower().endswith(BOX_FILES) else cell

    def by_id(self) -> dict[str, Row]:
        """The row of each id. Raises MedsegError where two rows share one."""
        rows: dict[str, Row] = {}
        for row in self.rows:
            if row.get("id") in rows:
                raise MedsegError(
                    f"{self.path}: lines {rows[row.get('id')].line} and {row.line} have the same id {row.get('id')!r}; "
                    "keep one of them"
                )
            rows[row.get("id")] = row
        return rows


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name: a CSV file says nothing of itself."""
    return path.suffix.lower() in (".csv", ".tsv") and path.is_file()


def read_table(path: Path, columns: Mapping[str, str] | None = None, required: tuple[str, ...] = ("id",)) -> Table:
    """Read a CSV table (comma, semicolon or tab; UTF-8).

    Args:
        columns: our name → the name in the table, for tables that call things otherwise (``{"patient": "subject"}``).
        required: our columns without which the table is of no use.

    Raises:
        MedsegError: not there, not a table, or a column is missing; names the columns it has.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MedsegError(f"{path}: no such table") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise MedsegError(f"{path}: expected a CSV table in UTF-8 ({error})") from None
    if not text.strip():
        raise MedsegError(f"{path}: the table is empty; expected a line of column names and a line a case")
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = header
    names = _names(path, header, dict(columns or {}), required)
    theirs = set(names.values())
    rows = []
    for row in _lines(reader, path):
        # A line that ends early has no cell there (None), which is not the same as an empty one.
        cells = {ours: cell.strip() for ours, name in names.items() if (cell := row.get(name)) is not None}
        metadata = {k: v.strip() for k, v in row.items() if k not in theirs and isinstance(v, str) and v.strip()}
        rows.append(Row(reader.line_num, {k: v for k, v in cells.items() if v or k == "boxes"}, metadata))
    images = sorted((name for name in names if name == "image" or _IMAGE.match(name)), key=_channel)
    return Table(path, tuple(rows), tuple(header), tuple(images))


def _lines(reader: csv.DictReader[str], path: Path) -> Iterator[Mapping[str, str | None]]:
    try:
        yield from reader
    except csv.Error as error:
        raise MedsegError(f"{path}: line {reader.line_num} is not readable as CSV: {error}") from None


def _names(path: Path, header: list[str], columns: dict[str, str], required: tuple[str, ...]) -> dict[str, str]:
    """Our name → theirs, for the columns that the table has."""
    odd = sorted(name for name in columns if name not in KNOWN and not _IMAGE.match(name))
    if odd:
        raise MedsegError(f"columns: no {', '.join(odd)}; a table has {', '.join(KNOWN)}, image_2, image_3 …")
    for ours, name in columns.items():
        if name not in header:
            raise MedsegError(f"{path}: no column {name!r} (for {ours}); it has {', '.join(header)}")
    names = {name: name for name in header if name in KNOWN or _IMAGE.match(name)} | columns
    missing = [name for name in required if name not in names]
    if missing:
        raise MedsegError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(header)}. Name it so, or say which it is with "
            f"data.columns={{{missing[0]}: <column>}}"
        )
    return names


def _channel(name: str) -> int:
    number = _IMAGE.match(name)
    return int(number[1]) if number else 1
