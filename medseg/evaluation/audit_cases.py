"""``cases.csv`` of an evaluation folder read back, a row a case: what was measured, and what is known about each case.

Further metadata may come from a table with a column ``id``. Knows the long form that `medseg.evaluation.summary` writes and no
metric; a folder whose evaluation did not end is refused.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.errors import MedsegError, all_at_once
from medseg.scans.tables import read_table
from medseg.volume import Array

NEEDED = ("id", "patient", "label", "metric", "value", "n_gt", "n_pred")
"""The columns without which a table is no ``cases.csv``; every other one says something about the cases."""

_SHOWN = 5
_FOLD = "fold"  # folds may share cases: id and fold together name one


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric of one label: ``value``, ``n_gt`` and ``n_pred`` ``(N,)`` float, NaN where a case has no such row."""

    value: Array
    n_gt: Array
    n_pred: Array


@dataclass(frozen=True, eq=False)
class AuditCases:
    """``N`` cases of an evaluation.

    Args:
        patients: the patient of each case; the id where the table names none.
        metadata: column → a cell a case, blank where nothing is known.
        measured: (metric, label) → its values.
    """

    patients: tuple[str, ...]
    metadata: Mapping[str, tuple[str, ...]]
    measured: Mapping[tuple[str, str], Measured]

    def __len__(self) -> int:
        return len(self.patients)

    @property
    def folds(self) -> int:
        """How many folds the cases are from, 1 where nobody says; each has a model of its own."""
        return max(1, len(set(self.metadata.get(_FOLD, ())) - {""}))

    def metrics(self) -> list[str]:
        """The metrics of the rows, in their order."""
        return list(dict.fromkeys(metric for metric, _ in self.measured))

    def labels(self, metric: str) -> list[str]:
        """The labels that a metric has rows of, in their order."""
        return [label for name, label in self.measured if name == metric]


def read_cases(folder: Path, table: Path | None = None) -> AuditCases:
    """Read the cases of an evaluation folder, with the columns of ``table`` joined by id.

    A column that both have is taken from ``table``. Cases that it does not list are blank there.

    Raises:
        MedsegError: the folder is no evaluation, or half written; the table is not readable or shares no id with it.
    """
    rows = _rows(folder)
    keys = {key: at for at, key in enumerate(dict.fromkeys(_key(row) for row in rows))}
    ids, patients = [""] * len(keys), [""] * len(keys)
    about = [name for name in rows[0] if name not in NEEDED]
    metadata = {name: [""] * len(keys) for name in about}
    measured: dict[tuple[str, str], Measured] = {}
    problems = []
    for line, row in enumerate(rows, start=2):
        at, name = keys[_key(row)], (row["metric"], row["label"])
        ids[at], patients[at] = row["id"], row["patient"] or row["id"]
        for column in about:
            metadata[column][at] = row[column].strip()
        if name not in measured:
            measured[name] = Measured(*(np.full(len(keys), np.nan) for _ in range(3)))
        found = measured[name]
        try:
            numbers = [float(row[column] or math.nan) for column in ("value", "n_gt", "n_pred")]
        except ValueError:
            problems.append(f"line {line}: expected numbers, found {[row[c] for c in ('value', 'n_gt', 'n_pred')]}")
            continue
        if not math.isnan(found.n_gt[at]):
            problems.append(f"line {line}: {row['metric']} of {row['label']} stands twice for case {row['id']!r}")
        found.value[at], found.n_gt[at], found.n_pred[at] = numbers
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise all_at_once(f"{folder / 'cases.csv'}: evaluate again, these rows are broken:", problems[:_SHOWN] + more)
    if table is not None:
        metadata |= _joined(Path(table), ids)
    return AuditCases(tuple(patients), {name: tuple(cells) for name, cells in metadata.items()}, measured)


def _rows(folder: Path) -> list[dict[str, str]]:
    """The rows of ``cases.csv``, at least one. Raises MedsegError where the folder is not a whole evaluation."""
    if not folder.is_dir():
        raise MedsegError(
            f"evaluation {folder}: expected the folder that medseg evaluate wrote (its out=); there is none"
        )
    missing = [name for name in ("cases.csv", "summary.json") if not (folder / name).is_file()]
    if missing:
        raise MedsegError(
            f"evaluation {folder}: expected cases.csv and summary.json, found no {' and no '.join(missing)}: this is no "
            "evaluation folder, or half of one. Run its medseg evaluate again, which goes on, and then the audit"
        )
    file, state = folder / "cases.csv", folder / "evaluation.json"
    try:
        if state.is_file() and not json.loads(state.read_text(encoding="utf-8")).get("complete", True):
            raise MedsegError(f"evaluation {folder}: it did not end. Run its medseg evaluate again, which goes on")
        json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            rows, header = list(reader), reader.fieldnames or []
    except (ValueError, csv.Error) as error:
        raise MedsegError(f"evaluation {folder}: not readable ({error}); run its medseg evaluate again") from None
    absent = [name for name in NEEDED if name not in header]
    if absent:
        raise MedsegError(
            f"{file}: expected the columns {', '.join(NEEDED)}, found no {', '.join(absent)}; run medseg evaluate again"
        )
    if not rows:
        raise MedsegError(f"{file}: expected a row a case and metric, found none; there is nothing to audit")
    return rows


def _key(row: Mapping[str, str]) -> tuple[str, str]:
    return row["id"], row.get(_FOLD, "")


def _joined(table: Path, ids: list[str]) -> dict[str, list[str]]:
    """Column → a cell a case, from the rows of a table with the ids of the cases."""
    rows = read_table(table).by_id()
    if not set(rows) & set(ids):
        examples = f"{next(iter(rows), 'nothing')!r} there, {ids[0]!r} in cases.csv"
        raise MedsegError(f"table {table}: expected the ids of the cases, found none of them ({examples})")
    known = {name: {**row.cells, **row.metadata} for name, row in rows.items()}
    columns = dict.fromkeys(column for cells in known.values() for column in cells if column not in NEEDED)
    return {column: [known.get(name, {}).get(column, "") for name in ids] for column in columns}
