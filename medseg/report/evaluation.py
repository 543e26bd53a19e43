"""An evaluation folder as values that a page shows: figures with intervals, curves, worst cases, calibration, audit and trust.

Every part stands for itself, and what is not there is not shown. Computes no metric; the one thing that is decided here is
which cases are the worst: those of the lowest mean Dice, of most lesions missed or made up, of a probability farthest off.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import all_at_once
from medseg.explain.baselines import NAMES as BLIND
from medseg.report.sheets import picture

MOST_WORST = 24
_PARTS = ("summary.json", "cases.csv", "calibration.json", "audit.json", "audit.csv", "trust.json")
_COLUMNS = {
    "cases.csv": ("id", "fold", "label", "metric", "value", "n_gt", "n_pred"),
    "audit.csv": ("column", "group", "metric", "label", "value", "low", "high", "n_patients", "judged"),
}
_AGAIN = "run the command that wrote it again"


def holds_evaluation(folder: Path) -> bool:
    """Whether there is anything to read for `read_evaluation`."""
    return any((folder / name).is_file() for name in (*_PARTS, "evaluation.json"))


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Everything that the folder holds beside predictions.

    Raises:
        MedsegError: files that are damaged, all of them at once.
    """
    files = _Files(folder)
    found = {
        "state": files.json("evaluation.json"),
        "metrics": _entries(files.json("summary.json")),
        "baselines": {
            path.name: _entries(files.json(f"baselines/{path.name}/summary.json"))
            for path in sorted((folder / "baselines").glob("*"))
        },
        "worst": worst_cases(files.table("cases.csv")),
        "calibration": _calibration(files.json("calibration.json")),
        "audit": _audit(files.table("audit.csv"), files.json("audit.json")),
        "trust": _trust(files.json("trust.json"), files.json("trust_verdict.json")),
        "figures": [
            {"name": path.stem, "sheet": picture(path.read_bytes())}
            for path in sorted([*(folder / "figures").glob("*.png"), *folder.glob("*.png")])
        ],
    }
    if files.problems:
        raise all_at_once(f"{folder}: some files of the evaluation are damaged:", files.problems)
    return found


