"""The cases that were judged so far, a file each below ``judged``, so that a judgement that was interrupted goes on.

A file holds the figures and curves of one case, the request that they answer, and a key of the files they were measured on.
What is judged, and when the files have done their duty, is decided in `medseg.commands.judge`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.explain.faithfulness import Curve
from medseg.explain.trust import TrustCase
from medseg.export.origin import content_key
from medseg.files import content_sha256, write_text
from medseg.scans.names import case_id
from medseg.structures import Case

NAME = "judged"
FORMAT = 1


@dataclass(frozen=True)
class JudgedCases:
    """What was judged of the cases of one fold.

    Args:
        output: the folder of the judgement.
        request: all that the figures depend on beside the case, as plain values.
    """

    output: Path
    request: Mapping[str, Any]

    def other_way(self, case: Case) -> str | None:
        """In what the request differs that a case was judged for, as ``methods, targets``; empty where it does not differ, None
        where the case has no file."""
        body = self._body(case)
        if body is None:
            return None
        theirs, mine = body["request"], _plain(self.request)
        return ", ".join(name for name in mine if theirs.get(name) != mine[name])

    def read(self, case: Case) -> list[TrustCase] | None:
        """What was measured of each target of a case; None where that is still to do."""
        body = self._body(case)
        try:
            if body is None or body["request"] != _plain(self.request) or body["key"] != _key(case):
                return None
            return [_from_plain(case, entry) for entry in body["targets"]]
        except OSError:
            return None  # judging it says what is wrong

    def write(self, case: Case, found: Sequence[TrustCase]) -> None:
        """Keep what was measured of a case: whole or not at all.

        Raises:
            OSError: a file of the case is gone, or the disk is full.
        """
        body = {"format": FORMAT, "id": case.id, "key": _key(case), "request": self.request}
        self._path(case).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**body, "targets": [_to_plain(one) for one in found]}, ensure_ascii=False, allow_nan=False)
        write_text(self._path(case), text + "\n")

    def remove(self) -> None:
        """Remove the files of all cases, of whatever request."""
        shutil.rmtree(self.output / NAME, ignore_errors=True)

    def _path(self, case: Case) -> Path:
        return self.output / NAME / f"{case_id(case.id)}.json"

    def _body(self, case: Case) -> dict[str, Any] | None:
        """What the file of a case says; None where there is none of it that is understood."""
        try:
            body = json.loads(self._path(case).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_mine = isinstance(body, dict) and (body.get("format"), body.get("id")) == (FORMAT, case.id)
        return body if is_mine else None


def _key(case: Case) -> str:
    """Of the images, and of what is marked in them. Raises OSError for a file that is not there."""
    boxes = content_sha256(case.boxes)[:16] if isinstance(case.boxes, Path) else case.boxes or ""
    return f"{content_key(case, with_label=True)} {boxes}".strip()


def _to_plain(case: TrustCase) -> dict[str, Any]:
    values = {name: {measure: _number(value) for measure, value in own.items()} for name, own in case.values.items()}
    curves = {n: [[one.share.tolist(), one.score.tolist()] for one in two] for n, two in case.curves.items()}
    named = {"target": case.target, "size": _number(case.size), "failed": dict(case.failed)}
    return {**named, "values": values, "curves": curves}


def _from_plain(case: Case, entry: Mapping[str, Any]) -> TrustCase:
    values = {name: {m: _figure(value) for m, value in own.items()} for name, own in entry["values"].items()}
    curves = {
        name: (Curve(*map(np.asarray, deletion)), Curve(*map(np.asarray, insertion)))
        for name, (deletion, insertion) in entry["curves"].items()
    }
    size = _figure(entry["size"])
    return TrustCase(case.id, case.patient, entry["target"], values, curves, size, entry["failed"])


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _figure(number: float | None) -> float:
    return math.nan if number is None else number


def _plain(values: Mapping[str, Any]) -> Any:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(values))
