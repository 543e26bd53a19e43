"""Cells in columns, as a terminal shows them. Knows no figure."""

from __future__ import annotations

from collections.abc import Sequence


def said(name: str) -> str:
    """The name of a metric, a band or a baseline, as people read it."""
    return name.replace("_", " ")


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A line each, every column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)