def worst_cases(rows: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """The cases of ``cases.csv`` to look at first, the worst on top.

    Returns:
        ``by`` says what makes a case bad, ``columns`` names the ``values`` of each of ``rows``; None where nothing tells.
    """
    metrics = {row["metric"] for row in rows}
    cases: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        cases.setdefault((row["fold"], row["id"]), []).append(row)
    if "dice" in metrics:
        by, columns, each = "lowest mean Dice", *_by_dice(cases)
    elif {"tp", "fp", "fn"} <= metrics:
        by, columns, each = "most lesions missed or made up", *_by_counts(cases)
    elif "probability" in metrics:
        by, columns, each = "probability farthest from the truth", *_by_probability(cases)
    else:
        return None
    each.sort(key=lambda case: (-case[0], case[1]))
    listed = [{"fold": fold, "id": name, "values": values} for _, (fold, name), values in each[:MOST_WORST]]
    return {"by": by, "columns": columns, "rows": listed, "of": len(cases)}


_Cases = Mapping[tuple[str, str], Sequence[Mapping[str, str]]]
_Row = tuple[float, tuple[str, str], list[str | int]]
_Ranked = tuple[list[str], list[_Row]]


def _by_dice(cases: _Cases) -> _Ranked:
    """The mean, then each label."""
    labels = list(dict.fromkeys(row["label"] for rows in cases.values() for row in rows if row["metric"] == "dice"))
    columns = labels if len(labels) > 1 else []  # of one label its Dice is the mean
    each: list[_Row] = []
    for key, rows in cases.items():
        dice = {row["label"]: _number(row["value"]) for row in rows if row["metric"] == "dice"}
        known = [value for value in dice.values() if value is not None]
        if known:
            mean = sum(known) / len(known)
            each.append((-mean, key, [_three(mean), *(_three(dice.get(label)) for label in columns)]))
    return ["Dice", *columns], each


def _by_counts(cases: _Cases) -> _Ranked:
    """Found, false and missed lesions of all labels."""
    each: list[_Row] = []
    for key, rows in cases.items():
        tp, fp, fn = (
            sum(int(_number(row["value"]) or 0) for row in rows if row["metric"] == metric)
            for metric in ("tp", "fp", "fn")
        )
        each.append((float(fp + fn), key, [tp, fp, fn]))
    return ["found", "false positives", "missed"], each


def _by_probability(cases: _Cases) -> _Ranked:
    """What is true, what is called, and the probability that is farthest off."""
    each: list[_Row] = []
    for key, rows in cases.items():
        known = [
            (row, value)
            for row in rows
            if row["metric"] == "probability" and (value := _number(row["value"])) is not None
        ]
        if known:
            true, called = (
                ", ".join(r["label"] for r, _ in known if _number(r[n])) or "none" for n in ("n_gt", "n_pred")
            )
            row, value = max(known, key=lambda pair: abs(pair[1] - (_number(pair[0]["n_gt"]) or 0)))
            off = abs(value - (_number(row["n_gt"]) or 0))
            each.append((off, key, [true, called, f"{row['label']} {value:.3f}"]))
    return ["true", "called", "farthest off"], each


class _Files:
    """The files of a folder; what cannot be read is noted in ``problems``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []

    def json(self, name: str) -> dict[str, Any]:
        """An object; empty where there is no such file."""
        text = self._text(name)
        try:
            body = json.loads(text) if text else {}
        except ValueError as error:
            self.problems.append(f"{name}: not readable as JSON ({error}); {_AGAIN}")
            return {}
        if not isinstance(body, dict):
            self.problems.append(f"{name}: expected an object, found {repr(body)[:40]}; {_AGAIN}")
            return {}
        return body

    def table(self, name: str) -> list[dict[str, str]]:
        """The rows of one of the files of `_COLUMNS`; none where there is no such file."""
        rows = list(csv.DictReader(io.StringIO(self._text(name))))
        missing = [column for column in _COLUMNS[name] if rows and column not in rows[0]]
        if missing or any(None in row or None in row.values() for row in rows):
            lacks = f"it has no {', '.join(missing)}" if missing else "a row has more or fewer cells than the first"
            self.problems.append(f"{name}: expected the columns that medseg writes; {lacks}; {_AGAIN}")
            return []
        return rows

    def _text(self, name: str) -> str:
        path = self.folder / name
        if not path.is_file():
            return ""
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            self.problems.append(f"{name}: not readable as text ({error.reason}); {_AGAIN}")
            return ""


def _entries(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{metric: {label: {value, …}}}`` as a list of figures; whatever else a summary holds is left out."""
    return [
        {"metric": metric, "label": label, **entry}
        for metric, labels in summary.items()
        if isinstance(labels, dict)
        for label, entry in labels.items()
        if isinstance(entry, dict) and "value" in entry
    ]


def _calibration(rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is said of each label in single numbers, with an interval where ``<name>_interval`` or ``<name>_range`` gives one."""
    found = []
    for label, entry in rows.items():
        figures = {}
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, (int, float)):
                low, high = entry.get(f"{name}_interval") or entry.get(f"{name}_range") or (None, None)
                figures[name] = {"value": value, "low": low, "high": high}
        if figures:
            found.append(
                {"label": label, "figures": figures, "note": entry.get("note"), "conformal": entry.get("conformal")}
            )
    return found


def _audit(rows: Sequence[Mapping[str, str]], body: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row a group with its figure, and the plain words; None where nobody asked."""
    if not rows and not body:
        return None
    verdicts = [verdict for verdict in body.get("verdicts", []) if isinstance(verdict, dict) and verdict.get("differs")]
    apart = {tuple(verdict.get(key) for key in ("column", "outlier", "metric", "label")) for verdict in verdicts}
    groups = []
    for row in rows:
        names = tuple(row[key] for key in ("column", "group", "metric", "label"))
        value, low, high = (_number(row[key]) for key in ("value", "low", "high"))
        groups.append(
            {
                **dict(zip(("column", "group", "metric", "label"), names, strict=True)),
                **{"figure": {"value": value, "low": low, "high": high}, "patients": row["n_patients"]},
                **{"judged": row["judged"] == "yes", "differs": names in apart},
            }
        )
    return {"groups": groups, "words": [str(text) for text in body.get("words", [])]}


def _trust(figures: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row a method, the maps that know no network last; None where nobody asked."""
    if not figures:
        return None
    methods = [
        {
            "name": name,
            "blind": name in BLIND,
            "flags": [str(flag) for flag in own.get("flags", [])],
            "measures": {key: entry for key, entry in own.items() if isinstance(entry, dict)},
        }
        for name, own in figures.items()
        if isinstance(own, dict)
    ]
    return {"methods": sorted(methods, key=lambda method: method["blind"]), "verdict": verdict or None}


def _three(value: float | None) -> str:
    """Three decimals, a dash where there was nothing to measure."""
    return "–" if value is None else f"{value:.3f}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
