"""``medseg audit``: for whom is it wrong? The figures of an evaluation by group, beside chance, as a table, a picture and words.

Knows the order of the steps and what the files hold; reads ``cases.csv`` and ``summary.json`` of the evaluation folder and, where
one is given, a table with further columns.

    audit.csv           column, group, metric, label, value, low, high, n_cases, n_patients, judged; first a row of all cases
    audit.json          {n_cases, n_patients, smallest, permutations, seed, mixed_patients and unknown_cases by column,
                        verdicts: [what `Verdict` holds], words: [sentences]}
    audit.md            the words
    figures/audit.png   values and intervals
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError
from medseg.evaluation.audit import Audit, Cell, run_audit
from medseg.evaluation.audit_cases import read_cases
from medseg.evaluation.audit_figures import draw_audit
from medseg.evaluation.audit_groups import columns_of
from medseg.evaluation.audit_metrics import figures_of
from medseg.evaluation.audit_words import markdown, sentences
from medseg.files import full_disk_is_said, write_text

logger = logging.getLogger(__name__)


def audit(
    *,
    evaluation: Path,
    columns: Sequence[str] | str,
    pairs: Sequence[Sequence[str]] = (),
    bands: Mapping[str, Sequence[float]] | None = None,
    table: Path | None = None,
    out: Path | None = None,
    metrics: Sequence[str] | str | None = None,
    smallest: int = 10,
    permutations: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Compare the groups of each column in every figure, write what was found and say it in words.

    Args:
        evaluation: a folder that `medseg.commands.evaluate.evaluate` wrote.
        columns: of the metadata: categories, or numbers, which are cut into bands.
        pairs: of columns that are crossed.
        bands: column → edges; without them numbers are cut into thirds.
        table: a CSV table with a column ``id`` and further columns.
        out: where the files go, by default ``evaluation`` itself.
        metrics: see `medseg.evaluation.audit_metrics`; None for those that matter most.
        smallest: patients that a group needs to be judged.
        seed: of permutations and intervals.
        progress: there is none to show, it takes seconds.

    Raises:
        MedsegError: the folder is no whole evaluation, or columns, bands or metrics cannot be had from it.
        MachineError: the disk is full.
    """
    del progress
    evaluation, out = Path(evaluation), Path(out or evaluation)
    if out.exists() and not out.is_dir():
        raise MedsegError(f"out {out}: expected a folder, found a file; choose another")
    cases = read_cases(evaluation, table)
    of_cases = columns_of(cases, [columns] if isinstance(columns, str) else columns, pairs=pairs, bands=bands)
    figures = figures_of(cases, [metrics] if isinstance(metrics, str) else metrics)
    how = {"smallest": smallest, "permutations": permutations, "seed": seed, "folds": cases.folds}
    found = run_audit(cases.patients, of_cases, figures, **how)
    with full_disk_is_said(out):
        write_audit(out, found)
    logger.info("%s\naudit.csv, audit.json, audit.md and figures/audit.png are in %s", "\n".join(sentences(found)), out)
    return found


def write_audit(folder: Path, found: Audit) -> None:
    """Write the files of an audit into ``folder``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        **{name: getattr(found, name) for name in ("n_cases", "n_patients", "smallest", "permutations", "seed")},
        "mixed_patients": dict(found.mixed),
        "unknown_cases": dict(found.unknown),
        "verdicts": [asdict(verdict) for verdict in found.verdicts],
        "words": sentences(found),
    }
    write_text(folder / "audit.csv", _table([*found.overall, *found.cells]))
    write_text(folder / "audit.json", json.dumps(_plain(body), indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "audit.md", markdown(found))
    groups = "red: a group that differs; grey: too small to judge; to the right: patients; dashed: all cases"
    draw_audit(found, folder / "figures" / "audit.png", title=groups)


def _table(cells: Sequence[Cell]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Cell)])
    for cell in cells:
        writer.writerow([_cell(getattr(cell, field.name)) for field in fields(Cell)])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
